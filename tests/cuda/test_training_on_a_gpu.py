"""Training on a GPU: every method, captured and not, in each precision, and from device to device."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

import netslim
from netslim import models
from netslim.data.sources import load
from netslim.training.loop.fit import Bench, fit
from netslim.training.loop.progress import Display, StageBar
from netslim.training.recipe.schema import (
    AugmentOptions,
    CentripetalOptions,
    DataOptions,
    GradualOptions,
    Measure,
    ModelOptions,
    OptimizerOptions,
    Recipe,
    ScheduleOptions,
    SlimmingOptions,
    SoftFilterOptions,
    Train,
    TrainerOptions,
)
from netslim.training.stages.environment import choose_precision
from netslim.training.stages.folder import StageFolder

pytestmark = pytest.mark.cuda

STAGE = Train(
    "train",
    epochs=2,
    optimizer=OptimizerOptions(lr=0.05, weight_decay=1e-3),
    schedule=ScheduleOptions("cosine", warmup=0.5),
)
STAGES = {
    "none": replace(STAGE, clip=1.0),
    "adamw": replace(STAGE, optimizer=OptimizerOptions("adamw", lr=0.01)),
    "l1": replace(STAGE, sparsity=SlimmingOptions(strength=0.01)),
    "smooth_l1": replace(STAGE, sparsity=SlimmingOptions(strength=0.01, penalty="smooth_l1")),
    "proximal": replace(
        STAGE, sparsity=SlimmingOptions(strength=0.01, penalty="proximal", pace=2.0)
    ),
    "soft_filter": replace(STAGE, sparsity=SoftFilterOptions(rate=0.25)),
    "centripetal": replace(STAGE, sparsity=CentripetalOptions(target=0.5, strength=0.1)),
    "gradual": replace(
        STAGE,
        sparsity=SlimmingOptions(strength=0.01),
        gradual=GradualOptions(budget=netslim.Budget(cut_macs=0.4), steps=1, end=0.5),
    ),
    "mask": STAGE,
}
PRECISIONS = ["float32", "bf16", "fp16"]


@pytest.fixture(scope="module")
def digits():
    return load("digits", subset=330)  # ten batches of 32, and a short one


class Dropping(nn.Module):
    """Random numbers of its own beside those of the data."""

    def __init__(self):
        super().__init__()
        self.layers = models.build("zoo:vgg", layers=[16, "M", 16], in_channels=1)

    def forward(self, images):
        return self.layers(nn.functional.dropout(images, 0.1, self.training))


def network(kind=None):
    torch.manual_seed(0)
    if kind is not None:
        return kind()
    return models.build("zoo:vgg", layers=[16, "M", 16], in_channels=1)


def trained(gpu, digits, folder, stage, *, net=None, precision="float32", mask=None, **trainer):
    """The network, the figures of its epochs and what was said."""
    options = TrainerOptions(device="cuda", tensorboard=False, **trainer)
    data = DataOptions("digits", batch_size=32, augment=AugmentOptions(pad=1))
    recipe = Recipe(
        "gpu", "A test", data, ModelOptions("zoo:vgg"), (stage, Measure("measure")), trainer=options
    )
    said = StringIO()
    bench = Bench(recipe, digits, gpu, precision, Display(Console(file=said)))
    net = net or network()
    folder.mkdir(exist_ok=True)
    history = fit(bench, net, stage, StageFolder(folder, 0, stage), 7, mask=mask)
    rows = [{key: row[key] for key in row if key != "seconds"} for row in history.rows]
    return net, rows, said.getvalue()


def masked(net):
    graph = netslim.trace(net, torch.randn(2, 1, 8, 8))
    return netslim.select(graph, netslim.score(graph, net), netslim.Budget(cut_channels=0.25))


def same(found, expected):
    assert found[1] == expected[1]
    state = found[0].state_dict()
    for name, value in expected[0].state_dict().items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("method", STAGES)
def test_captured_steps_give_the_bits_of_others(gpu, digits, tmp_path, method):
    nets = [network(), network()]
    mask = masked(nets[0]) if method == "mask" else None
    plain, captured = (
        trained(
            gpu, digits, tmp_path / str(graph), STAGES[method], net=net, mask=mask,
            precision="bf16", deterministic=True, graph=graph,
        )
        for net, graph in zip(nets, (False, True), strict=True)
    )  # fmt: skip
    assert "captured" not in captured[2]
    same(captured, plain)
    first, last = (row["train_loss"] for row in captured[1])
    assert last < first


def test_dropout_of_a_captured_step_goes_on_as_that_of_others(gpu, digits, tmp_path):
    plain, captured = (
        trained(gpu, digits, tmp_path / str(graph), STAGE, net=network(Dropping), deterministic=True, graph=graph)
        for graph in (False, True)
    )  # fmt: skip
    assert "captured" not in captured[2]
    same(captured, plain)


def interrupted(gpu, digits, folder, stage, **trainer):
    """As Ctrl-C after an epoch."""

    def stopping(shown, row):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StageBar, "epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            trained(gpu, digits, folder, stage, **trainer)


def test_one_that_is_interrupted_goes_on_to_the_same_bits(gpu, digits, tmp_path):
    stage, how = STAGES["gradual"], {"deterministic": True, "graph": True}
    whole = trained(gpu, digits, tmp_path / "whole", stage, **how)
    interrupted(gpu, digits, tmp_path / "a", stage, **how)
    same(trained(gpu, digits, tmp_path / "a", stage, **how), whole)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_learns_the_same(gpu, digits, tmp_path, precision):
    found = trained(gpu, digits, tmp_path, STAGES["l1"], precision=precision, graph=True)
    expected = trained(gpu, digits, tmp_path / "exact", STAGES["l1"], deterministic=True)
    assert found[1][-1]["train_loss"] == pytest.approx(expected[1][-1]["train_loss"], rel=0.05)
    assert ("fp16" in found[2]) == (precision == "fp16")  # not captured, and it says so
    assert all(value.dtype != torch.half for value in found[0].state_dict().values())


def test_a_run_goes_on_on_the_other_device(gpu, digits, tmp_path):
    cpu, stage = torch.device("cpu"), STAGES["adamw"]
    expected = trained(cpu, digits, tmp_path / "whole", stage)[1]
    for name, first, then in (("down", gpu, cpu), ("up", cpu, gpu)):
        interrupted(first, digits, tmp_path / name, stage)
        rows = trained(then, digits, tmp_path / name, stage)[1]
        assert rows[-1]["train_loss"] == pytest.approx(expected[-1]["train_loss"], rel=0.02)


class Waits(Dropping):
    """Its forward pass looks at a number."""

    def forward(self, images):
        found = self.layers(images)
        return found * (2 if float(found.detach().sum()) == 0 else 1)


class Draws(Dropping):
    """Its forward pass draws on the CPU."""

    def forward(self, images):
        return self.layers(images) * (1 + torch.rand(1).item())


@pytest.mark.parametrize(("kind", "why"), [(Waits, "line"), (Draws, "")])
def test_what_cannot_be_captured_is_told_and_trained_as_ever(gpu, digits, tmp_path, kind, why):
    plain, captured = (
        trained(gpu, digits, tmp_path / str(graph), STAGE, net=network(kind), deterministic=True, graph=graph)
        for graph in (False, True)
    )  # fmt: skip
    same(captured, plain)
    if gpu.type == "cuda":
        told = [line for line in captured[2].splitlines() if "not captured" in line]
        assert len(told) == 1
        assert why in told[0]


def test_what_a_gpu_does_where_nothing_is_said(gpu, digits, tmp_path):
    options = TrainerOptions()
    if gpu.type == "cuda":
        assert choose_precision(options, gpu) == "bf16"  # since Ampere
    _, rows, said = trained(gpu, digits, tmp_path, STAGE, precision=choose_precision(options, gpu))
    assert "captured" not in said
    assert [row["epoch"] for row in rows] == [1, 2]
