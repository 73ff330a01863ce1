"""Labels through changes of shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from netslim.graph.tracing.atoms import Vector, distinct
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.sizes import symbols


def split_vector(
    rec: Recorder, vector: Vector, shape: tuple[int, ...], keep: int, what: str
) -> Vector:
    """Lay ``vector`` out as ``shape``; axis ``keep`` may shrink, so the others are tied across.
    Returns its labels.
    """
    matrix = np.moveaxis(vector.reshape(shape), keep, 0).reshape(shape[keep], -1)
    first = matrix[:, 0]
    if matrix.shape[1] > 1:
        others = matrix[:, 1:]
        spread = np.broadcast_to(first[:, None], others.shape).reshape(-1)
        rec.atoms.tie(
            spread,
            others.reshape(-1),
            lambda: f"it is tied to constant channels by {what}{rec.where()}",
        )
    return first


def reshape(
    rec: Recorder,
    dims: Mapping[int, Vector],
    before: tuple[int, ...],
    after: tuple[int, ...],
    asked: Sequence[Any] | None,
) -> dict[int, Vector]:
    """Labels after a reshape from ``before`` to ``after``.

    The two shapes are matched in the smallest blocks of equal product. In a block with a labelled
    dimension one output dimension may shrink; sizes that the user's code fixes (``asked``; None for
    -1 and where PyTorch computed them) cannot.
    """
    out: dict[int, Vector] = {}
    asked = (
        [None] * len(after)
        if asked is None
        else [None if a is None or int(a) == -1 else a for a in asked]
    )
    for block_in, block_out in _blocks(before, after):
        live = [d for d in block_in if d in dims]
        if live:
            out.update(_block(rec, dims, before, after, asked, block_in, block_out, live))
        else:
            for d in block_out:
                rec.constrain(asked[d], None, after[d])
    for d in (d for d, n in enumerate(after) if n == 1):
        rec.constrain(asked[d], None, 1)
    return out


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    left = [d for d, n in enumerate(before) if n != 1]
    right = [d for d, n in enumerate(after) if n != 1]
    blocks = []
    i = j = 0
    while i < len(left) and j < len(right):
        first_i, first_j = i, j
        a, b = before[left[i]], after[right[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * before[left[i]], i + 1
            else:
                b, j = b * after[right[j]], j + 1
        blocks.append((left[first_i:i], right[first_j:j]))
    return blocks


def _block(
    rec: Recorder,
    dims: Mapping[int, Vector],
    before: tuple[int, ...],
    after: tuple[int, ...],
    asked: Sequence[Any],
    block_in: list[int],
    block_out: list[int],
    live: list[int],
) -> dict[int, Vector]:
    kept = (
        live[0]
        if len(live) == 1
        else max(
            live,
            key=lambda d: (rec.atoms.owned(dims[d]), len(distinct(rec.atoms.find(dims[d]))), d),
        )
    )
    for d in [d for d in live if d != kept]:
        rec.atoms.freeze(dims[d], f"two channel dimensions merge{rec.where()}")
    place = [1] * len(block_in)
    place[block_in.index(kept)] = -1
    spread = np.broadcast_to(dims[kept].reshape(place), [before[d] for d in block_in])
    cells = spread.reshape([after[d] for d in block_out])
    axis = _shrinking(rec, cells, [asked[d] for d in block_out])
    if axis is None:
        rec.atoms.freeze(dims[kept], f"a reshape has its sizes written into the code{rec.where()}")
        return {}
    for i, d in enumerate(block_out):
        if i != axis:
            rec.constrain(asked[d], None, after[d])
    vector = split_vector(rec, cells.reshape(-1), cells.shape, keep=axis, what="a reshape")
    d = block_out[axis]
    rec.constrain(asked[d], vector, after[d])
    return {d: vector}


def _shrinking(rec: Recorder, cells: Vector, asked: list[Any]) -> int | None:
    """Which axis of a block may shrink: first one that needs no new tie, then by `_freedom`, then
    the longest.
    """
    candidates = []
    for axis in range(cells.ndim):
        freedom = _freedom(rec, asked[axis])
        if freedom or cells.ndim == 1:
            moved = np.moveaxis(cells, axis, 0).reshape(cells.shape[axis], -1)
            candidates.append(
                (bool((moved == moved[:, :1]).all()), freedom, cells.shape[axis], axis)
            )
    return max(candidates)[3] if candidates else None


def _freedom(rec: Recorder, asked: Any) -> int:
    """3: -1, or PyTorch computed it; 2: read from a shape; 1: a module attribute; 0: a number in
    the code.
    """
    if asked is None:
        return 3
    expr = rec.mine(asked)
    if expr is None:
        return 0
    return 2 if any(s[0] == "size" for s in symbols(expr)) else 1
