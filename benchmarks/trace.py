"""From model to pruned model: trace + score + select + prune, against torch-pruning 1.6.1.

Both cut half of the channels of every layer but the last by L1 norm, in place, on fresh copies of
the same network with the same example input; they take turns in one process.

    python benchmarks/trace.py [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import _common
import torch
import torch_pruning
import torchvision
from torch import Tensor, nn

import netslim

NETWORKS = {"resnet50": "fc", "vgg16_bn": "classifier.6", "densenet121": "classifier"}


def ours(model: nn.Module, inputs: Tensor, last: str) -> None:
    graph = netslim.trace(model, inputs)
    scores = netslim.score(graph, model, "l1")
    plan = netslim.select(graph, scores, netslim.Budget(cut_channels=0.5), allocation="uniform")
    netslim.prune_(model, plan)


def theirs(model: nn.Module, inputs: Tensor, last: str) -> None:
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[model.get_submodule(last)],
    )
    pruner.step()


def seconds(
    cut: Callable[[nn.Module, Tensor, str], None], model: nn.Module, inputs: Tensor, last: str
) -> float:
    start = time.perf_counter()
    cut(model, inputs, last)
    taken = time.perf_counter() - start
    with torch.no_grad():
        model(inputs)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results, rows = {}, []
    for name, last in NETWORKS.items():
        base = torchvision.models.get_model(name).eval()
        inputs = torch.randn(1, 3, 224, 224)
        samples: dict[str, list[float]] = {"netslim": [], "torch-pruning": []}
        left = {}
        for round_ in range(options.rounds + 1):
            for tool, cut in (("netslim", ours), ("torch-pruning", theirs)):
                model = copy.deepcopy(base)
                taken = seconds(cut, model, inputs, last)
                left[tool] = sum(p.numel() for p in model.parameters())
                if round_:  # the first round warms up
                    samples[tool].append(taken)
        us, them = (_common.spread(samples[t]) for t in samples)
        results[name] = {"netslim_s": us, "torch_pruning_s": them, "params_left": left}
        rows.append(
            (
                name,
                f"{us['median']:.3f} ({us['low']:.3f} to {us['high']:.3f})",
                f"{them['median']:.3f} ({them['low']:.3f} to {them['high']:.3f})",
                f"{them['median'] / us['median']:.1f}x",
                f"{left['netslim']:,}",
                f"{left['torch-pruning']:,}",
            )
        )
    columns = ("network", "netslim s", "torch-pruning s", "faster", "params left", "theirs")
    _common.show(
        "trace + score + select + prune, half of every layer (median, quartiles)", columns, rows
    )
    print(
        _common.record(
            "trace", {"rounds": options.rounds, "threads": options.threads, "networks": results}
        )
    )


if __name__ == "__main__":
    main()
