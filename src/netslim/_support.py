"""What every room may use: arguments, calls, nearest names, safe files, threads, functions of a
user's own modules.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, TypeVar
from uuid import uuid4

from netslim.errors import ArgumentError, NetslimError

Thing = TypeVar("Thing", bound=Callable[..., Any])
Remedy = Callable[[str, list[str]], str]

_PLAIN = {NoneType: "None", Real: "a number", Integral: "a whole number"}
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
        wanted = " or ".join(_PLAIN.get(one) or _with_article(one.__name__) for one in kinds)
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


# --- calls ----------------------------------------------------------------------------------------


def checks_calls(thing: Thing) -> Thing:
    """Decorator of public functions and classes: a call that does not fit the signature is refused
    before anything is done, in better words than those of Python's TypeError.

    Signature, type and documentation stay as they are. Of a class, its construction and its public
    methods are looked after.

    Raises:
        ArgumentError: by what is decorated: a keyword is misspelt (the nearest is given), or an
            argument is missing, given twice, or one too many.
    """
    if not isinstance(thing, type):
        return call_checked(thing)
    for name, member in list(vars(thing).items()):
        if name == "__init__" or not name.startswith("_"):
            setattr(thing, name, _member_checked(member))
    return thing


def _member_checked(member: Any) -> Any:
    if isinstance(member, (classmethod, staticmethod)):
        return type(member)(call_checked(member.__func__))
    if inspect.isfunction(member):
        return call_checked(member)
    return member


def call_checked(
    function: Thing,
    remedy: Remedy | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> Thing:
    """The function behind a look at how it is called; as it is, where it has that already.

    Args:
        function: or method; of a class, its ``__init__``.
        remedy: says what was meant by an unknown keyword, given it and the names there are; None
            takes `nearest`.
        check: refuses values, given what each name stands for, once all are in their places.
    """
    if hasattr(function, "_call_is_checked"):
        return function
    signature = inspect.signature(function)
    called = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            misfit = _misfit(signature, len(args), kwargs, remedy or nearest)
            raise ArgumentError(f"{called} {misfit}") from None
        if check:
            check(given)
        return function(*args, **kwargs)

    checked._call_is_checked = True  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]


def _misfit(
    signature: inspect.Signature, placed: int, keywords: Collection[str], remedy: Remedy
) -> str:
    """Why a call does not fit: a misspelt keyword comes before the missing one that it stands for.

    Args:
        signature: of what was called.
        placed: arguments that were given by their place, ``self`` among them.
        keywords: the names that were given.
        remedy: as of `call_checked`.
    """
    parameters = list(signature.parameters.values())
    kinds = {one.kind for one in parameters}
    named = [one for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    in_order = [one.name for one in named if one.kind is not one.KEYWORD_ONLY]
    own = len(in_order[:1]) if in_order[:1] in (["self"], ["cls"]) else 0
    names = [one.name for one in named][own:]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for name in keywords:
            if name not in names:
                return f"takes no {name!r}{remedy(name, names)}"
    if placed > len(in_order) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        order = ", ".join(in_order[own:])
        return f"takes {len(in_order) - own} arguments in order, ({order}), got {placed - own}"
    given = in_order[:placed]
    twice = [name for name in given if name in keywords]
    if twice:
        return f"got {twice[0]} twice, by its place and by its name"
    needed = [one.name for one in named[own:] if one.default is one.empty]
    missing = [name for name in needed if name not in given and name not in keywords]
    return f"needs {' and '.join(missing)}: call it with ({', '.join(needed)})"


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
    "call_checked",
    "check_batches",
    "checks_calls",
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
