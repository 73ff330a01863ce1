"""Files that may be anybody's: read within bounds, and held against what they should hold.

A reader takes three steps. `read_bytes` and `read_text` take in a regular file; `parse_json` makes
plain data of text; `typed` makes what an annotation names of plain data, so that what a file may
hold is written once, as a dataclass. Each says what is wrong by a ValueError, and within `refusing`
that becomes an error of netslim's, which names the file and says what to do.
"""

from __future__ import annotations

import json
import math
import os
import stat
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from io import BufferedReader
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from netslim._support.arguments import brief, described, is_whole
from netslim._support.calls import kind_of
from netslim._support.names import nearest
from netslim.errors import NetslimError

LARGEST_TEXT = 2**26  # bytes
DEEPEST = 100  # lists and mappings within each other
_LONGEST_SAID = 500  # characters of a reason
_DIGITS = 20  # of whole numbers of 64 bits, with a sign


@contextmanager
def refusing(error: type[NetslimError], what: str, remedy: str) -> Iterator[None]:
    """Inside, what is wrong with a file is told as an error of netslim's.

    Args:
        error: its class.
        what: names the file, as ``"plan.json is damaged"``.
        remedy: what to do.

    Raises:
        NetslimError: of the class ``error``: ``what (why); remedy``.
    """
    try:
        yield
    except (OSError, ValueError) as problem:
        raise error(f"{what} ({reason(problem)}); {remedy}") from None


def first_line(problem: BaseException) -> str:
    """What a library says of its error, in short."""
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    return lines[0].rstrip(".")[:_LONGEST_SAID]


def reason(problem: Exception) -> str:
    """What an exception says, on one line; of those of the system what happened alone."""
    said = " ".join(str(getattr(problem, "strerror", None) or problem).split())
    if len(said) > _LONGEST_SAID:  # it may name what stands in the file
        said = f"{said[:_LONGEST_SAID]}..."
    return said or type(problem).__name__


# --- bytes and text -------------------------------------------------------------------------------


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[BufferedReader, int]]:
    """A regular file for reading, and its bytes. What may never end is not opened.

    Raises:
        ValueError: it is a pipe, a socket or a device, or has no name that a file can have.
        OSError: it cannot be read.
    """
    found = os.stat(path).st_mode
    if not (stat.S_ISREG(found) or stat.S_ISDIR(found)):
        raise ValueError("it is a pipe, socket or device, not a file")
    with open(path, "rb") as file:  # refuses a folder in the system's words
        yield file, os.fstat(file.fileno()).st_size


def read_bytes(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        most: bytes that it may have; None is any number.

    Raises:
        ValueError: it is no regular file, or larger.
        OSError: it cannot be read.
    """
    with opened(path) as (file, size):
        if most is None:
            return file.read()
        content = file.read(min(size, most) + 1)  # one more: it may have grown
    if max(size, len(content)) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return content


def read_text(path: str | os.PathLike[str], most: int = LARGEST_TEXT) -> str:
    """The same of UTF-8 text, without a mark of the byte order.

    Raises:
        ValueError: it is no regular file, larger, or no UTF-8.
        OSError: it cannot be read.
    """
    return read_bytes(path, most).decode("utf-8")


# --- JSON -----------------------------------------------------------------------------------------


def parse_json(text: str | bytes | bytearray, *, nan: bool = False) -> Any:
    """The content of JSON.

    Args:
        text: of the file.
        nan: take NaN and infinities, which Python writes, and which are no JSON.

    Raises:
        ValueError: it is no JSON, holds NaN or an infinity (Python takes 1e999 for one), a whole
            number of more than 64 bits or a name twice, or is nested too deeply.
    """
    refused: dict[str, Any] = {}
    if not nan:
        refused = {"parse_constant": _refuse_constant, "parse_float": _finite}
    if not text.strip():
        raise ValueError("it is empty")
    try:
        found = json.loads(text, parse_int=_whole, object_pairs_hook=_once, **refused)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(found)
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if math.isinf(found := float(text)):
        raise ValueError(f"{brief(text)} is too large a number")
    return found


def _whole(text: str) -> int:
    if len(text) > _DIGITS or not is_whole(found := int(text)):
        raise ValueError(f"{brief(text)} is too large a number")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _check_depth(value: Any) -> None:
    """Level by level, for what follows may call itself for each."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [part for held in level for part in _parts(held) if isinstance(part, (list, dict))]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


# --- plain data -----------------------------------------------------------------------------------


class MisfitError(ValueError):
    """Plain data are of another kind than they should be, somewhere within."""

    def __init__(self, said: str, *place: str | int) -> None:
        self.said, self.place = said, place
        super().__init__(": ".join(filter(None, [".".join(map(str, place)), said])))

    def within(self, name: str | int) -> MisfitError:
        """The same, seen from what holds the value by this name or number."""
        return MisfitError(self.said, name, *self.place)


def typed(annotation: Any, value: Any) -> Any:
    """Plain data of a file as what an annotation names.

    Args:
        annotation: a dataclass, which is made of a mapping of its fields, and of others where it
            has an attribute ``and_more``; `tuple` and `list` of some, a `Mapping`, `Literal`,
            unions, or a plain type. A whole number will do for a float.
        value: of `parse_json`.

    Raises:
        MisfitError: a value is of another kind, or a field is missing or unknown (the nearest is
            named); says where.
    """
    return _maker(annotation)(value)


_Maker = Callable[[Any], Any]


@cache
def _maker(annotation: Any) -> _Maker:
    origin, inner = get_origin(annotation), get_args(annotation)
    if is_dataclass(annotation):
        return partial(_instance, annotation)
    if origin in (Union, types.UnionType):
        return partial(_any_of, inner)
    if origin is Literal:
        return partial(_one_of, inner)
    if origin in (tuple, list, Sequence):
        return partial(_several, inner, list if origin is list else tuple)
    if origin in (dict, Mapping):
        return partial(_by_name, *inner)
    return _plain(annotation)


def _plain(annotation: Any) -> _Maker:
    kind = kind_of(annotation)
    if kind is None:
        return lambda value: value
    fits, wanted = kind

    def made(value: Any) -> Any:
        if not fits(value):
            raise _other(wanted, value)
        return float(value) if annotation is float else value

    return made


def _other(wanted: str, value: Any) -> MisfitError:
    return MisfitError(f"{described(value)} stands where {wanted} should")


def _any_of(kinds: Sequence[Any], value: Any) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    kinds = [kind for kind in kinds if kind is not types.NoneType]
    if len(kinds) == 1:
        return typed(kinds[0], value)
    for kind in kinds:
        with suppress(MisfitError):
            return typed(kind, value)
    _, wanted = kind_of(Union[tuple(kinds)]) or (None, "something else")  # noqa: UP007
    raise _other(wanted, value)


def _one_of(words: Sequence[Any], value: Any) -> Any:
    if not any(type(value) is type(word) and value == word for word in words):
        raise _other(f"one of {', '.join(map(repr, words))}", value)
    return value


def _several(kinds: Sequence[Any], made: type, values: Any) -> Any:
    if not isinstance(values, list):
        raise _other("a list", values)
    if kinds[1:] == (...,) or made is list:
        makers = [_maker(kinds[0])] * len(values)
    else:
        makers = [_maker(kind) for kind in kinds]
    if len(values) != len(makers):
        raise MisfitError(f"{len(values)} values stand where {len(makers)} should")
    found = []
    for number, (make, value) in enumerate(zip(makers, values, strict=True)):
        try:
            found.append(make(value))
        except MisfitError as error:
            raise error.within(number) from None
    return made(found)


def _by_name(names: Any, kind: Any, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise _other("a mapping", values)
    found = {}
    for name, value in values.items():
        try:
            found[_maker(names)(name)] = _maker(kind)(value)
        except MisfitError as error:
            raise error.within(name) from None
    return found


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """The annotations of a dataclass, and the fields without a default."""
    hints, known = get_type_hints(kind), fields(kind)
    needed = [one.name for one in known if one.default is one.default_factory is MISSING]
    return {one.name: hints[one.name] for one in known}, needed


def _instance(kind: Any, values: Any) -> Any:
    if not isinstance(values, dict):
        raise _other("a mapping", values)
    hints, needed = _fields(kind)
    for name in values:
        if name not in hints and not hasattr(kind, "and_more"):
            raise MisfitError(f"nothing is called {brief(name)}{nearest(name, hints)}")
    missing = [name for name in needed if name not in values]
    if missing:
        raise MisfitError(f"{' and '.join(missing)} is missing")
    found = {}
    for name in hints.keys() & values.keys():
        try:
            found[name] = _maker(hints[name])(values[name])
        except MisfitError as error:
            raise error.within(name) from None
    return kind(**found)


__all__ = [
    "DEEPEST",
    "LARGEST_TEXT",
    "MisfitError",
    "first_line",
    "opened",
    "parse_json",
    "read_bytes",
    "read_text",
    "reason",
    "refusing",
    "typed",
]
