"""Runs whose figures are made but not drawn: in a small run that takes longer than the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def not_drawing() -> Iterator[None]:
    """Inside, a figure is written as an empty picture."""
    savefig = "matplotlib.figure.Figure.savefig"
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what it patched
        patch.setattr(savefig, lambda self, file, **_: file.write(b"<svg></svg>"))
        yield
