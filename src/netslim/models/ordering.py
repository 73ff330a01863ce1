"""Outputs whose order near ties decide: detectors hand on the best of their queries.

Rounding differs between runtimes, so where two scores are nearly equal, another one may come first,
and with it a whole row of every output changes its place. Entry by entry such outputs are far apart
though both hold the same detections. So it is remembered by which keys the model orders, and rows
may be compared in another order, under three conditions: it is one order for all outputs that have
these rows, each row is used once, and rows change places only with those whose keys are tied as far
as the accepted tolerance goes. A file that forgets to sort, or moves boxes without their scores,
still differs.

Which rows are among the best may be a near tie, too. Then the sets differ, and such inputs say
nothing of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from netslim.graph.modules.watching import OperatorMode

_MOST_ROWS = 500  # out of place, for which another order is looked for
_BORDER = 1e-5  # of the largest key: nearer than that, rounding decides which rows there are


@dataclass(frozen=True)
class Order:
    """The keys by which a model orders.

    Attributes:
        keys: along the last axis, best first; those that are not handed on may follow.
        count: how many are handed on.
    """

    keys: Tensor
    count: int

    def fitting(self, outputs: Sequence[Tensor]) -> list[Order]:
        """This one, or where all was sorted, the first so many as outputs have rows."""
        if self.count < self.keys.shape[-1]:
            return [self]
        axis, counts = self.keys.dim() - 1, set()
        for output in outputs:
            if output.shape[:axis] == self.keys.shape[:axis] and output.dim() > axis:
                counts.add(min(output.shape[axis], self.count))
        return [Order(self.keys, count) for count in sorted(counts - {0})]

    @property
    def scale(self) -> float:
        """The size of the largest finite key."""
        return _largest(self.keys)

    def rows(self, output: Tensor) -> bool:
        """Whether an output has a row for each key that is handed on."""
        return output.shape[: self.keys.dim()] == (*self.keys.shape[:-1], self.count)

    @property
    def open(self) -> bool:
        """Whether a near tie decides which rows there are."""
        if self.count >= self.keys.shape[-1]:
            return False
        gaps = (self.keys[..., self.count - 1] - self.keys[..., self.count]).abs()
        return bool((gaps <= _BORDER * self.scale).any())


class Orders(OperatorMode):
    """While it is active, remembers by what operators order: topk, sort, argsort, nms."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Order] = []

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        name = func.overloadpacket._qualified_op_name
        if name == "aten::topk" and result[0].dim():
            self._topk(func, result, args, kwargs)
        elif name == "aten::sort" and result[0].dim():
            named = dict(zip((one.name for one in func._schema.arguments), args, strict=False))
            keys = result[0].movedim({**named, **kwargs}.get("dim", -1), -1)
            self.found.append(Order(keys, keys.shape[-1]))
        elif name == "torchvision::nms":
            self.found.append(Order(args[1][result], len(result)))
        return result

    def _topk(self, func: Any, result: Any, args: Any, kwargs: Any) -> None:
        named = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
        dim, scores, count = named.get("dim", -1), named["self"], named["k"]
        more = min(count + 1, scores.shape[dim])
        best = func(scores, more, dim, named.get("largest", True), True)[0].movedim(dim, -1)
        self.found.append(Order(best, count))


def as_ordered(
    expected: Sequence[Tensor],
    found: Sequence[Tensor],
    concerned: Sequence[int],
    order: Order,
    allowed: Sequence[float],
) -> list[Tensor] | None:
    """The found outputs with their rows where the expected outputs have them.

    Args:
        expected, found: outputs of the same shapes.
        concerned: numbers of all that have a row for each key.
        order: what decides about their rows.
        allowed: for each output, the accepted deviation relative to the largest entry.

    Returns:
        None where no order that near ties leave open makes them agree.
    """
    rows = order.keys[..., : order.count].reshape(-1, order.count).double().cpu()
    tied = max(allowed[number] for number in concerned) * order.scale
    ours = [_as_rows(expected[number], rows) for number in concerned]
    theirs = [_as_rows(found[number], rows) for number in concerned]
    limits = []
    for number, one in zip(concerned, ours, strict=True):
        real = expected[number].is_floating_point()
        limits.append(real * allowed[number] * _largest(one))
    places = torch.arange(order.count).repeat(len(rows), 1)
    for example, keys in enumerate(rows):
        a, b = [one[example] for one in ours], [one[example] for one in theirs]
        moved = _matched(a, b, keys, limits, tied)
        if moved is None:
            return None
        places[example] = moved
    result = list(found)
    for number, one in zip(concerned, theirs, strict=True):
        index = places[..., None].expand(one.shape)
        result[number] = one.gather(1, index).reshape(found[number].shape).to(found[number].dtype)
    return result


def _as_rows(output: Tensor, keys: Tensor) -> Tensor:
    """(examples, rows, entries)."""
    return output.detach().double().cpu().reshape(*keys.shape, -1)


def _matched(
    ours: list[Tensor], theirs: list[Tensor], keys: Tensor, limits: list[float], tied: float
) -> Tensor | None:
    """For each row of ours the place of the row of theirs that equals it, each used once."""
    places = torch.arange(len(keys))
    apart = torch.zeros(len(keys), dtype=torch.bool)
    for a, b, limit in zip(ours, theirs, limits, strict=True):
        apart |= ~_equal(a, b, limit).all(-1)
    rows = apart.nonzero()[:, 0]
    if len(rows) > _MOST_ROWS:
        return None
    fits = _equal(keys[rows, None], keys[None, rows], tied)
    for a, b, limit in zip(ours, theirs, limits, strict=True):
        for entry in range(a.shape[-1]):  # one at a time: rows x rows x entries would be large
            fits &= _equal(a[rows, None, entry], b[None, rows, entry], limit)
    chosen = _assigned([row.nonzero()[:, 0].tolist() for row in fits])
    if chosen is None:
        return None
    places[rows] = rows[chosen]
    return places


def _assigned(fitting: list[list[int]]) -> list[int] | None:
    """One of the fitting places for each row, each given once: Kuhn's augmenting paths."""
    holder: dict[int, int] = {}

    def settle(row: int, tried: set[int]) -> bool:
        free = [place for place in fitting[row] if place not in holder]
        for place in free or fitting[row]:
            if place in tried:
                continue
            tried.add(place)
            if place not in holder or settle(holder[place], tried):
                holder[place] = row
                return True
        return False

    if not all(settle(row, set()) for row in range(len(fitting))):
        return None
    return sorted(holder, key=holder.__getitem__)


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()].double().abs()
    return float(finite.amax()) if finite.numel() else 0.0


def _equal(a: Tensor, b: Tensor, limit: float) -> Tensor:
    return ((a - b).abs() <= limit) | (a == b) | (a.isnan() & b.isnan())


__all__ = ["Order", "Orders", "as_ordered"]
