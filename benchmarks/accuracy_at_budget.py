"""Accuracy at a budget: the same trained network, cut to half and to a quarter of its MACs in
several ways.

ResNet-20 (with projections: torch-pruning breaks zero-padded shortcuts) and a quarter-width VGG-16
on CIFAR-10; every way starts from the same base network and is fine-tuned alike. torch-pruning's
sparse pruners train the base for some epochs more, with their penalty, before they cut, as its
documentation advises; for the others it is trained for as many epochs more without one. Choices use
the validation split; the test set is looked at once for each row, at its end.

    python benchmarks/accuracy_at_budget.py                        # sized for 90 minutes on two
    cores python benchmarks/accuracy_at_budget.py --full                 # whole CIFAR-10, full
    width, for a GPU python benchmarks/accuracy_at_budget.py --seeds 0 --only netslim uniform
    --networks vgg16 python benchmarks/accuracy_at_budget.py --table                # write the
    table of the rows that are there

A run that was stopped goes on row by row, and within a row from its last epoch. Several processes
may share the work: give each other seeds or networks.

- netslim: `netslim.slim(base, example, budget=..., batches=...)` with ten batches of training
  images, nothing else
- netslim, linear fit: the same, with the fold `linear` alone
- uniform: the same share of every layer, filters with the smallest Euclidean norms first
- global l1: one threshold over all layers' sums of absolute weights
- tp:MagnitudePruner: GroupMagnitudeImportance, the same ratio everywhere, as in torch-pruning's
  README
- tp:BNScalePruner, tp:GroupNormPruner: sparse training with `update_regularizer` and `regularize`
  first, then one global threshold, as in torch-pruning's benchmark scripts
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from _common import record, show
from _study import FULL, SMALL, Scale, Study, least, nothing, possible, proved, recipe, regularised
from torch import nn

import netslim
from netslim.selection import Compensation
from netslim.training.stages.folder import write_json

NETWORKS = {"resnet20": {"name": "zoo:resnet20", "shortcut": "B"}, "vgg16": {"name": "zoo:vgg16"}}
CUTS = (0.5, 0.75)
LINEAR = "netslim, linear fit"
WAYS = (
    "netslim",
    LINEAR,
    "uniform",
    "global l1",
    "tp:MagnitudePruner",
    "tp:BNScalePruner",
    "tp:GroupNormPruner",
)
MORE_EPOCHS = 8  # with torch-pruning's penalties or without, in the small study
REGULARISATION = {"tp:BNScalePruner": 2e-3, "tp:GroupNormPruner": 5e-4}


def study_of(network: str, full: bool, seed: int, data: str, work: Path) -> Study:
    """One seed of one network."""
    scale: Scale = FULL if full else replace(SMALL, recovery=4)
    model = dict(NETWORKS[network]) | ({"width": scale.width} if network == "vgg16" else {})
    more = {"of": "tune", "epochs": scale.recovery if full else MORE_EPOCHS}
    return Study(
        scale, seed, recipe(scale, seed, data, model=model, stages={"more": more}), work / network
    )


def row(study: Study, way: str, cut: float) -> dict[str, Any]:
    """Cut, fine-tune, measure."""
    started = time.perf_counter()
    base = study.trained("base", "base", study.fresh())
    whole = netslim.cost(base, study.example[:1])
    if way in REGULARISATION:
        with regularised(lambda: pruner(study, base, way, cut), base):
            base = study.trained("more", f"{way}-more", base.train())
    else:
        base = study.trained("more", "more", base.train())
    small = CUTTERS[way](study, base, way, cut)
    after_cut = study.accuracy(small, "validation")
    tuned = study.trained("tune", f"{way}-{cut}", small.train())
    cost = netslim.cost(tuned, study.example[:1])
    return {
        "way": way,
        "cut_macs": cut,
        "seed": study.seed,
        "before": study.accuracy(base, "validation"),
        "after_cut": after_cut,
        "validation": study.accuracy(tuned, "validation"),
        "test": study.accuracy(tuned, "test"),
        "macs": cost.macs / whole.macs,
        "params": cost.params / whole.params,
        "seconds": round(time.perf_counter() - started, 1),
    }


# ---------------------------------------------------------------- ways to cut


def by_default(study: Study, base: nn.Module, way: str, cut: float) -> nn.Module:
    batches = list(study.bench.batches(10))
    return netslim.slim(
        base,
        study.example[:1],
        budget=netslim.Budget(cut_macs=cut),
        batches=batches,
        compensation=Compensation("linear", recalibrate=True) if way == LINEAR else "auto",
    )


def by_scores(study: Study, base: nn.Module, way: str, cut: float) -> nn.Module:
    criterion, allocation = {"uniform": ("l2", "uniform"), "global l1": ("l1", "global")}[way]
    graph = netslim.trace(base, study.example)
    scores = netslim.score(graph, base, criterion)
    plan = netslim.select(graph, scores, netslim.Budget(cut_macs=cut), allocation=allocation)
    return proved(base, plan, study)


def pruner(study: Study, network: nn.Module, way: str, share: float) -> Any:
    """torch-pruning's object that trains sparsely and cuts."""
    import torch_pruning as tp

    importance = (
        tp.importance.BNScaleImportance()
        if "BN" in way
        else tp.importance.GroupMagnitudeImportance(p=2)
    )
    penalty = {"reg": REGULARISATION[way]} if way in REGULARISATION else {}
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]
    return getattr(tp.pruner, way.removeprefix("tp:"))(
        network, study.example, importance=importance, pruning_ratio=share, global_pruning=way in REGULARISATION,
        ignored_layers=last, **penalty,
    )  # fmt: skip


def by_torch_pruning(study: Study, base: nn.Module, way: str, cut: float) -> nn.Module:
    def make(share: float) -> nn.Module:
        small = netslim.prune(base, nothing(netslim.trace(base, study.example)))
        pruner(study, small, way, share).step()
        return small

    limit = netslim.cost(base, study.example[:1]).macs * (1 - cut)
    return least(make, lambda small: netslim.cost(small, study.example[:1]).macs, limit)


CUTTERS: dict[str, Callable[[Study, nn.Module, str, float], nn.Module]] = {
    "netslim": by_default,
    LINEAR: by_default,
    "uniform": by_scores,
    "global l1": by_scores,
    **{way: by_torch_pruning for way in WAYS if way.startswith("tp:")},
}


# ---------------------------------------------------------------- rows and table


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of each network, budget and way, in percent."""
    found = []
    for network in NETWORKS:
        for cut in CUTS:
            for way in WAYS:
                mine = [
                    row
                    for row in rows
                    if (row["network"], row["cut_macs"], row["way"]) == (network, cut, way)
                ]
                if mine:
                    entry: dict[str, Any] = {
                        "network": network,
                        "cut_macs": cut,
                        "way": way,
                        "seeds": len(mine),
                    }
                    for key in ("before", "after_cut", "validation", "test", "macs", "params"):
                        values = [100 * row[key] for row in mine]
                        entry[key] = [
                            round(mean(values), 2),
                            round(stdev(values), 2) if len(values) > 1 else None,
                        ]
                    found.append(entry)
    return found


def display(entries: list[dict[str, Any]]) -> None:
    """Print the table."""
    keys = ("before", "after_cut", "validation", "test", "macs", "params")
    lines = [
        [
            f"{e['network']}, {1 - e['cut_macs']:.0%} of the MACs",
            e["way"],
            *(_cell(*e[key]) for key in keys),
        ]
        for e in entries
    ]
    columns = [
        "",
        "way",
        "before",
        "after the cut",
        "fine-tuned",
        "test",
        "MACs left",
        "params left",
    ]
    show(
        "Percent, mean and standard deviation over seeds; accuracy of all but 'test' on validation",
        columns,
        lines,
    )


def _cell(average: float, deviation: float | None) -> str:
    return f"{average:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--cuts", type=float, nargs="+", choices=CUTS, default=CUTS)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--data", default="hf:cifar10")
    parser.add_argument(
        "--full", action="store_true", help="whole CIFAR-10 at full width, for a GPU"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy_at_budget"))
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    work = options.work / ("full" if options.full else "small")
    (work / "rows").mkdir(parents=True, exist_ok=True)
    ways = [] if options.table else possible(options.only)
    for seed in options.seeds:
        for network in options.networks:
            study = None
            for way in ways:
                for cut in options.cuts:
                    path = work / "rows" / f"{network}-{way}-{cut}-{seed}.json".replace(" ", "-")
                    if path.exists():
                        continue
                    study = study or study_of(network, options.full, seed, options.data, work)
                    found = {"network": network, **row(study, way, cut)}
                    write_json(path, found)
                    print(json.dumps(found), file=sys.stderr)
    rows = [json.loads(path.read_text()) for path in sorted((work / "rows").glob("*.json"))]
    entries = table(rows)
    display(entries)
    scale = vars(study_of("vgg16", options.full, 0, options.data, work).scale)
    record(
        "accuracy_at_budget" + ("-full" if options.full else ""),
        {"scale": scale, "table": entries, "rows": rows},
    )


if __name__ == "__main__":
    main()
