"""Settle the sizes that Python remembers: which module attributes follow a cut, and which sizes forbid it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .atoms import Vector
from .recorder import Constraint, Recorder
from .sizes import evaluate, symbols

Bindings = dict[tuple[str, str], tuple[int, Vector]]  # (module, attribute) -> (value, the dimension it follows)


def settle(rec: Recorder) -> Bindings:
    """Bind module attributes to the dimensions they describe; freeze the channels whose sizes cannot follow.

    Each size must stay right whatever units go, so every constraint is tried with one unit and with half of the
    units of each family that it involves removed.
    """
    bindings = _bind(rec)
    trial = _Trial(rec, bindings)
    for constraint in rec.constraints:
        trial.check(constraint)
    return bindings


def _bind(rec: Recorder) -> Bindings:
    """Attributes that are asked for by name follow the dimension that asks, unless two disagree."""
    asked: dict[tuple[str, str], list[Constraint]] = {}
    for c in rec.constraints:
        if c.expression[0] == "attribute":
            asked.setdefault((c.expression[1], c.expression[2]), []).append(c)
    bindings: Bindings = {}
    for key, constraints in asked.items():
        first = constraints[0].vector
        if first is not None and all(c.vector is not None for c in constraints):
            bindings[key] = (constraints[0].size, first)
    return bindings


class _Trial:
    """Remove some units in thought and see whether a size in the code still fits."""

    def __init__(self, rec: Recorder, bindings: Bindings) -> None:
        self.rec, self.bindings = rec, bindings
        atoms = rec.atoms
        self.root = atoms.find(np.arange(len(atoms.parent)))
        frozen = np.zeros(len(self.root), dtype=bool)
        for vector, _ in atoms.frozen:
            frozen[self.root[vector]] = True
        self.live = ~frozen
        self.live[0] = False
        self.rng = np.random.default_rng(0)

    def check(self, constraint: Constraint) -> None:
        vectors = [] if constraint.vector is None else [constraint.vector]
        vectors += [v for s in symbols(constraint.expression) if (v := self._vector(s)) is not None]
        roots = np.unique(np.concatenate([self.root[v] for v in vectors])) if vectors else np.empty(0, np.int64)
        roots = roots[self.live[roots]]
        if len(roots) and not self._fits(constraint, roots) and not self._bind_one(constraint, roots):
            for vector in vectors:
                self.rec.atoms.freeze(vector, f"a size in the code cannot follow the cut{constraint.where}")
                self.live[self.root[vector]] = False

    def _fits(self, constraint: Constraint, roots: Vector) -> bool:
        for gone in (roots[:1], roots[-1:], roots[self.rng.permutation(len(roots))[: (len(roots) + 1) // 2]]):
            kept = np.ones(len(self.root), dtype=bool)
            kept[gone] = False
            wanted = constraint.size if constraint.vector is None else int(kept[self.root[constraint.vector]].sum())
            if evaluate(constraint.expression, lambda s, kept=kept: self._value(s, kept)) != wanted:  # type: ignore[misc]
                return False
        return True

    def _bind_one(self, constraint: Constraint, roots: Vector) -> bool:
        """Let one attribute inside a computed size follow, if that makes it fit."""
        if constraint.vector is None:
            return False
        for symbol in symbols(constraint.expression):
            key = symbol[1:]
            if symbol[0] == "attribute" and key not in self.bindings:
                self.bindings[key] = (self._attribute(symbol), constraint.vector)
                if self._fits(constraint, roots) and self._others_fit(symbol, constraint):
                    return True
                del self.bindings[key]
        return False

    def _others_fit(self, symbol: Any, constraint: Constraint) -> bool:
        for other in self.rec.constraints:
            if other is not constraint and symbol in symbols(other.expression):
                vectors = [constraint.vector] + ([other.vector] if other.vector is not None else [])
                roots = np.unique(np.concatenate([self.root[v] for v in vectors if v is not None]))
                roots = roots[self.live[roots]]
                if len(roots) and not self._fits(other, roots):
                    return False
        return True

    def _vector(self, symbol: Any) -> Vector | None:
        if symbol[0] == "size":
            return self.rec.sizes[symbol[2]]
        bound = self.bindings.get(symbol[1:])
        return None if bound is None else bound[1]

    def _value(self, symbol: Any, kept: Vector) -> int:
        vector = self._vector(symbol)
        left = None if vector is None else int(kept[self.root[vector]].sum())
        if symbol[0] == "size":
            return int(left)  # type: ignore[arg-type]
        if left is None or vector is None:
            return self._attribute(symbol)
        return self._attribute(symbol) * left // len(vector)

    def _attribute(self, symbol: Any) -> int:
        return int(getattr(self.rec.model.get_submodule(symbol[1]), symbol[2]))
