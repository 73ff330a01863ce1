"""How what removed channels emit is made up for, by name; nothing here waits for torch."""

from typing import Literal

FoldWay = Literal["constant", "linear", "sequential"]
BEST: Literal["nearest"] = "nearest"  # what is taken with data where nothing is said
NEAREST: tuple[FoldWay, ...] = ("sequential", "linear")  # the last where nobody can judge

__all__ = ["BEST", "NEAREST", "FoldWay"]
