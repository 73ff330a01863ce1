"""Sizes that Python remembers: integers that know where they came from.

While a model is traced, ``x.shape`` and the integer attributes of modules are `Size` objects: ordinary integers
whose arithmetic keeps an expression over tensor dimensions and module attributes. A rule that receives such a
size can tell one that will follow a cut by itself from one that is baked into the code.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

Expression = tuple  # ("size", trace, number) | ("attribute", module, name) | (operator name, left, right) | int

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
}


class Size(int):
    """An integer with an ``expression``; arithmetic with integers gives a `Size` again."""

    expression: Any

    def __new__(cls, value: int, expression: Any) -> Size:
        self = int.__new__(cls, value)
        self.expression = expression
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int.__int__(self),)

    def __deepcopy__(self, memo: object) -> int:
        return int.__int__(self)

    def __neg__(self) -> int:
        return Size(-int.__int__(self), ("sub", 0, self.expression))


def _binary(name: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    function = _OPERATORS[name]

    def forward(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return Size(function(int.__int__(self), int.__int__(other)), (name, self.expression, expression(other)))

    def reverse(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return Size(function(int.__int__(other), int.__int__(self)), (name, expression(other), self.expression))

    return forward, reverse


for _name in _OPERATORS:
    _forward, _reverse = _binary(_name)
    setattr(Size, f"__{_name}__", _forward)
    setattr(Size, f"__r{_name}__", _reverse)


def expression(value: int) -> Any:
    """The expression of a `Size`, or the number itself."""
    return value.expression if isinstance(value, Size) else int(value)


def symbols(expr: Any) -> Iterator[tuple]:
    """The ("size", ...) and ("attribute", ...) leaves of an expression."""
    if isinstance(expr, tuple):
        if expr[0] in ("size", "attribute"):
            yield expr
        else:
            yield from symbols(expr[1])
            yield from symbols(expr[2])


def evaluate(expr: Any, value_of: Callable[[tuple], int]) -> int:
    """Evaluate an expression with ``value_of(symbol)`` for its leaves."""
    if not isinstance(expr, tuple):
        return int(expr)
    if expr[0] in ("size", "attribute"):
        return value_of(expr)
    left, right = evaluate(expr[1], value_of), evaluate(expr[2], value_of)
    if right == 0 and expr[0] in ("floordiv", "mod"):
        return -1
    return _OPERATORS[expr[0]](left, right)
