"""Slim the network I already have: weights that others wrote, by every command that takes a MODEL."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import netslim
from netslim import models
from netslim.cli import main
from netslim.models import checkpoint
from places import REPOSITORY

KWARGS = {"layers": [8, "M", 12], "in_channels": 1}
NET = ["zoo:vgg", "--model.layers", "[8, M, 12]", "--model.in_channels", "1"]
ONE = ["--trainer.threads", "1"]
DATA = ["--data", "digits", *ONE]
INPUT = ["--input", "1", "8", "8"]
QUICK = ["--trainer.limit_batches", "2", "--trainer.tensorboard", "false", "--epochs", "1"]
STILL = ["--lr", "1e-9", "--momentum", "0", "--optimizer.nesterov", "false"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with weights for ten classes and for four."""
    monkeypatch.chdir(tmp_path)
    for classes, file in ((10, "mine.pth"), (4, "four.pth")):
        torch.save({"state_dict": network(classes).state_dict()}, file)
    return tmp_path


def network(classes: int = 10) -> nn.Module:
    torch.manual_seed(classes)
    made = models.build("zoo:vgg", num_classes=classes, **KWARGS)
    made(torch.randn(16, 1, 8, 8))
    return made.eval()


def go(*arguments: object) -> None:
    assert main([str(item) for item in arguments]) == 0


def told(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(item) for item in arguments]) == 1
    return capsys.readouterr().err.strip()


def test_every_command_takes_weights_that_others_wrote(capsys):
    mine = [*NET, "--weights", "mine.pth"]
    go("inspect", *mine, *INPUT)
    go("prune", *mine, *INPUT, "--cut-channels", "0.5", "--out", "small.safetensors")
    go("evaluate", *mine, *DATA, "--json", "--data.mean", "[0.5]", "--data.std", "[0.5]")
    go("export", *mine, *INPUT, "--out", "mine.pt2")
    go("bench", *mine, *INPUT, "--repeats", "5")
    go("finetune", *mine, *DATA, *QUICK, "--out", "tuned.safetensors")
    go("sensitivity", *mine, *DATA, "--ratios", "0.5", "--limit-images", "50", "--out", "explored")
    images = torch.randn(2, 1, 8, 8)
    exported = torch.export.load("mine.pt2").module()
    assert torch.allclose(exported(images), network()(images), atol=1e-5)
    # From here on neither name nor weights are needed.
    Path("mine.pth").unlink()
    for file in ("small.safetensors", "tuned.safetensors"):
        assert "weights_file" not in checkpoint.read(file)[0]["constructor"]["kwargs"]
        go("evaluate", file, *DATA)
    kept = models.build("small.safetensors")
    assert kept.features[0].out_channels < 8


def test_search_goes_on_with_weights_of_others(capsys):
    mine = [*NET, "--weights", "mine.pth", *DATA, "--out", "found"]
    search = ["search", *mine, "--max-drop", "99", "--tries", "1", "--epochs", "0"]
    go(*search)
    found = json.loads(Path("found/search.json").read_text())
    assert found["best"] is not None
    torch.save(network(10).double().state_dict(), "mine.pth")
    assert "begun with other settings" in told(capsys, *search)


def test_what_netslim_saved_without_a_constructor(capsys):
    small = netslim.slim(
        network(), torch.randn(2, 1, 8, 8), budget=netslim.Budget(cut_channels=0.5)
    )
    netslim.save(small, "small.safetensors")
    said = told(capsys, "evaluate", "small.safetensors", *DATA)
    assert "name the network, with --weights small.safetensors beside it" in said
    go("evaluate", *NET, "--weights", "small.safetensors", *DATA, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == sum(p.numel() for p in small.parameters())
    assert found["size_bytes"] == Path("small.safetensors").stat().st_size


def test_foreign_files_as_a_model_tell_the_way(capsys):
    said = told(capsys, "evaluate", "mine.pth", *DATA)
    assert "name the network, with --weights mine.pth beside it" in said


def test_own_modules_have_weights_too(here, capsys):
    (here / "own_net.py").write_text(
        "from netslim import models\n"
        "def net():\n"
        f"    return models.build('zoo:vgg', num_classes=10, **{KWARGS!r})\n"
    )
    go("prune", "own_net:net", "--weights", "mine.pth", *INPUT, "--cut-channels", "0.5",
       "--out", "small.safetensors")  # fmt: skip
    go("bench", "own_net:net", "small.safetensors", "--weights", "mine.pth", *INPUT,
       "--repeats", "5")  # fmt: skip
    sys.modules.pop("own_net")


def test_training_puts_a_new_classifier_in_and_says_so(capsys):
    four = [*NET, "--weights", "four.pth"]
    go("train", *four, *DATA, *QUICK, *STILL, "--out", "ten.safetensors")
    said = capsys.readouterr().err
    assert "note: four.pth has a classifier of 4 classes: " in said
    ten, before = models.build("ten.safetensors").eval(), network(4)
    assert ten(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert torch.allclose(ten.features[0].weight, before.features[0].weight, atol=1e-5)


@pytest.mark.parametrize("command", ["evaluate", "prune", "sensitivity"])
def test_nothing_else_does(command, capsys):
    more = {"prune": ["--cut-channels", "0.5", "--out", "a.safetensors"]}.get(command, [])
    if command == "sensitivity":
        more = ["--out", "explored"]
    said = told(capsys, command, *NET, "--weights", "four.pth", *DATA, *more)
    assert "four.pth has a classifier of 4 classes (classifier" in said
    assert "build the network with --model.num_classes 4" in said
    assert "(netslim train, or --model.new_head true)" in said


def test_trained_scales_are_kept(capsys):
    train = ["train", *NET, "--weights", "mine.pth", *DATA, *QUICK, *STILL]
    go(*train, "--sparsity.method", "network_slimming", "--out", "sparse.safetensors")
    scales = models.build("sparse.safetensors").features[1].weight
    assert scales.mean() > 0.9  # and not 0.5, as those of a fresh network are set to


def test_weights_of_several_networks_in_order(capsys):
    bench = ["bench", *NET[:1], *NET, *INPUT, "--repeats", "5"]
    go(*bench, "--weights", "mine.pth", "--weights", "mine.pth")
    said = told(capsys, *bench, "--weights", "mine.pth")
    assert "--weights is given 1 times for 2 networks by name" in said


def test_missing_and_wrong_files_are_one_line(capsys):
    for file, why in (("none.pth", "cannot read none.pth"), ("junk.pth", "junk.pth is no whole")):
        Path("junk.pth").write_bytes(b"junk" * 100)
        said = told(capsys, "evaluate", *NET, "--weights", file, *DATA)
        assert said.startswith(f"netslim: {why}")
        assert len(said.splitlines()) == 1


def test_said_twice(capsys):
    both = ["--weights", "mine.pth", "--model.weights_file", "mine.pth"]
    assert main(["evaluate", *NET, *both, *DATA]) == 2
    assert "say the same" in capsys.readouterr().err


def test_nobody_says_how_images_were_normalised(capsys):
    go("evaluate", *NET, "--weights", "mine.pth", *DATA)
    assert "note: mine.pth does not say how its images were normalised" in capsys.readouterr().out
    go(
        "evaluate",
        *NET,
        "--weights",
        "mine.pth",
        *DATA,
        "--data.mean",
        "[0.5]",
        "--data.std",
        "[0.5]",
    )
    assert "normalised" not in capsys.readouterr().out


RECIPE = """
name: mine
title: mine
data: {name: digits}
model: {name: "zoo:vgg", layers: [8, M, 12], in_channels: 1, weights_file: mine.pth}
trainer: {threads: 1, tensorboard: false, limit_batches: 2}
stages:
  - {kind: finetune, epochs: 1}
  - {kind: prune, criterion: l1, budget: {cut_channels: 0.5}}
  - {kind: measure, latency: false}
"""


def test_a_run_needs_the_weights_until_its_first_stage_is_finished():
    Path("mine.yaml").write_text(RECIPE)
    go("run", "mine.yaml", "--out", "out")
    before = Path("out/02-prune/model.safetensors").read_bytes()
    for folder in ("out/02-prune", "out/03-measure"):
        shutil.rmtree(folder)
    for file in ("mine.pth", "out/results.json"):
        Path(file).unlink()
    go("run", "mine.yaml", "--out", "out")
    assert Path("out/02-prune/model.safetensors").read_bytes() == before


def test_fetched_weights_of_other_classes_are_trained_first(monkeypatch, capsys):
    from torchvision.models import _api

    torch.manual_seed(0)
    state = models.build("torchvision:squeezenet1_1").state_dict()
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: dict(state))
    mine = ["torchvision:squeezenet1_1", "--model.weights", "IMAGENET1K_V1", *DATA]
    mine += ["--data.image_size", "32", "--batch-size", "16"]
    assert "for 1000 classes, and 10 are wanted" in told(capsys, "evaluate", *mine)
    go("train", *mine, *QUICK, "--out", "ten.safetensors")
    assert "a new classifier starts untrained" in capsys.readouterr().err
    kwargs = checkpoint.read("ten.safetensors")[0]["constructor"]["kwargs"]
    assert kwargs == {"num_classes": 10}


def test_the_commands_of_the_document_run(here, capsys):
    text = (REPOSITORY / "docs" / "own-network.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    (here / "mynet.py").write_text(next(block for kind, block in blocks if kind == "python"))
    torch.save(models.build("mynet:net").state_dict(), "mine.pth")
    commands = [line for kind, block in blocks if kind == "console" for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        go(*shlex.split(command)[1:], "--trainer.limit_batches", "2")
    sys.modules.pop("mynet")
