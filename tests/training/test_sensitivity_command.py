"""`netslim sensitivity`: measured on validation images, killed and gone on with; and the limits
that `netslim prune` and recipes take from it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fresh
import netslim
from netslim.cli import main
from netslim.data.sources import load as load_data
from netslim.methods import Sensitivity
from netslim.training.commands.sensitivity import ExplorationFolder

MODULE = '''
import os
import time
from pathlib import Path

import torch
from torch import nn

LOOKS_AT_FIGURES = True


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
    shown_again = [shop / "vgg.safetensors", *ARGUMENTS[:4], "--out", shop / "out", "--json"]
    assert go(*shown_again, "--max-drop", 3) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["limits"] == Sensitivity.load(shop / "out" / "sensitivity.json").limits(0.03)
    assert told["rows"] == json.loads(before)["rows"]


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
    with monkeypatch.context() as its_own:
        its_own.setenv("HANG_ON", str(journal))
        process = fresh.start(main, command, told=tmp_path / "told.txt")
    try:
        until = time.monotonic() + 600  # the machine may be busy
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= 4):
            assert process.exitcode is None
            assert time.monotonic() < until
            time.sleep(0.02)
        held = told(capsys, *command)
    finally:
        process.kill()
        process.join()
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
        f"netslim: interrupted; what is finished is kept in {out}; go on with: netslim sensitivity "
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
    ("vgg.safetensors --out new --ratios 1", "--ratios must be shares above 0 and below 1, got 1"),
    ("vgg.safetensors --out new --max-drop -1", "--max-drop -1: give 0 or more"),
    (
        "vgg.safetensors --out new --limit-images 0",
        "--limit-images must be a whole number at least 1, got 0",
    ),
    ("vgg.safetensors --out new --validation 0", "no validation images here"),
    ("vgg.safetensors --out new --criterion l3", "did you mean"),
    ("none.safetensors --out new", "cannot read none.safetensors"),
    ("zoo:vgg11 --out new", "does not take the images of digits"),
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
        (f"vgg.safetensors --cut-channels 0.95 {' '.join(LIMITS)} 1", "What binds: --limits"),
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
