"""Finding the values in a forward pass after which a module can be put, and putting it there.

Whether a batch normalisation can be cut alone depends on where its input comes from. Behind a
convolution it can: a channel goes with the filter that makes it. Where a network normalises first,
its input is the trunk, which the shortcut reads too, and no channel of it can go for this BN alone.

So one forward pass is watched, and every activation becomes a `Value` that knows what it was
computed from and how many operators read it. Its channels are its own (`Value.alone`) if it is read
once and comes, through values that are read once each, from layers alone::

    conv -> relu -> bn              one reader each, from a layer: alone
    x -> bn, x -> add               x has two readers, so channels of x are not the BN's to cut
    conv -> add <- conv -> bn       both are read once: alone, the two are cut together
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.weak import WeakTensorKeyDictionary

from netslim._support import own_random_numbers
from netslim.errors import ArgumentError, TraceError
from netslim.graph.modules.calls import as_call, describe, evaluating, refusing, tensor_leaves
from netslim.graph.modules.operators import operator
from netslim.graph.modules.unwrapping import bare, inside
from netslim.graph.modules.watching import OperatorMode

Model = TypeVar("Model", bound=nn.Module)


@dataclass(eq=False)
class Value:
    """Where an activation comes from, and how many operators read it.

    Attributes:
        sources: the activations that it was computed from.
        layer: whether a layer put it out, which makes channels of its own.
        readers: how many operators read it.
    """

    sources: list[Value] = field(default_factory=list)
    layer: bool = False
    readers: int = 0

    def alone(self) -> bool:
        """Whether its channels are one or more layers' own, which nothing else reads.

        Each value on the way back has one reader, so the way is a tree: it is quick, however the
        network branches.
        """
        if self.readers != 1:
            return False
        return self.layer or (bool(self.sources) and all(source.alone() for source in self.sources))


class Flow(OperatorMode):
    """Notes the `Value` of every tensor made from the inputs; ``layers``: operators by name."""

    def __init__(self, inputs: Any, layers: Container[str]) -> None:
        super().__init__()
        self.layers = layers
        self.values = WeakTensorKeyDictionary()  # weak: activations are freed as in any other run
        for tensor in tensor_leaves(inputs):
            self.values[tensor] = Value()

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        # An operator that writes into its input hands it out again: that is no reader of it.
        written = {id(t) for t in tensor_leaves(out)}
        read: dict[int, Value] = {}
        for tensor in tensor_leaves((args, kwargs)):
            if tensor in self.values and id(tensor) not in written:
                read[id(tensor)] = self.values[tensor]
        for value in read.values():
            value.readers += 1
        for tensor in tensor_leaves(out) if read else ():
            if tensor in self.values:
                self.values[tensor].sources += read.values()
            else:
                layer = operator(func).name in self.layers
                self.values[tensor] = Value([*read.values()], layer)
        return out


def refuse_wrapped(model: Any, call: str) -> None:
    """Make sure that layers can be put into the model; ``call`` is what was meant, for messages.

    Raises:
        ArgumentError: it is wrapped, or cannot be worked on.
    """
    inner = bare(model, ArgumentError, call=call)
    if inside(model) is not model:
        raise ArgumentError(
            f"the model is wrapped in {type(model).__name__}, which has looked at its parts "
            f"already: insert into the {type(inner).__name__} inside, and wrap or compile that "
            "again"
        )


def refuse_taken(layers: Mapping[str, nn.Module], name: str) -> None:
    """Make sure that none of the layers, by path, has an attribute of this name.

    Raises:
        ArgumentError: one has.
    """
    for path, layer in layers.items():
        if hasattr(layer, name):
            raise ArgumentError(
                f"{path}.{name} is there already, where the new layer would go: rename that "
                "attribute"
            )


def hang(layer: nn.Module, name: str, child: nn.Module) -> None:
    """Put a module under a layer, in the layer's mode."""
    layer.add_module(name, child.train(layer.training))


def device_of(module: nn.Module) -> torch.device | None:
    """Where a module is, or None if it has no tensors."""
    return next((t.device for t in chain(module.parameters(), module.buffers())), None)


def run(model: nn.Module, inputs: Any, flow: Flow | None = None) -> None:
    """One forward pass, in evaluation mode, without gradients or a trace in the random state.

    Raises:
        TraceError: the model does not run on the inputs.
    """
    args, kwargs = as_call(inputs)
    with (
        torch.no_grad(),
        evaluating(model),
        own_random_numbers(),
        flow or ExitStack(),
        refusing(inputs),
    ):
        model(*args, **kwargs)


def examples_for(model: nn.Module, given: Any) -> Any:
    """The inputs that were given, or the first guess that runs.

    Raises:
        ArgumentError: there is no guess, or none runs.
    """
    if given is not None:
        return given
    tried = []
    for guess in _guesses(model):
        try:
            run(model, guess)
            return guess
        except TraceError:
            tried.append(describe(guess))
    failed = "it has no convolution or linear layer"
    if tried:
        failed = f"it does not run on zeros of {' or '.join(tried)}"
    raise ArgumentError(
        f"no example inputs could be guessed for the model: {failed}; pass example_inputs"
    )


def _guesses(model: nn.Module) -> Iterator[Tensor]:
    """Zeros as the first layer may read them.

    Of the size that timm says, else 32 pixels, which is quick, else 224.
    """
    convolution = next((m for m in model.modules() if isinstance(m, _ConvNd)), None)
    if convolution is None:
        linear = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
        if linear is not None:
            yield linear.weight.new_zeros(1, linear.in_features)
        return
    weight, channels = convolution.weight, convolution.in_channels
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, Mapping) and config.get("input_size"):
        yield weight.new_zeros(1, channels, *config["input_size"][1:])
    for size in (32, 224):
        yield weight.new_zeros(1, channels, *[size] * len(convolution.kernel_size))
