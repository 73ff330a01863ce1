"""The steps in which units may go, and what has to be reached by them."""

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
    """

    name: str
    resource: Resource
    limit: float
    whole: float


class Ladder:
    """The steps in which units may go, and how many went: the state that is searched.

    Args:
        chooser: the groups that may be cut, and their limits.
        fixed: group number -> how many units go, where that is settled.
    """

    def __init__(self, chooser: Chooser, fixed: Mapping[int, int]) -> None:
        self.chooser, self.graph = chooser, chooser.graph
        self.free = [n for n in chooser.scores if n not in fixed]
        orders = {n: chooser.order(n) for n in chooser.scores}
        self.widths = Widths(self.graph, orders)
        self.start = np.zeros(len(self.graph.groups), dtype=np.int64)
        for number, count in fixed.items():
            self.start[number] = count
        parts = [self._steps(n, chooser.scores[n][orders[n]]) for n in self.free]
        columns = np.concatenate(parts, axis=1) if parts else np.empty((5, 0))
        self.group, self.units, self.level = columns[:3].astype(np.int64)
        self.score, self.lost = columns[3:]

    def _steps(self, number: int, rising: Vector) -> Vector:
        levels = self.chooser.levels(number)
        sums = np.concatenate([[0.0], np.cumsum(rising)])
        return np.stack(
            [
                np.full(len(levels) - 1, number),
                np.diff(levels),
                levels[1:],
                rising[levels[1:] - 1],  # the most important of the units of the step
                np.diff(sums[levels]),
            ]
        )

    def removed(self, steps: Vector) -> Vector:
        """Units that went from each group, shape (groups,), after these steps; within a group they
        go in order.
        """
        gone = np.bincount(self.group[steps], weights=self.units[steps], minlength=len(self.start))
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
        """What the next unit of each group saves, in shares of what the goals still ask for; shape
        (groups,).
        """
        counts = self.widths.counts(removed)
        slopes = np.zeros(len(counts))
        for goal in goals:
            need = goal.resource.total(counts) - goal.limit
            if need > 0:
                slopes += goal.resource.slopes(counts) / need
        return self.widths.savings(slopes, removed)

    def fitting(self, goals: Sequence[Goal], removed: Vector) -> Vector:
        """The groups whose last step may fit, if it comes back, into what the goals leave."""
        done = np.flatnonzero(
            (self.level == removed[self.group]) & (removed[self.group] > self.start[self.group])
        )
        before = removed.copy()
        before[self.group[done]] -= self.units[done]
        counts = self.widths.counts(removed)
        fits = np.ones(len(done), dtype=bool)
        for goal in goals:
            # A product grows by its slope at least; half of it allows for units with unequal
            # entries.
            grows = (
                self.widths.savings(goal.resource.slopes(counts), before)[self.group[done]]
                * self.units[done]
            )
            fits &= grows / 2 <= goal.limit - goal.resource.total(counts)
        return self.group[done[fits]]

    def masks(self, removed: Vector) -> Masks:
        """Group number -> which units are kept."""
        masks = {}
        for number in np.flatnonzero(removed).tolist():
            masks[number] = np.ones(self.graph.groups[number].size, dtype=bool)
            masks[number][self.widths.orders[number][: removed[number]]] = False
        return masks


__all__ = ["Goal", "Ladder"]
