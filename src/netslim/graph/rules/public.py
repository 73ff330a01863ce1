"""Teach netslim an operator: ready-made rules, and what a rule of your own may use. See
docs/operators.md.

A rule is ``rule(recorder, func, out, *args, **kwargs)``: called after each call of the operator
with the operator itself, its result and its own arguments. It asks `recorder` for the labels of the
inputs, ties what must be cut together, and labels the result:

- ``recorder.get(tensor)`` -> `Labels`: ``.dims``, {dimension: one label for each entry, a 1-D NumPy
  array}, for the dimensions that belong to channels; ``.weight``, whether the tensor was computed
  from parameters alone.
- ``recorder.set(tensor, dims, weight)`` labels a result. Entries with equal labels are cut
  together.
- ``recorder.meet(left, right, what)`` ties two dimensions entry by entry and returns the labels of
  the result; either may be None, a size that cannot change: then the other stays too. ``what``
  names the operator in the reason.
- ``recorder.freeze(labels, reason)``: these channels cannot be cut.
- ``recorder.couple(labels, reason)``: they can, but that changes the values of the others
  (inexact).
- ``recorder.mark(labels of a weight, dimension, role)``: what the weight does along it: `PRODUCER`,
  `CONSUMER`, `SCALE` or `CHANNEL`.
- ``recorder.cost(name, *factors)`` counts multiply-accumulates: numbers, and labels where a size
  follows the cut. What the operator puts out then counts among the activations.
"""

from __future__ import annotations

from typing import Any

from netslim.errors import TraceError
from netslim.graph.rules.contracting import attention, convolution, linear
from netslim.graph.rules.elementwise import pointwise, same
from netslim.graph.rules.reducing import batch_norm, group_norm, layer_norm, reduction, softmax
from netslim.graph.rules.register import find_rule, operator_name, register_rule
from netslim.graph.rules.registry import Rule
from netslim.graph.tracing.atoms import CHANNEL, CONSUMER, PRODUCER, SCALE
from netslim.graph.tracing.recorder import Labels, Recorder

__all__ = [
    "CHANNEL",
    "CONSUMER",
    "PRODUCER",
    "SCALE",
    "Labels",
    "Recorder",
    "Rule",
    "attention",
    "batch_norm",
    "convolution",
    "group_norm",
    "layer_norm",
    "like",
    "linear",
    "pointwise",
    "reduction",
    "register_rule",
    "same",
    "softmax",
    "spatial",
]


def like(op: Any) -> Rule:
    """The rule netslim has for another operator that takes the same arguments:
    ``like("aten::max_pool2d")``.

    Raises:
        TraceError: ``op`` names no operator, or netslim has no rule for it.
    """
    name = operator_name(op)
    rule = find_rule(name)
    if rule is None:
        raise TraceError(f"netslim has no rule for {name} that another operator could take over")
    return rule


def spatial(dims: int) -> Rule:
    """A rule for pooling, resizing and padding over the last 1, 2 or 3 dimensions: the others keep
    their channels.

    Raises:
        TraceError: another number of dimensions.
    """
    if dims not in (1, 2, 3):
        raise TraceError(f"spatial takes 1, 2 or 3 dimensions, got {dims!r}")
    return like(f"aten::upsample_nearest{dims}d")
