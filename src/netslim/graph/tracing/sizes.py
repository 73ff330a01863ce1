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

C code reads an integer without asking it: `range`, an index, `math.gcd`, NumPy and JSON see the
number and nobody is told; nor of a hash, which tables of shapes ask for all the time, and so not of
a table that lacks the number. What they make of it is a number in the code, which cannot shrink.
Who depends on such a number is found by running the code again (pretended.py).

A trap: ``int(self)`` and ``float(self)`` are such moments too, so this file takes the plain numbers
with ``int.__int__`` and ``float.__float__``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from numbers import Number
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
_EQUAL = {True: "eq", False: "ne"}  # what held, by whether two sizes are the same
_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, f"__{name}__") for name in (*_ARITHMETIC, *_OPPOSITE, "ne", "pow")
}


class Size(int):
    """An integer with an ``expression``; arithmetic with integers gives a `Size` again."""

    expression: Expression

    def __new__(cls, value: int, expression: Expression) -> Size:
        self = int.__new__(cls, value)
        self.expression = expression
        return self

    def itself(self) -> Size:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        _tell("pickle", self, None)
        return int, (int.__int__(self),)

    def __deepcopy__(self, memo: object) -> int:
        _tell("copy", self, None)
        return int.__int__(self)

    def __getnewargs__(self) -> tuple[int]:
        _tell("pickle", self, None)
        return (int.__int__(self),)

    def __hash__(self) -> int:
        # Nobody is told: where a table holds such a key, it asks whether they are equal.
        return int.__hash__(self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            same = int.__eq__(self, other)
            _tell(_EQUAL[same], self, other)
            return same
        if isinstance(other, Number):
            _tell("comparison", self, other)
            return bool(operator.eq(_decimal(self), other))
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        if isinstance(other, int):
            differ = int.__ne__(self, other)
            _tell(_EQUAL[not differ], self, other)
            return differ
        if isinstance(other, Number):
            _tell("comparison", self, other)
            return bool(operator.ne(_decimal(self), other))
        return NotImplemented

    def __bool__(self) -> bool:
        holds = int.__bool__(self)
        _tell(_EQUAL[not holds], self, 0)
        return holds

    def __float__(self) -> float:
        _tell("float", self, None)
        return 1.0 * int.__int__(self)

    def __int__(self) -> int:
        _tell("int", self, None)
        return int.__int__(self)

    def __index__(self) -> int:
        _tell("int", self, None)
        return int.__int__(self)

    def __pos__(self) -> int:
        return self

    __floor__ = __ceil__ = __trunc__ = conjugate = __pos__
    real = numerator = property(__pos__)

    def as_integer_ratio(self) -> Any:
        return self, 1

    def __round__(self, digits: Any = None) -> int:
        if digits is None:
            return self
        _tell("round", self, None)
        return int.__round__(int.__int__(self), digits)

    def __abs__(self) -> int:
        if int.__int__(self) < 0:
            return -self
        return self

    def __neg__(self) -> int:
        return Size(-int.__int__(self), ("sub", 0, self.expression))

    def __invert__(self) -> int:
        return Size(~int.__int__(self), ("sub", -1, self.expression))

    def __divmod__(self, other: int) -> tuple[int, int]:
        return self // other, self % other

    def __rdivmod__(self, other: int) -> tuple[int, int]:
        return other // self, other % self

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        if modulus is not None:
            _tell("pow", self, None)
            return pow(int.__int__(self), other, modulus)
        return _power(self, other, self, other)

    def __rpow__(self, other: Any, modulus: Any = None) -> Any:
        return _power(other, self, self, other)


class Value(float):
    """A number computed from sizes that is no size itself; it knows their ``expressions``.

    C code, as `math.sqrt` is, takes such a number without asking it, so the watchers are told of
    each when it is made.
    """

    expressions: tuple[Expression, ...]

    def __new__(cls, value: float, expressions: tuple[Expression, ...]) -> Value:
        self = float.__new__(cls, value)
        self.expressions = expressions
        _tell("float", self, None)
        return self

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float.__float__(self),)

    def __deepcopy__(self, memo: object) -> float:
        return float.__float__(self)

    def __hash__(self) -> int:
        return float.__hash__(self)

    def __neg__(self) -> float:
        return Value(-float.__float__(self), self.expressions)

    def __abs__(self) -> float:
        return Value(abs(float.__float__(self)), self.expressions)

    def __pos__(self) -> float:
        return self


def _decimal(number: float) -> float:
    """A plain float, made without a word to the watchers."""
    if isinstance(number, int):
        return 1.0 * int.__int__(number)
    return float.__float__(number)


def _plain(number: Any) -> Any:
    """A plain integer or float of a size or value; anything else as it is."""
    if isinstance(number, Size):
        return int.__int__(number)
    if isinstance(number, Value):
        return float.__float__(number)
    return number


def _tell(what: str, left: Any, right: Any) -> None:
    thread = get_ident()
    for owner, watcher in tuple(watchers):
        if owner == thread:
            watcher(what, left, right)


def expressions_in(value: Any) -> tuple[Expression, ...]:
    """The expressions that a number was computed from."""
    if isinstance(value, Size):
        return (value.expression,)
    if isinstance(value, Value):
        return value.expressions
    return ()


def _arithmetic(name: str, left: Any, right: Any, own: Size, other: Any) -> Any:
    """``left`` and ``right``, of which ``own`` is one and ``other`` the other one, put together."""
    function = _OPERATORS[name]
    if isinstance(other, int):
        result = function(_plain(left), _plain(right))
        return Size(result, (name, expression(left), expression(right)))
    if isinstance(other, float):
        known = (*expressions_in(left), *expressions_in(right))
        return Value(function(_decimal(left), _decimal(right)), known)
    if isinstance(other, (Number, Sequence)):  # 2j, a number of NumPy's, [0] * self.width
        _tell(name, own, None)
    return NotImplemented


def _power(left: Any, right: Any, own: Size, other: Any) -> Any:
    """A power is a size where it is whole: not ``width ** -1``, nor ``width ** 0.5``."""
    if isinstance(other, int) and _plain(right) >= 0:
        return _arithmetic("pow", left, right, own, other)
    if isinstance(other, (int, float)):
        known = (*expressions_in(left), *expressions_in(right))
        return Value(_plain(left) ** _plain(right), known)
    return _arithmetic("pow", left, right, own, other)


def _binary(name: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """Two methods of `Size`: an operator with the size on its left, and with it on its right."""

    def forward(self: Size, other: Any) -> Any:
        return _arithmetic(name, self, other, self, other)

    def reverse(self: Size, other: Any) -> Any:
        return _arithmetic(name, other, self, self, other)

    return forward, reverse


def _comparison(name: str) -> Callable[[Any, Any], Any]:
    """A method of `Size` that compares, and tells what held: ``lt``, or ``ge`` where it did not."""
    function = _OPERATORS[name]

    def compare(self: Size, other: Any) -> Any:
        if isinstance(other, int):
            holds = function(int.__int__(self), int.__int__(other))
            held = name
            if not holds:
                held = _OPPOSITE[name]
            _tell(held, self, other)
            return holds
        if not isinstance(other, Number):
            return NotImplemented
        _tell("comparison", self, other)
        if isinstance(other, float):
            return function(_decimal(self), other)
        return NotImplemented

    return compare


def _told(name: str, base: type, what: str) -> Callable[..., Any]:
    """A method of ``base`` whose result no expression can follow: the watchers are told."""
    function = getattr(base, name)

    def compute(self: Any, *args: Any, **kwargs: Any) -> Any:
        _tell(what, self, None)
        return function(_plain(self), *map(_plain, args), **kwargs)

    return compute


def _fraction(name: str, base: type) -> Callable[[Any, Any], Any]:
    """Arithmetic that leaves the integers: what a `Size` or `Value` takes part in is a `Value`."""

    def compute(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            if isinstance(other, Number):
                _tell(name.strip("_"), self, None)
            return NotImplemented
        plain = getattr(base, name)(_plain(self), _plain(other))
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
for _side in ("__truediv__", "__rtruediv__"):
    setattr(Size, _side, _fraction(_side, int))
for _name in ("__str__", "__repr__", "__format__", "bit_length", "bit_count", "to_bytes"):
    setattr(Size, _name, _told(_name, int, _name.strip("_")))
for _name in ("add", "sub", "mul", "truediv", "pow", "floordiv", "mod"):
    for _side in (f"__{_name}__", f"__r{_name}__"):
        setattr(Value, _side, _fraction(_side, float))
for _name in ("int", "round", "floor", "ceil", "trunc", "divmod", "rdivmod", "str", "repr"):
    setattr(Value, f"__{_name}__", _told(f"__{_name}__", float, _name))
for _name in ("__format__", "as_integer_ratio", "is_integer", "hex"):
    setattr(Value, _name, _told(_name, float, _name.strip("_")))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "bool"):
    setattr(Value, f"__{_name}__", _told(f"__{_name}__", float, "comparison"))


def expression(value: int) -> Expression:
    """The expression of a `Size`, or the number itself."""
    if isinstance(value, Size):
        return value.expression
    return int(value)


def symbols(expr: Expression) -> Iterator[Symbol]:
    """The ("size", ...) and ("attribute", ...) leaves of an expression."""
    if isinstance(expr, tuple):
        if expr[0] in ("size", "attribute"):
            yield expr
        else:
            yield from symbols(expr[1])
            yield from symbols(expr[2])


def evaluate(expr: Expression, value_of: Callable[[Symbol], int]) -> int:
    """Work out an expression with ``value_of(symbol)`` for its leaves; -1 where it has no value."""
    if not isinstance(expr, tuple):
        return int(expr)
    if expr[0] in ("size", "attribute"):
        return value_of(expr)
    left, right = evaluate(expr[1], value_of), evaluate(expr[2], value_of)
    # No size is below 0, so -1 fits none.
    if expr[0] == "pow" and right < 0:
        return -1
    try:
        return int(_OPERATORS[expr[0]](left, right))
    except (ZeroDivisionError, ValueError):  # a division by 0, a shift by less
        return -1
