"""The table of rules: a dict from ATen operator to function, and what rules share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch._ops import OpOverload

from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.recorder import Recorder, Rule
from netslim.graph.tracing.storages import tensors_in

Op = OpOverload  # an operator as it runs: ``aten::add.Tensor``
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators and of their in-place twins.

    ATen's are named without namespace.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = RULES[name + "_"] = function
        return function

    return register


def derived(rec: Recorder, *values: Any) -> bool:
    """Whether everything among the arguments was computed from parameters alone."""
    return all(rec.get(t).weight for t in tensors_in(values))


def labelled(rec: Recorder, *values: Any) -> bool:
    """Whether any argument carries labels."""
    return any(rec.get(t).dims for t in tensors_in(values))


def without(dims: dict[int, Vector], gone: set[int]) -> dict[int, Vector]:
    """The labels when dimensions ``gone`` are taken away; those behind them move up."""
    return {d - sum(g < d for g in gone): v for d, v in dims.items() if d not in gone}


def extent(labels: Vector | None, size: int) -> int | Vector:
    """What a dimension contributes to a cost: its labels, or its size where it carries none."""
    return size if labels is None else labels


def name_of(func: Op) -> str:
    """``aten::add`` -> ``add``; operators from elsewhere keep their namespace."""
    return str(func._schema.name.removeprefix("aten::"))


def named_arguments(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments after the first that were passed, by their names in the operator's schema."""
    return {**dict(zip(_names(func)[1:], args, strict=False)), **kwargs}


@cache
def _names(func: Op) -> tuple[str, ...]:
    return tuple(a.name for a in func._schema.arguments)


def asked_sizes(rec: Recorder, functions: tuple[str, ...], first: int) -> list[Any] | None:
    """The sizes that the user's code passed to one of ``functions``; None: PyTorch computed them.

    ``first`` is the position of the first size among the arguments.
    """
    if rec.calling not in functions:
        return None
    _, args, kwargs = rec.call
    names = ("shape", "size", "sizes", "dims")
    given = list(args[first:]) or [v for k, v in kwargs.items() if k in names]
    if given and isinstance(given[0], (tuple, list)):
        given = list(given[0])
    return given if given and all(isinstance(g, int) for g in given) else None


__all__ = [
    "RULES", "Op", "Rule", "asked_sizes", "derived", "extent", "labelled", "name_of",
    "named_arguments", "rule", "tensors_in", "without",
]  # fmt: skip
