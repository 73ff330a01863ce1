"""Names: the nearest of those there are, short lists of them, a user's own function by name."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from netslim.errors import NetslimError

_MANY = 12  # names that a message lists at most


def nearest(word: object, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """How a message on an unknown name goes on: ``; did you mean 'a' or 'b'?``.

    Capitals do not count, nor the dashes of flags. A word without a colon may leave out what stands
    before one (``zoo:``), and one that names the last part of dotted names (``running_mean``) means
    these.

    Args:
        word: what was given.
        known: the names there are; the first of equally near ones come first.
        otherwise: what to say when nothing is near; by default which names there are, a dozen at
            most.
    """
    names = list(dict.fromkeys(known))
    if near := _near(str(word).lower().lstrip("-"), names):
        return f"; did you mean {' or '.join(map(repr, near))}?"
    if otherwise is not None:
        return otherwise
    return f"; there is {listed(list(map(repr, names)))}" if names else ""


def listed(parts: Sequence[str], mark: str = ", ", most: int = _MANY) -> str:
    """The first dozen, or so many, and how many more there are."""
    shown = mark.join(parts[:most])
    if len(parts) > most:
        return f"{shown} and {len(parts) - most} more"
    return shown


def _near(word: str, names: list[str]) -> list[str]:
    if ended := [name for name in names if name.lower().endswith((f".{word}", f":{word}"))]:
        return ended[:3]
    by_spelling: dict[str, list[str]] = {}
    for name in names:
        spelling = name.lower().lstrip("-")
        if ":" not in word:
            spelling = spelling.rpartition(":")[2]
        by_spelling.setdefault(spelling, []).append(name)
    close = get_close_matches(word, by_spelling, n=3, cutoff=0.5)
    return list(itertools.chain.from_iterable(by_spelling[spelling] for spelling in close))[:3]


def from_module(name: str, error: type[NetslimError], hint: str = "") -> Callable[..., Any]:
    """The function of this name; the current directory is searched first.

    Args:
        name: ``package.module:function``.
        error: what to raise.
        hint: how the message goes on for whoever names a module that is not there.

    Raises:
        NetslimError: of the class ``error``: there is no such module, it cannot be imported, or it
            has no such function; the nearest are given.
    """
    module_name, _, function_name = name.partition(":")
    with current_directory_importable():
        module = _module(module_name, name, error, hint)
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if callable(function):
        return function
    functions = (name for name, value in vars(module).items() if callable(value))
    where = getattr(module, "__file__", "built in")
    raise error(
        f"the module {module_name} ({where}) has no function {function_name!r}"
        f"{nearest(function_name, functions, otherwise='')}"
    )


def _module(module_name: str, name: str, error: type[NetslimError], hint: str) -> ModuleType:
    what = f"the module {module_name} of {name}"
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{module_name}.".startswith(f"{missing.name}."):
            raise error(f"{what} could not be imported: {missing}") from missing
        raise error(
            f"there is no module {missing.name!r}, which {name} names"
            f"{_as_a_module(module_name, name)}: it must be installed, or the folder that it lies "
            f"in must be the current directory ({Path.cwd()}) or on PYTHONPATH{hint}"
        ) from missing
    except Exception as failure:
        way = ""
        if isinstance(failure, OSError):
            way = "; let it read files in the function that is called, and none when it is imported"
        raise error(
            f"{what} could not be imported: {type(failure).__name__}: {failure}{way}"
        ) from failure


def _as_a_module(module_name: str, name: str) -> str:
    """What is meant where a file stands in the place of a module."""
    if not module_name.endswith(".py"):
        return ""
    module = module_name.removesuffix(".py").replace("/", ".").replace("\\", ".").strip(".")
    return f" (did you mean {module}{name.removeprefix(module_name)}?)"


@contextmanager
def current_directory_importable() -> Iterator[None]:
    """Inside, modules in the current directory are found first."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(here)


__all__ = ["current_directory_importable", "from_module", "listed", "nearest"]
