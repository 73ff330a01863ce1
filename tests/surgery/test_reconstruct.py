"""Channels that stay stand in for those that go: exactly where they can, and never worse than a
constant.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netslim
from nets import Chain, DenseBlock, Functional, Residual, Twice, cut_half
from netslim import Budget, Limits, load, prune, save, slim, trace, verify
from netslim.errors import ArgumentError, PlanError
from netslim.graph.modules.walk import fingerprint
from netslim.selection import Compensation, Scoring
from netslim.surgery.compensation.least_squares import Layout
from netslim.surgery.history import history
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise
from netslim.surgery.rows import TensorCut
from netslim.training.recipe.schema import Prune
from netslim.training.stages.prune import carry_out

WAYS = ("linear", "sequential")
compensate = partial(netslim.surgery.compensate, way="linear")
X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TINY = 1e-13  # a ridge that leaves what is exact exact


class Grouped(nn.Module):
    """Depthwise, grouped, transposed and dilated convolutions over time, and a linear layer with BN
    behind it.
    """

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8)
        self.deep = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.b = nn.Conv1d(8, 6, 3, groups=2, dilation=2, bias=False)
        self.c, self.up = (
            nn.BatchNorm1d(6),
            nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1, output_padding=1),
        )
        self.hidden, self.bn, self.head = (
            nn.Linear(4, 6, bias=False),
            nn.BatchNorm1d(6),
            nn.Linear(6, 2),
        )

    def forward(self, x):
        x = self.deep(self.norm(self.a(x.flatten(2))).relu()).relu()
        x = self.up(self.c(self.b(x)).relu()).tanh()
        return self.head(self.bn(self.hidden(x.mean(2))).relu())


class PreActivation(nn.Module):
    """A pre-activation block whose last convolution has no bias and no BN behind it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1, bias=False)
        self.bn1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(5), nn.Conv2d(5, 6, 1, bias=False)
        self.bn3, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        return self.head(self.bn3(x).relu().mean((2, 3)))


NETWORKS = [Chain, Residual, DenseBlock, PreActivation, Grouped]


def random(network, seed=0):
    torch.manual_seed(seed)
    return randomise(network(), seed).double().eval()


def error(small, model, x=X):
    with torch.no_grad():
        return float((small(x) - model(x)).square().mean())


def small_of(folding):
    return prune(folding.model, folding.plan)


def only(model, name, kept, inputs=X):
    """A plan that cuts one group alone."""
    graph = trace(model, inputs)
    return plan_keeping(graph, {graph.number(name): np.isin(np.arange(graph[name].size), kept)})


def line():
    """What the second layer reads is the input itself: k and r."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
        model[1].weight.copy_(torch.tensor([[1.0, 4.0]]))
        model[1].bias.fill_(1)
    return model


@pytest.mark.parametrize(
    ("points", "ridge", "slope", "intercept", "explained"),
    [
        ([(0, 1), (1, 3), (2, 5)], TINY, 2, 1, 1),  # r = 2 k + 1
        ([(-1, 0), (0, 3), (1, 0)], TINY, 0, 1, 0),
        ([(0, 0), (1, 2), (2, 1)], TINY, 0.5, 0.5, 0.25),  # variances 2/3 each, covariance 1/3
        ([(0, 0), (1, 2), (2, 1)], 1.0, 0.25, 0.75, 0.1875),  # the variance of k doubled
        ([(1, 0), (1, 2)], TINY, 0, 1, 0),  # k says nothing
        ([(0, 2), (1, 2)], TINY, 0, 2, 1),  # r is constant
    ],
)
def test_a_line_by_hand(points, ridge, slope, intercept, explained):
    model = line()
    x = torch.tensor(points, dtype=torch.float64)
    folding = compensate(model, only(model, "0", [0], x), [x[:1], x[1:]], ridge=ridge)
    small = small_of(folding)
    assert small[1].weight.item() == pytest.approx(1 + 4 * slope)
    assert small[1].bias.item() == pytest.approx(1 + 4 * intercept)
    assert folding.moved[0].explained == pytest.approx(explained, abs=1e-9)
    assert (folding.moved[0].target, folding.moved[0].channels) == ("1.bias", 1)
    assert f"({folding.moved[0].explained:.1%} explained), 1.bias" in str(folding)


def mixed(layer, norm, mix):
    """Make the last channels of a layer, through its norm and a ReLU, ``mix`` times the first ones."""
    n, k = mix.shape
    with torch.no_grad():
        norm.weight.fill_(1)
        norm.bias.fill_(0.3)
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(1 - norm.eps)
        flat = layer.weight.flatten(1)
        flat[k : k + n] = mix @ flat[:k]
        layer.bias[k : k + n] = mix @ layer.bias[:k]


@pytest.mark.parametrize("way", WAYS)
def test_channels_that_are_multiples_of_others_cost_nothing(way):
    model = random(Chain)
    once = torch.zeros(3, 3, dtype=torch.float64)
    once[[0, 1, 2], [0, 0, 2]] = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    mixed(model.first[0], model.first[1], once)
    mixed(model.second[0], model.second[1], once[:2, :])
    graph = trace(model, X)
    keep = {graph.number("first.0"): np.arange(6) < 3, graph.number("second.0"): np.arange(5) < 3}
    plan = plan_keeping(graph, keep)
    folding = compensate(model, plan, [X[:20], X[20:]], ridge=TINY, way=way)
    fresh = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert error(small_of(folding), model, fresh) < 1e-16
    assert error(prune(model, plan), model, fresh) > 1e-3
    assert all(row.explained == pytest.approx(1) for row in folding.moved)


class Straight(nn.Module):
    """No ReLU, so that any combination and constant is exact, also through grouped and transposed
    convolutions.
    """

    def __init__(self, reads):
        super().__init__()
        self.a, self.reads, self.head = nn.Conv2d(3, 8, 1), reads, nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.reads(self.a(x)).relu())


@pytest.mark.parametrize(
    ("reads", "kept"),
    [
        (nn.Conv2d(8, 4, 3), [0, 1, 2]),
        (nn.Conv2d(8, 4, 2, stride=2, dilation=2, bias=False), [0, 2, 5]),
        (nn.Conv2d(8, 4, 3, groups=2), [0, 1, 2, 4, 5, 6]),
        (nn.ConvTranspose2d(8, 4, 1, groups=2), [0, 1, 2, 4, 5, 6]),
        (nn.ConvTranspose2d(8, 4, 1), [3, 4, 7]),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_combinations_and_constants_are_exact(reads, kept, way):
    """Three inputs make eight channels: three of them give the others, in each group of the
    convolution.
    """
    model = random(lambda: Straight(reads))
    plan = only(model, "a", kept)
    folding = compensate(model, plan, [X], ridge=TINY, way=way)
    assert folding.moved[0].target is not None
    assert error(small_of(folding), model) < 1e-14
    assert error(prune(model, plan), model) > 1e-4


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("way", WAYS)
def test_every_network_comes_nearer(network, way, tmp_path):
    """Layer after layer also than with constants. At once that need not be so: what a layer reads
    is fitted by channels that are not yet what the layers before it will make of them.
    """
    model = random(network)
    plan = cut_half(model, X)[1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folding = compensate(model, plan, iter([X[:16], X[16:]]), way=way)
    small = small_of(folding)
    assert verify(folding.model, small, folding.plan, X).deviation < 1e-10
    assert error(folding.model, model) == pytest.approx(error(small, model))
    other = prune(model, plan)
    if way == "sequential":
        other = small_of(compensate(model, plan, [X], way="constant"))
    assert error(small, model) < error(other, model) / 1.5
    assert [row.consumer for row in folding.moved] == [
        row.consumer for row in compensate(model, plan, [X], way="constant").moved
    ]
    assert all(0 < row.explained <= 1 and not row.reason and row.target for row in folding.moved)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert history(small).fingerprint == fingerprint(model)
    fresh = load(network().double(), save(small, tmp_path / "small.safetensors")).eval()
    assert torch.equal(fresh(X), small(X))


@pytest.mark.parametrize("network", [Chain, Residual, DenseBlock])
def test_in_order_the_errors_do_not_add_up(network):
    model = random(network)
    plan = cut_half(model, X)[1]
    at_once, in_order = (compensate(model, plan, [X], way=way) for way in WAYS)
    assert error(small_of(in_order), model) < error(small_of(at_once), model) * 0.95


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0, 100.0])
def test_the_error_where_it_is_read_is_never_larger_than_with_constants(seed, ridge):
    def network():
        return nn.Sequential(
            nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 4, 1, bias=False)
        )

    model = random(network, seed)
    plan = only(model, "0", [0, 3, 5])
    plain = prune(model, plan)
    constant, linear = (
        small_of(compensate(model, plan, [X], way="constant")),
        small_of(compensate(model, plan, [X], ridge=ridge)),
    )
    assert error(linear, model) < error(constant, model)
    assert error(linear, model) < error(plain, model)


def test_least_squares_and_a_mean_of_zero_behind_padding():
    """Against lstsq; the constant leaves no mean deviation although padding takes a part of it at
    the border.
    """
    model = random(
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1, stride=2)
        )
    )
    small = small_of(compensate(model, only(model, "0", [1, 4]), [X[:7], X[7:]], ridge=TINY))
    x = model[1](model[0](X)).detach().movedim(1, -1).flatten(0, 2)
    stays = torch.cat([x[:, [1, 4]], torch.ones(len(x), 1)], 1)
    fit = torch.linalg.lstsq(stays, x[:, [0, 2, 3]]).solution[:2]
    wanted = model[2].weight[:, [1, 4]] + torch.einsum(
        "orhw,kr->okhw", model[2].weight[:, [0, 2, 3]], fit
    )
    assert torch.allclose(small[2].weight, wanted, atol=1e-9)
    assert (small(X) - model(X)).mean((0, 2, 3)).abs().max() < 1e-12


def test_few_examples_share_the_fit_over_the_places_of_a_map():
    model = random(Chain)
    twin = torch.tensor([[1.0, 0, 0], [0, 2, 0]], dtype=torch.float64)
    mixed(model.second[0], model.second[1], twin)
    plan = only(model, "second.0", [0, 1, 2])
    fresh = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert error(small_of(compensate(model, plan, [X[:4]], ridge=TINY)), model, fresh) < 1e-16


class Upside(nn.Module):
    """The third channel is the second one upside down: entries of the map can tell, channels
    cannot.
    """

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 3, 1), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.a(x).flatten(1))


def upside(count):
    """Inputs whose third channel is the second one upside down."""
    x = torch.randn(
        count, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(count)
    )
    x[:, 2] = x[:, 1].flip(1)
    return x


def test_many_examples_fit_each_entry_of_a_map_and_more_entries_than_can_be_take_constants(
    monkeypatch, caplog
):
    model = random(Upside)
    with torch.no_grad():
        model.a.weight.copy_(torch.eye(3)[:, :, None, None])
        model.a.bias.zero_()
    plan = only(model, "a", [0, 1], upside(2))
    assert (
        error(small_of(compensate(model, plan, [upside(50)], ridge=TINY)), model, upside(9)) < 1e-16
    )
    assert (
        error(small_of(compensate(model, plan, [upside(5)], ridge=TINY)), model, upside(9)) > 1e-2
    )
    monkeypatch.setattr(sys.modules["netslim.surgery.compensation.linear"], "LARGEST", 11)
    shared = compensate(model, plan, [upside(50)], ridge=TINY)
    assert shared.moved[0].explained < 0.1
    monkeypatch.setattr(
        sys.modules["netslim.surgery.compensation.linear"], "_table", lambda graph, cut: None
    )
    folding = compensate(model, plan, [upside(50)], way="sequential")
    assert "only the mean of what goes is moved: more than 11 entries" in caplog.text
    x = upside(50)
    assert (small_of(folding)(x) - model(x)).mean(0).abs().max() < 1e-12
    assert (folding.moved[0].target, folding.moved[0].explained) == ("head.bias", None)


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Twice, "more than once"), (Functional, "layer has no bias, cannot be given one")],
)
@pytest.mark.parametrize("way", WAYS)
def test_where_no_constant_can_go_the_fit_is_through_the_origin(network, reason, way, caplog):
    model = random(network)
    twin = torch.tensor([[1.0, 0], [0, 2]], dtype=torch.float64)
    mixed(model.a, model.norm, twin)
    plan = only(model, "a", [0, 1])
    folding = compensate(model, plan, [X], ridge=TINY, way=way)
    row = folding.moved[0]
    assert row.target is None
    assert reason in row.reason
    assert row.explained == pytest.approx(1)
    assert "the constant part" in caplog.text
    assert error(small_of(folding), model) < 1e-16
    random_one = random(network)
    fit = compensate(random_one, plan, [X], ridge=1e-9)
    assert error(small_of(fit), random_one) < error(prune(random_one, plan), random_one)


class Product(Functional):
    def forward(self, x):
        return self.norm(self.a(x)).relu().mean((2, 3)) @ self.weight[:, :, 0, 0].t()


class Beside(Functional):
    """The layer's weights are read by another operator, too."""

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        return F.conv2d(x, self.weight) + F.conv2d(x, 2 * self.weight)


@pytest.mark.parametrize(
    ("network", "reason"), [(Product, "was seen to run"), (Beside, "other operators")]
)
def test_what_cannot_be_moved_is_told(network, reason, caplog):
    model = random(network)
    plan = cut_half(model, X)[1]
    folding = compensate(model, plan, [X])
    assert (folding.moved[0].target, folding.moved[0].explained) == (None, None)
    assert reason in folding.moved[0].reason
    assert reason in caplog.text
    assert torch.equal(small_of(folding)(X), prune(model, plan)(X))


def test_errors():
    model = random(Chain)
    plan = cut_half(model, X)[1]
    with pytest.raises(ArgumentError, match="ridge must be above 0, got 0"):
        compensate(model, plan, [X], ridge=0)
    with pytest.raises(ArgumentError, match="gives no batch"):
        compensate(model, plan, [])
    with pytest.raises(ArgumentError, match="a data loader or a list"):
        compensate(model, plan, X)
    with pytest.raises(ArgumentError, match="does not run on batch 1"):
        compensate(model, plan, [X[:, :2]])
    with pytest.raises(ArgumentError, match="not finite"):
        compensate(model, plan, [X / 0])
    with pytest.raises(PlanError, match="was made for the architecture"):
        compensate(random(Residual), plan, [X])
    with pytest.raises(PlanError, match="nothing to fold"):
        compensate(model, plan_keeping(trace(model, X), {}), [X])


def test_slim_and_recipes_take_it():
    model = random(Residual)
    budget, batches = Budget(cut_channels=0.4), [(X, torch.zeros(len(X)))] * 2
    plain, constant, linear, sequential = (
        slim(
            model,
            X,
            criterion="l2",
            budget=budget,
            batches=batches if way else None,
            limits=Limits(max_cut=0.5),
            compensation=Compensation(way),
        )
        for way in (None, "constant", "linear", "sequential")
    )
    assert error(sequential, model) < error(constant, model) < error(plain, model)
    assert error(linear, model) < error(plain, model)
    with pytest.raises(
        ArgumentError,
        match="fold must be 'constant' or 'linear' or 'sequential' or 'nearest', got 'affine'",
    ):
        slim(model, X, budget=budget, compensation=Compensation("affine"))
    with pytest.raises(
        ArgumentError, match=r"'fold' of compensation=netslim\.selection\.Compensation"
    ):
        slim(model, X, budget=budget, fold="linear")
    stage = Prune(
        name="prune",
        budget=Budget(cut_channels=0.4),
        scoring=Scoring("l2"),
        limits=Limits(max_cut=0.5),
        compensation=Compensation("linear"),
    )
    done = carry_out(stage, model, X, lambda count: batches)
    assert error(done.network, model) == pytest.approx(error(linear, model))
    assert (
        "the channels that stay stand in for what removed channels emitted, in inner.0.weight"
        in done.notes[0]
    )
    assert done.check.deviation < 1e-10


def test_of_many_places_as_many_as_say_enough_are_looked_at():
    cut, weight = TensorCut("w", 1, 2, (0,), "consumer"), torch.zeros(6, 2, 1, 1)
    layout = Layout(cut, np.array([1]), weight)
    layout.groups = 3
    x = torch.randn(4, 6, 70, 90)
    rows = layout.rows(F.conv2d, x)
    every = x.unflatten(1, (3, 2)).permute(1, 0, 3, 4, 2).flatten(1, 3)
    assert torch.equal(rows, every[:, ::3].double())
