"""The rows of a plan: what of each group, tensor and attribute stays, and where merged entries go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

DROPPED = -1  # stands in ``into`` for what is merged into nothing


@dataclass(frozen=True)
class GroupCut:
    """What happens to one group: ``kept`` unit numbers, in order, out of ``size``.

    ``into[i]`` is the kept unit that ``removed[i]`` is merged into, or `DROPPED`; ``()`` where all
    are dropped.
    """

    size: int
    kept: tuple[int, ...]
    exact: bool = True
    into: tuple[int, ...] = ()

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
    ``consumer`` (reads them), ``scale`` (multiplies them after a normalisation) or ``channel`` (any
    other per-channel value).

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
    def removed(self) -> tuple[int, ...]:
        return complement(self.kept, self.size)


@dataclass(frozen=True)
class SizePatch:
    """An integer that the module's Python code remembers and that must follow the cut."""

    module: str
    attribute: str
    old: int
    new: int


def destinations(cut: GroupCut | TensorCut) -> np.ndarray:
    """For each number where it ends, shape (size,): itself when kept, its survivor when merged,
    else `DROPPED`.
    """
    ends = np.arange(cut.size)
    ends[list(cut.removed)] = cut.into or DROPPED
    return ends


def merging_rows(ends: np.ndarray, kept: Iterable[int]) -> tuple[int, ...]:
    """``into`` from where every number ends; ``()`` where nothing is merged."""
    into = ends[list(complement(kept, len(ends)))]
    return tuple(into.tolist()) if (into != DROPPED).any() else ()


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
    table = positions[np.lexsort((positions, units))].reshape(len(ends), -1)
    merged = np.flatnonzero((ends != DROPPED) & (ends != np.arange(len(ends))))
    return table[merged].ravel(), table[ends[merged]].ravel()


def reduced(tensor: Tensor, cut: TensorCut, *, sums: bool = True) -> Tensor:
    """What stays of ``tensor`` on one axis: the kept entries, with those merged into them added.

    One member of each survivor is added at a time, so that sums are the same bit for bit on every
    device.

    Args:
        tensor: the uncut one.
        cut: what to keep.
        sums: False leaves out what is merged into the kept entries.
    """
    result = tensor.index_select(cut.axis, index(cut.kept, tensor.device))
    for gone, places in _rounds(cut.kept, cut.size, cut.into) if sums else ():
        result.index_add_(
            cut.axis,
            index(places, tensor.device),
            tensor.index_select(cut.axis, index(gone, tensor.device)),
        )
    return result


@lru_cache(maxsize=64)
def index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """The numbers as an index tensor."""
    return torch.tensor(numbers, device=device)


@lru_cache(maxsize=64)
def _rounds(
    kept: tuple[int, ...], size: int, into: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(removed entries, places among the kept ones they are added to), each place once in a round."""
    if not into:
        return []
    place = {number: i for i, number in enumerate(kept)}
    members: dict[int, int] = {}
    rounds: list[list[tuple[int, int]]] = []
    for number, target in zip(complement(kept, size), into, strict=True):
        if target != DROPPED:
            turn = members[target] = members.get(target, -1) + 1
            rounds += [[]] * (turn == len(rounds))
            rounds[turn] = [*rounds[turn], (number, place[target])]
    return [tuple(zip(*pairs, strict=True)) for pairs in rounds]  # type: ignore[misc]


def complement(kept: Iterable[int], size: int) -> tuple[int, ...]:
    """The numbers of ``range(size)`` that are not in ``kept``, in order."""
    gone = np.ones(size, dtype=bool)
    gone[list(kept)] = False
    return tuple(np.flatnonzero(gone).tolist())
