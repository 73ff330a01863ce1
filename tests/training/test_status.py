"""`netslim status`: how far a run is, whoever works in its folder."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from netslim.cli import main
from netslim.errors import RecipeError
from netslim.training.commands.status import status
from netslim.training.loop.progress import in_words
from netslim.training.recipe.reading import parse_recipe
from netslim.training.stages import folder as stage_folder
from netslim.training.stages.folder import RunFolder, write_json

RECIPE = {
    "name": "far",
    "title": "A test",
    "data": {"name": "digits"},
    "model": {"name": "zoo:vgg11"},
    "stages": [
        {"kind": "train", "name": "a", "epochs": 4},
        {"kind": "prune", "budget": {"cut_channels": 0.5}},
        {"kind": "finetune", "name": "b", "epochs": 2},
        {"kind": "measure"},
    ],
}


@pytest.fixture
def folder(tmp_path):
    found = RunFolder(tmp_path / "run")
    recipe = parse_recipe(RECIPE)
    with found.lock():
        found.claim(recipe)
    stage = found.stage(0, recipe.stages[0])
    stage.path.mkdir()
    stage.metrics.write_text("epoch,seconds\n1,10.0\n2,14.0\n")
    stage.checkpoint.write_text("")
    return found


def test_a_stopped_run(folder):
    found = status(folder.path)
    assert (found.state, found.process, found.seconds_left) == ("stopped", None, 48.0)
    first, *others = found.stages
    assert (first.state, first.done, first.epochs, first.seconds_left) == ("begun", 2, 4, 24.0)
    assert [stage.state for stage in others] == ["waiting"] * 3


def test_a_run_at_work(folder, capsys):
    with folder.lock():
        assert main(["status", str(folder.path)]) == 0
        first, second, *_ = capsys.readouterr().out.splitlines()
        assert ": far, running (process " in first
        assert first.endswith("about 48 s of training left")
        assert second == "01-a        running, 2 of 4 epochs"
        assert main(["status", str(folder.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "running"
    assert told["stages"][0]["done"] == 2


def test_of_several_runs_there_is_a_line_for_each(folder, capsys):
    place = folder.path.parent
    (place / "row" / "0").mkdir(parents=True)  # as bench paper has them
    (place / "row" / "0" / "config.yaml").write_text("[")
    assert main(["status", str(place)]) == 1
    damaged, stopped = sorted(capsys.readouterr().out.splitlines(), key=lambda line: "far" in line)
    assert stopped == f"{folder.path}: far, stopped, 01-a begun, 2 of 4 epochs"
    assert "config.yaml is damaged" in damaged
    (place / "row" / "0" / "config.yaml").unlink()
    with folder.lock():
        assert main(["status", str(place), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["state"], len(told["stages"])) == ("running", 4)


@pytest.fixture
def whole(folder):
    """The folder with every stage finished, and results."""
    row = {"key": "a", "accuracy": 0.5, "params": 1, "macs": 1, "size_bytes": 1}
    rows = [{"label": "whole", **row}]
    for index, stage in enumerate(parse_recipe(RECIPE).stages):
        place = folder.stage(index, stage)
        place.path.mkdir(exist_ok=True)
        place.finish({"seconds": 1.0, "rows": rows})
    write_json(folder.results, {"format": 1, "rows": rows})
    return folder


def test_a_finished_run_and_a_damaged_stage_of_it(whole, capsys):
    folder = whole
    found = status(folder.path)
    assert (found.state, found.seconds_left) == ("finished", 0.0)
    last = found.stages[-1].stage
    (folder.path / last / "stage.json").write_text("{}")
    damaged = status(folder.path)
    assert (damaged.state, damaged.stages[-1].state) == ("stopped", "damaged")
    assert main(["status", str(folder.path)]) == 0
    assert f"{last}  damaged: " in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "", "junk", "{", "[1,2]", "null", "a folder"])
def test_a_run_without_its_results_is_not_finished(whole, content, capsys):
    text = whole.results.read_text()
    whole.results.unlink()
    if content == "a folder":
        whole.results.mkdir()
    elif content is not None:
        whole.results.write_text(content.replace("{", text[: len(text) // 2]))
    assert status(whole.path).state == "stopped"
    assert main(["status", str(whole.path)]) == 0
    first, *stages, last = capsys.readouterr().out.splitlines()
    assert first.endswith(": far, stopped")
    assert [line.split()[1].rstrip(",") for line in stages] == ["finished"] * 4
    assert last.startswith(f"results.json  damaged: {whole.results} is ")
    assert ("is missing though every stage is finished" in last) == (content is None)
    assert ("move it away and give" in last) == (content == "a folder")
    assert "give its 'netslim run' command again" in last
    assert main(["status", str(whole.path.parent)]) == 0
    assert f": far, stopped, results.json damaged: {whole.results}" in capsys.readouterr().out
    with whole.lock():  # whoever works there makes them
        found = status(whole.path)
    assert (found.state, found.damage) == ("running", None)


def test_a_folder_in_the_place_of_a_stages_file_is_told_of_the_stage(whole, capsys):
    place = whole.stage(0, parse_recipe(RECIPE).stages[0])
    place.metrics.unlink()
    place.metrics.mkdir()
    made = place.marker.stat().st_mtime_ns
    os.utime(place.metrics, ns=(made - 1, made - 1))
    assert main(["status", str(whole.path)]) == 0
    _, line, *others = capsys.readouterr().out.splitlines()
    assert "damaged: " in line
    assert "metrics.csv is damaged (Is a directory); move " in line
    assert len(others) == 3


def test_what_is_older_than_its_marker_is_believed_unread(folder, monkeypatch):
    recipe = parse_recipe(RECIPE)
    place = folder.stage(0, recipe.stages[0])
    place.model.write_text("weights")
    place.finish({"seconds": 1.0})
    made = place.marker.stat().st_mtime_ns
    for file in (place.model, place.metrics):
        os.utime(file, ns=(made - 1, made - 1))
    with monkeypatch.context() as patch:
        patch.setattr(stage_folder, "digest", pytest.fail)
        assert status(folder.path).stages[0].state == "finished"
    place.model.write_text("others")
    found = status(folder.path).stages[0]
    assert found.state == "damaged"
    assert "model.safetensors was changed after the stage finished" in str(found.damage)


def test_settings_that_were_edited_say_how_settings_are_changed(folder):
    edited = folder.config.read_text().replace("epochs: 4", "epochs: 5")
    folder.config.write_text(edited)
    told = r"it was edited.*changed by the command, as --seed 1.*; "
    with pytest.raises(RecipeError, match=f"{told}choose another --out"):
        folder.claim(parse_recipe(RECIPE))
    with pytest.raises(RecipeError, match=f"{told}give the --out of another run"):
        status(folder.path)


@pytest.mark.parametrize("content", [None, "[", yaml.safe_dump({"search": {}}), "{}"])
def test_what_is_no_run_folder_is_said(tmp_path, content):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(RecipeError, match=r"no run folder|no recipe of this version|is damaged"):
        status(tmp_path)


def test_half_a_config_is_not_believed(folder):
    text = folder.config.read_text()
    assert len(status(folder.path).stages) == 4
    folder.config.write_text(text[: text.index("- kind: prune")])
    with pytest.raises(RecipeError, match="it was edited, or half of it is lost"):
        status(folder.path)
    folder.config.write_text(text.partition("\n")[2])  # as version 0.1 wrote it
    assert len(status(folder.path).stages) == 4


def test_a_run_that_has_only_just_begun(tmp_path):
    """It holds the lock, and has written nothing yet."""
    begun = RunFolder(tmp_path / "run")
    with begun.lock(), pytest.raises(RecipeError, match=r"a run begins in .*ask again"):
        status(begun.path)
    with pytest.raises(RecipeError, match=r"is not there; a run makes it"):
        status(tmp_path / "later")


def test_times_in_words():
    assert [in_words(seconds) for seconds in (45, 720, 11100)] == ["45 s", "12 min", "3 h 5 min"]
