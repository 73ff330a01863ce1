"""Plans are data."""

from __future__ import annotations

import json

import pytest
import torch

from nets import Chain, Residual, cut_half
from netslim import PruningPlan
from netslim.errors import PlanError
from netslim.graph.modules.walk import fingerprint
from netslim.surgery.plan import compose
from netslim.surgery.rows import GroupCut, TensorCut

X = torch.zeros(1, 3, 8, 8)


def test_json_round_trip():
    plan = cut_half(Residual(), X)[1]
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_json_holds_runs():
    plan = PruningPlan(
        "f",
        {"a": GroupCut(8, (0, 1, 2, 5, 6))},
        (TensorCut("a.weight", 0, 8, (0, 1, 2, 5, 6), "producer"),),
    )
    data = json.loads(plan.to_json())
    assert data["groups"]["a"]["kept"] == [[0, 3], [5, 7]]
    assert plan.removed == 3
    assert plan.groups["a"].removed == (3, 4, 7)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 99}', '{"format": 1, "fingerprint": "f"}',
     '{"format": 1, "fingerprint": "f", "groups": {"a": {"size": 2, "kept": [[0, 9]], "exact": '
     'true}}, "tensors": [], "patches": [], "notes": []}'],
)  # fmt: skip
def test_damaged_json_is_refused(text):
    with pytest.raises(PlanError, match="plan"):
        PruningPlan.from_json(text)


def test_explain_says_what_goes_and_what_stays():
    graph, plan = cut_half(Chain(), X)
    text = plan.explain()
    assert "5 channels go" in text
    assert "first.0   keeps 3 of 6" in text
    assert str(plan) == text
    del graph


def test_compose_indexes_the_first_with_the_second():
    first = PruningPlan(
        "f",
        {"a": GroupCut(6, (0, 2, 3, 5))},
        (TensorCut("a.weight", 0, 6, (0, 2, 3, 5), "producer"),),
    )
    second = PruningPlan(
        "g", {"a": GroupCut(4, (1, 3))}, (TensorCut("a.weight", 0, 4, (1, 3), "producer"),)
    )
    both = compose(first, second)
    assert both.fingerprint == "f"
    assert both.tensors[0].kept == (2, 5)
    assert both.groups["a"] == GroupCut(6, (2, 5))
    with pytest.raises(PlanError, match="do not follow each other"):
        compose(first, PruningPlan("g", {}, (TensorCut("a.weight", 0, 5, (1,), "producer"),)))


def test_fingerprint_is_of_shapes_not_values():
    assert fingerprint(Chain()) == fingerprint(Chain().half().eval())
    assert fingerprint(Chain()) != fingerprint(Residual())


def test_merges_and_biases_survive_json():
    cut = TensorCut("b.weight", 1, 4, (0, 1), "consumer", (1, -1))
    plan = PruningPlan("f", {"a": GroupCut(4, (0, 1), True, (1, -1))}, (cut,), biases=("b",))
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["format"] == 2
    assert plan.groups["a"].merged == 1
    assert "b: is given a bias" in plan.explain()
    assert "keeps 2 of 4, merges 1 of 4 into them" in plan.explain()


def test_plans_without_merges_are_written_as_before():
    data = json.loads(cut_half(Residual(), X)[1].to_json())
    assert data["format"] == 1
    assert "biases" not in data
    assert all("into" not in row for row in (*data["groups"].values(), *data["tensors"]))


@pytest.mark.parametrize("into", [[1], [1, 1], [0, 9], "ab"])
def test_a_merge_into_what_goes_is_refused(into):
    plan = PruningPlan("f", {"a": GroupCut(3, (0, 2), True, (0,))}, ())
    data = json.loads(plan.to_json())
    data["groups"]["a"]["into"] = into
    with pytest.raises(PlanError, match="damaged"):
        PruningPlan.from_json(json.dumps(data))


def test_a_bias_added_later_is_cut_as_the_outputs_were():
    first = PruningPlan("f", {}, (TensorCut("a.weight", 0, 6, (0, 2, 3), "producer"),))
    second = PruningPlan("g", {}, (TensorCut("a.bias", 0, 3, (1,), "channel"),), biases=("a",))
    both = compose(first, second)
    assert both.biases == ("a",)
    assert both.tensors[1] == TensorCut("a.bias", 0, 6, (2,), "channel")
