"""How many entries of a dimension are kept under a cut, and products of such counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np

from netslim.graph.tracing.atoms import Vector


@dataclass(frozen=True)
class Count:
    """How many entries of a dimension are kept: a constant, and what kept units have a share in.

    After a concatenation of 64 channels that may be cut, 32 of another group and 3 inputs:
    ``Count(3, ((0, [1, 1, ...]), (1, [1, 1, ...])))``; behind a flatten of 7 x 7 places a unit's
    share is 49 entries. All that is told of a cut network before there is one, parameters, MACs,
    activations, memory, is made of products of these, so that a budget can be met exactly and
    without building anything.

    Where a dimension is one of heads times their width, and both may be cut, it holds ``times`` as
    many: of 3 heads of 4, ``Count(0, ((0, [1, 1, 1]),), Count(0, ((1, [1, 1, 1, 1]),)))``.
    """

    constant: int
    shares: tuple[tuple[int, Vector], ...]  # (group number, entries for each of its units)
    times: Count | None = None

    def kept(self, masks: Mapping[int, Vector]) -> int:
        """Entries left when group ``g`` keeps the units of the boolean ``masks[g]``, if any."""
        total = self.constant
        for group, entries in self.shares:
            if group in masks:
                entries = entries[masks[group]]
            total += int(entries.sum())
        if self.times is not None:
            total *= self.times.kept(masks)
        return total

    @property
    def linear(self) -> tuple[Count, ...]:
        """The counts without ``times`` whose product it is: itself, nearly always."""
        if self.times is None:
            return (self,)
        return (Count(self.constant, self.shares), *self.times.linear)

    @property
    def groups(self) -> tuple[int, ...]:
        """Numbers of the groups that it depends on."""
        return tuple([group for part in self.linear for group, _ in part.shares])


def length(factor: int | Vector) -> int:
    """The size of a dimension, given as a number or as the labels of its entries."""
    if isinstance(factor, (int, np.integer)):
        return int(factor)
    return len(factor)


def whole(factor: int | Vector) -> Count:
    """The count of a dimension of which no cut takes anything."""
    return Count(length(factor), ())


# The ATen name of an operator, and which of its calls in the run it is, from 0.
Call = tuple[str, int]


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one operator as a product of counts.

    Attributes:
        module: path of the module that called the operator.
        operator: what its rule calls the work; one operator may do several pieces of work.
        factors: the numbers that are multiplied.
        call: which call of which operator it was.
        gates: one for each block (`netslim.graph.blocks`) that it goes with: 1, or 0 without it.
    """

    module: str
    operator: str
    factors: tuple[Count, ...]
    call: Call = ("", 0)
    gates: tuple[Count, ...] = ()

    @property
    def terms(self) -> tuple[Count, ...]:
        """Factors and gates."""
        return self.factors + self.gates

    def macs(self, masks: Mapping[int, Vector]) -> int:
        """Multiply-accumulates under the masks."""
        return product(self.terms, masks)


def product(factors: tuple[Count, ...], masks: Mapping[int, Vector]) -> int:
    """The product of the factors under the masks."""
    result = 1
    for factor in factors:
        result *= factor.kept(masks)
    return result


def without(factors: tuple[Count, ...]) -> dict[int, int]:
    """Group number -> how much of a product goes with all units of the group."""
    linear = chain.from_iterable(factor.linear for factor in factors)
    sizes = [(factor.kept({}), {g: int(n.sum()) for g, n in factor.shares}) for factor in linear]
    gone = {}
    for group in set(chain.from_iterable(held for _, held in sizes)):
        # Of 9 x (16 of a and 8 of b) x 32 MACs, a takes 9 * 16 * 32 with it: without a the product
        # is 9 * 8 * 32. A group with a share in two factors shrinks both.
        whole = left = 1
        for size, held in sizes:
            whole, left = whole * size, left * (size - held.get(group, 0))
        gone[group] = whole - left
    return gone
