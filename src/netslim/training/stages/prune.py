"""The stages that make a network smaller: choose what goes, cut or mask it, prove it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

import netslim
from netslim.errors import ArgumentError, PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.wrapping import duplicate
from netslim.methods.gradual import GradualPruning
from netslim.methods.masking import Mask
from netslim.methods.slim import cut
from netslim.methods.soft_filter import plan_of_zeros
from netslim.selection.budget.limits import Limits
from netslim.selection.criteria.registry import reads_data
from netslim.selection.options import declared
from netslim.surgery.compensation.constants import Folding
from netslim.surgery.compensation.linear import fold
from netslim.surgery.plan import PruningPlan
from netslim.surgery.proof.verify import Verification
from netslim.training.loop.gammas import cut_warning
from netslim.training.recipe.schema import GradualOptions, Prune

Scores = dict[str, Tensor]
EXACT = 1e-5  # a spread below it is rounding
Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Cut:
    """What a prune stage did.

    Attributes:
        network: cut, or masked and as large as before.
        graph: of the network before.
        plan: what goes.
        check: the proof; None for a mask, which is proved when it is converted.
        warnings: sentences.
        notes: sentences on what was done besides dropping channels.
    """

    network: nn.Module
    graph: ChannelGraph
    plan: PruningPlan
    check: Verification | None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def carry_out(
    stage: Prune,
    network: nn.Module,
    example: Tensor,
    batches: Batches,
    clusters: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> Cut:
    """Cut or mask `network` as `stage` says; it is not changed.

    Args:
        stage: what goes, and how.
        network: in evaluation mode, on the CPU.
        example: images (B, C, H, W) to trace and verify with.
        batches: gives so many batches of training images and labels.
        clusters: of the last centripetal stage, group -> cluster number of every channel.
        seed: of the criterion `random`.

    Raises:
        PlanError: the stage asks for what this network cannot give.
        SurgeryError, VerificationError: as the cut does.
    """
    graph = netslim.trace(network, example[:1])  # budgets are for one image
    if stage.by == "clusters":
        done = _merged(network, graph, clusters, example)
    elif stage.by == "zeros":
        done = _of_zeros(stage, network, graph, example, batches)
    elif stage.by == "greedy":
        scoring = _scoring(stage, seed)
        lead = scoring.pop("lead")
        plan = netslim.selection.greedy(
            graph,
            network,
            stage.per_group,
            stage.scoring.criterion,
            lead=lead,
            options=scoring,
            **_limits(stage),
        )
        done = _done(stage, network, graph, plan, example, batches)
    else:
        done = _by_scores(stage, network, graph, example, batches, seed)
    count = (
        stage.batches if stage.compensation.recalibrate is True else stage.compensation.recalibrate
    )
    if count:
        netslim.surgery.recalibrate(done.network, list(batches(count)))
        note = f"batch-norm statistics were taken anew from {count} training batches"
        done = replace(done, notes=(*done.notes, note))
    return done


def _by_scores(
    stage: Prune,
    network: nn.Module,
    graph: ChannelGraph,
    example: Tensor,
    batches: Batches,
    seed: int,
) -> Cut:
    scores = _scores(stage, network, graph, batches, seed)
    limits = _limits(stage)
    limits["per_group"] = stage.per_group or None
    limits["allocation"], limits["latency"] = stage.allocation, latency_of(stage, network, example)
    budget = _budget(stage)
    if stage.mode == "mask" or stage.compensation.fold:
        plan = netslim.select(graph, scores, budget, **limits)
        done = _done(stage, network, graph, plan, example, batches)
    else:
        small, plan, check = cut(network, graph, scores, budget, example, **limits)
        done = Cut(small, graph, plan, check)
    return replace(done, warnings=_warnings(stage, scores, done.plan))


def latency_of(
    stage: Prune | GradualOptions, network: nn.Module, example: Tensor
) -> netslim.measure.LatencyTable | None:
    """How long the layers of `network` take, where the stage's budget asks for it: read, or
    measured here.
    """
    if not any("latency" in key for key in stage.budget.given()):
        return None
    if stage.latency.table is not None:
        return netslim.measure.LatencyTable.load(stage.latency.table)
    images = example[:1].expand(stage.latency.batch, *example.shape[1:]).contiguous()
    return netslim.latency_table(
        network, netslim.trace(network, images), images, backend=stage.latency.backend
    )


def _warnings(stage: Prune, scores: Scores, plan: PruningPlan) -> tuple[str, ...]:
    if stage.scoring.criterion != "bn_scale":
        return ()
    warning = cut_warning(scores, {name: cut.kept for name, cut in plan.groups.items()})
    return (warning,) if warning else ()


def _scores(
    stage: Prune, network: nn.Module, graph: ChannelGraph, batches: Batches, seed: int
) -> Scores:
    seen = batches(stage.batches) if reads_data(str(stage.scoring.criterion)) else None
    return netslim.score(
        graph, network, stage.scoring.criterion, batches=seen, **_scoring(stage, seed)
    )


def _scoring(stage: Prune | GradualOptions, seed: int) -> dict[str, Any]:
    """The options of `netslim.score`."""
    ways = {key: getattr(stage.scoring, key) for key in ("lead", "reduction", "over", "normalize")}
    return ways | ({"seed": seed} if stage.scoring.criterion == "random" else {})


def _of_zeros(
    stage: Prune, network: nn.Module, graph: ChannelGraph, example: Tensor, batches: Batches
) -> Cut:
    """Cut what soft pruning or a proximal penalty has left at exactly zero."""
    limits = _limits(stage)
    staying = Limits(**limits).staying(graph)
    free = [group.name for group in graph.groups if group.name not in staying]
    if stage.scoring.criterion == "bn_scale":
        plan = _zero_scales(network, graph, free, limits)
    else:
        plan = plan_of_zeros(
            graph, network, groups=free, criterion=stage.scoring.criterion, **limits
        )
        if (
            stage.compensation.fold
        ):  # a zero filter emits beta once its running mean is zero, which it is not so soon
            network = netslim.surgery.recalibrate(duplicate(network), list(batches(stage.batches)))
    return _done(stage, network, graph, plan, example, batches)


def _zero_scales(
    network: nn.Module, graph: ChannelGraph, free: Sequence[str], limits: Mapping[str, Any]
) -> PruningPlan:
    scores = netslim.score(graph, network, "bn_scale")
    zeros = {name: int((scores[name] == 0).sum()) for name in free if name in scores}
    wanted = {
        name: min(count, len(scores[name]) - limits["min_channels"])
        for name, count in zeros.items()
        if count
    }
    if not any(wanted.values()):
        raise PlanError(
            "no batch-norm scale is exactly zero, so 'by: zeros' finds nothing to cut: train "
            "with penalty: proximal and a larger strength, cut by scores, or give criterion: "
            "l2 for filters that are zero"
        )
    return netslim.select(graph, scores, per_group=wanted, **limits)


def _done(
    stage: Prune,
    network: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    example: Tensor,
    batches: Batches,
) -> Cut:
    if stage.mode == "mask":
        masked = duplicate(network)
        Mask(masked, plan).apply()
        note = (
            f"channels silenced and held at zero: {plan.removed}; only a stage of kind "
            "convert cuts them"
        )
        return Cut(masked, graph, plan, None, notes=(note,))
    if not stage.compensation.fold:
        return _proved(network, graph, plan, example)
    folding = fold(network, plan, list(batches(stage.batches)), stage.compensation.fold)
    small = netslim.prune(folding.model, folding.plan)
    check = netslim.verify(folding.model, small, folding.plan, example)
    return Cut(small, graph, folding.plan, check, notes=tuple(_folded(folding)))


def _proved(network: nn.Module, graph: ChannelGraph, plan: PruningPlan, example: Tensor) -> Cut:
    small = netslim.prune(network, plan)
    return Cut(small, graph, plan, netslim.verify(network, small, plan, example, graph=graph))


def _folded(folding: Folding) -> Iterator[str]:
    fitted = [row for row in folding.moved if row.explained is not None]
    if fitted:
        explained = [row.explained for row in fitted if row.explained is not None]
        yield (
            "the channels that stay stand in for what removed channels emitted, in "
            + ", ".join(row.consumer for row in fitted)
            + f"; that explains {min(explained):.0%} to {max(explained):.0%} of it"
        )
        lost = [row for row in folding.moved if row.explained is None and row.reason]
        yield from (
            f"what {row.consumer} reads of removed channels is lost: {row.reason}" for row in lost
        )
        return
    took = [row for row in folding.moved if row.target]
    spread = max((row.spread for row in took), default=0.0)
    yield (
        "what removed channels still emit moved into the layers behind them: "
        + (", ".join(row.consumer for row in took) or "none, for it is zero everywhere")
        + (
            f"; it is not quite constant there, by {spread:.2g} of the largest at most"
            if spread > EXACT
            else ""
        )
    )
    yield from (
        f"what {row.consumer} reads of removed channels is lost: {row.reason}"
        for row in folding.moved
        if row.reason
    )


def _merged(
    network: nn.Module,
    graph: ChannelGraph,
    clusters: Mapping[str, Sequence[int]] | None,
    example: Tensor,
) -> Cut:
    if not clusters:
        raise ArgumentError(
            "'by: clusters' merges what a training stage with sparsity method centripetal drew "
            "together, and no such stage comes before it"
        )
    plan = netslim.selection.merge(graph, clusters)
    note = (
        f"channels merged into those that they had become equal to: {plan.removed}; nothing "
        "was thrown away"
    )
    return replace(_proved(network, graph, plan, example), notes=(note,))


def gradually(
    options: GradualOptions, network: nn.Module, example: Tensor, batches: Batches, seed: int = 0
) -> GradualPruning:
    """What cuts `network` in steps, in place, as `options` say; it is not changed yet.

    Args:
        options: of the training stage.
        network: as the stage finds it.
        example, batches, seed: as for `carry_out`.

    Raises:
        PlanError: the options ask for what this network cannot give.
    """
    return GradualPruning(
        network,
        example[:1],
        _budget(options),
        steps=options.steps,
        schedule=options.schedule,
        criterion=options.scoring.criterion,
        batches=batches(options.batches) if reads_data(str(options.scoring.criterion)) else None,
        scoring=_scoring(options, seed),
        allocation=options.allocation,
        per_group=options.per_group or None,
        latency=latency_of(options, network, example),
        **_limits(options),
    )


def _budget(stage: Prune | GradualOptions) -> netslim.Budget:
    given: dict[str, Any] = stage.budget.given()
    return netslim.Budget(**given)


def _limits(stage: Prune | GradualOptions) -> dict[str, Any]:
    return {name: getattr(stage.limits, name) for name in declared(stage.limits)}


def convert(network: nn.Module, plan: PruningPlan, example: Tensor) -> Cut:
    """Cut out of a masked network what its mask holds at zero."""
    return _proved(network, netslim.trace(network, example), plan, example)
