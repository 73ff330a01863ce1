"""bf16, fp16, channels_last, compilation and workers with every method: the switch changes how it is computed,
and hardly what comes out; a run that is killed under it goes on to the same bits.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from netslim.errors import RecipeError, TrainingError
from netslim.training import run
from netslim.training.loop.checkpoints import SealedCheckpoints
from netslim.training.loop.progress import silent
from netslim.training.loop.sharded import blocks, check_parts
from netslim.training.recipe.reading import parse_recipe

METHODS = {
    "slimming": {"sparsity": {"method": "network_slimming", "strength": 0.01}},
    "proximal": {
        "sparsity": {"method": "network_slimming", "strength": 0.01, "penalty": "proximal"}
    },
    "smooth_l1": {
        "sparsity": {"method": "network_slimming", "strength": 0.01, "penalty": "smooth_l1"}
    },
    "soft_filter": {"sparsity": {"method": "soft_filter", "rate": 0.25}},
    "centripetal": {"sparsity": {"method": "centripetal", "target": 0.5}},
    "gradual": {"gradual": {"budget": {"cut_macs": 0.3}, "steps": 1}},
    "mask": {},
}
MASKED = {"kind": "prune", "mode": "mask", "criterion": "l1", "budget": {"cut_channels": 0.25}}
SWITCHES = {
    "bf16": {"precision": "bf16"},
    "channels_last": {"channels_last": True},
    "fp16": {"precision": "fp16"},
    "compile": {"compile": True},
}
BOTH = {"both": {"precision": "bf16", "channels_last": True}}


def recipe(method="slimming", workers=0, subset=128, **trainer):
    train = {"kind": "train", "epochs": 2, "optimizer": {"lr": 0.02}, **METHODS[method]}
    return parse_recipe(
        {
            "name": "switches",
            "title": "A test",
            "data": {"name": "digits", "batch_size": 64, "subset": subset, "workers": workers},
            "model": {"name": "zoo:vgg", "layers": [8, "M", 8], "in_channels": 1},
            "trainer": {"threads": 1, "device": "cpu", "tensorboard": False, **trainer},
            "stages": [
                *[MASKED] * (method == "mask"),
                train,
                {"kind": "measure", "latency": False},
            ],
        }
    )


def left_by(folder, name):
    return next(folder.glob(f"*-train/{name}"))


def weights(folder):
    return load_file(left_by(folder, "model.safetensors"))


def losses(folder):
    return json.loads(left_by(folder, "stage.json").read_text())["curves"]["train_loss"]


@pytest.fixture
def compiled(monkeypatch):
    """Every network that is compiled; by a backend that needs no compiler of C++."""
    found, compiling = [], torch.compile

    def traced(network, **options):
        found.append(network)
        return compiling(network, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    return found


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


# The three penalties differ in what they do between two steps, which has to do with the precision
# alone: one of them goes through the other switches for all.
CASES = [
    (method, switch)
    for method in METHODS
    for switch in SWITCHES
    if method not in ("proximal", "smooth_l1") or switch in ("bf16", "fp16")
]


@pytest.mark.parametrize(("method", "switch"), CASES)
def test_a_switch_hardly_changes_what_comes_out(plain, compiled, tmp_path, method, switch):
    asked = recipe(method, **SWITCHES[switch])
    run(asked, tmp_path / "a")
    found, expected = losses(tmp_path / "a"), losses(plain(method))
    assert found == pytest.approx(expected, rel=0.02)
    assert found != expected or switch in ("channels_last", "compile")
    # A network that was cut on the way is compiled again.
    assert len(compiled) == (1 + (method == "gradual")) * (switch == "compile")
    kinds = {name: value.dtype for name, value in weights(plain(method)).items()}
    assert {name: value.dtype for name, value in weights(tmp_path / "a").items()} == kinds


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("switch", [*SWITCHES, *BOTH])
def test_one_that_is_killed_goes_on_to_the_same_bits(tmp_path, switch):
    asked, display = recipe(**(SWITCHES | BOTH)[switch]), silent()
    run(asked, tmp_path / "whole")

    def say(text):
        if text.startswith("01-train  epoch 1"):
            raise KeyboardInterrupt

    display.say = say
    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path / "a", display=display)
    content = SealedCheckpoints().load_checkpoint(tmp_path / "a/01-train/last.ckpt")
    assert content["epoch"] == 0
    assert ("scale" in content.get("MixedPrecision", {})) == (switch == "fp16")
    run(asked, tmp_path / "a")
    found, expected = weights(tmp_path / "a"), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Rooted(nn.Module):
    """Its loss is finite, and its gradients are not."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, images):
        found = self.layer(images.flatten(1))
        return found + (found - found).sqrt()


def test_gradients_that_always_overflow_are_told(tmp_path):
    """In float16 such steps are left out, so that nothing would be learnt, without a word."""
    tree = recipe(precision="fp16", subset=256).to_dict()
    tree["stages"][0] |= {"epochs": 20, "sparsity": None}
    tree["model"] = {"name": f"{__name__}:Rooted"}
    with pytest.raises(
        TrainingError,
        match=r"gradients overflow float16 at every step, however small the loss is made \(its scale "
        r"is 1\.5\d*e-05\), in numbers that end at 65504: try --trainer\.precision bf16 or float32",
    ):
        run(parse_recipe(tree), tmp_path)


@pytest.mark.parametrize(
    ("trainer", "told"),
    [
        ({"strategy": "fsdp", "compile": True}, r"trainer\.compile: .* false with strategy fsdp"),
        ({"strategy": "fsdp", "precision": "fp16"}, r"trainer\.precision: .* with strategy fsdp"),
        ({"sync_batchnorm": True, "compile": True}, r"trainer\.compile: .* with sync_batchnorm"),
        ({"timeout": 0}, r"trainer\.timeout: is 0.* must be minutes, above 0, to 1,000,000"),
    ],
)
def test_switches_that_exclude_each_other_are_refused(trainer, told):
    with pytest.raises(RecipeError, match=told):
        recipe(**trainer)


def test_a_pytorch_that_cannot_train_in_parts_on_the_cpu_is_told(monkeypatch):
    """As 2.6, whose streams of the CPU have no events."""
    monkeypatch.setattr(torch.cpu, "Stream", object)
    check_parts(torch.device("cuda"))
    with pytest.raises(
        TrainingError, match=r"trainer\.strategy: .* the strategy ddp, GPUs, or a new"
    ):
        check_parts(torch.device("cpu"))


def test_blocks_are_the_innermost_that_are_large_enough():
    first, second, tied = (nn.Linear(8, 8, bias=False) for _ in range(3))
    pair = nn.Sequential(second, nn.Linear(2, 2))
    listed = nn.ModuleList([nn.ModuleList([pair]), tied])
    network = nn.ModuleDict({"a": nn.Sequential(first, nn.ReLU()), "b": listed, "c": tied})
    twin = nn.Linear(8, 8, bias=False)
    twin.weight = tied.weight
    network["twin"] = twin
    assert list(blocks(network, 64)) == [second, first]
    assert list(blocks(network, 65)) == [pair]


def test_workers_change_no_bit(plain, tmp_path):
    run(recipe(workers=2), tmp_path / "a")
    found, expected = weights(tmp_path / "a"), weights(plain("slimming"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
