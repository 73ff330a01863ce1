"""What `NetworkSlimming` adds to a training step, and what the plain loop over the layers adds.

    python benchmarks/sparsity_overhead.py [--batch 8] [--rounds 60] [--device cpu]

The network is ResNet-110 with projection shortcuts: 111 BN layers. Three copies with the same start
are trained on the same batch, in turn, in this process: *plain* SGD; *netslim*, SGD with
`NetworkSlimming` attached; *loop*, the usual script, which walks over the modules before each step
and adds `strength * sign(gamma)` to one gradient after another. Each round times one step of each,
in an order that changes from round to round, and compares it with the plain step of the same round.
The additions are some hundred microseconds, less than the scatter of the steps, so they are also
timed alone, on gradients that are there. On a CPU everything runs on one thread and its processor
time is taken, which on an idle machine is the wall-clock time and on a shared one leaves out the
neighbours; on a GPU, the wall clock.

Goal: less than 1 % of a step.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _common import record, show, spread
from torch import Tensor, nn
from torch.nn import functional as F

from netslim.methods.slimming import NetworkSlimming
from netslim.models import zoo

STRENGTH = 1e-4
WARM_UP = 3
GOAL = 0.01

Step = Callable[[], None]


def update_bn(model: nn.Module) -> None:
    """The usual script's loop over the layers."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.grad.data.add_(STRENGTH * torch.sign(module.weight.data))  # type: ignore[union-attr]


class Contestant:
    """A network with its optimizer, and a way to add the penalty to the gradients."""

    def __init__(self, kind: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = zoo.resnet110(shortcut="B").to(device).train()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4
        )
        self.loops = kind == "loop"
        if kind == "netslim":
            NetworkSlimming(self.model, STRENGTH).attach(self.optimizer)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), labels).backward()
        if self.loops:
            update_bn(self.model)
        self.optimizer.step()


def timed(step: Step, device: torch.device) -> float:
    """Milliseconds of one call: processor time on a CPU; on a GPU wall clock, the queue empty
    before and after.
    """
    if device.type == "cpu":
        start = time.process_time_ns()
        step()
        return (time.process_time_ns() - start) / 1e6
    torch.cuda.synchronize(device)
    start = time.perf_counter_ns()
    step()
    torch.cuda.synchronize(device)
    return (time.perf_counter_ns() - start) / 1e6


def alternate(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of every step in every round; the order within a round is random, from a fixed
    seed.
    """
    order, shuffle = list(steps), random.Random(0).shuffle
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(WARM_UP + rounds):
        shuffle(order)
        for name in order:
            found = timed(steps[name], device)
            if index >= WARM_UP:
                samples[name].append(found)
    return samples


def whole_steps(batch: int, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of whole training steps."""
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(10, (batch,), device=device)
    contestants = {kind: Contestant(kind, device) for kind in ("plain", "netslim", "loop")}
    steps: dict[str, Step] = {
        kind: partial(one.step, images, labels) for kind, one in contestants.items()
    }
    return alternate(steps, rounds, device)


def additions_alone(device: torch.device, rounds: int = 500) -> dict[str, list[float]]:
    """Milliseconds of what is added to a step, through the optimizer's own hooks but with no step
    to take.

    An optimizer whose step does nothing stands in for SGD, with and without `NetworkSlimming`
    attached.
    """
    model = zoo.resnet110(shortcut="B").to(device)
    model(torch.randn(2, 3, 32, 32, device=device)).sum().backward()
    bare, hooked = Idle(model.parameters()), Idle(model.parameters())
    NetworkSlimming(model, STRENGTH).attach(hooked)
    steps: dict[str, Step] = {
        "bare": bare.step,
        "netslim": hooked.step,
        "loop": lambda: update_bn(model),
    }
    return alternate(steps, rounds, device)


class Idle(torch.optim.Optimizer):
    """Steps without doing anything."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


def summary(whole: dict[str, list[float]], alone: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and quartiles, and the additions as shares of the plain step."""
    step = {kind: spread(samples) for kind, samples in whole.items()}
    alone_ms = {
        "netslim": spread([a - b for a, b in zip(alone["netslim"], alone["bare"], strict=True)]),
        "loop": spread(alone["loop"]),
    }
    plain = step["plain"]["median"]
    paired = {
        kind: spread([a / b - 1 for a, b in zip(whole[kind], whole["plain"], strict=True)])
        for kind in ("netslim", "loop")
    }
    shares = {kind: found["median"] / plain for kind, found in alone_ms.items()}
    return {
        "step_ms": step,
        "addition_alone_ms": alone_ms,
        "overhead_of_whole_steps": paired,
        "overhead_from_addition_alone": shares,
        "goal": GOAL,
        "met": {
            "addition alone": shares["netslim"] < GOAL,
            "whole steps": paired["netslim"]["median"] < GOAL,
        },
    }


def table(found: dict[str, Any]) -> list[list[str]]:
    """Rows for the terminal."""

    def quartiles(value: dict[str, float], unit: str, factor: float = 1.0) -> str:
        low, median, high = (factor * value[key] for key in ("low", "median", "high"))
        return f"{median:.1f} {unit} ({low:.1f} to {high:.1f})"

    rows = [["plain", quartiles(found["step_ms"]["plain"], "ms"), "", "", ""]]
    for kind in ("netslim", "loop"):
        rows.append(
            [
                kind,
                quartiles(found["step_ms"][kind], "ms"),
                quartiles(found["overhead_of_whole_steps"][kind], "%", 100),
                quartiles(found["addition_alone_ms"][kind], "us", 1000),
                f"{100 * found['overhead_from_addition_alone'][kind]:.3f} %",
            ]
        )
    return rows


def main() -> None:
    """Measure, print, and write results/sparsity_overhead.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    whole = whole_steps(options.batch, options.rounds, device)
    found = summary(whole, additions_alone(device))
    columns = ["", "whole step", "over plain", "addition alone", "of a step"]
    show("ResNet-110 (B), 111 BN layers, median (quartiles)", columns, table(found))
    verdicts = ", ".join(
        f"{'met' if met else 'missed'} by {what}" for what, met in found["met"].items()
    )
    print(f"goal: less than {GOAL:.0%} of a step: {verdicts}")
    setting = {
        "model": "zoo:resnet110 shortcut=B",
        "bn_layers": 111,
        "batch": options.batch,
        "rounds": options.rounds,
    }
    print(record("sparsity_overhead", {"setting": setting, **found}, device))


if __name__ == "__main__":
    main()
