"""Words and figures that the table and the explanations share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from netslim.graph.tracing.atoms import Vector

TEACH = "netslim.register_rule teaches netslim an operator"


def amount(number: int, what: str) -> str:
    """``1 channel``, ``1,024 channels``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def enumerated(names: Sequence[str], most: int, last: str = "and") -> str:
    """``a, b and c``; beyond ``most`` names ``a, b and 7 more``."""
    shown = list(names)
    if len(names) > most:
        shown = [*names[: most - 1], f"{len(names) - most + 1} more"]
    *others, end = shown
    if not others:
        return end
    return f"{', '.join(others)} {last} {end}"


def shape(sizes: tuple[int, ...]) -> str:
    """``64 x 3 x 7 x 7``."""
    return " x ".join(map(str, sizes)) or "a single number"


def entries(positions: Vector) -> str:
    """``entries 0 to 3, 8 and 10 to 11``."""
    if len(positions) == 1:
        return f"entry {positions[0]}"
    runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"entries {enumerated(spans, 6)}"
