"""A training step in one piece: the bits of Lightning's loop, however it is replayed."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from netslim.data.sources import load
from netslim.methods import adjustable
from netslim.training.loop import fit as fitting
from netslim.training.loop.captured import WARM_UP
from netslim.training.loop.fit import Bench, fit
from netslim.training.loop.progress import Display
from netslim.training.stages.folder import StageFolder
from stage_runs import recipe
from tape import Tape

METHODS = {
    "none": {"clip": 1.0, "schedule": {"name": "onecycle"}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.01}},
    "l1": {"sparsity": {"strength": 0.01}},
    "smooth_l1": {"sparsity": {"strength": 0.01, "penalty": "smooth_l1"}},
    "proximal": {"sparsity": {"strength": 0.01, "penalty": "proximal", "pace": 2.0}},
    "soft_filter": {"sparsity": {"method": "soft_filter", "rate": 0.25}},
    "centripetal": {"sparsity": {"method": "centripetal", "target": 0.5, "strength": 0.1}},
    "gradual": {
        "sparsity": {"strength": 0.01},
        "gradual": {"budget": {"cut_macs": 0.4}, "steps": 1, "end": 0.5},
    },
    "mask": {},
}
MASK = {"kind": "prune", "mode": "mask", "budget": {"cut_channels": 0.25}}
BATCHES = 9  # of 32, and a short one, in an epoch
COMPARED = ("train_loss", "penalty", "train_accuracy", "val_loss", "deviation", "macs_left", "lr")


class AsOnAGPU(Bench):
    """Rates and strengths are tensors, and one kernel moves all weights."""

    fused = True


@pytest.fixture(scope="module")
def digits():
    return load("digits", subset=BATCHES * 32 + 10)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(adjustable, "_FLOATS", ())


def asked(method, precision=None, **trainer):
    options = {"threads": 1, "device": "cpu", "tensorboard": False, **trainer}
    schedule = {"name": "cosine", "warmup": 0.5}
    train = {"kind": "train", "epochs": 2, "optimizer": {"lr": 0.05}, "schedule": schedule}
    data = {"name": "digits", "batch_size": 32, "augment": {"pad": 1}}
    model = {"name": "zoo:vgg", "layers": [8, "M", 8], "in_channels": 1}
    return recipe(train | METHODS[method], data=data, model=model, trainer=options)


def network():
    from netslim import models

    torch.manual_seed(0)
    return models.build("zoo:vgg", layers=[8, "M", 8], in_channels=1)


def trained(digits, folder, method, kind=Bench, stop=None, mask=None, **trainer):
    """Weights, figures and what was said."""
    made, said = asked(method, **trainer), StringIO()
    bench = kind(made, digits, torch.device("cpu"), "float32", Display(Console(file=said)))
    net, stage = network(), made.stages[0]
    if method == "mask":
        mask = masking(net)
    folder.mkdir(exist_ok=True)
    place = StageFolder(folder, 0, stage)
    if stop:
        fit(bench, net, replace(stage, epochs=stop), place, 7, mask=mask)
        net = network()
    history = fit(bench, net, stage, place, 7, mask=mask)
    figures = [{key: row[key] for key in COMPARED} for row in history.rows]
    return net.state_dict(), figures, said.getvalue()


def masking(net):
    import netslim

    graph = netslim.trace(net, torch.randn(2, 1, 8, 8))
    return netslim.select(graph, netslim.score(graph, net), netslim.Budget(cut_channels=0.25))


def same(found, expected):
    assert found[1] == expected[1]
    for name, value in expected[0].items():
        assert torch.equal(found[0][name], value), name


@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_one_piece_computes_what_the_loop_computes(digits, tmp_path, method):
    loop = trained(digits, tmp_path / "loop", method, graph=False)
    same(trained(digits, tmp_path / "whole", method, graph=True), loop)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("method", METHODS)
def test_a_replayed_tape_of_it_does_so(digits, tmp_path, monkeypatch, method):
    loop = trained(digits, tmp_path / "loop", method, AsOnAGPU, graph=False)
    tape = Tape()
    monkeypatch.setattr(fitting, "recorder", lambda device: tape)
    found = trained(digits, tmp_path / "whole", method, AsOnAGPU, graph=True)
    same(found, loop)
    # Recorded once, after a cut anew; all whole batches behind are replayed, and one to compare.
    assert tape.recorded == 1 + (method == "gradual")
    assert tape.replayed == 2 * BATCHES - WARM_UP * tape.recorded
    assert "not captured" not in found[2]
