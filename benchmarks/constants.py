"""What is not thrown away: accuracy right after a cut of 70 % of the channels, before any
fine-tuning.

Quarter-width VGG-16 networks, trained as in benchmarks/methods.py but with a penalty strong enough
for this cut, are cut plainly, with the constants of the removed channels folded into the next
layer, with batch-norm statistics re-estimated from 20 training batches, and with both. Accuracy is
that of the validation split.

    python benchmarks/constants.py [--seeds 0 1 2] [--work runs/methods]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev

from _common import record, show
from _study import SMALL, Study, nothing
from methods import study_of, with_options
from torch import nn

import netslim

CUT = 0.7
STRENGTH = 4e-3  # leaves about 70 % of the scales near zero
WAYS = ("before the cut", "cut", "cut, folded", "cut, recalibrated", "cut, folded, recalibrated")


def accuracies(study: Study) -> dict[str, float]:
    """Validation accuracy of one seed's network, in percent, each way."""
    stage = with_options(study.stages["slimming"], strength=STRENGTH)
    sparse = study.trained("slimming", "constants", study.fresh(), stage)
    graph = netslim.trace(sparse, study.example)
    plan = netslim.select(
        graph, netslim.score(graph, sparse, "bn_scale"), netslim.Budget(cut_channels=CUT)
    )
    folding = netslim.surgery.compensate(sparse, plan, list(study.bench.batches(10)), "constant")
    plain, folded = netslim.prune(sparse, plan), netslim.prune(folding.model, folding.plan)
    networks = [sparse, plain, folded, recalibrated(study, plain), recalibrated(study, folded)]
    return {
        way: 100 * study.accuracy(network, "validation")
        for way, network in zip(WAYS, networks, strict=True)
    }


def recalibrated(study: Study, network: nn.Module) -> nn.Module:
    """A copy whose batch-norm statistics come from 20 training batches."""
    graph = netslim.trace(network, study.example)
    copy = netslim.prune(network, nothing(graph))
    return netslim.surgery.recalibrate(copy, list(study.bench.batches(20))).eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", default="hf:cifar10")
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    options = parser.parse_args()
    found = [
        accuracies(study_of(SMALL, seed, options.data, options.work / "small"))
        for seed in options.seeds
    ]
    table = {way: [one[way] for one in found] for way in WAYS}
    spread = {way: stdev(values) if len(values) > 1 else 0.0 for way, values in table.items()}
    lines = [
        [way, f"{mean(values):.2f} ± {spread[way]:.2f}", *(f"{v:.2f}" for v in values)]
        for way, values in table.items()
    ]
    show(
        "Validation accuracy before fine-tuning, 70 % of the channels cut",
        ["", "mean", *map(str, options.seeds)],
        lines,
    )
    record(
        "constants",
        {"cut_channels": CUT, "strength": STRENGTH, "seeds": options.seeds, "accuracy": table},
    )


if __name__ == "__main__":
    main()
