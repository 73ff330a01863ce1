"""Where tables that were measured before are kept."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from netslim.errors import PlanError
from netslim.measure.table.latency_table import FORMAT, LatencyTable


def cached(
    about: Mapping[str, Any], cache: bool | str | Path, measure: Callable[[], LatencyTable]
) -> LatencyTable:
    """The table that is kept for what `about` says, else what `measure` gives, which is then kept.

    A file that cannot be read is measured anew, with a warning; a folder that cannot be written
    gives a warning, too.
    """
    if cache is False:
        return measure()
    path = (folder() if cache is True else Path(cache)) / f"{key(about)}.json"
    if path.exists():
        try:
            return _fitting(LatencyTable.load(path), about)
        except PlanError as problem:
            warnings.warn(f"{problem}; it is measured anew", stacklevel=3)
    table = measure()
    try:
        table.save(path)
    except OSError as problem:
        warnings.warn(
            f"the latency table could not be kept in {path.parent}: {problem}", stacklevel=3
        )
    return table


def _fitting(table: LatencyTable, about: Mapping[str, Any]) -> LatencyTable:
    if any(getattr(table, name) != value for name, value in about.items()):
        raise PlanError("the latency table in the cache is not the one that its name says")
    return table


def key(about: Mapping[str, Any]) -> str:
    """The name under which a table is kept."""
    plain = json.dumps({"format": FORMAT, **about}, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:32]


def folder() -> Path:
    """``$NETSLIM_CACHE/latency``, or the one in the user's cache folder."""
    return Path(os.environ.get("NETSLIM_CACHE") or _user_folder() / "netslim") / "latency"


def _user_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


__all__ = ["cached", "folder", "key"]
