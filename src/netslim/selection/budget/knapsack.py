"""The least score lost of all ways to meet a goal, exactly: what the greedy ways are compared with.

A knapsack adds up prices of single things; here costs are products of the widths of neighbouring
groups, ``9 a + 9 ab + 9 bc`` for three convolutions in a row. So groups are decided one after the
other in order of execution, and of all choices made so far only a few are kept:

- *The state.* Once ``a`` and ``b`` are decided, what is to come depends on ``b`` alone, which ``c``
  still meets; ``a`` is history. Choices compare only where such widths are the same.
- *Dominance.* Of these, one that costs no more and loses no more than another makes the other
  needless, whatever comes: the front of (cost, score lost) stays.
- *The bound.* What is still open costs at least what it does with every group as narrow as it may
  be. A choice that is above the limit even so is dropped.

None of the three drops the best choice, so the result is exact. The front is what grows with the
network, hence small networks only.
"""

from __future__ import annotations

import itertools
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
        self.groups_of = [self._groups(row) for row in self.terms.tolist()]  # of each term

    def _groups(self, factors: Sequence[int]) -> set[int]:
        """The groups that are searched, and on which some of these counts depend."""
        found = itertools.chain.from_iterable(map(self.ladder.widths.groups_of, factors))
        return {group for group in found if group in self.levels}

    def run(self) -> Vector:
        """The state that loses least, shape (groups,)."""
        choices, cost, lost = np.zeros((1, 0), dtype=np.int64), np.zeros(1), np.zeros(1)
        decided: list[int] = []
        fixed = [t for t, groups in enumerate(self.groups_of) if not groups]
        cost = cost + self._cost(choices, decided, fixed)
        for number in self.ladder.free:
            levels, before = self.levels[number], set(self._open(decided))
            self._check_size(number, len(choices) * len(levels))
            decided.append(number)
            # A term is paid for when the last of its groups is decided; until then `_least` stands
            # for it.
            due = sorted(before - set(self._open(decided)))  # terms all of whose groups are decided
            choices, cost, lost = self._extended(choices, cost, lost, number)
            cost = cost + self._cost(choices, decided, due)
            keep = np.flatnonzero(cost + self._least(decided) <= self.goal.limit)
            keep = keep[self._unbeaten(choices[keep], cost[keep], lost[keep], decided)]
            choices, cost, lost = choices[keep], cost[keep], lost[keep]
        removed = self.ladder.start.copy()
        removed[decided] = choices[np.lexsort((cost, lost))[0]]
        return removed

    def _check_size(self, number: int, choices: int) -> None:
        if choices > MOST:
            raise PlanError(
                f"allocation='knapsack' would look at {choices:,} choices for "
                f"{self.ladder.graph.groups[number].name!r} alone: take allocation='cost', or a "
                "larger round_to"
            )

    def _open(self, decided: Sequence[int]) -> list[int]:
        """The terms that depend on some group which is not decided yet."""
        done = set(decided)
        return [t for t, groups in enumerate(self.groups_of) if not groups <= done]

    def _extended(
        self, choices: Vector, cost: Vector, lost: Vector, number: int
    ) -> tuple[Vector, Vector, Vector]:
        """Every choice with every level of one more group, whose own cost is still to be added."""
        levels, losses = self.levels[number], self.lost[number]
        times = len(levels)
        column = np.tile(levels, len(choices))[:, None]
        grown = np.concatenate([np.repeat(choices, times, 0), column], 1)
        return grown, np.repeat(cost, times), np.repeat(lost, times) + np.tile(losses, len(choices))

    def _cost(self, choices: Vector, decided: Sequence[int], terms: Sequence[int]) -> Vector:
        """The cost of some terms for every choice, whose groups are all decided."""
        if not terms:
            return np.zeros(len(choices))
        groups = sorted(set().union(*(self.groups_of[t] for t in terms)))
        # Thousands of choices differ only in groups that these terms know nothing of: reckon each
        # combination of widths once.
        rows, back = np.unique(
            choices[:, [decided.index(g) for g in groups]], axis=0, return_inverse=True
        )
        found = np.empty(len(rows))
        for i, row in enumerate(rows):
            removed = self.ladder.start.copy()
            removed[groups] = row
            counts = self.ladder.widths.counts(removed)
            found[i] = (counts[self.terms[terms]].prod(axis=1) * self.weights[terms]).sum()
        return found[back.reshape(-1)]

    def _least(self, decided: Sequence[int]) -> float:
        """What the open terms cost at the least: with every group as narrow as it may be."""
        counts = self.ladder.widths.counts(self.ladder.furthest)
        terms = self._open(decided)
        return float((counts[self.terms[terms]].prod(axis=1) * self.weights[terms]).sum())

    def _unbeaten(
        self, choices: Vector, cost: Vector, lost: Vector, decided: Sequence[int]
    ) -> Vector:
        """Numbers of the choices that no other beats which leaves the same to what is to come."""
        meet = set().union(*(self.groups_of[t] for t in self._open(decided)))
        front = [i for i, g in enumerate(decided) if g in meet]
        state = np.zeros(len(choices), dtype=np.int64)
        if front:
            _, state = np.unique(choices[:, front], axis=0, return_inverse=True)
            state = state.reshape(-1)
        # With (cost, lost) of (3, 9), (4, 9) and (5, 2) the second is needless: the first costs
        # less and loses no more. Walking up the costs, only what loses less than all before it
        # stays.
        order = np.lexsort((lost, cost, state))  # of each state, the cheapest first
        kept, best, current = [], np.inf, -1
        for number in order.tolist():
            if state[number] != current:
                current, best = int(state[number]), np.inf
            if lost[number] < best:  # dearer than all before it, so it has to lose less
                kept.append(number)
                best = float(lost[number])
        return np.array(kept, dtype=np.int64)


__all__ = ["exact"]
