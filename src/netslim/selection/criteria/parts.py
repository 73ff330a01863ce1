"""What a criterion says of the layers of a group one by one, and how that is put together.

A *part* is a slice of one tensor with a value for each entry of the tensor's axis; a unit may own
several of these entries, and the entries of one part may belong to several groups. So values stay
by entry until `reduced` adds them up by unit: the mean is over all entries of a unit in all parts,
which for one entry a layer is the mean over layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from netslim.errors import ArgumentError
from netslim.graph.groups import ChannelGroup, Slice
from netslim.selection.criteria.observing import SLICES, Measured, rows_of
from netslim.selection.options import Over, Reduction

Parts = list[tuple[Slice, Tensor]]  # one value for each entry of the slice's axis


def of_filters(
    group: ChannelGroup,
    tensors: Mapping[str, Tensor],
    function: Callable[[Tensor], Tensor],
    over: Over = "producers",
) -> Parts:
    """``function`` of each layer's weights, (channels, weights) -> (channels,), at least float32.

    Over producers, a row is one of all the layer's filters. Over all, it holds all the weights of
    the layer that belong to a unit: filters that make it, scales of norms, kernels that read it.
    Index buffers have no filters.
    """
    if over == "all":
        return [
            (by_unit(s, group.size), function(_wide(rows_of(tensors[s.tensor], s, group.size))))
            for s in _all_slices(group)
            if tensors[s.tensor].is_floating_point()
        ]
    return [
        (s, function(_wide(tensors[s.tensor].movedim(s.axis, 0).flatten(1))))
        for s in group.tensors("producer")
        if tensors[s.tensor].is_floating_point()
    ]


def _all_slices(group: ChannelGroup) -> list[Slice]:
    """What makes, scales or reads the group, in this order."""
    return list(chain.from_iterable(map(group.tensors, SLICES["all"])))


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def of_measured(
    group: ChannelGroup, measured: Measured, over: Over = "producers", role: str = "producer"
) -> Parts:
    """What was measured of the slices with this role; over all, of each layer's part in units."""
    if over == "all":
        keys = [(s, (group.name, s.tensor, s.axis)) for s in _all_slices(group)]
        return [(by_unit(s, group.size), measured[key]) for s, key in keys if key in measured]
    return [(s, measured[s.tensor]) for s in group.tensors(role) if s.tensor in measured]


def by_unit(s: Slice, size: int) -> Slice:
    """The slice as if its axis had one entry a unit."""
    entries = np.arange(size)
    return replace(s, positions=entries, units=entries)


def reduced(group: ChannelGroup, parts: Parts, how: Reduction = "mean") -> Tensor | None:
    """One score a unit, float64 of shape (size,), from all its entries in all parts.

    None where there are no parts.

    Raises:
        ArgumentError: a geometric mean of negative values.
    """
    if not parts:
        return None
    if how == "mean":
        return _mean(group, parts)
    if how == "first":
        return _mean(group, [_first(group, parts)])
    units = torch.cat([torch.from_numpy(s.units) for s, _ in parts])
    values = torch.cat([_entries(s, value) for s, value in parts])
    if how == "max":
        lowest = torch.full((group.size,), -torch.inf, dtype=torch.float64)
        return lowest.scatter_reduce(0, units, values, "amax")
    total = torch.zeros(group.size, dtype=torch.float64)
    if how == "sum":
        return total.index_add(0, units, values)
    if (values < 0).any():
        raise ArgumentError(
            f"reduction='product' takes the geometric mean, but layers of group {group.name!r} "
            "have negative scores"
        )
    entries = torch.bincount(units, minlength=group.size)
    # By way of logarithms, of which 0 has -infinity: one score of zero makes the mean zero.
    return (total.index_add(0, units, values.log()) / entries).exp()


def _first(group: ChannelGroup, parts: Parts) -> tuple[Slice, Tensor]:
    """The part of the layer that runs first of those that make the channels.

    What reads or scales them comes after all of these, whatever runs first.
    """
    order = {tensor: number for number, tensor in enumerate(group.producers)}

    def place(part: tuple[Slice, Tensor]) -> int:
        s, _ = part
        return order.get(s.tensor, 0) if s.role == "producer" else len(order)

    return min(parts, key=place)


def _mean(group: ChannelGroup, parts: Parts) -> Tensor:
    """Mean over all the entries of each unit."""
    total = torch.zeros(group.size, dtype=torch.float64)
    entries = torch.zeros(group.size, dtype=torch.float64)
    for s, value in parts:
        units, picked = torch.from_numpy(s.units), _entries(s, value)
        total.index_add_(0, units, picked)
        entries.index_add_(0, units, torch.ones_like(picked))
    return total / entries


def _entries(s: Slice, value: Tensor) -> Tensor:
    return value.double().cpu()[torch.from_numpy(s.positions)]
