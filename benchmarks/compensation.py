"""What to do about that which removed channels emit: every fold, with and without batch-norm
statistics taken anew, right after the cut and with no training since.

Half of the MACs go, chosen by what is the default with data (criterion obs, allocation cost), so
that only the compensation differs. Accuracy is that of the validation split; the test set is not
looked at.

    python benchmarks/compensation.py                       # both data sets, three seeds
    python benchmarks/compensation.py --data digits         # a minute or two
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from _common import RESULTS, record, show
from torch import nn

import netslim
from netslim.selection.options import FoldWay
from netslim.training.commands.step import carry_out, step
from netslim.training.loop import fit
from netslim.training.loop.progress import Display
from netslim.training.stages.folder import RunFolder
from netslim.training.stages.runner import Runner

FOLDS: tuple[FoldWay | None, ...] = (None, "constant", "linear", "sequential")
BATCHES = 10
STUDIES: dict[str, list[tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "digits": [
        ("zoo:resnet20", {"width": 0.5, "shortcut": "B"}, {"epochs": 12}),
        ("zoo:vgg", {"layers": [16, 16, "M", 32, 32, "M", 64, 64]}, {"epochs": 8}),
    ],
    "CIFAR-10": [("zoo:vgg16", {"width": 0.125}, {"epochs": 6})],
}
SPLITS = {
    "digits": {"validation": 0.3, "batch_size": 64},
    "CIFAR-10": {"validation": 0.2, "batch_size": 64, "subset": 5_000},
}


def trained(
    data: str, source: str, name: str, kwargs: dict[str, Any], training: dict[str, Any], seed: int
) -> tuple[nn.Module, Runner]:
    """A trained network, and what reads its data."""
    settings = {"seed": seed, "trainer": {"threads": 1, "tensorboard": False}, "data": SPLITS[data]}
    overrides = {f"model.{key}": json.dumps(value) for key, value in kwargs.items()}
    recipe = step("train", name, source, training, overrides, settings=settings)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "base.safetensors"
        carry_out(recipe, out)
        network = netslim.models.build(out).eval()
    return network, Runner(recipe, RunFolder(Path()), Display(), "")


def accuracy(network: nn.Module, runner: Runner) -> float:
    loader = runner.bench.loader("validation")
    found = fit.evaluate(network, loader, len(runner.data.classes), torch.device("cpu"), None)
    return 100 * found.accuracy


def rows_of(
    data: str, source: str, name: str, kwargs: dict[str, Any], training: dict[str, Any], seed: int
) -> Iterator[dict[str, Any]]:
    network, runner = trained(data, source, name, kwargs, training, seed)
    where = {"data": data, "network": name, "seed": seed}
    yield {**where, "fold": "uncut", "recalibrate": False, "accuracy": accuracy(network, runner)}
    batches = list(runner.bench.batches(BATCHES))
    example = runner.example()[:1]
    graph = netslim.trace(network, example)
    scores = netslim.score(graph, network, "obs", batches=batches)
    plan = netslim.select(graph, scores, netslim.Budget(cut_macs=0.5), allocation="cost")
    # By the verbs: `slim` leaves out what does not bring outputs nearer.
    for fold, anew in product(FOLDS, (False, True)):
        cut, whole = plan, network
        if fold is not None:
            folding = netslim.surgery.compensate(network, plan, batches, fold)
            cut, whole = folding.plan, folding.model
        small = netslim.prune(whole, cut)
        if anew:
            netslim.surgery.recalibrate(small, batches)
        figure = accuracy(small, runner)
        yield {**where, "fold": fold or "none", "recalibrate": anew, "accuracy": figure}
    half = netslim.Budget(cut_macs=0.5)
    judged = netslim.slim(network, example, budget=half, batches=batches)
    figure = accuracy(judged, runner)
    yield {**where, "fold": "as slim judges", "recalibrate": True, "accuracy": figure}


def summary(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Mean and standard deviation over seeds, a row for each way."""
    found: dict[tuple[str, str, str, bool], list[float]] = {}
    for row in rows:
        key = (row["data"], row["network"], row["fold"], row["recalibrate"])
        found.setdefault(key, []).append(row["accuracy"])
    table = []
    for (data, network, fold, anew), figures in found.items():
        anew_text = "anew" * anew or "kept"
        spread = stdev([*figures, *figures[:1]][: max(2, len(figures))])
        figure = f"{mean(figures):.1f} ± {spread:.1f}"
        table.append([f"{data} {network}", fold, anew_text, figure, str(len(figures))])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--cifar", default="hf:cifar10", help="where CIFAR-10 is")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    known = RESULTS / "compensation.json"
    if known.exists():
        rows = [r for r in json.loads(known.read_text())["rows"] if r["data"] not in options.data]
    for data, seed in product(options.data, options.seeds):
        for name, kwargs, training in STUDIES[data]:
            source = {"digits": "digits", "CIFAR-10": options.cifar}[data]
            rows += rows_of(data, source, name, kwargs, training, seed)
            record("compensation", {"rows": rows})
    columns = ("network", "fold", "statistics", "validation accuracy", "seeds")
    show("Half of the MACs cut, no training since", columns, summary(rows))


if __name__ == "__main__":
    main()
