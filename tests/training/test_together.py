"""Several runs side by side: each as it is alone, and nothing left of them when they are ended."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

import fresh  # noqa: F401  # what it has imported once serves the processes here, too
from netslim.cli import main
from netslim.errors import RecipeError
from netslim.training import run
from netslim.training.commands import together as side_by_side
from netslim.training.commands.status import status
from netslim.training.commands.together import Job, in_turn, together
from netslim.training.loop.progress import epoch_line, silent
from netslim.training.loop.progress_table import Figures, Line, RunsTable, told_apart
from netslim.training.recipe.schema import Measure, Recipe
from netslim.training.stages.measure import timed
from stage_runs import HALF, TRAIN, recipe

SHORT: dict[str, Any] = {"data": {"name": "digits", "batch_size": 64, "subset": 128}}
ENDLESS = recipe({**TRAIN, "epochs": 100_000}, **SHORT)
LOST = {**TRAIN, "optimizer": {"lr": 1e30}}


def jobs(folder: Path) -> list[Job]:
    recipes = [recipe(TRAIN, HALF, seed=seed, **SHORT) for seed in (0, 1)]
    return [Job(each, folder / str(each.seed), "") for each in recipes]


def written(found: Recipe, path: Path) -> str:
    path.write_text(yaml.safe_dump({**found.to_dict(), "name": path.stem}))
    return str(path)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "01-train" / "metrics.csv", newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


@contextmanager
def interrupting(number: signal.Signals, ready: Callable[[], bool]) -> Iterator[None]:
    """Inside, this process gets a signal as soon as something is so."""
    over = threading.Event()

    def wait() -> None:
        while not over.wait(0.02):
            if ready():
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_each_is_as_it_is_alone(tmp_path: Path):
    """Bit for bit, with as many threads."""
    ended = together(jobs(tmp_path / "together"), console=Console(quiet=True))
    assert [each.error for each in ended] == [None, None]
    for each in ended:
        alone = tmp_path / each.job.folder.name
        results = run(each.job.recipe, alone, display=silent())
        assert each.results is not None
        assert each.results["rows"] == results["rows"]
        crowded = [note for note in each.results["notes"] if note not in results["notes"]]
        assert [note.partition(" shared")[0] for note in crowded] == [
            "its times were taken while up to 1 other run"
        ]
        assert crowded[0] in (each.job.folder / "report.html").read_text()
        assert rows(each.job.folder) == rows(alone)
        for name in ("01-train/model.safetensors", "02-prune/model.safetensors"):
            assert (each.job.folder / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.parametrize(("beside", "mark"), [(2, {"beside": 2}), (0, {})])
def test_latencies_that_were_measured_beside_other_runs_have_a_mark(beside, mark):
    networks = {"before": torch.nn.Flatten()}
    found = timed(Measure("measure"), networks, (1, 2, 2), torch.device("cpu"), beside)["before"]
    assert {key: found[key] for key in found if key not in ("median", "low", "high")} == mark


@pytest.mark.parametrize("how", [["--together"], []])
def test_one_that_fails_is_named_and_the_others_end(how, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    good = written(recipe(TRAIN, **SHORT), tmp_path / "good.yaml")
    bad = written(recipe(LOST, **SHORT), tmp_path / "bad.yaml")
    assert main(["run", bad, good, *how, "--json"]) == 1
    assert (tmp_path / "runs" / "good" / "results.json").exists()
    told = capfd.readouterr()
    failed, ended = json.loads(told.out)
    assert failed["folder"] == "runs/bad"
    assert "stage 01-train, epoch 1, step " in failed["error"]
    assert ended["results"]["network"] == "01-train/model.safetensors"
    last = told.err.splitlines()[-1]
    assert last.startswith("netslim: runs/bad failed: stage 01-train, epoch 1, step ")
    assert "go on with" not in last  # it would fail again: the line says what to change


def test_what_is_refused_says_the_command_that_is_not(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    good, other = (written(recipe(TRAIN, **SHORT), tmp_path / f"{n}.yaml") for n in "ab")
    assert main(["run", good]) == 0
    assert main(["run", good, other, "--seed", "3", "--trust"]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert "runs/a was begun with other settings (seed: 0 there, 3 here)" in last
    command = last.partition("go on as it was begun: netslim ")[2]
    assert command.endswith("--out runs/a --trust")
    assert main(shlex.split(command)) == 0  # which is all that stands behind it


FACTORY = """from torch import nn
class Net(nn.Linear):
    def forward(self, x):
        if self.training:
            raise RuntimeError("boom")
        return super().forward(x.flatten(1))
def net(num_classes=10, in_channels=1):
    return Net(64, num_classes)
"""


@pytest.mark.parametrize("how", [["--together"], []])
def test_a_network_that_raises_is_told_in_a_line(how, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("explodes.py").write_text(FACTORY)
    good = written(recipe(TRAIN, **SHORT), tmp_path / "good.yaml")
    bad = written(recipe(TRAIN, **SHORT, model={"name": "explodes:net"}), tmp_path / "bad.yaml")
    assert main(["run", bad, good, "--trust", "--changed-ok", *how]) == 1
    assert (tmp_path / "runs" / "good" / "results.json").exists()
    told = capfd.readouterr().err
    assert "runs/bad failed: RuntimeError: boom (line 5 of " in told
    again = f"; go on with: netslim run {bad} --trust --changed-ok --out runs/bad"
    assert told.splitlines()[-1].endswith(again)
    assert "Traceback" not in told


def test_interrupted_all_end_and_go_on(tmp_path, capfd):
    """By Ctrl-C and by SIGTERM, which this process alone gets."""
    path, out = written(ENDLESS, tmp_path / "long.yaml"), tmp_path / "runs"
    folders = [out / f"long-seed-{seed}" for seed in (0, 1)]
    command = ["run", path, "--seeds", "0", "1", "--together", "--out", str(out)]

    def epochs(folder: Path) -> int:
        if not (folder / "config.yaml").exists():
            return 0
        return status(folder).stages[0].done or 0

    done = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        before = done
        with interrupting(number, lambda: min(map(epochs, folders)) > before):  # noqa: B023
            assert main(command) == 130
        states = [status(folder) for folder in folders]
        assert [state.state for state in states] == [
            "stopped",
            "stopped",
        ]  # and nobody holds a lock
        done = max(map(epochs, folders))
        for folder in folders:
            assert [row["epoch"] for row in rows(folder)] == [
                str(epoch + 1) for epoch in range(epochs(folder))
            ]
        said = capfd.readouterr().err
        assert f"netslim: interrupted; what is finished is kept in {out}; go on with: " in said
        assert "Traceback" not in said


def test_who_has_lost_its_starter_ends(tmp_path):
    """As after `kill -9`: the line of messages breaks."""
    job = Job(ENDLESS, tmp_path, "")
    work = side_by_side._Work(job, 1, False)
    try:
        while not (tmp_path / "01-train" / "last.ckpt").exists():
            assert work.line.poll(60)
            work.line.recv()
        work.line.close()
        work.process.join(side_by_side.processes.GRACE / 2)
        assert work.process.exitcode == 0
        assert status(tmp_path).state == "stopped"
    finally:
        work.process.kill()


def test_who_is_killed_is_named(tmp_path):
    job = Job(ENDLESS, tmp_path, "")
    with side_by_side._started([job], 1, False) as [work]:
        assert work.line.poll(60)
        work.process.kill()
        while work.ended is None:
            work.heard()
    assert str(work.ended.error) == "its process was ended (by SIGKILL); what is finished is kept"


@pytest.mark.parametrize("carry_out", [together, in_turn])
def test_what_cannot_go_well_is_refused_before_anything_starts(carry_out, tmp_path, monkeypatch):
    first, second = jobs(tmp_path / "runs")
    same = replace(second, folder=tmp_path / "other" / ".." / "runs" / "0")
    with pytest.raises(RecipeError, match="two of the runs would have the folder"):
        carry_out([first, same])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(RecipeError, match=r"not a run folder \(it holds thesis.tex\)"):
        carry_out([first, replace(second, folder=foreign)])
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(RecipeError, match="leave torchrun or srun out"):
        carry_out([first, second])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["digits", "nope"], "no recipe is called 'nope'"),
        (["digits", "digits"], "two of the runs would have the folder runs/digits"),
        (["digits", "--seeds", "1", "1"], "the folder runs/digits-seed-1"),
        (["digits", "--seeds", "1", "--seed", "2"], "not allowed with"),
    ],
)
def test_what_is_typed_wrong_is_told_before_anything_starts(
    typed, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *typed, "--together"]) in (1, 2)
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_on_a_terminal_it_is_a_table():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    row = dict.fromkeys(("near_zero", "zero", "deviation"))
    row |= {"epoch": 3, "train_loss": 0.5, "train_accuracy": 0.25, "val_accuracy": None}
    line = epoch_line({**row, "seconds": 1.0}, 9)
    with RunsTable(["runs/a", "runs/b"], console) as shown:
        shown.take("runs/a", Figures("01-train", 3.0, 9, row, 600.0, line))
        shown.take("runs/b", Line("warning: look"))
        shown.ended("runs/b", "failed")
        seen = Console(file=io.StringIO(), width=120)
        seen.print(shown.table())
    table = seen.file.getvalue()  # type: ignore[attr-defined]
    assert "a   01-train 3.0/9 0.5000   25.00%            10 min" in table
    assert "b   failed" in table
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert line not in printed
    assert "runs/b  warning: look" in printed


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["c1/digits-seed-0", "c1/digits-seed-1"], ["digits-seed-0", "digits-seed-1"]),
        (
            [f"runs/three/preresnet164-cifar10-40-small-seed-{seed}" for seed in (0, 11)],
            ["preresnet164-cifar10-…0", "preresnet164-cifar10-…11"],
        ),
        (
            ["runs/resnet56-sfp-pretrained-small", "runs/resnet56-l1-b-pretrained-small"],
            ["resnet56-sfp…ned-small", "resnet56-l1-b…ned-small"],
        ),
        (["a/digits", "b/digits"], ["a/digits", "b/digits"]),
    ],
)
def test_runs_are_told_apart_in_80_columns(names, shown):
    """Alone the letters that all names share are left out."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    row = {"train_loss": 0.5, "train_accuracy": 0.25, "val_accuracy": 0.25}
    with RunsTable(names, console) as runs:
        for name in names:
            runs.rows[name] = Figures("02-finetune", 3.0, 160, row, 600.0)
        seen = Console(file=io.StringIO(), width=80)
        seen.print(runs.table())
    lines = seen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[0] for line in lines[-3:-1]] == shown
    assert all(line.rstrip().endswith("10 min") for line in lines[-3:-1])


def test_what_differs_in_names_is_there_whatever_the_room():
    names = [f"runs/{text}-small" for text in ("resnet56-sfp-pretrained", "densenet40")]
    assert told_apart(names, 8) == [name.removeprefix("runs/") for name in names]


def test_elsewhere_it_is_the_lines_of_each():
    console = Console(file=io.StringIO(), width=40)
    with RunsTable(["runs/a", "runs/bcd"], console) as shown:
        shown.take("runs/a", Figures("01-train", 2.5, 9))
        shown.take("runs/a", Figures("01-train", 3.0, 9, line="01-train  epoch 3/9"))
        shown.ended("runs/bcd", "finished")
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "runs/a    01-train  epoch 3/9\nruns/bcd  finished\n"
    )
