"""From the units that stay to a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from netslim.errors import PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup, SizeRule
from netslim.graph.modules.padded_norms import NormWidth
from netslim.surgery.axes import rows_of
from netslim.surgery.dropped import Dropped, dropped_from
from netslim.surgery.plan import PruningPlan, counted, without_dropped_rows
from netslim.surgery.ports import port_cuts
from netslim.surgery.rows import DROPPED, GroupCut, OrderCut, SizeLoss, SizePatch, merging_rows
from netslim.surgery.stale import Stale, followed, told


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
            make them (tied weights), so that they cannot be summed; or blocks cannot go together.
    """
    masks = {n: np.asarray(m, dtype=bool) for n, m in masks.items() if not np.all(m)}
    masks = graph.with_joined(masks)
    dropped = _dropped(graph, [n for n in masks if graph.groups[n].block])
    masks = {n: mask for n, mask in masks.items() if not graph.groups[n].block}
    groups: dict[str, GroupCut] = {}
    losses = _losses(graph, masks)
    for number in sorted(masks):
        group, mask = graph.groups[number], masks[number]
        kept = tuple(np.flatnonzero(mask).tolist())
        merged: tuple[int, ...] = ()
        if into is not None and number in into:
            merged = merging_rows(_ends(group, mask, into[number]), kept)
        sizes = tuple(losses.get(number, ()))
        groups[group.name] = GroupCut(group.size, kept, group.exact, merged, group.slices, sizes)
    tensors = rows_of(groups, graph.axis_sizes)
    patches = _patches(graph, masks)
    more, left = followed(graph.inventory, tensors, patches)
    _lose(groups, more)
    if left:
        notes = (*notes, told(left))
    patches += tuple(stale.patch for stale in more if stale.patch is not None)
    norms = _norms(graph, masks)
    ports = port_cuts(graph, groups)
    rows = (graph.fingerprint, groups, tensors, patches, tuple(notes))
    orders = tuple(_orders(graph, masks))
    plan = PruningPlan(*rows, norms=norms, ports=ports, orders=orders, dropped=dropped)
    return counted(without_dropped_rows(plan))


def _dropped(graph: ChannelGraph, numbers: Iterable[int]) -> Dropped:
    """What is to be done for the blocks of these groups to go."""
    names = [graph.groups[number].name for number in sorted(numbers)]
    found = dropped_from(graph, names)
    if found is None:
        raise PlanError(
            f"the blocks {', '.join(names)} can each go alone, and not all of them together: leave "
            "some of them out"
        )
    return found


def _orders(graph: ChannelGraph, masks: Mapping[int, np.ndarray]) -> Iterator[OrderCut]:
    """The buffers whose numbers mean channels of which some go."""
    for order in graph.orders:
        kept = np.ones(len(order.groups), dtype=bool)
        for number, mask in masks.items():
            own = order.groups == number
            kept[own] = mask.take(order.units[own])
        if not kept.all():
            yield OrderCut(order.tensor, len(kept), tuple(np.flatnonzero(kept).tolist()))


def _patches(graph: ChannelGraph, masks: Mapping[int, np.ndarray]) -> tuple[SizePatch, ...]:
    """The attributes whose dimension shrinks, in proportion: one may hold a multiple of it."""
    rules = (rule for rule in graph.size_rules if not masks.keys().isdisjoint(rule.count.groups))
    news = [(rule, _size(rule, masks)) for rule in rules]
    return tuple(
        SizePatch(rule.module, rule.attribute, rule.old, new)
        for rule, new in news
        if new != rule.old
    )


def _norms(graph: ChannelGraph, masks: Mapping[int, np.ndarray]) -> tuple[NormWidth, ...]:
    """The normalisations over channels that lose some."""
    gone = [(norm, norm.gone(masks)) for norm in graph.norms]
    return tuple(dict.fromkeys(norm.planned(entries) for norm, entries in gone if len(entries)))


def _size(rule: SizeRule, masks: Mapping[int, np.ndarray]) -> int:
    return rule.old * rule.count.kept(masks) // rule.count.kept({})


def _losses(graph: ChannelGraph, masks: Mapping[int, np.ndarray]) -> dict[int, list[SizeLoss]]:
    """What attributes lose with each group: what is left before it, less what is left after it.

    So that the losses of all groups are what is lost in all, whatever is rounded.
    """
    losses: dict[int, list[SizeLoss]] = {}
    for rule in graph.size_rules:
        left, gone = rule.old, dict[int, np.ndarray]()
        for number in sorted(masks.keys() & set(rule.count.groups)):
            gone[number] = masks[number]
            before, left = left, _size(rule, gone)
            if left != before:
                loss = SizeLoss(rule.module, rule.attribute, before - left)
                losses.setdefault(number, []).append(loss)
    return losses


def _lose(groups: dict[str, GroupCut], more: Iterable[Stale]) -> None:
    """Note what remembered integers lose by the first group that has entries where they count."""
    patches = [(stale.patch, stale.axes) for stale in more]
    if not patches:
        return
    names, first = list(groups), dict[tuple[str, int], int]()
    for number, cut in enumerate(groups.values()):
        for s in cut.slices:
            first.setdefault((s.tensor, s.axis), number)
    for patch, axes in patches:
        held = [first[axis] for axis in axes if axis in first]
        if patch is not None and held:
            name = names[min(held)]
            loss = SizeLoss(patch.module, patch.attribute, patch.old - patch.new)
            groups[name] = replace(groups[name], sizes=(*groups[name].sizes, loss))


def _ends(group: ChannelGroup, mask: np.ndarray, into: np.ndarray) -> np.ndarray:
    """Where each unit ends: itself, the unit it is merged into, or `DROPPED`."""
    own = np.arange(group.size)
    ends = np.asarray(into, dtype=np.int64).copy()
    if ends.shape != own.shape or not ((ends >= 0) & (ends < group.size)).all():
        raise PlanError(
            f"group {group.name!r} has {group.size} units; into names {ends.tolist()} for them"
        )
    wrong = np.flatnonzero((ends != own) & (mask | ~mask[ends]))
    if len(wrong):
        unit = int(wrong[0])
        what = "which is not kept"
        if mask[unit]:
            what = "is kept and merged as well"
        raise PlanError(
            f"group {group.name!r}: unit {unit} is merged into unit {int(ends[unit])}; it {what}"
        )
    ends[~mask & (ends == own)] = DROPPED
    return ends
