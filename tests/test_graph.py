"""The channel graph of tiny networks, against groups worked out by hand."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import Chain, DenseBlock, Residual, conv, prove
from netslim import StaleGraphError, TraceError, trace
from netslim.errors import PlanError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def sizes(graph):
    return {g.name: g.size for g in graph.groups if g.prunable}


def rows(group):
    return {(s.tensor, s.axis, s.role, len(s.positions)) for s in group.slices}


def test_a_chain():
    graph = trace(Chain(), X)
    assert sizes(graph) == {"first.0": 6, "second.0": 5}
    assert rows(graph["first.0"]) == {
        ("first.0.weight", 0, "producer", 6),
        ("first.0.bias", 0, "channel", 6),
        ("first.1.weight", 0, "scale", 6),
        ("first.1.bias", 0, "channel", 6),
        ("first.1.running_mean", 0, "channel", 6),
        ("first.1.running_var", 0, "channel", 6),
        ("second.0.weight", 1, "consumer", 6),
    }
    head = next(s for s in graph["second.0"].slices if s.tensor == "head.weight")
    assert head.axis == 1
    assert head.units.tolist() == [c for c in range(5) for _ in range(16)]
    assert graph.frozen == {"head": "it is an output of the network"}


def test_a_residual_block():
    graph = trace(Residual(), X)
    assert sizes(graph) == {"stem.0": 6, "inner.0": 5}
    producers = {s.tensor for s in graph["stem.0"].tensors("producer")}
    consumers = {s.tensor for s in graph["stem.0"].tensors("consumer")}
    assert producers == {"stem.0.weight", "outer.weight"}
    assert consumers == {"inner.0.weight", "head.weight"}


def test_a_dense_block():
    graph = trace(DenseBlock(), X)
    assert sizes(graph) == {"stem": 6, "conv1": 4, "conv2": 4}
    positions = {(s.tensor, s.axis): s.positions.tolist() for s in graph["conv1"].slices}
    assert positions["norm2.weight", 0] == [6, 7, 8, 9]
    assert positions["conv2.weight", 1] == [6, 7, 8, 9]
    assert positions["norm3.running_var", 0] == [6, 7, 8, 9]
    assert positions["head.weight", 1] == [6, 7, 8, 9]


class OneForward(nn.Module):
    """A network from a function: ``a`` (3 -> n), ``b`` (n -> m), ``head`` (m -> 2)."""

    def __init__(self, forward, a, b=None, **extra):
        super().__init__()
        self.a, self.b = a, b if b is not None else nn.Identity()
        for name, value in extra.items():
            setattr(self, name, value)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def net(forward, m=6, **extra):
    return OneForward(forward, conv(3, 8), nn.Conv2d(8, m, 1), head=nn.Linear(m, 2), **extra)


def pooled(self, x):
    return self.head(x.mean((2, 3)))


EXACT = {
    "depthwise": (
        net(lambda s, x: pooled(s, s.b(s.d(s.a(x)))), d=nn.Conv2d(8, 8, 3, groups=8)),
        {"a.0": 8, "b": 6},
    ),
    "depthwise with a multiplier": (
        OneForward(
            lambda s, x: pooled(s, s.b(s.d(s.a(x)))),
            conv(3, 4),
            nn.Conv2d(8, 6, 1),
            d=nn.Conv2d(4, 8, 3, groups=4),
            head=nn.Linear(6, 2),
        ),
        {"a.0": 4, "b": 6},
    ),
    "grouped": (
        net(lambda s, x: pooled(s, s.b(s.d(s.a(x)))), d=nn.Conv2d(8, 8, 3, groups=2)),
        {"a.0": 4, "d": 4, "b": 6},
    ),
    "transposed": (
        net(lambda s, x: pooled(s, s.b(s.d(s.a(x)))), d=nn.ConvTranspose2d(8, 8, 2, stride=2)),
        {"a.0": 8, "d": 8, "b": 6},
    ),
    "grouped transposed": (
        net(lambda s, x: pooled(s, s.b(s.d(s.a(x)))), d=nn.ConvTranspose2d(8, 8, 2, groups=2)),
        {"a.0": 4, "d": 4, "b": 6},
    ),
    "depthwise transposed": (
        net(lambda s, x: pooled(s, s.b(s.d(s.a(x)))), d=nn.ConvTranspose2d(8, 8, 2, groups=8)),
        {"a.0": 8, "b": 6},
    ),
    "squeeze and excite": (
        net(
            lambda s, x: (lambda h: pooled(s, s.b(h * s.up(s.down(h.mean((2, 3), keepdim=True)).relu()).sigmoid())))(
                s.a(x)
            ),
            down=nn.Conv2d(8, 3, 1),
            up=nn.Conv2d(3, 8, 1),
        ),
        {"a.0": 8, "down": 3, "b": 6},
    ),
    "chunk and cat": (
        net(lambda s, x: (lambda p, q: pooled(s, s.b(torch.cat([q, p], 1))))(*s.a(x).chunk(2, 1))),
        {"a.0": 4, "b": 6},
    ),
    "channel shuffle by shape": (
        net(
            lambda s, x: (
                lambda h: pooled(
                    s, s.b(h.view(h.shape[0], 2, h.shape[1] // 2, 8, 8).transpose(1, 2).reshape(h.shape))
                )
            )(s.a(x))
        ),
        {"a.0": 4, "b": 6},
    ),
    "slice in the middle of the shape": (
        net(
            lambda s, x: (
                lambda h: pooled(s, s.b(torch.cat([h[:, h.shape[1] // 2 :], h[:, : h.shape[1] // 2]], 1)))
            )(s.a(x))
        ),
        {"a.0": 4, "b": 6},
    ),
    "flatten with channels last": (
        OneForward(
            lambda s, x: s.head(s.a(x).permute(0, 2, 3, 1).flatten(1)), conv(3, 5), head=nn.Linear(320, 2)
        ),
        {"a.0": 5},
    ),
    "pad space": (net(lambda s, x: pooled(s, s.b(F.pad(s.a(x), (1, 1, 1, 1), value=0.5)))), {"a.0": 8, "b": 6}),
    "group norm of one channel a group": (
        net(lambda s, x: pooled(s, s.b(s.n(s.a(x)))), n=nn.GroupNorm(8, 8)),
        {"a.0": 8, "b": 6},
    ),
    "instance norm": (
        net(lambda s, x: pooled(s, s.b(s.n(s.a(x)))), n=nn.InstanceNorm2d(8, affine=True)),
        {"a.0": 8, "b": 6},
    ),
    "pixel shuffle": (
        OneForward(
            lambda s, x: pooled(s, s.b(F.pixel_shuffle(s.a(x), 2))),
            conv(3, 8),
            nn.Conv2d(2, 6, 1),
            head=nn.Linear(6, 2),
        ),
        {"a.0": 2, "b": 6},
    ),
    "upsampling and prelu": (
        net(lambda s, x: pooled(s, s.b(F.interpolate(s.p(s.a(x)), scale_factor=2))), p=nn.PReLU(8)),
        {"a.0": 8, "b": 6},
    ),
    "a layer used twice": (
        OneForward(
            lambda s, x: pooled(s, s.b(s.b(s.a(x)))), conv(3, 6), nn.Conv2d(6, 6, 1), head=nn.Linear(6, 2)
        ),
        {"a.0": 6},
    ),
    "gated linear unit": (
        OneForward(lambda s, x: pooled(s, s.b(F.glu(s.a(x), 1))), conv(3, 8), nn.Conv2d(4, 6, 1), head=nn.Linear(6, 2)),
        {"a.0": 4, "b": 6},
    ),
    "in place and out of order": (
        net(lambda s, x: (lambda h: pooled(s, s.b(h.clamp_(0, 3).mul_(2).add_(h.relu()))))(s.a(x))),
        {"a.0": 8, "b": 6},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT, ids=lambda c: c.replace(" ", "-"))
def test_exact_patterns(case):
    model, expected = EXACT[case]
    graph, *_ = prove(model.eval(), X)
    assert sizes(graph) == expected
    assert graph.unsupported == {}


def test_split_by_a_module_attribute_is_patched():
    def forward(self, x):
        left, right = self.a(x).split((self.width, self.width), 1)
        return pooled(self, self.b(torch.cat([left, right], 1)))

    model = net(forward, width=4).eval()
    graph, plan, small, _ = prove(model, X)
    assert sizes(graph)["a.0"] == 4
    assert [(p.attribute, p.old, p.new) for p in plan.patches] == [("width", 4, 2)]
    assert (model.width, small.width) == (4, 2)
    assert type(model.width) is int


def test_view_by_a_module_attribute_is_patched():
    def forward(self, x):
        return self.head(self.a(x).mean((2, 3)).view(-1, self.width))

    model = OneForward(forward, conv(3, 8), head=nn.Linear(8, 2), width=8).eval()
    _, plan, small, _ = prove(model, X)
    assert [(p.attribute, p.old, p.new) for p in plan.patches] == [("width", 8, 4)]
    assert small.width == 4


def literal_view(self, x):
    return self.head(self.a(x).mean((2, 3)).view(-1, 8))


def literal_slice(self, x):
    return pooled(self, self.b(torch.cat([self.a(x)[:, :4], self.a(x)[:, 4:]], 1)))


def picked(self, x):
    return pooled(self, self.b(self.a(x)[:, [0, 2, 4, 6, 1, 3, 5, 7]]))


def constant(self, x):
    return pooled(self, self.b(self.a(x) + torch.arange(8.0).view(1, 8, 1, 1)))


def rolled(self, x):
    return pooled(self, self.b(torch.roll(self.a(x), 1, 1)))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (literal_view, r"the size 8 is written into the code|a reshape has its sizes written into the code"),
        (literal_slice, r"slice boundary \(4\) is written into the code"),
        (picked, "channels are picked by their numbers"),
        (constant, "it meets a fixed size in add"),
        (rolled, "rolled by a fixed amount"),
    ],
)
def test_what_cannot_follow_stays_and_says_where(forward, reason):
    model = net(forward, m=6)
    if forward is literal_view:
        model.head = nn.Linear(8, 2)
    frozen = [why for name, why in trace(model, X).frozen.items() if name.startswith("a.0")]
    assert len(frozen) == 1
    assert re.search(reason, frozen[0])
    assert "test_graph.py:" in frozen[0]


def test_what_comes_after_a_literal_boundary_may_go():
    graph, *_ = prove(net(literal_slice).eval(), X)
    assert sizes(graph) == {"a.0": 4, "b": 6}
    assert graph["a.0"].slices[0].positions.tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("forward", "extra", "reason"),
    [
        (lambda s, x: pooled(s, s.b(s.a(x) - s.a(x).mean(1, keepdim=True))), {}, "mean over the channels"),
        (lambda s, x: pooled(s, s.b(s.a(x).softmax(1))), {}, "softmax over the channels"),
        (lambda s, x: pooled(s, s.b(s.n(s.a(x)))), {"n": nn.GroupNorm(2, 8)}, "group normalisation"),
        (lambda s, x: pooled(s, s.b(s.n(s.a(x).movedim(1, 3)).movedim(3, 1))), {"n": nn.LayerNorm(8)}, "layer norm"),
    ],
)
def test_mixing_channels_is_inexact_not_frozen(forward, extra, reason):
    group = trace(net(forward, **extra), X)["a.0"]
    assert not group.exact
    assert not group.frozen
    assert not group.prunable
    assert reason in group.reason


def test_spectral_norm_couples_the_channels_of_its_weight():
    model = net(lambda s, x: pooled(s, s.b(s.n(s.a(x)))), n=nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)))
    graph = trace(model.eval(), X)
    assert sizes(graph) == {"b": 6}
    assert "over the channels" in graph["a.0"].reason


def test_unflatten_by_numbers_stays_and_by_rest_may_go():
    def by(second):
        return net(lambda s, x: pooled(s, s.b(s.a(x).unflatten(1, (2, second)).flatten(1, 2))))

    assert trace(by(4), X)["a.0"].frozen
    graph, *_ = prove(by(-1).eval(), X)
    assert sizes(graph) == {"a.0": 4, "b": 6}


def test_an_unknown_operator_freezes_and_is_listed():
    graph = trace(net(lambda s, x: pooled(s, s.b(torch.searchsorted(s.a(x), s.a(x)).float()))), X)
    assert graph.unsupported == {"searchsorted": ("",)}
    assert graph["a.0"].frozen
    assert "no rule for searchsorted" in graph["a.0"].reason
    assert graph["b"].prunable
    assert "no rule for operator searchsorted" in str(graph)


def test_parameters_that_are_never_used_are_never_cut():
    graph, plan, _, _ = prove(net(lambda s, x: pooled(s, s.b(s.a(x))), spare=nn.Conv2d(8, 8, 3)).eval(), X)
    assert "spare" not in sizes(graph)
    assert not any(t.tensor.startswith("spare") for t in plan.tensors)


def test_zero_padded_shortcut_keeps_the_padded_channels():
    class OptionA(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.head = conv(3, 4), conv(4, 8, stride=2), nn.Linear(8, 2)

        def forward(self, x):
            x = self.stem(x)
            x = self.block(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
            return self.head(x.mean((2, 3)))

    graph, *_ = prove(OptionA().eval(), X)
    assert sizes(graph) == {"stem.0": 4}
    middle = next(s for s in graph["stem.0"].slices if s.tensor == "block.0.weight" and s.axis == 0)
    assert middle.positions.tolist() == [2, 3, 4, 5]
    assert graph["block.0"].frozen


def test_multi_input_and_keyword_models():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = conv(3, 4), conv(3, 4), nn.Linear(4, 2)

        def forward(self, left, right):
            return {"logits": self.head((self.a(left) * self.b(right)).mean((2, 3)))}

    for inputs in ((X, X), {"left": X, "right": X}):
        graph, *_ = prove(Two().eval(), inputs)
        assert sizes(graph) == {"a.0": 4}


def test_tracing_leaves_the_model_alone():
    model = Chain().train()
    model.first[1].eval()
    before = copy.deepcopy(model.state_dict())
    attributes = {n: dict(m.__dict__) for n, m in model.named_modules()}
    trace(model, X)
    assert model.training
    assert not model.first[1].training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, module in model.named_modules():
        assert all(type(v) is type(attributes[name][k]) for k, v in module.__dict__.items())
        assert not module._forward_hooks


def test_errors_name_the_inputs():
    with pytest.raises(TraceError, match=r"does not run on these example inputs \(\(2, 5, 8, 8\)\)"):
        trace(Chain(), torch.zeros(2, 5, 8, 8))
    with pytest.raises(TraceError, match=r"needs a torch\.nn\.Module, got int"):
        trace(3, X)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="no group, module or tensor is named 'third'"):
        trace(Chain(), X)["third"]


def test_a_stale_graph_says_so():
    graph = trace(Chain(), X)
    with pytest.raises(StaleGraphError, match=graph.fingerprint):
        graph.check(Residual())


def test_table_and_json():
    graph = trace(Chain(), X)
    table = str(graph)
    assert "first.0" in table
    assert "2 of 3 groups can be cut exactly: 11 of 15 channels" in table
    data = json.loads(json.dumps(graph.to_dict()))
    assert data["groups"][0]["channels"] == 6
    assert data["params"] == sum(p.numel() for p in Chain().parameters())


def test_costs_follow_the_cut():
    # MACs for one picture: 3*6*9*64 + 6*5*9*64 + 80*4 = 10368 + 17280 + 320; half of 6 and 2 of 5 channels gone.
    graph = trace(Chain(), X[:1])
    assert graph.macs() == 27968
    masks = {0: np.arange(6) < 3, 1: np.arange(5) < 3}
    assert graph.macs(masks) == 3 * 3 * 9 * 64 + 3 * 3 * 9 * 64 + 48 * 4
    assert graph.params(masks) == (3 * 3 * 9 + 3 + 6) + (3 * 3 * 9 + 3 + 6) + 48 * 4 + 4


def _hidden(self, x: Tensor) -> Tensor:
    return pooled(self, self.b(self.a(x).data))


def test_data_keeps_its_labels():
    graph, *_ = prove(net(_hidden).eval(), X)
    assert sizes(graph) == {"a.0": 8, "b": 6}
