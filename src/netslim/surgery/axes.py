"""What every axis of every tensor loses, from what becomes of the groups.

A unit is a channel with everything that goes with it, so it owns entries in many tensors, and one
axis may hold entries of several groups (of all that a concatenation puts side by side, say). So
every axis starts out as kept whole, and each group takes away what its removed units own there.

A plan is made this way, and held against its groups in this way before it is carried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from netslim.errors import PlanError
from netslim.graph.groups import Slice
from netslim.surgery.rows import DROPPED, GroupCut, TensorCut, destinations, merging_rows, partners

_TIED = "tied weights cannot be summed on one side alone: leave these groups out of the merge"


def rows_of(
    groups: Mapping[str, GroupCut], sizes: Mapping[tuple[str, int], int]
) -> tuple[TensorCut, ...]:
    """The rows of a plan.

    Args:
        groups: name -> what becomes of it, with its slices.
        sizes: (tensor, axis) -> entries before the cut.

    Raises:
        PlanError: weights that read merged channels also make them (tied weights), so that they
            cannot be summed.
    """
    axes: dict[tuple[str, int], _Axis] = {}
    whole: dict[int, np.ndarray] = {}  # by size: copied many times faster than made
    for name, cut in groups.items():
        gone = np.ones(cut.size, dtype=bool)
        gone[np.fromiter(cut.kept, dtype=np.int64, count=len(cut.kept))] = False
        for s in cut.slices:
            key = s.tensor, s.axis
            axis = axes.get(key)
            if axis is None:
                # Whole at first, since groups share axes: behind a concatenation of 64 and 32
                # channels, each of two groups takes its own away from the 96.
                size = sizes[key]
                if size not in whole:
                    whole[size] = np.ones(size, dtype=bool)
                axis = axes[key] = _Axis(whole[size].copy())
            axis.drop(s, gone)
            if cut.into and s.role == "consumer":
                axis.merge(s, destinations(cut), name)
    _refuse_tied(axes)
    return _tensor_cuts(axes)


@dataclass
class _Axis:
    """What becomes of one axis of one tensor.

    Attributes:
        kept: which entries stay, bool of shape (size,).
        roles: what the axis does for the channels that go.
        ends: the entry that each merged entry is added to, shape (size,), `DROPPED` for all others;
            None where no merged channel is read.
    """

    kept: np.ndarray
    roles: set[str] = field(default_factory=set)
    ends: np.ndarray | None = None

    def drop(self, s: Slice, gone: np.ndarray) -> None:
        """Take away what the removed units of a group own."""
        self.kept[s.positions[gone.take(s.units)]] = False
        self.roles.add(s.role)

    def merge(self, s: Slice, ends: np.ndarray, name: str) -> None:
        """Note where the entries go that read merged channels of the group of this name."""
        if s.mixed:
            raise PlanError(
                f"group {name!r}: {s.tensor!r} reads the channels that it makes; {_TIED}"
            )
        if self.ends is None:
            self.ends = np.full(len(self.kept), DROPPED)
        merged, targets = partners(s.positions, s.units, ends)
        self.ends[merged] = targets


def _refuse_tied(axes: Mapping[tuple[str, int], _Axis]) -> None:
    """What reads merged channels is summed, what makes them is not: one axis cannot do both."""
    for (tensor, number), axis in axes.items():
        others = axis.roles - {"consumer"}
        if axis.ends is not None and others:
            what = " and ".join(sorted(others))
            raise PlanError(
                f"axis {number} of {tensor!r} reads merged channels and is {what} of channels, "
                f"too; {_TIED}"
            )


def _tensor_cuts(axes: Mapping[tuple[str, int], _Axis]) -> tuple[TensorCut, ...]:
    known: dict[bytes, tuple[int, ...]] = {}  # many tensors keep the same indices
    cuts = []
    for (tensor, number), axis in axes.items():
        bits = axis.kept.tobytes()
        if bits not in known:
            known[bits] = tuple(np.flatnonzero(axis.kept).tolist())
        kept, role = known[bits], "+".join(sorted(axis.roles))
        into: tuple[int, ...] = ()
        if axis.ends is not None:
            # Of heads that are merged the channels go that go of every head.
            axis.ends[~axis.kept[axis.ends]] = DROPPED
            into = merging_rows(axis.ends, kept)
        cuts.append(TensorCut(tensor, number, len(axis.kept), kept, role, into))
    return tuple(cuts)
