"""Atoms: one number for each entry of each parameter and buffer axis, and which of them must be cut
together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from netslim.graph.modules.walk import named_modules, named_tensors

Vector = (
    np.ndarray
)  # 1-D: the atom of each entry of one tensor dimension; 0 is a constant that must stay

ATOM = np.int32
PRODUCER, CONSUMER, SCALE, CHANNEL = 1, 2, 4, 8
ADDED = 16  # not a role: other channels are added to these


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
        self.names: dict[int, str] = {}
        self.axes_of: dict[int, dict[int, Vector]] = {}
        first = 1
        kernels = _kernel_weights(model)
        for name, tensor in named_tensors(model):
            self.names[id(tensor)] = name
            vectors: dict[int, Vector] = {}
            for axis, size in enumerate(tensor.shape):
                if size > 1 and not (axis >= 2 and id(tensor) in kernels):
                    self.axes.append(Axis(name, axis, first, size))
                    vectors[axis] = np.arange(first, first + size, dtype=ATOM)
                    first += size
            self.axes_of[id(tensor)] = vectors
        self.parent = np.arange(first, dtype=ATOM)
        self.roles = np.zeros(first, dtype=np.uint8)
        self.frozen: list[tuple[Vector, str]] = []
        self.coupled: list[tuple[Vector, str]] = []
        self.order: dict[int, int] = {}
        self.axis_of = np.full(first, -1, dtype=ATOM)
        for number, a in enumerate(self.axes):
            self.axis_of[a.first : a.first + a.size] = number

    def fresh(self, size: int) -> Vector:
        """Atoms for a dimension that no parameter has: what meets it is tied together through them."""
        first = len(self.parent)
        vector = np.arange(first, first + size, dtype=ATOM)
        self.parent = np.concatenate([self.parent, vector])
        self.roles = np.concatenate([self.roles, np.zeros(size, dtype=np.uint8)])
        self.axis_of = np.concatenate([self.axis_of, np.full(size, -1, dtype=ATOM)])
        return vector

    def owned(self, vector: Vector) -> bool:
        """Whether a parameter or buffer is among what the first entry is tied to."""
        live = vector[vector > 0]
        return bool(len(live)) and bool(self.axis_of[self.find(live[:1])[0]] >= 0)

    def find(self, vector: Vector) -> Vector:
        """The class of each atom: the smallest atom it is tied to."""
        parent = self.parent
        root = parent[vector]
        above = parent[root]
        if (above == root).all():
            return root
        while not (above == root).all():
            root = above
            above = parent[root]
        parent[vector] = root
        return root

    def tie(self, a: Vector, b: Vector, reason: Callable[[], str]) -> None:
        """Say that entry i of ``a`` and of ``b`` go together; whatever meets atom 0 must stay."""
        if not (a.all() and b.all()):
            constant = (a == 0) | (b == 0)
            self.freeze(np.concatenate([a[constant], b[constant]]), reason())
            a, b = a[~constant], b[~constant]
        while len(a):
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            self.parent[high] = low
            if (self.parent[high] == low).all():
                return
            np.minimum.at(
                self.parent, high, low
            )  # several are tied to one: no more than one of them was noted

    def freeze(self, vector: Vector, reason: str) -> None:
        """These must stay."""
        live = vector[vector > 0]
        if len(live):
            self.frozen.append((live, reason))

    def couple(self, vector: Vector, reason: str) -> None:
        """Cutting these keeps shapes valid but changes the values of what remains."""
        live = vector[vector > 0]
        if len(live):
            self.coupled.append((live, reason))

    def mark(self, vector: Vector, role: int) -> None:
        """Note the role the atoms play, and when their axis was first met (the order of execution)."""
        live = vector[vector > 0]
        if len(live):
            self.roles[live] |= role
            self.order.setdefault(int(self.axis_of[live[0]]), len(self.order))


def _kernel_weights(model: nn.Module) -> set[int]:
    convolutions = (m for m in named_modules(model) if isinstance(m, nn.modules.conv._ConvNd))
    return {
        id(m.weight) for m in convolutions if isinstance(getattr(m, "weight", None), torch.Tensor)
    }


def distinct(vector: Vector) -> Vector:
    """The values that occur, in order (as `np.unique`, without what that imports)."""
    return numbered(vector)[0]


def numbered(vector: Vector) -> tuple[Vector, Vector]:
    """(the values that occur, in order; for each entry which of them it is)."""
    order = np.argsort(vector, kind="stable")
    ordered = vector[order]
    new = np.ones(len(ordered), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    number = np.empty(len(ordered), dtype=np.int64)
    number[order] = np.cumsum(new) - 1
    return ordered[new], number
