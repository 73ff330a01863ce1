"""The stages that make a network smaller: what they choose, for the loop of
`netslim.methods.cutting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

import netslim
from netslim._support.progress import Counted, Progress, untold
from netslim.errors import ArgumentError, PlanError, VerificationError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.batches import held_out
from netslim.graph.modules.duplicating import duplicate
from netslim.measure.table.promise import timed_here
from netslim.methods.centripetal import CentripetalSGD
from netslim.methods.cutting import EXACT, Choose, Cut, by_scores, cut, spared, with_choice
from netslim.methods.gradual import GradualPruning
from netslim.methods.noise import carried_back, decided
from netslim.methods.soft_filter import plan_of_zeros, zeroed
from netslim.selection.budget.limits import staying
from netslim.selection.budget.resources import LatencySource
from netslim.selection.criteria.registry import Criterion, reads_data
from netslim.selection.defaults import AUTO, BN_SCALE, PLAIN, Choice, chosen
from netslim.selection.options import Compensation, Limits, Scoring
from netslim.surgery.plan import PruningPlan
from netslim.training.recipe.schema import GradualOptions, Prune

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
Seen = tuple[list[Any], list[Any]]  # batches to work with, and those held out to judge by
Clusters = Mapping[str, Sequence[int]]
_NOT_EQUAL = (
    "channels merged: {}, though the members of a cluster differ by {:.2g} of their size, so the "
    "first of each stands for others (the clusters are of before other training?)"
)


def carry_out(
    stage: Prune,
    network: nn.Module,
    example: Tensor,
    batches: Batches,
    clusters: Clusters | None = None,
    seed: int = 0,
    *,
    data: bool = True,
    progress: Progress | None = None,
) -> Cut[nn.Module]:
    """Cut or mask `network` as `stage` says; it is not changed.

    Args:
        stage: what goes, and how.
        network: in evaluation mode, on the CPU.
        example: images (B, C, H, W) to trace and verify with.
        batches: gives so many batches of training images and labels.
        clusters: of the last centripetal stage, group -> cluster number of every channel.
        seed: of the criterion `random`.
        data: whether there are training images, for what is chosen where the stage says nothing.
        progress: told how many batches were scored, and as for `netslim.latency_table`, where a
            budget of latency has one measured.

    Raises:
        PlanError: the stage asks for what this network cannot give.
        SurgeryError, VerificationError: as the cut does.
    """
    graph = netslim.trace(  # budgets: one image
        network, example[:1], free_outputs=stage.free_outputs, blocks=stage.limits.blocks
    )
    if stage.by == "clusters":
        return _merged(stage, network, graph, clusters, example, batches)
    if stage.by == "zeros":
        return _of_zeros(stage, network, graph, example, batches)
    choose = partial(choice_of, stage, graph, seed=seed)
    choice, made = decided(partial(choose, data=data), network, example[:1])
    if made is not None:
        noise = made.batches, made.held
        done = _by_choice(stage, made.network, graph, choice, example, noise, progress)
        return carried_back(done, network, made)
    seen = _drawn(stage, choice.compensation, batches, looks=_looks(stage, choice))
    return _by_choice(stage, network, graph, choice, example, seen, progress)


def _by_choice(
    stage: Prune,
    network: nn.Module,
    graph: ChannelGraph,
    choice: Choice,
    example: Tensor,
    seen: Seen,
    progress: Progress | None,
) -> Cut[nn.Module]:
    """Cut what scores say, or layer after layer."""
    if stage.by == "greedy":
        choose = _greedy(stage, network, graph, choice)
        return _cut(stage, network, graph, choose, example, choice.compensation, seen)
    own = None
    if _looks(stage, choice):
        own = Counted(seen[0][: stage.batches], progress or untold)
    scores = netslim.score(graph, network, choice.scoring, batches=own)
    choose = by_scores(
        graph,
        scores,
        stage.budget,
        per_group=stage.per_group,
        choice=choice,
        limits=stage.limits,
        latency=_timed(stage, network, example, progress),
    )
    return _cut(stage, network, graph, choose, example, choice.compensation, seen)


def _layers(progress: Progress | None) -> Progress | None:
    """What is told of layers that are timed, as such."""
    if progress is None:
        return None
    return lambda what, done, total: progress(f"layer times  {what}", done, total)


def _looks(stage: Prune, choice: Choice) -> bool:
    """Whether the scores are of data."""
    return stage.by != "greedy" and reads_data(choice.scoring.criterion)


def notice(stage: Prune, plan: PruningPlan) -> str | None:
    """What to know where a network that Network Slimming has trained is cut by something else, and
    nobody asked for that: None where a criterion is named, or scales decide.
    """
    if stage.scoring.criterion != AUTO or stage.by in ("zeros", "clusters") or plan.why is None:
        return None
    taken = plan.why.criterion
    if taken == BN_SCALE:
        return None
    return unnamed(taken)


def unnamed(taken: str) -> str:
    """The sentence: which criterion was taken, and how the published one is had."""
    return (
        f"trained by Network Slimming and cut by {taken}, as no criterion is named; with "
        "criterion: bn_scale it is cut by its scales, as published"
    )


def choice_of(
    stage: Prune, graph: ChannelGraph, *, data: bool | Literal["noise"], seed: int
) -> Choice:
    """How a stage makes its cut, with what is taken where it says nothing."""
    masks = stage.mode == "mask" and stage.compensation == AUTO  # a mask cuts nothing yet
    return chosen(
        stage.budget,
        stage.per_group,
        data=data,
        criterion=_seeded(stage.scoring, seed),
        allocation=stage.allocation,
        compensation=None if masks else stage.compensation,
        graph=graph,
    )


def _seeded(scoring: Scoring, seed: int) -> Scoring:
    """The criterion `random` draws by the seed of the recipe."""
    if scoring.criterion != "random":
        return scoring
    return replace(scoring, arguments={"seed": seed, **scoring.arguments})


def latency_of(
    stage: Prune | GradualOptions,
    network: nn.Module,
    example: Tensor,
    progress: Progress | None = None,
) -> netslim.measure.LatencyTable | None:
    """How long the layers of `network` take, where the stage's budget asks for it: read, or
    measured here.
    """
    if not stage.budget.timed():
        return None
    if stage.latency.table is not None:
        return netslim.measure.LatencyTable.load(stage.latency.table)
    images = _images(stage, example)
    return netslim.latency_table(
        network,
        netslim.trace(network, images),
        images,
        backend=stage.latency.backend,
        progress=progress,
    )


def _timed(
    stage: Prune, network: nn.Module, example: Tensor, progress: Progress | None
) -> LatencySource | None:
    """The table, by which cuts are timed, too, unless the stage says otherwise."""
    table = latency_of(stage, network, example, _layers(progress))
    if table is None or not stage.latency.check:
        return table
    return timed_here(table, network, _images(stage, example), progress or untold)


def _images(stage: Prune | GradualOptions, example: Tensor) -> Tensor:
    """What a timed call takes."""
    return example[:1].expand(stage.latency.batch, *example.shape[1:]).contiguous()


def _drawn(
    stage: Prune, compensation: Compensation, batches: Batches, *, looks: bool = False
) -> Seen:
    """The images that a stage needs; of those for a compensation, a part is held out.

    Args:
        stage: what goes, and how.
        compensation: of what goes.
        batches: gives so many batches.
        looks: whether the scores are of data.
    """
    if compensation.fold or compensation.recalibrate:
        return held_out(list(batches(max(stage.batches, _fresh(stage, compensation)))))
    if looks:
        return list(batches(stage.batches)), []
    return [], []


def _fresh(stage: Prune, compensation: Compensation) -> int:
    """From how many batches statistics are taken anew."""
    if compensation.recalibrate is True:
        return stage.batches
    return int(compensation.recalibrate)


def _cut(
    stage: Prune,
    network: nn.Module,
    graph: ChannelGraph,
    choose: Choose,
    example: Tensor,
    compensation: Compensation,
    seen: Seen,
) -> Cut[nn.Module]:
    """The loop, with the data that it needs."""
    work, held = seen
    return cut(
        network,
        graph,
        choose,
        example,
        compensation=compensation,
        batches=work[: stage.batches],
        fresh=work[: _fresh(stage, compensation)],
        held=held,
        mode=stage.mode,
    )


def _greedy(stage: Prune, network: nn.Module, graph: ChannelGraph, choice: Choice) -> Choose:
    greedy = partial(netslim.selection.greedy, graph, network)

    def choose(alone: frozenset[str]) -> PruningPlan:
        amounts = spared(graph, stage.per_group, alone)
        return with_choice(greedy(amounts, choice.scoring, limits=stage.limits), choice)

    return choose


# ---------------------------------------------------------------- what training has marked


def _of_zeros(
    stage: Prune, network: nn.Module, graph: ChannelGraph, example: Tensor, batches: Batches
) -> Cut[nn.Module]:
    """Cut what soft pruning or a proximal penalty has left at exactly zero."""
    whole = staying(stage.limits, graph)
    free = [group.name for group in graph.groups if group.name not in whole]
    mended = _wanted(stage)
    criterion = _marked(stage.scoring.criterion, graph, network, free)

    def choose(alone: frozenset[str]) -> PruningPlan:
        left = [name for name in free if name not in alone]
        if alone and not left:
            raise VerificationError("no group that was asked for can be cut and verified")
        if criterion == BN_SCALE:
            return _zero_scales(network, graph, left, stage.limits)
        return plan_of_zeros(graph, network, groups=left, criterion=criterion, limits=stage.limits)

    seen = _drawn(stage, mended, batches)
    if not mended.fold or criterion == BN_SCALE:
        return _cut(stage, network, graph, choose, example, mended, seen)
    # The running means are of the time before the last zeroing, so a zero filter emits something
    # else than in training until they are taken anew. Folding would keep that as it is.
    settled = netslim.surgery.recalibrate(duplicate(network), seen[0][: stage.batches])
    done = _cut(stage, settled, graph, choose, example, mended, seen)
    note = "before the cut, batch-norm statistics were taken anew, with the filters at zero"
    return replace(done, notes=(note, *done.notes))


def _wanted(stage: Prune) -> Compensation:
    """What a stage says itself; where it says nothing, what was trained for the cut needs no
    mending.
    """
    if isinstance(stage.compensation, Compensation):
        return stage.compensation
    return Compensation()


def _marked(
    criterion: str | Criterion, graph: ChannelGraph, network: nn.Module, free: Sequence[str]
) -> str | Criterion:
    """What is looked at for zeros: filters where any is zero, else batch-norm scales."""
    if criterion != AUTO:
        return criterion
    filters = any(bool(units.any()) for units in zeroed(graph, network, free).values())
    if filters:
        return PLAIN
    return BN_SCALE


def _zero_scales(
    network: nn.Module, graph: ChannelGraph, free: Sequence[str], limits: Limits
) -> PruningPlan:
    scores = netslim.score(graph, network, BN_SCALE)
    zeros = {name: int((scores[name] == 0).sum()) for name in free if name in scores}
    wanted = {
        name: min(count, len(scores[name]) - limits.min_channels)
        for name, count in zeros.items()
        if count
    }
    if not any(wanted.values()):
        raise PlanError(
            "no batch-norm scale is exactly zero, so 'by: zeros' finds nothing to cut: train "
            "with penalty: proximal and a larger strength, cut by scores, or give criterion: "
            "l2 for filters that are zero"
        )
    return netslim.select(graph, scores, per_group=wanted, limits=limits)


def _merged(
    stage: Prune,
    network: nn.Module,
    graph: ChannelGraph,
    clusters: Clusters | None,
    example: Tensor,
    batches: Batches,
) -> Cut[nn.Module]:
    if not clusters:
        raise ArgumentError(
            "'by: clusters' merges what a training stage with sparsity method centripetal drew "
            "together, and no such stage comes before it"
        )

    def choose(alone: frozenset[str]) -> PruningPlan:
        left = {name: numbers for name, numbers in clusters.items() if name not in alone}
        if alone and not left:
            raise VerificationError("no group that was asked for can be cut and verified")
        return netslim.selection.merge(graph, left)

    mended = _wanted(stage)
    seen = _drawn(stage, mended, batches)
    done = _cut(stage, network, graph, choose, example, mended, seen)
    merged = {name: numbers for name, numbers in clusters.items() if name in done.plan.groups}
    apart = CentripetalSGD(graph, network, clusters=merged).deviation().largest
    if apart > EXACT:
        warning = _NOT_EQUAL.format(done.plan.removed, apart)
        return replace(done, warnings=(*done.warnings, warning))
    note = (
        f"channels merged into those that they had become equal to: {done.plan.removed}; "
        "nothing was thrown away"
    )
    return replace(done, notes=(note, *done.notes))


# ---------------------------------------------------------------- in steps, and what a mask holds


def gradually(
    options: GradualOptions,
    network: nn.Module,
    example: Tensor,
    batches: Batches,
    seed: int = 0,
    progress: Progress | None = None,
) -> GradualPruning:
    """What cuts `network` in steps, in place, as `options` say; it is not changed yet.

    Args:
        options: of the training stage.
        network: as the stage finds it.
        example, batches, seed, progress: as for `carry_out`.

    Raises:
        PlanError: the options ask for what this network cannot give.
    """
    scoring = _seeded(options.scoring, seed)
    looks = scoring.criterion == AUTO or reads_data(scoring.criterion)
    return GradualPruning(
        network,
        example[:1],
        options.budget,
        per_group=options.per_group,
        steps=options.steps,
        schedule=options.schedule,
        criterion=scoring,
        batches=batches(options.batches) if looks else None,
        allocation=options.allocation,
        limits=options.limits,
        latency=latency_of(options, network, example, progress),
    )


def convert(network: nn.Module, plan: PruningPlan, example: Tensor) -> Cut[nn.Module]:
    """Cut out of a masked network what its mask holds at zero: all of that, or nothing."""
    return cut(network, netslim.trace(network, example), lambda _: plan, example, strict=True)
