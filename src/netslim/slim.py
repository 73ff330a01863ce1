"""Trace, score, select, prune and verify in one call."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import numpy as np
from torch import nn

from .budget import Budget, resolve, select
from .errors import NetslimError, VerificationError
from .graph import ChannelGraph, trace
from .plan import PruningPlan
from .scores import Criterion, score
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
    **options: Any,
) -> Model:
    """A smaller, verified copy of ``model``; ``model`` is not changed.

    Args:
        model: any PyTorch module.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        criterion: what makes a channel important, see `netslim.score`.
        budget: what to reach, see `netslim.Budget`.
        strict: refuse the whole cut when a group fails verification, instead of leaving that group alone.
        options: of `netslim.select`.

    Raises:
        TraceError, PlanError, SurgeryError, VerificationError: as the steps do.
    """
    graph = trace(model, example_inputs)
    scores = score(graph, model, criterion)
    return cut(model, graph, scores, budget, example_inputs, strict=strict, **options)[0]


def cut(
    model: Model,
    graph: ChannelGraph,
    scores: dict[str, Any],
    budget: Budget | None,
    example_inputs: Any,
    *,
    strict: bool = False,
    **options: Any,
) -> tuple[Model, PruningPlan, Verification]:
    """Select, prune and verify; a group that does not verify is named in a warning, and others are cut instead."""
    kept = dict(scores)
    while True:
        plan = select(graph, kept, budget, **options)
        try:
            small = prune(model, plan)
            return small, plan, verify(model, small, plan, example_inputs, graph=graph)
        except (NetslimError, RuntimeError) as error:
            rejected = [] if strict else _rejected(model, graph, plan, example_inputs)
            kept = {name: s for name, s in kept.items() if name not in rejected}
            if not rejected:
                raise
            if not kept:
                raise VerificationError(f"no group of this model can be cut and verified: {error}") from error
            logger.warning("left alone, because the cut did not verify: %s", ", ".join(rejected))


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
