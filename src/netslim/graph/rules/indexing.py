"""Which dimensions an index by tensors is of, and where the result has those that it leaves alone.

``x[:, rows, :, columns]`` puts the dimensions of the index in place of the first one if all that it
is of stand next to each other, else in front: ``x[:, :, ys, xs]`` of (N, C, H, W) is (N, C, points)
and ``x[0:1, ys, :, xs]`` is (points, ...). A mask counts for as many dimensions as it has, and as
one list of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from netslim.graph.rules.elementwise import meeting
from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.recorder import Recorder

MASKS = (torch.bool, torch.uint8)


@dataclass(frozen=True)
class Indexed:
    """What ``x[indices]`` looks like.

    Attributes:
        used: the dimensions of x that numbers or a mask pick from.
        places: the dimensions of the result that come of the index.
        labels: the labels of these, where the numbers themselves were computed for each channel.
        rest: dimension of the result -> the dimension of x that it is.
    """

    used: tuple[int, ...]
    places: range
    labels: dict[int, Vector]
    rest: dict[int, int]

    @property
    def dim(self) -> int:
        """The number of dimensions of the result."""
        return len(self.places) + len(self.rest)


def indexed(rec: Recorder, x: Tensor, indices: Sequence[Tensor | None]) -> Indexed:
    """Work out what an index does to the dimensions of ``x``."""
    used: list[int] = []
    numbers: list[Tensor] = []
    masks, d = False, 0
    for index in indices:
        span = 1
        if index is not None and index.dtype in MASKS:
            span, masks = index.dim(), True
            hold(rec, index, "a mask picks by it")
            if not span:
                hold(rec, x, "one truth picks all of it or nothing")
        elif index is not None:
            numbers.append(index)
        if index is not None:
            used += range(d, d + span)
        d += span
    # Numbers are broadcast together, a mask among them as one list: as many dimensions as that
    # gives come in place of all that are picked from.
    width = max([n.dim() for n in numbers] + [int(masks)])
    first = 0
    if used and used == list(range(used[0], used[0] + len(used))):  # they stand together
        first = used[0]
    places = range(first, first + width)
    # What stood before the first of these stays before it; the rest moves behind them.
    others = [d for d in range(x.dim()) if d not in used]
    rest = {i + width * (i >= first): d for i, d in enumerate(others)}
    labels = {first + d: v for d, v in labels_of_numbers(rec, numbers, width).items()}
    return Indexed(tuple(used), places, labels, rest)


def labels_of_numbers(rec: Recorder, numbers: Sequence[Tensor], width: int) -> dict[int, Vector]:
    """The labels that numbers hand on to what they pick, broadcast to ``width`` dimensions.

    Numbers that the model holds are no channels of what they pick, so theirs stay.
    """
    for t in numbers:
        if rec.get(t).weight:
            hold(rec, t, "its numbers pick what they are no channels of")
    computed = [t for t in numbers if not rec.get(t).weight]
    met = {d: meeting(rec, computed, d, width, "an index") for d in range(width)}
    return {d: vector for d, vector in met.items() if vector is not None}


def hold(rec: Recorder, tensor: Any, reason: str) -> None:
    """No dimension of a tensor shrinks; anything else has none."""
    for vector in rec.get(tensor).dims.values():
        rec.freeze(vector, reason)
