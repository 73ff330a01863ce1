"""Blocks in budgets: met as `netslim.cost` counts, weighed against channels, and only if asked."""

from __future__ import annotations

import pytest
import torch

import netslim
from netslim import Budget, Limits
from netslim.errors import ArgumentError, PlanError
from residual_nets import IMAGES, Images, Post

BLOCKS = Limits(blocks=True)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Images(Post(6, 6), Post(6, 6), Post(6, 8, 2), Post(8, 8), width=8).eval()


@pytest.fixture(scope="module")
def graph(network):
    return netslim.trace(network, IMAGES[:1], blocks=True)


def scored(graph, network, **blocks):
    """The sums of absolute weights of channels, and these scores of blocks."""
    scores = netslim.score(graph, network, "l1")
    channels = {name: one for name, one in scores.items() if not graph[name].block}
    return channels | {name.replace("_", "."): torch.tensor([v]) for name, v in blocks.items()}


def gone(plan):
    return [block.name for block in plan.dropped.blocks]


@pytest.mark.parametrize("allocation", ["global", "isomorphic", "cost", "knapsack"])
@pytest.mark.parametrize(
    "budget", [Budget(cut_macs=0.4), Budget(cut_params=0.5), Budget(cut_activations=0.3)], ids=str
)
def test_budgets_are_met_as_the_counter_counts(network, graph, budget, allocation):
    scores = scored(graph, network, blocks_0=2.0, blocks_1=3.0, blocks_3=2.5)
    limits = Limits(blocks=True, round_to=2)
    plan = netslim.select(graph, scores, budget, allocation=allocation, limits=limits)
    small = netslim.prune(network, plan)
    before, after = netslim.cost(network, IMAGES[:1]), netslim.cost(small, IMAGES[:1])
    ((name, share),) = budget.given().items()
    what = name.removeprefix("cut_")
    assert getattr(after, what) <= (1 - share) * getattr(before, what)


def test_the_cheapest_way(network, graph):
    """A block that is worth nothing goes before any channel, one that is worth all stays."""
    for allocation in ("cost", "knapsack"):
        scores = scored(graph, network, blocks_0=0.0, blocks_1=1e9, blocks_3=1e9)
        limits = Limits(blocks=True, round_to=2)
        budget = Budget(cut_macs=0.2)
        plan = netslim.select(graph, scores, budget, allocation=allocation, limits=limits)
        assert gone(plan) == ["blocks.0"]
        assert not plan.groups


def test_a_block_costs_the_channels_that_it_stands_for(network, graph):
    """With one threshold its score is that of a channel; added up, it counts six of them."""
    from netslim.selection.budget import Chooser, Ladder

    scores = scored(graph, network, blocks_0=2.0, blocks_3=3.0)
    ladder = Ladder(Chooser(graph, scores, BLOCKS), fixed={})
    steps = {graph.groups[n].name: place for place, n in enumerate(ladder.group.tolist())}
    assert ladder.lost[steps["blocks.0"]] == 6 * ladder.score[steps["blocks.0"]] == 12
    assert ladder.lost[steps["blocks.3"]] == 8 * ladder.score[steps["blocks.3"]] == 24


def test_channels_within_a_block_go_with_it(network, graph):
    """Of 12 + 6 inner and 6 + 8 + 8 others: half is met by blocks, whose own channels all count."""
    scores = scored(graph, network, blocks_0=0.0, blocks_1=0.0, blocks_3=1e9)
    share = 12 / sum(group.size for group in graph.prunable if not group.block)
    plan = netslim.select(
        graph, scores, Budget(cut_channels=share), allocation="cost", limits=BLOCKS
    )
    assert gone(plan) == ["blocks.0", "blocks.1"]
    assert plan.removed == 0


def test_limits_of_channels_are_of_channels(network, graph):
    scores = scored(graph, network, blocks_0=1.0, blocks_1=1.0, blocks_3=1.0)
    limits = Limits(blocks=True, max_cut=0.25, min_channels=4, round_to=4)
    one = {"blocks.1": 1}
    plan = netslim.select(graph, scores, per_group=one, limits=limits)
    assert gone(plan) == ["blocks.1"]
    held = Limits(blocks=True, max_cut={"blocks.1": 0})
    with pytest.raises(PlanError, match=r"blocks\.1"):
        netslim.select(graph, scores, per_group=one, limits=held)
    with pytest.raises(PlanError, match="protected"):
        netslim.select(
            graph, scores, per_group=one, limits=Limits(blocks=True, protect=["blocks.*"])
        )


def test_only_where_they_are_asked_for(network, graph):
    """On a graph that knows blocks plans are as on one that does not; without it, it is said."""
    plain = netslim.trace(network, IMAGES[:1])
    scores = scored(graph, network, blocks_0=0.0, blocks_1=0.0, blocks_3=0.0)
    budget = Budget(cut_macs=0.4)
    plan = netslim.select(graph, scores, budget, allocation="cost")
    bare = {name: one for name, one in scores.items() if not graph[name].block}
    assert plan.groups == netslim.select(plain, bare, budget, allocation="cost").groups
    assert "blocks.0 stays: a block, and these go with blocks=True alone" in plan.notes
    with pytest.raises(ArgumentError, match=r"trace\(model, example_inputs, blocks=True\)"):
        netslim.select(plain, bare, budget, limits=BLOCKS)
