"""`netslim search`: a folder of candidates, told as it is, that survives being killed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import netslim
from netslim.cli import main
from netslim.data import sources
from netslim.training.commands import search as searching
from netslim.training.loop.fit import fit

LOOKS_AT_FIGURES = True

VGG = ["zoo:vgg", "--model.layers", "[16, M, 32]", "--model.in_channels", "1"]
DATA = ["--data", "digits", "--trainer.threads", "1", "--batch-size", "256"]
QUICK = [*DATA, "--trainer.limit_batches", "3"]


def go(*arguments: object) -> int:
    return main([str(item) for item in arguments])


def told(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert go(*arguments) == 1
    (said,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert said.startswith("netslim: ")
    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "vgg.safetensors"
    assert (
        go(
            "train",
            *VGG,
            *DATA,
            "--trainer.tensorboard",
            "false",
            "--epochs",
            4,
            "--lr",
            0.1,
            "--out",
            path,
        )
        == 0
    )
    return path


@pytest.fixture(scope="module")
def searched(trained, tmp_path_factory) -> Path:
    """A search in which some candidates pass."""
    out = tmp_path_factory.mktemp("searched") / "out"
    assert go(*search(trained, out)) == 0
    return out


def search(model: Path, out: Path, **changed: object) -> list[object]:
    options = {
        "max-drop": 15,
        "epochs": 1,
        "lr": 0.02,
        "tolerance": 0.2,
        "criterion": "l2",
    } | changed
    return [
        "search",
        model,
        *QUICK,
        "--out",
        out,
        *(x for key, value in options.items() for x in (f"--{key}", value)),
    ]


def test_every_candidate_is_kept_and_the_winner_is_a_copy(searched):
    found = json.loads((searched / "search.json").read_text())
    tried = [row for row in found["rows"] if row["key"] == "candidate"]
    assert next(row["share"] for row in tried) == 0.495
    passed = [row["share"] for row in tried if row["passed"]]
    assert found["best"] == max(passed)
    for row in tried:
        folder = searched / "candidates" / f"{row['share']:.4f}"
        assert {item.name for item in folder.iterdir()} == {
            "01-prune",
            "02-recover",
            "candidate.json",
            "config.yaml",
        }
        assert (folder / "01-prune" / "plan.json").exists()
        assert (folder / "02-recover" / "metrics.csv").exists()
        assert row["macs"] <= found["rows"][0]["macs"] * (1 - row["share"])
        assert row["passed"] == (100 * (found["baseline"] - row["accuracy"]) <= 15)
    winner = searched / "candidates" / f"{found['best']:.4f}" / "02-recover" / "model.safetensors"
    assert (searched / "best.safetensors").read_bytes() == winner.read_bytes()
    assert set(found["tests"]) == {"original", "best"}


def test_validation_decides_and_is_that_of_evaluate(searched, trained, capsys):
    found = json.loads((searched / "search.json").read_text())
    for model, row in ((trained, found["rows"][0]), (searched / "best.safetensors", None)):
        row = row or next(row for row in found["rows"] if row.get("share") == found["best"])
        capsys.readouterr()
        assert go("evaluate", model, *QUICK, "--split", "validation", "--json") == 0
        seen = json.loads(capsys.readouterr().out)
        assert (seen["top1"], seen["params"], seen["macs"]) == (
            row["accuracy"],
            row["params"],
            row["macs"],
        )


def test_the_uncut_network_is_trained_alike(searched):
    found = json.loads((searched / "search.json").read_text())
    given, alike = found["rows"][:2]
    assert (alike["key"], alike["params"]) == ("trained", given["params"])
    assert (searched / "candidates" / "0.0000" / "01-recover" / "metrics.csv").exists()
    assert any(
        note.startswith("by the same training the given network, uncut, ")
        for note in found["notes"]
    )


def test_a_finished_search_only_shows(searched, trained, capsys, monkeypatch):
    monkeypatch.setattr(searching._Search, "go", lambda _: pytest.fail("searched again"))
    before = contents(searched)
    (searched / "front.png").unlink()
    assert go(*search(trained, searched)) == 0
    assert contents(searched) == before  # the picture is drawn again, the same
    said = capsys.readouterr().out
    assert "as given" in said
    assert "best" in said
    assert go(*search(trained, searched), "--json") == 0
    told, kept = (
        json.loads(capsys.readouterr().out),
        json.loads((searched / "search.json").read_text()),
    )
    assert told["best"] == kept["best"]
    assert "network: " in said


def test_a_finished_search_is_shown_where_nothing_can_be_written(
    searched, trained, capsys, monkeypatch
):
    monkeypatch.setattr(searching.RunFolder, "lock", lambda _: pytest.fail("locked"))
    monkeypatch.setattr(searching, "write_atomic", lambda *_: pytest.fail("written"))
    assert go(*search(trained, searched)) == 0
    assert "network: " in capsys.readouterr().out


def test_other_settings_are_refused_and_other_folders_left_alone(
    searched, trained, tmp_path, capsys
):
    before = contents(searched)
    assert "begun with other settings (search.max_drop: 15.0 there, 14.0 here)" in told(
        capsys, *search(trained, searched, **{"max-drop": 14})
    )
    assert "recipe.stages.prune.criterion: 'l2' there, 'l1' here" in told(
        capsys, *search(trained, searched, criterion="l1")
    )
    assert contents(searched) == before
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty" in told(capsys, *search(trained, tmp_path))


@pytest.mark.usefixtures("undrawn")
def test_killed_anywhere_it_ends_the_same(searched, trained, tmp_path, monkeypatch):
    """Killed after each training stage in turn: nothing finished is made again, and all weights are
    the same.
    """
    out, trainings = tmp_path / "out", []

    def killed(*arguments, **more):
        trainings.append(arguments[3].path)
        history = fit(*arguments, **more)
        if len(trainings) % 2:
            raise KeyboardInterrupt
        return history

    monkeypatch.setattr("netslim.training.loop.fit.fit", killed)
    for _ in range(20):
        code = go(*search(trained, out))
        if code != 130:
            break
    assert code == 0
    assert len(set(trainings)) * 2 == len(
        trainings
    )  # each was killed once before it was marked as finished
    for name in (
        "best.safetensors",
        *(str(p.relative_to(searched)) for p in searched.rglob("model.safetensors")),
    ):
        assert (out / name).read_bytes() == (searched / name).read_bytes(), name
    ours, theirs = (json.loads((path / "search.json").read_text()) for path in (out, searched))
    assert [row.get("accuracy") for row in ours["rows"]] == [
        row.get("accuracy") for row in theirs["rows"]
    ]


@pytest.mark.usefixtures("undrawn")
def test_where_no_cut_passes_it_says_so_and_fails(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        go(*search(trained, out, epochs=0, tolerance=0.4, **{"max-drop": 0, "min-channels": 1}))
        == 1
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "No cut is within 0 points: even the smallest that was tried, " in said
    assert not (out / "best.safetensors").exists()
    assert set(json.loads((out / "search.json").read_text())["tests"]) == {"original"}


@pytest.mark.usefixtures("undrawn")
def test_limits_bound_what_can_be_reached(trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        go(
            *search(
                trained, out, epochs=0, **{"max-drop": 90, "max-cut": 0.25, "resource": "channels"}
            )
        )
        == 0
    )
    found = json.loads((out / "search.json").read_text())
    tried = [row for row in found["rows"] if row["key"] == "candidate"]
    assert "unreachable" in tried[0]
    assert "max_cut=0.25" in tried[0]["unreachable"]
    assert 0 < found["best"] <= 0.25
    assert "Larger cuts cannot be reached" in found["verdict"]
    assert "cannot be reached" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("resource", ["params", "activations", "latency"])
def test_other_costs(trained, tmp_path, capsys, resource):
    out = tmp_path / "out"
    tolerance = (
        0.03 if resource == "latency" else 0.45
    )  # little of a tiny network's time is spent on what can be cut
    assert (
        go(
            *search(
                trained, out, epochs=0, tolerance=tolerance, resource=resource, **{"max-drop": 95}
            )
        )
        == 0
    )
    found = json.loads((out / "search.json").read_text())
    original, _, *_ = found["rows"]
    best = next(row for row in found["rows"] if row.get("share") == found["best"])
    assert best[resource] <= original[resource] * (1 - found["best"]) * (1 + 1e-9)
    assert (out / "latency-table.json").exists() == (resource == "latency")
    assert f"×{best[resource] / original[resource]:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--max-drop", "-1"], "--max-drop must be a number at least 0 and below 100"),
        (["--tolerance", "0"], "--tolerance must be a number above 0 and below 1"),
        (["--tries", "0"], "--tries must be a whole number at least 1, got 0"),
        (["--epochs", "-1"], "--epochs -1: 0 or more"),
        (["--validation", "0"], "decides by validation images"),
        (["--teacher", "vgg"], "--teacher vgg: give a .safetensors file"),
        (["--stages.prune.budget.cut_params", "0.5"], "the search itself says how much is cut"),
        (["--backend", "eager"], "--backend belongs to --resource latency"),
        (["--sparsity.strength", "1"], "--sparsity.strength: there is no such option"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(trained, tmp_path, capsys, more, said):
    assert said in told(capsys, "search", trained, *QUICK, "--out", tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_a_changed_checkpoint_is_another_search(trained, searched, tmp_path, capsys):
    other = tmp_path / "out"
    shutil.copytree(searched, other)
    model = tmp_path / "vgg.safetensors"
    network = netslim.models.build(trained)
    netslim.save(
        network, model, constructor=netslim.models.checkpoint.read(trained)[0]["constructor"]
    )
    assert "model_sha256" in told(capsys, *search(model, other))


def test_the_page_is_whole_and_loads_nothing(searched):
    text = (searched / "report.html").read_text()
    assert "<svg" in text
    assert "How to repeat it" in text
    assert "max_drop: 15.0" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text


@pytest.mark.usefixtures("undrawn")
def test_the_runner_of_a_candidate_shares_the_images(trained, tmp_path, monkeypatch):
    loads = []
    real = sources.load
    monkeypatch.setattr(sources, "load", lambda *a, **k: loads.append(a) or real(*a, **k))
    assert go(*search(trained, tmp_path / "out", epochs=0, tolerance=0.45)) in (0, 1)
    assert len(loads) == 1
