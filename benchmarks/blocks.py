"""Whole blocks against channels alone: accuracy after equal fine-tuning, at equal measured latency.

A ResNet-20 (with projections) and a MobileNetV2 of half width are trained on a part of CIFAR-10,
and cut to a share of their measured milliseconds, by plans that may drop blocks and by plans that
may not, all else alike: criterion obs on ten batches, allocation "cost" by a latency table, made up
for by least squares with fresh statistics. For each way the least share of the table's latency is
cut with which the measured time is reached, by bisection with both networks timed side by side.
Choices look at training images alone; the test set is looked at once for each row. Times want a
quiet machine.

    python benchmarks/blocks.py
    python benchmarks/blocks.py --backends eager --networks resnet20 --seeds 0

A run that was stopped goes on row by row. Where channels alone cannot reach the time, the row says
how far they get.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from _common import record, show
from _study import SMALL, Study, recipe
from torch import nn

import netslim
from netslim import Budget, Limits
from netslim.errors import PlanError
from netslim.training.stages.folder import write_json

NETWORKS = {
    "resnet20": {"name": "zoo:resnet20", "shortcut": "B", "width": 0.5},
    "mobilenet_v2": {"name": "torchvision:mobilenet_v2", "width_mult": 0.5, "num_classes": 10},
}
BACKENDS = ("eager", "onnxruntime")
WAYS = {"with blocks": True, "channels alone": False}
IMAGES = 8  # timed at once
LEFT = 0.6  # of the milliseconds
PROBES = 6
SCALE = replace(SMALL, subset=3_000, epochs=8, recovery=3)


def study_of(network: str, seed: int, data: str, work: Path) -> Study:
    """One seed of one network."""
    made = recipe(SCALE, seed, data, model=dict(NETWORKS[network]), stages={})
    return Study(SCALE, seed, made, work / network)


class Cutting:
    """One trained network and one backend: what plans take, in milliseconds of the clock."""

    def __init__(self, study: Study, base: nn.Module, backend: str, work: Path) -> None:
        self.base, self.backend = base, backend
        self.images = study.example[:1].expand(IMAGES, *study.example.shape[1:]).contiguous()
        self.batches = list(study.bench.batches(10))
        graph = netslim.trace(base, self.images)
        self.table = netslim.latency_table(base, graph, self.images, backend=backend, cache=False)

    def cut(self, share: float, blocks: bool) -> nn.Module:
        """Without so much of the latency that the table foretells; the clock is asked in `fitting`,
        of networks that may have any widths, so that both ways take as much time.
        """
        limits = Limits(blocks=blocks, round_to=1)
        return netslim.slim(
            self.base, self.images, budget=Budget(cut_latency=share), batches=self.batches,
            latency=self.table, limits=limits, check_latency=False,
        )  # fmt: skip

    def left(self, small: nn.Module) -> float:
        """The share of the milliseconds that a network takes, both timed in turn."""
        pair = {"whole": self.base, "small": small}
        found = netslim.latency(
            pair, self.images, backend=self.backend, repeats=60, budget_seconds=8, threads=1
        )
        return found["small"].median_ms / found["whole"].median_ms

    def fitting(self, blocks: bool) -> tuple[nn.Module, float, float]:
        """The least cut that is quick enough: (network, share asked of the table, share left).

        Where none is, the quickest.
        """
        low, high = 0.0, 0.95
        best: tuple[nn.Module, float, float] | None = None
        quickest: tuple[nn.Module, float, float] | None = None
        for _ in range(PROBES):
            share = (low + high) / 2
            try:
                small = self.cut(share, blocks)
            except PlanError:  # so much cannot go
                high = share
                continue
            found = small, share, self.left(small)
            if quickest is None or found[2] < quickest[2]:
                quickest = found
            if found[2] <= LEFT:
                best, high = found, share
            else:
                low = share
        answer = best or quickest
        assert answer is not None
        return answer


def row(study: Study, cutting: Cutting, way: str) -> dict[str, Any]:
    """Cut, fine-tune, measure."""
    small, share, left = cutting.fitting(WAYS[way])
    after_cut = study.accuracy(small, "validation")
    tuned = study.trained("tune", f"{cutting.backend}-{way}", small.train())
    whole, cost = (netslim.cost(one, study.example[:1]) for one in (cutting.base, tuned))
    past = netslim.surgery.history.history(tuned)
    return {
        "way": way,
        "backend": cutting.backend,
        "seed": study.seed,
        "cut_latency": round(share, 4),
        "latency": round(left, 4),
        "reached": left <= LEFT,
        "blocks": [] if past is None else [block.name for block in past.dropped.blocks],
        "macs": cost.macs / whole.macs,
        "params": cost.params / whole.params,
        "before": study.accuracy(cutting.base, "validation"),
        "after_cut": after_cut,
        "validation": study.accuracy(tuned, "validation"),
        "test": study.accuracy(tuned, "test"),
    }


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, in percent."""
    found = []
    for network in NETWORKS:
        for backend in BACKENDS:
            for way in WAYS:
                key = network, backend, way
                mine = [r for r in rows if (r["network"], r["backend"], r["way"]) == key]
                if mine:
                    found.append(dict(zip(("network", "backend", "way"), key, strict=True)))
                    found[-1] |= {"seeds": len(mine), "reached": sum(r["reached"] for r in mine)}
                    for name in ("latency", "macs", "params", "before", "after_cut", "test"):
                        values = [100 * r[name] for r in mine]
                        spread = stdev(values) if len(values) > 1 else None
                        found[-1][name] = [round(mean(values), 2), spread and round(spread, 2)]
    return found


def cell(average: float, deviation: float | None) -> str:
    return f"{average:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--data", default="hf:cifar10")
    parser.add_argument("--work", type=Path, default=Path("runs/blocks"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows_folder = options.work / "rows"
    rows_folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for network in options.networks:
            study = study_of(network, seed, options.data, options.work)
            base = study.trained("base", "base", study.fresh())
            for backend in options.backends:
                paths = {
                    way: rows_folder / f"{network}-{backend}-{way}-{seed}.json" for way in WAYS
                }
                missing = [way for way, path in paths.items() if not path.exists()]
                cutting = partial(Cutting, study, base, backend, options.work)
                made = cutting() if missing else None
                for way in missing:
                    assert made is not None
                    found = {"network": network, **row(study, made, way)}
                    write_json(paths[way], found)
                    print(json.dumps(found), file=sys.stderr, flush=True)
    rows = [json.loads(path.read_text()) for path in sorted(rows_folder.glob("*.json"))]
    entries = table(rows)
    columns = ("latency", "macs", "params", "before", "after_cut", "test")
    lines = [
        (f"{e['network']}, {e['backend']}", e["way"], f"{e['reached']} of {e['seeds']}",
         *(cell(*e[name]) for name in columns))
        for e in entries
    ]  # fmt: skip
    heads = (
        "",
        "way",
        "quick enough",
        "ms left",
        "MACs left",
        "params left",
        "before",
        "cut",
        "test",
    )
    show("Percent, mean and standard deviation over seeds", heads, lines)
    scale = {**vars(SCALE), "images": IMAGES, "latency": LEFT}
    record("blocks", {"scale": scale, "table": entries, "rows": rows})


if __name__ == "__main__":
    main()
