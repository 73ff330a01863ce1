"""What each ATen operator does to labels, and all one needs to teach netslim another one.

`registry.RULES` maps the name of an operator (without overload) to its rule; pointwise operators
are known by their tag; `elementwise.fallback` freezes the rest. docs/operators.md shows how to
write a rule and hands it to `netslim.register_rule`. The functions here are ready-made ones:
``pointwise``, ``same``, ``spatial(n)``, ``reduction``, ``softmax``, ``linear``, ``convolution``,
``batch_norm``, ``layer_norm``, ``group_norm``, ``attention`` and ``like(op)``.

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

# Modules of rules, which nobody else imports: importing them fills the table.
from netslim.graph.rules import creating, picking, rearranging, recurring, writing  # noqa: F401
from netslim.graph.rules.contracting import attention, convolution, linear
from netslim.graph.rules.elementwise import pointwise, same
from netslim.graph.rules.reducing import batch_norm, group_norm, layer_norm, reduction, softmax
from netslim.graph.rules.register import like, register_rule, spatial
from netslim.graph.rules.registry import Rule
from netslim.graph.tracing.atoms import CHANNEL, CONSUMER, PRODUCER, SCALE
from netslim.graph.tracing.labels import Labels
from netslim.graph.tracing.recorder import Recorder

__all__ = [
    "CHANNEL", "CONSUMER", "PRODUCER", "SCALE", "Labels", "Recorder", "Rule", "attention",
    "batch_norm", "convolution", "group_norm", "layer_norm", "like", "linear", "pointwise",
    "reduction", "register_rule", "same", "softmax", "spatial",
]  # fmt: skip
