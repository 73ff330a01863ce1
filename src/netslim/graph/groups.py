"""`ChannelGroup`s: units that compete with each other, where they lie, and whether they can go."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from netslim._support import checks_calls
from netslim.graph.counts import Count
from netslim.graph.modules.padded_norms import NormWidth
from netslim.graph.modules.walk import layer_of
from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.recorder import FAILED
from netslim.graph.words.phrases import TEACH, amount, enumerated

_REASONS = 6
_INEXACT = (
    "They can be cut only with allow_inexact=True, because that changes the values of those that "
    "remain"
)
# What is exact where its call can be found in the code of a module.
_OVER_CHANNELS = re.compile(
    "(mean|sum|a?max|a?min|var|std|norm|linalg_vector_norm|layer normalisation|group normalisation)"
    " over the"
)
_OF_ITS_OWN = (
    "A normalisation, a mean, a sum or a maximum over channels is exact where a module of its own "
    "computes it, or a line in a method of one or in a function that this calls by its name: not "
    "in a lambda, under a decorator, or where one line is run for layers of several widths."
)
_VERBS = {"producer": "Made", "scale": "Scaled", "channel": "Carried", "consumer": "Read"}


@dataclass(frozen=True, init=False)
class Slice:
    """Where a group lives in one axis of one tensor: ``positions[i]`` belongs to ``units[i]``.

    ``mixed`` says that weights which read the units take part in making them as well (tied
    weights). With the role ``silenced`` an axis that makes units stands here once more, where they
    are silenced at that end: the product of queries and keys, which reads them, has no weights.

    Example:
        >>> first: netslim.graph.Slice = netslim.trace(model, images)["features.0"].slices[0]
        >>> first.tensor, first.axis, first.role, len(first.positions)
        ('features.0.weight', 0, 'producer', 8)
    """

    tensor: str
    axis: int
    role: str
    positions: Vector
    units: Vector
    mixed: bool = False

    def __init__(
        self,
        tensor: str,
        axis: int,
        role: str,
        positions: Vector,
        units: Vector,
        mixed: bool = False,
    ) -> None:
        # All at once: a network of 300 dense layers has 200,000 of these.
        vars(self).update(
            tensor=tensor, axis=axis, role=role, positions=positions, units=units, mixed=mixed
        )


def reading(slices: Sequence[Slice]) -> list[Slice]:
    """Those where units are silenced: of what reads them, and of what no weights read."""
    return [s for role in ("consumer", "silenced") for s in slices if s.role == role]


@checks_calls
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
        of_heads: whether a unit is a channel of every head of attention. Whole heads are another
            group then, with the same entries; where both are cut, what both keep stays.
        block: whether it is no group of channels but a residual branch (`netslim.graph.blocks`):
            its one unit may go, and with it all that feeds the branch.
        stands_for: of a block, the fewest channels that a layer of it makes; without these, too,
            the branch would be silent.

    Example:
        >>> group: netslim.graph.ChannelGroup = netslim.trace(model, images)["features.0"]
        >>> group.size, group.verdict
        (8, 'exact')
        >>> [part.tensor for part in group.tensors("consumer")]
        ['features.4.weight']
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
    of_heads: bool = False
    block: bool = False
    stands_for: int = 1

    def __repr__(self) -> str:
        if self.block:
            return f"<ChannelGroup {self.name!r}: a block>"
        return f"<ChannelGroup {self.name!r}: {self.size} channels, {self.verdict}>"

    def __str__(self) -> str:
        return "\n  ".join(described(self))

    @property
    def verdict(self) -> str:
        """``"exact"``, ``"inexact"`` (may be cut with ``allow_inexact=True``) or ``"stays"``."""
        if self.frozen:
            return "stays"
        if self.exact:
            return "exact"
        return "inexact"

    @property
    def prunable(self) -> bool:
        """Whether units of this group can be cut exactly."""
        return self.exact and not self.frozen

    def tensors(self, role: str) -> list[Slice]:
        """The slices with this role: producer, consumer, scale, channel or silenced."""
        return [s for s in self.slices if s.role == role]

    @property
    def readers(self) -> list[Slice]:
        """The slices where units are silenced: of what reads them, and of what no weights read."""
        return reading(self.slices)


@dataclass(frozen=True)
class SizeRule:
    """A module attribute that follows the kept entries of a dimension: ``old * kept / size``."""

    module: str
    attribute: str
    old: int
    count: Count


@dataclass(frozen=True)
class NormRule:
    """A normalisation over channels that goes on over as many of them when some are cut.

    ``row`` is what a plan says of it. ``casts`` says that it computes in float32 whatever it is
    given, ``bare`` that it has no weights. Of the entries of its input along the dimension of the
    row, ``groups`` and ``units`` are the numbers of the group and the unit, -1 for none.
    """

    row: NormWidth
    casts: bool
    bare: bool
    groups: Vector
    units: Vector

    @property
    def module(self) -> str:
        """The path of the module that normalises."""
        return self.row.module

    def planned(self, gone: Vector) -> NormWidth:
        """The row of a plan that removes these entries."""
        if not self.bare:
            return self.row
        return replace(self.row, size=len(self.groups), lost=tuple(gone.tolist()))

    def gone(self, masks: Mapping[int, Vector]) -> Vector:
        """The entries that go where group ``g`` keeps units ``masks[g]``, in order."""
        gone = np.zeros(len(self.groups), dtype=bool)
        for number, mask in masks.items():
            own = self.groups == number
            gone[own] = ~mask.take(self.units[own])
        return np.flatnonzero(gone)


@dataclass(frozen=True)
class Order:
    """A buffer whose numbers mean channels; of each channel the numbers of its group and unit."""

    tensor: str
    groups: Vector
    units: Vector


@dataclass(frozen=True)
class Port:
    """An input or output that may shrink: what of it goes with which channels.

    Attributes:
        kind: ``"input"`` or ``"output"``.
        name: ``h``, ``state.h``, ``output[1]``.
        dim: the dimension that holds the channels.
        groups: of each entry the number of its group, -1 for none.
        units: and of the unit.
        fed_by: of an input, the output that is fed back into it; ``""`` where none is.
    """

    kind: str
    name: str
    dim: int
    groups: Vector
    units: Vector
    fed_by: str = ""

    def __str__(self) -> str:
        return port_in_words(self.kind, self.name, self.fed_by)


def port_in_words(kind: str, name: str, fed_by: str) -> str:
    """``output[1]``, ``input h (output[1], fed back)``."""
    what = f"{kind} {name}"
    if name.startswith(kind):
        what = name
    if fed_by:
        what += f" ({fed_by}, fed back)"
    return what


def described(group: ChannelGroup) -> list[str]:
    """What is to be said about a group alone, a sentence each."""
    if group.block:
        return [f"Block {group.name}: a residual branch, which can go as a whole."]
    title = f"Group {group.name}: {amount(group.size, 'channel')}."
    if group.of_heads:
        title = f"Group {group.name}: {amount(group.size, 'channel')} of every head."
    return [title, *_fate(group), *_layers(group), *_rows(group)]


def _fate(group: ChannelGroup) -> list[str]:
    """Why it can or cannot go."""
    if group.prunable:
        return ["They can be cut exactly: removing some equals silencing them."]
    reasons = group.reasons or (str(group.reason),)
    said = _INEXACT
    if group.frozen:
        said = "They stay"
    if len(reasons) == 1:
        lines = [f"{said}: {reasons[0]}."]
    else:
        lines = [f"{said}:", *(f"  - {reason}" for reason in reasons[:_REASONS])]
    if len(reasons) > _REASONS:
        lines.append(f"  - and {len(reasons) - _REASONS} more")
    if any("no rule for" in reason or reason.startswith(FAILED) for reason in reasons):
        lines.append(f"{TEACH}.")
    if not group.frozen and any(map(_OVER_CHANNELS.match, reasons)):
        lines.append(_OF_ITS_OWN)
    return lines


def _layers(group: ChannelGroup) -> list[str]:
    """Which layers make, scale, carry and read the channels."""
    told: set[str] = set()
    lines = []
    for role, verb in _VERBS.items():
        layers = dict.fromkeys(layer_of(s.tensor) or s.tensor for s in group.tensors(role))
        new = [layer for layer in layers if role in ("producer", "consumer") or layer not in told]
        told.update(layers)
        together = ""
        if role == "producer" and len(new) > 1:
            together = ", which therefore lose the same ones"
        if new:
            lines.append(f"{verb} by {enumerated(new, 8)}{together}.")
    if group.tensors("silenced"):
        lines.append("A product of queries and keys reads them.")
    elif not group.tensors("consumer"):
        lines.append("No weights read them.")
    return lines


def _rows(group: ChannelGroup) -> list[str]:
    """How many entries go with each channel, where it is more than one."""
    many: dict[int, list[str]] = {}
    for s in [s for s in group.slices if s.role != "silenced"]:
        if per_unit(s, group) > 1:
            many.setdefault(per_unit(s, group), []).append(f"{s.tensor} (axis {s.axis})")
    return [
        f"With each channel go {n} entries of {enumerated(where, 6)}." for n, where in many.items()
    ]


def per_unit(part: Slice, group: ChannelGroup) -> int:
    """Entries of the slice that go with each channel of the group."""
    return len(part.positions) // group.size


__all__ = ["ChannelGroup", "NormRule", "Order", "Port", "SizeRule", "Slice", "port_in_words"]
