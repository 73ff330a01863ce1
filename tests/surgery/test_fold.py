"""What removed channels emit is moved, exactly where it is a constant and nearly where padding
breaks it.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from nets import Chain, Functional, Twice, cut_half
from netslim import Budget, Limits, PruningPlan, load, prune, prune_, save, slim, trace, verify
from netslim.errors import ArgumentError, PlanError, SurgeryError
from netslim.graph.modules.walk import fingerprint
from netslim.methods.cutting import by_scores, cut
from netslim.selection import Compensation, Scoring
from netslim.selection.defaults import Choice
from netslim.selection.merging import merge
from netslim.surgery import compensate
from netslim.surgery.history import history
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise
from netslim.surgery.rows import SizePatch

fold = partial(compensate, way="constant")
GIVEN = Choice(Scoring("l2"), "global", Compensation())
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def unpadded(cin, cout, size, bias=False):
    return nn.Sequential(nn.Conv2d(cin, cout, size, bias=bias), nn.BatchNorm2d(cout), nn.ReLU())


class Plain(nn.Module):
    """Convolutions without padding, with and without BN and bias, and a linear layer after a
    flatten.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = unpadded(3, 6, 1), unpadded(6, 6, 3), unpadded(6, 5, 3, bias=True)
        self.head = nn.Linear(5 * 16, 3)

    def forward(self, x):
        return self.head(torch.flatten(self.c(self.b(self.a(x))), 1))


class PreResidual(nn.Module):
    """A pre-activation block: no BN behind its last convolution, so that needs a bias; the trunk is
    cut, too.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1, bias=False)
        self.bn1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(5), nn.Conv2d(5, 6, 1, bias=False)
        self.bn3, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        return self.head(self.bn3(x).relu().mean((2, 3)))


class Dense(nn.Module):
    """Each layer's BN reads all that came before; what a layer makes is read by several
    convolutions.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1, bias=False)
        self.bn1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 1, bias=False)
        self.bn3, self.head = nn.BatchNorm2d(14), nn.Linear(14, 3)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, self.conv1(self.bn1(x).relu())], 1)
        x = torch.cat([x, self.conv2(self.bn2(x).relu())], 1)
        return self.head(self.bn3(x).relu().mean((2, 3)))


class OneDimension(nn.Module):
    """Convolutions over time, grouped and transposed, and linear layers with BN."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8)
        self.b = nn.Conv1d(8, 6, 3, groups=2, bias=False)
        self.c, self.up = nn.BatchNorm1d(6), nn.ConvTranspose1d(6, 4, 1)
        self.hidden, self.bn, self.head = (
            nn.Linear(4, 6, bias=False),
            nn.BatchNorm1d(6),
            nn.Linear(6, 2),
        )

    def forward(self, x):
        x = self.up(self.c(self.b(self.norm(self.a(x.flatten(2))).relu())).relu()).relu()
        return self.head(self.bn(self.hidden(x.mean(2))).relu())


NETWORKS = [Plain, PreResidual, Dense, OneDimension]


def constant(network, seed=0, gamma=0.0):
    """A randomised network whose removed channels emit constants above 0, and the plan; in float64."""
    torch.manual_seed(seed)
    model = randomise(network()).double().eval()
    plan = cut_half(model, X, seed)[1]
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for t in plan.tensors:
            if t.role == "scale":
                parameters[t.tensor][list(t.removed)] = gamma
                parameters[t.tensor.replace("weight", "bias")].abs_()
    return model, plan


@pytest.mark.parametrize("network", NETWORKS)
def test_constants_are_moved_exactly(network, tmp_path):
    model, plan = constant(network)
    if network is OneDimension:  # what has no scale is no constant, and only its mean can be moved
        plan = without(plan, model, "up")
    before = copy.deepcopy(model.state_dict())
    folding = fold(model, plan, [X[:3], X[3:]])
    small = prune(folding.model, folding.plan)
    assert (small(X) - model(X)).abs().max() < 1e-10
    assert (prune(model, plan)(X) - model(X)).abs().max() > 1e-2
    assert (folding.model(X) - model(X)).abs().max() < 1e-10
    assert all(row.target is not None and row.spread < 1e-10 for row in folding.moved)
    assert verify(folding.model, small, folding.plan, X).deviation < 1e-10
    assert history(small).fingerprint == fingerprint(model)
    fresh = load(network().double(), save(small, tmp_path / "small.safetensors")).eval()
    assert torch.equal(fresh(X), small(X))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def without(plan, model, name):
    graph = trace(model, X)
    cuts = {graph.number(other): cut for other, cut in plan.groups.items() if other != name}
    return plan_keeping(
        graph, {number: np.isin(np.arange(cut.size), cut.kept) for number, cut in cuts.items()}
    )


def test_filters_at_zero_emit_a_constant_whatever_their_gamma():
    """beta - gamma * mean / std, and the activation of it: the smaller network is the same."""
    model, plan = constant(Plain, gamma=0.7)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for t in plan.tensors:
            if "producer" in t.role:
                parameters[t.tensor].index_fill_(t.axis, torch.tensor(t.removed), 0)
    folding = fold(model, plan, [X])
    small = prune(folding.model, folding.plan)
    assert (prune(model, plan)(X) - model(X)).abs().max() > 1e-2
    assert (small(X) - model(X)).abs().max() < 1e-10
    assert all(row.spread < 1e-10 for row in folding.moved)


@pytest.mark.parametrize("gamma", [1e-3, 0.3])
def test_what_a_channel_still_varies_is_told_by_the_spread(gamma):
    """Of what goes the mean is moved, and how far it is from that is said."""
    model, plan = constant(Plain, gamma=gamma)
    plan = without(without(plan, model, "a.0"), model, "b.0")  # what feeds the head alone
    folding = fold(model, plan, [X])
    gap = prune(folding.model, folding.plan)(X) - model(X)
    assert gap.mean(0).abs().max() < 1e-10
    assert 0.1 * gamma < folding.moved[0].spread < 100 * gamma


def test_where_it_goes_bias_running_mean_or_a_bias_that_is_added():
    model, plan = constant(Plain)
    targets = [row.target for row in fold(model, plan, [X]).moved]
    assert targets == ["b.1.running_mean", "c.0.bias", "head.bias"]
    model, plan = constant(PreResidual)
    folding = fold(model, plan, [X])
    assert {row.consumer: row.target for row in folding.moved} == {
        "conv1.weight": "bn2.running_mean",
        "conv2.weight": "conv2.bias",
        "head.weight": "head.bias",
    }
    assert model.conv2.bias is None
    assert folding.plan.fingerprint == fingerprint(folding.model) != fingerprint(model)
    small = prune(folding.model, folding.plan)
    assert set(history(small).biases) == {"conv2", "head"}
    assert small.conv2.bias.shape == (3,)
    assert "conv2: is given a bias" in history(small).explain()
    assert "conv2.weight: 2 entries -> conv2.bias (spread" in str(folding)


def test_by_hand():
    model = (
        nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
        .double()
        .eval()
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, 0.0]))
        model[1].bias.copy_(torch.tensor([0.0, 0.5]))
        model[3].weight.copy_(torch.tensor([1.0, 4.0]).view(1, 2, 1, 1))
        model[3].bias.fill_(1)
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    folding = fold(model, plan_keeping(trace(model, x), {0: [True, False]}), [x])
    small = prune(folding.model, folding.plan)
    assert small[3].bias.item() == 3  # 1 + 4 * relu(0.5)


def test_several_cuts_one_after_the_other_load_from_the_first_architecture(tmp_path):
    model, plan = constant(PreResidual)
    once = prune(model, plan)
    folding = fold(once, cut_half(once, X, 1)[1], [X])
    twice = prune(folding.model, folding.plan)
    assert set(history(twice).biases) == {"conv2", "head"}
    assert twice.conv2.bias.shape == twice.conv2.weight.shape[:1] == (2,)
    third = prune(twice, merge(trace(twice, X), {"stem": [0, 0]}))
    fresh = load(PreResidual().double(), save(third, tmp_path / "third.safetensors")).eval()
    assert torch.equal(fresh(X), third(X))


def test_padding_spreads_and_the_fold_is_still_nearer():
    model, plan = constant(Chain)
    folding = fold(model, plan, [X])
    spreads = {row.consumer: row.spread for row in folding.moved}
    assert spreads["second.0.weight"] > 0.1
    assert spreads["head.weight"] < 1e-10
    error = (prune(folding.model, folding.plan)(X) - model(X)).abs().mean()
    assert error < (prune(model, plan)(X) - model(X)).abs().mean() / 2


def test_channels_without_a_scale_leave_their_mean():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    plan = cut_half(model, torch.zeros(1, 3, dtype=torch.float64))[1]
    x = torch.randn(50, 3, dtype=torch.float64)
    folding = fold(model, plan, [(part, "targets") for part in x.split(20)])
    small = prune(folding.model, folding.plan)
    assert torch.allclose(small(x).mean(0), model(x).mean(0))
    assert folding.moved[0].spread > 0.1


def test_merged_channels_are_left_alone():
    model = randomise(Dense()).double().eval()
    graph = trace(model, X)
    one, two = graph.number("conv1"), graph.number("conv2")
    masks = {one: np.arange(4) < 2, two: np.arange(4) < 2}
    plan = plan_keeping(graph, masks, into={one: np.array([0, 1, 1, 0])})
    only = plan_keeping(graph, {two: masks[two]})
    a = {row.consumer: row for row in fold(model, plan, iter([X])).moved}
    b = {row.consumer: row for row in fold(model, only, [X]).moved}
    assert a == b
    with pytest.raises(PlanError, match="nothing to fold"):
        fold(model, merge(graph, {"conv1": [0, 0, 1, 1]}), [X])


class Product(Functional):
    def forward(self, x):
        return self.norm(self.a(x)).relu().mean((2, 3)) @ self.weight[:, :, 0, 0].t()


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Twice, "more than once"), (Functional, "cannot be given one"), (Product, "was seen to run")],
)
def test_what_cannot_be_moved_is_told(network, reason, caplog):
    model = randomise(network()).double().eval()
    plan = cut_half(model, X)[1]
    folding = fold(model, plan, [X])
    assert [row.target for row in folding.moved] == [None]
    assert reason in folding.moved[0].reason
    assert reason in caplog.text
    assert torch.equal(prune(folding.model, folding.plan)(X), prune(model, plan)(X))


class ReadTwice(nn.Module):
    """The convolution's output goes to its BN and past it, so the running mean alone cannot take
    the constant.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = (
            unpadded(3, 6, 1),
            nn.Conv2d(6, 4, 1, bias=False),
            nn.BatchNorm2d(4),
        )

    def forward(self, x):
        x = self.b(self.a(x))
        return self.norm(x) + x


class ReturnedToo(ReadTwice):
    def forward(self, x):
        x = self.b(self.a(x))
        return self.norm(x), x


@pytest.mark.parametrize("network", [ReadTwice, ReturnedToo])
def test_a_running_mean_takes_it_only_when_nothing_else_reads_the_output(network):
    model, plan = constant(network)
    folding = fold(model, plan, [X])
    assert [row.target for row in folding.moved] == ["b.bias"]
    wanted, found = model(X), prune(folding.model, folding.plan)(X)
    for a, b in zip(wanted, found, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_modes_and_the_original_stay():
    model, plan = constant(PreResidual)
    model.train()
    model.bn2.eval()
    folding = fold(model, plan, [X])
    small = prune(folding.model, folding.plan)
    assert small.training
    assert not small.bn2.training
    assert small.bn3.training
    assert model.bn3.num_batches_tracked == folding.model.bn3.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "gives no batch"),
        (X, "a data loader or a list"),
        ([X[:, :2]], "does not run on batch 1"),
        ([X / 0], "not finite"),
    ],
)
def test_bad_batches(batches, message):
    model, plan = constant(PreResidual)
    with pytest.raises(ArgumentError, match=message):
        fold(model, plan, batches)


def test_slim_folds():
    model, _ = constant(PreResidual)
    plain = slim(
        model, X, criterion="bn_scale", budget=Budget(cut_channels=0.4), limits=Limits(max_cut=0.5)
    )
    folded = slim(
        model,
        X,
        criterion="bn_scale",
        budget=Budget(cut_channels=0.4),
        limits=Limits(max_cut=0.5),
        compensation=Compensation("constant"),
    )
    assert (folded(X) - model(X)).abs().max() < 1e-10 < (plain(X) - model(X)).abs().max()
    graph = trace(model, X)
    scores = {g.name: torch.arange(g.size) for g in graph.prunable}
    choose = by_scores(graph, scores, Budget(cut_channels=0.3), choice=GIVEN)
    done = cut(model, graph, choose, X, compensation=Compensation("constant"), batches=[X, X])
    assert done.check.deviation < 1e-10
    assert done.network.conv2.bias is not None
    assert done.plan.fingerprint != fingerprint(model)
    with pytest.raises(ArgumentError, match="fold must be"):
        Compensation("mean")
    with pytest.raises(
        ArgumentError, match="way must be 'constant' or 'linear' or 'sequential', got 'mean'"
    ):
        compensate(model, done.plan, [X], "mean")
    with pytest.raises(ArgumentError, match="nothing here reads the batches"):
        slim(model, X, criterion="bn_scale", budget=Budget(cut_channels=0.4), batches=[X])


def test_biases_are_added_in_place_and_not_at_all_on_an_error():
    model, plan = constant(PreResidual)
    folding = fold(model, plan, [X])
    whole = history(prune(folding.model, folding.plan))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    broken = replace(whole, patches=(SizePatch("conv1", "nothing", 1, 2),))
    with pytest.raises(SurgeryError, match="is not there"):
        prune_(model, broken, optimizer)
    assert model.conv2.bias is None
    twin = copy.deepcopy(model)
    prune_(model, whole, optimizer, companions=twin)
    assert model.conv2.bias.eq(0).all()
    assert twin.conv2.bias is not model.conv2.bias
    assert torch.equal(model(X), prune(constant(PreResidual)[0], plan)(X))
    with pytest.raises(SurgeryError, match="gives 'nowhere' a bias"):
        prune(model, PruningPlan(fingerprint(model), {}, (), biases=("nowhere",)))
