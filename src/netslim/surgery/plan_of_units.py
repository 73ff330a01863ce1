"""From the units that stay to a plan: which indices of which tensors are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from netslim.errors import PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.surgery.plan import PruningPlan
from netslim.surgery.rows import DROPPED, GroupCut, SizePatch, TensorCut, merging_rows, partners

_TIED = "tied weights cannot be summed on one side alone: leave these groups out of the merge"


def plan_keeping(
    graph: ChannelGraph,
    masks: Mapping[int, Any],
    notes: Iterable[str] = (),
    into: Mapping[int, np.ndarray] | None = None,
) -> PruningPlan:
    """Write out which indices of which tensors stay when group ``g`` keeps the units of the boolean
    ``masks[g]``.

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
    groups = {}
    onto: dict[tuple[str, int], np.ndarray] = {}  # where the entries of an axis end
    keep: dict[tuple[str, int], np.ndarray] = {}
    roles: dict[tuple[str, int], set[str]] = {}
    for number in sorted(masks):
        group, mask = graph.groups[number], masks[number]
        ends = _ends(group, mask, (into or {}).get(number))
        survivors = tuple(np.flatnonzero(mask).tolist())
        groups[group.name] = GroupCut(
            group.size, survivors, group.exact, merging_rows(ends, survivors)
        )
        for s in group.slices:
            gone = s.positions[~mask[s.units]]
            key = (s.tensor, s.axis)
            kept = keep.setdefault(key, np.ones(graph.axis_sizes[key], dtype=bool))
            kept[gone] = False
            roles.setdefault(key, set()).add(s.role)
            if groups[group.name].into and s.role == "consumer":
                if s.mixed:
                    raise PlanError(
                        f"group {group.name!r}: {s.tensor!r} reads the channels that it makes; "
                        f"{_TIED}"
                    )
                merged, targets = partners(s.positions, s.units, ends)
                onto.setdefault(key, np.full(len(kept), DROPPED))[merged] = targets
    for (t, a), others in {key: roles[key] - {"consumer"} for key in onto}.items():
        if others:
            what = " and ".join(sorted(others))
            raise PlanError(
                f"axis {a} of {t!r} reads merged channels and is {what} of channels, too; {_TIED}"
            )
    same: dict[bytes, tuple[int, ...]] = {}  # many tensors keep the same indices
    tensors = []
    for (t, a), kept in keep.items():
        indices = _indices(kept, same)
        sums = merging_rows(onto[t, a], indices) if (t, a) in onto else ()
        tensors.append(TensorCut(t, a, len(kept), indices, "+".join(sorted(roles[t, a])), sums))
    patches = []
    for rule in graph.size_rules:
        new = rule.old * rule.count.kept(masks) // rule.count.kept({})
        if new != rule.old:
            patches.append(SizePatch(rule.module, rule.attribute, rule.old, new))
    return PruningPlan(graph.fingerprint, groups, tuple(tensors), tuple(patches), tuple(notes))


def _ends(group: ChannelGroup, mask: np.ndarray, into: np.ndarray | None) -> np.ndarray:
    """Where each unit ends: itself, the unit it is merged into, or `DROPPED`."""
    own = np.arange(group.size)
    ends = own.copy() if into is None else np.asarray(into, dtype=np.int64).copy()
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


def _indices(kept: np.ndarray, known: dict[bytes, tuple[int, ...]]) -> tuple[int, ...]:
    key = kept.tobytes()
    if key not in known:
        known[key] = tuple(np.flatnonzero(kept).tolist())
    return known[key]
