"""Integers that a cut makes wrong though no forward reads them: set where they can mean one width.

An attribute that equals the old width of layers within its module, and of which all these layers
now have one new width, can mean nothing else: it is set to that. A name such as ``in_channels``
says which side it is of, where the two sides differ. Where several readings are left, it stays, and
the plan says so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from netslim.graph.integers import Integer, Width
from netslim.graph.inventory import Inventory
from netslim.surgery.rows import SizePatch, TensorCut


@dataclass(frozen=True)
class Stale:
    """An integer that equals a width which a cut changes.

    Attributes:
        integer: what remembers it.
        news: what the layers that had this width have now, smallest first.
        axes: (tensor, axis) of these layers.
    """

    integer: Integer
    news: tuple[int, ...]
    axes: frozenset[tuple[str, int]]

    @property
    def patch(self) -> SizePatch | None:
        """What to set, where only one reading makes sense."""
        if len(self.news) > 1 or not self.integer.follows:
            return None
        return SizePatch(
            self.integer.module, self.integer.attribute, self.integer.value, self.news[0]
        )

    def __str__(self) -> str:
        return f"{self.integer.path} ({self.integer.value}, now {' or '.join(map(str, self.news))})"


def stale_sizes(inventory: Inventory, tensors: Iterable[TensorCut]) -> list[Stale]:
    """The integers that a cut makes wrong, or may.

    Args:
        inventory: of the traced model.
        tensors: the rows of the plan.
    """
    if not inventory.integers:
        return []
    kept = {(t.tensor, t.axis): len(t.kept) for t in tensors}
    wide = _Wide.of(inventory.widths)
    found = []
    for integer in inventory.integers:
        meant = wide.within(integer)
        # Of a block of 64 in and 64 out, the outputs are cut to 48: what equals 64 may mean 64 or
        # 48. `out_channels` says which, and follows; `width` does not, and is left for people.
        news = {_new(w, kept) for w in meant}
        if len(news) > 1 and integer.side:
            news = {_new(w, kept) for w in meant if integer.side in w.sides.split()} or news
        if news - {integer.value}:
            axes = frozenset((width.tensor, width.axis) for width in meant)
            found.append(Stale(integer, tuple(sorted(news)), axes))
    return found


@dataclass(frozen=True)
class _Wide:
    """Layers by how wide they are, in an order in which those within one module are neighbours.

    Attributes:
        layers: size -> the paths of the layers, each with a dot behind it, in order.
        widths: size -> as many widths.
    """

    layers: dict[int, list[str]]
    widths: dict[int, list[Width]]

    @classmethod
    def of(cls, widths: Iterable[Width]) -> _Wide:
        by_size: dict[int, list[Width]] = {}
        for width in sorted(widths, key=lambda width: f"{width.layer}."):
            by_size.setdefault(width.size, []).append(width)
        layers = {size: [f"{one.layer}." for one in same] for size, same in by_size.items()}
        return cls(layers, by_size)

    def within(self, integer: Integer) -> list[Width]:
        """Those which an integer equals, of layers that lie within its module (`Integer.holds`)."""
        layers = self.layers.get(integer.value, [])
        if not layers or not integer.module:
            return self.widths.get(integer.value, [])
        # Of "a.", "a.b.", "a.c." and "ab." the first three begin with "a.": "/" comes after ".".
        first = bisect_left(layers, f"{integer.module}.")
        end = bisect_left(layers, f"{integer.module}/")
        return self.widths[integer.value][first:end]


def followed(
    inventory: Inventory, tensors: Iterable[TensorCut], patches: Iterable[SizePatch]
) -> tuple[list[Stale], list[Stale]]:
    """What else is to be set, and what is not, though it may be wrong.

    Args:
        inventory: of the traced model.
        tensors: the rows of the plan.
        patches: what the trace knows to follow.
    """
    known = {(patch.module, patch.attribute) for patch in patches}
    more, left = [], []
    for stale in stale_sizes(inventory, tensors):
        if (stale.integer.module, stale.integer.attribute) in known:
            continue
        if stale.patch is not None:
            more.append(stale)
        elif stale.integer.told:
            left.append(stale)
    return more, left


_TOLD = "integers that no forward reads stay"


def told(left: Iterable[Stale]) -> str:
    """A sentence on what is not set."""
    return (
        f"{_TOLD}, though layers that were as wide are not any more, which other methods may trip "
        f"over: {', '.join(map(str, left))}"
    )


def told_in(notes: Iterable[str]) -> list[str]:
    """Those notes of a plan that are such sentences."""
    return [note for note in notes if note.startswith(_TOLD)]


def _new(width: Width, kept: Mapping[tuple[str, int], int]) -> int:
    left = kept.get((width.tensor, width.axis))
    if left is None:
        return width.size
    return left * width.times // width.each


__all__ = ["Stale", "followed", "stale_sizes", "told", "told_in"]
