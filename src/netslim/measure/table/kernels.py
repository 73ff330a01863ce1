"""The layers of a model as kernels that can be run alone, at any width.

A kernel is what one operator call that costs MACs computes, values aside. The model is run once, in
the graph's order of operators, and each call is described; calls that cannot be repeated alone
(attention, products of activations, recurrent layers) have no kernel.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.counts import Call, Cost
from netslim.graph.layers import ADDED_PRODUCTS, CONVOLUTIONS, PRODUCTS
from netslim.graph.modules.ambient import FAST_PATH
from netslim.graph.modules.calls import as_call, evaluating, refusing
from netslim.graph.modules.operators import operator
from netslim.graph.modules.watching import OperatorMode


@dataclass(frozen=True)
class Kernel:
    """One operator call that costs MACs, without its values.

    Attributes:
        operator: ``"convolution"`` or ``"linear"``.
        places: batch and spatial sizes of its input; for a linear layer the number of rows.
        depth: input channels that each output channel reads.
        width: output channels.
        live: which of depth and width a cut can change.
        follows: the number of groups follows the width (depthwise), and so does the input.
        options: stride, padding, dilation, transposed, output padding, groups; empty for a linear
            layer.
        window: sizes of the filter; empty for a linear layer.
    """

    operator: str
    places: tuple[int, ...]
    depth: int
    width: int
    live: tuple[bool, bool]
    follows: bool = False
    options: tuple[Any, ...] = ()
    window: tuple[int, ...] = ()
    bias: bool = False
    channels_last: bool = False
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        if self.operator == "linear":
            return f"linear of {self.places[0]} rows"
        stride, _, _, transposed, _, groups = self.options
        size, step, places = ("x".join(map(str, s)) for s in (self.window, stride, self.places))
        kind = "convolution"
        if transposed:
            kind = "transposed convolution"
        if self.follows and self.depth == 1:
            size = f"depthwise {size}"
        elif groups > 1:
            size = f"{groups} groups, {size}"
        return f"{size} {kind}, stride {step}, on {places}"

    @property
    def groups(self) -> int:
        """How many groups it has at full width."""
        if not self.options:
            return 1
        return int(self.options[5])

    def step(self, axis: int) -> int:
        """What the width along an axis (0: depth, 1: width) must be a multiple of."""
        if axis == 0 or self.operator == "linear":
            return 1
        if self.follows:
            return self.width // self.groups
        return self.groups

    def shapes(self, depth: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Shapes of input and weight, and the number of groups, at a depth and a width."""
        if self.operator == "linear":
            return (*self.places, depth), (width, depth), 1
        groups = self.groups
        if self.follows:
            # Depthwise and the like: as wide as it has groups, times the filters of each.
            groups = width * self.groups // self.width
        channels = depth * groups
        weight = (width, depth)
        if self.options[3]:
            weight = (channels, width // groups)
        return (self.places[0], channels, *self.places[1:]), (*weight, *self.window), groups

    def call(self, depth: int, width: int, values: Values) -> Callable[[], object]:
        """The kernel at a depth and a width, on random numbers, as a call without arguments."""
        shape, weight_shape, groups = self.shapes(depth, width)
        weight = values.take(weight_shape, self.dtype)
        bias = values.take((width,), self.dtype) if self.bias else None
        x = values.take(shape, self.dtype)
        if self.operator == "linear":
            return lambda: nn.functional.linear(x, weight, bias)
        if self.channels_last and len(self.window) == 2:
            x = x.contiguous(memory_format=torch.channels_last)
        stride, padding, dilation, transposed, output_padding, _ = self.options
        return lambda: torch.convolution(
            x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
        )


class Values:
    """Random numbers for inputs and weights: all of a type are views of one, as many are large."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[torch.dtype, Tensor] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Random numbers of a shape."""
        size = prod(shape)
        held = self._held.get(dtype)
        if held is None or held.numel() < size:
            generator = torch.Generator().manual_seed(0)
            held = torch.randn(size, generator=generator).to(self.device, dtype)
            self._held[dtype] = held
        return held[:size].view(shape)


@dataclass
class Observed:
    """What one operator of the model did, how long it took, and its kernel if it has one."""

    operator: str
    macs: int = 0
    kernel: Kernel | None = None
    seconds: float = 0.0


class _Watch(OperatorMode):
    """Times every operator, and describes convolutions and linear layers."""

    def __init__(self, synchronise: Callable[[], object]) -> None:
        super().__init__()
        self.seen: list[Observed] = []
        self.synchronise = synchronise

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.synchronise()
        started = time.perf_counter()
        out = func(*args, **kwargs)
        self.synchronise()
        seconds = time.perf_counter() - started
        name = operator(func).name
        observed = Observed(name, seconds=seconds)
        if name in CONVOLUTIONS and len(args) >= 9:
            observed.kernel, observed.macs = _convolution(out, *args[:9])
        elif name in PRODUCTS:
            observed.kernel, observed.macs = _product(name, args)
        self.seen.append(observed)
        return out


def _convolution(
    out: Tensor, x: Tensor, w: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> tuple[Kernel, int]:  # fmt: skip
    """The kernel of a call of `aten.convolution`, of which no axis is live yet, and its MACs."""
    depth, width = x.shape[1] // groups, out.shape[1]
    # Every position of the map on the narrow side meets the whole window once.
    places = out.shape
    if transposed:
        places = x.shape
    macs = prod(w.shape[2:]) * places[0] * prod(places[2:]) * depth * width
    strides, paddings, dilations, more = map(tuple, (stride, padding, dilation, output_padding))
    kernel = Kernel(
        "convolution",
        (x.shape[0], *x.shape[2:]),
        depth,
        width,
        live=(False, False),
        options=(strides, paddings, dilations, transposed, more, groups),
        window=tuple(w.shape[2:]),
        bias=bias is not None,
        channels_last=_channels_last(x),
        dtype=x.dtype,
    )
    return kernel, macs


def _channels_last(x: Tensor) -> bool:
    """Whether pictures lie in memory so; where both orders are the same it is not."""
    if x.dim() != 4 or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def _product(name: str, args: tuple[Any, ...]) -> tuple[Kernel, int]:
    """The kernel of a call of ``addmm``, ``mm`` or ``linear``, and its MACs."""
    if name in ADDED_PRODUCTS:
        bias, x, w = True, args[1], args[2].t()
    else:
        bias, x, w = len(args) > 2 and args[2] is not None, args[0], args[1]
    if name == "mm":
        w = w.t()
    rows, depth, width = prod(x.shape[:-1]), x.shape[-1], w.shape[0]
    kernel = Kernel("linear", (rows,), depth, width, (False, False), bias=bias, dtype=x.dtype)
    return kernel, rows * depth * width


def observe(
    model: nn.Module, example_inputs: Any, synchronise: Callable[[], object], runs: int = 1
) -> list[Observed]:
    """Run the model and tell what its operators did, in order; each at its quickest of the runs."""
    found: list[Observed] = []
    args, kwargs = as_call(example_inputs)
    with evaluating(model), torch.no_grad(), FAST_PATH.held(), refusing(example_inputs):
        for _ in range(runs):
            with _Watch(synchronise) as watch:
                model(*args, **kwargs)
            # Everything that disturbs a call makes it longer, so the quickest is nearest to the
            # truth.
            for before, now in zip(found, watch.seen, strict=False):
                now.seconds = min(now.seconds, before.seconds)
            found = watch.seen
    return found


def kernels_of(graph: ChannelGraph, observed: Iterable[Observed]) -> list[Kernel | None]:
    """For each of the graph's costs its kernel (see `observe`), or None if it cannot run alone."""
    calls = _by_call(observed)
    follow = {rule.module for rule in graph.size_rules if rule.attribute == "groups"}
    free = {number for number, group in enumerate(graph.groups) if not group.frozen}
    found = []
    for cost in graph.costs:
        live = [not free.isdisjoint(factor.groups) for factor in cost.factors]
        found.append(_bound(cost, live, calls.get(cost.call), cost.module in follow))
    return found


def _by_call(observed: Iterable[Observed]) -> dict[Call, Observed]:
    """What was observed, by which call of which operator it was, as the graph's costs name them."""
    turns: Counter[str] = Counter()
    found = {}
    for one in observed:
        found[one.operator, turns[one.operator]] = one
        turns[one.operator] += 1
    return found


def _bound(cost: Cost, live: list[bool], observed: Observed | None, follows: bool) -> Kernel | None:
    """The kernel with its live axes, if it is what the graph means and nothing else can change.

    The graph and this run are two runs, joined by counting the calls of each operator. A model
    that takes another way the second time would get the curves of other layers, so the MACs and
    both widths are compared.
    """
    if observed is None or observed.kernel is None or observed.macs != cost.macs({}):
        return None
    kernel = observed.kernel
    widths = tuple(factor.kept({}) for factor in cost.factors[-2:])
    if any(live[:-2]) or (kernel.depth, kernel.width) != widths:
        return None
    return replace(kernel, live=(live[-2], live[-1]), follows=follows and kernel.groups > 1)


def rate(
    graph: ChannelGraph, observed: Iterable[Observed], kernels: Sequence[Kernel | None]
) -> float:
    """Milliseconds a MAC, all calls without a kernel together; of all, where none was seen."""
    calls = _by_call(observed)
    loose = [cost for cost, kernel in zip(graph.costs, kernels, strict=True) if kernel is None]
    for costs in (loose, graph.costs):
        seconds = sum(calls[call].seconds for call in {cost.call for cost in costs} & calls.keys())
        macs = sum(cost.macs({}) for cost in costs)
        if seconds and macs:
            return 1e3 * seconds / macs
    return 0.0


__all__ = ["Kernel", "Observed", "Values", "kernels_of", "observe", "rate"]
