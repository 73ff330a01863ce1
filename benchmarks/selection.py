"""How long a choice takes: `netslim.select` for a budget of MACs, from scores to a finished plan.

    python benchmarks/selection.py

The goal for ResNet-152 is 50 ms. Scores are those of the criterion l2 on untrained weights; the
time of the criterion and of the trace is not part of it.
"""

from __future__ import annotations

import argparse
import time

import torch
import torchvision
from _common import record, show, spread

import netslim

NETWORKS = ("resnet50", "resnet152")
ALLOCATIONS = ("global", "uniform", "isomorphic", "cost")


def samples(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each allocation, one after the other in each round."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    graph = netslim.trace(model, torch.zeros(1, 3, 224, 224))
    scores = netslim.score(graph, model, "l2")
    budget = netslim.Budget(cut_macs=0.5)
    found: dict[str, list[float]] = {allocation: [] for allocation in ALLOCATIONS}
    for _ in range(rounds):
        for allocation, times in found.items():
            started = time.perf_counter()
            netslim.select(graph, scores, budget, allocation=allocation)
            times.append(1e3 * (time.perf_counter() - started))
    return {allocation: spread(times) for allocation, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    results = {name: samples(name, options.rounds) for name in NETWORKS}
    rows = [
        [name, allocation, f"{ms['median']:.1f}", f"{ms['low']:.1f} to {ms['high']:.1f}"]
        for name, found in results.items()
        for allocation, ms in found.items()
    ]
    show(
        "Milliseconds to choose half of the MACs",
        ["network", "allocation", "median", "quartiles"],
        rows,
    )
    record("selection", {"cut_macs": 0.5, "ms": results})


if __name__ == "__main__":
    main()
