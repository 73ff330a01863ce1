"""Trace, score, select, prune and verify in one call."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, TypeVar

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from netslim._support import check_batches, expect
from netslim.errors import ArgumentError, NetslimError, VerificationError
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.measure.table.measuring import latency_table
from netslim.selection.budget.allocation import Allocation
from netslim.selection.criteria.registry import Criterion, reads_data
from netslim.selection.criteria.scoring import score
from netslim.selection.select import Budget, select
from netslim.surgery.compensation.batch_norm import recalibrate
from netslim.surgery.compensation.linear import FoldWay, check_fold
from netslim.surgery.compensation.linear import fold as folded
from netslim.surgery.plan import PruningPlan
from netslim.surgery.plan_of_units import resolve
from netslim.surgery.proof.verify import Verification, verify
from netslim.surgery.prune import prune

Model = TypeVar("Model", bound=nn.Module)
AUTO: Literal["auto"] = "auto"
logger = logging.getLogger("netslim")


def slim(
    model: Model,
    example_inputs: Any,
    *,
    budget: Budget | None = None,
    batches: Iterable[Any] | None = None,
    criterion: str | Criterion = AUTO,
    allocation: Allocation | Literal["auto"] = AUTO,
    fold: FoldWay | Literal["auto"] | None = AUTO,
    recalibrated: bool | Literal["auto"] = AUTO,
    strict: bool = False,
    scoring: Mapping[str, Any] | None = None,
    **options: Any,
) -> Model:
    """A smaller, verified copy of ``model``; ``model`` is not changed.

    Give a budget and some batches of training data (labels are not needed), and the rest is chosen:
    channels go whose loss the others can best make up for (criterion ``obs``), where that loses
    least for what it saves (allocation ``cost``); the others do make up for them (fold ``linear``),
    and the statistics of batch normalisation are taken anew. Without batches the same share of
    every layer goes, the filters with the smallest norms first.

    Args:
        model: any PyTorch module.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        budget: what to reach, see `netslim.Budget`.
        batches: a data loader or list, some ten batches, for criteria that look at data, for
            ``fold`` (which without it takes the example inputs) and for ``recalibrated``.
        criterion: what makes a channel important, see `netslim.score`. ``"auto"``: ``obs`` with
            batches, else ``l2``.
        allocation: how the budget is spread, see `netslim.select`. ``"auto"``: ``cost`` with
            batches and ``uniform`` without, where the criterion is left to netslim; ``global`` with
            a criterion of yours.
        fold: what is done about that which removed channels emit: ``"constant"`` moves what is
            constant of it into the layers behind, see `netslim.surgery.fold_constants`; ``"linear"`` has
            the channels that stay stand in for them, see `netslim.surgery.reconstruct`; ``"sequential"``
            does so layer after layer, slower and nearer; None drops it. ``"auto"``: ``"linear"``
            with batches, where the criterion is left to netslim, else None.
        recalibrated: whether the statistics of batch normalisation are taken anew from the batches,
            after the cut was verified, see `netslim.surgery.recalibrate`. ``"auto"``: where ``fold`` is
            ``"linear"`` by itself.
        strict: refuse the whole cut when a group fails verification, instead of leaving that group
            alone.
        scoring: options of `netslim.score` and of the criterion, such as ``{"over": "all",
            "normalize": "mean"}``.
        options: of `netslim.select`. For a budget of latency without ``latency``, a table is
            measured here, or taken from the cache, see `netslim.latency_table`.

    Raises:
        ArgumentError, TraceError, PlanError, SurgeryError, VerificationError: as the steps do.
    """
    expect(
        budget,
        (Budget, NoneType),
        "budget",
        "slim(model, example_inputs, budget=Budget(cut_macs=0.5))",
    )
    if batches is not None:
        check_batches(batches)
    if scoring is not None and not isinstance(scoring, Mapping):
        raise ArgumentError(
            f"scoring takes options of netslim.score by name, such as {{'over': 'all'}}, got "
            f"{scoring!r}"
        )
    choice = _chosen(criterion, allocation, fold, recalibrated, batches is not None)
    check_fold(choice.fold)
    if batches is not None and not choice.reads_data:
        raise ArgumentError(
            "batches are read by fold= and by criteria that look at data, not by "
            f"{choice.criterion}"
        )
    graph = trace(model, example_inputs)
    batches = None if batches is None else list(batches)
    if (
        budget is not None
        and any("latency" in name for name in budget.given())
        and options.get("latency") is None
    ):
        options["latency"] = latency_table(model, graph, example_inputs)
    scores = score(graph, model, choice.criterion, batches=batches, **(scoring or {}))
    options |= {"allocation": choice.allocation, "fold": choice.fold}
    small, _, _ = cut(
        model, graph, scores, budget, example_inputs, strict=strict, batches=batches, **options
    )
    if choice.recalibrated and any(
        isinstance(m, _BatchNorm) and m.track_running_stats for m in small.modules()
    ):
        if batches is None:
            raise ArgumentError(
                "recalibrated=True takes the statistics from batches: give batches=, a data "
                "loader or a list"
            )
        recalibrate(small, batches)
    return small


@dataclass(frozen=True)
class _Choice:
    criterion: str | Criterion
    allocation: Allocation
    fold: FoldWay | None
    recalibrated: bool

    @property
    def reads_data(self) -> bool:
        named = isinstance(self.criterion, str)
        return bool(self.fold) or self.recalibrated or not named or reads_data(str(self.criterion))


def _chosen(criterion: Any, allocation: Any, fold: Any, recalibrated: Any, data: bool) -> _Choice:
    """What netslim takes where it is left to it."""
    auto = criterion == AUTO
    if auto:
        criterion = "obs" if data else "l2"
    if allocation == AUTO:
        allocation = "global" if not auto else "cost" if data else "uniform"
    if recalibrated == AUTO:
        recalibrated = auto and data and fold == AUTO
    if fold == AUTO:
        fold = "linear" if auto and data else None
    return _Choice(criterion, allocation, fold, recalibrated)


def cut(
    model: Model,
    graph: ChannelGraph,
    scores: dict[str, Any],
    budget: Budget | None,
    example_inputs: Any,
    *,
    strict: bool = False,
    fold: FoldWay | None = None,
    batches: Iterable[Any] | None = None,
    **options: Any,
) -> tuple[Model, PruningPlan, Verification]:
    """Select, prune and verify; a group that does not verify is named in a warning, and others are
    cut instead.

    With ``fold`` the plan and the verification are of the folded model (`netslim.surgery.Folding`).
    """
    check_fold(fold)
    kept = dict(scores)
    while True:
        plan = select(graph, kept, budget, **options)
        try:
            if fold is None:
                small = prune(model, plan)
                return small, plan, verify(model, small, plan, example_inputs, graph=graph)
            inputs = tuple(example_inputs) if isinstance(example_inputs, list) else example_inputs
            folding = folded(model, plan, [(inputs,)] if batches is None else batches, fold)
            small = prune(folding.model, folding.plan)
            return small, folding.plan, verify(folding.model, small, folding.plan, example_inputs)
        except (NetslimError, RuntimeError) as error:
            wrong = [] if strict else rejected(model, graph, plan, example_inputs)
            kept = {name: s for name, s in kept.items() if name not in wrong}
            if not wrong:
                raise
            if not kept:
                raise VerificationError(
                    f"no group of this model can be cut and verified: {error}"
                ) from error
            logger.warning("left alone, because the cut did not verify: %s", ", ".join(wrong))


def rejected(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, example_inputs: Any
) -> list[str]:
    """The groups of the plan that do not verify when they are cut alone."""
    found = []
    for name, group in plan.groups.items():
        mask = np.isin(np.arange(group.size), group.kept)
        alone = resolve(graph, {graph.number(name): mask})
        try:
            verify(model, prune(model, alone), alone, example_inputs, graph=graph)
        except (NetslimError, RuntimeError):
            found.append(name)
    return found
