"""From model to pruned model: trace + score + select + prune, against torch-pruning 1.6.1.

Both cut half of the channels of every layer but the last by L1 norm, in place, on fresh copies of
the same network with the same example input; they take turns in one process. Without torch-pruning
netslim runs alone, and results/trace.json, a comparison, stays as it is.

    python benchmarks/trace.py [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import _common
import torch
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
    import torch_pruning

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
    tools = {"netslim": ours}
    if _common.with_peer():
        tools[_common.PEER] = theirs
    results, rows = {}, []
    for name, last in NETWORKS.items():
        base = torchvision.models.get_model(name).eval()
        inputs = torch.randn(1, 3, 224, 224)
        samples: dict[str, list[float]] = {tool: [] for tool in tools}
        left = {}
        for round_ in range(options.rounds + 1):
            for tool, cut in tools.items():
                model = copy.deepcopy(base)
                taken = seconds(cut, model, inputs, last)
                left[tool] = sum(p.numel() for p in model.parameters())
                if round_:  # the first round warms up
                    samples[tool].append(taken)
        found = {tool: _common.spread(taken) for tool, taken in samples.items()}
        results[name] = {f"{tool.replace('-', '_')}_s": found[tool] for tool in tools}
        results[name]["params_left"] = left
        rows.append(row(name, found, left))
    columns = ("network", "netslim s", "params left", "torch-pruning s", "params left", "faster")
    _common.show(
        "trace + score + select + prune, half of every layer (median, quartiles)",
        columns[: len(rows[0])],
        rows,
    )
    if _common.PEER in tools:
        content = {"rounds": options.rounds, "threads": options.threads, "networks": results}
        print(_common.record("trace", content))


def row(name: str, found: dict[str, dict[str, float]], left: dict[str, int]) -> list[str]:
    """A network's line of the table: seconds and parameters of each tool, then their ratio."""
    cells = [name]
    for tool, times in found.items():
        cells.append("{median:.3f} ({low:.3f} to {high:.3f})".format(**times))
        cells.append(f"{left[tool]:,}")
    if _common.PEER in found:
        cells.append(f"{found[_common.PEER]['median'] / found['netslim']['median']:.1f}x")
    return cells


if __name__ == "__main__":
    main()
