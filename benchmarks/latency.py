"""Promised against measured latency, the share of the MACs against the share of the time, and what
the table is for.

For each network and backend a latency table is measured, and 40 % of the latency is cut (criterion
l2, allocation "cost", which weighs score lost against milliseconds saved). The cut network and the
original are timed side by side: did the promise come true? The same channels' scores then meet the
MACs of that network without a table: with as many MACs, is the network that was cut for time the
faster one? Medians with quartiles; a difference inside the quartiles is called none. A network that
is finished is not measured again.

    python benchmarks/latency.py [--networks resnet50 zoo:resnet56 ...] [--backends eager
    onnxruntime] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import torch
from _common import RESULTS, record, show
from torch import nn

import netslim
from netslim import Budget
from netslim.measure import Latency

NETWORKS = (
    "resnet50",
    "vgg16_bn",
    "mobilenet_v2",
    "resnet18",
    "densenet121",
    "efficientnet_b0",
    "zoo:resnet56",
)
BACKENDS = ("eager", "onnxruntime")
CUT = 0.4
WAYS = ("original", "for latency", "for MACs")


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights and batch-norm statistics, and one image of the size it is
    known for.
    """
    torch.manual_seed(0)
    model = netslim.models.build(name if ":" in name else f"torchvision:{name}")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval(), torch.randn(1, 3, *((32, 32) if name.startswith("zoo:") else (224, 224)))


def measure(name: str, backend: str, rounds: int, cache: bool) -> dict[str, Any]:
    """One row: the promise, what was measured, and the same MACs without a table."""
    model, x = network(name)
    graph = netslim.trace(model, x)
    scores = netslim.score(graph, model, "l2")
    started = time.perf_counter()
    table = netslim.latency_table(model, graph, x, backend=backend, cache=cache)
    seconds = time.perf_counter() - started
    plan = netslim.select(graph, scores, Budget(cut_latency=CUT), latency=table, allocation="cost")
    quick = netslim.prune(model, plan)
    macs = [netslim.cost(one, x).macs for one in (model, quick)]
    small = netslim.prune(
        model, netslim.select(graph, scores, Budget(max_macs=macs[1]), allocation="cost")
    )
    found = netslim.latency(
        dict(zip(WAYS, (model, quick, small), strict=True)),
        x,
        backend=backend,
        repeats=rounds,
        budget_seconds=120,
    )
    promised = [table.ms(graph), table.ms(netslim.trace(quick, x))]
    return {
        "table_seconds": round(seconds, 1),
        "table_error": table.error,
        "promised_ms": promised,
        "measured_ms": {way: spread(one) for way, one in found.items()},
        "macs": dict(zip(WAYS, (*macs, netslim.cost(small, x).macs), strict=True)),
        "promised_share": promised[1] / promised[0],
        "measured_share": found["for latency"].median_ms / found["original"].median_ms,
        "macs_share": macs[1] / macs[0],
    }


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
    measured = row["measured_ms"]
    error = row["promised_share"] / row["measured_share"] - 1
    return (
        name,
        *(
            f"{measured[w]['median']:.3g} ({measured[w]['low']:.3g} to {measured[w]['high']:.3g})"
            for w in WAYS[:2]
        ),
        f"{row['promised_ms'][1]:.3g}",
        f"{row['promised_share']:.1%}",
        f"{row['measured_share']:.1%}",
        f"{error:+.1%}",
        f"{row['macs_share']:.1%}",
        verdict(row),
        f"{row['table_error']:.1%}",
        f"{row['table_seconds']:.0f}",
    )


COLUMNS = (
    "network", "original "
               "ms", "cut ms", "promised "
                               "ms", "promised", "measured", "off by", "MACs", "time at equal MACs",
    "table's error", "table s",
)  # fmt: skip


def finished(settings: dict[str, Any]) -> dict[str, Any]:
    """The rows of an earlier run with the same settings."""
    path = RESULTS / "latency.json"
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    return (
        before["rows"] if all(before.get(key) == value for key, value in settings.items()) else {}
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--backends", nargs="+", default=BACKENDS)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--fresh", action="store_true", help="measure finished networks and tables again"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {"cut_latency": CUT, "rounds": options.rounds, "threads": options.threads}
    rows = {} if options.fresh else finished(settings)
    for backend in options.backends:
        for name in options.networks:
            key = f"{name}, {backend}"
            if key not in rows:
                rows[key] = measure(name, backend, options.rounds, not options.fresh)
                record("latency", {**settings, "rows": rows})
            print(key, *line("", rows[key])[1:], sep="  ", flush=True)
    show(
        f"cut_latency={CUT}: promised and measured (medians, quartiles)",
        COLUMNS,
        [line(k, r) for k, r in rows.items()],
    )
    print(record("latency", {**settings, "rows": rows}))


if __name__ == "__main__":
    main()
