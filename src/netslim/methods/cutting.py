"""The loop that makes every cut::

    left alone = none
    repeat:
        plan = choose(left alone)
        small = prune(model, plan)
        what removed channels emit moves into the layers that read them,
            where that brings the outputs nearer                             (compensation)
        verify(model, small, plan): done
        else: the groups that do not verify when they are cut alone are left alone
    statistics of batch normalisation are taken anew, where that brings the outputs nearer

`slim`, gradual pruning, sensitivity, the stages of recipes and the command line all cut by it; they
differ in how they choose. A mask is proved in the same way before it is set, so that what was
trained under it for hours can be cut out in the end.

In a distributed run every rank goes through the loop, and rank 0 chooses for all of them. What
fails on one rank fails on all, so that they stay together; in the end what they have is compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import netslim.ranks as ranks
from netslim.errors import (
    ArgumentError,
    DisagreementError,
    NetslimError,
    VerificationError,
)
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.batches import held_out
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.walk import fingerprint, named_tensors
from netslim.graph.words.naming import meant
from netslim.measure.table.promise import TimedTable
from netslim.methods.masking import Mask
from netslim.methods.mending import Judge, Mending, Steps, nearest
from netslim.methods.threshold import threshold_warning
from netslim.selection.budget.resources import LatencySource
from netslim.selection.defaults import Choice, in_words
from netslim.selection.options import Budget, Compensation, Limits
from netslim.selection.select import select
from netslim.surgery.compensation.batch_norm import recalibrate
from netslim.surgery.compensation.constants import Folding
from netslim.surgery.compensation.linear import compensate
from netslim.surgery.compensation.ways import NEAREST
from netslim.surgery.history import Notes, retell
from netslim.surgery.plan import PruningPlan
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.ports import cut_batch
from netslim.surgery.proof.verify import Verification, verify
from netslim.surgery.prune import prune
from netslim.surgery.stale import told_in
from netslim.surgery.why import Why

Model = TypeVar("Model", bound=nn.Module)
logger = logging.getLogger("netslim")
Choose = Callable[[frozenset[str]], PruningPlan]
EXACT = 1e-5  # a spread below it is rounding


@dataclass(frozen=True)
class Cut(Generic[Model]):
    """A cut that was made and proved.

    Attributes:
        network: cut; or masked, and as large as before.
        graph: of the network before.
        plan: what went. With a compensation it is for the model in which that was done
            (`netslim.surgery.Folding`).
        check: the proof; None for a mask, which was proved on a copy.
        left_alone: names of the groups whose cut did not verify.
        warnings: sentences; they are told by who asked for the cut, once (`log`).
        notes: sentences on what was done besides dropping channels.
        mended: what became of each step that was to make up for what went.
    """

    network: Model
    graph: ChannelGraph
    plan: PruningPlan
    check: Verification | None
    left_alone: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    mended: tuple[Mending, ...] = ()


def cut(
    model: Model,
    graph: ChannelGraph,
    choose: Choose,
    example_inputs: Any,
    *,
    compensation: Compensation = Compensation(),
    batches: Iterable[Any] | None = None,
    fresh: Iterable[Any] | None = None,
    held: Sequence[Any] = (),
    strict: bool = False,
    mode: Literal["cut", "mask"] = "cut",
) -> Cut[Model]:
    """Cut a copy of ``model`` as ``choose`` says, and prove it; what cannot be proved is spared.

    Args:
        model: is not changed.
        graph: of it.
        choose: from the names of groups that are to be left alone to the plan; see `by_scores`,
            `spared`.
        example_inputs: as for `netslim.trace`.
        compensation: what is done about that which removed channels emit.
        batches: of data, for ``compensation``; without, its fold looks at the example inputs.
        fresh: batches for the statistics of batch normalisation, where these are others.
        held: batches that nothing else looks at (`netslim.graph.modules.batches.held_out`): each
            step of ``compensation`` is kept only where it brings the outputs nearer on these.
            Without, a fold is kept unseen and the statistics stay as they are.
        strict: refuse the whole cut when a group does not verify.
        mode: ``mask`` proves the cut, but silences the channels instead (`netslim.Mask`).

    Raises:
        PlanError, SurgeryError, VerificationError: as choosing, cutting and proving do, where the
            reason lies in no single group, ``strict`` is given, or nothing is left to cut.
        ArgumentError: there are no batches for the statistics.
        DisagreementError: ranks of a distributed run do not end with the same network.
    """
    if batches is None and compensation.fold is not None:
        batches, held = _of_examples(example_inputs)
    seen = list(batches or ())
    alone: tuple[str, ...] = ()
    failure: Exception | None = None
    while True:
        plan = _decided(partial(_plan_around, choose, alone, failure))
        prove = partial(_proved, model, graph, plan, example_inputs, compensation, seen)
        try:
            ways = ranks.everywhere("the cut and its proof", prove)
            break
        except (ArgumentError, DisagreementError):
            raise
        except (NetslimError, RuntimeError) as error:
            if strict:
                raise
            # Each group is tried alone, as the message of a failed proof names no group: outputs
            # are wrong, whatever made them so. Groups that only fail together are no one's fault.
            blamed = partial(_unproved, model, graph, plan, example_inputs)
            wrong = ranks.shared("the groups that do not verify", blamed)
            if not wrong:
                raise
            alone, failure = (*alone, *wrong), error
    if mode == "mask":
        ways = {steps: _masked(model, way) for steps, way in ways.items()}
    if fresh is None and batches is not None:
        fresh = seen
    judge = Judge(model, held)
    if mode == "cut" and plan.ports:
        judge = replace(judge, plan=plan)
    done = _told(_mended(ways, compensation, fresh, judge))
    large = threshold_warning(done.plan)
    if large is not None:
        done = replace(done, warnings=(large, *done.warnings))
    if alone:
        done = replace(done, left_alone=alone, warnings=(left_alone(alone), *done.warnings))
    _compare(done.network, values=compensation.fold is not None)
    return done


def log(done: Cut[Any]) -> None:
    """Log what is said of a cut, where whoever asked for it is handed none of it."""
    for note in done.notes:
        logger.info("%s", note)
    for warning in (*told_in(done.plan.notes), *done.warnings):
        logger.warning("%s", warning)


def left_alone(names: Sequence[str]) -> str:
    """The sentence on groups that were to be cut, and were not, because the cut did not verify."""
    return f"left alone, because the cut did not verify: {', '.join(names)}"


# ---------------------------------------------------------------- choosing


def by_scores(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    budget: Budget | None,
    *,
    per_group: Mapping[str, float | int] | None = None,
    choice: Choice,
    limits: Limits = Limits(),
    latency: LatencySource | None = None,
) -> Choose:
    """Choose as `netslim.select` does, all as there; what one group cannot give, the others do.

    Args:
        graph, scores, budget, per_group, limits: as there.
        latency: as there; or a `TimedTable`, by which cuts are timed until the clock says what the
            budget asks for.
        choice: by what the scores are, and the allocation; the plan says so.

    Raises:
        VerificationError: by what is returned, where nothing is left to choose from.
        PlanError: by what is returned, as selection does, and where no cut takes the time asked.
    """

    def choose(alone: frozenset[str]) -> PruningPlan:
        free = {name: values for name, values in scores.items() if name not in alone}
        if not free:
            raise VerificationError("no group of this model can be cut and verified")
        nothing_else = budget is None or not budget.given()
        wanted = spared(graph, per_group or {}, alone, only=nothing_else)
        way = partial(
            select,
            graph,
            free,
            budget,
            per_group=wanted,
            allocation=choice.allocation,
            limits=limits,
        )
        return with_choice(_by_the_clock(way, budget, graph, latency), choice)

    return choose


def _by_the_clock(
    way: Callable[..., PruningPlan],
    budget: Budget | None,
    graph: ChannelGraph,
    latency: LatencySource | None,
) -> PruningPlan:
    """The plan that ``way`` chooses; cut, timed and chosen anew where the source can do that."""
    if budget is None or not budget.timed() or not isinstance(latency, TimedTable):
        return way(latency=latency)
    return latency.kept(lambda source: way(latency=source), budget, graph)


def with_choice(plan: PruningPlan, choice: Choice) -> PruningPlan:
    """The plan, which says how it was chosen."""
    why = choice.why(plan.why or Why())
    told = f"{why.chosen()}{choice.advice}"
    return replace(plan, why=why, notes=(told, *plan.notes))


def spared(
    graph: ChannelGraph,
    amounts: Mapping[str, float | int],
    alone: frozenset[str],
    *,
    only: bool = True,
) -> Mapping[str, float | int]:
    """Amounts by name or pattern, where those that mean nothing but groups to be left alone are 0.

    Args:
        graph: of the model.
        amounts: name or pattern -> what goes, as ``per_group`` of `netslim.select`.
        alone: names of the groups to be left alone.
        only: whether nothing but the amounts says what goes.

    Raises:
        VerificationError: nothing is left of what was asked for.
    """
    if not alone:
        return amounts
    problem = "per_group names no group that can be cut"
    left = dict(amounts)
    for name in amounts:
        if {group.name for group in meant(graph, name, problem)} <= alone:
            left[name] = 0
    if only and any(amounts.values()) and not any(left.values()):
        raise VerificationError("no group that was asked for can be cut and verified")
    return left


def _decided(choose: Callable[[], PruningPlan]) -> PruningPlan:
    """The plan of rank 0."""
    if ranks.count() == 1:
        return choose()
    return PruningPlan.from_json(ranks.shared("the plan", lambda: choose().to_json()))


def _compare(network: nn.Module, values: bool) -> None:
    """See to it that all ranks have the same network: its shapes, and what its weights were made.

    Statistics of batch normalisation are each rank's own until they are sent round.
    """
    if ranks.count() == 1:
        return
    fact = fingerprint(network)
    if values:
        fact += ranks.digest(
            {n: t for n, t in named_tensors(network) if isinstance(t, nn.Parameter)}
        )
    ranks.agree(
        "the network after the cut",
        fact,
        "its weights must be the same on all ranks before it is cut: wrap it in "
        "DistributedDataParallel first, or load the same weights",
    )


def _plan_around(choose: Choose, alone: tuple[str, ...], failure: Exception | None) -> PruningPlan:
    """The plan, which says of the groups that are left alone why they stay."""
    try:
        plan = choose(frozenset(alone))
    except NetslimError as refusal:
        if failure is None:
            raise
        why = " ".join(str(failure).split())
        raise type(refusal)(f"{refusal}; {left_alone(alone)} ({why})") from failure
    told = tuple(f"{name} stays: " for name in alone)  # by `choose`, with another reason
    others = [note for note in plan.notes if not note.startswith(told)]
    reasons = [f"{start}its cut did not verify" for start in told]
    return replace(plan, notes=(*others, *reasons))


# ---------------------------------------------------------------- cutting and proving


def _proved(
    model: Model,
    graph: ChannelGraph,
    plan: PruningPlan,
    example_inputs: Any,
    compensation: Compensation,
    batches: Sequence[Any],
) -> dict[Steps, Cut[Model]]:
    """The cut as it is, and with each fold that is asked for."""
    small = prune(model, plan)
    check = verify(model, small, plan, example_inputs, graph=graph)
    ways: dict[Steps, Cut[Model]] = {(): Cut(small, graph, plan, check)}
    fold = compensation.fold
    if fold is None or not (plan.groups or (plan.dropped and fold != "constant")):
        return ways
    folds = NEAREST if fold == "nearest" else (fold,)
    for way in folds:
        try:
            folding = compensate(model, plan, batches, way)
        except (NetslimError, RuntimeError) as error:
            if way == folds[-1]:
                raise
            logger.info("what removed channels emit cannot be made up for by %s: %s", way, error)
            continue
        # A fold changes weights and may add biases, so that what is cut is another network than the
        # one that was traced: the proof compares with that, and traces it anew.
        small = prune(folding.model, folding.plan)
        check = verify(folding.model, small, folding.plan, example_inputs)
        told = tuple(_moved(folding))
        ways[(in_words(Compensation(way)),)] = Cut(small, graph, folding.plan, check, notes=told)
    return ways


def _unproved(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, example_inputs: Any
) -> list[str]:
    """The groups of the plan that do not verify when they are cut alone."""
    # A failed proof compares outputs, and cannot tell which of the cuts changed them. So each is
    # tried alone, with all others whole: that asks for as many runs as groups, but only after a
    # failure.
    found = []
    for name, group in plan.groups.items():
        if not group.kept:  # it goes with a block
            continue
        mask = np.isin(np.arange(group.size), group.kept)
        alone = plan_keeping(graph, {graph.number(name): mask})
        try:
            verify(model, prune(model, alone), alone, example_inputs, graph=graph)
        except (NetslimError, RuntimeError):
            found.append(name)
    for block in plan.dropped.blocks:
        number = graph.number(block.name)
        try:
            alone = plan_keeping(graph, {number: np.zeros(1, dtype=bool)})
            verify(model, prune(model, alone), alone, example_inputs, graph=graph)
        except (NetslimError, RuntimeError):
            found.append(block.name)
    return found


def _masked(model: Model, done: Cut[Model]) -> Cut[Model]:
    masked = duplicate(model)
    Mask(masked, done.plan).apply()
    note = (
        f"channels silenced and held at zero: {done.plan.removed}; a stage of kind convert "
        "cuts them, or netslim prune --by mask"
    )
    notes = [note]
    if done.plan.norms:
        notes.append(
            "normalisations are given zeros for them in memory alone: what a file of this network "
            "computes is what is cut from it only where silent channels emit zeros"
        )
    return replace(done, network=masked, check=None, notes=(*done.notes, *notes))


def _of_examples(example_inputs: Any) -> tuple[list[Any], list[Any]]:
    """What a fold looks at, and is judged by, where there are no batches."""
    if isinstance(example_inputs, list):
        example_inputs = tuple(example_inputs)
    return held_out([(example_inputs,)])


def _mended(
    ways: dict[Steps, Cut[Model]],
    compensation: Compensation,
    batches: Iterable[Any] | None,
    judge: Judge,
) -> Cut[Model]:
    """The cut with the steps that bring its outputs nearest.

    Args:
        ways: the cut without steps, and with each fold that is asked for.
        compensation: what is asked for.
        batches: for statistics of batch normalisation.
        judge: of the outputs. One that sees nothing leaves the last fold and no fresh statistics.
    """
    count = compensation.recalibrate
    layers = [m for m in ways[()].network.modules() if isinstance(m, _BatchNorm)]
    renews = bool(count) and any(layer.track_running_stats for layer in layers)
    if renews and batches is None:
        raise ArgumentError(
            "recalibrate takes the statistics of batch normalisation from batches: give "
            "batches=, a data loader or a list"
        )
    if len(ways) == 1 and not renews:
        return ways[()]
    anew = in_words(Compensation(recalibrate=count))
    if not judge.sees():
        *_, (folds, done) = ways.items()
        unseen = [Mending(step, None, None, kept=True) for step in folds]
        unseen += [Mending(anew, None, None, kept=False)] * renews
        return replace(done, mended=tuple(unseen))
    if renews:
        seen = list(islice(batches or (), None if count is True else count))
        if judge.plan is not None:
            seen = [cut_batch(judge.original, batch, judge.plan) for batch in seen]
        ways = ways | {(*steps, anew): _renewed(way, seen) for steps, way in ways.items()}
    networks = {steps: way.network for steps, way in ways.items()}
    best, mended = nearest(networks, judge)
    return replace(ways[best], mended=mended)


def _renewed(done: Cut[Model], batches: list[Any]) -> Cut[Model]:
    """With statistics of batch normalisation that are of these batches."""
    network = recalibrate(duplicate(done.network), batches)
    note = f"batch-norm statistics were taken anew from {len(batches)} batches"
    return replace(done, network=network, notes=(*done.notes, note))


def _told(done: Cut[Model]) -> Cut[Model]:
    """The cut, whose plan, notes and network tell what became of its compensation."""
    plan = done.plan
    if plan.why is not None:
        kept = [mending.step for mending in done.mended if mending.kept]
        why = replace(plan.why, compensation=" and ".join(kept) or "none")
        chosen = partial(_chosen_so, plan.why, why)
        plan = replace(plan, why=why, notes=chosen(plan.notes))
        retell(done.network, chosen)
    # That a step is left out is the careful choice, and nothing to warn of.
    said = tuple(map(str, done.mended))
    retell(done.network, lambda notes: (*notes, *said))
    return replace(done, plan=plan, notes=(*done.notes, *said))


def _chosen_so(before: Why, now: Why, notes: Notes) -> Notes:
    """The sentences of a plan; the last one on what was chosen says what came of it."""
    found = list(notes)
    for number in reversed(range(len(found))):
        said, semicolon, advice = found[number].partition(";")
        if said == before.chosen():
            found[number] = f"{now.chosen()}{semicolon}{advice}"
            break
    return tuple(found)


def _moved(folding: Folding[Any]) -> Iterator[str]:
    """What became of that which removed channels emitted, in sentences."""
    fitted = [(row.consumer, row.explained) for row in folding.moved if row.explained is not None]
    if fitted:
        where, explained = zip(*fitted, strict=True)
        yield (
            "the channels that stay stand in for what removed channels emitted, in "
            f"{', '.join(where)}; that explains {min(explained):.0%} to {max(explained):.0%} of it"
        )
    else:
        yield _constants(folding)
    for row in folding.moved:
        if row.explained is None and row.reason:
            yield f"what {row.consumer} reads of removed channels is lost: {row.reason}"


def _constants(folding: Folding[Any]) -> str:
    took = [row for row in folding.moved if row.target]
    where = ", ".join(row.consumer for row in took) or "none, for it is zero everywhere"
    text = f"what removed channels still emit moved into the layers behind them: {where}"
    spread = max((row.spread for row in took), default=0.0)
    if spread > EXACT:
        text += f"; it is not quite constant there, by {spread:.2g} of the largest at most"
    return text


__all__ = [
    "Choose",
    "Cut",
    "by_scores",
    "cut",
    "left_alone",
    "log",
    "spared",
    "with_choice",
]
