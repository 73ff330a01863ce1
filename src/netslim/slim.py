"""Trace, score, select, prune and verify in one call."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
from torch import nn

from .budget import Budget, resolve, select
from .errors import NetslimError, PlanError, VerificationError
from .fold import fold_constants
from .graph import ChannelGraph, trace
from .plan import PruningPlan
from .scores import Criterion, reads_data, score
from .surgery import prune
from .verify import Verification, verify

Model = TypeVar("Model", bound=nn.Module)
logger = logging.getLogger("netslim")


def slim(
    model: Model,
    example_inputs: Any,
    *,
    criterion: str | Criterion = "bn_scale",
    budget: Budget | None = None,
    strict: bool = False,
    fold: Literal["constant"] | None = None,
    batches: Iterable[Any] | None = None,
    scoring: Mapping[str, Any] | None = None,
    **options: Any,
) -> Model:
    """A smaller, verified copy of ``model``; ``model`` is not changed.

    Args:
        model: any PyTorch module.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        criterion: what makes a channel important, see `netslim.score`.
        budget: what to reach, see `netslim.Budget`.
        strict: refuse the whole cut when a group fails verification, instead of leaving that group alone.
        fold: ``"constant"`` moves what removed channels still emit into the layers behind, see
            `netslim.fold_constants`.
        batches: a data loader or list, for criteria that look at data and for ``fold``, which without it takes the
            example inputs.
        scoring: options of the criterion, see `netslim.score`, such as ``{"lead": "pacesetter"}``.
        options: of `netslim.select`.

    Raises:
        TraceError, PlanError, SurgeryError, VerificationError: as the steps do.
    """
    _check_fold(fold)
    if batches is not None and fold is None and isinstance(criterion, str) and not reads_data(criterion):
        raise PlanError(f"batches are read by fold='constant' and by criteria that look at data, not by {criterion}")
    graph = trace(model, example_inputs)
    if batches is not None and not isinstance(batches, Iterable):
        raise PlanError(f"batches must be a data loader or a list of batches, not a {type(batches).__name__}")
    batches = None if batches is None else list(batches)
    scores = score(graph, model, criterion, batches=batches, **(scoring or {}))
    return cut(model, graph, scores, budget, example_inputs, strict=strict, fold=fold, batches=batches, **options)[0]


def cut(
    model: Model,
    graph: ChannelGraph,
    scores: dict[str, Any],
    budget: Budget | None,
    example_inputs: Any,
    *,
    strict: bool = False,
    fold: Literal["constant"] | None = None,
    batches: Iterable[Any] | None = None,
    **options: Any,
) -> tuple[Model, PruningPlan, Verification]:
    """Select, prune and verify; a group that does not verify is named in a warning, and others are cut instead.

    With ``fold`` the plan and the verification are of the folded model (`netslim.Folding`).
    """
    _check_fold(fold)
    kept = dict(scores)
    while True:
        plan = select(graph, kept, budget, **options)
        try:
            if fold is None:
                small = prune(model, plan)
                return small, plan, verify(model, small, plan, example_inputs, graph=graph)
            inputs = tuple(example_inputs) if isinstance(example_inputs, list) else example_inputs
            folding = fold_constants(model, plan, [(inputs,)] if batches is None else batches)
            small = prune(folding.model, folding.plan)
            return small, folding.plan, verify(folding.model, small, folding.plan, example_inputs)
        except (NetslimError, RuntimeError) as error:
            rejected = [] if strict else _rejected(model, graph, plan, example_inputs)
            kept = {name: s for name, s in kept.items() if name not in rejected}
            if not rejected:
                raise
            if not kept:
                raise VerificationError(f"no group of this model can be cut and verified: {error}") from error
            logger.warning("left alone, because the cut did not verify: %s", ", ".join(rejected))


def _check_fold(fold: Any) -> None:
    if fold not in (None, "constant"):
        raise PlanError(f"fold must be 'constant' or None, got {fold!r}")


def _rejected(model: nn.Module, graph: ChannelGraph, plan: PruningPlan, example_inputs: Any) -> list[str]:
    """The groups of the plan that do not verify when they are cut alone."""
    rejected = []
    for name, group in plan.groups.items():
        mask = np.isin(np.arange(group.size), group.kept)
        alone = resolve(graph, {graph.number(name): mask})
        try:
            verify(model, prune(model, alone), alone, example_inputs, graph=graph)
        except (NetslimError, RuntimeError):
            rejected.append(name)
    return rejected
