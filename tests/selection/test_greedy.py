"""Greedy and independent filter pruning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nets import Chain, Residual
from netslim import Limits, prune, score, select, trace, verify
from netslim.errors import ArgumentError, PlanError
from netslim.models import zoo
from netslim.selection import Scoring
from netslim.selection.layerwise import greedy
from netslim.surgery.proof.silencing import randomise

X = torch.zeros(1, 3, 8, 8)


def pointwise(rows: list[list[float]]) -> nn.Conv2d:
    weight = torch.tensor(rows)
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    layer.weight = nn.Parameter(weight[..., None, None])
    return layer


def kept(plan):
    return {n: c.kept for n, c in plan.groups.items()}


def test_greedy_leaves_out_what_read_removed_channels():
    """Sums of the second layer: 12 and 4, but 2 and 4 without the kernels that read the first
    layer's channel 0.
    """
    model = nn.Sequential(
        pointwise([[1.0], [5.0], [3.0]]),
        nn.ReLU(),
        pointwise([[10.0, 1, 1], [0, 2, 2]]),
        nn.ReLU(),
        nn.Conv2d(2, 2, 1),
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    graph = trace(model, torch.zeros(1, 1, 2, 2))
    cuts = {"2": 1, "0": 1}
    assert kept(greedy(graph, model, cuts)) == {"0": (1, 2), "2": (1,)}
    assert kept(select(graph, score(graph, model, "l1"), per_group=cuts)) == {
        "0": (1, 2),
        "2": (0,),
    }
    assert kept(greedy(graph, model, {"2": 1})) == {"2": (0,)}
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_residual_network_by_hand():
    """The shared channels are judged by stem and block together; what reads them is judged without
    those that go.
    """
    model = Residual()
    with torch.no_grad():
        model.stem[0].weight.fill_(0.0)
        model.stem[0].weight[:, 0, 1, 1] = torch.tensor([1.0, 2, 3, 4, 5, 6])
        model.outer.weight.fill_(0.0)
        model.outer.weight[0] = 10.0  # channel 0: (1 + 50) / 2, so channel 1 goes: 1 on average
        model.inner[0].weight.fill_(0.0)
        centre = model.inner[0].weight[:, :, 1, 1]
        centre[:, 1] = torch.tensor([9.0, 0, 0, 0, 0])
        centre[:, 0] = torch.tensor([1.0, 2, 3, 4, 5])
    graph = trace(model, X)
    cuts = {"stem.0": 1, "inner.0": 1}
    assert kept(greedy(graph, model, cuts)) == {"stem.0": (0, 2, 3, 4, 5), "inner.0": (1, 2, 3, 4)}
    assert kept(select(graph, score(graph, model, "l1"), per_group=cuts))["inner.0"] == (0, 2, 3, 4)
    led = Scoring("l1", lead="pacesetter")
    assert kept(greedy(graph, model, cuts, led))["stem.0"] == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("criterion", "shortcut"), [("l1", "A"), ("geometric_median", "B"), ("bn_scale", "A")]
)
def test_residual_networks_are_cut_and_proved(criterion, shortcut):
    model = randomise(zoo.resnet(8, width=0.5, shortcut=shortcut), seed=3)
    x = torch.zeros(1, 3, 8, 8)
    graph = trace(model, x)
    plan = greedy(graph, model, {"*": 0.25}, criterion)
    check = verify(model, prune(model, plan), plan, x)
    assert check.deviation is not None
    assert check.deviation < 1e-9
    assert {n: len(c.kept) for n, c in plan.groups.items()} == {
        g.name: g.size * 3 // 4 for g in graph.prunable
    }


def test_limits_hold():
    model = Chain()
    graph = trace(model, X)
    plan = greedy(graph, model, {"*": 0.5}, limits=Limits(round_to=2, protect="second*"))
    assert {n: len(c.kept) for n, c in plan.groups.items()} == {"first.0": 2}
    assert "second.0 stays: protected" in plan.notes
    with pytest.raises(PlanError, match=r"max_cut=0\.3 allows at most 1"):
        greedy(graph, model, {"first.0": 2}, limits=Limits(max_cut=0.3))
    with pytest.raises(PlanError, match=r"'stem\.0' stays: the outputs of several layers"):
        greedy(trace(Residual(), X), Residual(), {"stem.0": 1}, limits=Limits(shortcuts="avoid"))


def test_options_reach_the_criterion():
    model = Chain()
    graph = trace(model, X)
    plans = {
        kept(greedy(graph, model, {"first.0": 3}, Scoring("random", arguments={"seed": s})))[
            "first.0"
        ]
        for s in range(4)
    }
    assert len(plans) > 1


def test_errors():
    model = Chain()
    graph = trace(model, X)
    with pytest.raises(
        ArgumentError, match=r"names no group that can be cut: 'frist\.0'; did you mean 'first\.0'"
    ):
        greedy(graph, model, {"frist.0": 1})
    with pytest.raises(ArgumentError, match="takes no 'shortcut'; did you mean 'shortcuts' of"):
        greedy(graph, model, {"first.0": 1}, shortcut="avoid")
    with pytest.raises(ArgumentError, match="taylor looks at data"):
        greedy(graph, model, {"first.0": 1}, "taylor")
    with pytest.raises(ArgumentError, match="per_group is empty"):
        greedy(graph, model, {})
