"""A plan says why channels stay, in its file and in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import netslim
import wished
from netslim import Budget, Limits, PruningPlan
from netslim.errors import PlanError
from netslim.surgery.history import history
from netslim.surgery.why import Why

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LIMITS = Limits(min_channels=2, max_cut={"first": 0.5}, protect=["third"])
SCORES = {"first": torch.arange(8.0) + 1, "second": 1.23456 * (torch.arange(8.0) + 1)}


def made() -> PruningPlan:
    graph = netslim.trace(wished.sound(), X)
    amounts = {"second": 0.5}
    budget = Budget(cut_channels=0.5)
    return netslim.select(graph, SCORES, budget, per_group=amounts, limits=LIMITS)


def edited(change: Any) -> str:
    data = json.loads(made().to_json())
    del data["digest"]
    change(data["why"])
    return json.dumps(data)


def test_the_file_holds_what_was_asked_for_the_scores_and_the_threshold():
    why = json.loads(made().to_json())["why"]
    assert why["budget"] == {"cut_channels": 0.5}
    assert why["per_group"] == {"second": 4}
    assert why["limits"] == {"min_channels": 2, "max_cut": {"first": 0.5}, "protect": ["third"]}
    assert why["allocation"] == "global"
    first, second = why["scores"]["first"], why["scores"]["second"]
    assert first == {
        "largest removed": 4.0,
        "smallest kept": 5.0,
        "units": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    }
    assert second["units"][0] == 1.235  # four digits
    assert second["largest removed"] == 4.938
    assert set(why["scores"]) == {"first", "second"}


def test_the_threshold_is_told():
    assert "first   keeps 4 of 8, scores up to 4 go, from 5 stay" in made().explain()


def test_it_is_read_and_written_again_as_it_is():
    text = made().to_json()
    again = PruningPlan.from_json(text)
    assert again.to_json() == text
    assert again.why is not None
    assert again.why.limits["protect"] == ["third"]
    assert again.why.threshold("first", (4, 5, 6, 7)) == (4.0, 5.0)


def test_plans_that_cut_the_same_are_equal_whatever_led_there():
    def bare(data: dict) -> None:
        data["scores"] = {}

    assert PruningPlan.from_json(edited(bare)) == made()
    data = json.loads(made().to_json())
    del data["digest"], data["why"]  # as before there were reasons
    old = PruningPlan.from_json(json.dumps(data))
    assert old == made()
    assert old.why is None
    assert "scores" not in old.explain()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda why: why["scores"]["first"]["units"].pop(), "7 scores of first"),
        (lambda why: why["scores"]["first"]["units"].append("a"), "where a number should"),
        (lambda why: why["scores"].update(first=3), "damaged"),
        (lambda why: why.pop("limits"), "damaged"),
        (lambda why: why.update(criterion=3), "where a str should"),
        (lambda why: why.update(per_group={"a": 0.5}), "whole number"),
        (lambda why: why.update(budget={"cut_macs": None}), "budget.cut_macs: None stands"),
    ],
)
def test_what_is_damaged_is_refused(change, message):
    with pytest.raises(PlanError, match=message):
        PruningPlan.from_json(edited(change))


def test_an_edited_score_is_refused():
    text = made().to_json()
    assert "1.235" in text
    with pytest.raises(PlanError, match="digest"):
        PruningPlan.from_json(text.replace("1.235", "1.236"))


def test_the_largest_scores_are_written_and_read():
    why = Why(scores={"a": (1.7976931348623157e308, -1e-300)})
    again = PruningPlan.from_json(PruningPlan("f", {}, (), why=why).to_json())
    assert again.why == why


def test_a_network_keeps_the_sentence_and_not_every_score():
    small = netslim.slim(wished.sound(), X, budget=Budget(cut_macs=0.5))
    past = history(small)
    assert past is not None
    assert past.why is None
    assert past.notes[0].startswith("chosen: criterion obs on noise, allocation cost, comp")


def test_in_steps_every_unit_has_the_score_that_it_went_or_stayed_with():
    network = wished.sound()
    gradual = netslim.GradualPruning(network, X, Budget(cut_macs=0.5), steps=2)
    gradual.step()
    state = gradual.state_dict()
    first = gradual.plan.why
    gradual.step()
    why, plan = gradual.plan.why, gradual.plan
    assert why is not None
    assert first is not None
    assert (why.criterion, why.allocation) == ("obs on noise", "cost")
    assert why.budget == {"cut_macs": 0.5}
    assert {name: len(values) for name, values in why.scores.items()} == {
        "first": 8,
        "second": 8,
        "third": 12,
    }
    for name, cut in PruningPlan.from_json(state["plan"]).groups.items():
        assert [why.scores[name][n] for n in cut.removed] == [
            first.scores[name][n] for n in cut.removed
        ]
    resumed = netslim.GradualPruning(wished.sound(), X, Budget(cut_macs=0.5), steps=2)
    resumed.load_state_dict(state)
    resumed.step()
    assert resumed.plan.to_json() == plan.to_json()


def test_a_group_of_which_nothing_goes_has_no_threshold():
    why = Why(scores={"a": (1.0, 2.0)})
    assert why.threshold("a", (0, 1)) == (None, 1.0)
    assert why.threshold("b", ()) == (None, None)
