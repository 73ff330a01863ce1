"""Budgets of latency that are met by the clock, not by a table alone.

A table adds up layers that were timed alone. What their neighbours do to them it does not see: in
ONNX Runtime a layer of the wrong width falls out of the blocked layout, and its neighbours then
reorder what goes between. So a network that is cut for its time is timed, in turn with the whole
one, in what will run it. Where it takes another share than was asked for, the table's milliseconds
are bent to go through what was measured, and the choice is made anew::

    asked for 60 ms of 100   the table says 60, the clock 72: the table's 60 count as 72 from now on
                             the table says 50, which counts as 60; the clock says 61: done

It is the secant method, with straight lines between all that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from netslim._support import many, using_threads
from netslim._support.progress import Progress, untold
from netslim.errors import ArgumentError, PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.measure.backends import Ready, prepared, usable
from netslim.measure.latency import timed
from netslim.measure.table.curves import Vector, rising
from netslim.measure.table.latency_table import LatencyTable, Masks
from netslim.measure.table.measuring import RUN_ROUNDS, machine
from netslim.models.onnx_session import tensors_of
from netslim.selection.budget.resources import LatencySource, Resource, Widths
from netslim.selection.options import Budget
from netslim.surgery.plan import PruningPlan
from netslim.surgery.ports import cut_inputs
from netslim.surgery.prune import prune

Choose = Callable[[LatencySource], PruningPlan]

NEAR, FAR = 0.04, 0.1  # of what was asked: good enough to stop, and too far to be sold as kept
MOST_CUTS = 7  # that are timed
SECONDS = 6.0  # for each of them


@dataclass(frozen=True)
class Timing:
    """A cut that was timed, all in milliseconds.

    Attributes:
        plan: what went.
        foretold: by the table as it is.
        aimed: by the table as it was bent then.
        measured: by the clock, scaled to the `whole` of all timings.
    """

    plan: PruningPlan
    foretold: float
    aimed: float
    measured: float


Point = tuple[float, float]  # milliseconds by the table, and by the clock


class Bent:
    """A table whose milliseconds go through what was measured: a `LatencySource`.

    The whole network is a point of its own, and no line leads to it: what the first channels that
    go do to a runtime's layouts they do at once. Beyond the cut that took longest, time goes on in
    proportion.

    Args:
        table: what is bent.
        whole: of the whole network; None where nothing was measured, and the table is as it is.
        cuts: of cut ones.
    """

    def __init__(
        self, table: LatencyTable, whole: Point | None = None, cuts: Sequence[Point] = ()
    ) -> None:
        self.table, self.whole = table, whole
        foretold, measured = np.array([(0.0, 0.0), *sorted(cuts)]).T
        # Two cuts of which the table foretells the wrong one to be faster count as their mean.
        self.foretold, self.measured = foretold, rising(measured)

    @property
    def steps(self) -> tuple[int, ...]:
        """The table's own."""
        return self.table.steps

    def resource(self, graph: ChannelGraph, widths: Widths) -> Resource:
        """Milliseconds by the clock, as a function of the counts."""
        return _BentResource(self, self.table.resource(graph, widths))

    def at(self, foretold: float) -> float:
        """Milliseconds by the clock for those by the table."""
        if self.whole is None:
            return foretold
        if foretold >= self.whole[0] * (1 - 1e-9):
            return self.whole[1]
        if foretold > self.foretold[-1]:
            return float(foretold * self.measured[-1] / self.foretold[-1])
        return float(np.interp(foretold, self.foretold, self.measured))


class _BentResource:
    def __init__(self, bent: Bent, straight: Resource) -> None:
        self.bent, self.straight = bent, straight

    def total(self, counts: Vector) -> float:
        """Milliseconds by the clock."""
        return self.bent.at(self.straight.total(counts))

    def slopes(self, counts: Vector) -> Vector:
        """Those of the table in this scale: a piece that lies flat would make channels worthless,
        and all that is asked of slopes is how channels compare.
        """
        foretold = self.straight.total(counts)
        scale = self.bent.at(foretold) / max(foretold, 1e-12)
        found: Vector = scale * self.straight.slopes(counts)
        return found


class TimedTable:
    """A table of this machine and the network that it is of: what is cut by it is timed.

    A `LatencySource` as the table is; whoever chooses by it asks `kept` for a plan that takes what
    was asked for.

    Args:
        table: measured here.
        model: in the state that the table is of; it is not changed.
        example_inputs: as the table was measured with.
        progress: told of each cut that is timed, as for `netslim.latency_table`.
    """

    def __init__(
        self,
        table: LatencyTable,
        model: nn.Module,
        example_inputs: Any,
        progress: Progress = untold,
    ) -> None:
        self.table, self.model, self.inputs = table, model, example_inputs
        self.progress = progress

    @property
    def steps(self) -> tuple[int, ...]:
        """The table's own."""
        return self.table.steps

    def resource(self, graph: ChannelGraph, widths: Widths) -> Resource:
        """The table's own."""
        return self.table.resource(graph, widths)

    def kept(self, choose: Choose, budget: Budget, graph: ChannelGraph) -> PruningPlan:
        """The plan whose cut takes what the budget says, by the clock.

        Args:
            choose: from a latency source to a plan that meets the budget by it.
            budget: with a goal of latency.
            graph: of the model, that the plans are of.

        Raises:
            PlanError: no cut was found that takes within 10 % of what was asked for.
        """
        with ExitStack() as stack:
            stack.enter_context(using_threads(self.table.threads))
            clock = _Clock(self, stack.enter_context(self._ready(self.model, self.inputs)), graph)
            found = self._search(choose, budget, clock)
        return _recorded(found, clock, _limit(budget, clock.whole), self.table)

    def _search(self, choose: Choose, budget: Budget, clock: _Clock) -> Timing:
        for number in range(MOST_CUTS):
            bent = clock.bent()
            try:
                plan = choose(bent)
            except PlanError as refusal:  # by what was measured so much cannot go
                if not clock.timings:
                    raise
                return _best(clock, budget, self.table, refusal)
            if any(_alike(plan, cut.plan) for cut in clock.cuts):
                break  # there is no width between this one and the next
            self.progress("a cut network", number, MOST_CUTS)
            timing = clock.time(plan, bent)
            if _settled(timing, _limit(budget, clock.whole)):
                return timing
        return _best(clock, budget, self.table)

    def _ready(self, model: nn.Module, inputs: Any) -> Any:
        return prepared(model, inputs, self.table.backend, self.table.device)  # type: ignore[arg-type]


class _Clock:
    """What was measured of one network and its cuts.

    Each cut is timed in turn with the whole network, whose milliseconds are not the same each time:
    machines are faster and slower. The cut's are scaled to the whole network's of all times.
    """

    def __init__(self, of: TimedTable, whole: Ready, graph: ChannelGraph) -> None:
        self.of, self.ready, self.graph = of, whole, graph
        self.wholes: list[float] = []
        self.shares: list[float] = []
        self.cuts: list[Timing] = []
        self.foretold = of.table.ms(graph)

    @property
    def whole(self) -> float:
        """Milliseconds of the whole network, over all times that it was timed."""
        return float(np.median(self.wholes))

    @property
    def timings(self) -> list[Timing]:
        """What was timed, in the order in which it was."""
        return [
            replace(cut, measured=share * self.whole)
            for cut, share in zip(self.cuts, self.shares, strict=True)
        ]

    def bent(self) -> Bent:
        """The table, through all that was timed."""
        if not self.cuts:
            return Bent(self.of.table)
        cuts = [(timing.foretold, timing.measured) for timing in self.timings]
        return Bent(self.of.table, (self.foretold, self.whole), cuts)

    def time(self, plan: PruningPlan, bent: Bent) -> Timing:
        """Time what the plan leaves."""
        small = prune(self.of.model, plan)
        inputs = cut_inputs(self.of.model, self.of.inputs, plan)
        with self.of._ready(small, inputs) as call:
            calls = {"whole": self.ready, "cut": call}
            found = timed(calls, repeats=RUN_ROUNDS, budget_seconds=SECONDS, warmup=2)
        self.wholes.append(found["whole"].median_ms)
        self.shares.append(found["cut"].median_ms / found["whole"].median_ms)
        foretold = self.of.table.ms(self.graph, _masks(self.graph, plan))
        self.cuts.append(Timing(plan, foretold, bent.at(foretold), found["cut"].median_ms))
        return self.timings[-1]


def timed_here(
    table: LatencyTable,
    model: nn.Module,
    example_inputs: Any,
    progress: Progress = untold,
) -> LatencyTable | TimedTable:
    """The table with cuts that are timed, if it is of this machine and of such inputs; else as it
    is, for then the clock here says nothing.
    """
    try:
        place = usable(table.device)
    except ArgumentError:
        return table
    shapes = tuple(tuple(tensor.shape) for tensor in tensors_of(example_inputs))
    if dict(table.machine) != machine(place) or shapes != table.inputs:
        return table
    return TimedTable(table, model, example_inputs, progress)


def _alike(one: PruningPlan, other: PruningPlan) -> bool:
    """Whether two plans cut the same, whatever they say of it."""
    return replace(one, notes=()) == replace(other, notes=())


def _masks(graph: ChannelGraph, plan: PruningPlan) -> Masks:
    groups = {
        graph.number(name): np.isin(np.arange(cut.size), cut.kept)
        for name, cut in plan.groups.items()
    }
    blocks = {graph.number(b.name): np.zeros(1, dtype=bool) for b in plan.dropped.blocks}
    return groups | blocks


def _limit(budget: Budget, whole: float) -> float:
    """The most milliseconds that the budget allows, of so many of the whole network."""
    limits = []
    if budget.max_latency_ms is not None:
        limits.append(budget.max_latency_ms)
    if budget.cut_latency is not None:
        limits.append((1 - budget.cut_latency) * whole)
    return min(limits)


def _settled(timing: Timing, limit: float) -> bool:
    """Whether it is near to the limit; or below it, for a reason that is none of the latency's."""
    if timing.measured > (1 + NEAR) * limit:
        return False
    deeper = timing.aimed < (1 - NEAR) * limit  # other budgets, or widths that come in steps
    return deeper or timing.measured >= (1 - NEAR) * limit


def _best(
    clock: _Clock, budget: Budget, table: LatencyTable, cause: PlanError | None = None
) -> Timing:
    """The nearest of those that are fast enough.

    Raises:
        PlanError: there is none.
    """
    limit = _limit(budget, clock.whole)
    enough = [timing for timing in clock.timings if timing.measured <= (1 + FAR) * limit]
    if enough:
        return min(enough, key=lambda timing: abs(np.log(timing.measured / limit)))
    nearest = min(clock.timings, key=lambda timing: timing.measured)
    raise PlanError(
        f"{_asked(budget)} cannot be kept: {_share(limit, clock.whole)} is asked for, and the "
        f"fastest of {many(len(clock.cuts), 'cut')} that were timed took "
        f"{_share(nearest.measured, clock.whole)} ({_where(table)}), where the table foretold "
        f"{nearest.foretold / clock.foretold:.1%}. Ask for less; or go by the table alone: "
        "check_latency=False of netslim.slim, `check: false` of a stage's `latency`, or "
        "--no-latency-check"
    ) from cause


def _recorded(timing: Timing, clock: _Clock, limit: float, table: LatencyTable) -> PruningPlan:
    """The plan, which says what was asked for, foretold and measured."""
    plan, whole = timing.plan, clock.whole
    foretold = timing.foretold / clock.foretold
    said = (
        f"timed: {_share(timing.measured, whole)}, asked for {limit / whole:.1%}, foretold by the "
        f"table alone {foretold:.1%} ({_where(table)}; {many(len(clock.cuts), 'cut')} timed)"
    )
    figures = {
        "asked": round(limit / whole, 4),
        "foretold": round(foretold, 4),
        "measured": round(timing.measured / whole, 4),
        "whole_ms": float(f"{whole:.4g}"),
        "cuts_timed": len(clock.cuts),
        "backend": table.backend,
        "device": table.device,
    }
    why = plan.why and replace(plan.why, latency=figures)
    return replace(plan, notes=(*plan.notes, said), why=why)


def _share(ms: float, whole: float) -> str:
    return f"{ms / whole:.1%} of the time, {ms:.4g} of {whole:.4g} ms"


def _asked(budget: Budget) -> str:
    return " and ".join(f"{name}={getattr(budget, name)}" for name in budget.timed())


def _where(table: LatencyTable) -> str:
    if table.device == "cpu":
        return f"{table.backend} on the CPU, {many(table.threads, 'thread')}"
    return f"{table.backend} on {table.device}"


__all__ = ["Bent", "TimedTable", "timed_here"]
