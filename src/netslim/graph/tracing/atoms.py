"""Atoms: a number for each entry of each parameter's and buffer's axis; tied atoms go together.

A convolution's weight of shape (8, 3, 3, 3) in a model's first place has the atoms 1 to 8 for its
output channels and 9 to 11 for what it reads; kernels have none. When ``a + b`` runs, the atoms of
a's channels are tied to those of b's, entry by entry; what is tied, directly or over others, is one
*class*, and a class is what can be removed alone.

Classes are kept as a union-find, in one array for all atoms: ``parent[i]`` is an atom that i is
tied to. Parents are never larger than their children, so the way up always ends, and it ends at the
smallest atom of the class. That makes it possible to tie whole vectors by a few array operations,
where a textbook union-find would run a Python loop over some hundred thousand entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from netslim.graph.modules.walk import named_modules, named_tensors

# 1-D: the atom of each entry of one tensor dimension; 0 is a constant that must stay.
Vector = np.ndarray

ATOM = np.int32
# What a weight does to channels, as bits: one axis of tied weights may make them and read them.
PRODUCER, CONSUMER, SCALE, CHANNEL = 1, 2, 4, 8
# No roles: other channels are added to these; they leave the network by an output that may shrink.
ADDED, LEAVES = 16, 32


@dataclass(frozen=True)
class Axis:
    """One axis of one parameter or buffer, and its range of atoms ``first .. first + size``."""

    tensor: str
    axis: int
    first: int
    size: int


class Atoms:
    """Union-find over NumPy vectors of atoms, with what is known of each atom.

    Nothing is frozen while the model runs: reasons are noted down and resolved over whole classes
    afterwards, so a frozen class keeps its identity and can say why it is frozen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.axes: list[Axis] = []
        self.tensors = dict(named_tensors(model))
        self.names = {id(tensor): name for name, tensor in self.tensors.items()}
        self.axes_of: dict[int, dict[int, Vector]] = {}  # id of a tensor -> axis -> its atoms
        self.only_axes: set[int] = set()  # numbers of the axes of tensors that have one
        # Of weight norm: the directions of an axis, and the gains that multiply them.
        self.gains: list[tuple[Vector, Vector]] = []
        self._whole: dict[int, int] = {}  # id of the atoms of a whole axis -> its number
        self._waiting: list[tuple[Vector, Vector]] = []  # to be tied before anybody asks
        # Labels that were found to be some, and that nobody can write into.
        self.looked_at: Vector = np.empty(0, dtype=ATOM)
        first = 1
        kernels = _kernel_weights(model)
        for name, tensor in self.tensors.items():
            for axis, size in enumerate(tensor.shape):
                if size > 1 and not (axis >= 2 and id(tensor) in kernels):
                    if tensor.dim() == 1:
                        self.only_axes.add(len(self.axes))
                    self.axes.append(Axis(name, axis, first, size))
                    first += size
        self._hand_out(first)
        self.parent = np.arange(first, dtype=ATOM)
        self.roles = np.zeros(first, dtype=np.uint8)
        self.frozen: list[tuple[Vector, str]] = []  # what must stay, and why
        self.coupled: list[tuple[Vector, str]] = []  # what changes the values of others, and how
        self.silent: list[Vector] = []  # read where all parameters that have them are zero
        self.order: dict[int, int] = {}  # number of an axis -> when it was first met
        sizes = [axis.size for axis in self.axes]
        self.axis_of = np.repeat(np.arange(-1, len(sizes), dtype=ATOM), [1, *sizes])

    def _hand_out(self, count: int) -> None:
        """Give each axis its atoms, in memory that no rule can make writable: all share them."""
        numbers = np.frombuffer(np.arange(count, dtype=ATOM).tobytes(), dtype=ATOM)
        self.axes_of.update((id(tensor), {}) for tensor in self.tensors.values())
        for number, axis in enumerate(self.axes):
            vector = numbers[axis.first : axis.first + axis.size]
            self.axes_of[id(self.tensors[axis.tensor])][axis.axis] = vector
            self._whole[id(vector)] = number

    def fresh(self, size: int) -> Vector:
        """Atoms for a dimension that no parameter has: what meets it is tied through them."""
        first = len(self.parent)
        vector = np.arange(first, first + size, dtype=ATOM)
        self.parent = np.concatenate([self.parent, vector])
        self.roles = np.concatenate([self.roles, np.zeros(size, dtype=np.uint8)])
        self.axis_of = np.concatenate([self.axis_of, np.full(size, -1, dtype=ATOM)])
        return vector

    def owned(self, vector: Vector) -> bool:
        """Whether a parameter or buffer is among what the first entry is tied to."""
        live = _live(vector)
        return bool(len(live)) and bool(self.axis_of[self.find(live[:1])[0]] >= 0)

    def of_one_axis(self, vector: Vector) -> bool:
        """Whether the first of these is of a tensor that has no other axis."""
        number = self._whole.get(id(vector))
        if number is None:
            number = int(self.axis_of[vector[0]])
        return number in self.only_axes

    def silence_gains(self) -> None:
        """What reads channels through weight norm is silenced in the gains.

        The weight is ``gain * direction / |direction|``: with directions of zero that is 0 / 0.
        """
        for directions, gains in self.gains:
            reads = (self.roles[directions] & (CONSUMER | PRODUCER)) == CONSUMER
            self.roles[gains[reads]] |= CONSUMER
            self.roles[directions[reads]] ^= CONSUMER | CHANNEL

    def inexact(self, vector: Vector) -> bool:
        """Whether cutting some of these changes others, as far as is known by now."""
        roots = self.find(vector)
        # Whoever asks does so right after a weight was normalised, say: the last entries first.
        for entries in (self.coupled[-3:], self.coupled[:-3]):
            if entries and among(roots, self._classes(entries)).any():
                return True
        return False

    def held(self, vector: Vector) -> bool:
        """Whether some of these stay, as far as is known by now."""
        return bool(self._staying(vector).any())

    def all_held(self, vector: Vector) -> bool:
        """Whether all of these stay, as far as is known by now."""
        return bool(self._staying(vector).all())

    def _staying(self, vector: Vector) -> np.ndarray:
        if not self.frozen:
            return np.zeros(len(vector), dtype=bool)
        return among(self.find(vector), self._classes(self.frozen))

    def _classes(self, entries: Sequence[tuple[Vector, str]]) -> Vector:
        """Those of what was noted: they may have been tied since then."""
        return self.find(np.concatenate([entry for entry, _ in entries]))

    def find(self, vector: Vector) -> Vector:
        """The class of each atom: the smallest atom it is tied to."""
        if self._waiting:
            left, right = zip(*self._waiting, strict=True)
            self._waiting.clear()
            self._tie(np.concatenate(left), np.concatenate(right))
        return self._found(vector)

    def _found(self, vector: Vector) -> Vector:
        """The same, of what has been tied by now."""
        # `take` is twice as fast as brackets, and counting as `all`.
        parent = self.parent
        root: Vector = parent.take(vector)
        above = parent.take(root)
        if not np.count_nonzero(above != root):
            return root
        while np.count_nonzero(above != root):
            root = above
            above = parent.take(root)
        parent[vector] = root  # a short cut: the next who asks is there in one step
        return root

    def tie(self, a: Vector, b: Vector, reason: Callable[[], str]) -> None:
        """Say that entry i of ``a`` and of ``b`` go together; whatever meets atom 0 must stay.

        It is done when somebody asks next: to tie a few long vectors costs less than many short
        ones, and most of a network runs without a question.
        """
        if self._has_constants(a) or self._has_constants(b):
            constant = (a == 0) | (b == 0)
            self.freeze(np.concatenate([a[constant], b[constant]]), reason())
            a, b = a[~constant], b[~constant]
        if len(a):
            self._waiting.append((self._lasting(a), self._lasting(b)))

    def is_axis(self, vector: Any) -> bool:
        """Whether these are the very atoms of a whole axis."""
        return id(vector) in self._whole

    def _lasting(self, vector: Vector) -> Vector:
        """The vector, or a copy if it may be written to meanwhile."""
        if self.is_axis(vector):
            return vector
        return vector.copy()

    def _has_constants(self, vector: Vector) -> bool:
        return not self.is_axis(vector) and int(np.count_nonzero(vector)) < len(vector)

    def _tie(self, a: Vector, b: Vector) -> None:
        while len(a):
            a, b = self._found(a), self._found(b)
            differ = a != b
            some = np.count_nonzero(differ)
            if not some:
                return
            if some < len(a):
                a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            self.parent[high] = low
            if not np.count_nonzero(self.parent.take(high) != low):
                return
            # Where one is tied to several, NumPy kept one of them alone: [5, 5] and [2, 3] left
            # 5 under 3. Keep the smallest, 2, and look again: 5 is now found as 2, and meets 3.
            np.minimum.at(self.parent, high, low)

    def freeze(self, vector: Vector, reason: str) -> None:
        """These must stay."""
        live = _live(vector)
        if len(live):
            self.frozen.append((live, reason))

    def couple(self, vector: Vector, reason: str) -> None:
        """Cutting these keeps shapes valid but changes the values of what remains."""
        live = _live(vector)
        if len(live):
            self.coupled.append((live, reason))

    def mark(self, vector: Vector, role: int) -> None:
        """Note the role of the atoms, and when their axis was first met: order of execution."""
        number = self._whole.get(id(vector))
        if number is None:
            vector = _live(vector)
            if not len(vector):
                return
            self.roles[vector] |= role
            number = int(self.axis_of[vector[0]])
        else:  # as nearly always, and quicker
            axis = self.axes[number]
            self.roles[axis.first : axis.first + axis.size] |= role
        self.order.setdefault(number, len(self.order))


def _kernel_weights(model: nn.Module) -> set[int]:
    """The ids of what has a kernel in its axes from 2 on, which no cut touches."""
    convolutions = (m for m in named_modules(model) if isinstance(m, nn.modules.conv._ConvNd))
    return {
        id(m.weight) for m in convolutions if isinstance(getattr(m, "weight", None), torch.Tensor)
    }


def _live(vector: Vector) -> Vector:
    """Those that are no constants."""
    if np.count_nonzero(vector) == len(vector):
        return vector
    return vector[vector > 0]


def among(vector: Vector, others: Vector) -> np.ndarray:
    """Whether each entry is one of the others (as `np.isin`, in a third of the time)."""
    if not len(vector) or not len(others):
        return np.zeros(len(vector), dtype=bool)
    low, high = int(np.minimum.reduce(others)), int(np.maximum.reduce(others))
    if high - low > 8 * (len(vector) + len(others)):
        return np.isin(vector, others)
    table = np.zeros(high - low + 3, dtype=bool)  # with a place for all below, and for all above
    table[others - (low - 1)] = True
    found: np.ndarray = table.take(vector - (low - 1), mode="clip")
    return found


def distinct(vector: Vector) -> Vector:
    """The values that occur, in order (as `np.unique`, without what that imports)."""
    return numbered(vector)[0]


def numbered(vector: Vector) -> tuple[Vector, Vector]:
    """(the values that occur, in order; for each entry which of them it is)."""
    if not len(vector):
        return vector, np.empty(0, dtype=np.int64)
    # Atoms of one group lie close together, and a table of what lies between costs less to fill
    # than a vector to sort.
    low, high = int(np.minimum.reduce(vector)), int(np.maximum.reduce(vector))
    if high - low < 8 * len(vector):
        place = vector - low
        occurs = np.zeros(high - low + 1, dtype=bool)
        occurs[place] = True
        return np.flatnonzero(occurs) + low, (np.cumsum(occurs) - 1).take(place)
    order = np.argsort(vector, kind="stable")
    ordered = vector[order]
    new = np.ones(len(ordered), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    number = np.empty(len(ordered), dtype=np.int64)
    number[order] = np.cumsum(new) - 1
    return ordered[new], number
