"""What the schemas of operators say, looked up once: asking PyTorch costs more than a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Operator(NamedTuple):
    """An operator's name, and what its arguments are for.

    Attributes:
        name: without ``aten::``; operators from elsewhere keep their namespace.
        arguments: the names of all of them.
        tensors: (position, name) of the arguments that may hold tensors.
        results: the names of those that it writes its results into, as ``out``.
        written: (position, name) of all that it writes into.
        composite: whether it runs as others, which in inference mode is left to us to see to.
    """

    name: str
    arguments: tuple[str, ...]
    tensors: tuple[tuple[int, str], ...]
    results: frozenset[str]
    written: tuple[tuple[int, str], ...]
    composite: bool

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors that it was given, in the order of its arguments."""
        found: list[Tensor] = []
        for position, name in self.tensors:
            if position < len(args):
                value = args[position]
            elif kwargs:
                value = kwargs.get(name)
            else:  # all that follow were left out, too
                break
            if isinstance(value, Tensor):
                found.append(value)
            elif value is not None:
                found += tensors_in(value)
        return found


# By id, with the operator, which so lives on: to ask one for its hash takes longer than the rest.
_KNOWN: dict[int, tuple[Any, Operator]] = {}


def operator(func: Any) -> Operator:
    """What the schema of an operator says."""
    found = _KNOWN.get(id(func))
    if found is None:
        found = _KNOWN[id(func)] = func, _looked_up(func)
    return found[1]


def _looked_up(func: Any) -> Operator:
    schema = func._schema
    arguments = list(enumerate(schema.arguments))
    return Operator(
        schema.name.removeprefix("aten::"),
        tuple(a.name for _, a in arguments),
        tuple((i, a.name) for i, a in arguments if "Tensor" in str(a.type)),
        frozenset(a.name for _, a in arguments if a.is_out),
        tuple((i, a.name) for i, a in arguments if a.alias_info and a.alias_info.is_write),
        bool(
            torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        ),
    )


def called_name(func: Any) -> str:
    """The name of what code calls, ``""`` without one; `torch.ops.aten.view.default` is a view."""
    name: str = getattr(func, "__name__", "")
    return name.partition(".")[0]


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors among the arguments of an operator, which nest lists, tuples and dicts alone:
    many times as fast as `calls.tensor_leaves`, which knows all that models take and give.
    """
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(*value)
        elif isinstance(value, dict) and value:
            found += tensors_in(*value.values())
    return found


__all__ = ["Operator", "called_name", "operator", "tensors_in"]
