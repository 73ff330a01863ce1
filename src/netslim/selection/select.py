"""From scores to a plan that meets a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
from torch import Tensor

from netslim._support import described, listed
from netslim.errors import ArgumentError, PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.ambient import by_itself
from netslim.selection.budget.allocation import allocate, allocation_of
from netslim.selection.budget.choice import Chooser
from netslim.selection.budget.ladder import Goal, Ladder
from netslim.selection.budget.limits import shown_cap
from netslim.selection.budget.resources import Asked, LatencySource, Resource, Stepped, kind_of
from netslim.selection.options import Budget, Limits, takes_options
from netslim.surgery.plan import PruningPlan
from netslim.surgery.plan_of_units import plan_keeping


@takes_options
@by_itself
def select(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    budget: Budget | None = None,
    *,
    per_group: Mapping[str, float | int] | None = None,
    allocation: str = "global",
    limits: Limits = Limits(),
    latency: LatencySource | None = None,
) -> PruningPlan:
    """Choose the least important units that must go for the budget to be met.

    Costs are met as netslim counts them, without building the smaller network: nothing that was
    removed could stay.

    Args:
        graph: from `netslim.trace`.
        scores: from `netslim.score`; groups without scores are not cut.
        budget: what to reach; may be left out when ``per_group`` says it all.
        per_group: name or pattern -> what goes in each group that it means: a share (float below 1)
            or a count (int). A plain name may be any that ``graph[name]`` knows, and wins over
            patterns, wherever it stands; of two patterns the later one wins: ``{"layer1.*": 0.6,
            "layer1.3.conv1": 0}``. These groups take no part in the rest of the budget.
        allocation: how the budget is spread over the groups: ``"global"``, ``"uniform"``,
            ``"isomorphic"``, ``"cost"``, ``"knapsack"`` (see
            `netslim.selection.budget.allocation`), one that was registered there, or
            ``package.module:function``.
        limits: what the cut must respect whatever it is to reach, such as
            `netslim.Limits(round_to=8)`.
        latency: for ``cut_latency`` and ``max_latency_ms``: a table from `netslim.latency_table`,
            measured here or elsewhere.

    Raises:
        ArgumentError: an option is misspelt, out of range or of another kind, or a name means no
            group.
        PlanError: the budget cannot be met within the limits (names what binds and the best that
            can be reached), or nothing is left that could be cut.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "l2")
        >>> plan = netslim.select(graph, scores, netslim.Budget(cut_macs=0.5), allocation="uniform")
        >>> 2 * netslim.cost(netslim.prune(model, plan), images).macs <= graph.macs()
        True
    """
    if latency is not None and not hasattr(latency, "resource"):
        raise ArgumentError(
            f"latency must be a table from netslim.latency_table, got {described(latency)}"
        )
    way = allocation_of(allocation)
    if not per_group and (budget is None or not budget.given()):
        raise ArgumentError(
            "nothing to do: give a budget such as Budget(cut_channels=0.5), or per_group"
        )
    problem = _Problem(graph, scores, budget or Budget(), limits, per_group or {}, latency)
    problem, ladder, goals = problem.in_steps()
    removed = allocate(ladder, goals, way)
    notes = [*problem.chooser.notes, *problem.promises(ladder, goals, removed)]
    notes += problem.thinned(ladder, removed)
    why = problem.chooser.why(allocation, problem.fixed, problem.budget.given())
    return dataclasses.replace(plan_keeping(graph, ladder.masks(removed), notes), why=why)


@dataclass(frozen=True)
class _Problem:
    """What is to be reached, and within which limits."""

    graph: ChannelGraph
    scores: Mapping[str, Tensor]
    budget: Budget
    limits: Limits
    per_group: Mapping[str, float | int]
    latency: LatencySource | None
    chooser: Chooser = dataclasses.field(init=False)
    fixed: dict[int, int] = dataclasses.field(init=False)  # how many go where a name says so

    def __post_init__(self) -> None:
        chooser = Chooser(self.graph, self.scores, self.limits)
        object.__setattr__(self, "chooser", chooser)
        object.__setattr__(self, "fixed", chooser.named_counts(self.per_group))

    def in_steps(self) -> tuple[_Problem, Ladder, list[Goal]]:
        """The problem in the widths that are fast, of those the best in which it can be solved.

        Raises:
            PlanError: it cannot be solved in any.
        """
        for step in self._steps():
            stepped = dataclasses.replace(
                self, limits=dataclasses.replace(self.limits, round_to=step)
            )
            ladder = Ladder(stepped.chooser, stepped.fixed)
            goals = stepped.goals(ladder)
            if stepped.refused(ladder, goals) is None:
                stepped.chooser.notes.append(
                    f"round_to={step}, as nothing else was said: what runs the network is fastest "
                    "with such widths"
                )
                return stepped, ladder, goals
        ladder = Ladder(self.chooser, self.fixed)
        goals = self.goals(ladder)
        if (refused := self.refused(ladder, goals)) is not None:
            raise PlanError(self._refusal(ladder, *refused))
        return self, ladder, goals

    def _steps(self) -> tuple[int, ...]:
        """What widths are to be multiples of, where only time counts and nobody said it."""
        said = self.limits.round_to is not None or self.per_group or not self.budget.timed()
        if said or not isinstance(self.latency, Stepped):
            return ()
        return self.latency.steps

    def goals(self, ladder: Ladder) -> list[Goal]:
        """What each given part of the budget limits, and to how much."""
        return [self._goal(ladder, name, value) for name, value in self.budget.given().items()]

    def _goal(self, ladder: Ladder, name: str, value: float) -> Goal:
        resource = self._resource(ladder, name)
        if name == "cut_channels":
            return self._channels(ladder, resource, value)
        whole = ladder.left(resource, np.zeros_like(ladder.start))
        if name.startswith("max_"):
            return Goal(name, resource, value, whole)
        # A hair more, so that a limit which is a whole number does not fail for its rounding.
        return Goal(name, resource, whole * (1 - value) * (1 + 1e-12), whole)

    def _channels(self, ladder: Ladder, resource: Resource, value: float) -> Goal:
        """``floor(N * share)`` of the channels that no name settles."""
        groups = [self.graph.groups[n] for n in ladder.free]
        whole = sum(group.size for group in groups if not group.block)
        wanted = floor(whole * value + 1e-9)
        if value and not whole:
            raise PlanError(
                f"cut_channels={value} has nothing to cut: per_group settles every group that "
                "can be cut"
            )
        if value and not wanted:
            self.chooser.notes.append(
                f"nothing goes for cut_channels={value}: of {whole} channels that is less than one"
            )
        return Goal("cut_channels", resource, whole - wanted, whole)

    def _resource(self, ladder: Ladder, name: str) -> Resource:
        asked = Asked(name, self.graph, ladder.widths, ladder.free, self.latency)
        return kind_of(name).make(asked)

    def refused(self, ladder: Ladder, goals: Iterable[Goal]) -> tuple[Goal, float] | None:
        """A goal that no allowed choice reaches, and the least that can be left; None without."""
        for goal in goals:
            best = ladder.left(goal.resource, ladder.furthest)
            if best > goal.limit:
                return goal, best
        return None

    def _refusal(self, ladder: Ladder, goal: Goal, best: float) -> str:
        unit = kind_of(goal.name).unit
        value = getattr(self.budget, goal.name)
        cut = max(0.0, 1 - best / goal.whole)  # of time, all cuts may take more than the original
        reached = _figure(best, ceil)
        if goal.name.startswith("cut_"):
            reached = f"{goal.name}={floor(cut * 1000) / 1000}"
        if goal.name == "cut_channels":
            wanted, allowed = goal.whole - goal.limit, goal.whole - best
            asked = (
                f"asks for {wanted:.0f} of {goal.whole:.0f} channels, and no more than "
                f"{allowed:.0f} may go"
            )
        else:
            asked = (
                f"leaves at most {_figure(goal.limit)} {unit}, and no fewer than "
                f"{_figure(best, ceil)} can be reached ({cut:.1%} less than the original "
                f"{_figure(goal.whole)})"
            )
        return (
            f"{goal.name}={value} {asked}. {self._binding(goal, best, unit)}. Reachable "
            f"at best: {reached}"
        )

    def _binding(self, goal: Goal, best: float, unit: str) -> str:
        """Which limits stand in the way, by what could be reached without each."""
        found = []
        for name, other in self._relaxed():
            ladder = Ladder(other.chooser, other.fixed)
            loose = other._goal(ladder, goal.name, getattr(self.budget, goal.name))
            left = ladder.left(loose.resource, ladder.furthest)
            gain = (loose.limit - left) - (goal.limit - best)
            enough = f"{_figure(left, ceil)} {unit}"
            if left <= loose.limit:
                enough = "the budget would be met"
            if gain > 0:
                found.append((gain, f"{name} (without it {enough})"))
        if not found:
            return f"Nothing more can go: one channel stays in every layer{self._whole()}"
        found.sort(key=lambda item: -item[0])
        return f"What binds: {', '.join(text for _, text in found)}"

    def _whole(self) -> str:
        """The widest groups that cannot be cut, and why."""
        frozen = [group for group in self.graph.groups if group.frozen]
        frozen.sort(key=lambda group: -group.size)
        said = ""
        if frozen:
            told = [f"{group.name} ({group.reason})" for group in frozen]
            said = f", and all of what cannot be cut: {listed(told, most=3)}"
        unscored = [g.name for g in self.graph.prunable if g.name not in self.scores]
        if unscored:
            said += (
                f". There are no scores of {listed(unscored, most=3)}, which could go: a criterion "
                "that looks at what layers read says nothing of weights that are no layer's; "
                "criterion='l2' does"
            )
        return said

    def _relaxed(self) -> Iterator[tuple[str, _Problem]]:
        """Each limit that was given, in words, and the problem as it were without that one."""
        limits = self.limits
        inexact = [g for g in self.graph.groups if not (g.exact or g.frozen)]
        barred = not limits.allow_inexact and any(g.name in self.scores for g in inexact)
        # fmt: off
        table: list[tuple[bool, str, dict[str, Any]]] = [
            (limits.min_channels > 1, f"min_channels={limits.min_channels}", {"min_channels": 1}),
            (limits.max_cut is not None, shown_cap(limits), {"max_cut": None}),
            ((limits.round_to or 1) > 1, f"round_to={limits.round_to}", {"round_to": None}),
            (bool(limits.protect), "protect", {"protect": ()}),
            (limits.shortcuts == "avoid", "shortcuts='avoid'", {"shortcuts": "include"}),
            (barred, "allow_inexact=False", {"allow_inexact": True}),
        ]
        # fmt: on
        for given, text, loose in table:
            if given:
                yield text, dataclasses.replace(self, limits=dataclasses.replace(limits, **loose))
        if self.per_group:
            yield "per_group", dataclasses.replace(self, per_group={})

    def promises(self, ladder: Ladder, goals: Iterable[Goal], removed: np.ndarray) -> list[str]:
        """What latency the plan is expected to have."""
        return [
            f"{goal.name}={getattr(self.budget, goal.name)}: "
            f"{ladder.left(goal.resource, removed):.4g} ms are expected, of {goal.whole:.4g} ms"
            for goal in goals
            if "latency" in goal.name
        ]

    def thinned(self, ladder: Ladder, removed: np.ndarray) -> Iterator[str]:
        """Which groups keep less than a tenth, though no name asked for it."""
        channels = [n for n in ladder.free if not self.graph.groups[n].block]
        sizes = {self.graph.groups[n].name: (self.graph.groups[n].size, n) for n in channels}
        thin = [
            f"{name} keeps {size - removed[number]} of {size}"
            for name, (size, number) in sizes.items()
            if 10 * (size - removed[number]) < size
        ]
        if thin:
            yield (
                f"less than a tenth stays in {len(thin)} of {len(sizes)} groups: "
                f"{listed(thin)}; max_cut=0.9 would keep a tenth everywhere"
            )


def _figure(amount: float, rounding: Callable[[float], int] = floor) -> str:
    """A count in full, a small number of milliseconds with its digits."""
    if amount < 1000 and abs(amount - round(amount)) >= 1e-6:
        return f"{amount:.4g}"
    slack = -1e-6 if rounding is ceil else 1e-6  # what is a whole number but for its rounding
    return f"{rounding(amount + slack):,}"


__all__ = ["select"]
