"""Finding the values in a forward pass after which a module can be put, and putting it there."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from netslim.errors import ArgumentError, TraceError
from netslim.graph.modules.calls import as_call, describe, evaluating, refusing
from netslim.graph.modules.wrapping import bare, inside

Model = TypeVar("Model", bound=nn.Module)


@dataclass(eq=False)
class _Value:
    """Where an activation comes from: the activations it was computed from, and how many operators
    read it.
    """

    sources: list[_Value] = field(default_factory=list)
    layer: bool = False
    readers: int = 0

    def alone(self) -> bool:
        """Whether its channels are one or more layers' own, which nothing else reads."""
        if self.readers != 1:
            return False
        return self.layer or (bool(self.sources) and all(source.alone() for source in self.sources))


class _Flow(TorchDispatchMode):
    """Notes the `_Value` of every tensor made from the inputs; ``layers``: operators by name."""

    def __init__(self, inputs: Any, layers: Container[str]) -> None:
        super().__init__()
        self.layers = layers
        self.values = WeakTensorKeyDictionary()
        for tensor in _tensors(inputs):
            self.values[tensor] = _Value()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else PyTorch imports torch._dynamo when the first operator runs, which takes seconds."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        changed = {id(t) for t in _tensors(out)}
        read = {
            id(t): self.values[t]
            for t in _tensors((args, kwargs))
            if t in self.values and id(t) not in changed
        }
        for value in read.values():
            value.readers += 1
        for tensor in _tensors(out) if read else ():
            if tensor in self.values:
                self.values[tensor].sources += read.values()
            else:
                layer = func._schema.name.removeprefix("aten::") in self.layers
                self.values[tensor] = _Value([*read.values()], layer)
        return out


# --- what both share ------------------------------------------------------------------------------


def _check(model: Any, call: str) -> None:
    inner = bare(model, ArgumentError, call=call)
    if inside(model) is not model:
        raise ArgumentError(
            f"the model is wrapped in {type(model).__name__}, which has looked at its parts "
            f"already: insert into the {type(inner).__name__} inside, and wrap or compile that "
            "again"
        )


def _hang(layer: nn.Module, name: str, child: nn.Module) -> None:
    layer.add_module(name, child.train(layer.training))


def _check_free(layers: Mapping[str, nn.Module], name: str) -> None:
    for path, layer in layers.items():
        if hasattr(layer, name):
            raise ArgumentError(
                f"{path}.{name} is there already, where the new layer would go: rename that "
                "attribute"
            )


def _device(module: nn.Module) -> torch.device | None:
    return next((t.device for t in chain(module.parameters(), module.buffers())), None)


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def _run(model: nn.Module, inputs: Any, flow: _Flow | None = None) -> None:
    args, kwargs = as_call(inputs)
    with (
        torch.no_grad(),
        evaluating(model),
        torch.random.fork_rng(),
        flow or ExitStack(),
        refusing(inputs),
    ):
        model(*args, **kwargs)


def _examples(model: nn.Module, given: Any) -> Any:
    """The inputs that were given, or the first guess that runs."""
    if given is not None:
        return given
    tried = []
    for guess in _guesses(model):
        try:
            _run(model, guess)
            return guess
        except TraceError:
            tried.append(describe(guess))
    failed = (
        f"it does not run on zeros of {' or '.join(tried)}"
        if tried
        else "it has no convolution or linear layer"
    )
    raise ArgumentError(
        f"no example inputs could be guessed for the model: {failed}; pass example_inputs"
    )


def _guesses(model: nn.Module) -> Iterator[Tensor]:
    """Zeros as the first layer may read them: of the size timm says, else 32 (which is quick), else
    224 pixels.
    """
    convolution = next((m for m in model.modules() if isinstance(m, _ConvNd)), None)
    layer: Any = convolution or next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
    if layer is None:
        return
    if convolution is None:
        yield layer.weight.new_zeros(1, layer.in_features)
        return
    config = next(
        (c for n in ("pretrained_cfg", "default_cfg") if (c := getattr(model, n, None))), None
    )
    if isinstance(config, Mapping) and config.get("input_size"):
        yield layer.weight.new_zeros(1, layer.in_channels, *config["input_size"][1:])
    for size in (32, 224):
        yield layer.weight.new_zeros(1, layer.in_channels, *[size] * len(layer.kernel_size))
