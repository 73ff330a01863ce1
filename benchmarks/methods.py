"""The methods side by side: same network, same cut in MACs, same recovery epochs, several seeds.

Each method chooses as its paper does (uniformly over layers, or by one global threshold), down to
the same share of multiply-accumulates, and recovers for the same epochs: by fine-tuning, or, for
Centripetal SGD, by the epochs in which the filters are drawn together, after which nothing is
fine-tuned. Choices use the validation split; the test set is looked at once for each row, at its
end.

    python benchmarks/methods.py                         # 11 methods x 3 seeds, sized for 90
    minutes on two cores python benchmarks/methods.py --full                  # whole CIFAR-10, full
    width, for a GPU python benchmarks/methods.py --seeds 0 --only l1 l2  # a part of the rows
    python benchmarks/methods.py --table                 # write the table of the rows that are
    there

A run that was stopped goes on row by row, and within a row from its last epoch. Two processes may
share the work.
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

import torch
from _common import record, show
from _study import FULL, SMALL, Scale, Study, least, nothing, possible, proved, recipe, regularised
from torch import nn

import netslim
from netslim.methods.centripetal import CentripetalSGD
from netslim.training.recipe.schema import Train
from netslim.training.stages.folder import write_json

CUT = 0.5  # share of the multiply-accumulates that goes
METHODS = (
    "random", "l1", "l2", "geometric_median", "taylor", "network_slimming", "network_slimming+fold", "soft_filter",
    "centripetal", "tp:BNScalePruner", "tp:GroupNormPruner",
)  # fmt: skip
UNIFORM = ("random", "l1", "l2", "geometric_median")


CENTRIPETAL = {False: 0.1, True: 0.05}  # strength, by whether the study is full


def study_of(scale: Scale, seed: int, data: str, work: Path) -> Study:
    """One seed with all training stages of the study; each row takes the ones it needs."""
    stages = {
        "slimming": {"of": "base", "sparsity": {"strength": scale.strength}},
        "regularised": {"of": "base"},
        "soft": {"of": "base", "sparsity": {"method": "soft_filter"}},
        "draw": {
            "of": "tune",
            "sparsity": {"method": "centripetal", "strength": CENTRIPETAL[scale == FULL]},
        },
    }
    model = {"name": "zoo:vgg16", "width": scale.width}
    return Study(scale, seed, recipe(scale, seed, data, model=model, stages=stages), work)


def row(study: Study, method: str) -> dict[str, Any]:
    """Train, cut, recover, measure."""
    started = time.perf_counter()
    whole = netslim.cost(study.fresh(), study.example[:1])
    before, small = CUTTERS.get(method, by_scores)(study, method)
    cut_accuracy = study.accuracy(small, "validation")
    tuned = small if method == "centripetal" else study.trained("tune", method, small.train())
    cost = netslim.cost(tuned, study.example[:1])
    return {
        "method": method,
        "seed": study.seed,
        "before": study.accuracy(before, "validation"),
        "after_cut": cut_accuracy,
        "validation": study.accuracy(tuned, "validation"),
        "test": study.accuracy(tuned, "test"),
        "macs_cut": 1 - cost.macs / whole.macs,
        "params_cut": 1 - cost.params / whole.params,
        "seconds": round(time.perf_counter() - started, 1),
    }


# ---------------------------------------------------------------- how each method cuts

Networks = tuple[nn.Module, nn.Module]


def by_scores(study: Study, method: str) -> Networks:
    """Criteria of the weights, on the network trained as ever: uniformly over layers, Taylor by one
    threshold.
    """
    base = study.trained("base", "base", study.fresh())
    graph = netslim.trace(base, study.example)
    own = {"seed": study.seed} if method == "random" else {}
    seen = list(study.bench.batches(20)) if method == "taylor" else None
    scores = netslim.score(
        graph, base, netslim.selection.Scoring(method, arguments=own), batches=seen
    )
    plan = (
        uniform(graph, scores)
        if method in UNIFORM
        else netslim.select(graph, scores, netslim.Budget(cut_macs=CUT))
    )
    return base, proved(base, plan, study)


def uniform(graph: netslim.ChannelGraph, scores: dict[str, torch.Tensor]) -> netslim.PruningPlan:
    """The same share of every layer, to one channel: all are compared by their rank within the
    layer.
    """
    ranks = {
        name: values.argsort().argsort().double() / len(values) for name, values in scores.items()
    }
    return netslim.select(graph, ranks, netslim.Budget(cut_macs=CUT))


def slimming(study: Study, method: str) -> Networks:
    """Network Slimming: sparse training, one global threshold; with +fold what is cut off is not
    thrown away.
    """
    sparse = study.trained("slimming", "slimming", study.fresh())
    graph = netslim.trace(sparse, study.example)
    plan = netslim.select(
        graph, netslim.score(graph, sparse, "bn_scale"), netslim.Budget(cut_macs=CUT)
    )
    if not method.endswith("+fold"):
        return sparse, proved(sparse, plan, study)
    folding = netslim.surgery.compensate(sparse, plan, list(study.bench.batches(10)), "constant")
    return sparse, proved(folding.model, folding.plan, study)


def soft(study: Study, method: str) -> Networks:
    """Soft Filter Pruning from scratch, at the rates whose cut meets the budget (half a filter
    against rounding).
    """
    graph = netslim.trace(study.fresh(), study.example)
    plan = uniform(graph, netslim.score(graph, study.fresh(), "l2"))
    rates = {name: (cut.size - len(cut.kept) + 0.5) / cut.size for name, cut in plan.groups.items()}
    stage = with_options(study.stages["soft"], rate=rates)
    trained = study.trained("soft", "soft", study.fresh(), stage)
    scores = netslim.score(graph, trained, "l2")
    zeros = {name: int((values == 0).sum()) for name, values in scores.items()}
    return trained, proved(trained, netslim.select(graph, scores, per_group=zeros), study)


def centripetal(study: Study, method: str) -> Networks:
    """C-SGD from the network trained as ever, in place of fine-tuning; the merge changes nothing
    after it.
    """
    base = study.trained("base", "base", study.fresh())
    graph = netslim.trace(base, study.example)
    plan = uniform(graph, netslim.score(graph, base, "l2"))
    target = {name: len(cut.kept) for name, cut in plan.groups.items()}
    stage = with_options(study.stages["draw"], target=target)
    clusters = CentripetalSGD(graph, base, target, seed=study.seed).clusters
    drawn = study.trained("draw", "draw", netslim.prune(base, nothing(graph)), stage)
    merging = netslim.selection.merge(graph, clusters)
    return drawn, proved(drawn, merging, study)


def with_options(stage: Train, **options: Any) -> Train:
    assert stage.sparsity is not None
    return replace(stage, sparsity=replace(stage.sparsity, **options))


def torch_pruning(study: Study, method: str) -> Networks:
    """torch-pruning's sparse training (its `regularize` before each step), then its own cut,
    globally.
    """
    import torch_pruning as tp

    kind = getattr(tp.pruner, method.removeprefix("tp:"))

    def pruner(network: nn.Module, share: float) -> Any:
        importance = (
            tp.importance.BNScaleImportance()
            if "BN" in method
            else tp.importance.GroupMagnitudeImportance()
        )
        last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]
        return kind(
            network, study.example, importance=importance, pruning_ratio=share, global_pruning=True,
            ignored_layers=last, reg=study.scale.strength if "BN" in method else 5e-4,
        )  # fmt: skip

    network = study.fresh()
    with regularised(lambda: pruner(network, CUT), network):
        network = study.trained("regularised", method, network)

    def cut(share: float) -> nn.Module:
        copy = netslim.prune(network, nothing(netslim.trace(network, study.example)))
        pruner(copy, share).step()
        return copy

    limit = netslim.cost(network, study.example[:1]).macs * (1 - CUT)
    return network, least(cut, lambda net: netslim.cost(net, study.example[:1]).macs, limit)


CUTTERS: dict[str, Callable[[Study, str], Networks]] = {
    "network_slimming": slimming,
    "network_slimming+fold": slimming,
    "soft_filter": soft,
    "centripetal": centripetal,
    "tp:BNScalePruner": torch_pruning,
    "tp:GroupNormPruner": torch_pruning,
}


# ---------------------------------------------------------------- rows and table


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds of each method, in percent."""
    found = []
    for method in METHODS:
        mine = [row for row in rows if row["method"] == method]
        if mine:
            entry: dict[str, Any] = {"method": method, "seeds": len(mine)}
            for key in ("before", "after_cut", "validation", "test", "macs_cut", "params_cut"):
                values = [100 * row[key] for row in mine]
                entry[key] = [
                    round(mean(values), 2),
                    round(stdev(values), 2) if len(values) > 1 else None,
                ]
            found.append(entry)
    return found


def display(entries: list[dict[str, Any]]) -> None:
    """Print the table."""
    keys = ("before", "after_cut", "validation", "test", "macs_cut", "params_cut")
    lines = [[entry["method"], *(_cell(*entry[key]) for key in keys)] for entry in entries]
    columns = ["method", "before", "after the cut", "recovered", "test", "MACs cut", "params cut"]
    show(
        "Accuracy in percent, mean and standard deviation over seeds; all but 'test' on validation",
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
    parser.add_argument("--only", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--data", default="hf:cifar10")
    parser.add_argument(
        "--full", action="store_true", help="whole CIFAR-10 at full width, for a GPU"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    scale, name = (FULL, "methods-full") if options.full else (SMALL, "methods")
    work = options.work / ("full" if options.full else "small")
    (work / "rows").mkdir(parents=True, exist_ok=True)
    methods = [] if options.table else possible(options.only)
    for seed in options.seeds:
        missing = [m for m in methods if not (work / "rows" / f"{m}-{seed}.json").exists()]
        study = study_of(scale, seed, options.data, work) if missing else None
        for method in missing:
            assert study is not None
            found = row(study, method)
            write_json(work / "rows" / f"{method}-{seed}.json", found)
            print(json.dumps(found), file=sys.stderr)
    rows = [json.loads(path.read_text()) for path in sorted((work / "rows").glob("*.json"))]
    entries = table(rows)
    display(entries)
    record(name, {"scale": vars(scale), "cut_macs": CUT, "table": entries, "rows": rows})


if __name__ == "__main__":
    main()
