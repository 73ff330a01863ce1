"""Sensitivities made up by hand."""

from __future__ import annotations

from netslim.methods import Sensitivity
from netslim.methods.sensitivity_result import Row


def made(drops: dict[str, list[float]], size: int = 4) -> Sensitivity:
    """Group -> drops at 25, 50 and 75 %."""
    rows = []
    for name, values in drops.items():
        for removed, drop in enumerate(values, 1):
            rows.append(
                Row(
                    name,
                    size,
                    removed / 4,
                    removed * size // 4,
                    0.9 - drop,
                    drop,
                    removed,
                    2 * removed,
                )
            )
    return Sensitivity(0.9, tuple(rows), 100, 200, "print", settings={"model": {"name": "m"}})
