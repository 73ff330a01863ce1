"""Numbers of channels that C code takes for others than they are: who reads them unseen?

A size that knows where it came from (sizes.py) hears of all that Python does with it. Not so of C
code: `range`, an index, `math.log2`, NumPy and a hash take the number and ask nobody. What they
make of it is a number in the code, and a cut would change that number.

So the code is run again on sizes that are `Pretended`: to Python they are what they were, to C code
what a cut may leave of them. Where nobody reads them unseen, the code makes the same calls with the
same arguments; where somebody does, it goes another way, and there it is caught (rerun.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from netslim.graph.tracing.places import HERE, TORCH, asker


class Pretended(int):
    """An integer that is ``truth`` to whoever asks it, and another one to who reads it in C."""

    truth: int
    hashed: bool

    def __new__(cls, lie: int, truth: int) -> Pretended:
        self = int.__new__(cls, lie)
        self.truth, self.hashed = truth, False
        return self

    def __hash__(self) -> int:
        self.hashed = True
        return int.__hash__(self)

    def __eq__(self, other: object) -> bool:
        # A table compares what has the same hash: there, a lie must be found under a lie.
        if self.hashed and isinstance(other, int):
            self.hashed = False
            return int.__eq__(self, lie_of(other))
        return bool(self.truth == truth_of(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __int__(self) -> int:
        # A plain number of it: where that ends up is looked at (casts.py).
        if asker().startswith((TORCH, HERE)):
            return self.truth
        return int.__int__(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (self.truth,)

    def __deepcopy__(self, memo: object) -> int:
        return self.truth


def truth_of(number: Any) -> Any:
    """What a number is that may be pretended."""
    if type(number) is Pretended:
        return number.truth
    return number


def lie_of(number: Any) -> Any:
    """What C code reads."""
    if isinstance(number, int):
        return int.__int__(number)
    return number


def _arithmetic(name: str) -> Callable[..., Any]:
    """A method whose whole results pretend on: half the channels are half of what is pretended."""
    function = getattr(int, name)

    def compute(self: Pretended, *others: Any) -> Any:
        true = [truth_of(other) for other in others]
        result = function(self.truth, *true)
        if result is NotImplemented and isinstance(true[0], float):
            return getattr(float(self.truth), name)(true[0])
        if type(result) is not int:
            return result
        try:
            return Pretended(function(lie_of(self), *map(lie_of, others)), result)
        except (ArithmeticError, ValueError, TypeError):  # nothing is left to divide by
            return Pretended(0, result)

    return compute


def _truly(name: str) -> Callable[..., Any]:
    """A method that tells the truth."""
    function = getattr(int, name)

    def tell(self: Pretended, *others: Any) -> Any:
        return function(self.truth, *map(truth_of, others))

    return tell


_BINARY = "add sub mul floordiv mod pow rshift lshift and or xor truediv".split()  # noqa: SIM905
for _name in (*_BINARY, *(f"r{name}" for name in _BINARY), *("neg", "abs", "invert", "pos")):
    setattr(Pretended, f"__{_name}__", _arithmetic(f"__{_name}__"))
# fmt: off
_TRUE = (
    "lt", "le", "gt", "ge", "bool", "index", "float", "str", "repr", "format", "round",
    "floor", "ceil", "trunc", "divmod", "rdivmod",
)
# fmt: on
for _name in _TRUE:
    setattr(Pretended, f"__{_name}__", _truly(f"__{_name}__"))
for _name in ("bit_length", "bit_count", "to_bytes", "as_integer_ratio", "conjugate"):
    setattr(Pretended, _name, _truly(_name))
for _name in ("real", "numerator"):
    setattr(Pretended, _name, property(lambda self: self))

__all__ = ["Pretended", "lie_of", "truth_of"]
