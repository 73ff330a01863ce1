"""Labels through changes of shape.

A reshape may take a dimension of channels apart: 12 channels become 3 heads of 4, ``[[0 1 2 3]
[4 5 6 7] [8 9 10 11]]``. After a cut the same code must run on what is left, and what is left must
be such a matrix again, so single channels cannot go: either whole rows go (2 heads of 4) or whole
columns (3 heads of 3). Both at once are right too, but then a channel belongs to a row and to a
column, and a class could not be told by one number: of attention a second run learns the other
(head_widths.py). So one of the dimensions is chosen
that may shrink, and the others are *tied across*: if columns may go, the labels become those of the
first row, [0 1 2 3], and 0 is tied to 4 and 8, 1 to 5 and 9, and so on. `split_vector` does that;
channel shuffle, attention heads, grouped convolutions, ``chunk`` and recurrent gates all end there.

Which one may shrink (`_shrinking`) is asked in this order: one that is tied so already, since
nothing is lost then; heads; one whose size the code leaves open (-1) before one it read from a
shape before one it keeps in an attribute; the one that leaves most units. A size written into the
code cannot shrink.

Heads are what the last dimension of a sequence (batch, tokens, channels) is taken apart into first:
``view(b, n, heads, width)``. Code says the two sizes in many ways (-1, two attributes, ``embed //
heads``), and queries, keys and values, which must agree, often in different ones. So that is not
asked: whole heads go, which is exact, as the width of a head is not. Where the width of a head is
told by other channels (``c // heads``, with the ``c`` of the stream), these go with the heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from netslim.graph.tracing.atoms import Vector, among, distinct, numbered
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.sizes import Symbol, evaluate, symbols

_LAYOUTS = ("view", "reshape", "unflatten", "flatten", "view_as", "reshape_as")


def split_vector(
    rec: Recorder, vector: Vector, shape: tuple[int, ...], keep: int, what: str
) -> Vector:
    """Lay ``vector`` out as ``shape``, whose axis ``keep`` may shrink; returns its labels.

    The other axes are tied across.
    """
    if shape[keep] == len(vector):  # as nearly always in depthwise convolutions
        return vector
    # One row for each entry of the axis that may shrink: the whole row goes with its first entry.
    order = [keep, *(axis for axis in range(len(shape)) if axis != keep)]
    matrix = vector.reshape(shape).transpose(order).reshape(shape[keep], -1)
    first, others = matrix[:, 0], matrix[:, 1:]
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
    asked = _fixed(asked, len(after))
    for block_in, block_out in _blocks(before, after):
        live = [d for d in block_in if d in dims]
        if live:
            out.update(_block(rec, dims, before, after, asked, block_in, block_out, live))
        else:
            for d in block_out:
                rec.constrain(asked[d], None, after[d])
    for d, size in enumerate(after):
        if size == 1:
            rec.constrain(asked[d], None, 1)
    # Sizes of 1 are in no block. Channels that change places with one may pass a place that is
    # alone only because these inputs are small: (n, 1, c) to (n, c, 1) moves nothing here, and
    # mixes places with channels wherever there are more of them. So other_sizes.py is to have a
    # look.
    if len(dims) == len(out) == 1 and _pass_each_other(before, after, *dims, *out):
        rec.mixes += [rec.where()] * _is_written(rec)
    return out


def _pass_each_other(before: tuple[int, ...], after: tuple[int, ...], old: int, new: int) -> bool:
    """Whether channels change places with a dimension of one entry, which may be one place."""
    ahead = after[:new].count(1) - before[:old].count(1)
    behind = after[new + 1 :].count(1) - before[old + 1 :].count(1)
    return ahead * behind < 0


def _fixed(asked: Sequence[Any] | None, number: int) -> list[Any]:
    """The sizes that the code fixes, None for the others."""
    if asked is None:
        return [None] * number
    return [None if size is None or int(size) == -1 else size for size in asked]


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The dimensions that become each other.

    From (2, 12, 5) to (2, 3, 4, 5) these are 0 and 0, 1 and 1 with 2, 2 and 3. Those of size 1 are
    left out: they may stand anywhere.
    """
    left = [d for d, n in enumerate(before) if n != 1]
    right = [d for d, n in enumerate(after) if n != 1]
    blocks = []
    i = j = 0
    while i < len(left) and j < len(right):
        first_i, first_j = i, j
        a, b = before[left[i]], after[right[j]]
        i, j = i + 1, j + 1
        # The side that is behind takes one more dimension, until both hold as many entries.
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
    """The labels of one block: those of one dimension spread over it, then split again."""
    kept = _remaining(rec, dims, live)
    for d in live:
        if d != kept:
            rec.freeze(dims[d], "two channel dimensions merge")
    # Lay the labels of one dimension out over the block, the same at all places of the others, and
    # read them in the new shape: that shows which entry of the result belongs to which channel.
    place = [1] * len(block_in)
    place[block_in.index(kept)] = -1
    # For instance two channels of three places, a a a b b b. Read as (2, 3) each row is a channel;
    # read as (3, 2), [[a a] [a b] [b b]], the middle row holds both, and `split_vector` ties them.
    spread = np.broadcast_to(dims[kept].reshape(place), [before[d] for d in block_in])
    cells = spread.reshape([after[d] for d in block_out])
    # The last dimension of a sequence, taken apart by itself: these may be heads.
    axis = None
    if block_in == [len(before) - 1] and len(before) > 2 and block_out[-1] == len(after) - 1:
        axis = _heads(rec, cells, [asked[d] for d in block_out], dims[kept])
        if axis is None:
            axis = _heads_with_others(rec, cells, [asked[d] for d in block_out])
    heads = axis is not None and not rec.narrows_heads
    if axis is None:
        axis = _shrinking(rec, cells, [asked[d] for d in block_out])
    if axis is None:
        sizes = [after[d] for d in block_out]
        rec.written(
            dims[kept], "a reshape has its sizes written into the code", sizes, rec.remedy()
        )
        return {}
    for i, d in enumerate(block_out):
        if i != axis:
            rec.constrain(asked[d], None, after[d])
    _note_mixing(rec, cells, spread=any(d not in dims for d in block_in))
    vector = split_vector(rec, cells.reshape(-1), cells.shape, keep=axis, what="a reshape")
    if heads:
        rec.heads = np.concatenate([rec.heads, vector])
    d = block_out[axis]
    rec.constrain(asked[d], vector, after[d])
    return {d: vector}


def _note_mixing(rec: Recorder, cells: Vector, spread: bool) -> None:
    """Note where the code lays out, anew, channels that were merged with places.

    ``spread`` says whether they meet dimensions here that are not channels: places, or heads and
    the like, which cannot be told from places. PyTorch's own layouts, as within a matrix product,
    fit every size.
    """
    if not _is_written(rec):
        return
    atoms = set(distinct(cells.reshape(-1)).tolist())
    if cells.ndim == 1:
        if spread:
            rec.merged |= atoms
        return
    mixed = spread or not atoms.isdisjoint(rec.merged)
    if mixed and len(atoms) < cells.size:
        rec.mixes.append(rec.where())


def _is_written(rec: Recorder) -> bool:
    """Whether the user's code itself asked for the shape."""
    return not rec.calls or rec.calling in _LAYOUTS


def _remaining(rec: Recorder, dims: Mapping[int, Vector], live: list[int]) -> int:
    """Which of several labelled dimensions that merge keeps its labels: one with most to cut.

    One of which something stays already, as the windows of a mask that the model holds, has least.
    Heads go before what they may merge with: where all of them read the values of a single one, as
    in multi-query attention, those are no heads and have their width, which a second run learns.
    """
    if len(live) == 1:
        return live[0]

    def worth(d: int) -> tuple[bool, bool, bool, int, int]:
        roots = distinct(rec.atoms.find(dims[d]))
        heads = bool(among(roots, rec.atoms.find(rec.heads)).any())
        return not rec.atoms.held(dims[d]), rec.atoms.owned(dims[d]), heads, len(roots), d

    return max(live, key=worth)


def _heads(rec: Recorder, cells: Vector, asked: list[Any], whole: Vector) -> int | None:
    """The first axis of several that may shrink, if sizes elsewhere have no say in any of them.

    In a run in which heads become narrower it is the last.
    """
    if not all(_own(rec, size, whole) for size in asked):
        return None
    free = [axis for axis, size in enumerate(asked) if _freedom(rec, size)]
    if len(free) < 2 or any(_tied(cells, axis) for axis in free):
        return None
    # By -1 values may be of another width than queries and keys.
    rec.may_narrow |= asked[free[-1]] is None
    if rec.narrows_heads:
        return free[-1]
    number = rec.mine(asked[free[0]])
    if len(free) > 2 and number is not None and number[0] == "attribute":
        rec.rows[number[1], number[2]] = distinct(cells.reshape(-1))
    return free[0]


def _heads_with_others(rec: Recorder, cells: Vector, asked: list[Any]) -> int | None:
    """The axis of the heads where the code works out their width from the number of other channels.

    In ``c // self.heads`` with the ``c`` of what goes in, 12, and three heads, the width is 4 again
    once a head and four of those channels are gone: these go together, and exactly, as the width of
    all heads would not.
    """
    for axis, size in enumerate(asked):
        others = {s for s in symbols(rec.mine(size) or 0) if s[0] == "size"}
        for heads in range(axis):
            number = rec.mine(asked[heads])
            if len(others) == 1 and number is not None and number[0] == "attribute":
                (other,) = others
                tied = any(_tied(cells, one) for one in (axis, heads))
                width = _without_a_head(rec, size, other, number, cells.shape[heads])
                if not tied and width == cells.shape[axis]:
                    first = np.moveaxis(cells, heads, 0).reshape(cells.shape[heads], -1)[:, 0]
                    _tie_to_heads(rec, rec.sizes[other[2]], first)
                    return heads
    return None


def _without_a_head(
    rec: Recorder, size: Any, other: Symbol, number: Symbol, heads: int
) -> int | None:
    """What a size is once there is a head less, with its part of the other channels."""
    channels = len(rec.sizes[other[2]])
    if heads < 2 or channels % heads:
        return None
    known = {other: channels - channels // heads, number: heads - 1}

    def value(symbol: Symbol) -> int:
        if symbol in known:
            return known[symbol]
        return rec.attributes[symbol[1], symbol[2]]

    return evaluate(rec.mine(size) or 0, value)


def _tie_to_heads(rec: Recorder, channels: Vector, heads: Vector) -> None:
    """Cut channels in as many neighbouring parts as there are heads, each with its head."""
    shape = len(heads), len(channels) // len(heads)
    part = split_vector(rec, channels, shape, keep=0, what="a width of heads")
    rec.meet(part, heads, "a width of heads")


def _own(rec: Recorder, asked: Any, whole: Vector) -> bool:
    """Whether a size is no dimension's but that which is taken apart: attributes can follow."""
    expr = rec.mine(asked)
    sizes = [rec.sizes[s[2]] for s in symbols(expr or 0) if s[0] == "size"]
    return all(np.array_equal(vector, whole) for vector in sizes)


def _tied(cells: Vector, axis: int) -> bool:
    """Whether an axis can shrink with nothing tied anew."""
    moved = np.moveaxis(cells, axis, 0).reshape(cells.shape[axis], -1)
    # The rows of [[a a a] [b b b]] hold one channel each and go alone; its columns do not.
    return bool((moved == moved[:, :1]).all())


def _shrinking(rec: Recorder, cells: Vector, asked: list[Any]) -> int | None:
    """Which axis of a block may shrink; None where all sizes are written into the code."""
    candidates = []
    for axis in range(cells.ndim):
        freedom = _freedom(rec, asked[axis])
        # What is alone in its block has to be the one, even with a number for its size: then
        # `constrain` freezes it, and says which number it was.
        if freedom or cells.ndim == 1:
            candidates.append((_tied(cells, axis), freedom, axis))
    if not candidates:
        return None
    best = max(candidate[:2] for candidate in candidates)
    left = [axis for *worth, axis in candidates if tuple(worth) == best]
    if len(left) == 1:
        return left[0]
    return max(left, key=lambda axis: (_units(cells, axis), axis))


def _units(cells: Vector, axis: int) -> int:
    """How many units are left when the others are tied across: at most as many as it is long.

    Windows (``unfold``) hold every channel at each of their places: taken apart into channels and
    places, the places would tie all channels to each other.
    """
    rows = np.moveaxis(cells, axis, 0).reshape(cells.shape[axis], -1)
    row = np.repeat(np.arange(len(rows)), rows.shape[1])
    atoms, place = numbered(rows.reshape(-1))
    # Rows that share an atom take the smallest number among them, until nothing changes.
    number = np.arange(len(rows))
    while True:
        least = np.full(len(atoms), len(rows))
        np.minimum.at(least, place, number[row])
        after = number.copy()
        np.minimum.at(after, row, least[place])
        if np.array_equal(after, number):
            return len(distinct(number))
        number = after


def _freedom(rec: Recorder, asked: Any) -> int:
    """3: -1, or by PyTorch; 2: read from a shape; 1: a module's attribute; 0: a number."""
    if asked is None:
        return 3
    expr = rec.mine(asked)
    if expr is None or expr[1:] in rec.no_heads:
        return 0
    if any(s[0] == "size" for s in symbols(expr)):
        return 2
    return 1
