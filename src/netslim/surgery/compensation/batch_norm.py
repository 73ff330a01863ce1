"""Statistics of batch normalisation, estimated anew: after a cut they belong to another network.

Behind a cut layer sums have fewer terms, so what reaches the next normalisation has another mean
and variance than those it remembers. Much of the accuracy that a cut costs is lost there, and comes
back with the statistics alone, without training.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import netslim.ranks as ranks
from netslim._support import checks_calls
from netslim.errors import ArgumentError
from netslim.graph.modules.ambient import by_itself, eagerly
from netslim.graph.modules.batches import outputs
from netslim.graph.modules.calls import in_mode
from netslim.graph.modules.state import state_kept
from netslim.graph.modules.unwrapping import bare

Model = TypeVar("Model", bound=nn.Module)


@checks_calls
@by_itself
def recalibrate(model: Model, batches: Iterable[Any]) -> Model:
    """Estimate the running means and variances of all batch normalisations of ``model`` anew, in
    place.

    Each becomes the plain average over the batches of what the layer sees, in a distributed run
    over those of all ranks, each of which calls this with its own. Only these layers are in
    training mode, so dropout is off and nothing else changes. Train/eval modes and the momentum are
    afterwards as they were. A layer that no batch reaches keeps its statistics. On an error all of
    them are as before.

    Args:
        model: any module, wrapped or not.
        batches: data loader or list; a batch is a tensor, a list or tuple with the input first, or
            a dict. Every batch counts alike, so drop a last one that is much smaller.

    Returns:
        ``model``.

    Raises:
        ArgumentError: it has no batch normalisation with running statistics, or there are no
            batches, it does not run on one, or what it computes is not finite.

    Example:
        >>> better = netslim.surgery.recalibrate(model, loader)
    """
    inner = bare(model, ArgumentError, call="recalibrate(model, batches)")
    layers = [
        m for m in inner.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    ]
    if not layers:
        raise ArgumentError(
            "the model has no batch normalisation with running statistics: there is nothing to "
            "recalibrate; netslim.models.add_bn inserts some"
        )
    before = [
        (layer, layer.momentum, {name: b.clone() for name, b in layer.named_buffers()})
        for layer in layers
    ]
    reached: list[bool] = []
    try:
        with (
            torch.no_grad(),
            eagerly(),
            state_kept(inner, besides=layers),
            in_mode(inner, training=False),
            _locally(layers),
        ):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum, layer.training = None, True  # a cumulative average
            ranks.everywhere("recalibration", lambda: deque(outputs(inner, batches), maxlen=0))
            _put_together(layers)
        buffers = chain.from_iterable(layer.buffers(recurse=False) for layer in layers)
        if not all(buffer.isfinite().all() for buffer in buffers):
            raise ArgumentError(
                "the statistics over these batches are not finite: look for NaN or infinity in them"
            )
        reached = [bool(layer.num_batches_tracked) for layer in layers]
    finally:
        # After an error `reached` is still empty, and all are restored.
        for (layer, momentum, old), fresh in zip_longest(before, reached):
            layer.momentum = momentum
            if not fresh:
                _restore(layer, old)
    return model


@contextmanager
def _locally(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, synchronised layers take the statistics of this rank's batch alone.

    Their own way waits in each batch for the other ranks, which may have fewer.
    """
    found = [
        one for one in layers if isinstance(one, nn.SyncBatchNorm) and "forward" not in vars(one)
    ]
    for layer in found:
        vars(layer)["forward"] = MethodType(_BatchNorm.forward, layer)
    try:
        yield
    finally:
        for layer in found:
            del vars(layer)["forward"]


def _put_together(layers: Sequence[_BatchNorm]) -> None:
    """Have every layer hold the average over the batches of all ranks of a distributed run."""
    if ranks.count() == 1:
        return
    own: dict[tuple[int, str], Tensor] = {}
    for number, layer in enumerate(layers):
        statistics = dict(layer.named_buffers(recurse=False))
        batches = statistics.pop("num_batches_tracked")
        # Ranks may have seen different numbers of batches: averages times these add up to sums.
        own |= {(number, name): value * batches for name, value in statistics.items()}
        own[number, "num_batches_tracked"] = batches
    sums = ranks.summed("statistics of batch normalisation", own)
    for number, layer in enumerate(layers):
        batches = sums[number, "num_batches_tracked"]
        for name, buffer in layer.named_buffers(recurse=False):
            total = sums[number, name]
            if name != "num_batches_tracked":
                total = total / batches.clamp(min=1)
            buffer.copy_(total)


@torch.no_grad()
def _restore(layer: _BatchNorm, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in layer.named_buffers():
        buffer.copy_(buffers[name])
