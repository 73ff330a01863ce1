"""Tiny networks whose groups can be worked out by hand, and how to cut them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim import ChannelGraph, PruningPlan, cost, prune, trace, verify
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.verify import Verification
from netslim.surgery.rows import TensorCut


def conv(cin: int, cout: int, **kwargs: object) -> nn.Sequential:
    """3x3 convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, 3, padding=1, **kwargs), nn.BatchNorm2d(cout), nn.ReLU()
    )  # type: ignore[arg-type]


def as_if_traced(plan: PruningPlan, tensors: Iterable[TensorCut]) -> PruningPlan:
    """The plan with other rows, as it would be had the trace been wrong: no slices contradict."""
    groups = {name: replace(cut, slices=(), sizes=()) for name, cut in plan.groups.items()}
    return replace(plan, groups=groups, tensors=tuple(tensors))


def channels_in_memory(x: Tensor) -> int:
    """Their number, as no trace can see."""
    return x.untyped_storage().nbytes() // (x.element_size() * len(x) * x.shape[2] * x.shape[3])


class Twice(nn.Module):
    """A layer whose weights are used on two inputs."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = (
            nn.Conv2d(3, 4, 1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 2, 1, bias=False),
        )

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        return self.b(x) + self.b(2 * x)


class Functional(nn.Module):
    """A convolution that is no module: its weight belongs to the network."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.randn(2, 4, 1, 1))

    def forward(self, x):
        return F.conv2d(self.norm(self.a(x)).relu(), self.weight)


class Chain(nn.Module):
    """Two convolutions and a linear layer after a flatten of 4x4 maps: groups of 6 and 5."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 6), conv(6, 5)
        self.head = nn.Linear(5 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.second(self.first(x)), 2)
        return self.head(torch.flatten(x, 1))


class Residual(nn.Module):
    """Stem and block share 6 channels; the block's inner convolution has 5 of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = conv(3, 6), conv(6, 5), nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.outer(self.inner(x))).mean((2, 3)))


class DenseBlock(nn.Module):
    """A stem of 6 and two layers that each add 4 channels; each reads all that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1)
        self.norm3, self.head = nn.BatchNorm2d(14), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(self.norm1(x).relu())], 1)
        x = torch.cat([x, self.conv2(self.norm2(x).relu())], 1)
        return self.head(self.norm3(x).relu().mean((2, 3)))


class OneForward(nn.Module):
    """A network from a function: ``a`` (3 -> n), ``b`` (n -> m), ``head`` (m -> 2)."""

    def __init__(
        self, forward: Callable[..., Any], a: nn.Module, b: nn.Module | None = None, **extra: Any
    ) -> None:
        super().__init__()
        self.a, self.b = a, b if b is not None else nn.Identity()
        for name, value in extra.items():
            setattr(self, name, value)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def cut_half(model: nn.Module, inputs: object, seed: int = 0) -> tuple[ChannelGraph, PruningPlan]:
    """A plan that removes half of every exact group at random."""
    graph = trace(model, inputs)
    rng = np.random.default_rng(seed)
    masks = {}
    for number, group in enumerate(graph.groups):
        if group.prunable and group.size > 1:
            mask = np.ones(group.size, dtype=bool)
            mask[rng.permutation(group.size)[: group.size // 2]] = False
            masks[number] = mask
    return graph, plan_keeping(graph, masks)


def stays(plan: PruningPlan) -> dict[tuple[str, int], tuple[int, ...]]:
    """What stays of each tensor along each axis that is cut."""
    return {(cut.tensor, cut.axis): cut.kept for cut in plan.tensors}


def prove(
    model: nn.Module, inputs: object
) -> tuple[ChannelGraph, PruningPlan, nn.Module, Verification]:
    """Cut half of every exact group and verify; the outputs must depend on what was cut."""
    graph, plan = cut_half(model, inputs)
    small = prune(model, plan)
    check = verify(model, small, plan, inputs, graph=graph)
    assert plan.removed > 0
    assert check.deviation is not None
    assert check.deviation < 1e-10
    assert check.changed > plan.removed / 3
    return graph, plan, small, check


FIGURES = ("macs", "params", "activations", "activation_bytes", "peak_bytes")


def counted_alike(
    model: nn.Module, inputs: object, graph: ChannelGraph | None = None
) -> dict[str, int]:
    """The figures on which `netslim.cost` and the graph must agree, and to which the rows of the
    modules add up.
    """
    graph, found = trace(model, inputs) if graph is None else graph, cost(model, inputs)
    figures = {name: getattr(graph, name)() for name in FIGURES}
    assert {name: getattr(found, name) for name in FIGURES} == figures
    for name in FIGURES[:3]:
        assert sum(getattr(row, name) for row in found.by_module.values()) == figures[name], name
    return figures
