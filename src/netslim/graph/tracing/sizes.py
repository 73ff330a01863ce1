"""Sizes that Python remembers: integers that know where they came from.

While a model is traced, ``x.shape`` and the integer attributes of modules are `Size` objects:
ordinary integers whose arithmetic keeps an expression over tensor dimensions and module attributes.
A rule that receives such a size can tell one that will follow a cut by itself from one that is
baked into the code: in ``x.view(b, self.heads, c // self.heads)`` the last size is the number 16,
and it is ``("floordiv", ("size", ...), ("attribute", "block.attn", "heads"))``, which can be worked
out again for a cut that was only thought of (`evaluate`; remembered.py does that).

Where a size stops being one, whoever watches is told (`watchers`): at comparisons, since the code
may go another way when they come out otherwise, and where an integer or float is made of it.
Fractions are `Value`s: they cannot be widths, but they remember what they were computed from.

Traps: ``int(self)`` and ``float(self)`` are such moments too, so this file takes the plain numbers
with ``int.__int__`` and ``float.__float__``; and `Recorder.noticed` counts frames to find the code
that asked, so a method here tells the watchers over `_tell` and over nothing in between.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any

# A leaf of an expression: ("size", trace, number) or ("attribute", module, name).
Symbol = tuple[Any, ...]
# A symbol, (operator name, left, right), or a plain number.
Expression = tuple[Any, ...] | int

# Told what the code found when it compared sizes, and what it made of them: a thread, by its
# number, and who wants to know what happens in it.
watchers: list[tuple[int, Callable[[str, Any, Any], None]]] = []

_ARITHMETIC = ("add", "sub", "mul", "floordiv", "mod", "rshift", "lshift", "and", "or", "xor")
_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, f"__{name}__") for name in (*_ARITHMETIC, *_OPPOSITE, "ne")
}


class Size(int):
    """An integer with an ``expression``; arithmetic with integers gives a `Size` again."""

    expression: Expression

    def __new__(cls, value: int, expression: Expression) -> Size:
        self = int.__new__(cls, value)
        self.expression = expression
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int.__int__(self),)

    def __deepcopy__(self, memo: object) -> int:
        return int.__int__(self)

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, float):
            _tell("comparison", self, other)
            return _decimal(self) == other
        same = int.__eq__(self, other)
        if same is not NotImplemented:
            _tell("eq" if same else "ne", self, other)
        return same

    def __ne__(self, other: object) -> bool:
        if isinstance(other, float):
            _tell("comparison", self, other)
            return _decimal(self) != other
        same = self.__eq__(other)
        return same if same is NotImplemented else not same

    def __float__(self) -> float:
        _tell("float", self, None)
        return 1.0 * int.__int__(self)

    def __int__(self) -> int:
        _tell("int", self, None)
        return int.__int__(self)

    def __pos__(self) -> int:
        return self

    __floor__ = __ceil__ = __trunc__ = __pos__

    def __round__(self, digits: Any = None) -> int:
        return self if digits is None else int.__round__(self, digits)

    def __abs__(self) -> int:
        return self if int.__int__(self) >= 0 else -self

    def __neg__(self) -> int:
        return Size(-int.__int__(self), ("sub", 0, self.expression))

    def __divmod__(self, other: int) -> tuple[int, int]:
        return self // other, self % other


class Value(float):
    """A number computed from sizes that is no size itself; it knows their ``expressions``."""

    expressions: tuple[Expression, ...]

    def __new__(cls, value: float, expressions: tuple[Expression, ...]) -> Value:
        self = float.__new__(cls, value)
        self.expressions = expressions
        return self

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float.__float__(self),)

    def __deepcopy__(self, memo: object) -> float:
        return float.__float__(self)

    def __hash__(self) -> int:
        return float.__hash__(self)

    def __neg__(self) -> float:
        return Value(-float.__float__(self), self.expressions)


def _decimal(number: float) -> float:
    """A plain float, made without a word to the watchers."""
    if isinstance(number, int):
        return 1.0 * int.__int__(number)
    return float.__float__(number)


def _tell(what: str, left: Any, right: Any) -> None:
    thread = get_ident()
    for owner, watcher in tuple(watchers):
        if owner == thread:
            watcher(what, left, right)


def expressions_in(value: Any) -> tuple[Expression, ...]:
    """The expressions that a number was computed from."""
    if isinstance(value, Size):
        return (value.expression,)
    return value.expressions if isinstance(value, Value) else ()


def _binary(name: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """Two methods of `Size`: an operator with the size on its left, and with it on its right."""
    function = _OPERATORS[name]

    def forward(self: Size, other: Any) -> Any:
        if isinstance(other, float):
            known = (self.expression, *expressions_in(other))
            return Value(function(_decimal(self), _decimal(other)), known)
        if not isinstance(other, int):
            return NotImplemented
        result = function(int.__int__(self), int.__int__(other))
        return Size(result, (name, self.expression, expression(other)))

    def reverse(self: Size, other: Any) -> Any:
        if isinstance(other, float):
            known = (*expressions_in(other), self.expression)
            return Value(function(_decimal(other), _decimal(self)), known)
        if not isinstance(other, int):
            return NotImplemented
        result = function(int.__int__(other), int.__int__(self))
        return Size(result, (name, expression(other), self.expression))

    return forward, reverse


def _comparison(name: str) -> Callable[[Any, Any], Any]:
    """A method of `Size` that compares, and tells what held: ``lt``, or ``ge`` where it did not."""
    function = _OPERATORS[name]

    def compare(self: Size, other: Any) -> Any:
        if isinstance(other, float):
            _tell("comparison", self, other)
            return function(_decimal(self), other)
        if not isinstance(other, int):
            return NotImplemented
        holds = function(int.__int__(self), int.__int__(other))
        _tell(name if holds else _OPPOSITE[name], self, other)
        return holds

    return compare


def _told(name: str, what: str) -> Callable[..., Any]:
    """A method of `float` that makes of a `Value` what no expression can follow."""
    function = getattr(float, name)

    def compute(self: Value, *args: Any) -> Any:
        _tell(what, self, None)
        return function(self, *args)

    return compute


def _fraction(name: str, base: type) -> Callable[[Any, Any], Any]:
    """Arithmetic that leaves the integers: what a `Size` or `Value` takes part in is a `Value`."""

    def compute(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        plain = getattr(base, name)(self, other)
        if plain is NotImplemented:  # an integer with a float
            plain = getattr(float, name)(_decimal(self), _decimal(other))
        return Value(plain, (*expressions_in(self), *expressions_in(other)))

    return compute


for _name in _ARITHMETIC:
    _forward, _reverse = _binary(_name)
    setattr(Size, f"__{_name}__", _forward)
    setattr(Size, f"__r{_name}__", _reverse)
for _name in _OPPOSITE:
    setattr(Size, f"__{_name}__", _comparison(_name))
for _name in ("truediv", "pow"):
    for _side in (f"__{_name}__", f"__r{_name}__"):
        setattr(Size, _side, _fraction(_side, int))
for _name in ("add", "sub", "mul", "truediv", "pow", "floordiv", "mod"):
    for _side in (f"__{_name}__", f"__r{_name}__"):
        setattr(Value, _side, _fraction(_side, float))
for _name in ("int", "round", "floor", "ceil", "trunc"):
    setattr(Value, f"__{_name}__", _told(f"__{_name}__", _name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Value, f"__{_name}__", _told(f"__{_name}__", "comparison"))


def expression(value: int) -> Expression:
    """The expression of a `Size`, or the number itself."""
    return value.expression if isinstance(value, Size) else int(value)


def symbols(expr: Expression) -> Iterator[Symbol]:
    """The ("size", ...) and ("attribute", ...) leaves of an expression."""
    if isinstance(expr, tuple):
        if expr[0] in ("size", "attribute"):
            yield expr
        else:
            yield from symbols(expr[1])
            yield from symbols(expr[2])


def evaluate(expr: Expression, value_of: Callable[[Symbol], int]) -> int:
    """Work out an expression with ``value_of(symbol)`` for its leaves; -1 for a division by 0."""
    if not isinstance(expr, tuple):
        return int(expr)
    if expr[0] in ("size", "attribute"):
        return value_of(expr)
    left, right = evaluate(expr[1], value_of), evaluate(expr[2], value_of)
    if right == 0 and expr[0] in ("floordiv", "mod"):
        return -1
    return int(_OPERATORS[expr[0]](left, right))
