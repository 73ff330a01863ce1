"""Weights from elsewhere: every common way of wrapping a state dict, and what does not fit."""

from __future__ import annotations

import argparse
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import netslim
from netslim import models
from netslim.errors import CheckpointError, RecipeError

NAME, KWARGS = "zoo:vgg", {"layers": [4, "M", 6], "in_channels": 1, "num_classes": 3}
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


BARE = """
from torch import nn
def net():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), *head)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def theirs(**changes) -> nn.Module:
    """A network whose statistics are not those of a fresh one."""
    torch.manual_seed(7)
    model = models.build(NAME, **KWARGS | changes)
    model(torch.randn(4, 1, 8, 8))
    return model.eval()


def filled(file="w.pth", **more) -> nn.Module:
    return models.build(NAME, weights_file=file, **KWARGS | more).eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    return torch.equal(one(IMAGES), other(IMAGES))


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


WAYS = {
    "plain": lambda model: model.state_dict(),
    "state_dict": lambda model: {"epoch": 3, "state_dict": model.state_dict(), "best": 0.5},
    "model": lambda model: {"model": model.state_dict(), "optimizer": {"state": {}}},
    "model_state_dict": lambda model: {"model_state_dict": model.state_dict()},
    "data parallel": lambda model: nn.DataParallel(model).state_dict(),
    "compiled": lambda model: prefixed(model.state_dict(), "_orig_mod."),
    "both": lambda model: {"model": prefixed(model.state_dict(), "module._orig_mod.")},
    "within": lambda model: {
        name.replace("features.", "features._orig_mod."): tensor
        for name, tensor in model.state_dict().items()
    },
    "lightning": lambda model: {
        "state_dict": {**prefixed(model.state_dict(), "model."), "loss.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
    },
    "average": lambda model: AveragedModel(model).state_dict(),
    "timm": lambda model: {"args": argparse.Namespace(lr=1), "state_dict": model.state_dict()},
    "old": lambda model: OrderedDict(
        (name, tensor)
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    ),
    "half": lambda model: {name: tensor.double() for name, tensor in model.state_dict().items()},
}


@pytest.mark.parametrize("way", WAYS)
def test_state_dicts_are_found_however_they_are_wrapped(way):
    model = theirs()
    torch.save(WAYS[way](model), "w.pth")
    assert same(filled(), model)


def test_averages_come_first_and_it_is_told():
    model, raw = theirs(), models.build(NAME, **KWARGS)
    torch.save({"state_dict": raw.state_dict(), "state_dict_ema": model.state_dict()}, "w.pth")
    said = []
    assert same(filled(say=said.append), model)
    assert said == ["the weights are those that w.pth holds as 'state_dict_ema', the averaged ones"]


def test_what_is_beside_the_network_is_told():
    model = theirs()
    torch.save(WAYS["lightning"](model), "w.pth")
    said = []
    filled(say=said.append)
    assert said == ["w.pth also holds loss.weight, which is left out"]


def test_safetensors_of_others_and_of_netslim():
    model = theirs()
    save_file(model.state_dict(), "foreign.safetensors")
    assert same(filled("foreign.safetensors"), model)
    small = netslim.slim(model, IMAGES, budget=netslim.Budget(cut_channels=0.5))
    netslim.save(small, "small.safetensors")
    again = filled("small.safetensors")
    assert same(again, small)
    assert again.features[0].out_channels < 4
    with pytest.raises(CheckpointError, match=r"with weights_file='small.safetensors' beside it"):
        models.build("small.safetensors")
    with pytest.raises(CheckpointError, match="was not written by netslim: name its network"):
        models.build("foreign.safetensors")
    with pytest.raises(RecipeError, match="leave out weights_file"):
        models.build("small.safetensors", weights_file="foreign.safetensors")


def test_insertions_come_after_weights_of_others_and_before_our_own(tmp_path):
    (tmp_path / "bare_nets.py").write_text(BARE)
    torch.manual_seed(1)
    bare = models.build("bare_nets:net").eval()
    torch.save(bare.state_dict(), "w.pth")
    normed = models.build("bare_nets:net", weights_file="w.pth", add_bn=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(normed(images), bare(images), atol=1e-6)
    netslim.save(normed, "normed.safetensors")
    again = models.build("bare_nets:net", weights_file="normed.safetensors", add_bn=True).eval()
    assert torch.equal(again(images), normed(images))
    sys.modules.pop("bare_nets")


def test_a_classifier_of_other_classes_starts_anew_on_request_alone():
    model = theirs(num_classes=10)
    torch.save(model.state_dict(), "w.pth")
    with pytest.raises(CheckpointError, match=r"classifier of 10 classes .*num_classes=10"):
        filled()
    said = []
    ours = filled(new_head=True, say=said.append)
    assert ours(IMAGES).shape == (2, 3)
    assert torch.equal(ours.features(IMAGES), model.features(IMAGES))
    assert said[0].startswith("w.pth has a classifier of 10 classes: ")


MISFITS = {
    "renamed": (
        lambda state: {name.replace("classifier", "fc"): value for name, value in state.items()},
        r"it lacks classifier.*did you mean 'fc.*; it has an unexpected fc\.",
    ),
    "wider": (
        lambda state: theirs(layers=[8, "M", 6]).state_dict(),
        r"features.0.weight is \(8, 1, 3, 3\), not \(4, 1, 3, 3\)",
    ),
    "deeper": (
        lambda state: theirs(layers=[4, "M", 6, 6]).state_dict(),
        "it has an unexpected features",
    ),
    "two networks": (
        lambda state: {**prefixed(state, "student."), **prefixed(state, "teacher.")},
        "several networks, under student., teacher.",
    ),
    "nothing": (lambda state: {"epoch": 3}, "no state dict .*'epoch'"),
    "a list": (lambda state: [1], "no state dict .*a list"),
}


@pytest.mark.parametrize("way", MISFITS)
@pytest.mark.parametrize("new_head", [False, True])
def test_what_does_not_fit_is_told_by_name(way, new_head):
    change, said = MISFITS[way]
    torch.save(change(theirs().state_dict()), "w.pth")
    with pytest.raises(CheckpointError, match=said):
        filled(new_head=new_head)


class Acts:
    def __reduce__(self):
        return print, ("it ran",)


def test_code_in_a_file_is_refused(capsys):
    torch.save({"state_dict": theirs().state_dict(), "extra": Acts()}, "w.pth")
    with pytest.raises(CheckpointError, match=r"is not opened; .*weights_only=False"):
        filled()
    torch.save(theirs(), "whole.pth")
    with pytest.raises(CheckpointError, match=r"holds netslim.*state.state_dict\(\)"):
        filled("whole.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_damaged_and_missing_files(file, tmp_path):
    with pytest.raises(CheckpointError, match=f"cannot read {file}: No such file"):
        filled(file)
    state = theirs().state_dict()
    torch.save(state, "w.pth")
    save_file(state, "w.safetensors")
    whole = (tmp_path / file).read_bytes()
    for keep in (0, 7, 40, len(whole) // 2):
        (tmp_path / file).write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match=file):
            filled(file)


def test_weights_as_a_model_tell_the_way():
    with pytest.raises(RecipeError, match=r"weights_file='mine.pth' beside it"):
        models.build("mine.pth")


# ---------------------------------------------------------------- fetched weights


def fetching(monkeypatch, network: nn.Module) -> None:
    """torchvision fetches the weights of this network."""
    from torchvision.models import _api

    state = network.state_dict()
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: dict(state))


def test_fetched_weights_with_other_classes_get_a_new_classifier(monkeypatch):
    learnt = models.build("torchvision:squeezenet1_1").eval()
    fetching(monkeypatch, learnt)
    said = {"weights": "IMAGENET1K_V1", "num_classes": 5}
    ours = models.build("torchvision:squeezenet1_1", **said).eval()
    images = torch.randn(1, 3, 64, 64)
    assert ours(images).shape == (1, 5)
    assert torch.equal(ours.features(images), learnt.features(images))
    record = models.constructor("torchvision:squeezenet1_1", said)
    assert record["kwargs"] == {"num_classes": 5}
    whole = models.build("torchvision:squeezenet1_1", weights="IMAGENET1K_V1").eval()
    assert torch.equal(whole(images), learnt(images))


def test_timm_gets_a_new_classifier_too():
    timm = pytest.importorskip("timm")
    learnt = timm.create_model("resnet10t")
    torch.save(learnt.state_dict(), "theirs.pth")
    overlay = {"file": "theirs.pth"}
    said = {"pretrained": True, "num_classes": 5, "pretrained_cfg_overlay": overlay}
    ours = models.build("timm:resnet10t", **said)
    assert torch.equal(ours.layer1[0].conv1.weight, learnt.layer1[0].conv1.weight)
    assert ours.num_classes == 5
    assert models.constructor("timm:resnet10t", said)["kwargs"] == {"num_classes": 5}


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("torchvision:vit_b_16", {"weights": "IMAGENET1K_SWAG_E2E_V1"}, {"image_size": 384}),
        (
            "torchvision:googlenet",
            {"weights": "DEFAULT"},
            {"transform_input": True, "aux_logits": False, "init_weights": False},
        ),
        ("timm:resnet18", {"pretrained": True, "checkpoint_path": "a.pth"}, {}),
        ("zoo:vgg", {"weights_file": "a.pth", "new_head": True, "width": 2}, {"width": 2}),
        ("mine:net", {"pretrained": True, "width": 2}, {"pretrained": False, "width": 2}),
        ("mine:net", {"weights": "a.pth"}, {"weights": None}),
    ],
)
def test_a_checkpoint_records_no_place_where_weights_are(name, given, kept):
    assert models.constructor(name, given)["kwargs"] == kept


@pytest.mark.parametrize("argument", ["pretrained=True", "weights='mine.pth'"])
def test_a_factory_that_reads_by_default_is_asked_for_nothing_by_a_checkpoint(tmp_path, argument):
    name, module = argument.partition("=")[0], f"default_{argument[:7]}"
    (tmp_path / f"{module}.py").write_text(
        f"import torch\nfrom bare_nets import net as bare\ndef net({argument}):\n"
        "    model = bare()\n"
        f"    if {name}:\n        model.load_state_dict(torch.load('mine.pth'))\n"
        "    return model\n"
    )
    (tmp_path / "bare_nets.py").write_text(BARE)
    torch.save(models.build("bare_nets:net").state_dict(), "mine.pth")
    model = models.build(f"{module}:net").eval()
    netslim.save(model, "x.safetensors", constructor=models.constructor(f"{module}:net", {}))
    (tmp_path / "mine.pth").unlink()
    images = torch.randn(1, 3, 16, 16)
    for trust in (True, [f"{module}:net"]):
        again = models.build("x.safetensors", trust=trust).eval()
        assert torch.equal(again(images), model(images))
    for one in (module, "bare_nets"):
        sys.modules.pop(one)


def test_a_factory_that_always_reads_says_what_to_change(tmp_path):
    (tmp_path / "always_nets.py").write_text(
        "import torch\nfrom bare_nets import net as bare\ndef net(weights='mine.pth'):\n"
        "    model = bare()\n"
        "    model.load_state_dict(torch.load(weights))\n"
        "    return model\n"
    )
    (tmp_path / "bare_nets.py").write_text(BARE)
    torch.save(models.build("bare_nets:net").state_dict(), "mine.pth")
    model = models.build("always_nets:net")
    netslim.save(model, "x.safetensors", constructor=models.constructor("always_nets:net", {}))
    models.build("x.safetensors", trust=True)  # the file is there, so it is read as before
    (tmp_path / "mine.pth").unlink()
    with pytest.raises(RecipeError, match=r"weights are in the checkpoint: .* argument pretrained"):
        models.build("x.safetensors", trust=True)
    for one in ("always_nets", "bare_nets"):
        sys.modules.pop(one)


def test_a_factory_that_reads_weights_tells_the_way(tmp_path):
    (tmp_path / "reading_nets.py").write_text(
        "import torch\nfrom bare_nets import net as bare\n"
        "def net(pretrained=False):\n"
        "    model = bare()\n"
        "    if pretrained:\n        model.load_state_dict(torch.load('mine.pth'))\n"
        "    return model\n"
    )
    (tmp_path / "bare_nets.py").write_text(BARE)
    said = {"pretrained": True}
    with pytest.raises(RecipeError, match=r"reads nothing, with weights_file=FILE"):
        models.build("reading_nets:net", **said)
    torch.save(models.build("bare_nets:net").state_dict(), "mine.pth")
    model = models.build("reading_nets:net", **said).eval()
    netslim.save(model, "x.safetensors", constructor=models.constructor("reading_nets:net", said))
    (tmp_path / "mine.pth").unlink()
    again = models.build("x.safetensors", trust=["reading_nets:net"]).eval()
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(again(images), model(images))
    for module in ("reading_nets", "bare_nets"):
        sys.modules.pop(module)
