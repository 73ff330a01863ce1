"""The networks of a run, a row each, and how each compares to the unpruned one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from netslim.report.numbers import MISSING, count, percent, signed, size

Row = Mapping[str, Any]
METRICS = {  # key of a row: heading, what one may want to know about it
    "accuracy": ("test accuracy", "difference in percentage points"),
    "params": ("parameters", ""),
    "macs": ("MACs", "multiply-accumulates of one image"),
    "size_bytes": ("size on disk", ""),
    "latency_ms": ("latency", "median of one forward pass"),
}
_ONLY_ON_PAGE = {
    "top5": ("top-5", "the class is among the first five"),
    "peak_bytes": ("peak memory", "bytes of inputs and intermediate tensors alive at once"),
}
_PLACES = ("accuracy", "top5", "params", "macs", "size_bytes", "peak_bytes", "latency_ms")
ON_PAGE = {key: {**METRICS, **_ONLY_ON_PAGE}[key] for key in _PLACES}
_SHARES = ("accuracy", "top5")
_FILES = ("onnx", "int8")  # what keys of rows begin with that quantize stages leave


def reference(rows: Sequence[Row]) -> Row:
    """The unpruned network that ratios refer to."""
    return next((row for row in rows if row["key"] == "before"), rows[0])


def networks(rows: Sequence[Row]) -> list[Row]:
    """The rows without those of files for other runtimes: the last is the network handed on."""
    return [row for row in rows if not row["key"].startswith(_FILES)] or list(rows)


def value(row: Row, key: str) -> str:
    """A figure of a row, with its unit."""
    if key in _SHARES:
        return percent(row[key])
    if key == "latency_ms":
        ms = median(row)
        if ms is None or math.isnan(ms):
            return MISSING
        return f"{ms:#.3g} ms"
    if row.get(key) is None:
        return MISSING
    if key in ("size_bytes", "peak_bytes"):
        return size(row[key])
    return count(row[key])


def ratio(row: Row, beside: Row, key: str) -> str:
    """How a figure compares to the same one of another row: a ratio, for shares a difference."""
    if row is beside:
        return ""
    if key in _SHARES:
        return signed(100 * (row[key] - beside[key]))
    part = part_left(row, beside, key)
    if part is None:
        return MISSING
    if part < 1.5:
        return f"×{part:.3f}"
    return f"×{part:.2f}"


def part_left(row: Row, beside: Row, key: str) -> float | None:
    """A figure over the same one of another row; None where that says nothing."""
    if key in _SHARES:
        return None
    ours, theirs = row.get(key), beside.get(key)
    if key == "latency_ms":
        ours, theirs = median(row), median(beside)
    if ours is None or not theirs or not math.isfinite(ours / theirs):
        return None
    return float(ours / theirs)


def median(row: Row) -> Any:
    """Milliseconds; not a number where latency was not measured, None where it is damaged."""
    measured = row.get("latency_ms")
    if measured is None:
        return math.nan
    if not isinstance(measured, dict):
        return None
    return measured.get("median")


def spread(row: Row) -> str:
    """The quartiles of the latency, where there are some."""
    found = row.get("latency_ms") or {}
    if not {"low", "high"} <= found.keys():
        return ""
    return f"({found['low']:#.3g} to {found['high']:#.3g})"


__all__ = [
    "METRICS",
    "ON_PAGE",
    "Row",
    "median",
    "networks",
    "part_left",
    "ratio",
    "reference",
    "spread",
    "value",
]
