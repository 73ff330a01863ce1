"""Running a model on example inputs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from netslim._support import checks_calls
from netslim.errors import TraceError
from netslim.graph.modules.state import state_kept
from netslim.graph.modules.unwrapping import without_values
from netslim.graph.modules.walk import named_modules

# What Python says where an argument that goes by name alone is missing, or is given by its order.
_BY_ORDER = re.compile(r"forward\(\) (missing .* keyword-only|takes .* positional argument)")
_PICTURE = 3  # dimensions of one picture: channels, height, width


@checks_calls
def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tensor, a tuple of positional inputs or a dict of keyword inputs -> (args, kwargs).

    Example:
        >>> args, kwargs = netslim.graph.as_call({"x": images})
        >>> args, list(kwargs)
        ((), ['x'])
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def tensor_leaves(values: Any) -> list[Tensor]:
    """The tensors in containers, in order."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def check_entries(example_inputs: Any) -> None:
    """Refuse inputs without a single example, which cost nothing and show nothing.

    One of several may be empty along another axis, as a cache is at the first call.

    Raises:
        TraceError: a batch is empty, or everything is.
    """
    tensors = tensor_leaves(as_call(example_inputs))
    batches = [tensor for tensor in tensors if tensor.dim() > 1]
    if any(not len(t) for t in batches) or (tensors and not any(t.numel() for t in tensors)):
        raise TraceError(
            f"the example inputs ({describe(example_inputs)}) hold no example, so that no cost can "
            "be told: pass a batch of at least 1"
        )


def describe(example_inputs: Any) -> str:
    """Shapes of the inputs, for messages."""
    args, kwargs = as_call(example_inputs)
    parts = [_shape(value) for value in args]
    parts += [f"{name}={_shape(value)}" for name, value in kwargs.items()]
    return ", ".join(parts)


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    return type(value).__name__


@contextlib.contextmanager
def refusing(example_inputs: Any) -> Iterator[None]:
    """What a model raises inside becomes a `TraceError` that shows the inputs."""
    try:
        yield
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(
            f"the model does not run on these example inputs ({describe(example_inputs)}): "
            f"{type(error).__name__}: {error}; {advice(example_inputs, error)}"
        ) from error


def advice(example_inputs: Any, error: Exception | None = None) -> str:
    """What to do where a model does not run on these, by what they look like and what it said."""
    tensors = tensor_leaves(as_call(example_inputs))
    if any(map(without_values, tensors)):
        return (
            "an example input has no values: it was made on the meta device or in a "
            "FakeTensorMode; make it outside"
        )
    shapes = {tensor.shape for tensor in tensors}
    if isinstance(example_inputs, (tuple, list)) and len(tensors) > len(shapes) == 1:
        return (
            f"a {type(example_inputs).__name__} is one argument each, here {len(tensors)}: pass "
            "examples that make up a batch as torch.stack(examples)"
        )
    if isinstance(error, TypeError) and _BY_ORDER.search(str(error)):
        return (
            "a tuple passes inputs by their order; a dict passes them by name, such as "
            '{"x": ..., "cond": ...}'
        )
    for tensor in tensors:
        if tensor.dim() == _PICTURE and tensor.is_floating_point():
            return (
                f"is {tuple(tensor.shape)} one picture, without the dimension of the batch? Then "
                "pass it as example[None]"
            )
    return "pass inputs that model(...) accepts in evaluation mode"


def output_tensors(value: Any) -> list[Tensor]:
    """Every tensor inside nested containers, dataclasses and plain objects."""
    return [tensor for _, tensor in named_outputs(value)]


def named_outputs(value: Any, name: str = "output") -> list[tuple[str, Tensor]]:
    """The same, each with how to get at it: ``output[1]``, ``output['logits']``, ``output.h``."""
    if isinstance(value, Tensor):
        return [(name, value)]
    found = []
    for path, _, item in inner_values(value, name):
        found += named_outputs(item, path)
    return found


def inner_values(value: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """(path, key, value) of what a container, dataclass or plain object holds; of others none."""
    if isinstance(value, Mapping):
        yield from ((f"{name}[{key!r}]", key, item) for key, item in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((f"{name}[{number}]", number, item) for number, item in enumerate(value))
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        yield from ((f"{name}.{key}", key, item) for key, item in vars(value).items())


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards the model is as it was, whatever its forward has written.

    Everyone who runs a model to learn something does so within this.
    """
    with state_kept(model), in_mode(model, training=False):
        yield


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside; every module's own flag as it was afterwards.

    The flags are set one by one: a module's own ``train()`` may change its weights, as merged
    adapters do.
    """
    flags = [(m, m.training) for m in named_modules(model)]
    # Assigning goes through `Module.__setattr__`, which is slow, and most are right already.
    for module, flag in flags:
        if flag is not training:
            module.training = training
    try:
        yield
    finally:
        for module, flag in flags:
            if module.training is not flag:
                module.training = flag
