"""Each group cut alone: drops worked out by hand, limits that `select` keeps, journals that survive
any kill.
"""

from __future__ import annotations

import csv
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netslim
from nets import Residual
from netslim import Limits
from netslim.errors import ArgumentError, PlanError
from netslim.methods import Sensitivity
from netslim.methods.sensitivity import sensitivity
from netslim.methods.sensitivity_result import Row
from netslim.selection import Scoring
from sensitivities import made

ONES = torch.ones(1, 2)


def ladder() -> nn.Sequential:
    """Hidden units 1, 2, 3, 4, then 1, 2 and 3 times their sum, 10; the output for (1, 1) is 60."""
    network = nn.Sequential(
        nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.ReLU()
    )
    network.append(nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0], [2, 0], [0, 3], [0, 4]]))
        network[2].weight.copy_(torch.tensor([[1.0], [2], [3]]).expand(3, 4))
        network[4].weight.fill_(1)
    return network


def output(network: nn.Module) -> float:
    """Of `ladder` for (1, 1)."""
    with torch.no_grad():
        return network(ONES).item()


AVOID = Limits(shortcuts="avoid")


def measure(
    evaluate: Any = output, network: nn.Module | None = None, **options: Any
) -> Sensitivity:
    return sensitivity(
        ladder() if network is None else network, ONES, evaluate, **{"unit": "number", **options}
    )


# What goes of 60: the first group loses 1, 1+2, 1+2+3 of a sum of 10 that counts 6 times; the
# second 1, 1+2 of these 6.
DROPS = {
    ("0", 0.25): 6,
    ("0", 0.5): 18,
    ("0", 0.75): 36,
    ("2", 0.25): 0,
    ("2", 0.5): 10,
    ("2", 0.75): 30,
}


# ---------------------------------------------------------------- what is measured


def test_drops_and_savings_by_hand():
    found = measure()
    assert found.baseline == 60
    assert {(row.group, row.ratio): row.drop for row in found.rows} == DROPS
    assert all(row.value == 60 - row.drop for row in found.rows)
    assert [row.removed for row in found.rows] == [1, 2, 3, 0, 1, 2]
    assert (found.params, found.macs) == (23, 23)
    assert [(row.params, row.macs) for row in found.rows] == [
        (5 * n, 5 * n) for n in (1, 2, 3, 0, 1, 2)
    ]
    assert found.notes == ()


def test_what_is_cut_follows_the_criterion_and_its_options():
    largest = {
        (row.group, row.ratio): row.drop for row in measure(criterion="largest", ratios=[0.5]).rows
    }
    assert largest == {("0", 0.5): 42, ("2", 0.5): 30}
    with pytest.raises(ArgumentError, match="cannot take these arguments"):
        measure(criterion=Scoring("random", arguments={"sed": 1}))

    def last_first(group: Any, tensors: Any) -> Tensor:
        return -torch.arange(group.size, dtype=torch.float64)

    assert measure(criterion=last_first, ratios=[0.25]).rows[0].drop == 24


def test_criteria_that_look_at_data_do():
    found = measure(criterion="mean_l1", ratios=0.25, batches=[torch.tensor([[4.0, 0.1]])])
    assert found.rows[0].drop == 18  # 4, 8, 0.3, 0.4: the third goes


def test_evaluate_gets_copies_in_evaluation_mode_and_the_model_stays():
    network = ladder().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def wreck(copy: nn.Module) -> Tensor:
        assert copy is not network
        assert not any(module.training for module in copy.modules())
        value = copy(ONES).detach()[0, 0]
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.zero_()
        return value

    assert {(row.group, row.ratio): row.drop for row in measure(wreck, network).rows} == DROPS
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


def test_statistics_are_taken_anew_before_each_look():
    network = nn.Sequential(
        nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1)
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0], [2.0]]))
        network[1].weight.fill_(1)
        network[2].running_mean.fill_(-50)
    batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[100.0], [300.0]])]

    def mean(copy: nn.Module) -> float:
        return copy[2].running_mean.item()  # type: ignore[index, union-attr, operator]

    options: dict[str, Any] = {"ratios": [0.5], "unit": "number"}
    plain = sensitivity(network, ONES[:, :1], mean, **options)
    assert (plain.baseline, plain.rows[0].value) == (-50, -50)
    first = sensitivity(network, ONES[:, :1], mean, batches=batches, recalibrate=1, **options)
    assert (first.baseline, first.rows[0].value, first.rows[0].drop) == (
        6,
        4,
        2,
    )  # 3 and 9; 2 and 6
    both = sensitivity(
        network, ONES[:, :1], mean, batches=iter(batches), recalibrate=True, **options
    )
    assert (both.baseline, both.rows[0].value) == (303, 202)
    assert network[2].running_mean.item() == -50


def test_groups_by_name_and_pattern_shortcuts_and_what_stays():
    torch.manual_seed(0)
    network, images = Residual().eval(), torch.randn(2, 3, 8, 8)
    names = [group.name for group in netslim.trace(network, images).prunable]
    assert len(names) == 2

    def cut(**options: Any) -> list[str]:
        return list(sensitivity(network, images, lambda copy: 0.5, ratios=[0.5], **options).groups)

    assert cut() == names
    assert cut(groups=["inner*"]) == cut(groups="inner.0") == cut(limits=AVOID) == ["inner.0"]
    assert cut(groups=["inner.0", "stem.0"]) == names
    with pytest.raises(PlanError, match=r"'head' cannot be cut: it is an output"):
        cut(groups=["head"])
    with pytest.raises(ArgumentError, match="groups names no group: 'iner'"):
        cut(groups=["iner"])
    with pytest.raises(PlanError, match=r"'stem\.0' cannot be cut: the outputs of several layers"):
        cut(groups=["stem.0"], limits=AVOID)


def test_a_group_whose_cut_is_not_proved_is_left_out_and_named(monkeypatch):
    module = sys.modules["netslim.methods.cutting"]
    real = module.verify  # type: ignore[attr-defined]

    def picky(model: Any, small: Any, plan: Any, *rest: Any, **more: Any) -> Any:
        if "0" in plan.groups:
            raise netslim.errors.VerificationError("not equal")
        return real(model, small, plan, *rest, **more)

    monkeypatch.setattr(module, "verify", picky)
    found = measure()
    assert list(found.groups) == ["2"]
    assert "left alone, because the cut did not verify: 0 (not equal)" in found.notes
    with pytest.raises(PlanError, match=r"no group of this model can be cut alone: .*not equal"):
        measure(groups=["0"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": []}, "ratios is empty"),
        ({"ratios": [0.5, 1.0]}, "above 0 and below 1, got 1.0"),
        ({"ratios": [0]}, "above 0 and below 1, got 0"),
        ({"recalibrate": 2}, "recalibrate needs batches="),
        ({"recalibrate": -1, "batches": [ONES]}, "got -1"),
        ({"batches": ONES}, "got a Tensor"),
        ({"unit": "percent"}, "'share' or 'number'"),
        ({"unit": "share"}, "gave 60 for the whole network, which is no share"),
        ({"evaluate": lambda network: float("nan")}, "gave nan for the whole network"),
        ({"evaluate": lambda network: None}, "it gave None for the whole network"),
        (
            {"evaluate": lambda network: output(network) if output(network) == 60 else np.inf},
            "0 without 1 of its",
        ),
        ({"criterion": "l3"}, "unknown criterion 'l3'"),
        ({"shortcuts": "avoid"}, "did you mean 'shortcuts' of limits="),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ArgumentError, match=message):
        measure(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": []}, "groups is empty"),
    ],
)
def test_nothing_to_measure(options, message):
    with pytest.raises(PlanError, match=message):
        measure(**options)


# ---------------------------------------------------------------- limits, ranking, files


def test_limits_are_the_largest_share_that_was_tried():
    found = measure()
    assert found.limits(18) == {"0": 0.5, "2": 1 / 3}
    assert found.limits(17.9) == {"0": 0.25, "2": 1 / 3}
    assert found.limits(5) == {"0": 0.0, "2": 0.0}
    assert found.limits(1000) == {"0": 0.75, "2": 2 / 3}
    between = found.limits(27, interpolate=True)
    assert between == pytest.approx({"0": 0.5 + 0.25 * 9 / 18, "2": 1 / 3 + 17 / 20 / 3})
    assert found.limits(3, interpolate=True)["0"] == pytest.approx(0.125)
    assert found.limits(1000, interpolate=True) == found.limits(1000)


def test_a_drop_that_shrinks_again_is_not_trusted():
    found = made({"a": [0.02, 0.005, 0.03], "b": [-0.02, 0.01, -0.03]})
    assert found.limits(0.01) == {"a": 0.0, "b": 0.75}
    assert found.limits(0.02) == {"a": 0.5, "b": 0.75}
    assert found.limits(0.0) == {"a": 0.0, "b": 0.25}
    assert found.limits(0.01, interpolate=True)["a"] == pytest.approx(0.125)
    assert found.ranking() == pytest.approx({"a": (0.02 + 0.02 + 0.03) / 3, "b": 0.02 / 3})


def test_rounding_does_not_decide():
    assert 0.9 - 0.89 > 0.01
    rows = (Row("a", 4, 0.25, 1, 0.89, 0.9 - 0.89, 1, 1),)
    assert Sensitivity(0.9, rows, 1, 1, "print").limits(0.01) == {"a": 0.25}
    single = Row(
        "a", 4, 0.25, 1, 0.6746666, 0.6846667 - 0.6746666, 1, 1
    )  # 1012 and 1027 of 1500, as float32
    assert Sensitivity(0.6846667, (single,), 1, 1, "print").limits(0.01) == {"a": 0.25}
    assert Sensitivity(0.6846667, (single,), 1, 1, "print").limits(0.00999) == {"a": 0.0}


def test_stages_share_the_smallest_limit_of_those_that_may_be_cut():
    found = made(
        {"a.0": [0, 0, 0], "a.1": [0, 0.5, 0.5], "a.2": [0.5, 0.5, 0.5], "b.0": [0, 0, 0.5]}
    )
    assert found.limits(0.1) == {"a.0": 0.75, "a.1": 0.25, "a.2": 0.0, "b.0": 0.5}
    assert found.limits(0.1, stages=["a.*", "b.*"]) == {
        "a.0": 0.25,
        "a.1": 0.25,
        "a.2": 0.0,
        "b.0": 0.5,
    }
    with pytest.raises(ArgumentError, match=r"'c\.\*' matches no measured group"):
        found.limits(0.1, stages=["c.*"])


@pytest.mark.parametrize("drop", [-0.1, float("nan"), float("inf")])
def test_a_drop_that_makes_no_sense(drop):
    with pytest.raises(ArgumentError, match="max_drop must be 0 or more"):
        made({"a": [0, 0, 0]}).limits(drop)


@pytest.mark.parametrize("drop", [True, "1"])
def test_a_drop_that_is_no_number(drop):
    with pytest.raises(ArgumentError, match="max_drop must be a number, got the"):
        made({"a": [0, 0, 0]}).limits(drop)


def test_select_keeps_the_limits():
    network = ladder()
    graph = netslim.trace(network, ONES)
    scores = netslim.score(graph, network, "l2")
    limits = measure().limits(18)
    plan = netslim.select(
        graph, scores, netslim.Budget(cut_channels=3 / 7), limits=netslim.Limits(max_cut=limits)
    )
    assert {name: len(cut.removed) for name, cut in plan.groups.items()} == {"0": 2, "2": 1}
    with pytest.raises(PlanError):
        netslim.select(
            graph, scores, netslim.Budget(cut_channels=4 / 7), limits=netslim.Limits(max_cut=limits)
        )
    assert netslim.select(graph, scores, per_group=limits).groups == plan.groups


def test_the_table():
    found = made({"first": [-0.001, 0.0123, 0.5], "second": [0, 0, 0]})
    assert found.table(0.02).splitlines() == [
        "baseline 90.00%; drop in points when a share of one group goes",
        "group   channels   25 %  50 %   75 %  may go",
        "first          4  -0.10  1.23  50.00    50 %",
        "second         4   0.00  0.00   0.00    75 %",
    ]
    assert str(measure()).splitlines()[0] == "baseline 60; drop when a share of one group goes"


def test_files(tmp_path):
    found = measure(settings={"split": "validation"})
    path = found.save(tmp_path / "sensitivity.json")
    assert Sensitivity.load(path) == found
    assert Sensitivity.from_json(found.to_json()) == found
    assert found.settings["criterion"] == "l2"
    assert found.settings["split"] == "validation"
    rows = list(csv.DictReader(found.to_csv().splitlines()))
    assert [(row["group"], float(row["drop"]), int(row["params_saved"])) for row in rows] == [
        (row.group, row.drop, row.params) for row in found.rows
    ]
    found.check(ladder())
    with pytest.raises(PlanError, match=f"{found.fingerprint}, this model is"):
        found.check(Residual())
    for text, message in (
        ("{", "no valid JSON"),
        ("[]", "of format 1"),
        ('{"kind": "sensitivity"}', "of format 1"),
    ):
        path.write_text(text)
        with pytest.raises(PlanError, match=rf"sensitivity\.json: .*{message}"):
            Sensitivity.load(path)
    changed = json.loads(found.to_json())
    changed["rows"][0]["drop"] += 0.01
    with pytest.raises(PlanError, match="it was changed after it was written"):
        Sensitivity.from_json(json.dumps(changed))
    del changed["digest"]  # as version 0.1 wrote it
    assert Sensitivity.from_json(json.dumps(changed)).rows[1:] == found.rows[1:]
    damaged = json.loads(found.to_json())
    del damaged["rows"][0]["drop"]
    with pytest.raises(PlanError, match="damaged"):
        Sensitivity.from_json(json.dumps(damaged))
    with pytest.raises(PlanError, match="cannot read"):
        Sensitivity.load(tmp_path / "none.json")


# ---------------------------------------------------------------- journals


class Counting:
    """`output` that counts, and that is killed at one call."""

    def __init__(self, die_at: int = 0) -> None:
        self.calls, self.die_at = 0, die_at

    def __call__(self, network: nn.Module) -> float:
        self.calls += 1
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        return output(network)


def test_a_killed_run_goes_on_and_nothing_is_measured_twice(tmp_path):
    journal, whole = tmp_path / "deep" / "journal.jsonl", measure()
    with pytest.raises(KeyboardInterrupt):
        measure(Counting(die_at=4), journal=journal)
    assert len(journal.read_text().splitlines()) == 1 + 3  # whose it is, the baseline, two cuts
    rest, seen = Counting(), list[tuple[str, int, int]]()
    found = measure(
        rest,
        journal=journal,
        progress=lambda row, done, total: seen.append((row.group, done, total)),
    )
    assert found == whole
    assert rest.calls == 1 + 5 - 3  # at 25 %, none of the second group's three channels goes
    assert seen == [("0", 3, 6), ("2", 5, 6), ("2", 6, 6)]
    again = Counting()
    assert measure(again, journal=journal) == whole
    more = measure(again, journal=journal, ratios=[0.1, 0.4, 0.5])
    assert again.calls == 0  # 0.4 of 4 and 3 channels is 1 of each, which is known
    assert [row.drop for row in more.rows] == [0, 6, 18, 0, 10, 10]


def test_channels_that_come_to_the_same_are_measured_once():
    counting = Counting()
    measure(counting, ratios=[0.1, 0.2, 0.25, 0.3, 0.4, 0.45])
    assert counting.calls == 1 + 1 + 1


def test_a_torn_last_line_is_measured_again(tmp_path):
    journal = tmp_path / "journal.jsonl"
    whole = measure(journal=journal)
    text = journal.read_bytes()
    for lost in (1, 2, 20):
        journal.write_bytes(text[:-lost])
        counting = Counting()
        assert measure(counting, journal=journal) == whole
        assert counting.calls == 1
        assert journal.read_bytes() == text
    journal.write_bytes(b"")
    assert measure(journal=journal) == whole


def test_the_journal_of_other_work_is_refused_and_left_alone(tmp_path):
    journal = tmp_path / "journal.jsonl"
    measure(journal=journal, settings={"data": "a"})
    text = journal.read_bytes()
    other = ladder()
    with torch.no_grad():
        other[0].weight[0, 0] = 1.5
    wide = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 1))
    ours = {"journal": journal, "settings": {"data": "a"}}
    for options, message in (
        ({"network": other}, "weights '[0-9a-f]{16}' there, '[0-9a-f]{16}' here"),
        ({"network": wide}, "architecture '[0-9a-f]{16}' there, '[0-9a-f]{16}' here"),
        ({"settings": {"data": "b"}}, "data 'a' there, 'b' here"),
        ({"criterion": "l1"}, "criterion 'l2' there, 'l1' here"),
        ({"batches": [ONES], "recalibrate": 1}, "recalibrate 0 there, 1 here"),
    ):
        with pytest.raises(PlanError, match=message):
            measure(**{**ours, **options})
    assert journal.read_bytes() == text
    lines = text.splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], b"{}\n", *lines[2:]]))
    with pytest.raises(PlanError, match="damaged in line 3"):
        measure(**ours)
    for content in (b"mine", b"mine\n", b'{"a": 1}\n'):
        journal.write_bytes(content)
        with pytest.raises(PlanError, match="is not a journal"):
            measure(**ours)
        assert journal.read_bytes() == content
