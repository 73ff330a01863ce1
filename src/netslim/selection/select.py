"""From scores to a plan that meets a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil, floor
from types import NoneType
from typing import Any

import numpy as np
from torch import Tensor

from netslim._support import described, expect
from netslim.errors import ArgumentError, PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.counts import Count
from netslim.selection.budget.allocation import ALLOCATIONS, Allocation, allocate
from netslim.selection.budget.choice import Chooser
from netslim.selection.budget.ladder import Goal, Ladder
from netslim.selection.budget.limits import Limits, Shortcuts
from netslim.selection.budget.resources import LatencySource, Peak, Products, Resource
from netslim.surgery.plan import PruningPlan
from netslim.surgery.plan_of_units import resolve

_RESOURCES = {
    "channels": "channels",
    "params": "parameters",
    "macs": "MACs",
    "activations": "activations",
    "activation_bytes": "bytes of activations",
    "peak_memory": "bytes of memory at the peak",
    "peak_bytes": "bytes of memory at the peak",
    "latency": "ms",
    "latency_ms": "ms",
}


@dataclass(frozen=True)
class Budget:
    """What must go, relative to the traced model, or how much may stay. Several may be given; all
    are met.

    Attributes:
        cut_channels: share of the scored channels to remove, 0 <= share < 1; exactly ``floor(N *
            share)`` go (the percentage of the Network Slimming paper), or what ``round_to`` and
            other budgets ask for beyond it.
        cut_params: least share of the parameters to remove.
        cut_macs: least share of the multiply-accumulates to remove.
        cut_activations: least share to remove of the elements that convolutions, linear layers and
            matrix products put out (the activations of Radosavovic et al. 2020, section 3.3).
        cut_peak_memory: least share to remove of the bytes that are alive at once in a forward
            pass, parameters aside.
        cut_latency: least share to remove of the milliseconds that a `LatencyTable` foretells.
        max_params: most parameters that may stay.
        max_macs: most multiply-accumulates that may stay, for the traced input.
        max_activation_bytes: most bytes of activations, as counted by ``cut_activations``, for the
            traced input.
        max_peak_bytes: most bytes alive at once, for the traced input.
        max_latency_ms: most milliseconds that a `LatencyTable` may foretell.

    Raises:
        ArgumentError: a share is below 0 or at 1 and above, a maximum is not positive, or nothing
            is asked for.
    """

    cut_channels: float | None = None
    cut_params: float | None = None
    cut_macs: float | None = None
    cut_activations: float | None = None
    cut_peak_memory: float | None = None
    cut_latency: float | None = None
    max_params: int | None = None
    max_macs: int | None = None
    max_activation_bytes: int | None = None
    max_peak_bytes: int | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ArgumentError(f"{name} must be a number, got {value!r}")
            if name.startswith("cut_") and not 0 <= value < 1:
                raise ArgumentError(
                    f"{name} must be at least 0 and below 1, got {value}: it is the share that goes"
                )
            if name.startswith("max_") and not value > 0:
                raise ArgumentError(f"{name} must be above 0, got {value}")

    def given(self) -> dict[str, float]:
        """The limits that were set."""
        return {
            f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None
        }


def select(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    budget: Budget | None = None,
    *,
    min_channels: int = 1,
    max_cut: float | Mapping[str, float | int] | None = None,
    round_to: int = 1,
    protect: Iterable[str] = (),
    per_group: Mapping[str, float | int] | None = None,
    allocation: Allocation = "global",
    shortcuts: Shortcuts = "include",
    allow_inexact: bool = False,
    latency: LatencySource | None = None,
) -> PruningPlan:
    """Choose the least important units that must go for the budget to be met.

    Costs are met as netslim counts them, without building the smaller network: nothing that was
    removed could stay.

    Args:
        graph: from `netslim.trace`.
        scores: from `netslim.score`; groups without scores are not cut.
        budget: what to reach; may be left out when ``per_group`` says it all.
        min_channels: units that stay in every group at least; no layer can die.
        max_cut: largest share of a group that may go (the papers' 50 % cap is 0.5); or by name or
            pattern, a share (float below 1) or a count (int), as `netslim.methods.Sensitivity.limits` gives
            them.
        round_to: what stays in a touched group is a multiple of this; groups that have no more stay
            whole.
        protect: names, or patterns of group names, that are left alone (``"layer1.*"``).
        per_group: name or pattern -> what goes in each group that it means: a share (float below 1)
            or a count (int). A plain name may be any that ``graph[name]`` knows, and wins over
            patterns, wherever it stands; of two patterns the later one wins: ``{"layer1.*": 0.6,
            "layer1.3.conv1": 0}``. These groups take no part in the rest of the budget.
        allocation: ``global`` compares all units with one threshold; ``uniform`` cuts the same
            share of each group; ``isomorphic`` the same share of all groups that are built alike,
            with one threshold within them (Fang et al. 2024); ``cost`` takes the units that lose
            the least score for the cost they save; ``knapsack`` finds the least score lost of all
            choices, exactly, for small networks.
        shortcuts: ``avoid`` leaves alone the groups in which the outputs of several layers are
            added.
        allow_inexact: also cut groups whose removal changes values (normalisation over channels,
            attention).
        latency: for ``cut_latency`` and ``max_latency_ms``: a table from `netslim.latency_table`,
            measured here or elsewhere.

    Raises:
        ArgumentError: an option is out of range, of the wrong kind or names no group.
        PlanError: the budget cannot be met within the limits (names what binds and the best that
            can be reached), or nothing is left that could be cut.
    """
    call = "select(graph, scores, budget)"
    expect(graph, ChannelGraph, "graph", call)
    expect(scores, Mapping, "scores", call)
    expect(
        per_group,
        (Mapping, NoneType),
        "per_group",
        "select(graph, scores, per_group={'layer1.*': 0.5})",
    )
    if latency is not None and not hasattr(latency, "resource"):
        raise ArgumentError(
            f"latency must be a table from netslim.latency_table, got {described(latency)}"
        )
    if budget is not None and not isinstance(budget, Budget):
        raise ArgumentError(
            f"budget must be a netslim.Budget, such as Budget(cut_channels=0.5), got {budget!r}"
        )
    if allocation not in ALLOCATIONS:
        raise ArgumentError(
            f"allocation must be one of {', '.join(map(repr, ALLOCATIONS))}, got {allocation!r}"
        )
    if not per_group and (budget is None or not budget.given()):
        raise ArgumentError(
            "nothing to do: give a budget such as Budget(cut_channels=0.5), or per_group"
        )
    limits = Limits(min_channels, max_cut, round_to, protect, shortcuts, allow_inexact)
    problem = _Problem(graph, scores, budget or Budget(), limits, per_group or {}, latency)
    ladder = Ladder(problem.chooser, problem.fixed)
    goals = problem.goals(ladder)
    problem.check(ladder, goals)
    removed = allocate(ladder, goals, allocation)
    return resolve(
        graph,
        ladder.masks(removed),
        [*problem.chooser.notes, *problem.promises(ladder, goals, removed)],
    )


@dataclass(frozen=True)
class _Problem:
    """What is to be reached, and within which limits."""

    graph: ChannelGraph
    scores: Mapping[str, Tensor]
    budget: Budget
    limits: Limits
    per_group: Mapping[str, float | int]
    latency: LatencySource | None

    def __post_init__(self) -> None:
        chooser = Chooser(self.graph, self.scores, self.limits)
        object.__setattr__(self, "chooser", chooser)
        object.__setattr__(self, "fixed", chooser.named_counts(self.per_group))

    chooser: Chooser = dataclasses.field(init=False)
    fixed: dict[int, int] = dataclasses.field(init=False)

    def goals(self, ladder: Ladder) -> list[Goal]:
        """What each given part of the budget limits, and to how much."""
        return [self._goal(ladder, name, value) for name, value in self.budget.given().items()]

    def _goal(self, ladder: Ladder, name: str, value: float) -> Goal:
        resource = self._resource(ladder, name)
        nothing = np.zeros_like(ladder.start)
        if name == "cut_channels":
            return self._channels(ladder, resource, value)
        whole = ladder.left(resource, nothing)
        return Goal(
            name,
            resource,
            value if name.startswith("max_") else whole * (1 - value) * (1 + 1e-12),
            whole,
        )

    def _channels(self, ladder: Ladder, resource: Resource, value: float) -> Goal:
        """``floor(N * share)`` of the channels that no name settles."""
        whole = sum(self.graph.groups[n].size for n in ladder.free)
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
        graph, widths, kind = self.graph, ladder.widths, name[4:]
        if kind == "channels":
            ones = [
                Count(0, ((n, np.ones(graph.groups[n].size, dtype=np.int64)),)) for n in ladder.free
            ]
            return Products(widths, [(one,) for one in ones])
        if kind == "params":
            return Products(widths, [cost.factors for cost in graph.parameters.values()])
        if kind == "macs":
            return Products(widths, [cost.factors for cost in graph.costs])
        if kind in ("activations", "activation_bytes"):
            made = [output for output in graph.outputs if output.layer]
            sizes = [1 if kind == "activations" else output.itemsize for output in made]
            return Products(widths, [output.factors for output in made], sizes)
        if kind.startswith("peak"):
            return Peak(widths, graph.memory)
        if self.latency is None:
            raise ArgumentError(
                f"{name} needs to know how long layers take: give "
                "latency=netslim.latency_table(model, graph, example_inputs), measured where "
                "the network is to run"
            )
        return self.latency.resource(graph, widths)

    def check(self, ladder: Ladder, goals: Iterable[Goal]) -> None:
        """Refuse a goal that no allowed choice reaches.

        Raises:
            PlanError: names what binds and the best that can be reached.
        """
        for goal in goals:
            best = ladder.left(goal.resource, ladder.furthest)
            if best > goal.limit:
                raise PlanError(self._refusal(ladder, goal, best))

    def _refusal(self, ladder: Ladder, goal: Goal, best: float) -> str:
        unit = _RESOURCES[goal.name[4:]]
        value = getattr(self.budget, goal.name)
        cut = 1 - best / goal.whole
        reached = (
            f"{goal.name}={floor(cut * 1000) / 1000}"
            if goal.name.startswith("cut_")
            else _figure(best, ceil)
        )
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
            f"{goal.name}={value:g} {asked}. {self._binding(goal, best, unit)}. Reachable "
            f"at best: {reached}"
        )

    def _binding(self, goal: Goal, best: float, unit: str) -> str:
        """Which limits stand in the way, by what could be reached without each."""
        found = []
        for name, change in self._relaxations():
            other = dataclasses.replace(self, **change)
            ladder = Ladder(other.chooser, other.fixed)
            loose = other._goal(ladder, goal.name, getattr(self.budget, goal.name))
            left = ladder.left(loose.resource, ladder.furthest)
            gain = (loose.limit - left) - (goal.limit - best)
            if gain > 0:
                enough = (
                    "the budget would be met"
                    if left <= loose.limit
                    else f"{_figure(left, ceil)} {unit}"
                )
                found.append((gain, f"{name} (without it {enough})"))
        if not found:
            return (
                "Nothing more can go: one channel stays in every layer, and so do the "
                "layers that cannot be cut"
            )
        return "What binds: " + ", ".join(
            text for _, text in sorted(found, key=lambda item: -item[0])
        )

    def _relaxations(self) -> list[tuple[str, dict[str, Any]]]:
        limits, replace = self.limits, dataclasses.replace
        inexact = any(
            not (g.exact or g.frozen) and g.name in self.scores for g in self.graph.groups
        )
        return [
            (text, change)
            for given, text, change in (
                (
                    limits.min_channels > 1,
                    f"min_channels={limits.min_channels}",
                    {"limits": replace(limits, min_channels=1)},
                ),
                (
                    limits.max_cut is not None,
                    _cap(limits),
                    {"limits": replace(limits, max_cut=None)},
                ),
                (
                    limits.round_to > 1,
                    f"round_to={limits.round_to}",
                    {"limits": replace(limits, round_to=1)},
                ),
                (bool(limits.protect), "protect", {"limits": replace(limits, protect=())}),
                (
                    limits.shortcuts == "avoid",
                    "shortcuts='avoid'",
                    {"limits": replace(limits, shortcuts="include")},
                ),
                (
                    inexact and not limits.allow_inexact,
                    "allow_inexact=False",
                    {"limits": replace(limits, allow_inexact=True)},
                ),
                (bool(self.per_group), "per_group", {"per_group": {}}),
            )
            if given
        ]

    def promises(self, ladder: Ladder, goals: Iterable[Goal], removed: np.ndarray) -> list[str]:
        """What the plan foretells of the latency."""
        return [
            f"{goal.name}={getattr(self.budget, goal.name):g}: "
            f"{ladder.left(goal.resource, removed):.4g} ms are foretold, of {goal.whole:.4g} ms"
            for goal in goals
            if "latency" in goal.name
        ]


def _cap(limits: Limits) -> str:
    return "max_cut by name" if isinstance(limits.max_cut, Mapping) else f"max_cut={limits.max_cut}"


def _figure(amount: float, rounding: Callable[[float], int] = floor) -> str:
    """A count in full, a small number of milliseconds with its digits."""
    whole = rounding(amount - 1e-6 if rounding is ceil else amount + 1e-6)
    return f"{whole:,}" if amount >= 1000 or abs(amount - round(amount)) < 1e-6 else f"{amount:.4g}"


__all__ = ["Budget", "select"]
