"""Settle the sizes that Python remembers: which attributes follow a cut, which sizes forbid it.

While the model ran, every size that its code handed to PyTorch left a `Constraint`: "this
expression must equal the number of kept entries of that dimension". In
``y.reshape(b, self.heads, self.width // self.heads)`` the last one is ``width // heads`` for the
dimension of the channels. Today all of them hold; they must hold whatever units go.

In such an expression, what was read from a shape shrinks by itself. Attributes of modules do not:
they are numbers, and shrink only if the cut rewrites them. So there is something to find out, the
*bindings*: which attribute is the size of which dimension (``width`` of the channels, ``heads`` of
none). To *settle* the sizes is to find bindings with which every constraint holds; where there are
none, to take away cuts until there are: channels are tied, so that fewer sets of them can go, or
frozen. What it costs is freedom, never correctness.

It is done by trial and not by algebra: the code's arithmetic may be anything, and an expression is
cheap to work out. Units are removed in thought, the first, the last and half of all at random (by a
fixed seed: a model always gives the same graph), and both sides are compared. One unit finds what
is off by a constant or rounds, half of them what is off by a factor. It starts from the plain case,
an attribute that some dimension asked for as it is.

Settling one constraint may unsettle another: a new binding changes every expression with that
attribute in it, and a tie makes more go at once. So all are tried in rounds, until one changes
nothing. That comes to an end, as bindings and ties are only added and live channels only get fewer;
`_ROUNDS` is for the unforeseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from netslim.graph.tracing.atoms import ATOM, PRODUCER, Vector, among, distinct
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.records import Constraint
from netslim.graph.tracing.sizes import Expression, Size, Symbol, evaluate, symbols

# (module, attribute) -> (value, the dimension it follows)
Bindings = dict[tuple[str, str], tuple[int, Vector]]
_ROUNDS = 20
_NONE = np.empty(0, ATOM)
# As ``reshape(b, n, heads, c // heads)`` with the ``c`` of what goes into queries and keys.
_REMEDY = (
    "they go with other channels, by whose number the code lays them out: -1 or an attribute, such "
    "as head_dim, in its place would let them go by themselves"
)


def settle_sizes(rec: Recorder) -> Settled:
    """Bind attributes to the dimensions they describe; tie or freeze what could not follow.

    A size that does not follow is made to: by letting an attribute follow a dimension, else by
    cutting two dimensions alike; where neither helps, the channels stay.
    """
    trial = Settled(rec)
    for _ in range(_ROUNDS):
        # The values are looked at when the widths have come to rest: what was frozen for a width
        # that cannot follow may be used as one likes. What they freeze starts another round.
        changed = [trial.settle(constraint) for constraint in rec.constraints]
        if not any(changed) and not trial.use_values():
            return trial
    trial.freeze_unsettled()
    return trial


class Settled:
    """Removes some units in thought, to see whether the sizes in the code still fit.

    Attributes:
        bindings: which attribute follows which dimension.
    """

    def __init__(self, rec: Recorder) -> None:
        self.rec = rec
        self.rng = np.random.default_rng(0)
        self.bindings = self._asked_by_name()
        self._refresh()

    def settle(self, constraint: Constraint) -> bool:
        """Make the constraint hold; whether anything had to change for it."""
        if self._is_its_own(constraint):
            return False
        vectors = self._vectors(constraint)
        roots = self._live_roots(vectors)
        if not len(roots) or self._fits(constraint, roots):
            return False
        # From what costs nothing to what costs all: an attribute follows, fewer sets of channels
        # can go, none can. A decision binds nothing: that the code compares a size with 32 does
        # not make an attribute of it.
        if not constraint.decision and self._bind_one(constraint, roots):
            return True
        if not self._tie(constraint):
            self._freeze(constraint, vectors)
        self._refresh()
        return True

    def _is_its_own(self, constraint: Constraint) -> bool:
        """Whether the size is that of the very dimension that asks."""
        symbol, vector = constraint.expression, constraint.vector
        if vector is None or symbol[0] not in ("size", "attribute"):
            return False
        return self._vector(symbol) is vector and constraint.size == len(vector)

    def use_values(self) -> bool:
        """Freeze or couple channels whose number is used as a value; whether any were frozen.

        Asked last: what is frozen for another reason can be used as one likes.
        """
        froze = False
        for use in self.rec.values:
            vectors = self._vectors_in(use.expression)
            roots = self._live_roots(vectors)
            if not len(roots) or self._stays_the_same(use.expression, roots):
                continue
            for vector in vectors:
                if use.soft:
                    self.rec.atoms.couple(vector, use.reason)
                else:
                    self.rec.atoms.freeze(vector, use.reason)
                    froze = True
        # Once all is settled, none is left for another time; else the soft ones come again.
        self.rec.values = [use for use in self.rec.values if use.soft and froze]
        if froze:
            self._refresh()
        return froze

    def freeze_unsettled(self) -> None:
        """Give up on what still does not fit."""
        for constraint in self.rec.constraints:
            vectors = self._vectors(constraint)
            roots = self._live_roots(vectors)
            if len(roots) and not self._fits(constraint, roots):
                self._freeze(constraint, vectors)
                self._refresh()

    def live_among(self, expression: Expression) -> Vector:
        """The classes among those that a size is computed of which may go."""
        return self._live_roots(self._vectors_in(expression))

    def exact_among(self, expression: Expression) -> Vector:
        """Those of them that may go exactly."""
        roots = self.live_among(expression)
        if not len(roots):
            return roots
        exact: Vector = roots[~among(roots, self._coupled())]
        return exact

    def _coupled(self) -> Vector:
        coupled = self.rec.atoms.coupled
        if not coupled:
            return _NONE
        found: Vector = self.root[distinct(np.concatenate([vector for vector, _ in coupled]))]
        return found

    def without(self, size: Size, gone: Vector) -> int:
        """What a size is without these classes."""
        return self._evaluated(size.expression, gone)

    # --- what there is ----------------------------------------------------------------------------

    def _asked_by_name(self) -> Bindings:
        """Attributes asked for as they are follow the first dimension that asks.

        Not those that a dimension which cannot shrink asks for too.
        """
        asked: dict[tuple[str, str], list[Constraint]] = {}
        for constraint in self.rec.constraints:
            kind, *names = constraint.expression
            if kind == "attribute":
                asked.setdefault((names[0], names[1]), []).append(constraint)
        found: Bindings = {}
        for key, constraints in asked.items():
            first = constraints[0]
            if first.vector is not None and all(c.vector is not None for c in constraints):
                found[key] = (first.size, first.vector)
        return found

    def _refresh(self) -> None:
        """Look at the classes again, and at which of them may still be cut."""
        atoms = self.rec.atoms
        self.root = atoms.find(np.arange(len(atoms.parent)))
        self.marked: Vector | None = None
        # Live is a class that a layer makes and nothing holds: only these can go, so only these are
        # removed in thought.
        self.live = np.zeros(len(self.root), dtype=bool)
        self.live[self.root[(atoms.roles & PRODUCER) > 0]] = True
        for vector, _ in atoms.frozen:
            self.live[self.root[vector]] = False
        self.live[0] = False

    def _vector(self, symbol: Symbol) -> Vector | None:
        """The dimension whose size a symbol is; None for an attribute that follows nothing."""
        if symbol[0] == "size":
            return self.rec.sizes[symbol[2]]
        key = symbol[1], symbol[2]
        bound = self.bindings.get(key)
        if bound is None:
            return self.rec.owned.get(key)
        return bound[1]

    def _vectors_in(self, expr: Expression) -> list[Vector]:
        return [v for s in symbols(expr) if (v := self._vector(s)) is not None]

    def _vectors(self, constraint: Constraint) -> list[Vector]:
        """All dimensions that a constraint is about, the one that asks first."""
        vectors = self._vectors_in(constraint.expression)
        if constraint.vector is None:
            return vectors
        return [constraint.vector, *vectors]

    def _live_roots(self, vectors: list[Vector]) -> Vector:
        if not vectors:
            return _NONE
        roots = distinct(np.concatenate([self.root[v] for v in vectors]))
        live: Vector = roots[self.live[roots]]
        return live

    # --- removing units in thought ----------------------------------------------------------------

    def _kept(self, vector: Vector, gone: Vector) -> int:
        if self.marked is not gone:  # asked many times about the same
            self.goes = np.zeros(len(self.root), dtype=bool)
            self.goes[gone] = True
            self.marked = gone
        return len(vector) - int(np.count_nonzero(self.goes[self.root[vector]]))

    def _value(self, symbol: Symbol, gone: Vector) -> int:
        vector = self._vector(symbol)
        if vector is None:
            return self.rec.attributes[symbol[1], symbol[2]]
        kept = self._kept(vector, gone)
        if symbol[0] == "size":
            return kept
        # An attribute need not equal the size: ``expand = 4 * width`` follows in proportion, as
        # `SizeRule` will rewrite it.
        return self.rec.attributes[symbol[1], symbol[2]] * kept // len(vector)

    def _evaluated(self, expr: Expression, gone: Vector) -> int:
        return evaluate(expr, lambda symbol: self._value(symbol, gone))

    def _fits(self, constraint: Constraint, roots: Vector) -> bool:
        """Whether the constraint holds when some of the live units that it is about are gone."""
        if constraint.decision and constraint.expression[0] == "ne":
            return self._stay_unequal(constraint)
        # As of ``width > 32``, which only a deep cut turns round.
        for gone in self._trials(roots, deep=constraint.decision):
            wanted = constraint.size
            if constraint.vector is not None:
                wanted = self._kept(constraint.vector, gone)
            if self._evaluated(constraint.expression, gone) != wanted:
                return False
        return True

    def _trials(self, roots: Vector, deep: bool) -> Iterator[Vector]:
        """What is removed in thought; where it is ``deep``, in the end all but one."""
        # The first and the last, since ends may be special, as in what was joined or padded; half
        # of them, for what is off by a factor.
        yield roots[:1]
        yield roots[-1:]
        yield roots[self._half(len(roots))]
        if deep:
            yield roots[1:]

    def _stays_the_same(self, expr: Expression, roots: Vector) -> bool:
        """Whether a value is what it was without some of the channels it is computed from.

        As ``c // heads`` is, where so many of the channels go with each head.
        """
        value = self._evaluated(expr, _NONE)
        return all(self._evaluated(expr, gone) == value for gone in self._trials(roots, deep=True))

    def _half(self, number: int) -> Vector:
        return self.rng.permutation(number)[: (number + 1) // 2]

    def _stay_unequal(self, constraint: Constraint) -> bool:
        """Whether the larger of two sizes cannot be cut down to the smaller.

        No size becomes 0, but what is computed from sizes may, as a remainder.
        """
        _, left, right = constraint.expression
        sides = [(self._evaluated(side, _NONE), side) for side in (left, right)]
        (small, _), (_, larger) = sorted(sides, key=lambda side: side[0])
        never = small < 1 and not _may_vanish(larger)
        return never or not len(self._live_roots(self._vectors_in(larger)))

    # --- making them fit --------------------------------------------------------------------------

    def _bind_one(self, constraint: Constraint, roots: Vector, alone: bool = False) -> bool:
        """Let one attribute inside a size follow, if that makes it fit.

        Other constraints with that attribute must fit too. Unless ``alone``, each of them may bind
        one more attribute for that: in ``self.a - self.b`` both may have to follow.
        """
        before = dict(self.bindings)
        for symbol in symbols(constraint.expression):
            kind, *names = symbol
            key = names[0], names[1]
            if kind != "attribute" or key in before or key in self.rec.owned:
                continue
            # Tried on the real bindings, since everything below reads these; put back if in vain.
            for target in self._targets(constraint):
                self.bindings[key] = (self.rec.attributes[key], target)
                if self._fits(constraint, roots) and self._others_fit(symbol, constraint, alone):
                    return True
                self.bindings = dict(before)
        return False

    def _targets(self, constraint: Constraint) -> list[Vector]:
        """What an attribute might be the size of: the dimension that asks, or the whole of a sum.

        In ``whole - part`` the dimension that asks is the rest, and ``whole`` both of them.
        """
        vectors = self._vectors(constraint)
        if constraint.vector is None:
            return vectors[:1]
        if len(vectors) == 1:
            return vectors
        return [constraint.vector, np.concatenate(vectors)]

    def _others_fit(self, symbol: Symbol, constraint: Constraint, alone: bool) -> bool:
        others = [
            other
            for other in self.rec.constraints
            if other is not constraint and symbol in symbols(other.expression)
        ]
        return all(self._fits_too(other, alone) for other in others)

    def _fits_too(self, constraint: Constraint, alone: bool) -> bool:
        roots = self._live_roots(self._vectors(constraint))
        if not len(roots) or self._fits(constraint, roots):
            return True
        return not (alone or constraint.decision) and self._bind_one(constraint, roots, alone=True)

    def _tie(self, constraint: Constraint) -> bool:
        """Cut a dimension like another that it is a multiple of; whether that makes it fit."""
        vector = constraint.vector
        sources = self._vectors_in(constraint.expression)
        if vector is None or len({id(v) for v in sources}) != 1:
            return False
        longer, shorter = sorted((vector, sources[0]), key=len, reverse=True)
        if not len(shorter) or len(longer) % len(shorter):
            return False
        fate, own = self._fate(sources[0]), self._fate(vector)
        apart = not among(self.root[vector], self.root[sources[0]]).any()
        for row in self._rows(longer, len(shorter)):
            self.rec.atoms.tie(
                row, shorter, lambda: f"it must stay as wide as constant channels{constraint.where}"
            )
        self._refresh()
        roots = self._live_roots([vector])
        fits = not len(roots) or self._fits(constraint, roots)
        if fits and apart:
            for share, other in ((fate, vector), (own, sources[0])):
                if share is not None:
                    share(other, f"{_REMEDY}{constraint.where}")
            self._refresh()
        return fits

    def _fate(self, vector: Vector) -> Callable[[Vector, str], None] | None:
        """How channels are noted that share the fate of these; None if these may go exactly."""
        atoms = self.rec.atoms
        if atoms.held(vector):
            return atoms.freeze
        if atoms.inexact(vector):
            return atoms.couple
        return None

    def _rows(self, vector: Vector, width: int) -> Vector:
        """Lay a vector out in rows of ``width``, one after the other or interleaved.

        ``[a, b, a, b]`` or ``[a, a, b, b]``: as it is tied already, so that less is tied anew.
        """
        layouts = (vector.reshape(-1, width), vector.reshape(width, -1).T)
        return min(
            layouts, key=lambda rows: sum(len(distinct(column)) for column in self.root[rows].T)
        )

    def _freeze(self, constraint: Constraint, vectors: list[Vector]) -> None:
        what = "a size in the code cannot follow the cut"
        if constraint.decision:
            what = "a decision in the code depends on it"
        for vector in vectors:
            self.rec.atoms.freeze(vector, f"{what}{constraint.where}")


def _may_vanish(expr: Expression) -> bool:
    """Whether an expression may come out as 0 although no size in it is 0."""
    if not isinstance(expr, tuple) or expr[0] in ("size", "attribute"):
        return False
    return expr[0] in ("mod", "sub", "and", "xor") or any(map(_may_vanish, expr[1:]))
