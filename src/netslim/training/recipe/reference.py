"""Every key that a recipe may have, from the classes that declare them; torch is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from netslim.selection.options import declared
from netslim.selection.options import plain as plain_value
from netslim.training.recipe.schema import (
    KINDS,
    METHODS,
    Recipe,
    SparsityOptions,
    flat,
    option_types,
    otherwise,
)

_STAGE = "stages.NAME"


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    Attributes:
        key: its dotted name; NAME stands for that of a stage.
        stages: kinds of the stages that have it; none of a key outside of stages.
        method: the sparsity method that has it, or nothing.
        type: in the words of YAML.
        default: where nothing is said; None also where it has to be said.
        needed: whether it has to be said.
        help: what it means.
    """

    key: str
    stages: tuple[str, ...]
    method: str
    type: str
    default: Any
    needed: bool
    help: str


def keys() -> list[Key]:
    """Every key, those of a recipe first, then stage by stage; what several kinds of stages have in
    common is there once.
    """
    found: dict[Any, Key] = {}
    for one in _of(Recipe, "", ""):
        found[one.key, one.method, one.help] = one
    for name, kind in KINDS.items():
        for one in _of(kind, f"{_STAGE}.", name):
            known = found.get((one.key, one.method, one.help), one)
            stages = tuple(dict.fromkeys([*known.stages, name]))
            found[one.key, one.method, one.help] = replace(one, stages=stages)
    return list(found.values())


def _of(kind: type[Any], prefix: str, stage: str, method: str = "") -> Iterator[Key]:
    """The keys of a class, those of its sections included."""
    types = option_types(kind)
    for item in fields(kind):
        inner = flat(item)
        if inner is not None:
            preset = _default(item)
            for name, option in declared(inner).items():
                default = getattr(preset, name, preset)
                yield _key(option, types[name], default, f"{prefix}{name}", stage, method)
            continue
        yield from _one(item, types[item.name], prefix, stage, method)


def _one(item: Field[Any], hint: Any, prefix: str, stage: str, method: str) -> Iterator[Key]:
    section = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
    name = f"{prefix}{item.name}"
    if item.name in ("kwargs", "stages"):  # which have the keys of a network, and of stages
        return
    if section is SparsityOptions:
        for known, own in METHODS.items():
            yield from _of(own, f"{name}.", stage, known)
    elif isinstance(section, type):
        yield from _of(section, f"{name}.", stage, method)
    else:
        yield _key(item, hint, _default(item), name, stage, method)


def _default(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def _key(item: Field[Any], hint: Any, default: Any, name: str, stage: str, method: str) -> Key:
    stages = tuple(filter(None, [stage]))
    needed = default is MISSING and not otherwise(item)
    if default is MISSING:
        default = None
    if default is not None:
        default = plain_value(default)
    text = item.metadata.get("help", "the method")
    return Key(name, stages, method, _worded(hint), default, needed, text)


_WORDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    NoneType: "null",
}


def _worded(hint: Any) -> str:
    """A type in the words of YAML."""
    origin = get_origin(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return " | ".join(map(str, get_args(hint)))
    if origin in (list, tuple) or getattr(origin, "__name__", "") == "Iterable":
        return f"list of {_worded(get_args(hint)[0])}"
    if getattr(origin, "__name__", "") in ("dict", "Mapping"):
        return "mapping"
    parts = [_worded(part) for part in get_args(hint)]
    return " | ".join(dict.fromkeys(filter(None, parts)))


__all__ = ["Key", "keys"]
