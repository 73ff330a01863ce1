"""Plain objects that modules hold and read sizes from: ``self.config.hidden_size``.

One configuration is held by many modules, and after a cut each reads sizes of its own from it. So a
module gets an object that has its own values of these and everything else from the one that it
held: who sets ``model.config.flag`` later sets it for all. It is of the same class, by a class
below that: the two objects have one ``__dict__``, and the module's own values are in slots, which
Python looks up before that. To whoever copies it by hand, lists it or writes it to a file it is a
plain object of the user's class with all its values.
"""

from __future__ import annotations

import copy
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from types import GetSetDescriptorType, SimpleNamespace
from typing import Any

_NAME = re.compile("(config|cfg|args|params|options|settings)", re.IGNORECASE)


def is_configuration(value: Any) -> bool:
    """Whether an object holds settings and nothing else: by its class, or what that is called."""
    kind = type(value)
    if not hasattr(value, "__dict__") or callable(value) or isinstance(value, type):
        return False
    if isinstance(value, (SimpleNamespace, Namespace)):
        return True
    named = is_dataclass(kind) or _NAME.search(kind.__name__) is not None
    return named and not any(hasattr(kind, name) for name in ("__copy__", "state_dict"))


def with_entries(value: Any, entries: Mapping[str, Any]) -> Any:
    """A copy of a configuration with other values, be it frozen or not."""
    result = copy.copy(value)
    vars(result).update(entries)
    return result


def sharing(value: Any, entries: Mapping[str, Any]) -> Any:
    """A configuration with other values, and everything else from then on as ``value`` has it.

    A copy where the class has a ``__dict__`` that cannot be another one, as of `SimpleNamespace`,
    or looks its attributes up in code of its own, as of Hugging Face, which `torch.compile` could
    not follow then.
    """
    base, own = shared_by(value), {**own_entries(value), **entries}
    kind: Any = type(base)
    dicts = [vars(each)["__dict__"] for each in kind.__mro__ if "__dict__" in vars(each)]
    own_code = kind.__getattribute__ is not object.__getattribute__
    if own_code or not dicts or not isinstance(dicts[-1], GetSetDescriptorType):
        return with_entries(value, entries)
    result: Any = object.__new__(_sharing_class(kind, tuple(sorted(own))))
    dicts[-1].__set__(result, vars(base))
    for name, entry in {**own, _BASE: base}.items():
        object.__setattr__(result, name, entry)
    return result


def shared_by(value: Any) -> Any:
    """The configuration that has what this one does not have for itself."""
    if _slots(value):
        return _in_slot(value, _BASE)
    return value


def own_entries(value: Any) -> dict[str, Any]:
    """What a configuration has for itself, where another one has the rest."""
    return {name: _in_slot(value, name) for name in _slots(value)[1:]}


_BASE = "_netslim_base"


def _slots(value: Any) -> tuple[str, ...]:
    """`_BASE` and the names of what is its own; () of a configuration that shares nothing."""
    slots = vars(type(value)).get("__slots__", ())
    if isinstance(slots, tuple) and slots[:1] == (_BASE,):
        return slots
    return ()


def _in_slot(value: Any, name: str) -> Any:
    """Past whatever the user's class does where an attribute is asked for."""
    return vars(type(value))[name].__get__(value)


@lru_cache(maxsize=64)
def _sharing_class(kind: type[Any], names: tuple[str, ...]) -> type:
    """The class below one that has slots of these names; see the head of this file."""

    def listed(self: Any) -> dict[str, Any]:
        return {**vars(shared_by(self)), **own_entries(self)}

    def plain(self: Any, protocol: Any) -> Any:
        return with_entries(shared_by(self), own_entries(self)).__reduce_ex__(protocol)

    def copied(self: Any, memo: dict[int, Any]) -> Any:
        own = copy.deepcopy(own_entries(self), memo)
        return sharing(copy.deepcopy(shared_by(self), memo), own)

    members = {
        "__slots__": (_BASE, *names),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__class__": property(lambda self: kind),
        "__dict__": property(listed),
        "__reduce_ex__": plain,
        "__deepcopy__": copied,
    }
    return type(kind.__name__, (kind,), members)


def holding(attribute: str) -> str:
    """The attribute that holds what a path names: ``config`` of ``config.widths[1]``."""
    return attribute.partition("[")[0].partition(".")[0]


def name_read(attribute: str) -> str:
    """The name that code reads it by: ``widths`` of ``config.widths[1]``."""
    return attribute.partition("[")[0].rpartition(".")[2]


__all__ = [
    "holding",
    "is_configuration",
    "name_read",
    "own_entries",
    "shared_by",
    "sharing",
    "with_entries",
]
