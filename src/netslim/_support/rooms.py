"""Rooms whose names are imported when they are asked for, so that help need not wait for torch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping


def imported_later(room: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """A `__getattr__` for a package: its names, and its modules, are imported when asked for.

    Args:
        room: the package, by its dotted name.
        homes: name -> the module that it is from: within the package, or with a dot before it,
            from netslim down.

    Raises:
        AttributeError: by what is returned, for any other name.
    """

    def found(name: str) -> object:
        if name in homes:
            home = homes[name]
            module = f"{room}.{home}"
            if home.startswith("."):
                module = f"netslim{home}"
            value = getattr(importlib.import_module(module), name)
            setattr(sys.modules[room], name, value)
            return value
        if not name.startswith("_") and importlib.util.find_spec(f"{room}.{name}"):
            return importlib.import_module(f"{room}.{name}")
        raise AttributeError(f"module {room!r} has no attribute {name!r}")

    return found


__all__ = ["imported_later"]
