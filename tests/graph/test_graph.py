"""The channel graph of tiny networks, against groups worked out by hand."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import Chain, DenseBlock, OneForward, Residual, conv, prove
from netslim import trace
from netslim.errors import ArgumentError, StaleGraphError, TraceError

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


def net(forward, m=6, **extra):
    return OneForward(forward, conv(3, 8), nn.Conv2d(8, m, 1), head=nn.Linear(m, 2), **extra)


def pooled(self, x):
    return self.head(x.mean((2, 3)))


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


def literal_slice(self, x):
    return pooled(self, self.b(torch.cat([self.a(x)[:, :4], self.a(x)[:, 4:]], 1)))


def test_what_comes_after_a_literal_boundary_may_go():
    graph, *_ = prove(net(literal_slice).eval(), X)
    assert sizes(graph) == {"a.0": 4, "b": 6}
    assert graph["a.0"].slices[0].positions.tolist() == [4, 5, 6, 7]


def test_an_unknown_operator_freezes_and_is_listed():
    graph = trace(net(lambda s, x: pooled(s, s.b(torch.searchsorted(s.a(x), s.a(x)).float()))), X)
    assert graph.unsupported == {"searchsorted": ("",)}
    assert graph["a.0"].frozen
    assert "no rule for searchsorted" in graph["a.0"].reason
    assert graph["b"].prunable
    assert "operator searchsorted is not followed (in the top level)" in str(graph)


def test_parameters_that_are_never_used_are_never_cut():
    graph, plan, _, _ = prove(
        net(lambda s, x: pooled(s, s.b(s.a(x))), spare=nn.Conv2d(8, 8, 3)).eval(), X
    )
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
    with pytest.raises(
        TraceError, match=r"does not run on these example inputs \(\(2, 5, 8, 8\)\)"
    ):
        trace(Chain(), torch.zeros(2, 5, 8, 8))
    with pytest.raises(ArgumentError, match=r"needs a torch\.nn\.Module, got int"):
        trace(3, X)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no group, module or tensor is named 'third'"):
        trace(Chain(), X)["third"]


class _Conditioned(Chain):
    def forward(self, x, *, cond):
        return super().forward(x) * cond


@pytest.mark.parametrize("inputs", [X, (X, torch.ones(1))])
def test_inputs_that_go_by_name_alone_are_said_to_need_a_dict(inputs):
    with pytest.raises(TraceError, match=r'a dict passes them by name, such as {"x": ..., "cond"'):
        trace(_Conditioned(), inputs)
    assert trace(_Conditioned(), {"x": X, "cond": torch.ones(1)}).groups


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
    # MACs for one picture: 3*6*9*64 + 6*5*9*64 + 80*4 = 10368 + 17280 + 320; half of 6 and 2 of 5
    # channels gone.
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


class WithAuxiliaryHead(nn.Module):
    """In training mode a second head reads the trunk: its convolution (4 channels) is not seen in
    evaluation.
    """

    def __init__(self):
        super().__init__()
        self.trunk, self.extra = conv(3, 6), conv(6, 4)
        self.head, self.second = nn.Linear(6, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.trunk(x)
        out = self.head(x.mean((2, 3)))
        return (out, self.second(self.extra(x).mean((2, 3)))) if self.training else out


def test_what_only_training_uses_is_cut_along_and_keeps_its_own_channels():
    model = WithAuxiliaryHead().eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    graph, plan, small, _ = prove(model, X)
    assert sizes(graph) == {"trunk.0": 6}
    assert graph.frozen["extra.0"] == "evaluation does not use it"
    assert plan.removed == 3
    assert [out.shape for out in small.train()(X)] == [(2, 2), (2, 2)]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_part_that_training_mode_cannot_run_is_left_alone():
    class Untrainable(WithAuxiliaryHead):
        def forward(self, x):
            if self.training:
                raise ValueError("targets are needed")
            return super().forward(x)

    graph, *_ = prove(Untrainable().eval(), X)
    assert sizes(graph) == {"trunk.0": 6}
    assert "extra.0" not in sizes(graph)


def test_flags_are_set_without_running_train():
    class Merging(nn.Linear):
        def train(self, mode=True):
            if not mode:
                raise AssertionError("merges its adapter into the weights")
            return super().train(mode)

    model = nn.Sequential(nn.Linear(3, 4), Merging(4, 2)).train()
    assert sizes(trace(model, torch.zeros(1, 3))) == {"0": 4}
    assert all(m.training for m in model.modules())


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_numbers_in_scripted_functions_are_literals():
    def flat(x):
        return x.view(-1, 512)

    scripted = torch.jit.script(flat)
    model = OneForward(lambda s, x: s.head(scripted(s.a(x))), conv(3, 8), head=nn.Linear(512, 2))
    assert "the size 512 is written into the code" in trace(model.eval(), X)["a.0"].reason


def test_numbers_in_generated_code_do_not_blame_the_caller():
    class Literal(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).view(-1, 512))

    model = torch.fx.symbolic_trace(Literal(nn.Conv2d(3, 8, 1), nn.Linear(512, 2)))
    reason = trace(model, X).frozen["0"]
    assert "512 is written into the code" in reason
    assert "test_graph.py" not in reason


def test_a_buffer_that_is_made_anew_does_not_change_the_fingerprint():
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = conv(3, 8), nn.Linear(8, 2)
            self.register_buffer("places", torch.zeros(1), persistent=False)

        def forward(self, x):
            self.places = torch.arange(x.shape[-1])
            return self.head(self.a(x).mean((2, 3)) + self.places.sum())

    fresh, used = Lookup().eval(), Lookup().eval()
    assert (
        trace(used, X).fingerprint
        == trace(fresh, X[..., :4]).fingerprint
        == trace(Lookup(), X).fingerprint
    )


class Streaming(nn.Module):
    """Hands its state back, and holds a part that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rnn, self.b = (
            nn.Linear(3, 8),
            nn.GRU(8, 16, batch_first=True),
            nn.Linear(16, 2),
        )
        self.idle = nn.Linear(100, 100)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y, state = self.rnn(self.a(x).relu())
        return self.b(y), {"state": state}


def test_the_reason_says_which_output_holds_a_layer() -> None:
    graph = trace(Streaming(), torch.randn(1, 5, 3))
    assert graph["rnn"].reason == "it is an output of the network, output[1]['state']"
    assert graph["b"].reason == "it is an output of the network, output[0]"


def test_the_table_says_what_never_ran() -> None:
    graph = trace(Streaming(), torch.randn(1, 5, 3))
    line = "of the parameters were not used when the model ran, and stay: idle"
    assert any(line in told for told in str(graph).splitlines())
