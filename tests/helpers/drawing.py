"""Runs whose figures are not drawn: in a small run that takes longer than the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FIGURES = {
    "figures": ("curves", "sensitivity", "sensitivity_lines", "front", "tradeoff"),
    "channel_figures": ("network", "scores", "scales", "selection", "histograms"),
}


def empty(*_: Any, **__: Any) -> bytes:
    return b"<svg></svg>"


@contextmanager
def not_drawing() -> Iterator[None]:
    """Inside, every figure is an empty picture."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what it patched
        for module, names in FIGURES.items():
            for name in names:
                patch.setattr(f"netslim.report.{module}.{name}", empty)
        yield
