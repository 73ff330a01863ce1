"""Channel selection: modules that pass on some channels, where a batch norm comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netslim._support import as_device, checks_calls
from netslim.errors import ArgumentError
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.walk import named_modules
from netslim.models.inserting import (
    Flow,
    Model,
    Value,
    device_of,
    examples_for,
    hang,
    refuse_taken,
    refuse_wrapped,
    run,
)


class ChannelSelect(nn.Module):
    """Picks channels by number, at first all: ``(N, C, ...)`` -> ``(N, len(indices), ...)``.

    In the graph its output is a group of its own, named after it, so what reads it can be cut while
    what it picks from stays whole. It is a plain `torch.index_select`: no value is read on the
    host, and it can be exported.

    Attributes:
        channels: C, the number of channels it picks from.
        indices: 1-D int64 buffer, the numbers of those it hands on; never a parameter.

    Example:
        >>> select = netslim.models.ChannelSelect(8)
        >>> select.indices = torch.tensor([0, 5])
        >>> tuple(select(torch.randn(1, 8, 4, 4)).shape)
        (1, 2, 4, 4)
    """

    indices: Tensor

    @checks_calls
    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        if channels < 1:
            raise ArgumentError(f"channels must be at least 1, got {channels}")
        self.channels = channels
        self.register_buffer("indices", torch.arange(channels, device=as_device(device)))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.indices)

    def extra_repr(self) -> str:
        return f"{len(self.indices)} of {self.channels}"


@checks_calls
def add_selection(model: Model, example_inputs: Any = None) -> Model:
    """Put a `ChannelSelect` before every BN whose channels cannot go alone, in place.

    Where a network normalises first, a BN reads a sum or a concatenation that others read too, so
    none of its channels could be cut without cutting them everywhere. Behind a selection they can:
    the BN with its four vectors and what reads it shrink, and the channels that are picked from
    stay. (Liu et al. 2017, section 3.4, select behind the BN, which then stays whole; as a BN works
    channel by channel, both compute the same.) A group is named after its selection,
    ``layer1.0.bn1.select``, and scored by the BN's scales.

    While a selection reads them, the channels it picks from are frozen: a network either shrinks
    within its blocks, as in the paper, or along its trunk. A selection of all channels costs a copy
    in every forward pass: insert it for the cut and, for deployment, take out those that lost
    nothing with `drop_idle_selections`. Convert to `SyncBatchNorm` before, as the conversion drops
    hooks.

    Args:
        model: not wrapped; it is run in evaluation mode.
        example_inputs: as for `netslim.trace`; where it is None, a picture (or vector) of zeros is
            guessed.

    Returns:
        ``model``, whose outputs are the same bit by bit. Where all selections are there already,
        nothing changes.

    Raises:
        ArgumentError: there is nothing to do, no guess runs, or the model is wrapped.
        TraceError: the model does not run on ``example_inputs``.

    Example:
        >>> network, pictures = netslim.zoo.preresnet(11), torch.randn(1, 3, 32, 32)
        >>> network = netslim.models.add_selection(network, pictures)
        >>> [group.name for group in netslim.trace(network, pictures).prunable][:2]
        ['layer1.0.bn1.select', 'layer1.0.conv1']
    """
    refuse_wrapped(model, "add_selection(model)")
    inputs = examples_for(model, example_inputs)
    before = [m for m in model.modules() if isinstance(m, ChannelSelect)]
    added = _bn_first(model, inputs)
    refuse_taken(added, "select")
    # Whether a selection frees anything, only a trace with it in place can say. Those that do not
    # are taken out again, which may make others useless, until all that are left are of use.
    try:
        for bn in added.values():
            hang(bn, "select", ChannelSelect(bn.num_features, device_of(bn)))
            bn.register_forward_pre_hook(_selected)
        while useless := _useless(trace(model, inputs), added):
            for path in useless:
                _take_out(added.pop(path))
    except BaseException:
        for bn in added.values():
            _take_out(bn)
        raise
    if not added and not before:
        raise ArgumentError(
            "there is nothing to do: the model has no batch normalisation whose channels only "
            "a selection would free; selections are for networks that normalise first, such as "
            "DenseNet and pre-activation ResNets"
        )
    return model


@checks_calls
def drop_idle_selections(model: Model) -> Model:
    """Take out, in place, every `ChannelSelect` that hands on all channels in order.

    Outputs stay the same and a copy of the activations is saved for each. Do it last: a checkpoint
    of a network that was built with selections expects all of them.

    Raises:
        ArgumentError: the model is wrapped.

    Example:
        >>> network = netslim.models.add_selection(netslim.zoo.preresnet(11))
        >>> network = netslim.models.drop_idle_selections(network)  # all, as nothing was cut
        >>> any(isinstance(m, netslim.models.ChannelSelect) for m in network.modules())
        False
    """
    refuse_wrapped(model, "drop_idle_selections(model)")
    for module in named_modules(model):
        select = module._modules.get("select")
        if isinstance(module, _BatchNorm) and isinstance(select, ChannelSelect) and _idle(select):
            _take_out(module)
    return model


def _idle(select: ChannelSelect) -> bool:
    return torch.equal(select.indices.cpu(), torch.arange(select.channels))


def _selected(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.select(args[0]), *args[1:])  # type: ignore[operator]


def without_selection(layer: nn.Module) -> nn.Module | None:
    """A selection and its BN one behind the other, where one hangs on the layer; it is changed."""
    select = layer._modules.get("select")
    if not isinstance(layer, _BatchNorm) or not isinstance(select, ChannelSelect):
        return None
    _take_out(layer)
    return nn.Sequential(select, layer)


def _take_out(bn: nn.Module) -> None:
    bn._modules.pop("select", None)
    for key in [key for key, hook in bn._forward_pre_hooks.items() if hook is _selected]:
        del bn._forward_pre_hooks[key]


def _useless(graph: ChannelGraph, selecting: Iterable[str]) -> list[str]:
    """The BNs whose selection frees no channel, or only together with what other layers compute."""
    makers = [(group, {s.tensor for s in group.tensors("producer")}) for group in graph]
    useless = []
    for path in selecting:
        mine = [(g, made) for g, made in makers if f"{path}.select.indices" in made]
        tensors = chain.from_iterable(made for _, made in mine)
        foreign = any(not tensor.endswith(".select.indices") for tensor in tensors)
        if foreign or all(g.frozen for g, _ in mine):
            useless.append(path)
    return useless


def _bn_first(model: nn.Module, inputs: Any) -> dict[str, _BatchNorm]:
    """Path -> batch normalisation without a selection, on an input that is not `Value.alone`."""
    read: dict[str, list[Value]] = {}
    flow = Flow(inputs, {cost.call[0] for cost in trace(model, inputs).costs})

    def note(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(bn: nn.Module, args: tuple[Any, ...]) -> None:
            read.setdefault(path, []).extend(flow.values[t] for t in args if t in flow.values)

        return hook

    norms: dict[str, _BatchNorm] = {}
    with ExitStack() as hooks:
        for module, path in named_modules(model).items():
            if isinstance(module, _BatchNorm) and "select" not in module._modules:
                norms[path] = module
                hooks.callback(module.register_forward_pre_hook(note(path)).remove)
        run(model, inputs, flow)
    # Only now: how many operators read a value is known when the run is over.
    return {path: norms[path] for path in read if not all(v.alone() for v in read[path])}
