"""Heads and the width of all heads in one graph: both may go, and a plan may cut both.

Channels that code lays out as heads times width form a table, a row for each head. Whole rows may
go, or whole columns, the same place of every head; what stays of both is a table again. But a class
of tied channels is a row or it is a column (tracing/shapes.py), so one trace learns of one of them.
So a model with heads is traced twice: as rows, which is what the graph is made of, and as columns.
Of the second trace those groups are taken over that are columns of the first one's rows, and that
can go exactly, as values can: what a query is multiplied with cannot.

Everything that is counted was met in both traces, in the same order, as the code that ran is the
same. So each dimension is known twice, and where both have a part in it, as many stay as heads stay
times what stays of their width (`Count.times`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import gcd
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import nn

from netslim.graph.counts import Count
from netslim.graph.groups import ChannelGroup, SizeRule
from netslim.graph.tracing.atoms import Atoms, Vector, distinct, numbered
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.records import OperatorCost
from netslim.graph.tracing.remembered import Bindings
from netslim.graph.tracing.storages import RecordedOutput, Span


class Formed(Protocol):
    """The classes of a trace, of which groups have been formed."""

    atoms: Atoms
    group_of: Vector
    unit_of: Vector
    sizes: list[int]

    def count(self, factor: int | Vector) -> Count:
        """The count of a dimension."""
        ...


class HeadWidths:
    """The groups of a second trace that are the width of heads of the first.

    Args:
        first: of the trace in which whole heads go.
        second: of the one in which all heads become narrower.
        heads: the first trace's groups.
        groups: the second one's.
        held: labels of what would have to know of both: normalisations, inputs and outputs, and
            buffers whose numbers mean channels.

    Attributes:
        groups: those that can go beside the first trace's groups, which they are numbered after.
    """

    def __init__(
        self,
        first: Formed,
        second: Formed,
        heads: Sequence[ChannelGroup],
        groups: Sequence[ChannelGroup],
        held: Iterable[Vector],
    ) -> None:
        self._first, self._second = first, second
        # What stays in the first trace is of no head that could go, whatever it is there: keys that
        # all heads of multi-query attention share are the columns themselves.
        numbers = [-1 if group.frozen else number for number, group in enumerate(heads)]
        self._heads = np.array([*numbers, -1])  # the last: entries in no group are -1
        other = {n for vector in held for n in distinct(second.group_of.take(vector)).tolist()}
        starts = {(axis.tensor, axis.axis): axis.first for axis in first.atoms.axes}
        self._chosen = [
            number
            for number, group in enumerate(groups)
            if group.prunable
            and group.size > 1
            and number not in other
            and self._is_width(group, starts)
        ]
        self._all = groups
        self._refused: set[int] = set()
        self._number()

    def _number(self) -> None:
        """Of each group of the second trace, which of the chosen ones it is; -1 for the others."""
        self.groups = [replace(self._all[number], of_heads=True) for number in self._chosen]
        self._numbers = np.full(len(self._all) + 1, -1)  # the last: entries in no group are -1
        self._numbers[self._chosen] = np.arange(len(self._chosen))

    def _is_width(self, group: ChannelGroup, starts: dict[tuple[str, int], int]) -> bool:
        """Whether each unit has as many entries of every head as of the others.

        The frequencies of a rotary embedding, say, are of no head: they go by themselves. Heads
        that stay show what a width is, and ask for nothing: what all heads share, as the keys of
        multi-query attention, stays in the first trace as well, and is no head at all.
        """
        shown = False
        for part in group.slices:
            atoms = starts[part.tensor, part.axis] + part.positions
            may_go = self._head_groups(atoms) >= 0
            if may_go.any():
                if not self._is_table(atoms[may_go], part.units[may_go], group.size):
                    return False
                shown = True
            shown = shown or self._is_table(atoms, part.units, group.size)
        return shown

    def _is_table(self, atoms: Vector, units: Vector, size: int) -> bool:
        """Whether each unit has as many of these entries in each head of a group as the others."""
        numbers = self._first.group_of.take(atoms)
        number = int(numbers[0])
        heads = self._first.sizes[number]
        if number < 0 or (numbers != number).any() or heads < 2 or len(atoms) < heads * size:
            return False
        rows = self._first.unit_of.take(atoms)
        table = np.bincount(rows * size + units, minlength=heads * size)
        return bool(table[0]) and not np.ptp(table)

    def _head_groups(self, vector: Vector) -> Vector:
        """The number of the first trace's group of each entry; -1 where that stays."""
        numbers: Vector = self._heads.take(self._first.group_of.take(vector))
        return numbers

    def _rows(self, factor: int | Vector) -> Count:
        """The count of a dimension as the first trace has it."""
        count = self._first.count(factor)
        held = [entries for group, entries in count.shares if self._heads[group] < 0]
        if not held:
            return count
        shares = tuple(share for share in count.shares if self._heads[share[0]] >= 0)
        return Count(count.constant + int(sum(map(np.sum, held))), shares)

    def followed(self, vector: Vector) -> tuple[Vector, Vector]:
        """(group, unit) of each entry of a dimension of the second trace; -1 for no group."""
        numbers = self._numbers.take(self._second.group_of.take(vector))
        groups = np.where(numbers < 0, -1, numbers + len(self._first.sizes))
        return groups, self._second.unit_of.take(vector)

    def settled(self) -> bool:
        """Whether all counts so far could be told; else there are fewer groups from now on."""
        done = not self._refused
        if not done:
            self._chosen = [number for number in self._chosen if number not in self._refused]
            self._refused = set()
            self._number()
        return done

    def count(self, factor: tuple[int | Vector, int | Vector]) -> Count:
        """The count of a dimension, as both traces have it."""
        one, other = factor
        rows, columns = self._rows(one), self._columns(other)
        if columns is None:
            return rows
        if not rows.groups or not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
            return columns
        if not self._make_table(one, other):
            self._refused.update(distinct(self._second.group_of.take(other)).tolist())
            return rows
        return _product(rows, columns, len(one))

    def _columns(self, factor: int | Vector) -> Count | None:
        """What the second trace's groups have in a dimension; None for nothing."""
        if not isinstance(factor, np.ndarray):
            return None
        numbers = self._numbers.take(self._second.group_of.take(factor))
        if not (numbers >= 0).any():
            return None
        units, shares = self._second.unit_of.take(factor), []
        for number in distinct(numbers[numbers >= 0]).tolist():
            size = self.groups[number].size
            entries = np.bincount(units[numbers == number], minlength=size)
            shares.append((len(self._first.sizes) + number, entries))
        return Count(int((numbers < 0).sum()), tuple(shares))

    def _make_table(self, one: Vector, other: Vector) -> bool:
        """Whether as many entries belong to a row and a column as to any others."""
        groups = self._head_groups(one)
        rows = _each(groups, np.where(groups < 0, 0, self._first.unit_of.take(one)))
        numbers = self._numbers.take(self._second.group_of.take(other))
        columns = _each(numbers, np.where(numbers < 0, 0, self._second.unit_of.take(other)))
        width = int(columns.max()) + 1
        table = np.bincount(rows * width + columns, minlength=(int(rows.max()) + 1) * width)
        table = table.reshape(-1, width)
        return np.array_equal(table * table.sum(), np.outer(table.sum(1), table.sum(0)))

    def rules(self, first: Bindings, second: Bindings) -> list[SizeRule]:
        """The attributes that follow heads, their width, or both."""
        found = []
        for module, name in {**second, **first}:
            key, count = (module, name), Count(1, ())
            if key in first:
                old, vector = first[key]
                count = self._first.count(vector)
            if key in second:
                old, vector = second[key]
                columns = self._columns(vector)
                if columns is not None:  # how much of it is left is all that counts
                    count = replace(count, times=columns)
            found.append(SizeRule(module, name, old, count))
        return found


def _each(groups: Vector, units: Vector) -> Vector:
    """A number from 0 on for each pair of a group and a unit."""
    return numbered((groups.astype(np.int64) + 1) * (int(units.max()) + 2) + units + 1)[1]


def _product(rows: Count, columns: Count, size: int) -> Count:
    """``rows * columns / size``, in whole numbers."""
    # Of 3 x 2 heads of 4, two heads' 12 entries each and four columns' 6: 24 = (1 + 1) x 4 x 3.
    each, other = _divisor(rows), _divisor(columns)
    return replace(_scaled(rows, 1, each), times=_scaled(columns, each * other // size, other))


def _divisor(count: Count) -> int:
    """The largest that divides all shares."""
    return gcd(count.constant, *(int(n) for _, entries in count.shares for n in distinct(entries)))


def _scaled(count: Count, times: int, by: int) -> Count:
    shares = tuple((group, entries // by * times) for group, entries in count.shares)
    return Count(count.constant // by * times, shares)


def held_as_heads(
    groups: Sequence[ChannelGroup], widths: Sequence[ChannelGroup]
) -> Iterator[ChannelGroup]:
    """The groups of the first trace; those whose channels go in one of the second's say so.

    As the keys and values do that all heads of multi-query attention share: they have columns and
    no rows, so the first trace alone tells that they stay.
    """
    for group in groups:
        if group.frozen:
            for width in widths:
                if _are_columns(group, width):
                    reason = f"as heads; as the width of all heads they go in {width.name}"
                    group = replace(group, reason=reason, reasons=(reason,))
        yield group


def _are_columns(group: ChannelGroup, width: ChannelGroup) -> bool:
    """Whether each unit of a group lies in one of those of a width of heads."""
    wider = {(part.tensor, part.axis): part for part in width.slices}
    if not all((part.tensor, part.axis) in wider for part in group.slices):  # as nearly always
        return False
    pairs: set[tuple[int, int]] = set()
    for part in group.slices:
        other = wider[part.tensor, part.axis]
        known = dict(zip(other.positions, other.units, strict=True))
        if not known.keys() >= set(part.positions.tolist()):
            return False
        pairs |= {(own, known[n]) for own, n in zip(part.units, part.positions, strict=True)}
    return len(pairs) == group.size


class Met(NamedTuple):
    """What a trace counts, in the order in which it was met; factors are sizes or labels."""

    costs: list[OperatorCost]
    outputs: list[RecordedOutput]
    spans: list[Span]
    parameters: list[OperatorCost]


def met(recorder: Recorder) -> Met:
    """All that a recording counts."""
    parameters = []
    for name, tensor in recorder.atoms.tensors.items():
        if isinstance(tensor, nn.Parameter):
            axes = recorder.atoms.axes_of[id(tensor)]
            factors = tuple([axes.get(d, n) for d, n in enumerate(tensor.shape)])
            parameters.append(OperatorCost(name, "parameters", factors, ("", 0)))
    return Met(recorder.costs, recorder.outputs, recorder.storages.spans, parameters)


def met_in_both(first: Recorder, second: Recorder) -> Met | None:
    """What two recordings count, with the factors of both; None where they differ in what it is."""
    (costs, outputs, spans, parameters), theirs = met(first), met(second)
    pairs = (
        _paired(costs, theirs.costs),
        _paired(outputs, theirs.outputs),
        _paired(spans, theirs.spans),
        _paired(parameters, theirs.parameters),
    )
    if any(kind is None for kind in pairs):
        return None
    return Met(*[kind or [] for kind in pairs])


def _paired(ours: Sequence[Any], theirs: Sequence[Any]) -> list[Any] | None:
    if len(ours) != len(theirs):
        return None
    pairs = []
    for one, other in zip(ours, theirs, strict=True):
        if _with(one, ()) != _with(other, ()):
            return None
        if len(one.factors) != len(other.factors):
            return None
        pairs.append(_with(one, tuple(zip(one.factors, other.factors, strict=True))))
    return pairs


def _with(met: Any, factors: tuple[Any, ...]) -> Any:
    """The same with other factors."""
    if isinstance(met, Span):
        return replace(met, factors=factors)
    return met._replace(factors=factors)


__all__ = ["HeadWidths", "Met", "held_as_heads", "met", "met_in_both"]
