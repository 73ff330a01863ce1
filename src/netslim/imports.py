"""Functions of a user's own modules by name: ``package.module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from netslim.errors import NetslimError


def from_module(name: str, error: type[NetslimError], hint: str = "") -> Callable[..., Any]:
    """The function of this name; the current directory is searched first.

    Args:
        name: ``package.module:function``.
        error: what to raise.
        hint: sentences for whoever names a module that is not there.

    Raises:
        NetslimError: of the class ``error``: there is no such module, it cannot be imported, or it
            has no such function; the nearest are given.
    """
    module_name, _, function_name = name.partition(":")
    with current_directory_importable():
        module = _module(module_name, name, error, hint)
    function = getattr(module, function_name, None)
    if callable(function):
        return function
    near = get_close_matches(
        function_name, [n for n, value in vars(module).items() if callable(value)], n=3
    )
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    where = getattr(module, "__file__", "built in")
    raise error(f"the module {module_name} ({where}) has no function {function_name!r}.{meant}")


def _module(module_name: str, name: str, error: type[NetslimError], hint: str) -> ModuleType:
    what = f"the module {module_name} of {name}"
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{module_name}.".startswith(f"{missing.name}."):
            raise error(f"{what} could not be imported: {missing}") from missing
        raise error(
            f"there is no module {missing.name!r}, which {name} names: it must be installed, "
            f"or lie in the current directory ({Path.cwd()}).{hint}"
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


__all__ = ["current_directory_importable", "from_module"]
