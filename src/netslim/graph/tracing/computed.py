"""How weights were computed from parameters, and which zeros silence what they read.

A channel is silenced by zeros in the weight that reads it, and the proof of a cut writes these into
parameters. For ``softplus(w)`` there are no such zeros; in ``w + a @ b`` both ``w`` and ``b`` need
them; in ``exp(s) * w`` it is the second factor that matters. What an operator makes of zeros,
nothing but the operator itself knows. So each tensor that was computed from parameters alone keeps
its `Formula`, and where one reads channels it is worked out again, with every other channel's
entries of some of its parameters at zero: these silence it if the weight is zero there, and all
else in it is as it was.

The parameters have random values meanwhile. Fresh ones hide what matters: of ``w + a @ b`` an ``a``
of zeros, as adapters begin with, would say that ``b`` has no part in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from netslim.graph.modules.operators import operator, tensors_in
from netslim.graph.modules.unwrapping import without_values
from netslim.graph.tracing.atoms import Atoms, Vector, distinct
from netslim.graph.tracing.storages import storage_of

# What moves entries about, or copies them, makes zeros of zeros.
MOVING = frozenset(
    """
    t transpose permute numpy_T view _unsafe_view reshape _reshape_alias squeeze unsqueeze detach
    alias clone contiguous _to_copy slice select split split_with_sizes chunk unbind flip
    """.split()  # noqa: SIM905
)
_WRITTEN = "they are read by a computed weight that is written into part by part"
_NOT_ZERO = (
    "they are read by a computed weight that is not 0 where its parameter is 0, so that no "
    "parameter silences them"
)
_OTHERS = "they are read by a computed weight in which zeros of one channel change the others"


@dataclass(frozen=True, eq=False)
class Formula:
    """The operator that computed a tensor, on parameters, constants and other formulas.

    Attributes:
        func: the operator; None where nobody can say what became of the tensor.
        args: its arguments.
        kwargs: likewise.
        number: which of its tensors it is.
        moved: whether it holds entries of one parameter and nothing else.
        memory: what identifies the memory of the tensor.
        writes: how often that had been written to then; it may be again, through a view.
    """

    func: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    moved: bool = False
    memory: int | None = None
    writes: int = 0

    def value(self, values: Mapping[int, Tensor]) -> Tensor:
        """Work it out, with other ``values`` for parameters, by their ids."""
        # Iterations use what they have several times (``w = 1.5 * w - 0.5 * w @ w.t() @ w``): each
        # formula is worked out once, those that it is made of before it.
        done: dict[int, Tensor] = {}

        def given(leaf: Any) -> Any:
            if isinstance(leaf, Formula):
                return done[id(leaf)]
            if isinstance(leaf, Tensor):
                return values.get(id(leaf), leaf)
            return leaf

        for one in self.parts():
            args, kwargs = tree_map(given, (one.args, dict(one.kwargs)))
            done[id(one)] = one._run(args, kwargs)
        return done[id(self)]

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if operator(self.func).written:
            args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
        if "_weight_norm" in operator(self.func).name:
            return _weight_norm(args)
        return tensors_in(self.func(*args, **kwargs))[self.number]

    def parts(self) -> list[Formula]:
        """All that it is made of and itself, each once, behind what it is made of."""
        found: dict[int, Formula] = {}
        left = [self]
        while left:
            one = left[-1]
            inner = [f for f in one._leaves() if isinstance(f, Formula) and id(f) not in found]
            left += inner
            if not inner:
                found[id(left.pop())] = one
        return list(found.values())

    def parameters(self) -> dict[int, Tensor]:
        """The tensors that it was computed from, by their ids."""
        leaves = chain.from_iterable(one._leaves() for one in self.parts())
        return {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor)}

    def _leaves(self) -> list[Any]:
        return tree_leaves((self.args, dict(self.kwargs)))


UNKNOWN = Formula(None)


def constant(tensor: Tensor) -> Formula:
    """That of a tensor that stays as it is, whatever the parameters are."""
    return Formula(torch.ops.aten.detach.default, (tensor.detach(),))


class Formulas:
    """Those of a trace: how computed tensors were made, as long as nobody has written into them."""

    def __init__(self) -> None:
        self._writes: Counter[int | None] = Counter()

    def current(self, formula: Formula | None) -> Formula | None:
        """A formula, if it still holds: what it made may have been written to through a view."""
        if formula is None or formula.writes == self._writes[formula.memory]:
            return formula
        return UNKNOWN

    def made(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], known: Mapping[int, Any],
        outs: Sequence[Tensor],
    ) -> list[Formula]:  # fmt: skip
        """Those of the tensors that an operator has computed, given those of its arguments."""
        given = tensors_in(args, kwargs)
        moved = bool(args) and operator(func).name in MOVING
        if moved:  # they take one tensor, and it comes first
            args = (known.get(id(args[0]), args[0]), *args[1:])
            moved = not known or next(iter(known.values())).moved
        else:
            args, kwargs = tree_map_only(Tensor, lambda t: known.get(id(t), t), (args, kwargs))
        found = []
        for number, out in enumerate(outs):
            memory = _memory(out)
            made = Formula(func, args, kwargs, number, moved, memory, self._writes[memory])
            # A constant that was written into is no longer what the operator was given.
            if any(t is out and id(t) not in known for t in given):
                made = replace(made, func=None)
            found.append(made)
        return found

    def note_writes(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Count what an operator has written into."""
        for position, name in operator(func).written:
            into = kwargs.get(name)
            if position < len(args):
                into = args[position]
            for tensor in tensors_in(into):
                self._writes[_memory(tensor)] += 1


def silencing(atoms: Atoms, formula: Formula, dim: int, vector: Vector) -> tuple[list[Vector], str]:
    """Where zeros in parameters silence the entries ``vector`` of a computed weight's dimension.

    Returns (for each axis of a parameter its atoms, empty), or (none, why there are none).
    """
    if any(part.func is None for part in formula.parts()):
        return [], _WRITTEN
    try:
        return _Trial(atoms, formula, dim, vector).search()
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # it cannot be tried
        return [], _NOT_ZERO


class _Trial:
    """Works a formula out with zeros in some axes of its parameters."""

    def __init__(self, atoms: Atoms, formula: Formula, dim: int, vector: Vector) -> None:
        self.atoms, self.formula, self.dim, self.vector = atoms, formula, dim, vector
        self.tensors = formula.parameters()
        roots = distinct(atoms.find(vector[vector > 0]))
        # Every other channel: one that is silenced must leave its neighbours alone.
        self.gone = roots[::2]
        self.axes = self._axes(roots)
        self.draws = [(values, self._weight(values, ())) for values in self._values()]

    def _values(self) -> Iterator[dict[int, Tensor]]:
        """Two sets of values: random ones, and what is there, for a mask is what it is."""
        generator = torch.Generator().manual_seed(0)
        own = {key: t for key, t in self.tensors.items() if key in self.atoms.axes_of}
        floating = {key: t for key, t in own.items() if t.is_floating_point()}
        drawn = {key: _drawn(t, generator) for key, t in floating.items()}
        if not torch.isfinite(self._weight(drawn, ())).all():  # there are roots and logarithms
            drawn = {key: value.abs() for key, value in drawn.items()}
        yield drawn
        known = not any(map(without_values, self.tensors.values()))
        if known and torch.isfinite(self._weight({}, ())).all():
            yield {}

    def search(self) -> tuple[list[Vector], str]:
        """The fewest axes that silence it, a parameter rather than a mask; as for `silencing`."""
        whole = [*range(len(self.axes))]
        rest = [[i for i in whole if i != left] for left in whole]
        for chosen in (*([i] for i in whole), whole, *rest):
            if chosen and self._zero(chosen):
                break
        else:
            return [], _NOT_ZERO
        for i in reversed(chosen):  # the least important first
            fewer = [j for j in chosen if j != i]
            if fewer and self._zero(fewer):
                chosen = fewer
        if not self._others_stay(chosen):
            return [], _OTHERS
        return [self.axes[i][2] for i in chosen], ""

    def _axes(self, roots: Vector) -> list[tuple[int, int, Vector]]:
        """(id of a tensor, axis, atoms) of all that has entries of these classes."""
        found = []
        for key in self.tensors:
            for axis, own in self.atoms.axes_of.get(key, {}).items():
                if np.isin(self.atoms.find(own), roots).any():
                    found.append((key, axis, own))

        def importance(axis: tuple[int, int, Vector]) -> tuple[bool, int]:
            tensor = self.tensors[axis[0]]
            return isinstance(tensor, nn.Parameter), tensor.numel()

        return sorted(found, key=importance, reverse=True)

    def _weight(self, values: dict[int, Tensor], chosen: Sequence[int]) -> Tensor:
        """The weight, the axis in question first, with zeros for the silent in the ``chosen``."""
        values = dict(values)
        for key, axis, own in (self.axes[i] for i in chosen):
            value = values.get(key, self.tensors[key])
            values[key] = value.index_fill(axis, _where(self._silent(own), value), 0)
        return self.formula.value(values).movedim(self.dim, 0)

    def _silent(self, vector: Vector) -> Vector:
        return np.isin(self.atoms.find(vector), self.gone)

    def _zero(self, chosen: Sequence[int]) -> bool:
        for values, whole in self.draws:
            weight = self._weight(values, chosen)
            if weight[_where(self._silent(self.vector), whole)].any():
                return False
        return True

    def _others_stay(self, chosen: Sequence[int]) -> bool:
        for values, whole in self.draws:
            rest = _where(~self._silent(self.vector), whole)
            after = self._weight(values, chosen)[rest]
            if not torch.allclose(after, whole[rest], rtol=1e-3, atol=1e-4):
                return False
        return True


def _where(mask: Vector, tensor: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask)).to(tensor.device)


def _drawn(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random values of ordinary size, one in two negative, and none near 0."""
    value = torch.rand(tensor.shape, generator=generator) * 2 - 1
    value += value.sign() / 4
    if without_values(tensor):
        return value.to(tensor.dtype)
    return value.to(tensor)


def _weight_norm(args: Sequence[Any]) -> Tensor:
    """Weight norm of other directions and gains: where neither is 0 the weight stays as it was.

    A cut lets the gains follow what is left of the directions; the norm of zeros would be 0 / 0.
    """
    directions, gains = args[:2]
    return torch.where((directions == 0) | (gains == 0), 0.0, directions * gains)


def _memory(tensor: Tensor) -> int | None:
    storage = storage_of(tensor)
    if storage is None:
        return None
    return int(storage._cdata)


__all__ = ["MOVING", "UNKNOWN", "Formula", "Formulas", "constant", "silencing"]
