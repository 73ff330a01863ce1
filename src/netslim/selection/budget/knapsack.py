"""The least score lost of all ways to meet a goal, exactly: what the greedy ways are compared with.

Costs are products of the widths of neighbouring groups, so this is no textbook knapsack. Groups are
settled one after the other in order of execution. Of all choices for the groups so far, only those
matter that differ in the widths of groups which still meet others, and among these only the ones
that no other beats in both cost and score lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from netslim.errors import ArgumentError, PlanError
from netslim.selection.budget.ladder import Goal, Ladder
from netslim.selection.budget.resources import Products, Vector

MOST = 2_000_000  # choices that are looked at for one group


def exact(ladder: Ladder, goals: Sequence[Goal]) -> Vector:
    """Units that go of each group, shape (groups,), with the least score lost.

    Args:
        ladder: the steps.
        goals: one goal, in channels, parameters, multiply-accumulates or activations.

    Raises:
        ArgumentError: there are several goals, or the goal is a latency.
        PlanError: the network is too large.
    """
    if len(goals) != 1 or not isinstance(goals[0].resource, Products):
        named = ", ".join(goal.name for goal in goals)
        raise ArgumentError(
            "allocation='knapsack' takes one budget of channels or counted costs, got "
            f"{named}; use 'cost'"
        )
    return _Search(ladder, goals[0]).run()


class _Search:
    """Choices are rows: a column of levels for each group, the cost and the score lost so far."""

    def __init__(self, ladder: Ladder, goal: Goal) -> None:
        self.ladder, self.goal = ladder, goal
        self.levels, self.lost = {}, {}
        for number in ladder.free:
            mine = ladder.group == number
            self.levels[number] = np.concatenate([[0], ladder.level[mine]])
            self.lost[number] = np.concatenate([[0.0], np.cumsum(ladder.lost[mine])])
        assert isinstance(goal.resource, Products)
        self.terms, self.weights = goal.resource.terms.factors, goal.resource.weights
        of_count: dict[int, list[int]] = {}
        for number in np.unique(self.terms).tolist():
            of_count[number] = [g for g in ladder.widths.groups_of(number) if g in self.levels]
        self.groups_of = [
            sorted({g for c in row for g in of_count[c]}) for row in self.terms.tolist()
        ]

    def run(self) -> Vector:
        choices, cost, lost = np.zeros((1, 0), dtype=np.int64), np.zeros(1), np.zeros(1)
        settled: list[int] = []
        cost = cost + self._cost(
            choices, settled, [t for t, groups in enumerate(self.groups_of) if not groups]
        )
        for number in self.ladder.free:
            settled.append(number)
            due = [
                t
                for t, groups in enumerate(self.groups_of)
                if number in groups and set(groups) <= set(settled)
            ]
            levels = self.levels[number]
            if len(choices) * len(levels) > MOST:
                raise PlanError(
                    f"allocation='knapsack' would look at {len(choices) * len(levels):,} "
                    f"choices for {self.ladder.graph.groups[number].name!r} alone: take "
                    "allocation='cost', or a larger round_to"
                )
            choices = np.concatenate(
                [np.repeat(choices, len(levels), 0), np.tile(levels, len(choices))[:, None]], 1
            )
            cost = np.repeat(cost, len(levels)) + self._cost(choices, settled, due)
            lost = np.repeat(lost, len(levels)) + np.tile(
                self.lost[number], len(cost) // len(levels)
            )
            keep = np.flatnonzero(cost + self._least(settled) <= self.goal.limit)
            keep = keep[self._unbeaten(choices[keep], cost[keep], lost[keep], settled)]
            choices, cost, lost = choices[keep], cost[keep], lost[keep]
        best = choices[np.lexsort((cost, lost))[0]]
        removed = self.ladder.start.copy()
        removed[settled] = best
        return removed

    def _cost(self, choices: Vector, settled: Sequence[int], terms: Sequence[int]) -> Vector:
        """The cost of some terms for every choice, whose groups are all settled."""
        if not terms:
            return np.zeros(len(choices))
        places = [settled.index(g) for g in sorted({g for t in terms for g in self.groups_of[t]})]
        rows, back = np.unique(choices[:, places], axis=0, return_inverse=True)
        found = np.empty(len(rows))
        for i, row in enumerate(rows):
            removed = self.ladder.start.copy()
            removed[[settled[p] for p in places]] = row
            counts = self.ladder.widths.counts(removed)
            found[i] = (counts[self.terms[terms]].prod(axis=1) * self.weights[terms]).sum()
        return found[back.reshape(-1)]

    def _least(self, settled: Sequence[int]) -> float:
        """What the terms that are not settled cost at the least."""
        counts = self.ladder.widths.counts(self.ladder.furthest)
        open_ = [t for t, groups in enumerate(self.groups_of) if not set(groups) <= set(settled)]
        return float((counts[self.terms[open_]].prod(axis=1) * self.weights[open_]).sum())

    def _unbeaten(
        self, choices: Vector, cost: Vector, lost: Vector, settled: Sequence[int]
    ) -> Vector:
        """Numbers of the choices that none beats which looks the same to the groups that are still
        to come.
        """
        coming = {g for groups in self.groups_of if not set(groups) <= set(settled) for g in groups}
        front = [i for i, g in enumerate(settled) if g in coming]
        if front:
            _, state = np.unique(choices[:, front], axis=0, return_inverse=True)
            state = state.reshape(-1)
        else:
            state = np.zeros(len(choices), dtype=np.int64)
        order = np.lexsort((lost, cost, state))  # of each state, the cheapest first
        kept, best, current = [], np.inf, -1
        for number in order.tolist():
            if state[number] != current:
                current, best = int(state[number]), np.inf
            if lost[number] < best:
                kept.append(number)
                best = float(lost[number])
        return np.array(kept, dtype=np.int64)


__all__ = ["exact"]
