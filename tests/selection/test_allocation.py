"""How a budget is spread over groups: met, not overshot, by hand where it can be, against all
choices where it must.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from nets import Chain, Residual, conv
from netslim import Budget, Limits, cost, prune, score, select, trace, verify
from netslim.errors import ArgumentError, PlanError
from netslim.models import zoo
from netslim.selection.budget.allocation import ALLOCATIONS
from netslim.surgery.proof.silencing import randomise

X = torch.zeros(1, 3, 8, 8)
COSTS = ("params", "macs", "activations", "peak_memory")


def chain(*widths: int) -> nn.Sequential:
    """3 -> widths -> 2 channels by 1x1 convolutions: a weight costs one MAC on a picture of one
    pixel.
    """
    sizes = (3, *widths, 2)
    return nn.Sequential(
        *(nn.Conv2d(a, b, 1, bias=False) for a, b in zip(sizes, sizes[1:], strict=False))
    )


def traced(model: nn.Module, x: torch.Tensor = X, criterion: str = "l1"):
    model = randomise(model.eval())
    graph = trace(model, x)
    return model, graph, score(graph, model, criterion)


def gone(plan) -> dict[str, int]:
    return {name: cut.size - len(cut.kept) for name, cut in plan.groups.items()}


def tenth(plan) -> list[str]:
    return [note for note in plan.notes if "less than a tenth" in note]


def masks_of(graph, plan):
    return {graph.number(n): np.isin(np.arange(c.size), c.kept) for n, c in plan.groups.items()}


COUNTER = {"peak_memory": "peak_bytes"}
PIXEL = torch.zeros(1, 3, 1, 1)


BUILDS = {
    "resnet": lambda: zoo.resnet(14, width=0.5),
    "densenet": lambda: zoo.densenet(16, growth=4),
    "residual": Residual,
}


@cache
def built(name: str):
    """A network with its graph, scores and cost, which no selection and no cut of a copy changes."""
    model, graph, scores = traced(BUILDS[name]())
    return model, graph, scores, cost(model, X)


@pytest.mark.parametrize("allocation", [a for a in ALLOCATIONS if a != "knapsack"])
@pytest.mark.parametrize("resource", COSTS)
@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("network", BUILDS)
def test_costs_are_met_and_nothing_removed_could_stay(network, resource, allocation, round_to):
    model, graph, scores, before = built(network)
    plan = select(
        graph,
        scores,
        Budget(**{f"cut_{resource}": 0.25}),
        allocation=allocation,
        limits=Limits(round_to=round_to),
    )
    small = prune(model, plan)
    verify(model, small, plan, X, graph=graph)
    counter = COUNTER.get(resource, resource)
    left = getattr(graph, counter)
    limit = 0.75 * getattr(before, counter)
    assert getattr(cost(small, X), counter) == left(masks_of(graph, plan)) <= limit
    for name, cut in plan.groups.items():
        assert len(cut.kept) % round_to == 0
        order = torch.argsort(scores[name], stable=True).tolist()
        removed = set(range(cut.size)) - set(cut.kept)
        assert removed == set(order[: len(removed)])
        last = (
            len(removed) % round_to or round_to
            if len(removed) % round_to == cut.size % round_to
            else round_to
        )
        masks = masks_of(graph, plan)
        masks[graph.number(name)][order[len(removed) - last : len(removed)]] = True
        assert left(masks) > limit


@pytest.mark.parametrize("allocation", [a for a in ALLOCATIONS if a != "knapsack"])
def test_several_costs_at_once(allocation):
    model, graph, scores = traced(zoo.resnet(14, width=0.5))
    budget = Budget(cut_channels=0.2, cut_macs=0.3, max_params=20_000, cut_activations=0.3)
    plan = select(graph, scores, budget, allocation=allocation)
    before, after = cost(model, X), cost(prune(model, plan), X)
    assert after.macs <= 0.7 * before.macs
    assert after.params <= 20_000
    assert after.activations <= 0.7 * before.activations
    assert plan.removed >= int(0.2 * sum(g.size for g in graph.prunable))


def test_uniform_takes_the_same_share_of_every_group():
    _, graph, scores = traced(chain(40, 20, 30), PIXEL)
    plan = select(graph, scores, Budget(cut_macs=0.5), allocation="uniform")
    shares = [count / graph[name].size for name, count in gone(plan).items()]
    assert max(shares) - min(shares) <= 1 / 20
    assert gone(select(graph, scores, Budget(cut_channels=0.35), allocation="uniform")) == {
        "0": 14,
        "1": 7,
        "2": 10,
    }


def test_isomorphic_compares_like_with_like():
    """Two 3x3 layers are one pool; the 1x1 layer is another: half of each pool goes, by its own
    threshold.
    """
    model = nn.Sequential(conv(3, 4), conv(4, 4), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3))
    graph = trace(model, X)
    scores = {
        "0.0": torch.tensor([1.0, 2, 3, 4]),
        "1.0": torch.tensor([5.0, 6, 7, 8]),
        "2": torch.tensor([40.0, 30, 20, 10]),
    }
    # "0.0" and "1.0" are read by a 3x3 and a 1x1 convolution: not alike; make them so.
    model[2] = nn.Conv2d(4, 4, 3, padding=1)
    graph = trace(model, X)
    plan = select(
        graph,
        scores,
        Budget(cut_channels=0.5),
        allocation="isomorphic",
        limits=Limits(min_channels=1),
    )
    assert gone(plan) == {"0.0": 3, "1.0": 1, "2": 2}
    assert plan.groups["2"].kept == (0, 1)
    assert gone(select(graph, scores, Budget(cut_channels=0.5))) == {"0.0": 3, "1.0": 3}


def test_cost_takes_what_loses_least_for_what_it_saves():
    """3 -> 8 -> 2 and 3 -> 8 -> 40 by hand: a channel of the second costs 43 MACs, one of the first
    5.
    """

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False)
            self.c, self.d = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 40, 1, bias=False)

        def forward(self, x):
            return self.b(self.a(x)), self.d(self.c(x))

    graph = trace(Two(), PIXEL)
    scores = {"a": torch.arange(1.0, 9), "c": torch.arange(1.0, 9) * 4}
    assert graph.macs() == 8 * 5 + 8 * 43
    # Per MAC the channels of a lose 0.2, 0.4, ..., those of c 0.093, 0.186, 0.279, ...: 4 of c and
    # 1 of a save 177.
    budget = Budget(max_macs=384 - 177)
    assert gone(select(graph, scores, budget, allocation="cost")) == {"a": 1, "c": 4}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("resource", ["macs", "params", "channels"])
def test_knapsack_is_the_best_of_all_choices(seed, resource):
    torch.manual_seed(seed)
    model, graph, _ = traced(Residual() if seed % 2 else chain(4, 5, 3), X if seed % 2 else PIXEL)
    scores = {g.name: torch.rand(g.size, dtype=torch.float64) for g in graph.prunable}
    budget = Budget(**{f"cut_{resource}": 0.45})
    plan = select(graph, scores, budget, allocation="knapsack")
    names = list(scores)
    total = sum(map(len, scores.values()))
    best = float("inf")
    for counts in product(*(range(len(s)) for s in scores.values())):
        masks, loss = {}, 0.0
        for name, count in zip(names, counts, strict=True):
            order = torch.argsort(scores[name])
            mask = np.ones(len(order), dtype=bool)
            mask[order[:count]] = False
            masks[graph.number(name)] = mask
            loss += float(scores[name][order[:count]].sum())
        if resource == "channels":
            met = sum(counts) >= int(total * 0.45)
        else:
            met = getattr(graph, resource)(masks) <= getattr(graph, resource)() * 0.55
        best = min(best, loss) if met else best

    def lost(plan):
        return sum(
            float(s.sum() - s[list(plan.groups[n].kept)].sum())
            for n, s in scores.items()
            if n in plan.groups
        )

    assert lost(plan) == pytest.approx(best)
    greedy = select(graph, scores, budget, allocation="cost")
    assert best - 1e-9 <= lost(greedy) <= 1.3 * best
    verify(model, prune(model, plan), plan, X if seed % 2 else PIXEL)


def test_knapsack_says_what_it_cannot_do():
    _, graph, scores = traced(chain(4, 5), PIXEL)
    with pytest.raises(
        ArgumentError,
        match="takes one budget of channels or counted costs, got cut_macs, cut_params",
    ):
        select(graph, scores, Budget(cut_macs=0.3, cut_params=0.3), allocation="knapsack")
    _, graph, scores = traced(zoo.vgg11(), torch.zeros(1, 3, 32, 32))
    with pytest.raises(
        PlanError, match=r"choices for '.*' alone: take allocation='cost', or a larger round_to"
    ):
        select(graph, scores, Budget(cut_macs=0.3), allocation="knapsack")


@pytest.mark.parametrize("allocation", ["cost", "knapsack"])
def test_negative_scores_are_no_loss(allocation):
    _, graph, scores = traced(chain(4, 5), PIXEL, "largest")
    with pytest.raises(
        ArgumentError, match="adds up the scores that are lost, and some are below 0"
    ):
        select(graph, scores, Budget(cut_macs=0.3), allocation=allocation)


def test_max_cut_by_name():
    _, graph, scores = traced(chain(10, 10, 10), PIXEL)
    plan = select(
        graph, scores, Budget(cut_channels=0.5), limits=Limits(max_cut={"0": 0.4, "1": 3, "2": 0.8})
    )
    assert gone(plan) == {"0": 4, "1": 3, "2": 8}
    assert "1" not in gone(
        select(graph, scores, Budget(cut_channels=0.5), limits=Limits(max_cut={"1": 0}))
    )
    with pytest.raises(ArgumentError, match="max_cut names no group: 'x'"):
        select(graph, scores, Budget(cut_channels=0.5), limits=Limits(max_cut={"x": 0.5}))
    for wrong in (1.0, -1, True, "half", float("nan")):
        with pytest.raises(ArgumentError, match="max_cut of '0': give the share"):
            select(graph, scores, Budget(cut_channels=0.5), limits=Limits(max_cut={"0": wrong}))


@pytest.mark.parametrize(
    ("options", "binding"),
    [
        ({"limits": Limits(max_cut=0.25)}, r"max_cut=0\.25 \(without it the budget would be met\)"),
        (
            {"limits": Limits(max_cut={"0": 0.25, "1": 0.25})},
            r"max_cut by name \(without it the budget would be met\)",
        ),
        (
            {"limits": Limits(min_channels=7)},
            r"min_channels=7 \(without it the budget would be met\)",
        ),
        ({"limits": Limits(protect=["0", "1"])}, r"protect \(without it the budget would be met\)"),
        ({"limits": Limits(round_to=8)}, r"round_to=8 \(without it the budget would be met\)"),
        ({"per_group": {"0": 1, "1": 1}}, r"per_group \(without it the budget would be met\)"),
        (
            {"limits": Limits(max_cut=0.25, min_channels=9)},
            r"min_channels=9 \(without it \d+ MACs\)",
        ),
    ],
)
def test_conflicts_name_what_binds_and_the_best_that_can_be_reached(options, binding):
    _, graph, scores = traced(chain(10, 10, 10), PIXEL)
    with pytest.raises(PlanError, match=binding) as caught:
        select(graph, scores, Budget(cut_macs=0.7), **options)
    best = float(str(caught.value).rpartition("cut_macs=")[2])
    plan = select(graph, scores, Budget(cut_macs=best), **options)
    left = graph.macs(masks_of(graph, plan)) / graph.macs()
    assert left <= 1 - best
    with pytest.raises(PlanError):
        select(graph, scores, Budget(cut_macs=best + 0.002), **options)


def test_round_to_leaves_small_groups_whole_and_still_meets_the_budget():
    _, graph, scores = traced(chain(32, 6, 20), PIXEL)
    plan = select(graph, scores, Budget(cut_macs=0.5), limits=Limits(round_to=8))
    assert "1" not in plan.groups
    assert all(len(cut.kept) % 8 == 0 for cut in plan.groups.values())
    assert graph.macs(masks_of(graph, plan)) <= 0.5 * graph.macs()
    plan = select(graph, scores, Budget(cut_channels=0.3), limits=Limits(round_to=8))
    assert plan.removed >= int(58 * 0.3)


def test_unknown_allocations_are_refused():
    _, graph, scores = traced(chain(4), PIXEL)
    with pytest.raises(
        ArgumentError, match=r"allocation must be one of 'global', 'uniform', .* got 'layer'"
    ):
        select(graph, scores, Budget(cut_macs=0.3), allocation="layer")


def test_latency_needs_a_table():
    _, graph, scores = traced(Chain())
    with pytest.raises(
        ArgumentError, match="cut_latency needs to know how long layers take: give latency="
    ):
        select(graph, scores, Budget(cut_latency=0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"round_to": 2.5}, "round_to must be a whole number at least 1, got 2.5"),
        ({"round_to": "a"}, "got 'a'"),
        ({"min_channels": True}, "min_channels must be a whole number at least 1, got True"),
        ({"max_cut": "x"}, "max_cut must be a number at least 0 and below 1, got 'x'"),
        ({"protect": [1]}, r"protect takes names or patterns of groups, .* got \[1\]"),
        ({"protect": 3}, "protect takes names"),
    ],
)
def test_options_of_the_wrong_kind(options, message):
    with pytest.raises(ArgumentError, match=message):
        Limits(**options)


def test_equal_scores_are_cut_in_proportion_not_in_order_of_position():
    graph = trace(chain(4, 8, 12), PIXEL)
    scores = {g.name: torch.ones(g.size) for g in graph.groups if not g.frozen}
    plan = select(graph, scores, Budget(cut_channels=0.5))
    assert sorted(gone(plan).values()) == [2, 4, 6]


def test_equal_scores_come_after_lower_ones_and_keep_to_whole_steps():
    graph = trace(chain(8, 16), PIXEL)
    first, second = (g.name for g in graph.groups if g.size in (8, 16))
    scores = {first: torch.ones(8), second: torch.ones(16)}
    scores[second][:4] = 0.5
    # Ten go: the four low ones, then six in steps of two: to 4 of 8 and to 6 of 16.
    plan = select(graph, scores, Budget(cut_channels=10 / 24), limits=Limits(round_to=2))
    assert gone(plan) == {first: 4, second: 6}
    assert set(range(4)).isdisjoint(plan.groups[second].kept)


def test_layers_that_are_left_with_less_than_a_tenth_are_named():
    graph = trace(chain(20, 20), PIXEL)
    one, two = (g.name for g in graph.groups if g.size == 20)
    scores = {one: torch.arange(20.0), two: 100 + torch.arange(20.0)}
    plan = select(graph, scores, Budget(cut_channels=19 / 40))
    (note,) = tenth(plan)
    assert f"1 of 2 groups: {one} keeps 1 of 20; max_cut=0.9" in note
    assert not tenth(select(graph, scores, Budget(cut_channels=18 / 40)))  # a tenth stays
    assert not tenth(select(graph, scores, per_group={one: 19}))  # a name asked for it
