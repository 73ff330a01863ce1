"""`ChannelGroup`s: units that compete with each other, where they lie, and whether they can go."""

from __future__ import annotations

from dataclasses import dataclass

from netslim.graph.counts import Count
from netslim.graph.tracing.atoms import (
    Vector,
)


@dataclass(frozen=True)
class Slice:
    """Where a group lives in one axis of one tensor: entry ``positions[i]`` belongs to unit
    ``units[i]``.

    ``mixed`` says that weights which read the units take part in making them as well (tied
    weights).
    """

    tensor: str
    axis: int
    role: str
    positions: Vector
    units: Vector
    mixed: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Units that compete with each other and share one shape of slices.

    Attributes:
        name: the module that produces the channels.
        size: number of units; a unit is what can be removed alone.
        slices: all the tensor entries that go with the units.
        exact: whether removing a unit equals silencing it; where not, ``reason`` says which
            operator mixes channels.
        frozen: whether it cannot be cut at all; ``reason`` says why.
        reasons: every reason found, where several things stand in the way.
        producers: the tensors that produce the channels, in order of execution.
        shortcut: whether the outputs of several layers are added in these channels, as along a
            residual shortcut (a padding counts; layers that scale them, depthwise or as a gate, do
            not).
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    exact: bool = True
    frozen: bool = False
    reason: str | None = None
    reasons: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()
    shortcut: bool = False

    def __repr__(self) -> str:
        return f"<ChannelGroup {self.name!r}: {self.size} channels, {self.verdict}>"

    def __str__(self) -> str:
        from netslim.graph.words.explain import sentences

        return sentences(self)

    @property
    def verdict(self) -> str:
        """``"exact"``, ``"inexact"`` (may be cut with ``allow_inexact=True``) or ``"stays"``."""
        return "stays" if self.frozen else "exact" if self.exact else "inexact"

    @property
    def prunable(self) -> bool:
        """Whether units of this group can be cut exactly."""
        return self.exact and not self.frozen

    def tensors(self, role: str) -> list[Slice]:
        """The slices with this role: producer, consumer, scale or channel."""
        return [s for s in self.slices if s.role == role]


@dataclass(frozen=True)
class SizeRule:
    """A module attribute that must follow the kept entries of a dimension: ``old * kept / size``."""

    module: str
    attribute: str
    old: int
    count: Count


__all__ = ["ChannelGroup", "SizeRule", "Slice"]
