"""From the units that stay to a plan: which indices of which tensors are kept.

A unit is a channel with everything that goes with it, so it owns entries in many tensors, and one
axis may hold entries of several groups (of all that a concatenation puts side by side, say). So
every axis starts out as kept whole, and each group takes away what its removed units own there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from netslim.errors import PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup, Slice
from netslim.surgery.plan import PruningPlan
from netslim.surgery.rows import DROPPED, GroupCut, SizePatch, TensorCut, merging_rows, partners

_TIED = "tied weights cannot be summed on one side alone: leave these groups out of the merge"


def plan_keeping(
    graph: ChannelGraph,
    masks: Mapping[int, Any],
    notes: Iterable[str] = (),
    into: Mapping[int, np.ndarray] | None = None,
) -> PruningPlan:
    """The plan in which group ``g`` keeps the units of the boolean ``masks[g]``.

    Args:
        graph: from `netslim.trace`.
        masks: group number -> shape (size,), which units are kept.
        notes: sentences for people.
        into: group number -> shape (size,), the kept unit each unit is merged into: itself when it
            is kept, and also when it is removed without being merged. What reads it is then summed.

    Raises:
        PlanError: a unit is merged into one that goes, or weights that read merged channels also
            make them (tied weights), so that they cannot be summed.
    """
    masks = {n: np.asarray(m, dtype=bool) for n, m in masks.items() if not np.all(m)}
    groups: dict[str, GroupCut] = {}
    axes: dict[tuple[str, int], _Axis] = {}
    for number in sorted(masks):
        group, mask = graph.groups[number], masks[number]
        ends = _ends(group, mask, (into or {}).get(number))
        kept = tuple(np.flatnonzero(mask).tolist())
        cut = GroupCut(group.size, kept, group.exact, merging_rows(ends, kept))
        groups[group.name] = cut
        for s in group.slices:
            key = s.tensor, s.axis
            if key not in axes:
                axes[key] = _Axis(np.ones(graph.axis_sizes[key], dtype=bool))
            axes[key].drop(s, mask)
            if cut.into and s.role == "consumer":
                axes[key].merge(s, ends, group.name)
    _refuse_tied(axes)
    tensors = _tensor_cuts(axes)
    return PruningPlan(graph.fingerprint, groups, tensors, _patches(graph, masks), tuple(notes))


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

    def drop(self, s: Slice, mask: np.ndarray) -> None:
        """Take away what the removed units of a group own."""
        self.kept[s.positions[~mask[s.units]]] = False
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
        into = () if axis.ends is None else merging_rows(axis.ends, kept)
        cuts.append(TensorCut(tensor, number, len(axis.kept), kept, role, into))
    return tuple(cuts)


def _patches(graph: ChannelGraph, masks: Mapping[int, np.ndarray]) -> tuple[SizePatch, ...]:
    """The attributes whose dimension shrinks, in proportion: one may hold a multiple of it."""
    patches = []
    for rule in graph.size_rules:
        new = rule.old * rule.count.kept(masks) // rule.count.kept({})
        if new != rule.old:
            patches.append(SizePatch(rule.module, rule.attribute, rule.old, new))
    return tuple(patches)


def _ends(group: ChannelGroup, mask: np.ndarray, into: np.ndarray | None) -> np.ndarray:
    """Where each unit ends: itself, the unit it is merged into, or `DROPPED`."""
    own = np.arange(group.size)
    if into is None:
        return np.where(mask, own, DROPPED)
    ends = np.asarray(into, dtype=np.int64).copy()
    if ends.shape != own.shape or not ((ends >= 0) & (ends < group.size)).all():
        raise PlanError(
            f"group {group.name!r} has {group.size} units; into names {ends.tolist()} for them"
        )
    wrong = np.flatnonzero((ends != own) & (mask | ~mask[ends]))
    if len(wrong):
        unit = int(wrong[0])
        what = "is kept and merged as well" if mask[unit] else "which is not kept"
        raise PlanError(
            f"group {group.name!r}: unit {unit} is merged into unit {int(ends[unit])}; it {what}"
        )
    ends[~mask & (ends == own)] = DROPPED
    return ends
