"""The rows of a plan: what of each group, tensor and attribute stays, and where merged entries go.

Where entries go is written in two ways. A row holds ``into``, one number for each *removed* entry,
which is short and empty for an ordinary cut. To calculate with, `destinations` spreads it over
*all* entries and `merging_rows` gathers it again. Of five entries, 0 and 3 kept, 1 merged into 3::

    kept (0, 3), removed (1, 2, 4), into (3, DROPPED, DROPPED)
    destinations [0, 3, DROPPED, 3, DROPPED]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from netslim.graph.groups import Slice, port_in_words

DROPPED = -1  # stands in ``into`` for what is merged into nothing


@dataclass(frozen=True)
class SizeLoss:
    """How much an integer that a module remembers loses with what goes of one group."""

    module: str
    attribute: str
    lost: int


@dataclass(frozen=True)
class GroupCut:
    """What happens to one group: ``kept`` unit numbers, in order, out of ``size``.

    ``into[i]`` is the kept unit that ``removed[i]`` is merged into, or `DROPPED`; ``()`` where all
    are dropped.

    ``slices`` says which entries of which tensors go with the units, so that the rows of a plan can
    be held against its groups; ``()`` where that is not known, as in plans of version 0.1.
    ``sizes`` says the same of the attributes that count the units, for the patches of a plan.
    """

    size: int
    kept: tuple[int, ...]
    exact: bool = True
    into: tuple[int, ...] = ()
    slices: tuple[Slice, ...] = field(default=(), compare=False, repr=False)
    sizes: tuple[SizeLoss, ...] = field(default=(), compare=False, repr=False)

    @property
    def removed(self) -> tuple[int, ...]:
        return complement(self.kept, self.size)

    @property
    def merged(self) -> int:
        """Number of units that are merged into another."""
        return sum(unit != DROPPED for unit in self.into)


@dataclass(frozen=True)
class TensorCut:
    """The kept indices of one axis of one parameter or buffer.

    ``role`` says what the axis does for the removed channels: ``producer`` (computes them),
    ``consumer`` (reads them), ``scale`` (multiplies them after a normalisation), ``channel`` (any
    other per-channel value) or ``silenced`` (is zero where they are silent, as what reads them).

    ``into``, where channels are merged and the axis reads them: entry ``removed[i]`` is added to
    entry ``into[i]`` (both numbers on the uncut axis), or goes for good (`DROPPED`); ``()`` where
    all go for good.
    """

    tensor: str
    axis: int
    size: int
    kept: tuple[int, ...]
    role: str
    into: tuple[int, ...] = ()

    @property
    def silences(self) -> bool:
        """Whether removed channels are silent once the removed entries are zero."""
        return "consumer" in self.role or "silenced" in self.role

    @property
    def removed(self) -> tuple[int, ...]:
        return complement(self.kept, self.size)


@dataclass(frozen=True)
class PortCut:
    """What stays of an input or output that shrinks.

    ``kind`` is ``input`` or ``output``, ``name`` what it goes by (``h``, ``output[1]``). Of
    ``size`` entries along ``dim`` the cut model takes or gives those in ``kept``, in order;
    ``into`` is as for `TensorCut`. ``fed_by`` is, of an input, the output that is fed back into it;
    ``""`` where none is.
    """

    kind: str
    name: str
    dim: int
    size: int
    kept: tuple[int, ...]
    into: tuple[int, ...] = ()
    fed_by: str = ""

    def __str__(self) -> str:
        what = port_in_words(self.kind, self.name, self.fed_by)
        return f"{what}: {self.size} -> {len(self.kept)} along dimension {self.dim}"

    @property
    def removed(self) -> tuple[int, ...]:
        return complement(self.kept, self.size)


@dataclass(frozen=True)
class OrderCut:
    """A buffer whose numbers mean channels: of ``size`` those in ``kept`` stay, numbered anew."""

    tensor: str
    size: int
    kept: tuple[int, ...]
    into: tuple[int, ...] = ()

    @property
    def removed(self) -> tuple[int, ...]:
        return complement(self.kept, self.size)

    def renumbered(self, numbers: Tensor) -> Tensor:
        """The numbers of what is left; of what goes any will do, for nothing picks it any more."""
        places = np.zeros(self.size, dtype=np.int64)
        places[list(self.kept)] = np.arange(len(self.kept))
        table = torch.from_numpy(places).to(numbers)
        return table[numbers.long() % self.size]


@dataclass(frozen=True)
class SizePatch:
    """An integer that the module's Python code remembers and that must follow the cut."""

    module: str
    attribute: str
    old: int
    new: int


def losses(groups: Mapping[str, GroupCut]) -> dict[tuple[str, str], int]:
    """(module, attribute) -> what it loses with all groups together."""
    total: Counter[tuple[str, str]] = Counter()
    for group in groups.values():
        for size in group.sizes:
            total[size.module, size.attribute] += size.lost
    return dict(total)


def bias_of(path: str) -> str:
    """The name of the bias of a module."""
    return f"{path}.bias".removeprefix(".")


def weight_of(path: str) -> str:
    """The name of the weight of a module."""
    return f"{path}.weight".removeprefix(".")


def destinations(cut: GroupCut | TensorCut | PortCut) -> np.ndarray:
    """Where each number ends, (size,): itself when kept, its survivor when merged, or `DROPPED`."""
    # Kept (0, 2) of 4 and into = (0, DROPPED): 0 -> 0, 1 -> 0, 2 -> 2, 3 goes.
    ends = np.arange(cut.size)
    ends[list(cut.removed)] = cut.into or DROPPED
    return ends


def merging_rows(ends: np.ndarray, kept: Iterable[int]) -> tuple[int, ...]:
    """``into`` from where every number ends; ``()`` where nothing is merged."""
    into = ends[list(complement(kept, len(ends)))]
    if (into == DROPPED).all():
        return ()
    return tuple(into.tolist())


def partners(
    positions: np.ndarray, units: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The entries of merged units in one axis, and for each the entry of the survivor it goes into.

    Where a unit owns several entries (a flattened map), its k-th goes into the k-th of its
    survivor.

    Args:
        positions: entries of the axis.
        units: the unit each belongs to; every unit has as many as the others.
        ends: for each unit where it ends, see `destinations`.
    """
    # A row for each unit, its entries in order: the k-th of one and the k-th of another are the
    # same place of a flattened map.
    table = positions[np.lexsort((positions, units))].reshape(len(ends), -1)
    merged = np.flatnonzero((ends != DROPPED) & (ends != np.arange(len(ends))))
    return table[merged].ravel(), table[ends[merged]].ravel()


def reduced(tensor: Tensor, cut: TensorCut, *, sums: bool = True) -> Tensor:
    """What stays of ``tensor`` on one axis: the kept entries, with those merged into them added.

    Sums are the same bit for bit on every device: ``index_add_`` adds entries of one place in any
    order, so it gets one member of each survivor at a time.

    Args:
        tensor: the uncut one.
        cut: what to keep.
        sums: False leaves out what is merged into the kept entries.
    """
    result = tensor.index_select(cut.axis, index(cut.kept, tensor.device))
    if not sums:
        return result
    for gone, places in _rounds(cut.kept, cut.size, cut.into):
        added = tensor.index_select(cut.axis, index(gone, tensor.device))
        result.index_add_(cut.axis, index(places, tensor.device), added)
    return result


@lru_cache(maxsize=256)  # a network of many concatenations keeps as many different ones
def index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """The numbers as an index tensor."""
    return torch.from_numpy(np.array(numbers)).to(device)  # by way of numpy four times as fast


@lru_cache(maxsize=64)
def _rounds(
    kept: tuple[int, ...], size: int, into: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(removed entries, places among the kept they are added to), each place once in a round."""
    if not into:
        return []
    place = {number: i for i, number in enumerate(kept)}
    members: Counter[int] = Counter()  # that each survivor has taken in so far
    rounds: list[list[tuple[int, int]]] = []
    for number, target in zip(complement(kept, size), into, strict=True):
        if target == DROPPED:
            continue
        # The n-th member of every survivor is in round n: 1 and 2 into 0, 4 into 3 make the rounds
        # (1, 4) and (2).
        if members[target] == len(rounds):
            rounds.append([])
        rounds[members[target]].append((number, place[target]))
        members[target] += 1
    return [(tuple(n for n, _ in pairs), tuple(p for _, p in pairs)) for pairs in rounds]


def complement(kept: Iterable[int], size: int) -> tuple[int, ...]:
    """The numbers of ``range(size)`` that are not in ``kept``, in order."""
    gone = np.ones(size, dtype=bool)
    gone[list(kept)] = False
    return tuple(np.flatnonzero(gone).tolist())
