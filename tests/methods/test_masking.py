"""Mask mode: silent entries stay zero whatever the optimizer does, and masked training is training
the cut network.
"""

import copy
import dataclasses
import functools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets import Chain, DenseBlock, Residual, cut_half
from netslim import NetworkSlimming, prune, prune_, score, trace
from netslim.errors import ArgumentError, PlanError
from netslim.graph.modules.walk import named_tensors
from netslim.methods.masking import Mask
from netslim.selection.merging import merge
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise


class Sigmoids(nn.Module):
    """A silenced channel still emits sigmoid(0) = 0.5, so zeroing its producer alone is not enough."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x)).sigmoid()).sigmoid().mean((2, 3)))


class Tied(nn.Module):
    """One linear layer, called twice: its weight is cut on both axes."""

    def __init__(self):
        super().__init__()
        self.stem, self.layer = nn.Linear(3, 6), nn.Linear(6, 6)
        self.again, self.head = self.layer, nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.again(self.layer(self.stem(x.mean((2, 3))).relu()).relu()).relu())


NETS = [Chain, Residual, DenseBlock, Sigmoids, Tied]


def network(kind=Chain):
    """A randomised network in float64, an input and a plan that cuts half of every group."""
    torch.manual_seed(0)
    return randomise(kind()).double(), torch.randn(4, 3, 8, 8, dtype=torch.float64), plan_of(kind)


@functools.cache
def plan_of(kind):
    return cut_half(kind().double(), torch.randn(1, 3, 8, 8, dtype=torch.float64))[1]


def entries(model, plan):
    """The values of the removed entries of every parameter, read off the plan."""
    tensors = dict(named_tensors(model))
    cuts = [cut for cut in plan.tensors if isinstance(tensors[cut.tensor], nn.Parameter)]
    return [
        tensors[cut.tensor].detach().index_select(cut.axis, torch.tensor(cut.removed))
        for cut in cuts
    ]


def silent(model, plan):
    return all(not values.any() for values in entries(model, plan))


def train(model, optimizer, x, steps=5):
    targets = torch.arange(len(x)) % 3
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), targets).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", NETS)
def test_apply_zeroes_what_the_plan_removes_and_nothing_else(kind):
    model, _, plan = network(kind)
    small, before = prune(model, plan), copy.deepcopy(model)
    assert not any((values == 0).any() for values in entries(model, plan))
    Mask(model, plan).apply()
    assert silent(model, plan)
    for (name, tensor), (_, kept) in zip(
        named_tensors(prune(model, plan)), named_tensors(small), strict=True
    ):
        assert torch.equal(tensor, kept), name
    for (name, tensor), (_, old) in zip(model.named_buffers(), before.named_buffers(), strict=True):
        assert torch.equal(tensor, old), name


def test_the_entries_by_hand():
    model, x, _ = network()
    graph = trace(model, x)
    plan = plan_keeping(graph, {graph.number("first.0"): [True, False, True, True, False, True]})
    before = copy.deepcopy(model)
    Mask(model, plan).apply()
    kept = torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64)
    assert torch.equal(model.first[0].weight, before.first[0].weight * kept[:, None, None, None])
    for layer, old in ((model.first[0], before.first[0]), (model.first[1], before.first[1])):
        assert torch.equal(layer.bias, old.bias * kept)
    assert torch.equal(model.first[1].weight, before.first[1].weight * kept)
    assert torch.equal(model.second[0].weight, before.second[0].weight * kept[:, None, None])
    assert torch.equal(model.second[0].bias, before.second[0].bias)
    assert torch.equal(model.head.weight, before.head.weight)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", NETS)
def test_converted_it_has_the_same_outputs(kind, training):
    model, x, plan = network(kind)
    mask = Mask(model.train(training), plan).apply()
    small = mask.convert()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NETS)
def test_masked_training_is_training_the_cut_network(kind):
    model, x, plan = network(kind)
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    small = prune(model, plan)
    optimizer = torch.optim.SGD(model.parameters(), **options)
    mask = Mask(model, plan).attach(optimizer)
    train(model, optimizer, x)
    train(small, torch.optim.SGD(small.parameters(), **options), x)
    converted = mask.convert()
    for (name, one), (_, other) in zip(named_tensors(converted), named_tensors(small), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10, msg=name)
    assert not torch.equal(converted.head.weight, prune(network(kind)[0], plan).head.weight)
    for mode in (True, False):
        torch.testing.assert_close(
            converted.train(mode)(x), model.train(mode)(x), rtol=1e-9, atol=1e-10
        )


def test_the_optimizer_goes_on_after_the_cut():
    model, x, plan = network()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.AdamW(one.parameters(), lr=0.01) for one in (model, twin)]
    Mask(model, plan).attach(optimizers[0])
    mask = Mask(twin, plan).attach(optimizers[1])
    for one, optimizer in zip((model, twin), optimizers, strict=True):
        train(one, optimizer, x)
    mask.detach()
    prune_(twin, plan, optimizer=optimizers[1])
    for one, optimizer in zip((model, twin), optimizers, strict=True):
        train(one, optimizer, x)
    torch.testing.assert_close(twin(x), model(x), rtol=1e-9, atol=1e-10)


OPTIMIZERS = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_zero_stays_zero_even_with_momentum_from_before(make):
    model, x, plan = network(Sigmoids)
    optimizer = make(list(model.parameters()))
    train(model, optimizer, x, steps=2)
    Mask(model, plan).attach(optimizer)
    assert silent(model, plan)
    for _ in range(4):
        train(model, optimizer, x, steps=1)
        assert silent(model, plan)


def test_the_optimizer_gathers_nothing_for_silent_entries():
    model, x, plan = network(Sigmoids)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    Mask(model, plan).attach(optimizer)
    train(model, optimizer, x, steps=2)
    tensors = dict(named_tensors(model))
    for cut in plan.tensors:
        if isinstance(tensor := tensors[cut.tensor], nn.Parameter):
            for value in (tensor.grad, optimizer.state[tensor]["momentum_buffer"]):
                assert not value.index_select(cut.axis, torch.tensor(cut.removed)).any()
                assert value.any()


def test_a_weight_in_a_buffer_reads_the_silent_units_no_more():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 6)
            self.register_buffer("weight", torch.randn(4, 6))

        def forward(self, x):
            return F.linear(self.layer(x).sigmoid(), self.weight)

    torch.manual_seed(0)
    model, x = Fixed(), torch.randn(2, 3)
    plan = cut_half(model, x)[1]
    mask = Mask(model, plan).apply()
    assert plan.removed == 3
    torch.testing.assert_close(mask.convert()(x), model(x))
    assert (model.weight == 0).all(0).sum() == 3


@pytest.mark.parametrize("kind", [Chain, Sigmoids])
def test_after_clipping(kind):
    model, x, plan = network(kind)
    small = prune(model, plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Mask(model, plan).attach(optimizer)
    norms = []
    for one in (model, small):
        F.cross_entropy(one(x), torch.arange(4) % 3).backward()
        norms.append(nn.utils.clip_grad_norm_(one.parameters(), 1e-3).item())
    optimizer.step()
    assert silent(model, plan)
    # With act(0) = 0 the masked gradients are zero before the hook, so clipping sees the cut
    # network's norm.
    assert math.isclose(*norms, rel_tol=1e-9) == (kind is Chain)


def test_a_closure():
    model, x, plan = network(Sigmoids)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    Mask(model, plan).attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    before = closure().item()
    for _ in range(2):
        optimizer.step(closure)
        assert silent(model, plan)
    assert closure().item() < before


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler(fused):
    model, x, plan = network(Sigmoids)
    model, x = model.float(), x.float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    Mask(model, plan).attach(optimizer)
    for slope in (1.0, math.inf, 1.0):
        head = model.head.weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(slope * model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert silent(model, plan)
        assert torch.equal(model.head.weight, head) == (slope == math.inf)


def test_with_network_slimming():
    model, x, plan = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    slimming = NetworkSlimming(model, 0.1).attach(optimizer)
    Mask(model, plan).attach(optimizer)
    train(model, optimizer, x)
    assert silent(model, plan)
    removed = sum(cut.size - len(cut.kept) for cut in plan.groups.values())
    assert slimming.share_zero() == pytest.approx(removed / 11)


def test_the_scores_see_what_is_masked():
    model, x, plan = network()
    Mask(model, plan).apply()
    graph = trace(model, x)
    for criterion in ("bn_scale", "l1"):
        scores = score(graph, model, criterion)
        for name, cut in plan.groups.items():
            assert torch.nonzero(scores[name] == 0).flatten().tolist() == list(cut.removed)


def test_detached_the_units_come_back():
    model, x, plan = network(Sigmoids)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = Mask(model, plan).attach(optimizer)
    assert (
        repr(mask)
        == f"Mask(removed={plan.removed}, tensors={len(entries(model, plan))}, optimizers=1)"
    )
    mask.detach(optimizer)
    train(model, optimizer, x, steps=3)
    assert not silent(model, plan)
    mask.attach(optimizer)
    assert silent(model, plan)


def test_copies_of_the_model_are_free_of_it():
    model, x, plan = network(Sigmoids)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Mask(model, plan).attach(optimizer)
    twin = copy.deepcopy(model)
    assert silent(twin, plan)
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), x, steps=3)
    assert not silent(twin, plan)
    assert silent(model, plan)


def test_follows_replaced_parameters():
    model, x, plan = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Mask(model, plan).attach(optimizer)
    model.second[0].weight = nn.Parameter(torch.randn_like(model.second[0].weight))
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer, x, steps=1)
    assert silent(model, plan)


def test_a_wrapped_model():
    model, x, plan = network()
    wrapped = nn.DataParallel(model)
    mask = Mask(wrapped, plan).attach(torch.optim.SGD(wrapped.parameters(), lr=0.1))
    assert silent(model, plan)
    torch.testing.assert_close(mask.convert().eval()(x), model.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_weight_norm_stays_finite(norm):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(
            norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 4)
        )
    plan = cut_half(model, x)[1]
    assert "0" in plan.groups
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    mask = Mask(model, plan).attach(optimizer)
    train(model, optimizer, x, steps=2)
    torch.testing.assert_close(mask.convert()(x), model(x))
    assert not model[0](x)[:, list(plan.groups["0"].removed)].any()


def test_the_cut_is_noticed():
    model, x, plan = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mask = Mask(model, plan).attach(optimizer)
    prune_(model, plan, optimizer=optimizer)
    with pytest.raises(
        PlanError, match=r"is not as it was when the model was masked: .detach\(\) a mask before"
    ):
        train(model, optimizer, x)
    with pytest.raises(PlanError, match=r"the plan was made for the architecture"):
        mask.convert()
    mask.detach()
    train(model, optimizer, x)


def test_refuses_plans_that_do_not_fit():
    model, x, plan = network()
    with pytest.raises(PlanError, match=r"the plan was made for the architecture"):
        Mask(Residual(), plan)
    graph = trace(model, x)
    with pytest.raises(
        PlanError, match=r"merges units of 'first.0', and a mask can only silence them"
    ):
        Mask(model, merge(graph, {"first.0": [0, 0, 1, 2, 3, 3]}))
    with pytest.raises(PlanError, match=r"the plan removes nothing"):
        Mask(model, dataclasses.replace(plan, groups={}, tensors=(), patches=(), counts=None))
    with pytest.raises(ArgumentError, match=r"needs a torch.nn.Module, got str"):
        Mask("model", plan)


def test_refuses_optimizers_that_do_not_fit():
    model, _, plan = network()
    mask = Mask(model, plan)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ArgumentError, match=r"SGD holds none of the masked parameters of this Chain"
    ):
        mask.attach(torch.optim.SGD([model.head.bias], lr=0.1))
    with pytest.raises(ArgumentError, match=r"attaches to a torch.optim.Optimizer, not to a Chain"):
        mask.attach(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match=r"Mask is not attached to this SGD"):
        mask.detach(optimizer)
    mask.attach(optimizer)
    with pytest.raises(ArgumentError, match=r"attached to this SGD already; once is enough"):
        mask.attach(optimizer)
