"""A run that goes on knows what it stands on: data, the stage before, settings, seed, versions."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from netslim.data import ImageStream
from netslim.data.fingerprint import fingerprint
from netslim.data.sources import load
from netslim.errors import RecipeError
from netslim.training import run
from netslim.training.recipe.reading import parse_recipe
from netslim.training.stages import networks

STAGE = {"kind": "train", "epochs": 1}


def recipe(place, **changes):
    return parse_recipe(
        {
            "name": "ground",
            "title": "A test",
            "data": {"name": f"folder:{place}", "batch_size": 8, "validation": 0},
            "model": {"name": "zoo:vgg", "layers": [4, "M"], "in_channels": 1},
            "trainer": {"threads": 1, "device": "cpu", "tensorboard": False},
            "stages": [
                {**STAGE, "name": "a"},
                {**STAGE, "name": "b"},
                {"kind": "measure", "latency": False},
            ],
            **changes,
        }
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    place, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (place / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = draw.integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(place / split / name / f"{number}.png")
    return place


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("netslim.report.run_page.write", lambda path: None)
        run(recipe(pictures), folder)
    return folder


@pytest.fixture
def begun(whole, pictures, tmp_path, monkeypatch):
    """A copy of the run, killed in the second stage, and of its pictures."""
    monkeypatch.setattr("netslim.report.run_page.write", lambda path: None)
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "03-measure")
    for name in ("stage.json", "model.safetensors"):
        (folder / "02-b" / name).unlink()
    return folder


def test_nothing_has_changed(begun, pictures, whole):
    run(recipe(pictures), begun)
    expected = (whole / "02-b/model.safetensors").read_bytes()
    assert (begun / "02-b/model.safetensors").read_bytes() == expected


def swapped_labels(place):
    (place / "train/cat").rename(place / "train/x")
    (place / "train/dog").rename(place / "train/cat")
    (place / "train/x").rename(place / "train/dog")


def other_picture(place):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(place / "train/cat/0.png")


CHANGES = [
    (other_picture, "the train images are others"),
    (swapped_labels, "the train images are others"),
    (lambda place: (place / "train/cat/0.png").unlink(), "have 15 train images, and had 16"),
    (lambda place: (place / "test/cat/0.png").unlink(), "have 15 test images, and had 16"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_other_data_stop_it_unless_they_are_accepted(
    begun, pictures, tmp_path, monkeypatch, change, told
):
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / pictures.name
    shutil.copytree(pictures, copy)
    change(copy)
    # The name of the data set is the same: what lies there is not.
    monkeypatch.setattr(networks, "load_images", _loading(copy))
    with pytest.raises(RecipeError, match=f"{told}.* put back .*move .*01-a away.*--changed-ok"):
        run(recipe(pictures), begun)
    run(recipe(pictures), begun, changed_ok=True)
    noted = json.loads((begun / "environment.json").read_text())["changed"]
    assert any(told in text for text in noted)
    (begun / "results.json").unlink()
    run(recipe(pictures), begun)  # what was accepted once is not asked for again


def _loading(place):
    from dataclasses import replace

    from netslim.training.stages.images import load_images

    def loaded(asked, trained_on):
        there = replace(asked.data, name=f"folder:{place}")
        return load_images(replace(asked, data=there), trained_on)

    return loaded


def test_other_versions_are_told(begun, pictures, monkeypatch):
    there = networks.versions()
    monkeypatch.setattr(networks, "versions", lambda: {**there, "torch": "9.9"})
    with pytest.raises(RecipeError, match=r"torch is 9\.9, and was .*--changed-ok"):
        run(recipe(pictures), begun)
    run(recipe(pictures), begun, changed_ok=True)


def test_a_stage_of_another_seed_is_refused(begun, pictures, tmp_path):
    run(recipe(pictures, seed=1), tmp_path / "other")
    for name in ("stage.json", "model.safetensors", "last.ckpt", "metrics.csv"):
        shutil.copy(tmp_path / "other/01-a" / name, begun / "01-a")
    with pytest.raises(RecipeError, match=r"01-a/stage\.json is of another run: seed 1, not 0"):
        run(recipe(pictures), begun)


def test_another_runs_checkpoint_is_refused(begun, pictures, tmp_path):
    run(recipe(pictures, seed=1), tmp_path / "other")
    shutil.copy(tmp_path / "other/02-b/last.ckpt", begun / "02-b")
    with pytest.raises(RecipeError, match=r"02-b/last\.ckpt is of another run: seed 1, not 0"):
        run(recipe(pictures), begun)
    shutil.copy(begun / "01-a/last.ckpt", begun / "02-b")
    with pytest.raises(RecipeError, match=r"of another run: stage 01-a, not 02-b"):
        run(recipe(pictures), begun)


def test_a_stage_before_that_is_another_now_is_told(begun, whole, pictures):
    content = json.loads((whole / "02-b/stage.json").read_text())
    content["stands_on"]["before"] = {"model.safetensors": "0" * 64}
    content.pop("digest")
    shutil.copy(whole / "02-b/model.safetensors", begun / "02-b")
    (begun / "02-b/stage.json").write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=r"02-b/stage\.json builds on another network"):
        run(recipe(pictures), begun)


@pytest.mark.parametrize("name", ["01-a/stage.json", "environment.json"])
def test_a_changed_figure_is_noticed(begun, pictures, name):
    path = begun / name
    content = json.loads(path.read_text())
    content["seconds"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=f"{name} was changed after it was written; move"):
        run(recipe(pictures), begun)


def test_streams_are_known_by_names_sizes_and_order(pictures, tmp_path):
    def of(place, **more):
        return fingerprint(load(f"folder:{place}", memory_limit=0, validation=0, **more))

    first = of(pictures)
    assert isinstance(load(f"folder:{pictures}", memory_limit=0).train, ImageStream)
    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    assert {**of(copy), "name": ""} == {**first, "name": ""}
    other_picture(copy)
    assert of(copy)["train"]["listing"] != first["train"]["listing"]
    assert of(copy)["test"] == first["test"]
    assert of(pictures, subset=4)["train"] != of(pictures, subset=4, seed=1)["train"]


def test_tensors_are_known_by_what_they_hold():
    data = load("digits")
    first = fingerprint(data)
    data.train.images[5, 0, 3, 3] += 1
    assert fingerprint(data)["train"]["listing"] != first["train"]["listing"]
    data.train.images[5, 0, 3, 3] -= torch.tensor(1, dtype=torch.uint8)
    assert fingerprint(data) == first
