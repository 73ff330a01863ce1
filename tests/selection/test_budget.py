"""From scores to a plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nets import Chain, Residual, conv
from netslim import Budget, Limits, prune, score, select, trace
from netslim.errors import ArgumentError, PlanError
from netslim.models import zoo
from netslim.selection import Scoring

X = torch.zeros(1, 3, 8, 8)


def scored(model=None):
    graph = trace(model or Chain(), X)
    scores = {
        "first.0": torch.tensor([5.0, 1, 4, 2, 6, 3]),
        "second.0": torch.tensor([10.0, 9, 8, 7, 0.5]),
    }
    return graph, scores


def kept(plan):
    return {n: c.kept for n, c in plan.groups.items()}


def test_global_threshold_removes_exactly_floor_n_p():
    graph, scores = scored()
    plan = select(graph, scores, Budget(cut_channels=0.4))  # floor(11 * 0.4) = 4: 0.5, 1, 2, 3
    assert kept(plan) == {"first.0": (0, 2, 4), "second.0": (0, 1, 2, 3)}
    assert plan.removed == 4


@pytest.mark.parametrize(("share", "removed"), [(0, 0), (0.05, 0), (0.1, 1), (0.7, 7), (0.82, 9)])
def test_counts(share, removed):
    graph, scores = scored()
    assert select(graph, scores, Budget(cut_channels=share)).removed == removed


def test_no_layer_dies_and_the_limit_is_named():
    graph, scores = scored()
    plan = select(graph, scores, Budget(cut_channels=0.6), limits=Limits(min_channels=2))
    assert all(len(c.kept) >= 2 for c in plan.groups.values())
    with pytest.raises(
        PlanError,
        match=r"cut_channels=0.9 asks for 9 of 11 channels, and no more than 7 may go. What "
        r"binds: min_channels=2 "
        r"\(without it the budget would be met\). Reachable at best: cut_channels=0\.636",
    ):
        select(graph, scores, Budget(cut_channels=0.9), limits=Limits(min_channels=2))


def test_max_cut_is_the_papers_cap():
    graph, scores = scored()
    plan = select(graph, scores, Budget(cut_channels=0.4), limits=Limits(max_cut=0.5))
    assert kept(plan) == {"first.0": (0, 2, 4), "second.0": (0, 1, 2, 3)}
    with pytest.raises(PlanError, match=r"max_cut=0\.5"):
        select(graph, scores, Budget(cut_channels=0.6), limits=Limits(max_cut=0.5))


def test_uniform_allocation_cuts_the_same_share_everywhere():
    graph, scores = scored()
    plan = select(graph, scores, Budget(cut_channels=0.5), allocation="uniform")
    assert kept(plan) == {"first.0": (0, 2, 4), "second.0": (0, 1, 2)}


def test_mlp_row_of_the_paper():
    model = zoo.mlp()
    graph = trace(model, torch.zeros(1, 1, 28, 28))
    plan = select(graph, score(graph, model), Budget(cut_channels=0.8), allocation="uniform")
    small = prune(model, plan)
    linear = sum(
        p.numel() for m in small.modules() if isinstance(m, nn.Linear) for p in m.parameters()
    )
    assert [len(c.kept) for c in plan.groups.values()] == [100, 60]
    assert linear == 85_170  # the published 84.4 % less than 545,810


def test_vgg19_has_the_papers_5504_channels():
    model = zoo.vgg19()
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    assert sum(g.size for g in graph.prunable) == 5504
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(
                    0, 1, generator=torch.Generator().manual_seed(module.num_features)
                )
    assert (
        select(graph, score(graph, model), Budget(cut_channels=0.7)).removed == 3852
    )  # floor(0.7 * 5504)


def test_per_group_by_count_share_and_pattern():
    graph, scores = scored()
    plan = select(graph, scores, per_group={"first.0": 2, "second*": 0.4})
    assert kept(plan) == {"first.0": (0, 2, 4, 5), "second.0": (0, 1, 2)}
    with pytest.raises(ArgumentError, match="per_group names no group that can be cut: 'third'"):
        select(graph, scores, per_group={"third": 2})
    with pytest.raises(PlanError, match=r"first.0 has 6 channels and 6 should go"):
        select(graph, scores, per_group={"first.0": 6})


def test_protect():
    graph, scores = scored()
    plan = select(graph, scores, Budget(cut_channels=0.5), limits=Limits(protect=["second*"]))
    assert kept(plan) == {"first.0": (0, 2, 4)}
    assert "second.0 stays: protected" in plan.notes
    with pytest.raises(ArgumentError, match="protect names no group: 'x'"):
        select(graph, scores, Budget(cut_channels=0.5), limits=Limits(protect=["x"]))


@pytest.mark.parametrize(
    ("budget", "measure"),
    [
        (Budget(cut_macs=0.5), "macs"),
        (Budget(cut_params=0.6), "params"),
        (Budget(max_macs=9000), "macs"),
        (Budget(max_params=300), "params"),
    ],
)
def test_cost_budgets_are_met_and_not_overshot(budget, measure):
    model = Chain()
    graph = trace(model, X)
    scores = score(graph, model, Scoring("random", arguments={"seed": 1}))
    plan = select(graph, scores, budget)
    small = prune(model, plan)
    after = trace(small, X)
    total, left = getattr(graph, measure)(), getattr(after, measure)()
    ((name, value),) = budget.given().items()
    limit = value if name.startswith("max") else total * (1 - value)
    assert left <= limit
    for name, cut in plan.groups.items():
        for unit in set(range(cut.size)) - set(cut.kept):
            masks = {
                graph.number(n): np.isin(np.arange(c.size), c.kept) for n, c in plan.groups.items()
            }
            masks[graph.number(name)][unit] = True
            assert getattr(graph, measure)(masks) > limit


def test_several_budgets_are_all_met():
    model = Chain()
    graph = trace(model, X)
    plan = select(graph, score(graph, model, "l1"), Budget(cut_channels=0.2, cut_macs=0.5))
    after = trace(prune(model, plan), X)
    assert after.macs() <= graph.macs() * 0.5
    assert plan.removed >= 2


def test_an_impossible_budget_names_what_cannot_be_cut_and_why():
    class HandingBackItsState(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.rnn = nn.Linear(3, 4), nn.GRU(4, 8, batch_first=True)

        def forward(self, x):
            return self.rnn(self.a(x).relu())

    model = HandingBackItsState()
    graph = trace(model, torch.zeros(1, 5, 3))
    with pytest.raises(
        PlanError, match=r"cannot be cut: rnn \(it is an output of the network, out"
    ):
        select(graph, score(graph, model, "l2"), Budget(cut_params=0.9))


def test_an_impossible_budget_says_what_can_be_reached():
    model = Chain()
    graph = trace(model, X)
    with pytest.raises(
        PlanError,
        match=r"max_macs=10 leaves at most 10 MACs, and no fewer than 2,368 can be .*: 2,368",
    ):
        select(graph, score(graph, model, "l1"), Budget(max_macs=10))


def test_round_to():
    model = nn.Sequential(conv(3, 32), nn.Conv2d(32, 2, 1))
    graph = trace(model, X)
    plan = select(
        graph, score(graph, model, "l1"), Budget(cut_channels=0.4), limits=Limits(round_to=8)
    )
    assert len(plan.groups["0.0"].kept) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cut_channels": 1.0}, "cut_channels must be a number at least 0 and below 1, got 1.0"),
        ({"max_latency_ms": float("inf")}, "max_latency_ms must be a number above 0, got inf"),
        ({"max_latency_ms": float("nan")}, "max_latency_ms must be a number above 0, got nan"),
        ({"cut_channels": -0.1}, "at least 0 and below 1"),
        ({"cut_macs": 70}, "at least 0 and below 1, got 70"),
        ({"max_params": 0}, "max_params must be a whole number above 0"),
        ({"cut_params": "half"}, "must be a number"),
    ],
)
def test_budgets_out_of_range(options, message):
    with pytest.raises(ArgumentError, match=message):
        Budget(**options)


def test_bad_options():
    graph, scores = scored()
    with pytest.raises(ArgumentError, match="nothing to do"):
        select(graph, scores, Budget())
    with pytest.raises(
        ArgumentError, match="min_channels must be a whole number at least 1, got 0"
    ):
        select(graph, scores, Budget(cut_channels=0.1), limits=Limits(min_channels=0))
    with pytest.raises(ArgumentError, match="allocation must be"):
        select(graph, scores, Budget(cut_channels=0.1), allocation="all")
    with pytest.raises(ArgumentError, match="have shape"):
        select(graph, {"first.0": torch.zeros(3)}, Budget(cut_channels=0.1))
    with pytest.raises(ArgumentError, match="not finite"):
        select(graph, {"first.0": torch.full((6,), float("nan"))}, Budget(cut_channels=0.1))


def test_scores_by_hand():
    model = Residual()
    with torch.no_grad():
        model.stem[1].weight.copy_(torch.tensor([1.0, -2, 3, 0, 5, 6]))
        model.stem[0].weight.fill_(0.1)
        model.outer.weight.fill_(-1.0)
    graph = trace(model, X)
    assert score(graph, model, "bn_scale")["stem.0"].tolist() == [1, 2, 3, 0, 5, 6]
    torch.testing.assert_close(
        score(graph, model, "l1")["stem.0"], torch.full((6,), (2.7 + 5) / 2, dtype=torch.float64)
    )
    l2 = score(graph, model, "l2")["stem.0"][0].item()
    assert l2 == pytest.approx(((27 * 0.01) ** 0.5 + 5**0.5) / 2)
    first, again = score(graph, model, "random"), score(graph, model, "random")
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(
        first["stem.0"], score(graph, model, Scoring("random", arguments={"seed": 1}))["stem.0"]
    )


def test_score_errors():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = trace(model, X)
    with pytest.raises(
        ArgumentError, match="no batch normalisation follows its layers: use criterion 'l1'"
    ):
        score(graph, model)
    with pytest.raises(ArgumentError, match="unknown criterion 'l3'; did you mean"):
        score(graph, model, "l3")


def test_shortcuts_are_avoided_when_asked():
    model = Residual()
    graph = trace(model, X)
    scores = score(graph, model, "l1")
    both = select(graph, scores, Budget(cut_channels=0.4), allocation="uniform")
    inner = select(
        graph,
        scores,
        Budget(cut_channels=0.4),
        allocation="uniform",
        limits=Limits(shortcuts="avoid"),
    )
    assert set(both.groups) == {"stem.0", "inner.0"}
    assert set(inner.groups) == {"inner.0"}
    assert any(n.startswith("stem.0 stays: the outputs of several layers") for n in inner.notes)
    with pytest.raises(ArgumentError, match="shortcuts must be 'include' or 'avoid', got 'skip'"):
        select(graph, scores, Budget(cut_channels=0.4), limits=Limits(shortcuts="skip"))  # type: ignore[arg-type]
    with pytest.raises(
        PlanError, match=r"'outer' stays: the outputs of several layers .* these can: inner\.0$"
    ):
        select(graph, scores, per_group={"outer": 2}, limits=Limits(shortcuts="avoid"))


def test_any_name_of_the_model_may_stand_for_its_group():
    graph, scores = scored()
    expected = kept(select(graph, scores, per_group={"first.0": 2, "second.0": 1}))
    for one, other in (
        ("first.1", "second.0.weight"),
        ("first.1.running_mean", "second"),
        ("first", "second.1"),
    ):
        assert kept(select(graph, scores, per_group={one: 2, other: 1})) == expected
        assert kept(select(graph, scores, per_group={other: 1, one: 2})) == expected
    assert kept(
        select(graph, scores, Budget(cut_channels=0.5), limits=Limits(protect=["second.1"]))
    ).keys() == {"first.0"}


def test_skip_lists_a_later_pattern_wins_and_a_plain_name_wins_over_all():
    model = zoo.resnet(14, width=0.5)
    graph = trace(model, torch.zeros(1, 3, 8, 8))
    scores = score(graph, model, "l1")

    def cut(mapping):
        plan = select(graph, scores, per_group=mapping)
        return {n: c.size - len(c.kept) for n, c in plan.groups.items()}

    skipping = {"layer1.0.conv1": 4, "layer2.1.conv1": 2}
    assert (
        cut({"layer1.*": 0.5, "layer2.*.conv1": 2, "layer1.1.conv1": 0, "layer2.0.conv1": 0})
        == skipping
    )
    assert (
        cut({"layer1.1.conv1": 0, "layer2.0.conv1": 0, "layer2.*.conv1": 2, "layer1.*": 0.5})
        == skipping
    )
    assert cut({"layer1.*": 0.5, "layer?.1.*": 1}) == {
        n: 4 if n == "layer1.0.conv1" else 1
        for n in ("layer1.0.conv1", "layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1")
    }
    assert cut({"layer1.1.*": 0, "layer1.*": 0.5}) == {"layer1.0.conv1": 4, "layer1.1.conv1": 4}
    with pytest.raises(
        ArgumentError,
        match=r"'layer1.0.conv1' and 'layer1.0.bn1' are both .* both 1 and 2: leave one out",
    ):
        cut({"layer1.0.conv1": 1, "layer1.0.bn1": 2})


@pytest.mark.parametrize(
    ("per_group", "message"),
    [
        ({"frist.0": 2}, r"can be cut: 'frist\.0'; did you mean 'first\.0'"),
        ({"secnd*": 2}, r"can be cut: 'secnd\*'; did you mean 'second"),
        ({"first": 1.0}, r"share must be at least 0 and below 1, got 1\.0; a count is an int"),
        ({"first": -0.5}, "share must be at least 0 and below 1"),
        ({"first": float("nan")}, "share must be at least 0 and below 1, got nan"),
        ({"first": "2"}, "give a share .* got '2'"),
        ({"first": True}, "give a share .* got True"),
    ],
)
def test_what_cannot_go(per_group, message):
    graph, scores = scored()
    with pytest.raises(ArgumentError, match=message):
        select(graph, scores, per_group=per_group)


@pytest.mark.parametrize(
    ("per_group", "message"),
    [
        (
            {"head": 2},
            r"can be cut: 'head' stays: it is an output of the network; these can: first\.0, "
            r"second\.0$",
        ),
        (
            {"first": 100},
            "first.0 has 6 channels and 100 should go; min_channels=1 allows at most 5",
        ),
        ({"first": -1}, "first.0 has 6 channels and -1 should go"),
    ],
)
def test_what_the_limits_keep(per_group, message):
    graph, scores = scored()
    with pytest.raises(PlanError, match=message):
        select(graph, scores, per_group=per_group)


def test_a_plain_string_protects_one_name_and_wrong_names_offer_the_nearest():
    graph, scores = scored()
    assert kept(
        select(graph, scores, Budget(cut_channels=0.5), limits=Limits(protect="second.0"))
    ) == {"first.0": (0, 2, 4)}
    with pytest.raises(
        ArgumentError, match=r"protect names no group: 'secnd\.0'; did you mean 'second\.0'"
    ):
        select(graph, scores, Budget(cut_channels=0.5), limits=Limits(protect=["secnd.0"]))


def test_nothing_left_to_cut_is_an_error():
    graph, scores = scored()
    with pytest.raises(
        PlanError,
        match=r"nothing can be cut: first\.0 stays: protected; second\.0 stays: protected",
    ):
        select(graph, scores, Budget(cut_channels=0.5), limits=Limits(protect=["*"]))
    with pytest.raises(PlanError, match=r"first\.0 stays: it has no score"):
        select(graph, {}, Budget(cut_channels=0.5))
    with pytest.raises(PlanError, match="nothing to cut: per_group settles every group"):
        select(graph, scores, Budget(cut_channels=0.5), per_group={"*": 1})
    with pytest.raises(
        ArgumentError,
        match=r"scores are given for 'frist\.0', which is no group; did you mean 'first\.0'",
    ):
        select(graph, {"frist.0": torch.ones(6)}, Budget(cut_channels=0.5))


class HandsBack(nn.Module):
    """All that it computes with comes out; most of its parameters never ran."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.idle = nn.LSTM(3, 8, batch_first=True), nn.Linear(100, 100)

    def forward(self, x):
        y, (h, c) = self.rnn(x)
        return y, {"state": h, "cell": c}


def test_a_refusal_names_the_outputs_that_hold_a_layer_and_what_never_ran():
    graph = trace(HandsBack(), torch.zeros(1, 5, 3))
    message = (
        r"96\.\d% of the parameters were not used when the model ran, and "
        r"stay: idle; rnn stays: it is an output of the network, output\[0\], "
        r"output\[1\]\['state'\] and output\[1\]\['cell'\]"
    )
    with pytest.raises(PlanError, match=f"nothing can be cut: {message}"):
        select(graph, {}, Budget(cut_channels=0.5))
    with pytest.raises(ArgumentError, match=f"every group is frozen: {message}"):
        score(graph, HandsBack())


def test_shares_of_less_than_one_channel_are_noted():
    graph, scores = scored()
    plan = select(graph, scores, per_group={"first.0": 0.1, "second.0": 1})
    assert "first.0 stays: 0.1 of its 6 channels is less than one" in plan.notes
    plan = select(graph, scores, Budget(cut_channels=0.05))
    assert "nothing goes for cut_channels=0.05: of 11 channels that is less than one" in plan.notes
