"""Recipes of a stage or two on small networks and the digits, carried out, and what came out of
them.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import netslim
from netslim.training import run
from netslim.training.loop.progress import Display
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import Recipe
from netslim.training.stages.folder import RunFolder
from netslim.training.stages.runner import Runner

VGG = {"name": "zoo:vgg", "layers": [8, "M", 16], "in_channels": 1}
RESNET = {"name": "zoo:resnet", "depth": 8, "width": 0.5, "in_channels": 1}
DIGITS = {"name": "digits", "batch_size": 64}  # 21 steps an epoch, where something is to be learnt
FEW = {**DIGITS, "subset": 256}  # four steps, where it matters that there are some
FIRST, SECOND = "features.0", "features.4"  # the groups of VGG, of 8 and 16 channels
TRAIN: dict[str, Any] = {"kind": "train", "epochs": 1, "optimizer": {"lr": 0.05}}
STILL: dict[str, Any] = {"lr": 1e-12, "momentum": 0, "nesterov": False, "weight_decay": 0}
HALF = {"kind": "prune", "criterion": "l1", "budget": {"cut_channels": 0.5}}


def recipe(*stages: dict[str, Any], **changes: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "small",
            "title": "A test",
            "data": FEW,
            "model": VGG,
            "trainer": {"threads": 1, "device": "cpu", "tensorboard": False},
            "stages": [*stages, {"kind": "measure", "latency": False}],
            **changes,
        }
    )


@dataclass(frozen=True)
class Done:
    """A finished run."""

    folder: Path
    results: dict[str, Any]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["key"]: row for row in self.results["rows"]}

    @property
    def widths(self) -> list[int]:
        return [layer["after"] for layer in self.results["widths"]]

    def stage(self, label: str) -> dict[str, Any]:
        return json.loads((self.folder / label / "stage.json").read_text())

    def network(self, label: str) -> nn.Module:
        return netslim.models.build(self.folder / label / "model.safetensors", trust=True).eval()

    def plan(self, label: str) -> netslim.PruningPlan:
        return netslim.PruningPlan.from_json((self.folder / label / "plan.json").read_text())

    def column(self, label: str, key: str) -> list[float]:
        with open(self.folder / label / "metrics.csv", newline="") as file:
            return [float(row[key]) for row in csv.DictReader(file)]


def carry_out(folder: Path, *stages: dict[str, Any], **changes: Any) -> Done:
    return Done(
        folder,
        run(recipe(*stages, **changes), folder, display=Display(Console(file=io.StringIO()))),
    )


def batches_of(
    folder: Path, count: int, *stages: dict[str, Any], **changes: Any
) -> list[tuple[Tensor, Tensor]]:
    """The training batches that the stages of such a recipe get."""
    return list(
        Runner(recipe(*stages, **changes), RunFolder(folder), Display(), "").bench.batches(count)
    )


def images(count: int = 32, size: int = 8) -> Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(5))


def outputs(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(images())


def kept(plan: netslim.PruningPlan) -> dict[str, tuple[int, ...]]:
    return {name: cut.kept for name, cut in plan.groups.items()}


def sparse(**options: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "name": "sparse",
        "epochs": 2,
        "optimizer": {"lr": 0.05},
        "sparsity": options,
    }


def scales(network: nn.Module) -> Tensor:
    return torch.cat(
        [m.weight.detach() for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    )
