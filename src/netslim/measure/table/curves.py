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
measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

Vector = np.ndarray
BLOCK, SUBBLOCK = (
    16,
    4,
)  # channels; AVX-512 holds 16 floats, and tensor cores want multiples of 4 to 16
CLASSES = 3
CORNERS = 4
MOST_BLOCKS = 16  # along an axis with more blocks, so many of them are measured
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)


def class_of(width: Any) -> Any:
    """0 for a multiple of `BLOCK`, 1 for another multiple of `SUBBLOCK`, 2 for the rest."""
    return np.where(
        np.remainder(width, BLOCK) == 0, 0, np.where(np.remainder(width, SUBBLOCK) == 0, 1, 2)
    )


def up(width: Any) -> Any:
    """A width rounded up to a multiple of `BLOCK`."""
    return np.ceil(np.asarray(width) / BLOCK) * BLOCK


def probes(size: int, step: int = 1) -> list[int]:
    """The widths to measure along an axis of `size` channels, rising; all are multiples of `step`.

    Every block (of many, some), and in the other classes the smallest widths, the full one, the
    middle of some blocks, and one block at both of its ends, which tells how much of the time comes
    in steps.
    """
    last = int(up(size)) // BLOCK
    blocks = {BLOCK * round(n) for n in np.linspace(1, last, min(last, MOST_BLOCKS))}
    some = {int(up(size * share)) for share in _SHARES}
    middle = _middle(sorted(some))
    wanted = blocks | some | {b - offset for b in some for offset in (BLOCK // 2, BLOCK // 2 - 1)}
    wanted |= {size, 3, SUBBLOCK, *(middle - offset for offset in (*_ENDS[1], *_ENDS[2]))}
    if step > 1:
        wanted = {max(step, round(w / step) * step) for w in wanted}
    return sorted(w for w in wanted if step <= w <= max(size, BLOCK * last))


def _middle(blocks: list[int]) -> int:
    return blocks[len(blocks) // 2]


_ENDS = {
    1: (BLOCK - SUBBLOCK, SUBBLOCK),
    2: (BLOCK - 1, 1),
}  # class -> how far its ends of a block are below the next


@dataclass(frozen=True)
class Line:
    """Values at some widths, with straight lines between; shape (points,) each, the widths rising."""

    widths: Vector
    values: Vector

    def at(self, width: float) -> float:
        """The value at a width; beyond the ends the nearest piece goes on."""
        if len(self.widths) == 1:
            return float(self.values[0])
        piece = int(np.clip(np.searchsorted(self.widths, width) - 1, 0, len(self.widths) - 2))
        (a, b), (low, high) = self.widths[piece : piece + 2], self.values[piece : piece + 2]
        return float(low + (width - a) * (high - low) / (b - a))


@dataclass(frozen=True)
class Curve:
    """Milliseconds along one axis, the other axis held.

    Attributes:
        base: at multiples of the block.
        flat: for each class the share of the time that comes in steps of the block, 0 to 1.
        ratio: for each class what the base is to be multiplied with.
    """

    base: Line
    flat: tuple[float, float, float]
    ratio: tuple[Line, Line, Line]


def curve_of(ms: Mapping[int, float]) -> Curve:
    """The curve through measurements, milliseconds by width."""
    line = {float(w): ms[w] for w in sorted(ms)}
    kinds = {w: int(class_of(w)) for w in line}
    blocks = [w for w in line if kinds[w] == 0]
    if (
        len(blocks) < 2
    ):  # a narrow axis, or blocks that its step leaves out: then all widths are the base
        base = Line(np.array(list(line)), np.array(list(line.values())))
        one = Line(np.ones(1), np.ones(1))
        return Curve(base, (0.0, 0.0, 0.0), (one, one, one))
    base = Line(np.array(blocks), np.array([line[w] for w in blocks]))
    flat, ratio = [1.0], [Line(np.ones(1), np.ones(1))]
    for kind in range(1, CLASSES):
        widths = [w for w in line if kinds[w] == kind]
        flat.append(_flatness({w: line[w] for w in widths}, base))
        floor = base.values.min() / 4
        shares = [line[w] / max(floor, mixed(base, flat[-1], w)) for w in widths]
        ratio.append(Line(np.array(widths), np.array(shares)) if widths else ratio[-1])
    return Curve(base, (flat[0], flat[1], flat[2]), (ratio[0], ratio[1], ratio[2]))


def mixed(base: Line, flat: float, width: float) -> float:
    """The base at a width and at the next block, mixed."""
    return (1 - flat) * base.at(width) + flat * base.at(float(up(width)))


def _flatness(ms: Mapping[float, float], base: Line) -> float:
    """How flat time is within a block that was measured at both ends, against how the base rises."""
    for low in ms:
        high = max(w for w in ms if up(w) == up(low))
        if high - low >= BLOCK / 2 and low > BLOCK:
            expected = (
                (base.values[-1] - base.values[0])
                / (base.widths[-1] - base.widths[0])
                * (high - low)
            )
            return (
                float(np.clip(1 - (ms[high] - ms[low]) / expected, 0, 1)) if expected > 0 else 1.0
            )
    return 1.0 if ms and max(ms) > BLOCK else 0.0


def rising(values: Vector) -> Vector:
    """The nearest never falling sequence, in least squares (pool adjacent violators)."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return np.repeat([mean for mean, _ in pools], [int(n) for _, n in pools])


@dataclass(frozen=True)
class Surface:
    """Milliseconds of a kernel as a function of its live widths, of which there are none, one or
    two.

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
    """Where the two axes are measured together: the narrowest block, half the reference, the
    reference, the widest.
    """
    blocks = [w for w in axis if w % BLOCK == 0] or axis
    near = min(blocks, key=lambda w: abs(w - reference / 2))
    return sorted({blocks[0], near, reference, blocks[-1]})


def reference_of(axis: list[int]) -> int:
    """The measured width nearest to the middle, a multiple of the block if there is one."""
    blocks = [w for w in axis if w % BLOCK == 0] or axis
    return min(blocks, key=lambda w: (abs(w - axis[-1] / 2), w))


def meetings(axes: list[list[int]]) -> list[tuple[int, ...]]:
    """Pairs of widths of which neither is a multiple of the block, at three places along both axes."""
    found = []
    for classes in product(range(1, CLASSES), repeat=2):
        lines = [
            [w for w in axis if class_of(w) == kind]
            for axis, kind in zip(axes, classes, strict=True)
        ]
        for place in ((0.6, 0.6), (0.9, 0.4), (0.4, 0.9)) if all(lines) else ():
            found.append(
                tuple(
                    line[round(p * (len(line) - 1))] for line, p in zip(lines, place, strict=True)
                )
            )
    return found


def points(axes: list[list[int]]) -> list[tuple[int, ...]]:
    """Where a kernel with these probes along its axes is to be measured."""
    references = tuple(map(reference_of, axes))
    found = {references}
    for number, axis in enumerate(axes):
        found |= {(*references[:number], width, *references[number + 1 :]) for width in axis}
    if len(axes) == 2:
        a, b = (corners(axis, r) for axis, r in zip(axes, references, strict=True))
        found |= {(x, y) for x in a for y in b} | set(meetings(axes))
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
    grid = [np.array(corners(axis, r)) for axis, r in zip(axes, references, strict=True)]
    stack = Stack([bare])
    measured = np.array([[ms[x, y] for y in grid[1]] for x in grid[0]])
    predicted = np.array(
        [[stack.times(np.array([[x, y]], dtype=float))[0] for y in grid[1]] for x in grid[0]]
    )
    crossed = Surface(
        references, bare.ms, bare.curves, tuple(g.astype(float) for g in grid), measured / predicted
    )
    return replace(crossed, meeting=_meeting(crossed, meetings(axes), ms))


def _meeting(
    surface: Surface, pairs: list[tuple[int, ...]], ms: Mapping[tuple[int, ...], float]
) -> Vector:
    """Measured over predicted where neither width is a multiple of the block, by classes; 1
    elsewhere.
    """
    stack = Stack([surface])
    logs: dict[tuple[int, ...], list[float]] = {}
    for pair in pairs:
        predicted = stack.times(np.array([pair], dtype=float))[0]
        logs.setdefault(tuple(map(int, class_of(np.array(pair)))), []).append(
            float(np.log(ms[pair] / predicted))
        )
    found = np.ones((CLASSES, CLASSES))
    for classes, values in logs.items():
        found[classes] = np.exp(np.median(values))
    return found


class _Lines:
    """Many `Line`s, evaluated together."""

    def __init__(self, lines: Sequence[Line]) -> None:
        most = max((len(line.widths) for line in lines), default=1)
        self.x = np.full((len(lines), most), np.inf)
        self.y, self.slope = np.zeros((2, len(lines), most))
        for row, line in enumerate(lines):
            n = len(line.widths)
            self.x[row, :n], self.y[row, :n] = line.widths, line.values
            if n > 1:
                rises = np.diff(line.values) / np.diff(line.widths)
                self.slope[row, :n] = [*rises, rises[-1]]

    def at(self, row: Vector, width: Vector) -> Vector:
        """The values of these lines at these widths."""
        place = np.maximum((self.x[row] <= width[:, None]).sum(axis=1) - 1, 0)
        return self.y[row, place] + (width - self.x[row, place]) * self.slope[row, place]

    def ends(self) -> tuple[Vector, Vector]:
        """The first and the last width of each line."""
        return self.x[:, 0], np.where(np.isfinite(self.x), self.x, -np.inf).max(axis=1)


class Stack:
    """Many surfaces, evaluated together."""

    def __init__(self, surfaces: Sequence[Surface]) -> None:
        self.axes = max((len(s.curves) for s in surfaces), default=0)
        self.base = np.array([s.ms for s in surfaces])
        self.has = np.array(
            [[len(s.curves) > a for a in range(self.axes)] for s in surfaces], dtype=bool
        )
        curves = [c for s in surfaces for c in s.curves]
        self.blocks = _Lines([c.base for c in curves])
        self.rising = _Lines([Line(c.base.widths, rising(c.base.values)) for c in curves])
        self.ratio = _Lines([line for c in curves for line in c.ratio])
        self.span = self.ratio.ends()
        self.flat = np.array([share for c in curves for share in c.flat])
        self.least = np.array([c.base.values.min() for c in curves]) / 4
        both = [s for s in surfaces if s.correction is not None]
        self.crossed = np.array([s.correction is not None for s in surfaces], dtype=bool)
        self.nodes = np.array([[_filled(c) for c in s.corners] for s in both]).reshape(
            len(both), 2, CORNERS
        )
        self.meet = np.array(
            [np.ones((CLASSES, CLASSES)) if s.meeting is None else s.meeting for s in both]
        )
        logs = [
            _filled(_filled(np.log(s.correction)).T).T for s in both if s.correction is not None
        ]
        self.cross = np.array(logs).reshape(len(both), CORNERS, CORNERS)

    def places(self, widths: Vector) -> tuple[Vector, Vector, Vector]:
        """For every live axis its width, its class's row, and the share of the time that comes in
        steps.
        """
        w = widths[:, : self.axes][self.has]
        row = CLASSES * np.arange(len(w)) + class_of(w)
        return w, row, self.flat[row]

    def lines(self, widths: Vector) -> Vector:
        """Milliseconds along each axis, shape (surfaces, axes), and the reference's where there is
        no such axis.
        """
        found = np.repeat(self.base[:, None], self.axes, axis=1)
        w, row, flat = self.places(widths)
        curve = np.arange(len(w))
        ms = (1 - flat) * self.blocks.at(curve, w) + flat * self.blocks.at(curve, up(w))
        inside = np.clip(w, self.span[0][row], self.span[1][row])
        found[self.has] = np.maximum(ms, self.least) * self.ratio.at(row, inside)
        return found

    def corrections(self, widths: Vector) -> Vector:
        """What the product of the lines is to be multiplied with, shape (surfaces,)."""
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
        return self.base * shares.prod(axis=1) * self.corrections(widths)

    def slopes(self, widths: Vector) -> Vector:
        """The derivative by each width, shape (surfaces, axes): over some blocks beside it, and
        never negative.
        """
        w, _, flat = self.places(widths)
        curve, reach = np.arange(len(w)), np.maximum(2 * BLOCK, w / 4)
        low, high = np.maximum(w - reach, 1), w + reach
        rise = (self.rising.at(curve, high) - self.rising.at(curve, low)) / (high - low)
        found = np.zeros(self.has.shape)
        found[self.has] = rise / np.maximum(
            self.rising.at(curve, (1 - flat) * w + flat * up(w)), self.least
        )
        return found * self.times(widths)[:, None]


def _filled(values: Vector) -> Vector:
    """`CORNERS` rows: the first is repeated."""
    return np.concatenate([np.repeat(values[:1], CORNERS - len(values), axis=0), values])
