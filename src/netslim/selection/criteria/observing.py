"""What data tells of channels: gradients and activations around them, in one pass over batches.

Everything is summed up batch by batch; no activation is kept. In a distributed run every rank looks
at batches of its own, and their sums are put together (`over_ranks`), as if one had seen all. The
model runs in evaluation mode and is left as it was: gradients, modes, statistics of batch
normalisation, ``requires_grad``.

A layer is known by its *weight*, not by its module: hooks see the modules that have one of the
weights asked for, and a function mode sees the functions (``F.conv2d(x, self.kernel)``) that are
called with one. So models that call layers as functions are looked at like all others.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

import netslim.ranks as ranks
from netslim._support import brief
from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import Slice
from netslim.graph.layers import FUNCTIONS, channels_of
from netslim.graph.modules.ambient import eagerly
from netslim.graph.modules.batches import outputs, singly, targets_of
from netslim.graph.modules.calls import evaluating, output_tensors
from netslim.graph.modules.moments import RunningMoments
from netslim.graph.modules.walk import layer_of, named_modules, named_tensors

Loss = Callable[[Any, Any], Tensor]  # of the model's output and the targets of a batch
# Tensor -> (entries of its channel axis,), or a key of `contributions`; float64 on the CPU.
Measured = Mapping[Any, Tensor]
PerExample = Callable[[Tensor], Tensor]  # (examples, places, channels) -> (examples, channels)
PerChannel = Callable[[Tensor], Tensor]  # (channels, weights) -> (channels,)
# Weight, what its layer puts out or receives, dimension of the channels.
Take = Callable[[str, Tensor, int], None]
# Roles that a criterion looks over.
SLICES = {"producers": ("producer",), "all": ("producer", "scale", "consumer")}


Moments = dict[Any, RunningMoments]


def over_ranks(measure: Callable[[], Moments]) -> Moments:
    """What ``measure`` finds on the batches of all ranks together.

    Of parts with counts n and means m, the means go together as ``sum n m / sum n``, and the sums
    of squares about them as in `RunningMoments`, with all parts at once.
    """
    found = ranks.everywhere("what is measured on batches", measure)
    if ranks.count() == 1:
        return found
    weighed = {
        key: torch.cat([torch.tensor([one.count]), one.count * one.mean])
        for key, one in found.items()
    }
    sums = ranks.summed("means over the batches", weighed)
    means = {key: total[1:] / total[0] for key, total in sums.items()}
    about = {
        key: one.spread + one.count * (one.mean - means[key]).square() for key, one in found.items()
    }
    spreads = ranks.summed("spreads over the batches", about)
    return {
        key: RunningMoments(int(total[0]), means[key], spreads[key]) for key, total in sums.items()
    }


# --- gradients ------------------------------------------------------------------------------------


def cross_entropy(output: Any, targets: Any) -> Tensor:
    """Mean cross entropy of the first tensor of the output, (examples, classes, ...)."""
    return F.cross_entropy(output_tensors(output)[0], targets)


def contributions(
    graph: ChannelGraph,
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None,
    per_channel: PerChannel,
    *,
    over: str = "producers",
    alone: bool = False,
) -> Measured:
    """Mean over the batches of a statistic of gradient * weight, for every channel of every layer.

    Args:
        graph: of this model.
        model: bare.
        batches: as data loaders give them.
        loss: of (output, targets); None for cross entropy.
        per_channel: (channels, weights) -> (channels,), in float64.
        over: ``"producers"``: a channel is a filter, the keys are names of tensors. ``"all"``: it
            is a unit with all its weights in a slice of any role of `SLICES`, the keys are (group,
            tensor, axis).
        alone: take the gradient of the loss of each example, instead of each batch.

    Raises:
        ArgumentError: there is no batch, the model does not run on one, or the loss cannot be
            computed and derived.
    """
    parts = _by_tensor(graph, SLICES[over])
    weights = {n: p for n, p in named_tensors(model) if n in parts and p.is_floating_point()}

    def measure() -> Moments:
        moments: Moments = {}
        for gradients in _gradients(model, weights, batches, loss, alone):
            for name, gradient in gradients.items():
                terms = gradient * weights[name].detach()
                for key, rows in _channels(graph, parts[name], terms, over):
                    moments.setdefault(key, RunningMoments()).add(per_channel(rows)[None])
        return moments

    return {key: each.mean for key, each in over_ranks(measure).items()}


def _by_tensor(
    graph: ChannelGraph, roles: Iterable[str]
) -> dict[str, list[tuple[str, int, Slice]]]:
    """Tensor -> (group, its size, slice) for every slice of these roles."""
    found: dict[str, list[tuple[str, int, Slice]]] = {}
    for group in graph.groups:
        for role in roles:
            for s in group.tensors(role):
                found.setdefault(s.tensor, []).append((group.name, group.size, s))
    return found


def _channels(
    graph: ChannelGraph, parts: list[tuple[str, int, Slice]], terms: Tensor, over: str
) -> Iterator[tuple[Any, Tensor]]:
    """(key, rows of weights) for the channels of a tensor, as `contributions` says."""
    terms = terms.cpu().double()
    if over == "producers":
        s = parts[-1][2]
        yield s.tensor, terms.movedim(s.axis, 0).flatten(1)
    else:
        for group, size, s in parts:
            yield (group, s.tensor, s.axis), rows_of(terms, s, size)


def rows_of(tensor: Tensor, s: Slice, size: int) -> Tensor:
    """The numbers of a tensor that belong to each unit of a slice: (units, numbers), with zeros.

    A unit may have several entries of the axis (a flattened map has one a place), and units need
    not have as many each: shorter rows are filled up with zeros, which no norm and no sum sees.
    """
    order = np.argsort(s.units, kind="stable")
    counts = np.bincount(s.units, minlength=size)
    # Which entry of its unit each one is: units 0 0 1 give 0 1 0.
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    lines = tensor.movedim(s.axis, 0).reshape(tensor.shape[s.axis], -1)
    rows = lines.new_zeros(size, int(counts.max()), lines.shape[1])
    unit, nth, entry = (
        torch.from_numpy(v).to(tensor.device) for v in (s.units[order], place, s.positions[order])
    )
    rows[unit, nth] = lines[entry]  # the n-th entry of a unit becomes the n-th part of its row
    return rows.flatten(1)


def gates(
    graph: ChannelGraph, model: nn.Module, batches: Iterable[Any], loss: Loss | None
) -> Measured:
    """Mean over batches of ``(scale * its gradient + shift * its gradient) ** 2``, for every scale.

    The shift is the parameter ``bias`` beside the scale, if there is one. Keys are names of scales.

    Raises:
        ArgumentError: as for `contributions`.
    """
    named = dict(named_tensors(model))
    scales = list(_by_tensor(graph, ("scale",)))
    beside = {name: f"{name.rpartition('.')[0]}.bias".lstrip(".") for name in scales}
    shifts = {name: shift for name, shift in beside.items() if shift in named}
    weights = {name: named[name] for name in dict.fromkeys([*scales, *shifts.values()])}

    def measure() -> Moments:
        moments: Moments = {}
        for gradients in _gradients(model, weights, batches, loss):
            terms = {n: (g * weights[n].detach()).cpu().double() for n, g in gradients.items()}
            for name in (name for name in scales if name in terms):
                shift = terms.get(shifts.get(name, ""), torch.zeros(()))
                moments.setdefault(name, RunningMoments()).add((terms[name] + shift)[None].square())
        return moments

    return {name: each.mean for name, each in over_ranks(measure).items()}


def _gradients(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Iterable[Any],
    loss: Loss | None,
    alone: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Gradients of the loss of each batch (or each example) by the weights that take part in it."""
    if not weights:
        return
    what = "batch"
    if alone:
        batches, what = singly(batches), "example"
    with eagerly(), evaluating(model), differentiable(weights.values()):
        for batch, output in outputs(model, batches, what):
            value = loss_of(output, batch, loss or cross_entropy)
            found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            named = zip(weights, found, strict=True)
            yield {name: gradient for name, gradient in named if gradient is not None}


@contextlib.contextmanager
def differentiable(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, gradients reach these tensors, frozen or not."""
    flags = [(t, t.requires_grad) for t in tensors]
    try:
        for tensor, _ in flags:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for tensor, flag in flags:
            tensor.requires_grad_(flag)


def loss_of(output: Any, batch: Any, loss: Loss) -> Tensor:
    """The loss of a batch, a scalar tensor that depends on the weights.

    Raises:
        ArgumentError: it cannot be computed, or is no such tensor.
    """
    remedy = (
        "pass loss= to netslim.score or netslim.selection.Scoring: a function of (output, targets) "
        "that returns a scalar tensor"
    )
    try:
        device = output_tensors(output)[0].device
        targets = tree_map_only(Tensor, lambda tensor: tensor.to(device), targets_of(batch))
        value = loss(output, targets)
    except Exception as error:
        raise ArgumentError(
            f"the loss cannot be computed ({type(error).__name__}: {error}); {remedy}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ArgumentError(
            f"the loss must be one number that depends on the weights, got {brief(value)}; {remedy}"
        )
    return value


# --- activations ----------------------------------------------------------------------------------


def activations(
    graph: ChannelGraph,
    model: nn.Module,
    batches: Iterable[Any],
    per_example: PerExample,
    variance: bool = False,
    role: str = "producer",
) -> Measured:
    """Mean (or population variance) over examples of a statistic of each layer's output or input.

    The output is taken as the layer returns it, its bias included, before any normalisation; the
    input as the layer is given it. A layer that runs several times in a forward pass counts each
    time. Layers are convolutions and linear layers, as modules or as functions of a module's
    parameter.

    Args:
        graph: of this model.
        model: bare.
        batches: as data loaders give them.
        per_example: (examples, places, channels) -> (examples, channels).
        variance: of the statistic over the examples, instead of its mean.
        role: ``"producer"``: what the layers that make groups put out; ``"consumer"``: what those
            that read groups receive, where the groups of a grouped convolution, which share an
            axis, count in their mean.

    Raises:
        ArgumentError: there is no batch, or the model does not run on one.
    """
    slices = itertools.chain.from_iterable(group.tensors(role) for group in graph.groups)
    entries = {s.tensor: graph.axis_sizes[s.tensor, s.axis] for s in slices}
    reading = role == "consumer"

    def measure() -> Moments:
        moments: Moments = {}

        def take(name: str, maps: Tensor, dim: int) -> None:
            values = per_example(_maps(maps, dim))
            if reading:
                # In two groups of four channels entry i of the weight reads channel i of the one
                # and of the other; without groups there is one value to take the mean of.
                values = torch.unflatten(values, 1, (-1, entries[name])).mean(1)
            moments.setdefault(name, RunningMoments()).add(values)

        _run_watched(model, batches, set(entries), take, reading)
        return moments

    moments = over_ranks(measure)
    if variance:
        return {name: each.variance for name, each in moments.items()}
    return {name: each.mean for name, each in moments.items()}


def inputs(
    model: nn.Module, batches: Iterable[Any], weights: set[str], take: Callable[[str, Tensor], None]
) -> None:
    """Show ``take`` each of these weights by name and what its layer receives, call by call.

    That is of shape (samples, channels), a sample for every place of every example.

    Raises:
        ArgumentError: there is no batch, or the model does not run on one.
    """

    def flat(name: str, received: Tensor, dim: int) -> None:
        take(name, _maps(received, dim).flatten(0, 1))

    _run_watched(model, batches, weights, flat, reading=True)


def _run_watched(
    model: nn.Module, batches: Iterable[Any], weights: set[str], take: Take, reading: bool
) -> None:
    """Run the model on all batches, while ``take`` sees what `_watching` says."""
    with (
        torch.no_grad(),
        eagerly(),
        evaluating(model),
        _watching(model, weights, take, reading),
    ):
        for _ in outputs(model, batches):
            pass


def _maps(output: Tensor, dim: int) -> Tensor:
    """(examples, places, channels), from what has its channels in the negative ``dim``.

    Where there are no more dimensions than a single example has, it is one without a batch.
    """
    # In half precision the squares of values above 255 are infinite already.
    if output.dtype.itemsize < 4:
        output = output.float()
    batched = output[None] if output.dim() == -dim else output
    if batched.dim() == 2:
        return batched[:, None]
    return batched.movedim(dim, -1).flatten(1, -2)


@contextlib.contextmanager
def _watching(model: nn.Module, weights: set[str], take: Take, reading: bool) -> Iterator[None]:
    """Inside, ``take`` sees the output (or, reading, the input) of the layers of these weights.

    Weights that a module of a layer holds are seen by its hook, all others by the function mode;
    none by both, or they would count twice.
    """
    layers = {
        path: m for m, path in named_modules(model).items() if isinstance(m, (_ConvNd, nn.Linear))
    }
    parameters = {
        id(p): name
        for name, p in named_tensors(model)
        if name in weights and layer_of(name) not in layers
    }
    with contextlib.ExitStack() as stack:
        for name in sorted(weights):
            if (layer := layers.get(layer_of(name))) is not None:
                dim = channels_of(layer.weight, linear=isinstance(layer, nn.Linear))
                showing = _showing(name, take, dim, reading)
                hook = layer.register_forward_hook(showing, with_kwargs=True)
                stack.callback(hook.remove)
        stack.enter_context(_Calls(parameters, take, reading))
        yield


def _showing(
    name: str, take: Take, dim: int, reading: bool
) -> Callable[[nn.Module, Any, Any, Tensor], None]:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> None:
        take(name, _received(args, kwargs) if reading else output, dim)

    return hook


def _received(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    received: Tensor = args[0] if args else kwargs["input"]
    return received


class _Calls(TorchFunctionMode):
    """Sees convolutions and linear layers called as functions."""

    def __init__(self, parameters: Mapping[int, str], take: Take, reading: bool) -> None:
        super().__init__()
        self.parameters, self.take, self.reading = parameters, take, reading

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        output = func(*args, **given)
        if func in FUNCTIONS:
            weight = args[1] if len(args) > 1 else given["weight"]
            if id(weight) in self.parameters:
                maps = _received(args, given) if self.reading else output
                dim = channels_of(weight, linear=func is F.linear)
                self.take(self.parameters[id(weight)], maps, dim)
        return output


__all__ = [
    "SLICES",
    "Loss",
    "Measured",
    "PerExample",
    "Take",
    "activations",
    "contributions",
    "cross_entropy",
    "differentiable",
    "gates",
    "inputs",
    "loss_of",
    "over_ranks",
    "rows_of",
]
