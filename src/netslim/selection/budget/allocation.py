"""How a budget is spread over the groups: which of all units go, in which order, and how many.

Within a group the least important units go first, in steps that leave a multiple of ``round_to``. A
way of allocation puts the steps of all groups in one order; the shortest beginning of it that meets
every goal goes, and then whatever the goals leave room for comes back.

The second pass is what makes the cut minimal: no single step could stay. The last step may have
saved much more than was missing, in a layer where channels are dear, and so make some earlier ones
needless. For instance 100 is to be saved and the order saves 30, 30, 90: all three go, which saves
150; then the second comes back, for 120 will do, and the first cannot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from netslim._support import brief, checks_calls, from_module, nearest
from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.walk import layer_of
from netslim.graph.tracing.atoms import distinct
from netslim.selection.budget.knapsack import exact
from netslim.selection.budget.ladder import Goal, Ladder
from netslim.selection.budget.resources import Peak, Vector

Way = Callable[[Ladder, Sequence[Goal]], Vector]
ALLOCATIONS: dict[str, Way] = {}
_ROUNDS = 8  # what a unit saves changes as its neighbours go; it is reckoned anew so many times
# Of memory at its peak only units that are alive at the fullest moment save anything, and once they
# are fewer another moment is the fullest: prices change more often.
_PEAK_ROUNDS = 64


@checks_calls
def allocation(way: Way) -> Way:
    """Register a way of allocation under its own name, a decorator.

    `select` and all that calls it know it then. The function takes the ladder of steps and the
    goals, of which at least one is not met yet though all can be; it returns how many units go of
    each group, shape (groups,). Its docstring says what is spread how. A trailing underscore does
    not belong to the name. One in your own module is also found as ``package.module:function``.
    """
    ALLOCATIONS[way.__name__.rstrip("_")] = way
    return way


def allocation_of(name: str) -> Way:
    """The way of allocation of this name.

    Raises:
        ArgumentError: there is none; the nearest, or all of them, are named.
    """
    if name in ALLOCATIONS:
        return ALLOCATIONS[name]
    if ":" in str(name):
        return from_module(name, ArgumentError)
    raise ArgumentError(
        f"allocation must be one of {', '.join(map(repr, ALLOCATIONS))}, got {brief(name)}"
        f"{nearest(name, ALLOCATIONS, otherwise='')}"
    )


def allocate(ladder: Ladder, goals: Sequence[Goal], way: Way) -> Vector:
    """Units that go of each group, shape (groups,), for every goal to be met; they can be met.

    Raises:
        PlanError: as the way of allocation does.
    """
    if ladder.met(goals, ladder.start):
        return ladder.start
    return way(ladder, goals)


@allocation
def global_(ladder: Ladder, goals: Sequence[Goal]) -> Vector:
    """One threshold of the scores of all units; of equal ones, to the same share of every group."""
    return fewest(ladder, goals, _rising(ladder, np.arange(len(ladder.score))))


@allocation
def uniform(ladder: Ladder, goals: Sequence[Goal]) -> Vector:
    """The same share of every group."""
    return fewest(ladder, goals, _by_share(ladder, {n: n for n in ladder.free}))


@allocation
def isomorphic(ladder: Ladder, goals: Sequence[Goal]) -> Vector:
    """The same share of all groups built alike, one threshold in each pool (Fang et al. 2024)."""
    return fewest(ladder, goals, _by_share(ladder, _alike(ladder.graph, ladder.free)))


@allocation
def cost(ladder: Ladder, goals: Sequence[Goal]) -> Vector:
    """The steps that lose the least score for what they save, reckoned anew as groups shrink.

    Raises:
        ArgumentError: scores below 0 do not add up to a loss.
    """
    _check_losses(ladder, "cost")
    return _returned(ladder, goals, *_by_cost(ladder, goals))


@allocation
def knapsack(ladder: Ladder, goals: Sequence[Goal]) -> Vector:
    """The least score lost of all ways to meet the goals, exactly, for small networks.

    Raises:
        ArgumentError: scores below 0 do not add up to a loss.
        PlanError: the way is too long.
    """
    _check_losses(ladder, "knapsack")
    return exact(ladder, goals)


def _check_losses(ladder: Ladder, name: str) -> None:
    if (ladder.lost < 0).any():
        raise ArgumentError(
            f"allocation={name!r} adds up the scores that are lost, and some are below 0: take "
            "a criterion whose scores are at least 0, or allocation='global'"
        )


def fewest(ladder: Ladder, goals: Sequence[Goal], order: Vector) -> Vector:
    """Units that go of each group, shape (groups,), when steps go in this order.

    As few as meet the goals; what they leave room for comes back.

    Args:
        ladder: the steps.
        goals: what to reach.
        order: numbers of all steps, those of a group as they stand in the ladder.
    """
    return _returned(ladder, goals, *_by_order(ladder, goals, order))


def _by_share(ladder: Ladder, pool_of: Mapping[int, int]) -> Vector:
    """The steps in the order in which pools of groups lose the same share; within one, by score."""
    pools = np.array([pool_of.get(n, -1) for n in range(len(ladder.start))])
    sizes = np.zeros(len(ladder.start))
    for number in ladder.free:
        sizes[pools[number]] += ladder.graph.groups[number].size
    share = np.empty(len(ladder.group))  # of its pool, once this step is done
    pool_of_step = pools.take(ladder.group)
    for pool in distinct(pool_of_step):
        mine = _rising(ladder, np.flatnonzero(pool_of_step == pool))
        share[mine] = np.cumsum(ladder.units.take(mine)) / sizes[pool]
    return np.argsort(share, kind="stable")


def _rising(ladder: Ladder, steps: Vector) -> Vector:
    """These steps by score; of equal ones, those that leave most of their group go first.

    Equal scores say that nothing is known, as before training, where every scale is 1. In order of
    position the first layers would be emptied down to one channel and the last would stay whole.
    """
    score = ladder.score.take(steps)
    order = np.argsort(score, kind="stable")
    rising = score.take(order)
    if np.count_nonzero(rising[1:] == rising[:-1]):
        sizes = np.array([group.size for group in ladder.graph.groups])
        share = ladder.level[steps] / sizes[ladder.group[steps]]  # left once the step is done
        order = np.lexsort((share, score))
    return steps.take(order)


def _by_order(ladder: Ladder, goals: Sequence[Goal], order: Vector) -> tuple[Vector, Vector]:
    """The shortest beginning of an order that meets the goals: (the order, the state).

    Bisection: every step leaves less of every resource, so what meets the goals goes on meeting
    them.
    """
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if ladder.met(goals, ladder.removed(order[:middle])):
            high = middle
        else:
            low = middle + 1
    return order, ladder.removed(order[:low])


def _by_cost(ladder: Ladder, goals: Sequence[Goal]) -> tuple[Vector, Vector]:
    """Least score lost for what is saved, in rounds; the last one meets the goals.

    Costs are products of widths: as a layer shrinks, a channel of its neighbour saves less, so a
    price, score lost over cost saved, holds only near the state it was reckoned at. With k rounds
    to go, the cheapest steps go until a k-th of what is missing is saved at these prices, and then
    prices are reckoned anew. Within a group all units save alike and their scores rise, so prices
    rise and the steps stay in order.
    """
    value = ladder.lost / np.maximum(ladder.units, 1)  # within a group it rises
    gone: list[Vector] = []
    removed = ladder.start
    for rounds in range(_rounds(goals), 0, -1):
        # Of one unit, at the widths of now, and the same for all units of its group.
        saving = ladder.savings(goals, removed).take(ladder.group)
        waiting = np.flatnonzero((ladder.level > removed.take(ladder.group)) & (saving > 0))
        price = value.take(waiting) / saving.take(waiting)
        order = waiting.take(np.argsort(price, kind="stable"))
        past = np.concatenate([*gone, order])
        if rounds == 1:
            break
        # Savings are in shares of what each unmet goal asks for, so 1 a goal is what is missing.
        unmet = sum(ladder.left(goal.resource, removed) > goal.limit for goal in goals)
        taken = np.searchsorted(np.cumsum((saving * ladder.units)[order]), unmet / rounds)
        ahead = ladder.removed(np.concatenate([*gone, order[:taken]]))
        if ladder.met(goals, ahead):
            break
        gone.append(order[:taken])
        removed = ahead
    rest = np.ones(len(ladder.group), dtype=bool)
    rest[past] = False
    # What saves nothing goes last.
    return _by_order(ladder, goals, np.concatenate([past, np.flatnonzero(rest)]))


def _rounds(goals: Sequence[Goal]) -> int:
    peak = any(isinstance(goal.resource, Peak) for goal in goals)
    return _PEAK_ROUNDS if peak else _ROUNDS


def _returned(ladder: Ladder, goals: Sequence[Goal], order: Vector, removed: Vector) -> Vector:
    """The state after everything that the goals leave room for came back, what went last first.

    The goals are met at every moment. Steps are tried one, two, four at a time, for most come back
    in long runs or not at all. One that does not fit alone closes its group: the group's earlier
    steps cannot come back before it does.
    """
    gone = order[ladder.level[order] <= removed[ladder.group[order]]][::-1]
    closed = np.ones(len(ladder.start), dtype=bool)  # groups of which no more can come back
    closed[ladder.fitting(goals, removed)] = False
    several = 1
    while len(gone := gone[~closed[ladder.group[gone]]]):
        # What comes back is what `removed` counts of these steps above the start.
        ahead = removed - ladder.removed(gone[:several]) + ladder.start
        if ladder.met(goals, ahead):
            removed, gone, several = ahead, gone[several:], 2 * several
        elif several > 1:
            several //= 2
        else:
            closed[ladder.group[gone[0]]] = True
    return removed


def _alike(graph: ChannelGraph, numbers: Iterable[int]) -> dict[int, int]:
    """Group number -> the first group that is built like it: in the same roles, in like layers."""
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


__all__ = ["ALLOCATIONS", "Way", "allocate", "allocation", "allocation_of", "fewest"]
