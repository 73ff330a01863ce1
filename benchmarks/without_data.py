"""What to do where there is neither data nor labels: validation accuracy right after the cut, and
for some ways on the digits after two epochs of fine-tuning, too, alike for all.

The networks are those of `compensation.py`. The default takes noise for data that has the
statistics of the batch normalisation (`netslim.methods.noise`); beside it stand criteria of the
weights alone, what each part of the default does, and the default with ten batches of training
images, for what data is worth. The test set is not looked at.

    python benchmarks/without_data.py                            # both data sets, three seeds
    python benchmarks/without_data.py --data digits --seeds 0
    python benchmarks/without_data.py --table                    # of the rows that are there

A run that was stopped goes on row by row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from _common import record, show
from compensation import BATCHES, SPLITS, STUDIES, accuracy
from torch import nn

import netslim
from netslim.selection import Compensation
from netslim.training.commands.step import carry_out, step
from netslim.training.loop.progress import Display
from netslim.training.stages.folder import RunFolder, write_json
from netslim.training.stages.runner import Runner

Row = Callable[[nn.Module, Runner, str, float], dict[str, Any]]  # of a way and a cut
CUTS = (0.5, 0.75)
EPOCHS, RATE = 2, 0.02  # of fine-tuning
WAYS: dict[str, dict[str, Any]] = {
    "l2, uniform (the default before)": {"criterion": "l2", "allocation": "uniform"},
    "bn_scale, uniform": {"criterion": "bn_scale", "allocation": "uniform"},
    "lamp, global": {"criterion": "lamp", "allocation": "global"},
    "noise, nothing made up for": {"compensation": None},
    "noise, linear": {"compensation": Compensation("linear")},
    "noise (the default)": {},
    "with data": {},
}
TUNED = ("l2, uniform (the default before)", "noise (the default)", "with data")


def trained(
    data: str, work: Path, source: str, name: str, kwargs: dict[str, Any], training: dict[str, Any],
    seed: int,
) -> tuple[nn.Module, Runner]:  # fmt: skip
    """A trained network, read from the work folder where it is there, and what reads its data."""
    settings = {"seed": seed, "trainer": {"threads": 1, "tensorboard": False}, "data": SPLITS[data]}
    overrides = {f"model.{key}": json.dumps(value) for key, value in kwargs.items()}
    recipe = step("train", name, source, training, overrides, settings=settings)
    out = work / f"{data}-{name}-{seed}.safetensors".replace(":", "-")
    if not out.exists():
        carry_out(recipe, out)
    runner = Runner(recipe, RunFolder(Path()), Display(), "")
    return netslim.models.build(out).eval(), runner


def tuned(network: nn.Module, runner: Runner, epochs: Iterable[int] = range(EPOCHS)) -> nn.Module:
    """After a short training, in the same order for all."""
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=5e-4)
    loader = runner.bench.loader("train", 0)
    network.train()
    for epoch in epochs:
        loader.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    return network.eval()


def row(network: nn.Module, runner: Runner, way: str, cut: float) -> dict[str, Any]:
    batches = list(runner.bench.batches(BATCHES)) if way == "with data" else None
    example = torch.zeros_like(runner.example()[:1])
    small = netslim.slim(
        network, example, budget=netslim.Budget(cut_macs=cut), batches=batches, **WAYS[way]
    )
    left = netslim.cost(small, example).macs / netslim.cost(network, example).macs
    after = accuracy(small, runner)
    found = {"way": way, "cut_macs": cut, "macs": left, "after_cut": after}
    if way in TUNED and runner.recipe.data.name == "digits":
        found["tuned"] = accuracy(tuned(small, runner), runner)
    return found


def rows_of(
    make: Callable[[], tuple[nn.Module, Runner]], files: Path, ways: Iterable[str],
    wanted: Collection[str], row: Row,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The rows of one seed of one network: those of all ``ways`` that are there, and those that are
    ``wanted``, which ``row`` makes.
    """
    made = None
    for cut in CUTS:
        for way in ways:
            path = files.with_name(f"{files.name}-{way}-{cut}.json".replace(" ", "-"))
            if way in wanted and not path.exists():
                made = made or make()
                write_json(path, {"uncut": accuracy(*made), **row(*made, way, cut)})
            if path.exists():
                found = json.loads(path.read_text())
                yield {key: value for key, value in found.items() if key != "digest"}


def all_rows(
    options: argparse.Namespace, folder: str, ways: Iterable[str], wanted: Collection[str], row: Row
) -> list[dict[str, Any]]:
    """The rows of all networks and seeds that are asked for, which are kept in a ``folder`` of the
    work folder; for a table no others are made.
    """
    if options.table:
        wanted = ()
    (options.work / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for data in options.data:
        source = options.cifar if data == "CIFAR-10" else data
        for name, kwargs, training in STUDIES[data]:
            for seed in options.seeds:
                make = partial(trained, data, options.work, source, name, kwargs, training, seed)
                files = options.work / folder / f"{data}-{name}-{seed}".replace(":", "-")
                where = {"data": data, "network": name, "seed": seed}
                rows += [{**where, **found} for found in rows_of(make, files, ways, wanted, row)]
    return rows


def summary(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Mean and standard deviation over seeds, a row for each way."""
    table = []
    names = dict.fromkeys((r["data"], r["network"], r["cut_macs"], r["way"]) for r in rows)
    for key in names:
        mine = [r for r in rows if (r["data"], r["network"], r["cut_macs"], r["way"]) == key]
        cells = [
            cell([r[name] for r in mine if name in r]) for name in ("uncut", "after_cut", "tuned")
        ]
        data, network, cut, way = key
        table.append([f"{data} {network}", f"{1 - cut:.0%}", way, *cells, str(len(mine))])
    return table


def cell(figures: list[float]) -> str:
    """Their mean and standard deviation."""
    if len(figures) < 2:
        return "".join(f"{figure:.1f}" for figure in figures)
    return f"{mean(figures):.1f} ± {stdev(figures):.1f}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What both this study and `output_error.py` are asked."""
    parser.add_argument("--data", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--cifar", default="hf:cifar10", help="where CIFAR-10 is")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/without_data"))
    parser.add_argument("--table", action="store_true", help="only write the table")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    rows = all_rows(parser.parse_args(), "rows", WAYS, WAYS, row)
    table = summary(rows)
    columns = ["network", "MACs left", "way", "uncut", "after the cut", "fine-tuned", "seeds"]
    show("Validation accuracy, percent", columns, table)
    record("without_data", {"rows": rows, "table": table})


if __name__ == "__main__":
    main()
