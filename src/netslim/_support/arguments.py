"""Arguments of public functions: refusing what will do no good, and how values are told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from types import NoneType
from typing import Any

from netslim.errors import ArgumentError

_PLAIN = {NoneType: "None", Real: "a number", Integral: "a whole number"}
_WORTH_SHOWING = (str, int, float)
_LONGEST = 60  # characters of a value in a message
_FEW = 4  # members of a list that are shown
_UNCOUNTED = 2**64  # whole numbers that PyTorch cannot hold


def expect(value: object, kind: Any, name: str, call: str) -> None:
    """Refuse an argument of another kind than the one that a function works on.

    Args:
        value: what was given.
        kind: a class or several, one of which it must be an instance of.
        name: of the parameter.
        call: as it should look, such as ``"prune(model, plan)"``.

    Raises:
        ArgumentError: names the parameter, the kind, what was given, and the call.
    """
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(map(wording, kinds))
        raise ArgumentError(f"{name} must be {wanted}, got {described(value)}: call {call}")


def described(value: object) -> str:
    """``None``, ``a Tensor``, or ``the str 'l1'``: what stands where something else should."""
    if value is None:
        return "None"
    if isinstance(value, int) and not is_whole(value) and not isinstance(value, bool):
        return brief(value)
    if isinstance(value, _WORTH_SHOWING):
        return f"the {type(value).__name__} {brief(value)}"
    return _with_article(type(value).__name__)


def brief(value: object) -> str:
    """``1.5``, ``'l1'`` or ``a Tensor``: what was given, as it was typed where that is short."""
    if isinstance(value, int) and abs(value) >= _UNCOUNTED:  # a longer text than Python makes
        digits = round(value.bit_length() * math.log10(2))
        return f"a whole number of some {digits:,} digits, which is too large"
    if isinstance(value, (list, tuple)) and len(value) <= _FEW:
        parts = ", ".join(map(_inner, value))
        return _clipped(f"[{parts}]")
    if isinstance(value, dict) and len(value) <= _FEW:
        parts = ", ".join(f"{_inner(key)}: {_inner(held)}" for key, held in value.items())
        return _clipped(f"{{{parts}}}")
    if value is None or isinstance(value, _WORTH_SHOWING):
        return _clipped(repr(value))
    return _with_article(type(value).__name__)


def _inner(value: object) -> str:
    """The same for what is in a list or dict: of those within it is told that they are."""
    if isinstance(value, (list, tuple, dict)):
        return _with_article(type(value).__name__)
    return brief(value)


def _clipped(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 3]}..."


def wording(kind: type) -> str:
    """``a Tensor``: what an instance of a class is called in a message."""
    return _PLAIN.get(kind) or _with_article(kind.__name__)


def _with_article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def check_batches(batches: Any) -> Iterable[Any]:
    """The batches, if they can be several: a data loader or a list, not one tensor or dict.

    Raises:
        ArgumentError: it is something else.
    """
    from torch import Tensor

    if isinstance(batches, (Tensor, Mapping, str, bytes)) or not isinstance(batches, Iterable):
        raise ArgumentError(
            f"batches must be a data loader or a list of batches, got {described(batches)}"
        )
    return batches


def is_number(value: Any) -> bool:
    """Whether it is a number that can be computed with: no flag, no integer of too many digits."""
    if type(value) is float:
        return True
    return is_whole(value) or (isinstance(value, Real) and not isinstance(value, Integral))


def is_whole(value: Any) -> bool:
    """Whether it is a whole number that can be computed with: no flag, within 64 bits."""
    if type(value) is int:  # as nearly all are: to ask the abstract class takes ten times as long
        return -_UNCOUNTED < value < _UNCOUNTED
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and abs(value) < _UNCOUNTED


__all__ = [
    "brief",
    "check_batches",
    "described",
    "expect",
    "is_number",
    "is_whole",
    "wording",
]
