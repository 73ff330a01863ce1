"""Scoring the groups of a graph: a criterion, what it looks at, how it is put together."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import netslim.ranks as ranks
from netslim._support import checks_calls, described, listed
from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.coupling import pacesetter
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.ambient import undisturbed
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import named_tensors
from netslim.graph.words.table import never_ran
from netslim.selection.criteria.blocks import output_errors, shut_gates, weakest_layers
from netslim.selection.criteria.normalisation import normalize
from netslim.selection.criteria.observing import Loss
from netslim.selection.criteria.parts import reduced
from netslim.selection.criteria.registry import MEASURES, Criterion, named
from netslim.selection.options import Scoring, takes_options

UNLED = ("bn_scale", "taylor_bn", "activation", "random")  # do not look at the producers
_WHOLE = ("random",)  # do not look at any layer
_GATED = ("taylor", "taylor_bn")  # say what the loss is with a gate shut


@takes_options
def score(
    graph: ChannelGraph,
    model: nn.Module,
    criterion: str | Criterion | Scoring = "bn_scale",
    *,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
) -> dict[str, Tensor]:
    """Score every unit of every group; larger is more important.

    Args:
        graph: of this model.
        model: whose weights are scored; it is left as it was.
        criterion: of the weights: ``bn_scale``, ``l1``, ``l2``, ``largest``, ``geometric_median``,
            ``group_l2``, ``lamp``, ``random``; of the weights and data: ``taylor``, ``taylor_bn``,
            ``obd``, ``obs``, ``activation``, ``mean_mean``, ``mean_std``, ``mean_l1``, ``mean_l2``,
            ``var_l2``; a name registered with `netslim.criterion`, ``package.module:function``, or
            a function. A `netslim.selection.Scoring` says besides how the layers of a group are put
            together, how groups are set to a common scale, and what the criterion itself takes:
            ``Scoring("random", arguments={"seed": 3})``. A channel that is several filters of one
            layer counts each of them; over all layers, the weights that belong to a channel in one
            layer give one score.
        batches: for the criteria that look at data: a data loader or any iterable, read once, each
            batch a tensor, a list or tuple with the input first and the target second, or a dict of
            keyword inputs. The others do not read it. In a distributed run every rank calls this
            with batches of its own, as many as it has, and all get the scores of all of them.
        loss: for ``taylor``, ``taylor_bn`` and ``obd``: a function of (output, targets); by default
            cross entropy.

    Returns:
        Group name -> 1-D float64 CPU tensor, one score a unit. Groups the criterion cannot score
        are left out. Blocks are scored as `netslim.selection.criteria.blocks` says.

    Raises:
        StaleGraphError: the model is not the traced one.
        ArgumentError: the criterion is unknown, can score no group of this model, needs batches and
            has none, or cannot do what an option asks.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> {name: len(values) for name, values in netslim.score(graph, model, "l2").items()}
        {'features.0': 8, 'features.4': 16}
        >>> scores = netslim.score(graph, model, "taylor", batches=loader)
    """
    model = bare(model, ArgumentError, call="score(graph, model)")
    scorer = Scorer.of(graph, criterion)
    scores = partial(_scores, scorer, model, batches, loss or scorer.options.loss)
    if scorer.reads_data:
        return ranks.everywhere("scores", scores)
    return scores()  # may be one rank's own matter


def _scores(
    scorer: Scorer, model: nn.Module, batches: Iterable[Any] | None, loss: Loss | None
) -> dict[str, Tensor]:
    graph = scorer.graph
    graph.check(model)
    if graph.blocks is not None and batches is not None:
        batches = list(batches)  # they are read twice
    channels = [group for group in graph.groups if not group.frozen and not group.block]
    with undisturbed(model):
        tensors = scorer.tensors(model, batches, loss)
        found = {group.name: scorer(group, tensors) for group in channels}
        scores = {name: values for name, values in found.items() if values is not None}
        if graph.blocks is not None and graph.blocks.found:
            scores |= _of_blocks(scorer, model, batches, loss, tensors, scores)
    if not scores:
        raise ArgumentError(
            f"{scorer.name} can score no group of this model; {_remedy(graph, model, scorer.name)}"
        )
    return scores


def _of_blocks(
    scorer: Scorer,
    model: nn.Module,
    batches: Iterable[Any] | None,
    loss: Loss | None,
    tensors: Mapping[Any, Tensor],
    scores: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Scores of blocks, by what the criterion looks at and its scores of channels (blocks.py)."""
    graph, gated = scorer.graph, scorer.name in _GATED and scorer.options.normalize is None
    if not scorer.reads_data or batches is None:
        own = replace(scorer, options=replace(scorer.options, lead="mean"))
        worth = weakest_layers(graph, lambda group: own(group, tensors))
    elif gated:
        worth = shut_gates(graph, model, batches, loss, scores)
    else:
        worth = output_errors(graph, model, batches, scores)
    return {
        name: torch.tensor([value / graph[name].stands_for], dtype=torch.float64)
        for name, value in worth.items()
    }


@checks_calls
def as_scoring(criterion: str | Criterion | Scoring) -> Scoring:
    """A criterion alone, as the options that it stands for.

    Example:
        >>> netslim.selection.criteria.as_scoring("l1").criterion
        'l1'
    """
    return criterion if isinstance(criterion, Scoring) else Scoring(criterion)


@dataclass(frozen=True)
class Scorer:
    """A criterion with its options, ready to score the groups of a graph one by one.

    Example:
        >>> from netslim.selection.criteria import Scorer
        >>> Scorer.of(netslim.trace(model, images), "taylor").reads_data
        True
    """

    graph: ChannelGraph
    function: Criterion
    options: Scoring

    @staticmethod
    def of(graph: ChannelGraph, criterion: str | Criterion | Scoring) -> Scorer:
        """Check what was asked for; all as for `score`.

        Raises:
            ArgumentError: as `check_options`.
        """
        options = as_scoring(criterion)
        check_options(options)
        return Scorer(graph, named(options.criterion), options)

    @property
    def name(self) -> str:
        return _name(self.function)

    @property
    def reads_data(self) -> bool:
        return self.function in MEASURES

    def tensors(
        self, model: nn.Module, batches: Iterable[Any] | None, loss: Loss | None
    ) -> Mapping[Any, Tensor]:
        """What the criterion looks at: the model's tensors, or what it measures over batches.

        Raises:
            ArgumentError: it looks at data, and there are no batches; or as its measure does.
        """
        if not self.reads_data:
            return {name: tensor.detach() for name, tensor in named_tensors(model)}
        if batches is None:
            raise ArgumentError(
                f"{self.name} looks at data: give batches=, a data loader or a list of batches"
            )
        measure = partial(MEASURES[self.function], self.graph, model, batches, loss)
        if self.options.over != "producers":  # a measure of a user's own need not know of others
            measure = partial(measure, over=self.options.over)
        what = f"what {self.name} measures"
        # Those of netslim have put together what all ranks saw; of a user's own the mean is taken.
        return ranks.mean(what, ranks.everywhere(what, measure))

    def __call__(self, group: ChannelGroup, tensors: Mapping[Any, Tensor]) -> Tensor | None:
        """Scores of the units of one group, float64 on the CPU; None where it cannot be scored."""
        options = self.options
        seen = group if options.lead == "mean" else _led(self.graph, group)
        taken = _taken(self.function, options)
        how = options.reduction
        with torch.no_grad():
            values = self.function(seen, tensors, **taken, **options.arguments)
            if isinstance(values, Tensor) and how != "mean" and "reduction" not in taken:
                raise ArgumentError(_idle("reduction", how, self.name, "scores a group as a whole"))
            if isinstance(values, list):
                values = reduced(seen, values, how)
        if values is None:
            return None
        if not isinstance(values, Tensor):
            raise ArgumentError(
                f"the criterion {self.name} must return a tensor of one score a unit, a list of "
                f"(slice, scores), or None, got {described(values)} for group {group.name!r}"
            )
        values = values.double().cpu()
        if values.shape != (group.size,):
            raise ArgumentError(
                f"group {group.name!r} has {group.size} units, its scores have shape "
                f"{tuple(values.shape)}"
            )
        return normalize(values, options.normalize)


@checks_calls
def check_options(scoring: Scoring) -> None:
    """Refuse what a criterion cannot do, before anything runs.

    Raises:
        ArgumentError: an unknown criterion, an option it does not take, or one it has no use for.

    Example:
        >>> scoring = netslim.selection.Scoring("l1", lead="pacesetter")
        >>> netslim.selection.criteria.check_options(scoring)
    """
    function = named(scoring.criterion)
    name, lead, reduction, over = _name(function), scoring.lead, scoring.reduction, scoring.over
    if lead != "mean" and name in UNLED:
        raise ArgumentError(_idle("lead", lead, name, "does not score producing layers"))
    if reduction != "mean" and name in _WHOLE:
        raise ArgumentError(_idle("reduction", reduction, name, "looks at no layer"))
    if reduction != "mean" and lead != "mean" and over == "producers" and name != "group_l2":
        raise ArgumentError(_idle("reduction", reduction, f"lead={lead!r}", "leaves one layer"))
    if over != "producers" and "over" not in _parameters(function):
        raise ArgumentError(_idle("over", over, name, "looks at layers of its own choice"))
    try:
        _signature(function).bind(None, None, **_taken(function, scoring), **scoring.arguments)
    except TypeError as error:
        raise ArgumentError(f"the criterion {name} cannot take these arguments: {error}") from None


def _idle(key: str, value: object, name: str, why: str) -> str:
    return f"{key}={value!r} does nothing with {name}, which {why}: leave it out"


def _name(function: Criterion) -> str:
    return str(getattr(function, "__name__", "the criterion"))


def _taken(function: Criterion, scoring: Scoring) -> dict[str, str]:
    """Those of the options that the criterion wants to know itself."""
    ways = {"over": scoring.over, "reduction": scoring.reduction}
    return {key: value for key, value in ways.items() if key in _parameters(function)}


def _parameters(function: Criterion) -> Mapping[str, inspect.Parameter]:
    return _signature(function).parameters


def _signature(function: Criterion) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except ValueError:
        raise ArgumentError(
            "a criterion is a function of a group and the tensors of the model, got one that does "
            f"not say what it takes, {_name(function)}"
        ) from None


def _led(graph: ChannelGraph, group: ChannelGroup) -> ChannelGroup:
    """The group with its pacesetter as the only producer."""
    leader = pacesetter(graph, group)
    left = [s for s in group.slices if s.role != "producer" or s.tensor == leader]
    return replace(group, slices=tuple(left))


def _not_real(graph: ChannelGraph, model: nn.Module) -> list[str]:
    """Of which type weights are that no criterion ranks, such as ``complex64`` or ``int8``."""
    tensors = dict(named_tensors(model))
    groups = (group for group in graph.groups if not group.frozen)
    made = {s.tensor for group in groups for s in group.tensors("producer")}
    kinds = {tensors[name].dtype for name in made if name in tensors}
    return sorted(str(kind).removeprefix("torch.") for kind in kinds if not kind.is_floating_point)


def _remedy(graph: ChannelGraph, model: nn.Module, name: str) -> str:
    if all(g.frozen for g in graph.groups):
        why = [f"{group} stays: {reason}" for group, reason in graph.frozen.items()]
        return f"every group is frozen: {listed([*never_ran(graph), *why], '; ')}"
    if name in ("bn_scale", "taylor_bn"):
        return "no batch normalisation follows its layers: use criterion 'l1' or 'l2'"
    if kinds := _not_real(graph, model):
        return (
            f"its weights are {listed(kinds)} numbers, and the criteria of netslim rank real ones: "
            "give one of your own (netslim.criterion)"
        )
    return "see print(graph) for the groups it has"
