"""What goes with a residual branch, in the currency of the channels that it is weighed against.

A block is worth as much as all channels of one of its layers: without these, the branch is silent,
too. So a criterion of the weights says of a block what it says of the channels of one layer, by the
layer's own weights, added up, for the layer where that is least (`weakest_layers`). With the norms
of filters that is the norm of the branch's weakest layer; with batch-norm scales, mostly the sum of
those that the branch ends with.

Taylor's criterion is of the loss with a gate shut, whatever the gate is at: the branch is one
(`shut_gates`).

What other criteria measure of channels says nothing of a branch. So the error of the outputs with
the branch silent is measured, and brought to their scale: some groups of channels lose half, by
their scores, and the error that this makes for each unit of score is the rate (`output_errors`).

The score of a block is its worth over the number of channels that it stands for
(`ChannelGroup.stands_for`), so that one threshold compares it with channels; where losses are added
up, it counts as often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import netslim.ranks as ranks
from netslim.graph.blocks import Addition, Block
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.ambient import eagerly
from netslim.graph.modules.batches import outputs
from netslim.graph.modules.calls import evaluating, output_tensors
from netslim.selection.criteria.observing import Loss, cross_entropy, differentiable, loss_of
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.branches import Args, AtSums
from netslim.surgery.proof.silencing import silenced

Worth = dict[str, float]  # name of a block -> what goes with it
Scores = Mapping[str, Tensor]
LOOK = 4  # batches that errors of outputs are measured on
_SAMPLE = 8  # groups of channels that say what an error is worth


def blocks_of(graph: ChannelGraph) -> dict[str, Block]:
    """Name of a group -> its block."""
    return {group.name: graph.block(group.name) for group in graph.groups if group.block}


def weakest_layers(graph: ChannelGraph, score: Callable[[ChannelGroup], Tensor | None]) -> Worth:
    """The least that all channels of one layer of each block are worth.

    Args:
        graph: with blocks.
        score: of the units of a group.
    """
    found = {}
    for name, block in blocks_of(graph).items():
        layers: dict[str, float] = {}
        for group in graph.groups:
            slices = tuple(s for s in group.slices if s.tensor in block.tensors)
            made = dict.fromkeys(s.tensor for s in slices if s.role == "producer")
            values = None
            if made:
                values = score(replace(group, slices=slices))
            if values is not None:
                for tensor in made:
                    layers[tensor] = layers.get(tensor, 0.0) + float(values.sum())
        if layers:
            found[name] = min(layers.values())
    return found


# ---------------------------------------------------------------- gates


class _Branches(AtSums):
    """Keeps what branches give, as it was when it was added."""

    def __init__(self, sums: Iterable[Addition]) -> None:
        super().__init__(sums)
        self.given: dict[Addition, tuple[Tensor, Tensor]] = {}

    def met(self, one: Addition, args: Args) -> Args:
        branch: Tensor = args[one.operand]
        self.given[one] = branch, branch.detach().clone()
        return args


def shut_gates(
    graph: ChannelGraph,
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None,
    scores: Scores,
) -> Worth:
    """``(sum over the branch of gradient * value) ** 2``, mean over batches, of each block; a layer
    of a DenseNet is worth what its channels are.

    Raises:
        ArgumentError: as `netslim.selection.criteria.observing.contributions`.
    """
    blocks = blocks_of(graph)
    weights = [p for p in model.parameters() if p.is_floating_point()]

    def measure() -> dict[str, Tensor]:
        sums = {name: torch.zeros(2, dtype=torch.float64) for name in blocks}
        watch = _Branches([one for block in blocks.values() for one in block.additions])
        with eagerly(), evaluating(model), differentiable(weights), watch.watching(model):
            for batch, output in outputs(model, batches):
                value = loss_of(output, batch, loss or cross_entropy)
                terms = _terms(watch, value)
                for name, block in blocks.items():
                    slope = sum(terms[one] for one in block.additions)
                    sums[name] += torch.tensor([slope**2, 1.0], dtype=torch.float64)
        return sums

    sums = ranks.summed("gates of blocks", ranks.everywhere("gates of blocks", measure))
    worth = {name: float(total / count) for name, (total, count) in sums.items()}
    for name, block in blocks.items():
        own = [graph.groups[n].name for n in block.channels]
        if own and scores.keys() >= {*own}:
            worth[name] = sum(float(scores[one].sum()) for one in own)
    return worth


def _terms(watch: _Branches, value: Tensor) -> dict[Addition, float]:
    """The derivative of a loss by a gate at each branch."""
    given = {one: pair for one, pair in watch.given.items() if pair[0].requires_grad}
    tensors = [tensor for tensor, _ in given.values()]
    if not tensors:  # of layers of a DenseNet channels tell
        return dict.fromkeys(watch.given, 0.0)
    found = torch.autograd.grad(value, tensors, allow_unused=True)
    terms = dict.fromkeys(watch.given, 0.0)
    for (one, (_, before)), gradient in zip(given.items(), found, strict=True):
        if gradient is not None:
            terms[one] = float((gradient.double() * before.double()).sum())
    watch.given.clear()
    return terms


# ---------------------------------------------------------------- errors of outputs


def output_errors(
    graph: ChannelGraph, model: nn.Module, batches: Iterable[Any], scores: Scores
) -> Worth:
    """The error of the outputs without each block, in units of the scores of channels.

    Args:
        graph: of this model.
        model: bare.
        batches: as data loaders give them; the first `LOOK` are run.
        scores: of channels, by the names of their groups.

    Raises:
        ArgumentError: there is no batch, or the model does not run on one.
    """
    seen = list(islice(batches, LOOK))
    halves = dict(_halves(graph, scores))

    def measure() -> dict[str, Tensor]:
        with torch.no_grad(), eagerly(), evaluating(model):
            whole = _outputs(model, seen, nullcontext())
            found = {}
            gone = {name: np.zeros(1, dtype=bool) for name in blocks_of(graph)}
            for name, mask in (halves | gone).items():
                plan = plan_keeping(graph, {graph.number(name): mask})
                own = _outputs(model, seen, silenced(model, plan, graph))
                found[name] = _error(whole, own)
        return found

    sums = ranks.summed("errors of outputs", ranks.everywhere("errors of outputs", measure))
    errors = {name: float(error / max(size, 1e-30)) for name, (error, size) in sums.items()}
    rates = []
    for name, mask in halves.items():
        lost = float(scores[name].double()[torch.from_numpy(~mask)].sum())
        if lost > 0 and errors[name] > 0:
            rates.append(errors[name] / lost)
    rate = median(rates) if rates else 1.0
    return {name: errors[name] / rate for name in blocks_of(graph)}


def _halves(graph: ChannelGraph, scores: Scores) -> Iterator[tuple[str, np.ndarray]]:
    """Some groups over all the network, and which of their units stay without the lower half."""
    groups = [g for g in graph.prunable if not g.block and g.size > 1 and g.name in scores]
    for group in groups[:: -(-len(groups) // _SAMPLE) or 1]:
        mask = np.ones(group.size, dtype=bool)
        mask[scores[group.name].argsort()[: group.size // 2].numpy()] = False
        yield group.name, mask


def _outputs(
    model: nn.Module, batches: list[Any], silent: AbstractContextManager[None]
) -> list[Tensor]:
    found: list[Tensor] = []
    with silent:
        for _, output in outputs(model, batches):
            found += [t.detach().clone() for t in output_tensors(output) if t.is_floating_point()]
    return found


def _error(whole: Iterable[Tensor], other: Iterable[Tensor]) -> Tensor:
    """(squared error, squares) of outputs."""
    sums = torch.zeros(2, dtype=torch.float64)
    for right, now in zip(whole, other, strict=True):
        pair = ((now - right).double().square().sum(), right.double().square().sum())
        sums += torch.stack(pair).cpu()
    return sums


__all__ = ["output_errors", "shut_gates", "weakest_layers"]
