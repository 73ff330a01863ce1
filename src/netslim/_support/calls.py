"""Calls of public functions: one that does not fit is refused in better words than Python's."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from netslim._support.arguments import described, is_number, is_whole, wording
from netslim._support.names import nearest
from netslim._support.plurals import many
from netslim.errors import ArgumentError

Thing = TypeVar("Thing", bound=Callable[..., Any])
Remedy = Callable[[str, list[str]], str]
_Kind = tuple[Callable[[Any], bool], str]  # whether a value will do, and what will in words

_OWN = {"self", "cls"}


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
    bound = _binder(signature)
    called = function.__qualname__.removesuffix(".__init__")
    # At the first call, when all names of the annotations are known.
    looked_at = functools.cache(lambda: _kinds(function, signature) if kinds else {})

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            given = bound(args, kwargs)
        except TypeError:
            misfit = _misfit(signature, args, kwargs, remedy or nearest, looked_at())
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


def _binder(
    signature: inspect.Signature,
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Mapping[str, Any]]:
    """As ``signature.bind(...).arguments``, ten times faster where no argument is a rest of others.

    What is called a hundred thousand times in a training should not notice that it is looked at.
    """
    parameters = signature.parameters.values()
    in_order = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    by_name = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    needed = {one.name for one in parameters if one.default is one.empty}
    known = {*in_order, *by_name}

    def others(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = signature.bind(*args, **kwargs).arguments
        return found

    def plain(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        given: Mapping[str, Any] = {**dict(zip(in_order, args, strict=False)), **kwargs}
        fits = len(given) == len(args) + len(kwargs) and needed <= given.keys() <= known
        if not fits:
            return others(args, kwargs)
        return given

    if len(known) < len(signature.parameters):
        return others
    return plain


def _misfit(
    signature: inspect.Signature,
    placed: Sequence[Any],
    keywords: Collection[str],
    remedy: Remedy,
    fitting: Mapping[str, _Kind],
) -> str:
    """Why a call does not fit: a misspelt keyword comes before the missing one that it stands for.

    Args:
        signature: of what was called.
        placed: arguments that were given by their place, ``self`` among them.
        keywords: the names that were given.
        remedy: as of `call_checked`.
        fitting: from `_kinds`.
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
    if len(placed) > len(in_order) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        order, got = ", ".join(in_order[own:]), ", ".join(map(described, placed[own:]))
        takes = many(len(in_order) - own, "argument")
        others = [one.name for one in named if one.kind is one.KEYWORD_ONLY]
        more = _by_name(placed[own:], others, fitting)
        return f"takes {takes} in order, ({order}), got {len(placed) - own}: {got}{more}"
    given = in_order[: len(placed)]
    twice = [name for name in given if name in keywords]
    if twice:
        return f"got {twice[0]} twice, by its place and by its name"
    needed = [one.name for one in named[own:] if one.default is one.empty]
    missing = [name for name in needed if name not in given and name not in keywords]
    return f"needs {' and '.join(missing)}: call it with ({', '.join(needed)})"


def _by_name(given: Iterable[Any], names: Sequence[str], fitting: Mapping[str, _Kind]) -> str:
    """How what has no place is given: by the name of its class, or by any."""
    if not names:
        return ""
    kinds = {type(value).__name__ for value in given}
    meant = [name for name in names if name in fitting and kinds & {*fitting[name][1].split()}]
    shown = ", ".join(f"{name}=..." for name in meant or names[:1])
    return f"; give the others by name, such as {shown}"


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
        if kind := kind_of(_evaluated(one.annotation, inspect.unwrap(function).__globals__)):
            found[one.name] = kind
    return found


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """What an annotation means; anything, where a name in it is known to type checkers alone."""
    try:
        return eval(annotation, names) if isinstance(annotation, str) else annotation
    except NameError:
        return Any


def kind_of(annotation: Any) -> _Kind | None:
    """None: anything will do, or what will is looked at elsewhere."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind_of(one) for one in get_args(annotation)]
        if not all(kinds):
            return None
        tests, words = zip(*kinds, strict=True)
        return (lambda value: any(fits(value) for fits in tests)), " or ".join(dict.fromkeys(words))
    if isinstance(annotation, TypeVar):
        return kind_of(annotation.__bound__ or Any)
    if get_origin(annotation) is Literal:
        return kind_of(Union[tuple(map(type, get_args(annotation)))])  # noqa: UP007
    wanted = get_origin(annotation) or annotation
    if wanted in _LOOKED_AT:
        return _LOOKED_AT[wanted]
    if wanted in (Any, object) or not isinstance(wanted, type) or hasattr(wanted, "_is_protocol"):
        return None
    if wanted.__module__ in _WRAPPED:
        return None
    return (lambda value: isinstance(value, wanted)), wording(wanted)


def _several(value: object) -> bool:
    """Whether it has so many members, in order: also an array, or a tensor."""
    return isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))


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

__all__ = ["Thing", "call_checked", "checks_calls", "kind_of"]
