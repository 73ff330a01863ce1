"""What was asked for, foretold and measured of latency; and what a table is for.

Of each network, in each backend, 40 % of the time is cut by `netslim.slim` (criterion l2, allocation
"cost", which weighs score lost against milliseconds saved): a table is measured, a cut is made by it
and timed, and made anew until it takes what was asked for. Then, in sessions of their own, the
original and the cut network are timed side by side: is the promise kept? The same channels' scores
then meet the MACs of that network without a table: with as many MACs, is the network that was cut
for time the faster one? Medians with quartiles; a difference inside the quartiles is called none. A
network that is finished is not measured again.

    python benchmarks/latency.py [--networks resnet50 zoo:resnet56 ...] [--backends eager
    onnxruntime onnxruntime-int8] [--threads 1] [--pixels 224] [--page docs/budgets.md]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, environment, record, show, write_page
from torch import nn

import netslim
from netslim import Budget
from netslim.errors import PlanError
from netslim.measure import Latency, LatencyTable
from netslim.measure.runtimes import TableBackend
from netslim.surgery.history import history

NETWORKS = (
    "resnet50",
    "vgg16_bn",
    "mobilenet_v2",
    "resnet18",
    "densenet121",
    "zoo:resnet56",
)
BACKENDS = ("eager", "onnxruntime", "onnxruntime-int8")
CUT = 0.4
WAYS = ("original", "for latency", "for MACs")


def network(name: str, pixels: int = 224) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights and batch-norm statistics, and one image: those of CIFAR for
    networks of netslim's own.
    """
    torch.manual_seed(0)
    model = netslim.models.build(name if ":" in name else f"torchvision:{name}")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    side = 32 if name.startswith("zoo:") else pixels
    return model.eval(), torch.randn(1, 3, side, side)


def measure(name: str, backend: TableBackend, rounds: int, pixels: int) -> dict[str, Any]:
    """One row: what was asked for, foretold and measured, and the same MACs without a table."""
    model, x = network(name, pixels)
    graph = netslim.trace(model, x)
    started = time.perf_counter()
    table = netslim.latency_table(model, graph, x, backend=backend, cache=False)
    seconds = time.perf_counter() - started
    quick = slimmed(model, x, Budget(cut_latency=CUT), table)
    loop = time.perf_counter() - started - seconds
    macs = [netslim.cost(one, x).macs for one in (model, quick)]
    small = slimmed(model, x, Budget(max_macs=macs[1]))
    found = netslim.latency(
        dict(zip(WAYS, (model, quick, small), strict=True)),
        x,
        backend=backend,
        repeats=rounds,
        budget_seconds=60,
    )
    plan = history(quick)
    assert plan is not None
    (told,) = (note for note in plan.notes if note.startswith("timed:"))
    return {
        "table_seconds": round(seconds, 1),
        "loop_seconds": round(loop, 1),
        "table_error": table.error,
        "steps": [note for note in plan.notes if note.startswith("round_to=")],
        "told": told,
        "foretold_share": table.ms(netslim.trace(quick, x)) / table.ms(graph),
        "measured_ms": {way: spread(one) for way, one in found.items()},
        "macs": dict(zip(WAYS, (*macs, netslim.cost(small, x).macs), strict=True)),
        "measured_share": found["for latency"].median_ms / found["original"].median_ms,
        "macs_share": macs[1] / macs[0],
    }


def slimmed(
    model: nn.Module, x: torch.Tensor, budget: Budget, table: LatencyTable | None = None
) -> nn.Module:
    """Cut by the norms of the filters, weighed against what they save."""
    return netslim.slim(
        model,
        x,
        budget=budget,
        criterion="l2",
        allocation="cost",
        compensation=None,
        latency=table,
    )


def spread(found: Latency) -> dict[str, float]:
    return {
        "median": found.median_ms,
        "low": found.low_ms,
        "high": found.high_ms,
        "samples": found.repeats,
    }


def verdict(row: dict[str, Any]) -> str:
    """Whether the network cut for time is the faster of two with the same MACs, beyond the
    quartiles.
    """
    quick, small = row["measured_ms"]["for latency"], row["measured_ms"]["for MACs"]
    change = f"{quick['median'] / small['median'] - 1:+.1%}"
    apart = quick["high"] < small["low"] or small["high"] < quick["low"]
    return change if apart else f"{change}, within the spread"


def line(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    if "refused" in row:
        return (name, row["refused"], *[""] * (len(COLUMNS) - 2))
    measured = row["measured_ms"]
    return (
        name,
        *(
            f"{measured[w]['median']:.3g} ({measured[w]['low']:.3g} to {measured[w]['high']:.3g})"
            for w in WAYS[:2]
        ),
        f"{row['foretold_share']:.1%}",
        f"{row['measured_share']:.1%}",
        f"{row['measured_share'] / (1 - CUT) - 1:+.1%}",
        f"{row['macs_share']:.1%}",
        verdict(row),
        f"{row['table_error']:.1%}",
        f"{row['table_seconds']:.0f} + {row['loop_seconds']:.0f}",
    )


COLUMNS = (
    "network, backend",
    "original ms",
    "cut ms",
    "foretold",
    "measured",
    "off by",
    "MACs",
    "time at equal MACs",
    "table's error",
    "table + cuts, s",
)


def finished(settings: dict[str, Any]) -> dict[str, Any]:
    """The rows of an earlier run with the same settings."""
    path = RESULTS / "latency.json"
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    return (
        before["rows"] if all(before.get(key) == value for key, value in settings.items()) else {}
    )


def page_table(rows: dict[str, Any]) -> str:
    """What of the time was measured where 60 % was asked for, a network a line."""
    found = ["| network | " + " | ".join(BACKENDS) + " |", "|---" * (len(BACKENDS) + 1) + "|"]
    for name in NETWORKS:
        cells = [rows.get(f"{name}, {backend}") for backend in BACKENDS]
        found.append(f"| {name.removeprefix('zoo:')} | " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(found)


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    if "refused" in row:
        return "refused: no cut is so fast"
    shares = f"{row['measured_share']:.1%}, {row['macs_share']:.0%} of the MACs"
    return f"{shares} ({row['foretold_share']:.1%} foretold)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pixels", type=int, default=224, help="height and width of the images")
    parser.add_argument("--fresh", action="store_true", help="measure finished networks again")
    parser.add_argument("--page", type=Path, help="put the table into this page")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {
        "cut_latency": CUT,
        "rounds": options.rounds,
        "threads": options.threads,
        "pixels": options.pixels,
    }
    rows = {} if options.fresh else finished(settings)
    for backend in options.backends:
        for name in options.networks:
            key = f"{name}, {backend}"
            if key not in rows:
                try:
                    rows[key] = measure(name, backend, options.rounds, options.pixels)
                except PlanError as refusal:
                    rows[key] = {"refused": str(refusal)}
                rows[key]["processor"] = environment()["processor"]
                record("latency", {**settings, "rows": rows})
            print(key, *line("", rows[key])[1:], sep="  ", flush=True)
    show(
        f"cut_latency={CUT}: foretold and measured (medians, quartiles)",
        COLUMNS,
        [line(k, r) for k, r in rows.items()],
    )
    print(record("latency", {**settings, "rows": rows}))
    if options.page is not None:
        write_page(options.page, page_table(rows))


if __name__ == "__main__":
    main()
