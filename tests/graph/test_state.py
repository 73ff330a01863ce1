"""What a model writes down when it runs is put back by whoever runs it to learn something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netslim


class Record:
    """A cache of the kind that models hold."""

    def __init__(self) -> None:
        self.last: Any = None


class Remembering(nn.Module):
    """Two convolutions and all that a forward pass may write to; ``write`` does one of it."""

    def __init__(self, write: Callable[[Remembering, Tensor], Tensor | float]) -> None:
        super().__init__()
        self.write = write
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(1, 8, 1, 1))
        self.calls, self.seen, self.last = 0, [], None
        self.kept: dict[str, Any] = {"all": []}
        self.record, self.array = Record(), np.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.fc(self.b(y * self.write(self, y)).relu().mean((2, 3)))


def _mean(y: Tensor) -> Tensor:
    return y.mean((0, 2, 3), keepdim=True)


# Each leaves something behind, and what the next call computes depends on it.
def _assigned(m: Any, y: Tensor) -> Tensor:
    m.mean = 0.9 * m.mean + _mean(y)
    return m.mean


def _in_place(m: Any, y: Tensor) -> Tensor:
    return m.mean.mul_(0.9).add_(_mean(y))


def _data(m: Any, y: Tensor) -> Tensor:
    m.mean.data = 0.9 * m.mean + _mean(y)
    return m.mean


def _counted(m: Any, y: Tensor) -> int:
    m.calls += 1
    return m.calls


def _listed(m: Any, y: Tensor) -> int:
    m.seen.append(_mean(y))
    return len(m.seen)


def _nested(m: Any, y: Tensor) -> int:
    m.kept["all"].append(1)
    return len(m.kept["all"])


def _last(m: Any, y: Tensor) -> Tensor:
    before, m.last = m.last, _mean(y)
    return m.last if before is None else m.last + before


def _recorded(m: Any, y: Tensor) -> Tensor:
    before, m.record.last = m.record.last, _mean(y)
    return m.record.last if before is None else m.record.last + before


def _array(m: Any, y: Tensor) -> float:
    m.array[0] += 1
    return float(m.array[0])


def _new(m: Any, y: Tensor) -> Tensor:
    if not hasattr(m, "first"):
        m.register_buffer("first", _mean(y))
    return m.first + _mean(y)


def _hooked(m: Any, y: Tensor) -> float:
    """As libraries do that capture what layers give: the first run puts the hooks in."""
    if not m.calls:
        m.b.register_forward_hook(lambda layer, args, out: 2 * out)
        m.fc.register_forward_pre_hook(lambda layer, args: 3 * args[0], prepend=True)
        m.fc.register_full_backward_hook(lambda layer, grads, out: None)
        m.register_load_state_dict_post_hook(lambda layer, keys: None)
        m.calls = 1
    return 1.0


def _parted(m: Any, y: Tensor) -> Tensor:
    if not m.calls:
        m.part, m.calls = nn.Identity(), 1
        m.register_buffer("passing", torch.zeros(1), persistent=False)
    part: Tensor = m.part(y)
    return part


WRITES = [
    *(_assigned, _in_place, _data, _counted, _listed, _nested, _last, _recorded, _array, _new),
    *(_hooked, _parted),
]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _state(m: Remembering) -> tuple[Any, ...]:
    lists = (len(m.seen), len(m.kept["all"]), m.array.tolist())
    parts = [type(part).__name__ for part in m.modules()], sorted(m._non_persistent_buffers_set)
    hooks = [len(v) for part in m.modules() for name, v in vars(part).items() if "hooks" in name]
    held = [*m._buffers], m.mean.flatten().tolist(), lists, parts, hooks
    return m.calls, m.last, m.record.last, *held


def test_hooks_of_the_first_run_are_there_once_after_a_trace() -> None:
    model = Remembering(_hooked).eval()
    kept = model.b.register_forward_hook(lambda layer, args, out: out)
    table = model.b._forward_hooks
    netslim.trace(model, X)
    model(X)
    assert model.b._forward_hooks is table
    assert (len(table), len(model.fc._forward_pre_hooks)) == (2, 1)
    kept.remove()
    assert len(table) == 1


@pytest.fixture(autouse=True)
def _weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("write", WRITES)
def test_the_right_cut_of_a_model_that_writes_is_proved(write: Any) -> None:
    model = Remembering(write).eval()
    before, buffer = _state(model), model.mean
    graph = netslim.trace(model, X)
    assert _state(model) == before
    assert model.mean is buffer
    scores = netslim.score(graph, model, "taylor", batches=[(X, torch.tensor([0, 1]))])
    assert _state(model) == before
    plan = netslim.select(graph, scores, netslim.Budget(cut_channels=0.5))
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, X).deviation < 1e-10
    netslim.cost(model, X)
    assert _state(model) == before


@pytest.mark.parametrize("entrance", ["latency", "sensitivity"])
def test_no_entrance_leaves_what_the_model_writes(entrance: str) -> None:
    model = Remembering(_in_place).eval()
    before = _state(model)
    if entrance == "latency":
        netslim.latency(model, X, repeats=5, warmup=1)
    else:
        netslim.sensitivity(model, X, lambda small: 1.0, ratios=[0.5])
    assert _state(model) == before


def test_recalibration_keeps_its_statistics_alone() -> None:
    model = nn.Sequential(Remembering(_in_place), nn.BatchNorm1d(3)).eval()
    before = _state(model[0])
    netslim.surgery.recalibrate(model, [X])
    assert _state(model[0]) == before
    assert int(model[1].num_batches_tracked) == 1
