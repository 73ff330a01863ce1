"""Recipes that train from sets which are decoded as they are needed."""

from __future__ import annotations

import pytest

from large_data import SIZE, WRITERS, examples
from stage_runs import carry_out

TRAIN = {"kind": "train", "epochs": 1, "optimizer": {"lr": 0.05}}
CROP = {"crop": "random_resized", "scale": [0.25, 1.0]}


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_a_recipe_trains_from_every_source(kind, tmp_path, monkeypatch):
    """One picture of the training images is truncated, and one of the test images."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("netslim.report.run_page.write", lambda path: None)
    if kind == "hf":
        pytest.importorskip("datasets", reason="the extra 'hf' is not installed")
    WRITERS[kind](tmp_path / "set", "train", examples(36, cut=(4,)))
    WRITERS[kind](tmp_path / "set", "val", examples(9, cut=(3,)))
    data = {
        "name": f"{kind}:{tmp_path / 'set'}",
        "streaming": kind == "hf",
        "batch_size": 8,
        "validation": 6,
        "image_size": SIZE,
        "resize_size": 20,
        "augment": CROP,
        "unreadable": 0.2,
        "workers": 0,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    model = {"name": "zoo:vgg", "layers": [4, "M"], "in_channels": 3}
    done = carry_out(tmp_path / "run", TRAIN, data=data, model=model)
    (trained,) = done.stage("01-train")["unreadable"]
    (tested,) = done.stage("02-measure")["unreadable"]
    assert "truncated" in trained.lower()
    assert "truncated" in tested.lower()
    assert trained != tested
    assert any("left out: 1 " in remark for remark in done.stage("01-train")["remarks"])
    assert any("left out: 1 " in note for note in done.stage("02-measure")["notes"])
    assert done.stage("02-measure")["images"]["resize_size"] == 20


def test_parts_are_cut_out_of_whole_pictures_of_a_set_that_memory_would_hold(tmp_path):
    from netslim.data import ImageStream
    from netslim.training.recipe.reading import parse_recipe
    from netslim.training.stages.images import load_images

    WRITERS["folder"](tmp_path, "train", examples(12))

    def loaded(augment):
        said = {"name": f"folder:{tmp_path}", "image_size": SIZE, "augment": augment}
        recipe = parse_recipe(
            {
                "name": "a",
                "title": "b",
                "data": said,
                "model": {"name": "zoo:vgg11"},
                "stages": [TRAIN, {"kind": "measure"}],
            }
        )
        return load_images(recipe, None).train

    assert isinstance(loaded(CROP), ImageStream)
    assert not isinstance(loaded({"pad": 2}), ImageStream)
