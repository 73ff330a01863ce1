"""Trace, score, select, prune and verify in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from torch import nn

import netslim.ranks as ranks
from netslim._support import check_batches
from netslim._support.progress import Counted, Progress, untold
from netslim.errors import ArgumentError, TraceError
from netslim.graph import trace
from netslim.graph.modules.batches import held_out
from netslim.graph.modules.ports import PortName
from netslim.graph.modules.unwrapping import bare
from netslim.measure.table.latency_table import LatencyTable
from netslim.measure.table.measuring import latency_table
from netslim.measure.table.promise import timed_here
from netslim.methods.cutting import by_scores, cut, log
from netslim.methods.noise import carried_back, decided
from netslim.selection.budget.allocation import allocation_of
from netslim.selection.budget.resources import LatencySource
from netslim.selection.criteria.registry import Criterion, reads_data
from netslim.selection.criteria.scoring import check_options, score
from netslim.selection.defaults import AUTO, Choice, chosen
from netslim.selection.options import Budget, Compensation, Limits, Scoring, takes_options

Model = TypeVar("Model", bound=nn.Module)


@takes_options
@ranks.in_step("slim")
def slim(
    model: Model,
    example_inputs: Any,
    *,
    budget: Budget | None = None,
    per_group: Mapping[str, float | int] | None = None,
    batches: Iterable[Any] | None = None,
    criterion: str | Criterion | Scoring = AUTO,
    allocation: str = AUTO,
    compensation: Compensation | Literal["auto"] | None = AUTO,
    limits: Limits = Limits(),
    latency: LatencySource | None = None,
    check_latency: bool = True,
    free_outputs: Sequence[PortName] = (),
    free_inputs: Sequence[PortName] | Mapping[PortName, PortName | None] = (),
    strict: bool = False,
    progress: Progress = untold,
) -> Model:
    """A smaller, verified copy of ``model``; ``model`` is not changed.

    Give a budget and some batches of training data (labels are not needed), and the rest is chosen:
    channels go whose loss the others can best make up for (criterion ``obs``), where that loses
    least for what it saves (allocation ``cost``); the others do make up for them (fold ``linear``),
    and the statistics of batch normalisation are taken anew, each of the two where it brings the
    outputs nearer to those of ``model`` on the last quarter of the batches, which nothing else
    looks at (`netslim.selection.Compensation`).

    Without batches all of that is done on noise, through a copy of the network whose statistics of
    batch normalisation are those of the noise, and carried back; that takes about as long as with
    batches. Where the model has no such statistics, or its inputs are no numbers that noise could
    be, the same share of every layer goes, the filters with the smallest norms first. And where
    the budget is a share of the channels alone, those with the smallest batch-norm scales go. All
    of that is in `netslim.selection.defaults`, and the same for every entrance: gradual pruning,
    recipes, the command line.

    Args:
        model: any PyTorch module.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        budget: what to reach, see `netslim.Budget`.
        per_group: name or pattern -> what goes there, a share or a count, as in `netslim.select`.
        batches: a data loader or list, some ten batches, for criteria that look at data and for
            ``compensation`` (whose ``fold`` takes the example inputs without it).
        criterion: what makes a channel important: a name, a function or a
            `netslim.selection.Scoring`, see `netslim.score`.
        allocation: how the budget is spread, see `netslim.select`.
        compensation: what is done about that which removed channels emit, see
            `netslim.selection.Compensation`; None does nothing. The statistics of batch
            normalisation are taken anew after the cut was verified, where the model has any. What
            became of each step is logged: as a warning where it would have done harm and is left
            out, else as information, and the plan that the result carries has it, too.
        limits: what the cut must respect whatever it is to reach.
        latency: for budgets of latency, see `netslim.select`; without, a table is measured here, or
            taken from the cache, see `netslim.latency_table`.
        check_latency: with a budget of latency and a table of this machine, time the cut network in
            turn with the whole one, and choose anew until it takes what was asked for, within 4 %;
            the plan says what was asked for, foretold and measured. That takes some seconds a cut,
            up to seven of them; False goes by the table alone.
        free_outputs, free_inputs: what may shrink of these, as the state of a network that reads
            step by step, see `netslim.trace`; what the smaller model takes,
            `netslim.surgery.cut_inputs` says.
        strict: refuse the whole cut when a group fails verification, instead of leaving that group
            alone, with a warning that names it.
        progress: called with what is at work, how many parts of it are done, and how many there
            are, while batches are scored and layers are timed; nothing is printed by itself.

    Raises:
        ArgumentError: an option is misspelt, out of range, or of no use here.
        TraceError, PlanError, SurgeryError, VerificationError: as the steps do; PlanError also
            where no cut was found that takes within 10 % of the time asked for.

    Example:
        >>> half = netslim.Budget(cut_macs=0.5)
        >>> small = netslim.slim(model, images, budget=half)
        >>> better = netslim.slim(model, images, budget=half, batches=loader)
    """
    bare(model, TraceError, call="slim(model, example_inputs, budget=...)")
    if batches is not None:
        check_batches(batches)
    choose = partial(
        chosen,
        budget,
        per_group,
        data=batches is not None,
        criterion=criterion,
        allocation=allocation,
        compensation=compensation,
    )
    _check(choose(), batches)
    graph = trace(
        model,
        example_inputs,
        free_outputs=free_outputs,
        free_inputs=free_inputs,
        blocks=limits.blocks,
    )
    choice, made = decided(partial(choose, graph=graph), model, example_inputs)
    source: Model = model
    seen: list[Any] | None = None
    held: list[Any] = []
    if made is not None:
        source, seen, held = made.network, made.batches, made.held
    elif batches is not None:
        seen = list(batches)
        if choice.mends:
            seen, held = held_out(seen)
    if budget is not None and budget.timed():
        latency = latency or latency_table(model, graph, example_inputs, progress=progress)
        if check_latency and isinstance(latency, LatencyTable):
            latency = timed_here(latency, model, example_inputs, progress)
    looked = seen and Counted(seen, progress)
    scores = score(graph, source, choice.scoring, batches=looked)
    plans = by_scores(
        graph,
        scores,
        budget,
        per_group=per_group,
        choice=choice,
        limits=limits,
        latency=latency,
    )
    done = cut(
        source,
        graph,
        plans,
        example_inputs,
        compensation=choice.compensation,
        batches=seen,
        held=held,
        strict=strict,
    )
    if made is not None:
        done = carried_back(done, model, made)
    log(done)
    return done.network


def _check(choice: Choice, batches: Iterable[Any] | None) -> None:
    """Refuse, before anything runs, what cannot be done."""
    check_options(choice.scoring)
    allocation_of(choice.allocation)
    looks = reads_data(choice.scoring.criterion) or callable(choice.scoring.criterion)
    if batches is not None and not looks and not choice.mends:
        raise ArgumentError(
            f"the criterion {choice.scoring.criterion} looks at weights alone, so nothing here "
            "reads the batches: leave them out; or have the channels that stay make up for those "
            "that go, compensation=netslim.selection.Compensation('linear', recalibrate=True); or "
            "name a criterion that looks at data, such as criterion='obs'"
        )
