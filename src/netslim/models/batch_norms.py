"""Batch normalisation where a network lacks it: scales that a method can press down and rank.

The new layer must not change outputs, nor a name in the state of the model. So it hangs under the
convolution it serves, with a forward hook that is a plain function: deep copies and pickles take it
along, and every other module is called as before. It starts as the identity. In evaluation mode
that is exact for any statistics, if scale and shift undo them; in training the batch's own
statistics count, and only those measured on data make the start nearly the identity too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from netslim._support import checks_calls
from netslim.errors import ArgumentError
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.batches import inputs_of
from netslim.graph.modules.moments import RunningMoments
from netslim.graph.modules.walk import named_modules
from netslim.models.inserting import (
    Model,
    examples_for,
    hang,
    refuse_taken,
    refuse_wrapped,
    run,
)

_NORMS: dict[type[nn.Module], type[_BatchNorm]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}


@checks_calls
def add_bn(
    model: Model,
    example_inputs: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    linear: bool = False,
) -> Model:
    """Put a batch normalisation behind every convolution that lacks one, in place.

    Convolutions whose channels cannot go are left alone. A convolution lacks one when nothing
    scales its channels: no BN behind it, nor before what reads it. The new BN is the convolution's
    child ``norm``. It starts as the identity: without ``batches`` its mean is 0, its variance
    1 - eps, its scale 1 and its shift 0, and in training it normalises. With ``batches`` mean and
    variance are those of the convolution's outputs, scale and shift undo them, and training starts
    as nearly the identity too; the scales are then the spread of each channel. In evaluation mode
    outputs change by rounding alone: about 1e-7, relative, for each BN in float32, 1e-16 in
    float64, half a unit in the last place in lower precision without ``batches`` and several with.

    Args:
        model: not wrapped; it is run in evaluation mode.
        example_inputs: as for `netslim.trace`; where it is None, the first of ``batches``, or a
            picture of zeros.
        batches: batches as a data loader gives them, at least one.
        linear: also behind linear layers, but not the last (as VGG-A in Liu et al. 2019, arXiv
            1810.05270).

    Returns:
        ``model``.

    Raises:
        ArgumentError: every layer has one already, ``batches`` is empty, no guess runs, or the
            model is wrapped.
        TraceError: the model does not run on ``example_inputs``.

    Example:
        >>> plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        >>> normed = netslim.models.add_bn(plain, images)
        >>> sum(isinstance(module, nn.BatchNorm2d) for module in normed.modules())
        1
    """
    refuse_wrapped(model, "add_bn(model)")
    measuring: Iterator[Any] | None = None
    if batches is not None:
        measuring = _each(batches)
        if example_inputs is None:
            example_inputs = next(measuring)
            measuring = chain([example_inputs], measuring)
    inputs = examples_for(model, example_inputs)
    lacking = _lacking(model, inputs, linear)
    refuse_taken({path: layer for path, (layer, _) in lacking.items()}, "norm")
    moments: dict[Layer, RunningMoments] = {}
    if measuring is not None:
        moments = _measured(model, lacking.values(), measuring)
    for layer, norm in lacking.values():
        hang(layer, "norm", _identity(norm, layer, moments.get(layer)))
        layer.register_forward_hook(_normalised)
    return model


def _normalised(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    found: Tensor = module.norm(output)  # type: ignore[operator]  # hung there by `add_bn`
    return found


def without_norm(layer: nn.Module) -> nn.Module | None:
    """A layer and the BN that `add_bn` hung on it, one behind the other; the layer is changed."""
    hooks = [key for key, hook in layer._forward_hooks.items() if hook is _normalised]
    if not hooks:
        return None
    del layer._forward_hooks[hooks[0]]
    norm = layer._modules.pop("norm")
    assert norm is not None
    return nn.Sequential(layer, norm)


Layer = nn.Linear | _ConvNd
Lacking = tuple[Layer, type[_BatchNorm]]


def _lacking(model: nn.Module, inputs: Any, linear: bool) -> dict[str, Lacking]:
    """Path -> layer without a scale for its channels, and the kind of BN it needs."""
    kinds: dict[type[nn.Module], type[_BatchNorm]] = dict(_NORMS)
    if linear:
        kinds[nn.Linear] = nn.BatchNorm1d
    lacking: dict[str, Lacking] = {}
    dimensions = _output_dimensions(model, inputs, tuple(kinds))
    graph, paths = trace(model, inputs), named_modules(model)
    for layer, dims in dimensions.items():
        # A linear layer of tokens (N, L, C) would need a BN over dimension 1, which is L.
        if isinstance(layer, nn.Linear) and dims != 2:
            continue
        if _without_scale(graph, paths[layer], layer):
            norm = next(bn for kind, bn in kinds.items() if isinstance(layer, kind))
            lacking[paths[layer]] = (layer, norm)
    if not lacking:
        what, more = "convolution", " (linear=True looks at linear layers too)"
        if linear:
            what, more = "convolution or linear layer", ""
        raise ArgumentError(
            f"there is nothing to do: no {what} whose channels can go lacks a batch "
            f"normalisation{more}"
        )
    return lacking


def _output_dimensions(
    model: nn.Module, inputs: Any, kinds: tuple[type[nn.Module], ...]
) -> dict[Layer, int]:
    """The layers of these kinds that run, in that order, and how many dimensions they put out."""
    found: dict[Layer, int] = {}

    def note(layer: Any, args: Any, output: Tensor) -> None:
        found[layer] = output.dim()

    with ExitStack() as hooks:
        for module in named_modules(model):
            if isinstance(module, kinds):
                hooks.callback(module.register_forward_hook(note).remove)
        run(model, inputs)
    return found


def _without_scale(graph: ChannelGraph, path: str, layer: Layer) -> bool:
    """Whether channels of the layer can go, and no normalisation scales them."""
    # Weights are (out, in, ...), but (in, out, ...) where a convolution is transposed.
    transposed = isinstance(layer, _ConvNd) and layer.transposed and layer.groups == 1
    axis = 1 if transposed else 0
    made = []
    for group in graph:
        if any(s.tensor.startswith(f"{path}.") and s.axis == axis for s in group.slices):
            made.append(group)
    return any(not g.frozen for g in made) and not any(g.tensors("scale") for g in made)


def _identity(kind: type[_BatchNorm], layer: Layer, measured: RunningMoments | None) -> _BatchNorm:
    """A BN that hands on the outputs of the layer, on its device and in its dtype.

    It computes ``(x - mean) / sqrt(var + eps) * scale + shift``.
    """
    weight = layer.weight
    if isinstance(layer, _ConvNd):
        channels = layer.out_channels
    else:
        channels = layer.out_features
    bn = kind(channels, device=weight.device, dtype=weight.dtype)
    mean, var = bn.running_mean, bn.running_var
    assert mean is not None
    assert var is not None
    with torch.no_grad():
        if measured is None:
            var.sub_(bn.eps)
            return bn
        mean.copy_(measured.mean)
        var.copy_(measured.spread / max(measured.count - 1, 1))  # as BN itself estimates it
        # Of the statistics as they were rounded to the layer's precision, for these it undoes.
        bn.weight.copy_((var.double().cpu() + bn.eps).sqrt())
        bn.bias.copy_(mean)
    return bn


def _measured(
    model: nn.Module, lacking: Iterable[Lacking], examples: Iterable[Any]
) -> dict[Layer, RunningMoments]:
    """The statistics of the outputs of the layers."""
    found = {layer: RunningMoments() for layer, _ in lacking}
    with ExitStack() as hooks:
        for layer, moments in found.items():
            hooks.callback(layer.register_forward_hook(partial(_take_in, moments)).remove)
        for inputs in examples:
            run(model, inputs)
    return found


def _take_in(moments: RunningMoments, layer: nn.Module, args: Any, output: Tensor) -> None:
    """With the moments before it, a forward hook for outputs (N, C, ...)."""
    values = output.detach().transpose(0, 1).flatten(1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    var, mean = (t.double().cpu() for t in torch.var_mean(values, dim=1, correction=0))
    moments.join(values.shape[1], mean, var * values.shape[1])


def _each(batches: Iterable[Any]) -> Iterator[Any]:
    """The inputs in every batch, as `netslim.trace` takes them; at least one."""
    empty = True
    for batch in batches:
        empty = False
        args, kwargs = inputs_of(batch)
        yield kwargs or args
    if empty:
        raise ArgumentError(
            "batches holds no batch to measure the statistics on: give at least one, or leave "
            "it out"
        )
