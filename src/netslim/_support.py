"""What every room may use: arguments, nearest names, safe files, threads, functions of a user's own
modules.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any
from uuid import uuid4

from netslim.errors import ArgumentError, NetslimError

_MANY = 12  # names that a message lists at most


# --- arguments ------------------------------------------------------------------------------------


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
        wanted = " or ".join(
            "None" if one is NoneType else _with_article(one.__name__) for one in kinds
        )
        raise ArgumentError(f"{name} must be {wanted}, got {described(value)}: call {call}")


def described(value: object) -> str:
    """``None``, ``a Tensor``, or ``the str 'l1'``: what stands where something else should."""
    if value is None:
        return "None"
    if isinstance(value, (str, int, float)):
        text = repr(value)
        return f"the {type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
    return _with_article(type(value).__name__)


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


# --- names ----------------------------------------------------------------------------------------


def nearest(word: object, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """How a message on an unknown name goes on: ``; did you mean 'a' or 'b'?``.

    Capitals do not count. A word without a colon may leave out what stands before one (``zoo:``),
    and one that names the last part of dotted names (``running_mean``) means these.

    Args:
        word: what was given.
        known: the names there are; the first of equally near ones come first.
        otherwise: what to say when nothing is near; by default which names there are, a dozen at
            most.
    """
    names = list(dict.fromkeys(known))
    if near := _near(str(word).lower(), names):
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
        spelling = name.lower() if ":" in word else name.lower().rpartition(":")[2]
        by_spelling.setdefault(spelling, []).append(name)
    close = get_close_matches(word, by_spelling, n=3, cutoff=0.5)
    return [name for spelling in close for name in by_spelling[spelling]][:3]


# --- files ----------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path to write a file under that takes the place of ``path`` when the block ends,
    complete.

    It lies in the same folder and has the same ending. After an exception ``path`` is as before and
    nothing is left.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that it is either as before or complete, also after a kill; text as UTF-8.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


# --- threads --------------------------------------------------------------------------------------


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Inside, torch uses so many CPU threads; None leaves the number as it is.

    Raises:
        ArgumentError: the number is below 1.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ArgumentError(
            f"threads={count!r}; give 1 or more, or None to leave the number as it is"
        )
    import torch  # here, so that names and files wait for nobody

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- functions of a user's own modules ------------------------------------------------------------


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
            f"there is no module {missing.name!r}, which {name} names: it must be installed, "
            f"or lie in the current directory ({Path.cwd()}){hint}"
        ) from missing
    except Exception as failure:
        raise error(
            f"{what} could not be imported: {type(failure).__name__}: {failure}"
        ) from failure


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


__all__ = [
    "check_batches",
    "current_directory_importable",
    "described",
    "expect",
    "from_module",
    "listed",
    "nearest",
    "replacing",
    "using_threads",
    "write_atomic",
]
