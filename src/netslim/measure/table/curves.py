"""Milliseconds of a kernel as a function of its widths, from measurements at some of them.

Fast kernels work in blocks of channels, which shows in three ways. Time rises in steps: a width
that is no multiple of the block is padded to the next one. How many blocks there are matters: a
kernel that takes several at a time is slower where their number is prime (oneDNN on AVX-512 takes a
third longer for 7, 11 or 13 blocks than for their neighbours). And widths that are multiples of the
block may take another code path than those that are not.

So every number of blocks is measured where there are few, and time need not rise with the width.
Widths fall into three classes: multiples of `BLOCK`, which give the base; other multiples of
`SUBBLOCK`, and the rest, which have a ratio to the base. On a width that is no multiple of the
block, the base is a mixture of what it is there and at the next block, in proportions that were
measured. An example: blocks of 16 that take 1 ms each, everything in steps, and a detour of a half
off the blocks. Then 40 channels take 3 ms (as 48 do) times 1.5, more than 48 channels take.

A kernel with two live widths, such as a convolution's inputs and outputs, would need the whole
plane to be measured. Time is nearly the product of a curve in each, so only a cross is: each axis
with the other held at a reference. What the product misses is smooth, but for one thing, and is
measured at 4 x 4 corners and interpolated; the one thing is the detour off the blocks, which is
taken once where both widths call for it, while the product counts it twice (`Surface.meeting`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Rows = NDArray[np.int64]

# Channels. AVX-512 holds 16 floats, and tensor cores want multiples of 4 to 16. The one divides the
# other.
BLOCK, SUBBLOCK = 16, 4
CLASSES = 3
CORNERS = 4
MOST_BLOCKS = 16  # along an axis with more blocks, so many of them are measured
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
# For each class off the blocks, how far its first and last width of a block are below the next one.
_ENDS = {1: (BLOCK - SUBBLOCK, SUBBLOCK), 2: (BLOCK - 1, 1)}


@overload
def class_of(width: float) -> int: ...
@overload
def class_of(width: NDArray[Any]) -> Rows: ...
def class_of(width: Any) -> Any:
    """0 for a multiple of `BLOCK`, 1 for another multiple of `SUBBLOCK`, 2 for the rest."""
    return 2 - (width % SUBBLOCK == 0) - (width % BLOCK == 0)


@overload
def up(width: float) -> float: ...
@overload
def up(width: NDArray[Any]) -> Vector: ...
def up(width: Any) -> Any:
    """A width rounded up to a multiple of `BLOCK`."""
    return np.ceil(width / BLOCK) * BLOCK


def probes(size: int, step: int = 1) -> list[int]:
    """The widths to measure along an axis of `size` channels, rising; all are multiples of `step`.

    Every block (of many, some), and in the other classes the smallest widths, the full one, the
    middle of some blocks, and one block at both of its ends, which tells how much of the time comes
    in steps.
    """
    last = int(up(size)) // BLOCK
    blocks = {BLOCK * round(n) for n in np.linspace(1, last, min(last, MOST_BLOCKS))}
    some = {int(up(size * share)) for share in _SHARES}
    wanted = blocks | some | {size, 3, SUBBLOCK}
    for below in (BLOCK // 2, BLOCK // 2 - 1):
        wanted |= {block - below for block in some}
    middle = sorted(some)[len(some) // 2]
    wanted |= {middle - below for below in (*_ENDS[1], *_ENDS[2])}
    if step > 1:
        wanted = {max(step, round(w / step) * step) for w in wanted}
    return sorted(w for w in wanted if step <= w <= max(size, BLOCK * last))


@dataclass(frozen=True)
class Line:
    """Values at some widths, straight lines between; shape (points,) each, the widths rising."""

    widths: Vector
    values: Vector

    def at(self, width: float) -> float:
        """The value at a width; beyond the ends the nearest piece goes on."""
        if len(self.widths) == 1:
            return float(self.values[0])
        piece = int(np.clip(np.searchsorted(self.widths, width) - 1, 0, len(self.widths) - 2))
        (a, b), (low, high) = self.widths[piece : piece + 2], self.values[piece : piece + 2]
        return float(low + (width - a) * (high - low) / (b - a))


_ONE = Line(np.ones(1), np.ones(1))


@dataclass(frozen=True)
class Curve:
    """Milliseconds along one axis, the other axis held.

    Attributes:
        base: at multiples of the block.
        flat: for each class the share of the time that comes in steps of the block, 0 to 1.
        ratio: for each class what the base is to be multiplied with.
    """

    base: Line
    flat: tuple[float, ...]
    ratio: tuple[Line, ...]


def curve_of(ms: Mapping[int, float]) -> Curve:
    """The curve through measurements, milliseconds by width."""
    line = {float(w): ms[w] for w in sorted(ms)}
    blocks = [w for w in line if class_of(w) == 0]
    if len(blocks) < 2:
        # A narrow axis, or one whose step leaves blocks out: then all widths are the base.
        base = Line(np.array(list(line)), np.array(list(line.values())))
        return Curve(base, (0.0,) * CLASSES, (_ONE,) * CLASSES)
    base = Line(np.array(blocks), np.array([line[w] for w in blocks]))
    flat, ratio = [1.0], [_ONE]
    # Below the first block the base goes on as a line, and may reach zero: no ratio is taken to
    # less than this.
    floor = base.values.min() / 4
    for kind in range(1, CLASSES):
        mine = {w: t for w, t in line.items() if class_of(w) == kind}
        flat.append(_flatness(mine, base))
        if not mine:  # a class without a measurement is as the one before it
            ratio.append(ratio[-1])
            continue
        shares = [t / max(floor, mixed(base, flat[-1], w)) for w, t in mine.items()]
        ratio.append(Line(np.array(list(mine)), np.array(shares)))
    return Curve(base, tuple(flat), tuple(ratio))


def mixed(base: Line, flat: float, width: float) -> float:
    """The base at a width and at the next block, mixed."""
    return (1 - flat) * base.at(width) + flat * base.at(up(width))


def _flatness(ms: Mapping[float, float], base: Line) -> float:
    """How flat time is within a block measured at both ends, against how the base rises.

    1 where both ends take the same, and 0 where time rises between them as the base does over as
    many channels. The first block is not judged, as the base below it is a guess.
    """
    for low in ms:
        high = max(w for w in ms if up(w) == up(low))
        if low <= BLOCK or high - low < BLOCK / 2:
            continue
        rise = base.values[-1] - base.values[0]
        expected = rise / (base.widths[-1] - base.widths[0]) * (high - low)
        if expected <= 0:
            return 1.0
        return float(np.clip(1 - (ms[high] - ms[low]) / expected, 0, 1))
    # No block was measured at both of its ends: beyond the first one steps are taken for granted.
    return float(max(ms, default=0) > BLOCK)


def rising(values: Vector) -> Vector:
    """The nearest never falling sequence, in least squares (pool adjacent violators).

    Each value starts as a pool of its own, and a pool that lies above the next one merges with it
    into their mean: 3, 1, 2, 5 becomes 2, 2, 2, 5.
    """
    pools: list[list[float]] = []
    for value in values:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return np.repeat([mean for mean, _ in pools], [int(n) for _, n in pools])


@dataclass(frozen=True)
class Surface:
    """Milliseconds of a kernel as a function of its live widths, of which there are 0, 1 or 2.

    Along each axis there is a curve, measured with the other axis at its `reference`; both together
    are the product of the two over the reference, times a correction that was measured at the
    `corners`, times one for the two classes that meet: a slower path for either axis is taken once,
    not twice.

    Attributes:
        reference: a width for each axis.
        ms: at the reference.
        curves: for each axis.
        corners: for each axis some widths, where `correction` was measured; at most `CORNERS` each,
            for two axes.
        correction: at the corners, measured over predicted.
        meeting: shape (3, 3), by the classes of the two widths, measured over predicted.
    """

    reference: tuple[int, ...]
    ms: float
    curves: tuple[Curve, ...] = ()
    corners: tuple[Vector, ...] = ()
    correction: Vector | None = None
    meeting: Vector | None = None


def corners(axis: list[int], reference: int) -> list[int]:
    """Where both axes are measured together.

    The narrowest block, half the reference, the reference, the widest.
    """
    blocks = [w for w in axis if w % BLOCK == 0] or axis
    near = min(blocks, key=lambda w: abs(w - reference / 2))
    return sorted({blocks[0], near, reference, blocks[-1]})


def reference_of(axis: list[int]) -> int:
    """The measured width nearest to the middle, a multiple of the block if there is one."""
    blocks = [w for w in axis if w % BLOCK == 0] or axis
    return min(blocks, key=lambda w: (abs(w - axis[-1] / 2), w))


def meetings(axes: list[list[int]]) -> list[tuple[int, ...]]:
    """Pairs of widths, neither a multiple of the block, at three places along both axes."""
    found: list[tuple[int, ...]] = []
    for kinds in product(range(1, CLASSES), repeat=2):
        a, b = ([w for w in axis if class_of(w) == k] for axis, k in zip(axes, kinds, strict=True))
        if not a or not b:
            continue
        for p, q in ((0.6, 0.6), (0.9, 0.4), (0.4, 0.9)):
            found.append((a[round(p * (len(a) - 1))], b[round(q * (len(b) - 1))]))
    return found


def points(axes: list[list[int]]) -> list[tuple[int, ...]]:
    """Where a kernel with these probes along its axes is to be measured."""
    references = tuple(map(reference_of, axes))
    found = {references}
    for number, axis in enumerate(axes):
        found |= {(*references[:number], width, *references[number + 1 :]) for width in axis}
    if len(axes) == 2:
        found |= set(product(*map(corners, axes, references))) | set(meetings(axes))
    return sorted(found)


def surface_of(axes: list[list[int]], ms: Mapping[tuple[int, ...], float]) -> Surface:
    """The surface through what was measured at `points(axes)`."""
    references = tuple(map(reference_of, axes))
    curves = []
    for number, axis in enumerate(axes):
        line = {w: ms[(*references[:number], w, *references[number + 1 :])] for w in axis}
        curves.append(curve_of(line))
    bare = Surface(references, ms[references], tuple(curves))
    if len(axes) < 2:
        return bare
    # In this order: each factor is fitted to what those before it leave over.
    grid = list(map(corners, axes, references))
    stack, pairs = Stack([bare]), list(product(*grid))
    measured = np.array([ms[pair] for pair in pairs])
    correction = measured / np.array([stack.time(*pair) for pair in pairs])
    crossed = replace(
        bare,
        corners=tuple(np.array(nodes, dtype=float) for nodes in grid),
        correction=correction.reshape(*map(len, grid)),
    )
    return replace(crossed, meeting=_meeting(crossed, meetings(axes), ms))


def _meeting(
    surface: Surface, pairs: list[tuple[int, ...]], ms: Mapping[tuple[int, ...], float]
) -> Vector:
    """Measured over predicted by classes, where neither is a multiple of the block; else 1."""
    stack = Stack([surface])
    logs: dict[tuple[int, ...], list[float]] = {}
    for pair in pairs:
        # Three places for each pair of classes, and the median of their logarithms: one measurement
        # that was disturbed has no say, and twice as slow weighs as much as twice as fast.
        off = float(np.log(ms[pair] / stack.time(*pair)))
        logs.setdefault(tuple(map(class_of, pair)), []).append(off)
    found = np.ones((CLASSES, CLASSES))
    for classes, values in logs.items():
        found[classes] = np.exp(np.median(values))
    return found


class _Lines:
    """Many `Line`s, evaluated together: a row each, filled up with points that lie at infinity."""

    def __init__(self, lines: Sequence[Line]) -> None:
        most = max((len(line.widths) for line in lines), default=1)
        self.x = np.full((len(lines), most), np.inf)
        self.y, self.slope = np.zeros((2, len(lines), most))
        for row, line in enumerate(lines):
            n = len(line.widths)
            self.x[row, :n], self.y[row, :n] = line.widths, line.values
            if n > 1:
                rises = np.diff(line.values) / np.diff(line.widths)
                # From the last point on the piece before it goes on.
                self.slope[row, :n] = [*rises, rises[-1]]

    def at(self, row: Rows, width: Vector) -> Vector:
        """The values of these lines at these widths."""
        # How many points lie at or before the width; those that fill up are at infinity and never
        # do.
        place = np.maximum((self.x[row] <= width[:, None]).sum(axis=1) - 1, 0)
        start, value, slope = self.x[row, place], self.y[row, place], self.slope[row, place]
        found: Vector = value + (width - start) * slope
        return found

    def ends(self) -> tuple[Vector, Vector]:
        """The first and the last width of each line."""
        return self.x[:, 0], np.where(np.isfinite(self.x), self.x, -np.inf).max(axis=1)


class Stack:
    """Many surfaces, evaluated together: selection asks for the times of a network again and again.

    Surfaces have 0, 1 or 2 axes. `has` (surfaces, axes) says which are there, and everything about
    curves is kept for those alone, in the order in which ``array[self.has]`` reads them: curve n is
    the n-th True. Each curve has a row for each of its `CLASSES` in `ratio` and `flat`.
    """

    def __init__(self, surfaces: Sequence[Surface]) -> None:
        self.axes = max((len(s.curves) for s in surfaces), default=0)
        self.base = np.array([s.ms for s in surfaces])
        there = [[len(s.curves) > axis for axis in range(self.axes)] for s in surfaces]
        self.has = np.array(there, dtype=bool)
        curves = list(chain.from_iterable(s.curves for s in surfaces))
        self.blocks = _Lines([c.base for c in curves])
        self.rising = _Lines([Line(c.base.widths, rising(c.base.values)) for c in curves])
        self.ratio = _Lines(list(chain.from_iterable(c.ratio for c in curves)))
        self.span = self.ratio.ends()
        self.flat = np.array(list(chain.from_iterable(c.flat for c in curves)))
        # As in `curve_of`: what goes on as a line beyond the measurements must not reach zero.
        self.least = np.array([c.base.values.min() for c in curves]) / 4
        self.crossed = np.array([s.correction is not None for s in surfaces], dtype=bool)
        self.nodes, self.cross, self.meet = _corrections(surfaces)

    def places(self, widths: Vector) -> tuple[Vector, Rows, Vector]:
        """For each curve its width, its class's row, and the share of time that comes in steps."""
        w: Vector = widths[:, : self.axes][self.has]
        row = CLASSES * np.arange(len(w)) + class_of(w)
        return w, row, self.flat[row]

    def lines(self, widths: Vector) -> Vector:
        """Milliseconds along each axis, shape (surfaces, axes).

        It is the reference's where there is no such axis.
        """
        found = np.repeat(self.base[:, None], self.axes, axis=1)
        w, row, flat = self.places(widths)
        curve = np.arange(len(w))
        ms = (1 - flat) * self.blocks.at(curve, w) + flat * self.blocks.at(curve, up(w))
        # A ratio says which code path runs, and beyond what was measured that stays as it is.
        inside = np.clip(w, self.span[0][row], self.span[1][row])
        found[self.has] = np.maximum(ms, self.least) * self.ratio.at(row, inside)
        return found

    def corrections(self, widths: Vector) -> Vector:
        """What the product of the lines is to be multiplied with, shape (surfaces,).

        Between the corners logarithms are interpolated, in both directions, so that twice as slow
        and twice as fast cancel; outside the nearest edge holds.
        """
        found = np.ones(len(self.base))
        if not self.crossed.any():
            return found
        both = np.zeros(self.has.shape)
        w, _, flat = self.places(widths)
        both[self.has] = (1 - flat) * w + flat * up(w)
        w = np.clip(both[self.crossed], self.nodes[:, :, 0], self.nodes[:, :, -1])
        cell = (w[:, :, None] > self.nodes[:, :, 1:-1]).sum(axis=2)
        r, (i, j) = np.arange(len(w)), cell.T
        start = np.take_along_axis(self.nodes, cell[:, :, None], axis=2)[:, :, 0]
        end = np.take_along_axis(self.nodes, cell[:, :, None] + 1, axis=2)[:, :, 0]
        share = (w - start) / np.maximum(end - start, 1e-9)
        (a, b), c = share.T, self.cross
        log = (1 - a) * ((1 - b) * c[r, i, j] + b * c[r, i, j + 1])
        log += a * ((1 - b) * c[r, i + 1, j] + b * c[r, i + 1, j + 1])
        k, m = class_of(widths[self.crossed]).T
        found[self.crossed] = np.exp(log) * self.meet[r, k, m]
        return found

    def times(self, widths: Vector) -> Vector:
        """Milliseconds of every surface, shape (surfaces,), at widths of shape (surfaces, 2)."""
        shares = self.lines(widths) / self.base[:, None]
        alone: Vector = self.base * shares.prod(axis=1)
        return alone * self.corrections(widths)

    def time(self, *widths: float) -> float:
        """Milliseconds of the one surface in this stack, at its two widths."""
        return float(self.times(np.array([widths], dtype=float))[0])

    def slopes(self, widths: Vector) -> Vector:
        """The derivative by each width, shape (surfaces, axes), never negative.

        Taken literally it would be 0 within a block and huge at its end, and whoever asks what a
        channel saves would never begin to cut. So it is the rise over some blocks to both sides,
        and of the nearest curve that never falls: a slow number of blocks must not make it seem
        that channels could be added for nothing.
        """
        w, _, flat = self.places(widths)
        curve, reach = np.arange(len(w)), np.maximum(2 * BLOCK, w / 4)
        low, high = np.maximum(w - reach, 1), w + reach
        rise = (self.rising.at(curve, high) - self.rising.at(curve, low)) / (high - low)
        here = self.rising.at(curve, (1 - flat) * w + flat * up(w))
        # Relative to the curve, and then of the surface's own time: on another row of the plane the
        # same step is as many percent.
        relative = np.zeros(self.has.shape)
        relative[self.has] = rise / np.maximum(here, self.least)
        return relative * self.times(widths)[:, None]


def _corrections(surfaces: Sequence[Surface]) -> tuple[Vector, Vector, Vector]:
    """Of the surfaces that have some: the corners, log corrections there, and those by classes.

    Shapes (crossed, 2, `CORNERS`), (crossed, `CORNERS`, `CORNERS`) and (crossed, 3, 3).
    """
    nodes, logs, meet = [], [], []
    for surface in surfaces:
        if surface.correction is None:
            continue
        nodes.append([_filled(axis) for axis in surface.corners])
        logs.append(_filled(_filled(np.log(surface.correction)).T).T)
        by_class = surface.meeting
        if by_class is None:
            by_class = np.ones((CLASSES, CLASSES))
        meet.append(by_class)
    return (
        np.array(nodes).reshape(len(nodes), 2, CORNERS),
        np.array(logs).reshape(len(logs), CORNERS, CORNERS),
        np.array(meet),
    )


def _filled(values: Vector) -> Vector:
    """`CORNERS` rows: the first is repeated, which makes cells of no width."""
    return np.concatenate([np.repeat(values[:1], CORNERS - len(values), axis=0), values])
