"""The steps in which units may go, and what has to be reached by them.

Of each group the least important units go first, as many at a time as leave an allowed width. With
``round_to=8`` a group of 20 channels first loses 4, so that 16 stay, and then 8 at a time::

    units that went   0 ------ 4 ------ 12
    steps                 4         8

So one number a group, how many of its units went, says everything: that is the state which all ways
of allocation search, and what it leaves of a resource is known at once (`Widths.counts`). An order
of all steps of all groups keeps those of one group as they stand here; then every beginning of the
order is a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from netslim.selection.budget.choice import Chooser, Masks
from netslim.selection.budget.resources import Resource, Vector, Widths


@dataclass(frozen=True)
class Goal:
    """At most ``limit`` of a resource may be left.

    Attributes:
        name: the field of `Budget` that asks for it.
        resource: what is limited.
        limit: in the unit of the resource.
        whole: how much the original has.

    Example:
        >>> from netslim.selection.budget import Chooser, Goal, Ladder, Products
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "l1")
        >>> ladder = Ladder(Chooser(graph, scores, netslim.Limits()), fixed={})
        >>> macs = Products(ladder.widths, [cost.terms for cost in graph.costs])
        >>> goal = Goal("cut_macs", macs, limit=0.5 * graph.macs(), whole=graph.macs())
        >>> macs.total(ladder.widths.counts(ladder.start)) <= goal.limit  # nothing went yet
        False
    """

    name: str
    resource: Resource
    limit: float
    whole: float


class Ladder:
    """The steps in which units may go, and how many went: the state that is searched.

    Args:
        chooser: the groups that may be cut, and their limits.
        fixed: group number -> how many units go, where a name says so.

    Attributes:
        free: numbers of the groups that are searched.
        start: the state before the first step: what names say; shape (groups,).
        group, units, level: of each step: its group, how many units go with it, and how many of the
            group went when it is done; shape (steps,).
        score: of each step: that of its most important unit, which a threshold must reach for all
            of the step to go.
        lost: of each step: the sum of the scores of its units; a block counts for as many as it
            stands for.

    Example:
        >>> from netslim.selection.budget import Chooser, Ladder
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "l1")
        >>> ladder = Ladder(Chooser(graph, scores, netslim.Limits(round_to=4)), fixed={})
        >>> ladder.group, ladder.units  # group 0 may lose 4 channels, group 1 three times 4
        (array([0, 1, 1, 1]), array([4, 4, 4, 4]))
    """

    group: Vector
    units: Vector
    level: Vector
    score: Vector
    lost: Vector

    def __init__(self, chooser: Chooser, fixed: Mapping[int, int]) -> None:
        self.chooser, self.graph = chooser, chooser.graph
        self.free = [n for n in chooser.scores if n not in fixed]
        orders = {n: chooser.order(n) for n in chooser.scores}
        self.widths = Widths(self.graph, orders)
        self.start = np.zeros(len(self.graph.groups), dtype=np.int64)
        for number, count in fixed.items():
            self.start[number] = count
        parts = [self._steps(n, chooser.scores[n][orders[n]]) for n in self.free]
        columns = np.concatenate([np.empty((5, 0)), *parts], axis=1)
        self.group, self.units, self.level = columns[:3].astype(np.int64)
        self.score, self.lost = columns[3:]

    def _steps(self, number: int, rising: Vector) -> Vector:
        levels = self.chooser.levels(number)
        # For instance scores 1 2 4 5 6 7, of which 0, 1, 3 or 5 may go: steps of 1, 2 and 2 units,
        # whose most important ones score 1, 4 and 6, and which lose 1, 6 and 11.
        sums = np.concatenate([[0.0], np.cumsum(rising)])
        group = np.full(len(levels) - 1, number)
        most_important = rising[levels[1:] - 1]
        # The score of a block is set against those of single channels, of which it costs several.
        lost = np.diff(sums[levels]) * self.graph.groups[number].stands_for
        return np.stack([group, np.diff(levels), levels[1:], most_important, lost])

    def removed(self, steps: Vector) -> Vector:
        """The state, shape (groups,), after these steps; those of a group are its first ones."""
        units = self.units.take(steps)
        gone = np.bincount(self.group.take(steps), weights=units, minlength=len(self.start))
        return self.start + gone.astype(np.int64)

    @property
    def furthest(self) -> Vector:
        """The state after all steps."""
        return self.removed(np.arange(len(self.group)))

    def left(self, resource: Resource, removed: Vector) -> float:
        """How much of a resource is left."""
        return resource.total(self.widths.counts(removed))

    def met(self, goals: Sequence[Goal], removed: Vector) -> bool:
        """Whether every goal is met."""
        counts = self.widths.counts(removed)
        return all(goal.resource.total(counts) <= goal.limit for goal in goals)

    def savings(self, goals: Sequence[Goal], removed: Vector) -> Vector:
        """What the next unit of each group saves; shape (groups,).

        In shares of what the goals still ask for, so that channels, multiply-accumulates and
        milliseconds add up: 1 would meet one goal that is not met yet. Goals that are met ask for
        nothing more.
        """
        counts = self.widths.counts(removed)
        slopes = np.zeros(len(counts))
        for goal in goals:
            # The gradient of ``total / need`` by the counts; `Widths.savings` makes it one by the
            # units.
            need = goal.resource.total(counts) - goal.limit
            if need > 0:
                slopes += goal.resource.slopes(counts) / need
        return self.widths.savings(slopes, removed)

    def fitting(self, goals: Sequence[Goal], removed: Vector) -> Vector:
        """The groups whose last step may fit, if it comes back, into what the goals leave.

        A quick look that spares most of the exact tries. A product of widths grows by its slope at
        the smaller width at least, for the other factors do not shrink; so where the slope alone is
        too much, the step cannot fit. Half of it is taken, which allows for units with unequal
        numbers of entries.
        """
        # The last step of each group that went: the one whose level is where the group is now, if
        # it is not where the group began.
        done = np.flatnonzero(
            (self.level == removed[self.group]) & (removed[self.group] > self.start[self.group])
        )
        group, units = self.group[done], self.units[done]
        before = removed.copy()
        before[group] -= units
        counts = self.widths.counts(removed)
        fits = np.ones(len(done), dtype=bool)
        for goal in goals:
            slopes = goal.resource.slopes(counts)
            grows = self.widths.savings(slopes, before)[group] * units
            fits &= grows / 2 <= goal.limit - goal.resource.total(counts)
        return group[fits]

    def masks(self, removed: Vector) -> Masks:
        """Group number -> which units are kept."""
        masks = {}
        for number in np.flatnonzero(removed).tolist():
            masks[number] = np.ones(self.graph.groups[number].size, dtype=bool)
            masks[number][self.widths.orders[number][: removed[number]]] = False
        return masks


__all__ = ["Goal", "Ladder"]
