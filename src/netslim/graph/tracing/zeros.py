"""Which activations are zero where the weights that make them are.

A product of two activations over some channels, of queries with keys, has no weight in which a
channel could be silenced. But it reads nothing of a channel that is zero on one of its sides, and
that is so where the rows of the layer that makes it are zero, with its bias, unless something on
the way makes more of a zero. So in a run in which heads become narrower it is known of each tensor
for which of its atoms that is so: a layer says it of all that it makes, what moves entries hands it
on, and so do products, sums of such tensors, and functions that leave zeros alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from netslim.graph.layers import ADDED_PRODUCTS, LINEAR
from netslim.graph.tracing.atoms import ATOM, Atoms, Vector, among
from netslim.graph.tracing.computed import MOVING, Formula

_LAYERS = frozenset({*LINEAR, *ADDED_PRODUCTS, "mm"})
_MOVED = MOVING | {"expand", "repeat", "repeat_interleave"}  # or the same entries several times
_LEFT_ALONE = frozenset({"neg", "relu", "gelu", "silu", "tanh", "div"})  # of 0 they make 0
_SUMS, _JOINED, _PRODUCTS = frozenset({"add", "sub"}), frozenset({"cat", "stack"}), {"mul"}
_NONE = np.empty(0, dtype=ATOM)
Known = Any  # `recorder.Labels`, which hold what is found here


def zeros_made(
    atoms: Atoms, operator: str, args: Sequence[Any], inputs: Sequence[Known], made: Known
) -> Vector:
    """The atoms for which a tensor is zero where all parameters that have them are.

    Args:
        atoms: of the run.
        operator: its ATen name.
        args: what it was given.
        inputs: labels of the tensors among that, in order.
        made: labels of the tensor.
    """
    known = [_zeros(labels) for labels in inputs]
    if operator in _LAYERS:
        weights = [z for labels, z in zip(inputs, known, strict=True) if labels.weight]
        return _among(atoms, _all(made), np.concatenate([_NONE, *weights]))
    if operator in _MOVED or operator in _LEFT_ALONE:
        return known[0]
    if operator in _PRODUCTS:
        return np.concatenate([_NONE, *known])
    if operator in _SUMS and not any(isinstance(a, (int, float)) and a for a in args):
        for other in known[1:]:
            known[0] = _among(atoms, known[0], other)
        return known[0]
    if operator in _JOINED:
        return _in_no_other(atoms, inputs, known)
    return _NONE


def _zeros(labels: Known) -> Vector:
    """Of an input: a parameter is zero where it is zero."""
    formula: Formula | None = labels.formula
    if not labels.weight:
        found: Vector | None = labels.zeros
        if found is None:
            return _NONE
        return found
    if formula is None or formula.moved:
        return _all(labels)
    return _NONE


def _in_no_other(atoms: Atoms, inputs: Sequence[Known], known: Sequence[Vector]) -> Vector:
    """Atoms for which each part that has them is zero."""
    found = np.concatenate([_NONE, *known])
    for labels, zeros in zip(inputs, known, strict=True):
        own = _all(labels)
        other = own[~among(atoms.find(own), atoms.find(zeros))]
        found = found[~among(atoms.find(found), atoms.find(other))]
    return found


def _among(atoms: Atoms, vector: Vector, others: Vector) -> Vector:
    """Those that are tied to some of the others."""
    found: Vector = vector[among(atoms.find(vector), atoms.find(others))]
    return found


def _all(labels: Known) -> Vector:
    """The atoms of all dimensions."""
    return np.concatenate([_NONE, *labels.dims.values()])


__all__ = ["zeros_made"]
