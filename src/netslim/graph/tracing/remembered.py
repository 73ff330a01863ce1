"""Settle the sizes that Python remembers: which module attributes follow a cut, and which sizes
forbid it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from netslim.graph.tracing.atoms import ATOM, PRODUCER, Vector, distinct
from netslim.graph.tracing.recorder import Constraint, Recorder
from netslim.graph.tracing.sizes import evaluate, symbols

Bindings = dict[
    tuple[str, str], tuple[int, Vector]
]  # (module, attribute) -> (value, the dimension it follows)
_ROUNDS = 20


def settle(rec: Recorder) -> Bindings:
    """Bind module attributes to the dimensions they describe; tie or freeze channels whose sizes
    cannot follow.

    Each size must stay right whatever units go, so every constraint is tried with one unit and with
    half of the units of each family that it involves removed. A size that does not follow is made
    to: by letting a module attribute follow it, else by cutting the two dimensions alike; where
    neither helps, the channels stay. Each step can unsettle what was settled before, so all is
    tried again until nothing changes.
    """
    trial = _Trial(rec)
    for _ in range(_ROUNDS):
        changed = [trial.check(constraint) for constraint in rec.constraints]
        if not any(changed) and not trial.use_values():
            return trial.bindings
    trial.freeze_all()
    return trial.bindings


class _Trial:
    """Remove some units in thought and see whether the sizes in the code still fit."""

    def __init__(self, rec: Recorder) -> None:
        self.rec = rec
        self.rng = np.random.default_rng(0)
        self.bindings = self._asked_by_name()
        self._refresh()

    def check(self, constraint: Constraint) -> bool:
        """Make the constraint hold; whether anything had to change for it."""
        if self._follows(constraint):
            return False
        vectors = self._vectors(constraint)
        roots = self._live_roots(vectors)
        if not len(roots) or self._fits(constraint, roots):
            return False
        if not constraint.decision and self._bind_one(constraint, roots):
            return True
        if not self._tie(constraint):
            self._freeze(constraint, vectors)
        self._refresh()
        return True

    def _follows(self, constraint: Constraint) -> bool:
        """Whether the size is that of the very dimension that asks."""
        expr = constraint.expression
        if constraint.vector is None or expr[0] not in ("size", "attribute"):
            return False
        return self._vector(expr) is constraint.vector and constraint.size == len(constraint.vector)

    def use_values(self) -> bool:
        """Channels whose number is used as a value change what remains, or stay; whether any were
        found to.
        """
        froze = False
        for use in self.rec.values:
            vectors = [v for s in symbols(use.expression) if (v := self._vector(s)) is not None]
            for vector in vectors if len(self._live_roots(vectors)) else ():
                if use.soft:
                    self.rec.atoms.couple(vector, use.reason)
                else:
                    self.rec.atoms.freeze(vector, use.reason)
                    froze = True
        self.rec.values = [] if not froze else [use for use in self.rec.values if use.soft]
        if froze:
            self._refresh()
        return froze

    def freeze_all(self) -> None:
        """Give up on what still does not fit."""
        for constraint in self.rec.constraints:
            vectors = self._vectors(constraint)
            roots = self._live_roots(vectors)
            if len(roots) and not self._fits(constraint, roots):
                self._freeze(constraint, vectors)
                self._refresh()

    def _asked_by_name(self) -> Bindings:
        """Attributes that are asked for by name follow the dimension that asks, unless one cannot
        shrink.
        """
        asked: dict[tuple[str, str], list[Constraint]] = {}
        for c in self.rec.constraints:
            if isinstance(c.expression, tuple) and c.expression[0] == "attribute":
                asked.setdefault((c.expression[1], c.expression[2]), []).append(c)
        return {
            key: (constraints[0].size, first)
            for key, constraints in asked.items()
            if (first := constraints[0].vector) is not None
            and all(c.vector is not None for c in constraints)
        }

    def _refresh(self) -> None:
        atoms = self.rec.atoms
        self.root = atoms.find(np.arange(len(atoms.parent)))
        self.live = np.zeros(len(self.root), dtype=bool)
        self.live[self.root[(atoms.roles & PRODUCER) > 0]] = True
        for vector, _ in atoms.frozen:
            self.live[self.root[vector]] = False
        self.live[0] = False

    def _vectors(self, constraint: Constraint) -> list[Vector]:
        vectors = [self._vector(s) for s in symbols(constraint.expression)]
        return [v for v in (constraint.vector, *vectors) if v is not None]

    def _live_roots(self, vectors: list[Vector]) -> Vector:
        if not vectors:
            return np.empty(0, ATOM)
        roots = distinct(np.concatenate([self.root[v] for v in vectors]))
        return roots[self.live[roots]]

    def _fits(self, constraint: Constraint, roots: Vector) -> bool:
        if constraint.decision and constraint.expression[0] == "ne":
            return self._stay_unequal(constraint)
        half = roots[self.rng.permutation(len(roots))[: (len(roots) + 1) // 2]]
        for gone in (roots[:1], roots[-1:], half, *([roots[1:]] if constraint.decision else [])):
            wanted = (
                constraint.size
                if constraint.vector is None
                else self._kept(constraint.vector, gone)
            )
            if evaluate(constraint.expression, lambda s, gone=gone: self._value(s, gone)) != wanted:  # type: ignore[misc]
                return False
        return True

    def _stay_unequal(self, constraint: Constraint) -> bool:
        """Whether the larger of two sizes cannot be cut down to the smaller."""
        none = np.empty(0, ATOM)
        sides = [
            (evaluate(e, lambda s: self._value(s, none)), e) for e in constraint.expression[1:]
        ]
        (small, _), (_, expr) = sorted(sides, key=lambda side: side[0])
        vectors = [v for s in symbols(expr) if (v := self._vector(s)) is not None]
        return small < 1 or not len(self._live_roots(vectors))

    def _bind_one(self, constraint: Constraint, roots: Vector, alone: bool = False) -> bool:
        """Let one attribute inside a size follow, if that makes it fit; unless ``alone``, one more
        for each other.
        """
        before = dict(self.bindings)
        for symbol in symbols(constraint.expression):
            key = symbol[1:]
            if symbol[0] == "attribute" and key not in before:
                for target in self._targets(constraint):
                    self.bindings[key] = (self.rec.attributes[key], target)
                    if self._fits(constraint, roots) and self._others_fit(
                        symbol, constraint, alone
                    ):
                        return True
                    self.bindings = dict(before)
        return False

    def _targets(self, constraint: Constraint) -> list[Vector]:
        """The dimension that asks, or together with the others of a sum (``whole - part`` is the
        rest).
        """
        vectors = self._vectors(constraint)
        if constraint.vector is None:
            return vectors[:1]
        return [constraint.vector, np.concatenate(vectors)] if len(vectors) > 1 else vectors

    def _others_fit(self, symbol: Any, constraint: Constraint, alone: bool) -> bool:
        others = [
            c
            for c in self.rec.constraints
            if c is not constraint and symbol in symbols(c.expression)
        ]
        return all(self._fits_too(other, alone) for other in others)

    def _fits_too(self, constraint: Constraint, alone: bool) -> bool:
        roots = self._live_roots(self._vectors(constraint))
        if not len(roots) or self._fits(constraint, roots):
            return True
        return not (alone or constraint.decision) and self._bind_one(constraint, roots, alone=True)

    def _tie(self, constraint: Constraint) -> bool:
        """Cut two dimensions alike, where one size is a whole multiple of the other; whether that
        makes it fit.
        """
        vector = constraint.vector
        sources = [v for s in symbols(constraint.expression) if (v := self._vector(s)) is not None]
        if vector is None or len({id(v) for v in sources}) != 1:
            return False
        longer, shorter = sorted((vector, sources[0]), key=len, reverse=True)
        if not len(shorter) or len(longer) % len(shorter):
            return False
        for row in self._rows(longer, len(shorter)):
            self.rec.atoms.tie(
                row, shorter, lambda: f"it must stay as wide as constant channels{constraint.where}"
            )
        self._refresh()
        roots = self._live_roots([vector])
        return not len(roots) or self._fits(constraint, roots)

    def _rows(self, vector: Vector, width: int) -> Vector:
        """Lay a vector out in rows of ``width``, one after the other or interleaved: as it is tied
        already.
        """
        layouts = (vector.reshape(-1, width), vector.reshape(width, -1).T)
        return min(
            layouts, key=lambda rows: sum(len(distinct(column)) for column in self.root[rows].T)
        )

    def _freeze(self, constraint: Constraint, vectors: list[Vector]) -> None:
        decision, size = (
            "a decision in the code depends on it",
            "a size in the code cannot follow the cut",
        )
        what = decision if constraint.decision else size
        for vector in vectors:
            self.rec.atoms.freeze(vector, f"{what}{constraint.where}")

    def _vector(self, symbol: Any) -> Vector | None:
        if symbol[0] == "size":
            return self.rec.sizes[symbol[2]]
        bound = self.bindings.get(symbol[1:])
        return None if bound is None else bound[1]

    def _value(self, symbol: Any, gone: Vector) -> int:
        vector = self._vector(symbol)
        if vector is None:
            return self.rec.attributes[symbol[1:]]
        kept = self._kept(vector, gone)
        return (
            kept if symbol[0] == "size" else self.rec.attributes[symbol[1:]] * kept // len(vector)
        )

    def _kept(self, vector: Vector, gone: Vector) -> int:
        return len(vector) - int(np.isin(self.root[vector], gone).sum())
