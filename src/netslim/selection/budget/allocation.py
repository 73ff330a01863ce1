"""How a budget is spread over the groups: which of all units go, in which order, and how many.

Within a group the least important units go first, in steps that leave a multiple of ``round_to``. A
way of allocation puts the steps of all groups in one order; the shortest beginning of it that meets
every goal goes, and then whatever the goals leave room for comes back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.walk import layer_of
from netslim.selection.budget.knapsack import exact
from netslim.selection.budget.ladder import Goal, Ladder
from netslim.selection.budget.resources import Peak, Vector

Allocation = Literal["global", "uniform", "isomorphic", "cost", "knapsack"]
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)
_ROUNDS = 8  # what a unit saves changes as its neighbours go; it is reckoned anew so many times
_PEAK_ROUNDS = 64  # units that have nothing to do with the fullest moment save nothing, until it is another one


def allocate(ladder: Ladder, goals: Sequence[Goal], way: Allocation) -> Vector:
    """Units that go of each group, shape (groups,), for every goal to be met; they can be met.

    Args:
        ladder: the steps.
        goals: what to reach.
        way: ``global``: one threshold of the scores. ``uniform``: the same share of every group.
            ``isomorphic``: the same share of all groups that are built alike, and one threshold
            within them (Fang et al. 2024). ``cost``: the steps that lose the least score for what
            they save, reckoned anew as groups shrink. ``knapsack``: the least score lost of all
            ways to meet the goals, exactly.

    Raises:
        ArgumentError: the scores do not add up to a loss (negative ones).
        PlanError: the exact way is too long.
    """
    if ladder.met(goals, ladder.start):
        return ladder.start
    if way in ("cost", "knapsack") and (ladder.lost < 0).any():
        raise ArgumentError(
            f"allocation={way!r} adds up the scores that are lost, and some are below 0: take "
            "a criterion whose scores are at least 0, or allocation='global'"
        )
    if way == "knapsack":
        return exact(ladder, goals)
    order, removed = (
        _by_cost(ladder, goals)
        if way == "cost"
        else _by_order(ladder, goals, _ordered(ladder, way))
    )
    return _returned(ladder, goals, order, removed)


def _ordered(ladder: Ladder, way: Allocation) -> Vector:
    """The steps in the order in which they go."""
    if way == "global":
        return np.argsort(ladder.score, kind="stable")
    pool_of = (
        _alike(ladder.graph, ladder.free) if way == "isomorphic" else {n: n for n in ladder.free}
    )
    pools = np.array([pool_of.get(n, -1) for n in range(len(ladder.start))])
    sizes = np.zeros(len(ladder.start))
    for number in ladder.free:
        sizes[pools[number]] += ladder.graph.groups[number].size
    share = np.empty(len(ladder.group))  # of its pool, once this step is done
    for pool in np.unique(pools[ladder.group]):
        mine = np.flatnonzero(pools[ladder.group] == pool)
        mine = mine[np.argsort(ladder.score[mine], kind="stable")]
        share[mine] = np.cumsum(ladder.units[mine]) / sizes[pool]
    return np.argsort(share, kind="stable")


def _by_order(ladder: Ladder, goals: Sequence[Goal], order: Vector) -> tuple[Vector, Vector]:
    """The shortest beginning of an order that meets the goals: (the order, the state)."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if ladder.met(goals, ladder.removed(order[:middle])):
            high = middle
        else:
            low = middle + 1
    return order, ladder.removed(order[:low])


def _by_cost(ladder: Ladder, goals: Sequence[Goal]) -> tuple[Vector, Vector]:
    """Least score lost for what is saved, in rounds; the last one meets the goals."""
    value = ladder.lost / np.maximum(ladder.units, 1)  # within a group it rises
    gone: list[Vector] = []
    removed = ladder.start
    most = _PEAK_ROUNDS if any(isinstance(goal.resource, Peak) for goal in goals) else _ROUNDS
    for rounds in range(most, 0, -1):
        saving = ladder.savings(goals, removed)[ladder.group]
        waiting = np.flatnonzero((ladder.level > removed[ladder.group]) & (saving > 0))
        order = waiting[np.argsort(value[waiting] / saving[waiting], kind="stable")]
        past = np.concatenate([*gone, order]) if gone else order
        if rounds == 1:
            break
        unmet = sum(ladder.left(goal.resource, removed) > goal.limit for goal in goals)
        taken = np.searchsorted(np.cumsum((saving * ladder.units)[order]), unmet / rounds)
        ahead = ladder.removed(np.concatenate([*gone, order[:taken]]))
        if ladder.met(goals, ahead):
            break
        gone.append(order[:taken])
        removed = ahead
    rest = np.setdiff1d(np.arange(len(ladder.group)), past)  # what saves nothing goes last
    return _by_order(ladder, goals, np.concatenate([past, rest]))


def _returned(ladder: Ladder, goals: Sequence[Goal], order: Vector, removed: Vector) -> Vector:
    """The state after everything that the goals leave room for came back, what went last first."""
    gone = order[ladder.level[order] <= removed[ladder.group[order]]][::-1]
    closed = np.ones(len(ladder.start), dtype=bool)  # groups of which no more can come back
    closed[ladder.fitting(goals, removed)] = False
    several = 1
    while len(gone := gone[~closed[ladder.group[gone]]]):
        ahead = removed - ladder.removed(gone[:several]) + ladder.start
        if ladder.met(goals, ahead):
            removed, gone, several = ahead, gone[several:], 2 * several
        elif several > 1:
            several //= 2
        else:
            closed[ladder.group[gone[0]]] = True
    return removed


def _alike(graph: ChannelGraph, numbers: Iterable[int]) -> dict[int, int]:
    """Group number -> the first group that is built like it: the same roles in layers of the same
    kinds.
    """
    first: dict[object, int] = {}
    return {n: first.setdefault(_build(graph, graph.groups[n]), n) for n in numbers}


def _build(graph: ChannelGraph, group: ChannelGroup) -> object:
    parts: Counter[object] = Counter()
    for s in group.slices:
        owner, _, own = s.tensor.rpartition(".")
        kind = graph.inventory.modules.get(layer_of(s.tensor), owner)
        kernel = graph.inventory.shapes.get(s.tensor, ())[2:]
        parts[s.role, s.axis, kind, own, kernel] += 1
    return frozenset(parts.items())


__all__ = ["ALLOCATIONS", "Allocation", "allocate"]
