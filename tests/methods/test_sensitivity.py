"""Each group cut alone: drops worked out by hand, limits that `select` keeps, journals that survive
any kill.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netslim
from nets import Residual
from netslim import Limits
from netslim.cli import main
from netslim.data.sources import load as load_data
from netslim.errors import ArgumentError, PlanError
from netslim.methods import Sensitivity
from netslim.methods.sensitivity import sensitivity
from netslim.methods.sensitivity_result import Row
from netslim.report import figures, sensitivity_page
from netslim.selection import Scoring
from netslim.training.commands.sensitivity import ExplorationFolder

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
        ({"evaluate": lambda network: None}, "it gave a NoneType for the whole network"),
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


def made(drops: dict[str, list[float]], size: int = 4) -> Sensitivity:
    """Group -> drops at 25, 50 and 75 %."""
    rows = []
    for name, values in drops.items():
        for removed, drop in enumerate(values, 1):
            rows.append(
                Row(
                    name,
                    size,
                    removed / 4,
                    removed * size // 4,
                    0.9 - drop,
                    drop,
                    removed,
                    2 * removed,
                )
            )
    return Sensitivity(0.9, tuple(rows), 100, 200, "print", settings={"model": {"name": "m"}})


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


@pytest.mark.parametrize("drop", [-0.1, float("nan"), float("inf"), True, "1"])
def test_a_drop_that_makes_no_sense(drop):
    with pytest.raises(ArgumentError, match="max_drop must be 0 or more"):
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


# ---------------------------------------------------------------- pictures


def captured(monkeypatch, draw: Any, *arguments: Any) -> Any:
    """The matplotlib figure that a plot function would have rendered."""
    seen: list[Any] = []
    monkeypatch.setattr(figures, "_render", lambda figure, *_: seen.append(figure) or b"")
    draw(*arguments)
    return seen[0]


def test_the_heat_map_holds_the_drops(monkeypatch):
    data = made({"a": [-0.0001, 0.012, 0.5], "b": [0.001, 0.02, 0.25]}).to_dict()
    axes, bar = captured(monkeypatch, figures.sensitivity, data).axes
    drops = [[-0.01, 1.2, 50], [0.1, 2, 25]]
    np.testing.assert_allclose(axes.collections[0].get_array(), drops)
    assert [text.get_text() for text in axes.texts] == ["0.0", "1.2", "50.0", "0.1", "2.0", "25.0"]
    assert [text.get_color() for text in axes.texts][:3] == ["#101418", "#101418", "#ffffff"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["25 %", "50 %", "75 %"]
    assert bar.get_ylabel() == "drop in points"


def test_colours_get_darker_with_the_drop_in_grey_too(monkeypatch):
    axes = captured(monkeypatch, figures.sensitivity, made({"a": [0, 0.1, 0.5]}).to_dict()).axes[0]
    colours = axes.collections[0].get_cmap()(np.linspace(0, 1, 50))[:, :3]
    grey = colours @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) < 0).all()


def test_a_long_network_names_every_group_and_has_no_lines(monkeypatch):
    data = made({f"layer{n // 18}.{n % 18}.conv1": [0, 0.1, 0.2] for n in range(55)}).to_dict()
    figure = captured(monkeypatch, figures.sensitivity, data)
    assert len(figure.axes[0].get_yticklabels()) == 55
    assert not figure.axes[0].texts
    assert figure.get_size_inches()[1] < 9
    assert figures.sensitivity_lines(data) is None


def test_lines_start_at_the_baseline(monkeypatch):
    axes = captured(
        monkeypatch, figures.sensitivity_lines, made({"a": [0, 0.1, 0.5], "b": [0, 0, 0]}).to_dict()
    ).axes[0]
    x, y = axes.lines[1].get_data()
    assert x == pytest.approx([0, 25, 50, 75])
    assert y == pytest.approx([90, 90, 80, 40])
    assert len(axes.lines) == 3


def test_missing_points_and_nothing_lost_can_be_drawn():
    found = made({"a": [0, 0, 0], "b": [0, 0, 0]})
    for some in (found, replace(found, rows=found.rows[:4]), replace(found, unit="number")):
        assert figures.sensitivity(some.to_dict()).startswith(b"<?xml")
        assert figures.sensitivity_lines(some.to_dict(), "png").startswith(b"\x89PNG")  # type: ignore[union-attr]


def test_the_page_is_self_contained_and_escapes():
    page = sensitivity_page.page(
        replace(made({"<a>": [0, 0.1, 0.2]}), notes=("b is <left> out",)).to_dict()
    )
    assert "<a>" not in page
    assert "&lt;a&gt;" in page
    assert "b is &lt;left&gt; out" in page
    assert "90.00&nbsp;%" in page
    assert page.count("<svg") == 2
    assert not [word for word in ("http-equiv", "<script", "<link", "src=") if word in page]


# ---------------------------------------------------------------- the command

MODULE = '''
import os
import time
from pathlib import Path

import torch
from torch import nn


class Slow(nn.Module):
    """Hangs, if it is told to, as soon as there are so many lines in a journal."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 12, 3), nn.Linear(12, num_classes)
        for tensor in (self.norm.weight.data, self.norm.bias.data, self.norm.running_mean):
            tensor.uniform_(0.5, 1.5)

    def forward(self, x):
        journal = Path(os.environ.get("HANG_ON", "none"))
        while journal.exists() and journal.read_bytes().count(b"\\n") >= 4:
            time.sleep(0.05)
        return self.head(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))
'''
ARGUMENTS = [
    "--data",
    "digits",
    "--trainer.threads",
    "1",
    "--ratios",
    "0.25",
    "0.5",
    "--recalibrate",
    "2",
]


def go(*arguments: object) -> int:
    return main(["sensitivity", *(str(item) for item in arguments)])


def told(capsys, *arguments: object) -> str:
    """What a failing command says: one line."""
    capsys.readouterr()
    assert main([str(item) for item in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A folder with a module, a checkpoint, and its sensitivity in `out`."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "slow.py").write_text(MODULE)
    torch.manual_seed(0)
    kwargs = {"layers": [16, "M", 32], "in_channels": 1}
    network = netslim.models.build("zoo:vgg", **kwargs)
    optimizer, data = torch.optim.Adam(network.parameters(), 0.01), load_data("digits")
    for _ in range(30):
        loss = nn.functional.cross_entropy(
            network(pixels(data, "train")[:256]), data.train.labels[:256]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    netslim.save(
        network,
        folder / "vgg.safetensors",
        constructor=netslim.models.constructor("zoo:vgg", kwargs),
    )
    assert go(folder / "vgg.safetensors", *ARGUMENTS[:4], "--out", folder / "out") == 0
    return folder


def pixels(data: Any, split: str) -> Tensor:
    """Images as a network sees them."""
    return (getattr(data, split).images.float() / 255 - data.mean[0]) / data.std[0]


def test_the_command_measures_validation_accuracy(shop):
    found = Sensitivity.load(shop / "out" / "sensitivity.json")
    network, data = netslim.models.build(shop / "vgg.safetensors").eval(), load_data("digits")
    images, labels = pixels(data, "validation"), data.validation.labels
    graph = netslim.trace(network, images[:1])
    scores = netslim.score(graph, network, "l2")
    assert list(found.groups) == [group.name for group in graph.prunable]
    assert found.baseline > 0.5
    for row in found.rows:
        plan = netslim.select(graph, scores, per_group={row.group: row.ratio})
        small = netslim.prune(network, plan)
        with torch.inference_mode():
            accuracy = (small(images).argmax(1) == labels).float().mean().item()
        assert row.value == pytest.approx(accuracy, abs=1e-6)
        assert row.macs == graph.macs() - netslim.cost(small, images[:1]).macs
    assert max(row.drop for row in found.rows) > 0.05
    assert (shop / "out" / "sensitivity.csv").read_text() == found.to_csv()
    written = {path.name for path in (shop / "out").iterdir() if not path.name.startswith(".")}
    names = {f"sensitivity{end}" for end in (".csv", ".json", ".jsonl", ".html", ".png", ".svg")}
    assert written == names | {"sensitivity-lines.png", "sensitivity-lines.svg"}


def test_a_finished_folder_shows_its_results_and_makes_missing_pictures_again(
    shop, monkeypatch, capsys
):
    from netslim.training.stages import runner

    monkeypatch.setattr(
        runner.Runner, "build", lambda self: pytest.fail("nothing is to be measured")
    )
    (shop / "out" / "sensitivity.png").unlink()
    before = (shop / "out" / "sensitivity.json").read_bytes()
    assert go(shop / "vgg.safetensors", *ARGUMENTS[:4], "--out", shop / "out", "--max-drop", 3) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(Sensitivity.load(shop / "out" / "sensitivity.json").table(0.03))
    assert (shop / "out" / "sensitivity.png").exists()
    assert (shop / "out" / "sensitivity.json").read_bytes() == before


def test_some_of_the_images(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(ExplorationFolder, "draw", lambda *_: None)
    arguments = [
        "--limit-images",
        20,
        "--split",
        "train",
        "--layers",
        "features.0",
        "--ratios",
        0.5,
    ]
    assert go(shop / "vgg.safetensors", *ARGUMENTS[:4], *arguments, "--out", tmp_path / "a") == 0
    found = Sensitivity.load(tmp_path / "a" / "sensitivity.json")
    assert list(found.groups) == ["features.0"]
    assert (20 * found.baseline) == pytest.approx(round(20 * found.baseline), abs=1e-5)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_killed_for_good_it_goes_on_where_it_was(shop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    monkeypatch.syspath_prepend(str(shop))
    monkeypatch.setattr(ExplorationFolder, "draw", lambda *_: None)
    out, journal = tmp_path / "out", tmp_path / "out" / "sensitivity.jsonl"
    command = ["sensitivity", "slow:Slow", *ARGUMENTS, "--out", str(out)]
    environment = {**os.environ, "HANG_ON": str(journal), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "netslim.cli", *command],
        cwd=shop,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 600  # the machine may be busy
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= 4):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        held = told(capsys, *command)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert f"in use by another netslim run (process {process.pid}" in held
    before = journal.read_bytes()
    assert not (out / "sensitivity.json").exists()
    with open(journal, "ab") as file:
        file.write(b'{"group": "sec')  # as if the kill had come in the middle of a line
    assert main(command) == 0
    assert journal.read_bytes().startswith(before)
    entries = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert set(Counter((entry["group"], entry["removed"]) for entry in entries).values()) == {1}
    assert len(entries) == 1 + 2 * 2
    assert main([*command[:-1], str(tmp_path / "whole")]) == 0
    assert (out / "sensitivity.json").read_bytes() == (
        tmp_path / "whole" / "sensitivity.json"
    ).read_bytes()


def test_ctrl_c_is_one_line(shop, tmp_path, monkeypatch, capsys):
    from netslim.training.loop import fit

    real, calls = fit.evaluate, list[int]()

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(fit, "evaluate", interrupted)
    monkeypatch.setattr(ExplorationFolder, "draw", lambda *_: None)
    out = tmp_path / "out"
    assert go(shop / "vgg.safetensors", *ARGUMENTS[:4], "--out", out) == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(
        f"netslim: interrupted; what is measured is kept in {out}; go on with: netslim sensitivity "
    )
    assert len((out / "sensitivity.jsonl").read_text().splitlines()) == 1 + 2
    assert not (out / "sensitivity.json").exists()
    assert go(shop / "vgg.safetensors", *ARGUMENTS[:4], "--out", out) == 0
    assert len(calls) == 3 + 5
    assert (out / "sensitivity.json").read_bytes() == (
        shop / "out" / "sensitivity.json"
    ).read_bytes()


MISTAKES = [
    ("vgg.safetensors --out out --ratios 0.5", "ratios: [0.25, 0.5, 0.75] there, [0.5] here"),
    ("vgg.safetensors --out out --criterion l1", "criterion: 'l2' there, 'l1' here"),
    ("vgg.safetensors --out out --recalibrate 1", "recalibrate: 0 there, 1 here"),
    ("vgg.safetensors --out out --seed 1", "seed: 0 there, 1 here"),
    (
        "other.safetensors --out out",
        "model.name: 'vgg.safetensors' there, 'other.safetensors' here",
    ),
    ("slow:Slow --out out", "'slow:Slow' here"),
    ("vgg.safetensors --out mine", "mine is not empty and holds no sensitivity (but mine.txt)"),
    ("vgg.safetensors --out slow.py", "is a file"),
    ("vgg.safetensors --out new --ratios 1", "--ratios 1: give shares above 0 and below 1"),
    ("vgg.safetensors --out new --max-drop -1", "--max-drop -1: give 0 or more"),
    ("vgg.safetensors --out new --limit-images 0", "--limit-images 0: give 1 or more"),
    ("vgg.safetensors --out new --validation 0", "no validation images here"),
    ("vgg.safetensors --out new --criterion l3", "did you mean"),
    ("none.safetensors --out new", "cannot read none.safetensors"),
    ("zoo:resnet20 --out new", "does not take the images of digits"),
    ("vgg.safetensors --out new --optimizer.lr 1", "optimizer: there is no such option"),
]


@pytest.fixture(scope="module")
def workshop(shop) -> Path:
    """Measured from inside the folder, with plain names, and with things that are in the way."""
    folder = shop / "workshop"
    folder.mkdir()
    for name in ("vgg.safetensors", "slow.py"):
        (folder / name).write_bytes((shop / name).read_bytes())
    network = netslim.models.build(folder / "vgg.safetensors")
    kwargs = {"layers": [16, "M", 32], "in_channels": 1}
    netslim.save(
        network,
        folder / "other.safetensors",
        constructor=netslim.models.constructor("zoo:vgg", kwargs),
    )
    wide = {**kwargs, "layers": [20, "M", 32]}
    netslim.save(
        netslim.models.build("zoo:vgg", **wide),
        folder / "wide.safetensors",
        constructor=netslim.models.constructor("zoo:vgg", wide),
    )
    (folder / "mine").mkdir()
    (folder / "mine" / "mine.txt").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(ExplorationFolder, "draw", lambda *_: None)
        assert go("vgg.safetensors", *ARGUMENTS[:4], "--out", "out") == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path): path.read_bytes() for path in files if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[given for given, _ in MISTAKES])
def test_mistakes_are_one_line_and_nothing_is_lost_or_left(
    arguments, message, workshop, monkeypatch, capsys
):
    monkeypatch.chdir(workshop)
    monkeypatch.syspath_prepend(str(workshop))
    before = contents(workshop)
    assert message in told(capsys, "sensitivity", *arguments.split(), *ARGUMENTS[:4])
    assert contents(workshop) == before


def test_help_fits_a_hundred_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        main(["sensitivity", "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


# ---------------------------------------------------------------- prune --limits

CUT = ["--input", "1", "8", "8", "--trainer.threads", "1", "--criterion", "l2"]
LIMITS = ["--limits", "out/sensitivity.json", "--max-drop"]


def test_prune_keeps_to_the_limits(workshop, tmp_path, monkeypatch):
    monkeypatch.chdir(workshop)
    found = Sensitivity.load("out/sensitivity.json")
    points = 100 * max(row.drop for row in found.rows if row.ratio == 0.25)
    limits = found.limits(points / 100)
    assert any(limits.values())
    share = 0.9 * sum(limits[name] * rows[0].size for name, rows in found.groups.items()) / 48
    out = tmp_path / "small.safetensors"
    arguments = [
        "vgg.safetensors",
        *CUT,
        "--cut-channels",
        f"{share:.4f}",
        *LIMITS,
        str(points),
        "--out",
        str(out),
    ]
    assert main(["prune", *arguments]) == 0
    plan = netslim.PruningPlan.from_json(out.with_suffix(".plan.json").read_text())
    assert plan.removed == int(48 * float(f"{share:.4f}"))
    for name, cut in plan.groups.items():
        assert len(cut.removed) <= limits[name] * cut.size + 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("vgg.safetensors --cut-channels 0.2 --limits out/sensitivity.json", "belong together"),
        ("vgg.safetensors --cut-channels 0.2 --max-drop 1", "belong together"),
        (
            f"vgg.safetensors --cut-channels 0.2 --max-cut 0.5 {' '.join(LIMITS)} 1",
            "give one of them",
        ),
        (
            f"vgg.safetensors --cut-channels 0.2 {' '.join(LIMITS)} -1",
            "--max-drop -1: give 0 or more",
        ),
        (f"vgg.safetensors --cut-channels 0.95 {' '.join(LIMITS)} 1", "cut_channels=0.95"),
        (
            f"wide.safetensors --cut-channels 0.2 {' '.join(LIMITS)} 100",
            "was measured on the architecture",
        ),
        (
            "vgg.safetensors --cut-channels 0.2 --limits vgg.safetensors --max-drop 1",
            "cannot read vgg.safetensors",
        ),
        (
            "vgg.safetensors --cut-channels 0.2 --limits none.json --max-drop 1",
            "cannot read none.json",
        ),
        (
            f"vgg.safetensors --by mask {' '.join(LIMITS)} 1",
            "--limits means nothing with --by mask",
        ),
    ],
)
def test_limits_that_do_not_fit_are_refused(arguments, message, workshop, monkeypatch, capsys):
    monkeypatch.chdir(workshop)
    before = contents(workshop)
    options = CUT[:-2] if "--by" in arguments else CUT
    assert message in told(capsys, "prune", *arguments.split(), *options, "--out", "x.safetensors")
    assert contents(workshop) == before


def test_a_recipe_may_limit_groups_by_name():
    from netslim.training.recipe.reading import parse_recipe

    def stage(max_cut: Any) -> dict[str, Any]:
        prune = {"kind": "prune", "budget": {"cut_channels": 0.2}, "max_cut": max_cut}
        return {
            "name": "a",
            "title": "b",
            "data": {"name": "digits"},
            "model": {"name": "zoo:vgg"},
            "stages": [prune],
        }

    read = parse_recipe(stage({"features.*": 0.5, "features.0": 0}), whole=False).stages[0]
    assert read.limits.max_cut == {"features.*": 0.5, "features.0": 0.0}  # type: ignore[union-attr]
    with pytest.raises(netslim.errors.RecipeError, match=r"max_cut of 'features\.0': .* got 1\.5"):
        parse_recipe(stage({"features.0": 1.5}), whole=False)
    with pytest.raises(netslim.errors.RecipeError, match=r"max_cut must be a number .* got 1\.5"):
        parse_recipe(stage(1.5), whole=False)
