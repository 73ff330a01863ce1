"""What a run has left in a model neither hides a wrong cut nor has a right one refused."""

from __future__ import annotations

import functools
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import as_if_traced, cut_half
from netslim import prune, verify
from netslim.errors import VerificationError

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Keeping(nn.Module):
    """Two convolutions; gains of the first and weights of the second are computed once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, bias=False)
        self.gains = nn.Parameter(torch.rand(6, 1, 1) + 1)
        self.given: dict[str, Tensor] = {"shift": torch.rand(1)}  # not computed

    def computed(self) -> tuple[Tensor, Tensor]:
        return self.gains.tanh(), self.b.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        gains, weight = self.kept()
        x = F.conv2d(self.a(x).relu() * gains, weight) + self.given["shift"]
        return x * self.given.get("scale", 1)


class InADict(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, Any] = {}

    def kept(self) -> tuple[Tensor, Tensor]:
        if "cpu" not in self.tables:
            self.tables["cpu"] = self.computed()
        return self.tables["cpu"]


class InAnAttribute(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.tables: Any = None

    def kept(self) -> tuple[Tensor, Tensor]:
        if self.tables is None:
            self.tables = self.computed()
        return self.tables


class InAnObject(Keeping):
    def __init__(self) -> None:
        super().__init__()
        self.cache = types.SimpleNamespace()

    def kept(self) -> tuple[Tensor, Tensor]:
        if not hasattr(self.cache, "tables"):
            self.cache.tables = self.computed()
        return self.cache.tables


class AsAProperty(Keeping):
    @functools.cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        return self.computed()

    def kept(self) -> tuple[Tensor, Tensor]:
        return self.tables


KINDS = [InADict, InAnAttribute, InAnObject, AsAProperty]


def run(*models):
    with torch.no_grad():
        for model in models:
            model(X)


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_cut_is_accepted_whichever_of_the_two_was_run(kind):
    torch.manual_seed(0)
    model = kind().eval()
    _, plan = cut_half(model, X)
    small, other = prune(model, plan), prune(model, plan)
    run(model)
    assert verify(model, small, plan, X).deviation < 1e-12
    run(other)
    assert verify(model, other, plan, X).deviation < 1e-12
    assert verify(not_run(model), other, plan, X).deviation < 1e-12


def not_run(model):
    """One that was never run, with the same weights."""
    fresh = type(model)().eval()
    fresh.load_state_dict(model.state_dict())
    fresh.given = dict(model.given)
    return fresh


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_cut_is_refused_whichever_of_the_two_was_run(kind):
    torch.manual_seed(0)
    model = kind().eval()
    _, plan = cut_half(model, X)
    (reading,) = [t for t in plan.tensors if t.tensor == "b.weight" and t.axis == 1]
    kept = tuple(sorted([*reading.kept[1:], reading.removed[0]]))
    rows = [replace(t, kept=kept) if t is reading else t for t in plan.tensors]
    bad = as_if_traced(plan, rows)
    small = prune(model, bad)
    for ran in (model, small):
        run(ran)
        with pytest.raises(VerificationError, match="differs from the silenced original"):
            verify(model, small, bad, X)


def test_what_no_run_fills_in_belongs_to_the_network():
    model = InADict().eval()
    _, plan = cut_half(model, X)
    small = prune(model, plan)
    run(model)
    model.given["scale"] = torch.full((1,), 2.0)
    with pytest.raises(VerificationError, match="differs from the silenced original"):
        verify(model, small, plan, X)


def test_what_was_computed_of_other_weights_belongs_to_the_network():
    model = InADict().eval()
    _, plan = cut_half(model, X)
    run(model)
    with torch.no_grad():
        model.gains.add_(1)
    small = prune(model, plan)
    small.tables.clear()
    with pytest.raises(VerificationError, match="differs from the silenced original"):
        verify(model, small, plan, X)
