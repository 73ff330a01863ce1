"""Blocks in budgets: met as `netslim.cost` counts, weighed against channels, and only if asked."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import netslim
from netslim import Budget, Limits
from netslim.errors import ArgumentError, PlanError
from residual_nets import IMAGES, DenseStage, Images, Post

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


@pytest.mark.parametrize(
    ("allocation", "budget"),
    [
        ("global", Budget(cut_macs=0.4)),
        ("isomorphic", Budget(cut_params=0.5)),
        ("cost", Budget(cut_activations=0.3)),
        ("knapsack", Budget(cut_macs=0.4)),
    ],
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


# ---------------------------------------------------------------- scores


def worth(graph, scores):
    """Name of a block -> what all the channels that it stands for are worth."""
    return {g.name: float(scores[g.name]) * g.stands_for for g in graph.groups if g.block}


def test_the_norm_of_the_weakest_layer(network, graph):
    """Of the two convolutions of each block that with the smaller sum of absolute weights."""
    found = worth(graph, netslim.score(graph, network, "l1"))
    for name, value in found.items():
        block = network.get_submodule(name)
        layers = (block.conv1.weight, block.conv2.weight)
        assert value == pytest.approx(min(float(w.detach().abs().sum()) for w in layers))


def test_batch_norm_scales_that_are_zero(network, graph):
    """A branch that ends with scales of zero is worth nothing, and goes first."""
    fresh = copy.deepcopy(network)
    torch.nn.init.zeros_(fresh.blocks[1].bn2.weight)
    scores = netslim.score(graph, fresh, "bn_scale")
    assert worth(graph, scores) == {"blocks.0": 6, "blocks.1": 0, "blocks.3": 8}
    budget = Budget(cut_channels=0.1)
    assert gone(netslim.select(graph, scores, budget, limits=BLOCKS)) == ["blocks.1"]


def batches():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator))
        for _ in range(3)
    ]


def test_taylor_is_of_a_gate(network, graph):
    """The slope of the loss by a factor at the branch, from a finite difference."""
    from netslim.surgery.proof.branches import AtSums

    class Scaled(AtSums):
        factor = 1.0

        def met(self, one, args):
            args[one.operand].mul_(self.factor)
            return args

    exact, slopes = copy.deepcopy(network).double(), []
    data = [(images.double(), labels) for images, labels in batches()]
    block = graph.block("blocks.3")
    with torch.no_grad():
        for images, labels in data:
            losses = []
            for factor in (1 - 1e-5, 1 + 1e-5):
                watch = Scaled(block.additions)
                watch.factor = factor
                with watch.watching(exact):
                    losses.append(torch.nn.functional.cross_entropy(exact(images), labels))
            slopes.append(float(losses[1] - losses[0]) / 2e-5)
    found = worth(graph, netslim.score(graph, exact, "taylor", batches=data))
    assert found["blocks.3"] == pytest.approx(sum(s**2 for s in slopes) / 3, rel=1e-4)


def test_errors_of_outputs_are_on_the_scale_of_channels(network, graph):
    """Blocks compare by their errors, and all scores double with those of the channels."""

    @netslim.criterion(measure=lambda graph, model, batches, loss: {"times": torch.tensor(1.0)})
    def everything(group, measured, times=1.0):
        return torch.full((group.size,), times, dtype=torch.float64)

    one, two = (
        worth(graph, netslim.score(graph, network, scoring, batches=batches()))
        for scoring in (
            netslim.selection.Scoring(everything, arguments={"times": t}) for t in (1.0, 2.0)
        )
    )
    assert two == pytest.approx({name: 2 * value for name, value in one.items()})
    whole = [network(images).detach() for images, _ in batches()]
    errors = {}
    for name in one:
        plan = netslim.select(graph, scored(graph, network, **{name.replace(".", "_"): 0.0}),
                              per_group={name: 1}, limits=BLOCKS)  # fmt: skip
        small = netslim.prune(network, plan)
        pairs = [
            (small(images).detach(), right)
            for (images, _), right in zip(batches(), whole, strict=True)
        ]
        errors[name] = float(sum((now - right).square().sum() for now, right in pairs))
    assert one["blocks.0"] / one["blocks.3"] == pytest.approx(
        errors["blocks.0"] / errors["blocks.3"], rel=1e-4
    )


@pytest.mark.parametrize("allocation", ["cost", "knapsack"])
def test_layers_of_a_densenet_in_budgets(allocation):
    """One that is worth nothing goes with its channels, wherever these are read, and is counted."""
    torch.manual_seed(0)
    model = Images(DenseStage(6, 3, 2), width=12).eval()
    graph = netslim.trace(model, IMAGES[:1], blocks=True)
    scores = netslim.score(graph, model, "l1")
    scores |= {"blocks.0.layers.0": torch.tensor([0.0]), "blocks.0.layers.1": torch.tensor([1e9])}
    budget = Budget(cut_macs=0.3)
    plan = netslim.select(graph, scores, budget, allocation=allocation, limits=BLOCKS)
    assert gone(plan) == ["blocks.0.layers.0"]
    assert plan.groups["blocks.0.layers.0.conv2"].kept == ()
    small = netslim.prune(model, plan)
    netslim.verify(model, small, plan, IMAGES[:1], graph=graph)
    left = netslim.cost(small, IMAGES[:1]).macs
    assert left <= 0.7 * graph.macs()
    assert left == graph.macs({graph.number("blocks.0.layers.0"): np.zeros(1, dtype=bool)} | {
        graph.number(name): np.isin(np.arange(cut.size), cut.kept)
        for name, cut in plan.groups.items() if cut.kept
    })  # fmt: skip


def test_layers_of_a_densenet_are_worth_their_channels_to_taylor():
    torch.manual_seed(0)
    model = Images(DenseStage(6, 3, 2), width=12).eval()
    graph = netslim.trace(model, IMAGES[:1], blocks=True)
    scores = netslim.score(graph, model, "taylor", batches=batches())
    found = worth(graph, scores)["blocks.0.layers.0"]
    assert found == pytest.approx(float(scores["blocks.0.layers.0.conv2"].sum()))
