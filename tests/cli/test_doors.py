"""A file never acts: SECURITY.md says what is promised, and here each door is tried."""

from __future__ import annotations

import json
import resource
import sys

import pytest
import torch
from torch import nn

import netslim
from netslim import models
from netslim.cli import main
from netslim.errors import CheckpointError, PlanError
from netslim.surgery.plan import PruningPlan

NET = {"hidden": [4], "in_features": 64, "num_classes": 10}
INPUT = ["--input", "64"]
DATA = ["--data", "digits"]
OWN = """
from pathlib import Path
from torch import nn
def net(hidden=4, word=""):
    Path("called").touch()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a module of one's own, and files that would leave ``called`` there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("own_nets", None)


def names(made: dict, network: nn.Module | None = None) -> str:
    """A checkpoint whose header names this constructor."""
    network = network or models.build("zoo:mlp", **NET)
    return str(netslim.save(network, "x.safetensors", constructor=made))


def own_file(**kwargs) -> str:
    network = models.build("own_nets:net")
    path = netslim.save(
        network, "own.safetensors", constructor={"name": "own_nets:net", "kwargs": kwargs}
    )
    (path.parent / "called").unlink()
    return str(path)


COMMAND = {"name": "os:system", "kwargs": {"command": "touch called"}}
DOORS = {
    "inspect": ["inspect", "x.safetensors", *INPUT],
    "bench": ["bench", "x.safetensors", *INPUT],
    "export": ["export", "x.safetensors", *INPUT, "--out", "x.pt2"],
    "evaluate": ["evaluate", "x.safetensors", *DATA],
    "prune": ["prune", "x.safetensors", *INPUT, "--cut-channels", "0.5", "--out", "o.safetensors"],
    "prune by data": [
        *("prune", "x.safetensors", *DATA, "--cut-channels", "0.5", "--out", "o.safetensors"),
    ],
    "unmask": ["prune", "x.safetensors", *INPUT, "--by", "mask", "--out", "o.safetensors"],
    "sensitivity": ["sensitivity", "x.safetensors", *DATA, "--out", "o"],
    "search": ["search", "x.safetensors", *DATA, "--max-drop", "1", "--out", "o"],
    "train": ["train", "x.safetensors", *DATA, "--out", "o.safetensors"],
    "finetune": ["finetune", "x.safetensors", *DATA, "--out", "o.safetensors"],
    "teacher": [
        *("train", "zoo:mlp", *DATA, "--model.in_features", "64", "--out", "o.safetensors"),
        *("--teacher", "x.safetensors"),
    ],
    "run": ["run", "r.yaml", "--out", "o"],
    "run with a teacher": ["run", "t.yaml", "--out", "o"],
}
RECIPE = """
name: r
title: r
data: {name: digits}
model: {name: %s}
stages: [{kind: train, epochs: 1%s}, {kind: measure}]
"""


@pytest.mark.parametrize("door", DOORS)
def test_no_command_calls_what_a_file_names(door, here, capsys):
    names(COMMAND)
    (here / "r.yaml").write_text(RECIPE % ("x.safetensors", ""))
    teacher = ", distill: {teacher: x.safetensors}"
    (here / "t.yaml").write_text(RECIPE % ("'zoo:mlp', in_features: 64", teacher))
    assert main(DOORS[door]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "os:system" in said
    assert "--trust" in said
    assert not (here / "called").exists()


@pytest.mark.parametrize("verb", ["build", "build_uncut"])
def test_no_verb_calls_what_a_file_names(verb, here):
    with pytest.raises(CheckpointError, match=r"import and call os:system.*trust=True"):
        getattr(models, verb)(names(COMMAND))
    assert not (here / "called").exists()


def test_a_network_in_hand_needs_no_constructor(here):
    fresh = models.build("zoo:mlp", **NET)
    netslim.load(fresh, names(COMMAND))
    assert not (here / "called").exists()


@pytest.mark.parametrize(
    "made",
    [
        {"name": "own_nets:net"},
        {"name": "builtins:exec", "kwargs": {"trust": True}},
        {"name": "timm:resnet10t", "kwargs": {"pretrained": True}},
        {"name": "timm:resnet10t", "kwargs": {"checkpoint_path": "evil.pth"}},
        {"name": "timm:resnet10t", "kwargs": {"pretrained_cfg": {"url": "http://127.0.0.1/x"}}},
        {"name": "timm:resnet10t", "kwargs": {"pretrained_cfg_overlay": {"file": "evil.pth"}}},
        {"name": "timm:resnet10t", "kwargs": {"act_layer": "relu"}},
        {"name": "torchvision:resnet18", "kwargs": {"weights": "DEFAULT"}},
        {"name": "torchvision:resnet18", "kwargs": {"num_classes": "10"}},
        {"name": "y.safetensors"},
        {"name": "zoo"},
        {"name": ["zoo:mlp"]},
        {"name": "zoo:mlp", "kwargs": [1]},
    ],
    ids=str,
)
def test_what_a_constructor_may_not_say(made):
    with pytest.raises(CheckpointError):
        models.build(names(made))


@pytest.mark.parametrize(
    "made",
    [
        {"name": "zoo:mlp", "kwargs": {"hidden": [30000, 30000]}},
        {"name": "zoo:mlp", "kwargs": {"hidden": [1] * 10**5}},
        {"name": "zoo:mlp", "kwargs": {"width": 1e300}},
        {"name": "zoo:resnet", "kwargs": {"depth": 6 * 10**17 + 2, "width": 0.001}},
        {"name": "zoo:preresnet", "kwargs": {"depth": 9 * 10**17 + 2, "width": 0.001}},
        {"name": "zoo:densenet", "kwargs": {"depth": 3 * 10**17 + 4, "width": 0.001}},
        {"name": "zoo:vgg", "kwargs": {"layers": [4], "pool": 10**6}},
        {"name": "torchvision:resnet18", "kwargs": {"num_classes": 10**9}},
        {"name": "torchvision:vit_b_16", "kwargs": {"image_size": 16 * 10**6}},
    ],
    ids=lambda made: str(made)[:60],
)
def test_what_a_constructor_may_take_is_bounded_by_its_file(made):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(netslim.NetslimError):
        models.build(names(made, nn.Linear(4, 4)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def test_a_plan_cannot_make_a_small_file_large():
    """A plan that says how long the axes were before a cut is the file's word, too."""
    network = nn.Sequential(nn.Linear(4, 4))
    path = names({"name": "zoo:mlp", "kwargs": {"hidden": [30000, 30000]}}, network)
    header = models.checkpoint.read(path)[0]
    rows = [
        {"tensor": "0.weight", "axis": axis, "size": 30000, "kept": [[0, 4]], "role": "channel"}
        for axis in (0, 1)
    ]
    plan = {"format": 1, "fingerprint": "", "groups": {}, "tensors": rows, "patches": []}
    forged = {**header, "plan": json.dumps({**plan, "notes": []})}
    write(forged, {"0.weight": torch.zeros(4, 4)})
    with pytest.raises(CheckpointError, match="holds 16 numbers and would have a network of 900,0"):
        models.build("x.safetensors")


def write(header: dict, tensors: dict) -> None:
    """A checkpoint as a forger writes it, with the right digest."""
    from safetensors.torch import save_file

    from netslim.models.checkpoint import _digest

    text = json.dumps(header)
    entry = json.dumps({"header": text, "digest": _digest(text, tensors)})
    save_file(tensors, "x.safetensors", {"netslim": entry})


@pytest.mark.parametrize(
    "change",
    [
        {"shared": {"a": "no such"}},
        {"shared": {"weight": "weight"}},
        {"shared": []},
        {"constructor": "os:system"},
        {"plan": 3},
        {"plan": "[" * 10**5},
        {"plan": json.dumps({"format": 1, "groups": [], "tensors": [], "patches": []})},
        {"fingerprint": None},
        {"metadata": None},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_forged_header_is_refused(change):
    sound = {"format": 1, "fingerprint": "", "plan": None, "constructor": None}
    tensors = {"weight": torch.zeros(2, 2)}
    write({**sound, "shared": {}, "metadata": {}, **change}, tensors)
    with pytest.raises(CheckpointError):
        netslim.load(nn.Linear(2, 2, bias=False), "x.safetensors")


def test_a_plan_of_endless_runs_is_refused():
    row = {"tensor": "w", "axis": 0, "size": 10**12, "kept": [[0, 10**12]], "role": "channel"}
    plan = {"format": 1, "fingerprint": "", "groups": {}, "tensors": [row], "patches": []}
    with pytest.raises(PlanError, match="damaged"):
        PruningPlan.from_json(json.dumps({**plan, "notes": []}))


@pytest.mark.parametrize("size", [[10**6, 10**6], [8, 10**9]])
def test_images_are_not_brought_to_any_size_that_a_file_names(size, capsys):
    said = {"mean": [0.5], "std": [0.5], "size": size, "resize": True, "classes": ["a"]}
    network, made = models.build("zoo:mlp", **NET), models.constructor("zoo:mlp", NET)
    netslim.save(network, "x.safetensors", constructor=made, metadata={"preprocessing": said})
    assert main(["evaluate", "x.safetensors", *DATA]) == 1
    assert "preprocessing says size" in capsys.readouterr().err


# ---------------------------------------------------------------- what the user says counts


def test_own_factories_are_called_on_the_users_word(here, capsys):
    path = own_file()
    with pytest.raises(CheckpointError, match="--trust"):
        models.build(path)
    assert not (here / "called").exists()
    assert len(models.build(path, trust=True)) == 4
    assert len(models.build(path, trust=["own_nets:net"])) == 4
    with pytest.raises(CheckpointError, match="--trust"):
        models.build(path, trust=["own_nets:other"])
    assert main(["inspect", path, *INPUT, "--trust"]) == 0
    assert main(["evaluate", path, *DATA, "--trust"]) == 0
    capsys.readouterr()


def test_a_name_typed_in_the_same_command_is_the_users_word(capsys):
    path = own_file()
    quick = ["--seconds", "0.1", "--repeats", "5"]
    assert main(["bench", "own_nets:net", path, *INPUT, *quick]) == 0
    assert main(["bench", path, "zoo:mlp", "--model.in_features", "64", *INPUT, *quick]) == 1
    assert "--trust" in capsys.readouterr().err


def test_arguments_of_a_typed_name_are_numbers(here):
    path = own_file(word="somewhere")
    with pytest.raises(CheckpointError, match="with word='somewhere'"):
        models.build(path, trust=["own_nets:net"])
    assert len(models.build(path, trust=True)) == 4


def test_what_lies_around_hides_no_package(here, monkeypatch):
    """timm.py and torchvision.py in the current directory, where nobody typed their names."""
    pytest.importorskip("timm")
    for name in ("timm", "torchvision"):
        (here / f"{name}.py").write_text("from pathlib import Path\nPath('called').touch()\n")
        for module in [m for m in sys.modules if m == name]:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(here))])
    models.build("torchvision:squeezenet1_1", num_classes=2)
    models.build("timm:resnet10t", num_classes=2)
    assert not (here / "called").exists()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("zoo:resnet18", {"width": 0.1, "num_classes": 3}),
        ("zoo:vgg", {"layers": [4, "M", 6], "in_channels": 1}),
        ("zoo:preresnet", {"depth": 11, "width": 0.25, "add_selection": True}),
        ("torchvision:squeezenet1_1", {"num_classes": 4, "add_bn": True}),
        ("torchvision:mobilenet_v3_small", {"num_classes": 4, "width_mult": 0.25}),
        ("timm:resnet10t", {"num_classes": 4, "global_pool": "max"}),
    ],
)
def test_known_networks_need_nobodys_word(name, kwargs):
    network = models.build(name, **kwargs)
    path = netslim.save(network, "k.safetensors", constructor=models.constructor(name, kwargs))
    again = models.build(path).state_dict()
    assert all(torch.equal(again[key], value) for key, value in network.state_dict().items())
