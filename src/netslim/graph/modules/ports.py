"""What goes into a model and comes out of it, by name: ``h``, ``state.h``, ``output[1]``.

An input goes by the name of its parameter in ``forward``, an output begins with ``output``; what is
inside a container follows, as one would write it in Python. Whoever asks need not write it so: a
key is a key, whether of a list, a dict or an object, and ``output`` may be left out.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

from torch import Tensor, nn

from netslim._support import brief, is_whole, listed, nearest
from netslim.errors import ArgumentError
from netslim.graph.modules.calls import as_call, inner_values, named_outputs

PortName: TypeAlias = str | int
_OUTPUT = "output"
# A part of a name: ['key'], ["key"], [1], or what stands between dots.
_PART = re.compile(r"\['(?P<a>[^']*)'\]|\[\"(?P<b>[^\"]*)\"\]|\[(?P<c>[^\]]*)\]|(?P<d>[^.\[\]]+)")


@dataclass(frozen=True)
class Free:
    """The inputs and outputs that may lose channels, as they are asked for.

    Attributes:
        outputs: by position or name.
        inputs: by position or name -> the output that is fed back into it; None where none is.
        in_order: whether inputs without an output may be fed back ones all the same: those that are
            called as a free output, or are as large as one, in order.
    """

    outputs: tuple[PortName, ...] = ()
    inputs: Mapping[PortName, PortName | None] = field(default_factory=dict)
    in_order: bool = True

    @staticmethod
    def of(
        outputs: Sequence[PortName], inputs: Sequence[PortName] | Mapping[PortName, PortName | None]
    ) -> Free:
        """From what a user wrote.

        Raises:
            ArgumentError: these are no names or positions.
        """
        _check_names("free_outputs", outputs)
        if isinstance(inputs, Mapping):
            _check_names("free_inputs", inputs)
            fed = [name for name in inputs.values() if name is not None]
            _check_names("free_inputs", fed)
            return Free((*outputs, *(n for n in fed if n not in outputs)), dict(inputs), False)
        _check_names("free_inputs", inputs)
        return Free(tuple(outputs), dict.fromkeys(inputs))


def _check_names(option: str, names: Any) -> None:
    if isinstance(names, str) or not all(n if isinstance(n, str) else is_whole(n) for n in names):
        raise ArgumentError(
            f"{option} is a list of names or positions, such as ['state.h'] or [1], got "
            f"{brief(names)}"
        )


def inputs_by_name(model: nn.Module, example_inputs: Any) -> list[tuple[str, Any]]:
    """(name of the parameter, value) of all inputs in order, whatever they are."""
    args, kwargs = as_call(example_inputs)
    return [*zip(_names_of(model, len(args)), args, strict=True), *kwargs.items()]


def _names_of(model: nn.Module, count: int) -> list[str]:
    """Of so many positional arguments of ``forward``."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
    return [*names[:count], *(f"{rest}[{i}]" for i in range(count - len(names)))]


def input_tensors(model: nn.Module, example_inputs: Any) -> dict[str, Tensor]:
    """Name -> tensor, of all tensors among the inputs."""
    inputs = inputs_by_name(model, example_inputs)
    return dict(chain.from_iterable(named_outputs(value, name) for name, value in inputs))


def with_inputs(model: nn.Module, example_inputs: Any, new: Mapping[str, Tensor]) -> Any:
    """The inputs with other tensors in some places; what was given stays as it is."""
    if not new:
        return example_inputs
    inputs = inputs_by_name(model, example_inputs)
    values = [_replaced(value, name, new) for name, value in inputs]
    if isinstance(example_inputs, Mapping):
        return dict(zip(example_inputs, values, strict=True))
    if isinstance(example_inputs, (tuple, list)):
        return tuple(values)
    return values[0]


def _replaced(value: Any, name: str, new: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return new.get(name, value)
    inner = list(inner_values(value, name))
    items = {key: _replaced(item, path, new) for path, key, item in inner}
    if all(items[key] is item for _, key, item in inner):
        return value
    if hasattr(value, "_make"):  # a named tuple
        return value._make(items.values())
    if isinstance(value, (tuple, list)):
        return type(value)(items.values())
    other = copy.copy(value)
    if isinstance(value, Mapping):
        other.update(items)
    else:
        vars(other).update(items)
    return other


def tops_of_outputs(answer: Any) -> list[str]:
    """The outputs that have a position, whatever they are."""
    if isinstance(answer, Tensor):
        return [_OUTPUT]
    return [path for path, _, _ in inner_values(answer, _OUTPUT)]


def found(
    asked: PortName, tops: Sequence[str], tensors: Mapping[str, Tensor], kind: str
) -> list[str]:
    """The tensors that a position or name means, by their full names.

    Args:
        asked: of one, or of a container of several.
        tops: full names by position.
        tensors: full name -> tensor, of all there are.
        kind: ``"input"`` or ``"output"``, for messages.

    Raises:
        ArgumentError: there is none; those there are are listed.
    """
    wanted = []
    if isinstance(asked, str):
        wanted.append(_parts(asked))
        if kind == _OUTPUT:
            wanted.append((_OUTPUT, *_parts(asked)))
    if not isinstance(asked, str) or asked.isdigit():  # as the command line has positions
        place = int(asked)
        wanted += [_parts(top) for top in tops[place:][:1] if -len(tops) <= place]
    for parts in filter(None, wanted):
        names = [name for name in tensors if _parts(name)[: len(parts)] == parts]
        if names:
            return names
    there = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()] or ["none"]
    close = ""
    if isinstance(asked, str):
        close = nearest(asked, tensors, otherwise="")
    raise ArgumentError(
        f"the model has no {kind} {asked!r} that is a tensor{close}; there are {listed(there)}"
    )


def _parts(name: str) -> tuple[str, ...]:
    """``state.h``, ``state['h']`` -> (state, h)."""
    return tuple(
        next(part for part in match.groups() if part is not None) for match in _PART.finditer(name)
    )


def same_name(first: str, second: str) -> bool:
    """Whether an input and an output are called the same."""
    return _parts(first) == _parts(second)[1:]


__all__ = [
    "Free",
    "PortName",
    "found",
    "input_tensors",
    "inputs_by_name",
    "same_name",
    "tops_of_outputs",
    "with_inputs",
]
