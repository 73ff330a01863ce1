"""The table of rules: a dict from ATen operator to function, and what rules share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from netslim.graph.tracing.recorder import Recorder

Rule = Callable[..., None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators (in-place twins included), ATen's without
    namespace.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = RULES[name + "_"] = function
        return function

    return register


def tensors(*values: Any) -> list[Tensor]:
    """The tensors among (nested) arguments."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors(*value)
        elif isinstance(value, dict):
            found += tensors(*value.values())
    return found


def derived(rec: Recorder, *values: Any) -> bool:
    """Whether everything among the arguments was computed from parameters alone."""
    return all(rec.get(t).weight for t in tensors(values))


def labelled(rec: Recorder, *values: Any) -> bool:
    """Whether any argument carries labels."""
    return any(rec.get(t).dims for t in tensors(values))


def name_of(func: Any) -> str:
    """``aten::add`` -> ``add``; operators from elsewhere keep their namespace."""
    return str(func._schema.name.removeprefix("aten::"))


def named_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments after the first by their names in the operator's schema, those that were
    passed.
    """
    return {**dict(zip(_names(func)[1:], args, strict=False)), **kwargs}


@cache
def _names(func: Any) -> tuple[str, ...]:
    return tuple(a.name for a in func._schema.arguments)


def asked_sizes(rec: Recorder, functions: tuple[str, ...], first: int) -> list[Any] | None:
    """The sizes the user's code passed, if it called one of ``functions`` itself; None if PyTorch
    computed them.
    """
    function, args, kwargs = rec.call
    if getattr(function, "__name__", "") not in functions:
        return None
    given = list(args[first:]) or [
        v for k, v in kwargs.items() if k in ("shape", "size", "sizes", "dims")
    ]
    if given and isinstance(given[0], (tuple, list)):
        given = list(given[0])
    return given if given and all(isinstance(g, int) for g in given) else None
