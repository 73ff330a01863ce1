"""Numbers as people read them: counts with units, percentages, times, facts by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

MISSING = "–"


def count(number: float) -> str:
    """Four significant digits with a unit: 20.04 M, 545.8 k, 812."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.99995 * size:  # what four digits round up to the next unit
            return f"{number / size:#.4g} {unit}"
    return f"{number:g} "


def size(number: float) -> str:
    """Bytes, as `count`: 6.632 kB."""
    return f"{count(number)}B"


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage."""
    if not math.isfinite(share):
        return MISSING
    return f"{100 * share:z.{digits}f} %"


def gone(after: float, before: float) -> str:
    """How much of what there was is gone, as a percentage."""
    if not before:
        return MISSING
    return percent(1 - after / before, 1)


def signed(points: float) -> str:
    """A difference, with its sign; what rounds to nothing has none."""
    if not math.isfinite(points):
        return MISSING
    text = f"{points:+z.2f}".replace("-", "−")
    if text == "+0.00":
        return "0.00"
    return text


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation where there are several: 98.25 ± 0.31."""
    if not values:
        return MISSING
    shown = f"{mean(values):z.2f}".replace("-", "−")
    if len(values) == 1:
        return shown
    return f"{shown} ± {stdev(values):.2f}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds; from the largest that is not 0."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{rest} s"]
    if hours or minutes:
        parts.insert(0, f"{minutes} min")
    if hours:
        parts.insert(0, f"{hours} h")
    return " ".join(parts)


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level: {"a": {"b": 1}} becomes {"a b": "1"}."""
    found: dict[str, str] = {}
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            found |= flat(value, f"{name} ")
        elif isinstance(value, list):
            found[name] = ", ".join(map(str, value))
        else:
            found[name] = str(value)
    return found


__all__ = [
    "MISSING",
    "count",
    "duration",
    "flat",
    "gone",
    "mean_and_spread",
    "percent",
    "signed",
    "size",
]
