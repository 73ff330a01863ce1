"""bf16, channels_last, threads and workers with every method: the switch changes how it is computed,
and hardly what comes out; a run that is killed under it goes on to the same bits.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from netslim.training import run
from netslim.training.recipe.reading import parse_recipe

METHODS = {
    "slimming": {"sparsity": {"method": "network_slimming", "strength": 0.01}},
    "proximal": {
        "sparsity": {"method": "network_slimming", "strength": 0.01, "penalty": "proximal"}
    },
    "soft_filter": {"sparsity": {"method": "soft_filter", "rate": 0.25}},
    "centripetal": {"sparsity": {"method": "centripetal", "target": 0.5}},
    "gradual": {"gradual": {"budget": {"cut_macs": 0.3}, "steps": 1}},
}
SWITCHES = {
    "bf16": {"precision": "bf16"},
    "channels_last": {"channels_last": True},
    "both": {"precision": "bf16", "channels_last": True},
}


pytestmark = pytest.mark.usefixtures("undrawn")


def recipe(method="slimming", workers=0, subset=256, **trainer):
    train = {"kind": "train", "epochs": 2, "optimizer": {"lr": 0.02}, **METHODS[method]}
    return parse_recipe(
        {
            "name": "switches",
            "title": "A test",
            "data": {"name": "digits", "batch_size": 64, "subset": subset, "workers": workers},
            "model": {"name": "zoo:vgg", "layers": [8, "M", 8], "in_channels": 1},
            "trainer": {"threads": 1, "device": "cpu", "tensorboard": False, **trainer},
            "stages": [train, {"kind": "measure", "latency": False}],
        }
    )


def weights(folder):
    return load_file(folder / "01-train/model.safetensors")


def losses(folder):
    return json.loads((folder / "01-train/stage.json").read_text())["curves"]["train_loss"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The run of each method without a switch, when it is first needed."""
    folders = {}

    def made(method):
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp("plain") / method
            run(recipe(method), folders[method])
        return folders[method]

    return made


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("method", METHODS)
def test_a_switch_hardly_changes_what_comes_out(plain, tmp_path, method, switch):
    asked = recipe(method, **SWITCHES[switch])
    run(asked, tmp_path / "a")
    found, expected = losses(tmp_path / "a"), losses(plain(method))
    assert found == pytest.approx(expected, rel=0.02)
    assert found != expected or switch == "channels_last"
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "a").values())


@pytest.mark.parametrize("switch", SWITCHES)
def test_one_that_is_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch, switch):
    asked = recipe(**SWITCHES[switch])
    run(asked, tmp_path / "whole")
    run(asked, tmp_path / "a")
    for name in ("results.json", "01-train/stage.json", "01-train/model.safetensors"):
        (tmp_path / "a" / name).unlink()
    run(asked, tmp_path / "a")
    found, expected = weights(tmp_path / "a"), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_workers_change_no_bit(plain, tmp_path):
    run(recipe(workers=2), tmp_path / "a")
    found, expected = weights(tmp_path / "a"), weights(plain("slimming"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
