"""Statistics of batch normalisation, estimated anew: after a cut they belong to another network.

Behind a cut layer sums have fewer terms, so what reaches the next normalisation has another mean
and variance than those it remembers. Much of the accuracy that a cut costs is lost there, and comes
back with the statistics alone, without training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netslim.errors import ArgumentError
from netslim.graph.modules.ambient import eagerly
from netslim.graph.modules.batches import outputs
from netslim.graph.modules.calls import evaluating
from netslim.graph.modules.wrapping import bare

Model = TypeVar("Model", bound=nn.Module)


def recalibrate(model: Model, batches: Iterable[Any]) -> Model:
    """Estimate the running means and variances of all batch normalisations of ``model`` anew, in
    place.

    Each becomes the plain average over the batches of what the layer sees; only these layers are in
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
        with torch.no_grad(), eagerly(), evaluating(inner):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum, layer.training = None, True  # a cumulative average
            for _ in outputs(inner, batches):
                pass
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


@torch.no_grad()
def _restore(layer: _BatchNorm, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in layer.named_buffers():
        buffer.copy_(buffers[name])
