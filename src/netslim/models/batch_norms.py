"""Layers that a method needs and a network lacks: put in place, without a change of its outputs or
of a name.

`add_selection` lets channels go where a network normalises first (pre-activation ResNets,
DenseNets); `add_bn` gives scales to networks without batch normalisation. Both hang the new layer
under the one it serves, with a forward hook that is a plain function: names, deep copies and
pickles stay as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from netslim.errors import ArgumentError
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.batches import inputs_of
from netslim.graph.modules.walk import named_modules
from netslim.models.inserting import Model, _check, _check_free, _examples, _hang, _run

_NORMS: dict[type[nn.Module], type[_BatchNorm]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}


# --- batch normalisation --------------------------------------------------------------------------


def add_bn(
    model: Model,
    example_inputs: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    linear: bool = False,
) -> Model:
    """Put a batch normalisation behind every convolution that lacks one and whose channels can go,
    in place.

    A convolution lacks one when nothing scales its channels: no BN behind it, nor before what reads
    it. The new BN is the convolution's child ``norm``. It starts as the identity: without
    ``batches`` its mean is 0, its variance 1 - eps, its scale 1 and its shift 0, and in training it
    normalises. With ``batches`` mean and variance are those of the convolution's outputs, scale and
    shift undo them, and training starts as nearly the identity too; the scales are then the spread
    of each channel. In evaluation mode outputs change by rounding alone: about 1e-7, relative, for
    each BN in float32, 1e-16 in float64, half a unit in the last place in lower precision without
    ``batches`` and several with.

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
    """
    _check(model, "add_bn(model)")
    measuring = iter(()) if batches is None else _each(batches)
    if batches is not None and example_inputs is None:
        example_inputs = next(measuring)
        measuring = chain([example_inputs], measuring)
    inputs = _examples(model, example_inputs)
    lacking = _lacking(model, inputs, linear)
    _check_free({path: layer for path, (layer, _) in lacking.items()}, "norm")
    moments = {} if batches is None else _measured(model, lacking.values(), measuring)
    for layer, norm in lacking.values():
        _hang(layer, "norm", _identity(norm, layer, moments.get(layer)))
        layer.register_forward_hook(_normalised)
    return model


def _normalised(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return module.norm(output)  # type: ignore[operator]


Lacking = tuple[nn.Module, type[_BatchNorm]]


def _lacking(model: nn.Module, inputs: Any, linear: bool) -> dict[str, Lacking]:
    """Path -> layer without a scale for its channels, and the kind of BN it needs."""
    kinds = {**_NORMS, nn.Linear: nn.BatchNorm1d} if linear else _NORMS
    paths = {m: p for m, p in named_modules(model).items() if isinstance(m, tuple(kinds))}
    called: dict[nn.Module, int] = {}

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        called[module] = output.dim()

    with ExitStack() as hooks:
        for module in paths:
            hooks.callback(module.register_forward_hook(note).remove)
        _run(model, inputs)
    graph = trace(model, inputs)
    lacking = {}
    for module, dims in called.items():
        norm = next(bn for kind, bn in kinds.items() if isinstance(module, kind))
        if (isinstance(module, _ConvNd) or dims == 2) and _without_scale(
            graph, paths[module], module
        ):
            lacking[paths[module]] = (module, norm)
    if not lacking:
        what = "convolution or linear layer" if linear else "convolution"
        more = "" if linear else " (linear=True looks at linear layers too)"
        raise ArgumentError(
            f"there is nothing to do: no {what} whose channels can go lacks a batch "
            f"normalisation{more}"
        )
    return lacking


def _without_scale(graph: ChannelGraph, path: str, layer: nn.Module) -> bool:
    """Whether channels of the layer can go, and no normalisation scales them."""
    transposed = getattr(layer, "transposed", False) and getattr(layer, "groups", 1) == 1
    made = [
        g
        for g in graph
        if any(s.tensor.startswith(f"{path}.") and s.axis == int(transposed) for s in g.slices)
    ]
    return any(not g.frozen for g in made) and not any(g.tensors("scale") for g in made)


def _identity(kind: type[_BatchNorm], layer: Any, measured: _Moments | None) -> _BatchNorm:
    """A BN that hands on the outputs of the layer, on its device and in its dtype."""
    weight = layer.weight
    channels = layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
    bn: Any = kind(channels, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        if measured is None:
            bn.running_var.sub_(bn.eps)
            return bn
        bn.running_mean.copy_(measured.mean)
        bn.running_var.copy_(measured.variance())
        bn.weight.copy_((bn.running_var.double().cpu() + bn.eps).sqrt())
        bn.bias.copy_(bn.running_mean)
    return bn


class _Moments:
    """Mean and variance of each channel over all places of all batches (Chan et al. 1979), in
    float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        """A forward hook: take in outputs ``(N, C, ...)``."""
        values = output.detach().transpose(0, 1).flatten(1)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        var, mean = (t.double().cpu() for t in torch.var_mean(values, dim=1, correction=0))
        new, total = values.shape[1], self.count + values.shape[1]
        away = mean - self.mean
        self.squares = self.squares + var * new + away**2 * (self.count * new / total)
        self.mean, self.count = self.mean + away * (new / total), total

    def variance(self) -> Tensor:
        return self.squares / max(self.count - 1, 1)


def _measured(
    model: nn.Module, lacking: Iterable[Lacking], examples: Iterable[Any]
) -> dict[nn.Module, _Moments]:
    """The statistics of the outputs of the layers."""
    found = {layer: _Moments() for layer, _ in lacking}
    with ExitStack() as hooks:
        for layer, moments in found.items():
            hooks.callback(layer.register_forward_hook(moments.add).remove)
        for inputs in examples:
            _run(model, inputs)
    return found


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
