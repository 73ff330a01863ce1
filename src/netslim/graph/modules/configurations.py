"""Plain objects that modules hold and read sizes from: ``self.config.hidden_size``."""

from __future__ import annotations

import copy
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import SimpleNamespace
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
    own = any(hasattr(kind, name) for name in ("__copy__", "state_dict"))
    return named and not own and _has_copies(value)


def with_entries(value: Any, entries: Mapping[str, Any]) -> Any:
    """A copy of a configuration with other values, be it frozen or not."""
    result = copy.copy(value)
    vars(result).update(entries)
    return result


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


__all__ = ["holding", "is_configuration", "name_read", "with_entries"]
