"""Packages that are extras: which of them are there."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec


def missing(packages: Iterable[str]) -> list[str]:
    """Those that are not installed; none of them is imported."""
    return [name for name in packages if find_spec(name) is None]


__all__ = ["missing"]
