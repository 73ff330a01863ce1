"""How important is each channel? A criterion is one function from a group and the model's tensors to scores."""

from __future__ import annotations

import difflib
import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from .errors import PlanError
from .graph import ChannelGraph, ChannelGroup, Slice, pacesetter
from .plan import named_tensors
from .statistics import Loss, Measured, activations, contributions
from .wrapping import bare

Criterion = Callable[..., Tensor | None]
Lead = Literal["mean", "pacesetter"]
Measure = Callable[[ChannelGraph, nn.Module, Iterable[Any], Loss | None], Measured]

CRITERIA: dict[str, Criterion] = {}
_MEASURES: dict[Criterion, Measure] = {}
_UNLED = ("bn_scale", "random")  # do not look at the producers


@overload
def criterion(function: Criterion) -> Criterion: ...
@overload
def criterion(*, measure: Measure) -> Callable[[Criterion], Criterion]: ...
def criterion(function: Criterion | None = None, *, measure: Measure | None = None) -> Any:
    """Register ``function(group, tensors, **options) -> Tensor(size) | None`` under its own name.

    ``tensors`` maps the names of parameters and buffers to their values; None says the group cannot be scored.
    With ``measure``, which runs the model on data, ``tensors`` holds what that returned instead.
    """
    if function is None:
        return lambda function: criterion(_measured(function, measure))
    CRITERIA[function.__name__] = function
    return function


def _measured(function: Criterion, measure: Measure | None) -> Criterion:
    if measure is not None:
        _MEASURES[function] = measure
    return function


def reads_data(name: str) -> bool:
    """Whether the criterion of this name looks at data besides the weights.

    Raises:
        PlanError: the criterion is unknown; the nearest are given.
    """
    return _named(name) in _MEASURES


def score(
    graph: ChannelGraph,
    model: nn.Module,
    criterion: str | Criterion = "bn_scale",
    *,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    lead: Lead = "mean",
    **options: Any,
) -> dict[str, Tensor]:
    """Score every unit of every group; larger is more important.

    Args:
        graph: of this model.
        model: whose weights are scored; it is left as it was.
        criterion: of the weights: ``bn_scale``, ``l1``, ``l2``, ``largest``, ``geometric_median``, ``random``; of the
            weights and data: ``taylor``, ``mean_mean``, ``mean_std``, ``mean_l1``, ``mean_l2``, ``var_l2``; or a
            function like them, see `criterion`.
        batches: for the criteria that look at data: a data loader or a list, each batch a tensor, a list or tuple
            with the input first and the target second, or a dict of keyword inputs. The others do not read it.
        loss: for ``taylor``: a function of (output, targets); by default cross entropy.
        lead: what scores channels that several layers make together: the mean of them, or their pacesetter alone
            (`netslim.graph.pacesetter`: the projection of a residual stage, or its stem).
        options: passed to the criterion, such as ``seed`` of ``random``.

    Returns:
        Group name -> 1-D float64 CPU tensor, one score a unit. Groups the criterion cannot score are left out.

    Raises:
        StaleGraphError: the model is not the traced one.
        PlanError: the criterion is unknown, can score no group of this model, needs batches and has none, or an
            option is none of its own.
    """
    if not isinstance(graph, ChannelGraph):
        raise PlanError(f"score takes the graph first, score(graph, model, ...); this is a {type(graph).__name__}")
    model = bare(model, PlanError)
    graph.check(model)
    scorer = Scorer.of(graph, criterion, lead, options)
    tensors = scorer.tensors(model, batches, loss)
    found = {group.name: scorer(group, tensors) for group in graph.groups if not group.frozen}
    scores = {name: values for name, values in found.items() if values is not None}
    if not scores:
        raise PlanError(f"{scorer.name} can score no group of this model; {_remedy(graph, scorer.name)}")
    return scores


@dataclass(frozen=True)
class Scorer:
    """A criterion with its options, ready to score the groups of a graph one by one."""

    graph: ChannelGraph
    function: Criterion
    lead: Lead
    options: Mapping[str, Any]

    @staticmethod
    def of(graph: ChannelGraph, criterion: str | Criterion, lead: Lead, options: Mapping[str, Any]) -> Scorer:
        """Check what was asked for.

        Raises:
            PlanError: an unknown criterion, an option it does not take, or a ``lead`` it has no use for.
        """
        scorer = Scorer(graph, criterion if callable(criterion) else _named(criterion), lead, options)
        if lead not in ("mean", "pacesetter"):
            raise PlanError(f"lead must be 'mean' or 'pacesetter', got {lead!r}")
        if lead != "mean" and scorer.name in _UNLED:
            raise PlanError(f"lead={lead!r} does nothing with {scorer.name}, which does not score producing layers")
        try:
            inspect.signature(scorer.function).bind(None, None, **options)
        except TypeError as error:
            raise PlanError(f"the criterion {scorer.name} cannot take these options: {error}") from None
        return scorer

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__name__", "the criterion"))

    @property
    def reads_data(self) -> bool:
        return self.function in _MEASURES

    def tensors(self, model: nn.Module, batches: Iterable[Any] | None, loss: Loss | None) -> Mapping[str, Tensor]:
        """What the criterion looks at: the tensors of the model, or what it measures over the batches."""
        if not self.reads_data:
            return {name: tensor.detach() for name, tensor in named_tensors(model)}
        if batches is None:
            raise PlanError(f"{self.name} looks at data: give batches=, a data loader or a list of batches")
        return _MEASURES[self.function](self.graph, model, batches, loss)

    def __call__(self, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Scores of the units of one group, float64 on the CPU; None where it cannot be scored."""
        seen = group if self.lead == "mean" else _led(self.graph, group)
        with torch.no_grad():
            values = self.function(seen, tensors, **self.options)
        if values is None:
            return None
        values = values.double().cpu()
        if values.shape != (group.size,):
            raise PlanError(f"group {group.name!r} has {group.size} units, its scores have shape {tuple(values.shape)}")
        return values


def _led(graph: ChannelGraph, group: ChannelGroup) -> ChannelGroup:
    """The group with its pacesetter as the only producer."""
    leader = pacesetter(graph, group)
    return replace(group, slices=tuple(s for s in group.slices if s.role != "producer" or s.tensor == leader))


# --- criteria of the weights -------------------------------------------------------------------------------------


@criterion
def bn_scale(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Mean of abs(gamma) over the normalisations of the channel (Network Slimming, Liu et al. 2017, section 3)."""
    return _mean(group, [(s, tensors[s.tensor].abs()) for s in group.tensors("scale")])


@criterion
def l1(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Sum of absolute kernel weights of the filter (Li et al. 2017, section 3.1), mean over coupled layers."""
    return _over_filters(group, tensors, partial(torch.linalg.vector_norm, ord=1, dim=1))


@criterion
def l2(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Euclidean norm of the filter (He et al. 2018, Eq. 2), mean over coupled layers."""
    return _over_filters(group, tensors, partial(torch.linalg.vector_norm, ord=2, dim=1))


@criterion
def largest(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Minus `l1`: the filters with the largest sums go first (the ablation of Li et al. 2017, section 4)."""
    values = l1(group, tensors)
    return None if values is None else -values


@criterion
def geometric_median(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Sum of Euclidean distances to all other filters of the layer, mean over coupled layers.

    Small close to the geometric median, where a filter is best replaced by the others (FPGM, He et al. 2019).
    """
    return _over_filters(group, tensors, lambda filters: torch.cdist(filters, filters).fill_diagonal_(0).sum(1))


@criterion
def random(group: ChannelGroup, tensors: Mapping[str, Tensor], seed: int = 0) -> Tensor:
    """Uniform random scores, the same for the same seed and group name."""
    generator = torch.Generator().manual_seed(seed + zlib.crc32(group.name.encode()))
    return torch.rand(group.size, generator=generator, dtype=torch.float64)


# --- criteria of weights and data --------------------------------------------------------------------------------


def _of_maps(per_example: Callable[[Tensor], Tensor], variance: bool = False) -> Measure:
    """A measure of the maps of each producing layer, (examples, places, channels) -> (examples, channels)."""
    return lambda graph, model, batches, loss: activations(graph, model, batches, per_example, variance)


def _length(maps: Tensor) -> Tensor:
    return torch.linalg.vector_norm(maps, dim=1)


@criterion(measure=contributions)
def taylor(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """``(sum over the filter of gradient * weight) ** 2``, mean over batches and over coupled layers.

    The first-order estimate, from the weights, of the squared change of the loss when the filter is set to zero
    (Molchanov et al. 2019).
    """
    return _over_measured(group, tensors)


@criterion(measure=_of_maps(lambda maps: maps.mean(1)))
def mean_mean(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Mean over the examples of the mean of the feature map before BN (Li et al. 2017, section 4.4)."""
    return _over_measured(group, tensors)


@criterion(measure=_of_maps(lambda maps: maps.std(1, correction=0)))
def mean_std(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Mean over the examples of the standard deviation within the feature map before BN (Li et al. 2017, 4.4).

    Of the population: divided by the number of places.
    """
    return _over_measured(group, tensors)


@criterion(measure=_of_maps(lambda maps: maps.abs().sum(1)))
def mean_l1(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Mean over the examples of the sum of absolute values of the feature map before BN (Li et al. 2017, 4.4)."""
    return _over_measured(group, tensors)


@criterion(measure=_of_maps(_length))
def mean_l2(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Mean over the examples of the Euclidean norm of the feature map before BN (Li et al. 2017, 4.4)."""
    return _over_measured(group, tensors)


@criterion(measure=_of_maps(_length, variance=True))
def var_l2(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Variance over the examples of the Euclidean norm of the feature map before BN (Li et al. 2017, 4.4).

    Of the population: divided by the number of examples.
    """
    return _over_measured(group, tensors)


# --- parts -------------------------------------------------------------------------------------------------------


def _over_filters(
    group: ChannelGroup, tensors: Mapping[str, Tensor], function: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """``function`` of each producer's filters, (filters, weights) in at least single precision -> (filters,)."""
    found = []
    for s in group.tensors("producer"):
        if not tensors[s.tensor].is_floating_point():  # an index picks the channels
            continue
        weight = tensors[s.tensor].movedim(s.axis, 0).flatten(1)
        found.append((s, function(weight.to(torch.promote_types(weight.dtype, torch.float32)))))
    return _mean(group, found)


def _over_measured(group: ChannelGroup, measured: Measured) -> Tensor | None:
    return _mean(group, [(s, measured[s.tensor]) for s in group.tensors("producer") if s.tensor in measured])


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


def _named(name: str) -> Criterion:
    if name not in CRITERIA:
        near = difflib.get_close_matches(str(name), CRITERIA) or sorted(CRITERIA)
        raise PlanError(f"unknown criterion {name!r}; did you mean {' or '.join(near)}?")
    return CRITERIA[name]


def _remedy(graph: ChannelGraph, name: str) -> str:
    if all(g.frozen for g in graph.groups):
        return "every group is frozen: see graph.frozen for the reasons"
    if name == "bn_scale":
        return "no batch normalisation follows its layers: use criterion 'l1' or 'l2'"
    return "see print(graph) for the groups it has"
