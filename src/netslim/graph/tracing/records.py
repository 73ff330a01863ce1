"""What a recorder notes down of a run, piece by piece."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor

from netslim.graph.counts import Call
from netslim.graph.modules.known_norms import Known
from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.sizes import Expression, Symbol

Use = partial[None]  # what is done about channels once a tensor is used


@dataclass(frozen=True)
class Constraint:
    """After a cut ``expression`` must equal the kept entries of ``vector``, or ``size``."""

    expression: Symbol  # or an operator with its operands; a number alone asks for nothing
    vector: Vector | None
    size: int
    where: str
    decision: bool = False  # a comparison in the code, which must come out the same


@dataclass(frozen=True)
class Written:
    """Channels for whose number a line of the user's code has ``numbers``; what it should have."""

    vector: Vector
    path: str
    line: int
    numbers: tuple[int, ...]
    remedy: str


@dataclass(frozen=True)
class ValueUse:
    """A size used as a number: ``soft`` where only values change with it."""

    expression: Expression
    soft: bool
    reason: str


class OperatorCost(NamedTuple):
    """Multiply-accumulates of one operator: the product of its factors, numbers or labels."""

    module: str
    operator: str
    factors: tuple[int | Vector, ...]
    call: Call


@dataclass(frozen=True)
class Awaited:
    """What is to be done about channels once somebody uses a tensor."""

    tensor: weakref.ref[Tensor]
    uses: list[Use]


@dataclass(frozen=True)
class RecordedNorm:
    """A normalisation of a module over the channels of ``vector``, ``width`` of them at first."""

    module: str
    known: Known
    width: int
    vector: Vector


__all__ = [
    "Awaited", "Constraint", "OperatorCost", "RecordedNorm", "Use", "ValueUse", "Written",
]  # fmt: skip
