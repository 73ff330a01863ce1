"""Plain objects that modules hold and read sizes from: ``self.config.hidden_size``."""

from __future__ import annotations

import copy
import re
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

_NAMESPACES = (SimpleNamespace, Namespace)
_NAME = re.compile("(config|cfg|args|params|options|settings)", re.IGNORECASE)


def is_configuration(value: Any) -> bool:
    """Whether an object holds settings and nothing else: by its class, or what that is called."""
    kind: Any = type(value)
    if not _for_settings(kind) or not hasattr(value, "__dict__"):
        return False
    return issubclass(kind, _NAMESPACES) or _has_copies(value)


@lru_cache(maxsize=1024)  # asked about all that all modules hold
def _for_settings(kind: type) -> bool:
    if issubclass(kind, type) or any("__call__" in vars(one) for one in kind.__mro__):
        return False  # the class itself may be called, of course
    if issubclass(kind, _NAMESPACES):
        return True
    named = is_dataclass(kind) or _NAME.search(kind.__name__) is not None
    return named and not any(hasattr(kind, name) for name in ("__copy__", "state_dict"))


def with_entries(value: Any, entries: Mapping[str, Any]) -> Any:
    """A copy of a configuration with other values, be it frozen or not.

    Its class may say what copies are made of (``__reduce__``), and leave out what was set later.
    """
    result = copy.copy(value)
    held = {**vars(value), **entries}
    vars(result).clear()
    vars(result).update(held)
    return result


def complete(values: Iterable[Any], memo: dict[int, Any]) -> None:
    """Give the deep copies of configurations, and of those in them, what their classes leave out.

    Args:
        values: what was copied, configurations and others.
        memo: of `copy.deepcopy`: the copies, by id.
    """
    waiting, seen = list(values), set()
    while waiting:
        value = waiting.pop()
        kind: Any = type(value)
        if not _for_settings(kind) or id(value) in seen:  # as nearly all
            continue
        seen.add(id(value))
        own = memo.get(id(value))
        if own is None or own is value or not is_configuration(value):
            continue
        if _says_what_copies_hold(kind):
            held = {name: _copied(entry, memo) for name, entry in vars(value).items()}
            vars(own).update({k: v for k, v in held.items() if v is not _NOT_COPIED})
        waiting += vars(value).values()


_NOT_COPIED = object()


def _copied(entry: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(entry, memo)
    except Exception:  # as of a lock, which is why the class leaves it out
        return _NOT_COPIED


def _says_what_copies_hold(kind: type) -> bool:
    """Whether a class says what pickles are made of, which is what copies are made of, too."""
    if hasattr(kind, "__deepcopy__"):
        return False
    names = ("__reduce__", "__reduce_ex__", "__getstate__")
    return any(getattr(kind, name) is not getattr(object, name) for name in names)


def _has_copies(value: Any) -> bool:
    """Whether a copy is another object: a class may hand out one alone, or ask for arguments."""
    try:
        return vars(copy.copy(value)) is not vars(value)
    except Exception:
        return False


def holding(attribute: str) -> str:
    """The attribute that holds what a path names: ``config`` of ``config.widths[1]``."""
    return attribute.partition("[")[0].partition(".")[0]


def name_read(attribute: str) -> str:
    """The name that code reads it by: ``widths`` of ``config.widths[1]``."""
    return attribute.partition("[")[0].rpartition(".")[2]


__all__ = ["complete", "holding", "is_configuration", "name_read", "with_entries"]
