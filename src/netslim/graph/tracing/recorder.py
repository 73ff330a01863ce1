"""What one run of a model teaches: labels of tensors, sizes, costs, and what must stay.

A tensor carries labels: for each dimension that belongs to a channel, the vector of its atoms.
"""

from __future__ import annotations

import os
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netslim.graph.counts import Call
from netslim.graph.tracing.atoms import Atoms, Vector
from netslim.graph.tracing.sizes import Size, expression, expressions_in, symbols
from netslim.graph.tracing.storages import IN_PLACE, Put, Storages, storages_of, tensors_in

_TORCH = str(Path(torch.__file__).parent) + os.sep
_HERE = str(Path(__file__).parent) + os.sep
_RUN = _HERE + "running.py"
FAILED = "the rule for"  # how the reason begins where a rule broke off
_TRACES = count()
_WHOLE = (
    "int",
    "round",
    "floor",
    "ceil",
    "trunc",
    "comparison",
)  # what sizes become, and cannot be followed


@dataclass(frozen=True)
class Labels:
    """What a tensor carries: atoms by dimension, and whether it was computed from parameters alone."""

    dims: Mapping[int, Vector]
    weight: bool


NOTHING = Labels({}, True)


@dataclass(frozen=True)
class Constraint:
    """After a cut the size ``expression`` must equal the number of kept entries of ``vector`` (or
    ``size``).
    """

    expression: Any
    vector: Vector | None
    size: int
    where: str
    decision: bool = False  # a comparison in the code, which must come out the same


@dataclass(frozen=True)
class ValueUse:
    """A size used as a number: ``soft`` where only values change with it."""

    expression: Any
    soft: bool
    reason: str


@dataclass(frozen=True)
class OperatorCost:
    """Multiply-accumulates of one operator: the product of its factors, numbers or counts of kept
    entries.
    """

    module: str
    operator: str
    factors: tuple[int | Vector, ...]
    call: Call


@dataclass
class Recorder:
    """Everything learnt from one run."""

    atoms: Atoms
    model: nn.Module
    labels: dict[int, tuple[Any, Labels]] = field(default_factory=dict)
    sizes: list[Vector] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    values: list[ValueUse] = field(default_factory=list)
    attributes: dict[tuple[str, str], int] = field(default_factory=dict)
    costs: list[OperatorCost] = field(default_factory=list)
    outputs: list[Put] = field(default_factory=list)
    storages: Storages = field(default_factory=Storages)
    unsupported: dict[str, set[str]] = field(default_factory=dict)
    numbers: dict[int, tuple[Any, Vector, str]] = field(default_factory=dict)
    calls: list[tuple[Any, tuple, dict]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    operator: Call = ("", 0)
    in_rule: bool = False
    training: bool = False
    touched: set[int] = field(default_factory=set)
    trace: int = field(default_factory=lambda: next(_TRACES))

    # --- labels -----------------------------------------------------------------------------------

    def get(self, tensor: Any) -> Labels:
        """The labels of a tensor; a constant has none."""
        found = self.labels.get(id(tensor))
        return NOTHING if found is None else found[1]

    def set(self, tensor: Tensor, dims: Mapping[int, Vector], weight: bool) -> None:
        """Give a tensor its labels, for as long as it lives."""
        key = id(tensor)
        for d in [d for d, vector in dims.items() if len(vector) == 1]:
            self.atoms.freeze(
                dims[d], f"a single channel is taken apart from the others{self.where()}"
            )
            dims = {other: v for other, v in dims.items() if other != d}
        if not dims and weight:
            self.labels.pop(key, None)
            return
        labels = self.labels

        def forget(reference: Any) -> None:
            entry = labels.get(key)
            if entry is not None and entry[0] is reference:
                del labels[key]

        labels[key] = (weakref.ref(tensor, forget), Labels(dims, weight))

    def meet(self, left: Vector | None, right: Vector | None, what: str) -> Vector | None:
        """Tie two dimensions that must keep equal sizes; a labelled one meeting an unlabelled one
        must stay.
        """
        if left is None or right is None:
            live = right if left is None else left
            if live is not None:
                self.atoms.freeze(live, f"it meets a fixed size in {what}{self.where()}")
            return live
        if left is not right:
            self.atoms.tie(
                left, right, lambda: f"it meets constant channels in {what}{self.where()}"
            )
        return left

    def freeze(self, vector: Vector | None, reason: str) -> None:
        """These channels must stay; ``reason`` completes "they stay: ...", the user's line is
        added.
        """
        if vector is not None:
            self.atoms.freeze(vector, f"{reason}{self.where()}")

    def couple(self, vector: Vector | None, reason: str) -> None:
        """Removing some of these channels changes the values of the others: inexact."""
        if vector is not None:
            self.atoms.couple(vector, f"{reason}{self.where()}")

    def mark(self, labels: Labels, dim: int, role: int) -> None:
        """Note a role for the atoms of a weight's dimension."""
        if labels.weight and dim in labels.dims:
            self.atoms.mark(labels.dims[dim], role)

    # --- sizes ------------------------------------------------------------------------------------

    def shape(self, tensor: Tensor, sizes: Any) -> Any:
        """The sizes of a tensor as the user's code sees them while tracing."""
        dims = self.get(tensor).dims
        if not dims:
            return sizes
        return torch.Size([self._size(value, dims.get(d)) for d, value in enumerate(sizes)])

    def _size(self, value: int, vector: Vector | None) -> int:
        if vector is None:
            return value
        self.sizes.append(vector)
        return Size(value, ("size", self.trace, len(self.sizes) - 1))

    def mine(self, value: Any) -> Any:
        """The expression of a size that this trace can resolve, or None for a number baked into the
        code.
        """
        if not isinstance(value, Size):
            return None
        leaves = list(symbols(value.expression))
        known = all(s[0] == "attribute" or s[1] == self.trace for s in leaves)
        return value.expression if leaves and known else None

    def constrain(self, value: Any, vector: Vector | None, size: int) -> None:
        """Ask that the size ``value`` of the user's code (None: PyTorch's own) follows ``vector``
        when channels go.
        """
        if value is None:
            return
        expr = self.mine(value)
        if expr is not None:
            self.constraints.append(Constraint(expr, vector, size, self.where()))
        elif vector is not None:
            self.atoms.freeze(
                vector, f"the size {int(value)} is written into the code{self.where()}"
            )

    def follow(self, value: Any, size: int) -> Vector | None:
        """The labels of a dimension that the user's code made as wide as ``value``; None for a
        plain number.
        """
        expr = self.mine(value)
        if expr is None:
            return None
        if expr[0] == "size":
            return self.sizes[expr[2]]
        vector = self.atoms.fresh(size)
        self.constraints.append(Constraint(expr, vector, size, self.where()))
        return vector

    def noticed(self, what: str, left: Size, right: Any) -> None:
        """The code compared two sizes, or made another number of one, and may depend on what it
        found.
        """
        if what == "float":
            if not self.in_rule:
                self.value(left, "float", soft=True)
            return
        if what in _WHOLE:
            if not (
                self.in_rule or sys._getframe(3).f_code.co_filename.startswith((_TORCH, _HERE))
            ):
                self.value(left, "a comparison" if what == "comparison" else what, soft=False)
            return
        a, b = self.mine(left), self.mine(right)
        b = expression(int(right)) if b is None else b
        if self.in_rule or a is None or a == b:
            return
        if what == "eq":
            self._equal(a, b)
        elif not sys._getframe(3).f_code.co_filename.startswith(_TORCH):
            self.constraints.append(Constraint((what, a, b), None, 1, self.where(), decision=True))

    def _equal(self, a: Any, b: Any) -> None:
        for one, other in ((a, b), (b, a)):
            if isinstance(one, tuple) and one[0] == "size":
                vector = self.sizes[one[2]]
                if isinstance(other, tuple):
                    self.constraints.append(Constraint(other, vector, len(vector), self.where()))
                else:
                    self.atoms.freeze(vector, f"the code expects the size {other}{self.where()}")
                return
        self.constraints.append(Constraint(("sub", a, b), None, 0, self.where()))

    def value(self, number: Any, function: str, soft: bool) -> None:
        """The user's code passed a size where its value matters, not the width of some channels."""
        for expr in expressions_in(number):
            if any(s[0] == "attribute" or s[1] == self.trace for s in symbols(expr)):
                names = [
                    ".".join(filter(None, s[1:])) for s in symbols(expr) if s[0] == "attribute"
                ]
                given = names[0] if names else "their number"
                what = (
                    "the number of channels is used as a value"
                    if soft
                    else f"{function} takes {given}"
                )
                self.values.append(ValueUse(expr, soft, f"{what}{self.where()}"))

    # --- context ----------------------------------------------------------------------------------

    @property
    def call(self) -> tuple[Any, tuple, dict]:
        """The innermost function the user's code called: (function, args, kwargs)."""
        return self.calls[-1] if self.calls else (None, (), {})

    @property
    def module(self) -> str:
        """Path of the module that is running."""
        return self.modules[-1] if self.modules else ""

    def where(self) -> str:
        """``" (file.py:12)"``: the line of the user's code that is running."""
        frame = sys._getframe(1)
        while self.in_rule and frame is not None and frame.f_code.co_name != "__torch_dispatch__":
            frame = frame.f_back  # type: ignore[assignment]  # past rules that were registered from outside
        while frame is not None:
            name = frame.f_code.co_filename
            if name == _RUN:  # generated code has no file
                break
            if not name.startswith((_TORCH, _HERE, "<")):
                return f" ({Path(name).name}:{frame.f_lineno})"
            frame = frame.f_back  # type: ignore[assignment]
        return f" (module {self.module})" if self.module else ""

    def unknown(
        self, operator: str, inputs: list[Labels], why: str = "netslim has no rule for"
    ) -> None:
        """Freeze everything an operator without a rule touches, and list it."""
        touched = [v for labels in inputs for v in labels.dims.values()]
        if touched:
            self.unsupported.setdefault(operator, set()).add(self.module)
            for vector in touched:
                self.atoms.freeze(vector, f"{why} {operator}{self.where()}")

    def number(self, tensor: Tensor, vector: Vector, operator: str) -> None:
        """``tensor`` tells channels by their numbers: whoever uses it makes them stay."""
        reason = f"{operator} gives the numbers of channels{self.where()}"
        self.numbers[id(tensor)] = (weakref.ref(tensor), vector, reason)

    def used(self, tensors: list[Tensor]) -> None:
        """Freeze the channels whose numbers are used."""
        for tensor in tensors:
            found = self.numbers.get(id(tensor))
            if found is not None and found[0]() is tensor:
                self.atoms.freeze(found[1], found[2])

    def failed(self, error: Exception, inputs: list[Labels], out: list[Tensor]) -> None:
        """A rule broke off: its operator is listed, and what it touches stays as without a rule."""
        operator, where = self.operator[0], self.module or "the model itself"
        reason = f"{FAILED} {operator} failed in {where} with {_said(error)}{self.where()}"
        self.unsupported.setdefault(operator, set()).add(self.module)
        for labels in [*inputs, *map(self.get, out)]:
            for vector in labels.dims.values():
                self.atoms.freeze(vector, reason)
        for tensor in out:
            self.set(tensor, {}, all(labels.weight for labels in inputs))

    def begin(self, operator: str) -> None:
        """An operator has run, and its rule is next."""
        self.operator = operator, self.operators[operator]
        self.operators[operator] += 1

    def cost(self, operator: str, *factors: int | Vector | None) -> None:
        """Count multiply-accumulates: what makes an operator a layer."""
        given = tuple(f for f in factors if f is not None)
        self.costs.append(OperatorCost(self.module, operator, given, self.operator))

    def put_out(self, operator: str, inputs: list[Tensor], out: Any, layer: bool) -> None:
        """Note the tensors that an operator made of ``inputs``; the first one of a ``layer`` is its
        activation.
        """
        read = storages_of(inputs)
        moving = self.storages.moving(read)
        puts = [t for t in tensors_in(out) if t.numel()]
        for i, tensor in enumerate(puts):
            dims = self.get(tensor).dims
            if i and not dims:
                dims = self._statistics(puts[0], tensor)
            factors = tuple([dims.get(d, n) for d, n in enumerate(tensor.shape)])
            kind = self.storages.put(tensor, factors, read, step=not i)
            if any(tensor is given for given in inputs):
                kind = IN_PLACE
            active = layer and moving and not i
            self.outputs.append(
                Put(self.module, operator, factors, tensor.itemsize, active, not moving, kind)
            )

    def _statistics(self, first: Tensor, tensor: Tensor) -> Mapping[int, Vector]:
        """What an operator puts out beside its result has no labels: the sizes that it shares with
        the result.
        """
        dims = self.get(first).dims
        shift = int(tensor.dim() == 1 and first.dim() > 1)  # of channels
        pairs = zip(tensor.shape, first.shape[shift:], strict=False)
        return {
            d: dims[d + shift] for d, (n, m) in enumerate(pairs) if n == m and d + shift in dims
        }


def _said(error: Exception) -> str:
    """``KeyError: 1 at rules.py:33``: an error on one line, and where it was raised."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first} at {Path(frame.f_code.co_filename).name}:{line}"
