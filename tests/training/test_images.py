"""Whose word counts on how images are prepared: the recipe's, the network's file, fetched weights'."""

from __future__ import annotations

from dataclasses import replace

import pytest

import netslim
from netslim.data.preprocessing import Preprocessing
from netslim.errors import RecipeError
from netslim.models.checkpoint import read
from netslim.models.fetched import normalisation_of
from netslim.models.wanted_images import channels_of
from netslim.training.commands import step
from netslim.training.stages.images import load_images

DIGITS = tuple("0123456789")
FILE = Preprocessing((0.3,), (0.2,), (8, 8), False, DIGITS)


def recipe(model="zoo:vgg", **data):
    return step.step("measure", model, "digits", {}, settings={"data": data})


def test_the_word_of_the_networks_file_comes_before_the_data():
    data = load_images(recipe(), FILE)
    assert (data.mean, data.std, data.shape) == ((0.3,), (0.2,), (1, 8, 8))
    assert not data.notes
    assert load_images(recipe(validation=0.5), FILE).mean == data.mean
    assert load_images(recipe(), replace(FILE, size=(6, 6))).shape == (1, 6, 6)


def test_the_word_of_the_recipe_comes_before_all_and_contradictions_are_told():
    data = load_images(recipe(image_size=6, mean=[0.5], std=[0.5]), FILE)
    assert (data.mean, data.shape) == ((0.5,), (1, 6, 6))
    values, size = data.notes
    assert (
        "mean (0.5) and std (0.5); those that the network was trained on were by mean (0.3)"
        in values
    )
    assert size == "The images have 6x6 pixels; the network was trained on 8x8."


def test_other_classes_are_told_and_the_same_in_another_order_refused():
    (note,) = load_images(recipe(), replace(FILE, classes=tuple("abcdefghij"))).notes
    assert "trained on a, b, c, d, e" in note
    with pytest.raises(RecipeError, match="zoo:vgg in another order: 0, 1, 2, 3, 4 and not 9, 8"):
        load_images(recipe(), replace(FILE, classes=DIGITS[::-1]))


def test_a_network_by_name_gets_the_channels_it_takes():
    data = load_images(recipe("zoo:vgg"), None)
    assert data.shape == (3, 8, 8)
    assert "red, green and blue alike" in data.notes[0]


@pytest.mark.parametrize(
    ("name", "kwargs", "channels"),
    [
        ("zoo:resnet20", {}, 3),
        ("zoo:resnet20", {"in_channels": 1}, 1),
        ("zoo:mlp", {}, None),
        ("zoo:nothing", {}, None),
        ("torchvision:resnet18", {}, 3),
        ("timm:resnet18", {"in_chans": 1}, 1),
        ("own.module:factory", {}, None),
    ],
)
def test_channels_that_networks_take(name, kwargs, channels):
    assert channels_of(name, kwargs) == channels


def test_fetched_weights_bring_the_normalisation_they_were_trained_with():
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for weights in ("DEFAULT", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"):
        assert normalisation_of("torchvision:resnet18", {"weights": weights}) == imagenet
    for kwargs in ({}, {"weights": None}, {"weights": "NONE_SUCH"}):
        assert normalisation_of("torchvision:resnet18", kwargs) is None
    pytest.importorskip("timm")
    assert normalisation_of("timm:resnet50d", {"pretrained": True}) == imagenet
    half = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    assert normalisation_of("timm:vit_tiny_patch16_224", {"pretrained": True}) == half
    assert normalisation_of("timm:resnet50d", {"pretrained": False}) is None


def test_checkpoints_keep_it_and_evaluation_depends_on_nothing_else(tmp_path):
    model = {"name": "zoo:vgg", "layers": [8, "M", 16], "in_channels": 1}
    settings = {
        "model": model,
        "trainer": {"limit_batches": 2, "tensorboard": False, "threads": 1},
        "data": {"validation": 0.3},
    }
    out, cut = tmp_path / "net.safetensors", tmp_path / "cut.safetensors"
    options = {f"model.{key}": str(value) for key, value in model.items() if key != "name"}
    made = step.step(
        "train",
        model["name"],
        "digits",
        {"epochs": 1},
        options,
        settings={k: v for k, v in settings.items() if k != "model"},
    )
    step.carry_out(made, out)
    told = read(out)[0]["metadata"]["preprocessing"]
    assert told["classes"] == list(DIGITS)
    assert told["size"] == [8, 8]
    found = {
        step.evaluate(
            step.step(
                "measure",
                str(out),
                "digits",
                {},
                settings={"data": {"validation": share}, "seed": seed},
            )
        ).loss
        for share, seed in ((0.1, 0), (0.5, 3))
    }
    assert len(found) == 1
    pruning = step.step("prune", str(out), "", {"budget": {"cut_channels": 0.3}})
    step.prune(pruning, cut, shape=(1, 8, 8))
    assert read(cut)[0]["metadata"]["preprocessing"] == told
    assert netslim.models.build(cut)
