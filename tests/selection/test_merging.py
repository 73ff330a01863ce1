"""Merging sums what reads a channel into what reads its survivor: nothing changes where the two are
the same.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nets import Chain, DenseBlock, Residual, as_if_traced, conv
from netslim import Budget, PruningPlan, load, prune, prune_, save, score, trace, verify
from netslim.errors import ArgumentError, PlanError, VerificationError
from netslim.models.zoo._densenet import densenet
from netslim.selection.merging import merge
from netslim.selection.select import select
from netslim.surgery.history import history
from netslim.surgery.plan import compose
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise, silenced
from netslim.surgery.rows import DROPPED, GroupCut, TensorCut

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Depthwise(nn.Module):
    """The channels of a pointwise convolution pass a depthwise one."""

    def __init__(self):
        super().__init__()
        self.point, self.depth, self.last = conv(3, 6), conv(6, 6, groups=6), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.last(self.depth(self.point(x)))


class Branches(nn.Module):
    """Two branches read the same channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = conv(3, 6), nn.Conv2d(6, 4, 3), nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.left(x), self.right(x.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution reads the same place of each of its groups."""

    def __init__(self):
        super().__init__()
        self.stem, self.grouped = conv(3, 8), nn.Conv2d(8, 6, 3, groups=2)

    def forward(self, x):
        return self.grouped(self.stem(x))


def dense_net():
    return densenet(depth=7, growth=4, stem=8)


NETWORKS = [Chain, Residual, DenseBlock, Depthwise, Branches, Grouped, dense_net]


def halves(graph, seed=0):
    """Random clusters, half as many as there are units, in every group that can be cut exactly."""
    rng = np.random.default_rng(seed)
    clusters = {}
    for group in graph.prunable:
        count = (group.size + 1) // 2
        numbers = np.concatenate([np.arange(count), rng.integers(0, count, group.size - count)])
        clusters[group.name] = torch.from_numpy(rng.permutation(numbers))
    return clusters


def merged(network, seed=0):
    torch.manual_seed(0)
    model = randomise(network()).eval()
    graph = trace(model, X)
    return model, graph, merge(graph, halves(graph, seed))


@pytest.mark.parametrize("network", NETWORKS)
def test_merging_identical_channels_changes_nothing(network):
    model, graph, plan = merged(network)
    small = prune(model, plan)
    check = verify(model, small, plan, X, graph=graph)
    assert plan.removed == sum(cut.merged for cut in plan.groups.values()) > 0
    assert check.deviation < 1e-10
    assert check.changed >= plan.removed / 3
    twins = copy.deepcopy(model).double()
    with silenced(twins, plan, graph):
        members = copy.deepcopy(
            twins
        )  # removed channels are made the same, but what reads them is left as it is
    before, after = members(X.double()), prune(members, plan)(X.double())
    for a, b in zip(*((t if isinstance(t, tuple) else (t,)) for t in (before, after)), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
        assert a.abs().max() > 1e-3


def test_consumers_are_summed_into_the_first_member():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]]))
        model[2].weight.copy_(torch.tensor([[10.0, 20, 40, 80]]))
    plan = merge(trace(model, torch.zeros(1, 2)), {"0": [7, 3, 7, 7]})
    small = prune(model, plan)
    assert plan.groups["0"] == GroupCut(4, (0, 1), True, (0, 0))
    assert TensorCut("2.weight", 1, 4, (0, 1), "consumer", (0, 0)) in plan.tensors
    assert small[0].weight.tolist() == [[1, 2], [3, 4]]
    assert small[2].weight.tolist() == [[130, 20]]
    assert "keeps 2 of 4, merges 2 of 4 into them" in plan.explain()


def test_each_entry_of_a_flattened_map_goes_into_the_same_entry_of_the_survivor():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 1, bias=False))
    with torch.no_grad():
        model[2].weight.copy_(torch.arange(12.0)[None])
    small = prune(model, merge(trace(model, torch.zeros(1, 1, 2, 2)), {"0": [0, 1, 0]}))
    assert small[2].weight.tolist() == [[8, 10, 12, 14, 4, 5, 6, 7]]


def test_a_plan_may_drop_some_channels_and_merge_others():
    model = randomise(Residual()).eval()
    graph = trace(model, X)
    stem, inner = graph.number("stem.0"), graph.number("inner.0")
    masks = {stem: np.arange(6) < 3, inner: np.arange(5) < 4}
    plan = plan_keeping(graph, masks, into={stem: np.array([0, 1, 2, 1, 4, 0])})
    assert plan.groups["stem.0"].into == (1, DROPPED, 0)
    assert plan.groups["inner.0"].into == ()
    assert plan.groups["stem.0"].merged == 2
    assert verify(model, prune(model, plan), plan, X, graph=graph).deviation < 1e-10
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_one_axis_may_hold_a_merged_and_a_cut_group():
    model = randomise(DenseBlock()).eval()
    graph = trace(model, X)
    one, two = graph.number("conv1"), graph.number("conv2")
    masks = {one: np.arange(4) < 2, two: np.arange(4) < 3}
    plan = plan_keeping(graph, masks, into={one: np.array([0, 1, 1, 0])})
    head = next(t for t in plan.tensors if t.tensor == "head.weight")
    assert (head.removed, head.into) == ((8, 9, 13), (7, 6, DROPPED))
    assert verify(model, prune(model, plan), plan, X, graph=graph).deviation < 1e-10


@pytest.mark.parametrize("network", [Chain, Residual])
def test_a_wrong_survivor_is_caught(network):
    model, graph, plan = merged(network)
    wrong = []
    for t in plan.tensors:
        turned = dict(zip(t.kept, (*t.kept[1:], t.kept[0]), strict=True))
        wrong.append(dataclasses.replace(t, into=tuple(turned[i] for i in t.into)))
    bad = as_if_traced(plan, wrong)
    with pytest.raises(VerificationError, match="differs from the silenced original"):
        verify(model, prune(model, bad), bad, X, graph=graph)


def test_a_sum_that_was_forgotten_is_caught():
    model, graph, plan = merged(Chain)
    without = as_if_traced(plan, (dataclasses.replace(t, into=()) for t in plan.tensors))
    with pytest.raises(VerificationError, match="does not hold the planned slice"):
        verify(model, prune(model, without), plan, X, graph=graph)


def test_in_place_sums_values_and_keeps_gradients_and_momentum_of_survivors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).to(torch.float64)
    with torch.no_grad():  # units 0 and 2 are the same, so what reads them has the same gradient
        model[0].weight[2], model[0].bias[2] = model[0].weight[0], model[0].bias[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    x = torch.randn(5, 2, dtype=torch.float64)
    model(x).square().sum().backward()
    optimizer.step()
    wanted, summed = (
        model(x).detach(),
        model[2].weight.detach()[0, 0] + model[2].weight.detach()[0, 2],
    )
    prune_(model, merge(trace(model, x), {"0": [0, 1, 0]}), optimizer)
    assert model[2].weight[0, 0] == summed
    assert torch.allclose(model(x), wanted)
    kept = model[2].weight.grad.clone()
    assert torch.equal(optimizer.state[model[2].weight]["momentum_buffer"], kept)
    model.zero_grad()
    model(x).square().sum().backward()
    assert torch.allclose(model[2].weight.grad, kept)


@pytest.mark.parametrize("kind", [torch.channels_last, torch.contiguous_format])
def test_memory_format_and_dtype_stay(kind):
    model = randomise(Chain()).half().to(memory_format=kind)
    graph = trace(copy.deepcopy(model).float(), X)
    small = prune(model, merge(graph, halves(graph)))
    assert small.second[0].weight.dtype == torch.float16
    assert small.second[0].weight.is_contiguous(memory_format=kind)


def chain_plan(size, kept, into=()):
    groups = {"a": GroupCut(size, kept, True, into)}
    return PruningPlan("f", groups, (TensorCut("b.weight", 1, size, kept, "consumer", into),))


@pytest.mark.parametrize(
    ("first", "second", "into"),
    [
        ((6, (0, 2, 4), (0, 2, 4)), (3, (0, 2), (2,)), (0, 4, 4, 4)),  # 1->0, 3->2->4, 5->4, 2->4
        (
            (6, (0, 2, 4), (0, 2, 4)),
            (3, (0, 2), ()),
            (0, DROPPED, DROPPED, 4),
        ),  # the survivor of 3 is dropped
        ((6, (0, 2, 4), ()), (3, (0, 2), (0,)), (DROPPED, 0, DROPPED, DROPPED)),
        ((4, (0, 1, 2), (1,)), (3, (0, 2), ()), ()),
    ],
)
def test_merges_chain(first, second, into):
    both = compose(chain_plan(*first), chain_plan(*second))
    assert both.groups["a"].into == both.tensors[0].into == into
    assert both.tensors[0].size == first[0]


def test_a_merge_a_cut_and_a_merge_are_one_plan(tmp_path):
    model = randomise(DenseBlock()).double().eval()
    small, x = model, X.double()
    for step in (
        lambda g, m: merge(g, halves(g)),
        lambda g, m: select(g, score(g, m, "l1"), Budget(cut_channels=0.2)),
    ):
        small = prune(small, step(trace(small, x), small))
    small = prune(small, merge(trace(small, x), {"stem": [0, 0, 1]}))
    plan = history(small)
    again = prune(model, plan)
    assert all(
        torch.allclose(value, small.state_dict()[name])
        for name, value in again.state_dict().items()
    )
    assert verify(model, again, plan, x).deviation < 1e-10
    loaded = load(DenseBlock().double(), save(small, tmp_path / "small.safetensors")).eval()
    assert torch.equal(loaded(x), small(x))


class Tied(nn.Module):
    """The weights that make the code read it, too."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 4)

    def forward(self, x):
        return F.linear(self.words(x), self.words.weight)


class TiedWithPlaces(Tied):
    """Another layer makes the code as well."""

    def __init__(self):
        super().__init__()
        self.places = nn.Linear(1, 4)

    def forward(self, x):
        return F.linear(self.words(x) + self.places(x[..., None].float()), self.words.weight)


@pytest.mark.parametrize("kind", [Tied, TiedWithPlaces])
def test_tied_weights_cannot_be_summed(kind):
    graph = trace(kind(), torch.zeros(2, 6, dtype=torch.long))
    with pytest.raises(PlanError, match=r"group 'words': .* tied weights cannot be summed"):
        merge(graph, {"words": [0, 0, 1, 2]})


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ({"frist.0": [0] * 6}, "no group 'frist.0'; did you mean 'first.0'"),
        ({"first.0": [0] * 5}, "has 6 units and needs a cluster number for each; got shape"),
        ({"first.0": [0.5] * 6}, "must be integers"),
        ({"first.0": [0, 1, -1, 2, 3, 3]}, "unit 2 of group 'first.0' is in no cluster"),
    ],
)
def test_bad_clusters(clusters, message):
    with pytest.raises(ArgumentError, match=message):
        merge(trace(Chain(), X), {name: list(numbers) for name, numbers in clusters.items()})


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ({"first.0": range(6)}, "every unit is a cluster of its own"),
        ({}, "no clusters are given"),
        ({"head": [0] * 4}, "'head' cannot be merged: "),
    ],
)
def test_clusters_that_merge_nothing(clusters, message):
    with pytest.raises(PlanError, match=message):
        merge(trace(Chain(), X), {name: list(numbers) for name, numbers in clusters.items()})


def test_a_group_of_single_clusters_is_not_touched():
    plan = merge(
        trace(Chain(), X), {"first.0": range(6), "second.0": torch.tensor([0, 1, 1, 2, 3])}
    )
    assert list(plan.groups) == ["second.0"]


@pytest.mark.parametrize(
    ("ends", "message"),
    [([0, 1, 3, 0], "not kept"), ([1, 1, 0, 0], "kept and merged"), ([9] * 4, "names")],
)
def test_survivors_must_be_kept(ends, message):
    graph = trace(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)), torch.zeros(1, 2))
    with pytest.raises(PlanError, match=message):
        plan_keeping(graph, {0: np.array([True, True, False, False])}, into={0: np.array(ends)})


@pytest.mark.parametrize(
    "clusters", [None, [0], {"first.0": "abc"}, {"first.0": None}, {"first.0": [[0], [1, 2]]}]
)
def test_clusters_of_another_kind(clusters):
    with pytest.raises(ArgumentError):
        merge(trace(Chain(), X), clusters)
