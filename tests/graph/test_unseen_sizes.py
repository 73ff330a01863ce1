"""Numbers of channels that C code reads where nobody sees it: these channels stay, and no others."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netslim
from nets import cut_half

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
STEPS = [0.5] * 8 + [2.0]
Factor = Callable[[Any, Tensor], Any]


class Scaled(nn.Module):
    """Two convolutions; ``factor`` makes something of the first one's maps, which they meet."""

    def __init__(self, factor: Factor) -> None:
        super().__init__()
        self.factor = factor
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)
        self.steps = nn.ParameterList([nn.Parameter(torch.ones(1) * i) for i in range(9)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        y = y * self.factor(self, y)
        out: Tensor = self.fc(self.b(y).relu().mean((2, 3)))
        return out


UNSEEN: dict[str, Factor] = {
    "index": lambda m, y: STEPS[y.shape[1]],
    "index of parameters": lambda m, y: [*m.steps][y.shape[1]],
    "slice": lambda m, y: sum(STEPS[: y.shape[1]]),
    "range": lambda m, y: sum(0.1 for _ in range(y.size(1))),
    "logarithm": lambda m, y: math.log2(y.size(1)),
    "divisor": lambda m, y: math.gcd(y.shape[1], 48),
    "hash": lambda m, y: 1 + hash(y.shape[1]),
    "table": lambda m, y: {4: 3.0}.get(y.shape[1], 1.0),
    "set": lambda m, y: 1 + (y.shape[1] in {1, 2, 4}),
    "array": lambda m, y: np.zeros(y.shape[1]).size,
    "tensor of an array": lambda m, y: torch.from_numpy(np.ones(y.shape[1])).sum(),
    "legacy tensor": lambda m, y: torch.Tensor(y.shape[1]).fill_(1.0).sum(),
    "part": lambda m, y: STEPS[y.shape[1] // 4 + 6],
    "attribute": lambda m, y: math.log2(m.a.out_channels),
    "caught": lambda m, y: _caught(y.shape[1]),
}


def _caught(size: int) -> float:
    try:
        return STEPS[:5][size]
    except IndexError:
        return 7.0


@functools.lru_cache
def _cached(size: int) -> Tensor:
    return torch.ones(())


REMEMBERED: dict[str, Tensor] = {}


def _first_time(m: Any, y: Tensor) -> Tensor:
    if "one" not in REMEMBERED:
        REMEMBERED["one"] = torch.ones(()).double()
    return REMEMBERED["one"]


def _as_heads(m: Any, y: Tensor) -> Tensor:
    n, c, h, w = y.shape
    return y.reshape(n, c // 2, 2, h, w).mean((1, 2), keepdim=True).reshape(n, 1, h, w)


def _counted(m: Any, y: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return y.new_full((), m.calls)


# Nothing here depends on the number of channels, whatever is done with it.
SEEN: dict[str, Factor] = {
    "unpacked": lambda m, y: next(n for n, c, h, w in [y.shape]) / 2,
    "view": lambda m, y: y.view(len(y), y.shape[1], -1).mean(2)[..., None, None],
    "heads": _as_heads,
    "new": lambda m, y: y.new_ones(y.shape[1]).view(1, -1, 1, 1),
    "cached": lambda m, y: _cached(y.shape[1]),
    "made at the first call": _first_time,
    "counted": _counted,
    "in turn": lambda m, y: sum(part.mean() for part in y),
    "numbers": lambda m, y: float(y.mean().tolist() > 0) + 1,
    "drawn": lambda m, y: torch.rand(()) + y.shape[1] // 100 + 1,
    "random": lambda m, y: random.random() + y.shape[1] // 100 + 1,
    "not in training": lambda m, y: torch.rand(()) if m.training else y.shape[1] // 100 + 1,
    "printed": lambda m, y: (print(y.dtype), 1)[1],
    "asserted": lambda m, y: (torch._assert(y.dim() == 4, f"4 and not {y.shape}"), 1)[1],
    "in place": lambda m, y: y.clone().mul_(2).clamp_(0, 1),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_channels_whose_number_is_read_unseen_stay(name: str) -> None:
    model = Scaled(UNSEEN[name]).double().eval()
    graph = netslim.trace(model, X)
    assert graph["a"].verdict == "stays"
    assert "reads their number where no trace can follow it" in str(graph["a"].reason)
    assert "(test_unseen_sizes.py:" in str(graph["a"].reason)
    assert graph["b"].prunable
    graph, plan = cut_half(model, X)
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, X).deviation < 1e-10


@pytest.mark.parametrize("name", SEEN)
def test_no_channels_stay_for_sizes_that_are_followed(name: str, capsys: Any) -> None:
    model = Scaled(SEEN[name]).double()
    for training in (False, True):  # the second time tables of the process's are filled
        model.train(training)
        graph = netslim.trace(model, X)
        reasons = str([group.reasons for group in graph])
        assert "where no trace can follow" not in reasons, reasons
        assert graph["b"].prunable


def test_a_number_read_unseen_in_a_part_holds_that_part_alone() -> None:
    model = nn.Sequential(Scaled(UNSEEN["logarithm"]), nn.Linear(3, 9), Plain())
    graph = netslim.trace(model.double().eval(), X)
    assert graph["0.a"].verdict == "stays"
    assert {group.name for group in graph.prunable} == {"0.b", "0.fc", "1", "2.a"}


class Plain(nn.Module):
    """Linear layers whose number of channels is read, and followed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(9, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        out: Tensor = self.b(y.reshape(y.shape[0], y.shape[1]))
        return out


def test_nothing_is_run_again_where_no_size_is_read() -> None:
    calls = []

    class Counted(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            out: Tensor = super().forward(x)
            return out

    model = Counted(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    netslim.trace(model, torch.ones(1, 3, 8, 8))
    assert calls == [1]
