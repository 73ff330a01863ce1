"""The labels that tensors carry while a model runs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.computed import Formula


class Labels(NamedTuple):
    """A tensor's atoms by dimension, and whether it was computed from parameters alone.

    ``formula`` says how, which netslim itself keeps; None for a parameter as it is. ``factors``, of
    an activation, are the weights that it is a product with (see `Recorder.computed`), ``mixed``
    those whose rows it is a mixture of, and ``zeros`` the atoms for which it is zero where their
    parameters are (zeros.py).

    Example:
        >>> def mirrored(recorder, func, out, x):  # for what turns channels round
        ...     labels: netslim.graph.rules.Labels = recorder.get(x)
        ...     dims = {**labels.dims, 1: labels.dims[1][::-1]}
        ...     recorder.set(out, dims, labels.weight)
        >>> rule = netslim.register_rule("mylib::mirrored", mirrored)
    """

    dims: Mapping[int, Vector]
    weight: bool
    formula: Formula | None = None
    factors: tuple[Labels, ...] = ()
    mixed: tuple[Labels, ...] = ()
    zeros: Vector | None = None


NOTHING = Labels({}, True)


class Labelled:
    """The tensors that carry labels, as long as they live.

    By id, since tensors are compared element by element; with a weak reference, so that nothing
    lives longer for being watched, and a new tensor at an old address inherits nothing.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Labels]] = {}

    def get(self, tensor: Any) -> Labels | None:
        """The labels of a tensor; None where it has none."""
        found = self._known.get(id(tensor))
        if found is None:
            return None
        return found[1]

    def put(self, tensor: Tensor, labels: Labels) -> None:
        """Give a tensor labels, in the place of those that it has."""
        key = id(tensor)
        self._known[key] = weakref.ref(tensor, partial(self._forget, key)), labels

    def drop(self, tensor: Tensor) -> None:
        """Take a tensor's labels away."""
        self._known.pop(id(tensor), None)

    def _forget(self, key: int, reference: weakref.ref[Tensor]) -> None:
        """A tensor has gone; a new one may have its id by then."""
        found = self._known.get(key)
        if found is not None and found[0] is reference:
            del self._known[key]


__all__ = ["NOTHING", "Labelled", "Labels"]
