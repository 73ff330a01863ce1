"""How important is each channel? A criterion is one function from a group and the model's tensors to scores."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import PlanError
from .graph import ChannelGraph, ChannelGroup, Slice
from .plan import named_tensors
from .wrapping import bare

Criterion = Callable[..., Tensor | None]
CRITERIA: dict[str, Criterion] = {}


def criterion(function: Criterion) -> Criterion:
    """Register ``function(group, tensors, **options) -> Tensor(size) | None`` under its own name.

    ``tensors`` maps the names of parameters and buffers to their values; None says the group cannot be scored.
    """
    CRITERIA[function.__name__] = function
    return function


def score(
    graph: ChannelGraph, model: nn.Module, criterion: str | Criterion = "bn_scale", **options: Any
) -> dict[str, Tensor]:
    """Score every unit of every group; larger is more important.

    Args:
        graph: of this model.
        model: whose weights are scored.
        criterion: ``bn_scale``, ``l1``, ``l2``, ``random``, or a function like them.
        options: passed to the criterion.

    Returns:
        Group name -> 1-D float64 CPU tensor, one score a unit. Groups the criterion cannot score are left out.

    Raises:
        StaleGraphError: the model is not the traced one.
        PlanError: the criterion is unknown, or can score no group of this model.
    """
    model = bare(model, PlanError)
    graph.check(model)
    function = criterion if callable(criterion) else _named(criterion)
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model)}
    scores: dict[str, Tensor] = {}
    with torch.no_grad():
        for group in graph.groups:
            if not group.frozen and (values := function(group, tensors, **options)) is not None:
                scores[group.name] = _checked(group, values)
    if not scores:
        name = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "the criterion")
        raise PlanError(f"{name} can score no group of this model; {_remedy(graph, str(name))}")
    return scores


@criterion
def bn_scale(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Mean of abs(gamma) over the normalisations of the channel (Network Slimming, Liu et al. 2017, section 3)."""
    return _mean(group, [(s, tensors[s.tensor].abs()) for s in group.tensors("scale")])


@criterion
def l1(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Sum of absolute kernel weights of the filter (Li et al. 2017, section 3.1), mean over coupled layers."""
    return _norm(group, tensors, 1)


@criterion
def l2(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Euclidean norm of the filter (He et al. 2018, Eq. 2), mean over coupled layers."""
    return _norm(group, tensors, 2)


@criterion
def random(group: ChannelGroup, tensors: Mapping[str, Tensor], seed: int = 0) -> Tensor:
    """Uniform random scores, the same for the same seed and group name."""
    generator = torch.Generator().manual_seed(seed + zlib.crc32(group.name.encode()))
    return torch.rand(group.size, generator=generator, dtype=torch.float64)


def _norm(group: ChannelGroup, tensors: Mapping[str, Tensor], order: int) -> Tensor | None:
    filters = []
    for s in group.tensors("producer"):
        weight = tensors[s.tensor].movedim(s.axis, 0).flatten(1)
        precision = torch.promote_types(weight.dtype, torch.float32)
        filters.append((s, torch.linalg.vector_norm(weight, ord=order, dim=1, dtype=precision)))
    return _mean(group, filters)


def _mean(group: ChannelGroup, values: list[tuple[Slice, Tensor]]) -> Tensor | None:
    """Mean over all the entries of each unit."""
    if not values:
        return None
    total = torch.zeros(group.size, dtype=torch.float64)
    entries = torch.zeros(group.size, dtype=torch.float64)
    for s, value in values:
        units = torch.from_numpy(s.units)
        picked = value.double().cpu()[torch.from_numpy(s.positions)]
        total.index_add_(0, units, picked)
        entries.index_add_(0, units, torch.ones_like(picked))
    return total / entries


def _checked(group: ChannelGroup, values: Tensor) -> Tensor:
    values = values.double().cpu()
    if values.shape != (group.size,):
        raise PlanError(f"group {group.name!r} has {group.size} units, its scores have shape {tuple(values.shape)}")
    return values


def _named(name: str) -> Criterion:
    if name not in CRITERIA:
        near = difflib.get_close_matches(name, CRITERIA) or sorted(CRITERIA)
        raise PlanError(f"unknown criterion {name!r}; did you mean {' or '.join(near)}?")
    return CRITERIA[name]


def _remedy(graph: ChannelGraph, name: str) -> str:
    if all(g.frozen for g in graph.groups):
        return "every group is frozen: see graph.frozen for the reasons"
    if name == "bn_scale":
        return "no batch normalisation follows its layers: use criterion 'l1' or 'l2'"
    return "see print(graph) for the groups it has"
