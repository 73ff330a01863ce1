"""What every room may use: arguments, calls, nearest names, safe files, threads, functions of a
user's own modules.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib
import inspect
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin
from uuid import uuid4

from netslim.errors import ArgumentError, NetslimError

if TYPE_CHECKING:
    import torch

Thing = TypeVar("Thing", bound=Callable[..., Any])
Remedy = Callable[[str, list[str]], str]
_Kind = tuple[Callable[[Any], bool], str]  # whether a value will do, and what will in words

_PLAIN = {NoneType: "None", Real: "a number", Integral: "a whole number"}
_OWN = {"self", "cls"}
_WORTH_SHOWING = (str, int, float)
_LONGEST = 60  # characters of a value in a message
_FEW = 4  # members of a list that are shown
_UNCOUNTED = 2**64  # whole numbers that PyTorch cannot hold
_MOST_THREADS = 2**16
_MANY = 12  # names that a message lists at most
_TEMPORARY = re.compile(r"\.(?P<stem>.*)\.[0-9a-f]{12}\.tmp(?P<suffix>(\..*)?)")


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
        wanted = " or ".join(map(_wording, kinds))
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


def _wording(kind: type) -> str:
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


# --- calls ----------------------------------------------------------------------------------------


def checks_calls(thing: Thing) -> Thing:
    """Decorator of public functions and classes: a call that does not fit the signature, or what it
    says of its values, is refused before anything is done, in better words than those of Python's
    TypeError.

    Signature, type and documentation stay as they are. Of a class, its construction and its public
    methods are looked after; one with the attribute ``knows_kinds`` looks at its values itself.

    Raises:
        ArgumentError: by what is decorated: a keyword is misspelt (the nearest is given), an
            argument is missing, given twice, or one too many, or it is of another kind than its
            annotation names. Ranges, and how a word is spelt, are looked at by what is called.
    """
    if not isinstance(thing, type):
        return call_checked(thing)
    kinds = not hasattr(thing, "knows_kinds")
    for name, member in list(vars(thing).items()):
        if name == "__init__" or not name.startswith("_"):
            setattr(thing, name, _member_checked(member, kinds))
    return thing


def _member_checked(member: Any, kinds: bool) -> Any:
    if isinstance(member, (classmethod, staticmethod)):
        return type(member)(call_checked(member.__func__, kinds=kinds))
    if inspect.isfunction(member):
        return call_checked(member, kinds=kinds)
    return member


def call_checked(
    function: Thing,
    remedy: Remedy | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
    kinds: bool = True,
) -> Thing:
    """The function behind a look at how it is called; as it is, where it has that already.

    Args:
        function: or method; of a class, its ``__init__``.
        remedy: says what was meant by an unknown keyword, given it and the names there are; None
            takes `nearest`.
        check: refuses values, given what each name stands for, once all are in their places.
        kinds: refuse then what is of another kind than its annotation names.
    """
    if hasattr(function, "_call_is_checked"):
        return function
    signature = inspect.signature(function)
    called = function.__qualname__.removesuffix(".__init__")
    # At the first call, when all names of the annotations are known.
    looked_at = functools.cache(lambda: _kinds(function, signature) if kinds else {})

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            misfit = _misfit(signature, len(args), kwargs, remedy or nearest)
            raise ArgumentError(f"{called} {misfit}") from None
        if check:
            check(given)
        for name, (fits, wanted) in looked_at().items():
            if name in given and not fits(given[name]):
                got = f"{name} must be {wanted}, got {described(given[name])}"
                raise ArgumentError(f"{got}: call {called}{_usual(signature, name)}")
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
    own = len(_OWN.intersection(in_order[:1]))
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


def _usual(signature: inspect.Signature, shown: str) -> str:
    """The arguments of a usual call, or of one with a keyword that is seldom given."""
    parameters = [one for one in signature.parameters.values() if one.name not in _OWN]
    first = itertools.takewhile(lambda one: one.default in (one.empty, None), parameters)
    parts = [one.name for one in first if one.kind is one.POSITIONAL_OR_KEYWORD]
    keywords = [one for one in parameters if one.kind is one.KEYWORD_ONLY]
    parts += [f"{one.name}=..." for one in keywords if one.default is one.empty]
    if shown not in parts and f"{shown}=..." not in parts:
        parts = ["...", f"{shown}=..."]
    return f"({', '.join(parts)})"


# --- kinds of arguments ---------------------------------------------------------------------------


def _kinds(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, _Kind]:
    """Parameter -> what its annotation asks for, of those where a look at the value can tell."""
    found = {}
    for one in signature.parameters.values():
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) or one.annotation is one.empty:
            continue
        if kind := _kind(_evaluated(one.annotation, inspect.unwrap(function).__globals__)):
            found[one.name] = kind
    return found


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """What an annotation means; anything, where a name in it is known to type checkers alone."""
    try:
        return eval(annotation, names) if isinstance(annotation, str) else annotation
    except NameError:
        return Any


def _kind(annotation: Any) -> _Kind | None:
    """None: anything will do, or what will is looked at elsewhere."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [_kind(one) for one in get_args(annotation)]
        if not all(kinds):
            return None
        tests, words = zip(*kinds, strict=True)
        return (lambda value: any(fits(value) for fits in tests)), " or ".join(dict.fromkeys(words))
    if isinstance(annotation, TypeVar):
        return _kind(annotation.__bound__ or Any)
    if get_origin(annotation) is Literal:
        return _kind(Union[tuple(map(type, get_args(annotation)))])  # noqa: UP007
    wanted = get_origin(annotation) or annotation
    if wanted in _LOOKED_AT:
        return _LOOKED_AT[wanted]
    if wanted in (Any, object) or not isinstance(wanted, type) or hasattr(wanted, "_is_protocol"):
        return None
    if wanted.__module__ in _WRAPPED:
        return None
    return (lambda value: isinstance(value, wanted)), _wording(wanted)


def _several(value: object) -> bool:
    """Whether it has so many members, in order: also an array, or a tensor."""
    return isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))


def is_number(value: Any) -> bool:
    """Whether it is a number that can be computed with: no flag, no integer of too many digits."""
    return is_whole(value) or (isinstance(value, Real) and not isinstance(value, Integral))


def is_whole(value: Any) -> bool:
    """Whether it is a whole number that can be computed with: no flag, within 64 bits."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and abs(value) < _UNCOUNTED


# Where networks and optimizers are from: what may be wrapped around them is known elsewhere.
_WRAPPED = ("torch.nn.modules.module", "torch.optim.optimizer")
# What is wider, or narrower, than the class that an annotation names.
_LOOKED_AT: dict[Any, _Kind] = {
    None: (lambda value: value is None, "None"),
    bool: (lambda value: type(value).__name__ in ("bool", "bool_"), "True or False"),
    dict: (lambda value: isinstance(value, Mapping), "a Mapping"),
    float: (is_number, "a number"),
    int: (is_whole, "a whole number"),
    Path: (lambda value: isinstance(value, os.PathLike), "a PathLike"),
    **dict.fromkeys((Sequence, list, tuple), (_several, "a list")),
}
_LOOKED_AT[NoneType] = _LOOKED_AT[None]

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
    return list(itertools.chain.from_iterable(by_spelling[spelling] for spelling in close))[:3]


# --- files ----------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path to write a file under that takes the place of ``path`` when the block ends,
    complete.

    It lies in the same folder and has the same ending. After an exception ``path`` is as before and
    nothing is left; what a killed process has left of earlier tries is removed.

    Raises:
        OSError: the file cannot be written; it names ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        remove_leftovers(path.parent, path)
        with _locked(temporary):
            yield temporary
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        _settle(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        # A full disk is told without a name, and the temporary one means nothing to anyone.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, path: Path | None = None) -> None:
    """Remove what killed processes have left of files that they were writing into ``folder``, or of
    the one that was to become ``path``; what a living one is writing stays.
    """
    if os.name != "posix":  # no lock tells there whether its writer lives
        return
    for found in folder.glob(".*.tmp*"):
        name = _TEMPORARY.fullmatch(found.name)
        if name is None or found.is_symlink():
            continue
        if path is None or (name["stem"], name["suffix"]) == (path.stem, path.suffix):
            _remove_if_left(found)


def _remove_if_left(temporary: Path) -> None:
    """The system lifts a lock with the process that holds it, so what has none has no writer."""
    try:
        handle = os.open(temporary, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return
    try:
        if try_lock(handle):
            temporary.unlink(missing_ok=True)
    finally:
        os.close(handle)


@contextmanager
def _locked(temporary: Path) -> Iterator[None]:
    """A new file, which is locked inside; it follows no link, for none can be there."""
    handle = _created(temporary)
    if os.name != "posix":  # an open file could not take another one's place
        os.close(handle)
        yield
        return
    try:
        # Between the two, somebody may have taken it for what a killed process has left.
        _wait_for_lock(handle)
        while not temporary.exists():
            os.close(handle)
            handle = _created(temporary)
            _wait_for_lock(handle)
        yield
    finally:
        os.close(handle)


def _created(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _wait_for_lock(handle: int) -> None:
    """Lock an open file or folder as soon as nobody else has it, where the file system can."""
    import fcntl

    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)


def try_lock(handle: int) -> bool:
    """Lock an open file for as long as it is open, and however the process ends; False where
    another one has it. Windows knows no such locks, and there it is always True.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for this out of a folder for a moment; they wait."""
    handle = None
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        _wait_for_lock(handle)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _settle(folder: Path) -> None:
    """Have the names in a folder survive a loss of power, where the system can see to it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that cannot
            raise
    finally:
        os.close(handle)


def named_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path, where a file can be by that name; ``what`` is its parameter, for the message.

    Raises:
        ArgumentError: it is empty, or a folder.
    """
    found = Path(path)
    if not found.name or found.is_dir():
        raise ArgumentError(f"{what} must name a file, got {os.fspath(path)!r}, which is a folder")
    return found


def is_format(found: object, *known: int) -> bool:
    """Whether a file's format is one of these numbers: ``true`` is no 1, and 1.0 none either."""
    return type(found) is int and found in known


def digest_of_plain(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON file holds, whatever the order of its keys and its white space."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that it is either as before or complete, also after a kill; text as UTF-8.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def read_regular(path: Path, most: int) -> str:
    """The UTF-8 text of a regular file: a pipe or a device, which may never end, is not opened.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        ValueError: it is no regular file, larger, or no UTF-8.
        OSError: it cannot be read.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("it is a pipe, socket or device, not a file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return content.decode("utf-8")


def parse_json(
    text: str | bytes | bytearray,
    what: str = "JSON",
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The content of JSON from a file, which may be anybody's.

    Args:
        text: of the file.
        what: it is, for messages.
        pairs: makes something of the names and values of an object; None makes a dict.

    Raises:
        ValueError: it is no JSON, holds NaN or an infinity (Python would take them, and 1e999
            for one), or is nested so deeply that Python cannot read it.
    """
    try:
        return json.loads(
            text,
            parse_constant=partial(_refuse_constant, what),
            parse_float=_finite_float,
            object_pairs_hook=pairs,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(what: str, name: str) -> None:
    raise ValueError(f"{name} is no number of {what}")


def _finite_float(text: str) -> float:
    if math.isinf(found := float(text)):
        raise ValueError(f"{brief(text)} is too large a number")
    return found


# --- threads --------------------------------------------------------------------------------------


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Inside, torch uses so many CPU threads; None leaves the number as it is.

    Raises:
        ArgumentError: the number is below 1.
    """
    if count is not None and not (is_whole(count) and 1 <= count <= _MOST_THREADS):
        raise ArgumentError(
            f"threads must be 1 to {_MOST_THREADS:,}, or None to leave the number as it is, got "
            f"{brief(count)}"
        )
    import torch  # here, so that names and files wait for nobody

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- devices --------------------------------------------------------------------------------------


def as_device(name: torch.device | str | None) -> torch.device:
    """The device of a name; where tensors are made by default without one.

    Raises:
        ArgumentError: no device has this name.
    """
    import torch

    try:
        # Not torch.get_default_device, which fails in 2.6 once the default was taken back.
        return torch.empty(0).device if name is None else torch.device(name)
    except RuntimeError as problem:
        reason = str(problem).splitlines()[0]
        raise ArgumentError(f"there is no device {str(name)!r}: {reason}") from None


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
    "alone_in",
    "as_device",
    "call_checked",
    "check_batches",
    "checks_calls",
    "current_directory_importable",
    "described",
    "digest_of_plain",
    "expect",
    "from_module",
    "listed",
    "nearest",
    "parse_json",
    "read_regular",
    "remove_leftovers",
    "replacing",
    "try_lock",
    "using_threads",
    "write_atomic",
]
