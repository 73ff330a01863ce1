"""What the operators of the traced call put out, and how much of it is in memory at once.

Both are asked for under any cut, often thousands of times by a search for a budget, so what one run
taught is boiled down first (`memory`). Bytes of a tensor are a product of counts, and many tensors
have the same product: they become one *block*, and a moment is a row that says how many of each
block are alive. The peak under a cut is then the largest entry of ``moments @ bytes of blocks``.
Moments that have no more of any block than another one can never be the fullest and are dropped;
of some hundred, a handful is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from netslim.graph.counts import Count, product
from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.storages import RecordedOutput, Span

Counter = Callable[[int | Vector], Count]


@dataclass(frozen=True)
class Output:
    """One tensor that an operator of the traced call put out.

    Attributes:
        module: path of the module that called the operator.
        operator: its ATen name, without overload.
        factors: its sizes, dimension by dimension.
        itemsize: bytes of one element.
        layer: whether it is what a convolution, linear layer, matrix product, attention or
            recurrent layer computed from the inputs: these are "activations".
        constant: whether it does not depend on the inputs of the model, as a standardised weight.
        kind: ``"new"`` memory, ``"in-place"`` in one of the operator's inputs, or a ``"view"`` of
            memory there was.
        gates: as those of `netslim.graph.counts.Cost`.
    """

    module: str
    operator: str
    factors: tuple[Count, ...]
    itemsize: int
    layer: bool
    constant: bool
    kind: str
    gates: tuple[Count, ...] = ()

    @property
    def terms(self) -> tuple[Count, ...]:
        """Factors and gates."""
        return self.factors + self.gates

    def elements(self, masks: Mapping[int, Vector]) -> int:
        """Number of elements under the masks."""
        return product(self.terms, masks)

    def bytes(self, masks: Mapping[int, Vector]) -> int:
        """Bytes of its elements under the masks."""
        return self.elements(masks) * self.itemsize


@dataclass(frozen=True)
class Lifetime:
    """One piece of memory of ``size`` bytes, in proportion to the product of ``factors``.

    It is alive from step ``born`` until before step ``died``; a step is an operator that takes new
    memory.
    """

    factors: tuple[Count, ...]
    size: int
    born: int
    died: int


@dataclass(frozen=True)
class Block:
    """Memory whose bytes are ``unit`` times the product of ``factors``, which all follow a cut."""

    unit: Fraction
    factors: tuple[Count, ...]

    def bytes(self, masks: Mapping[int, Vector]) -> int:
        """Bytes under the masks."""
        return int(product(self.factors, masks) * self.unit)


@dataclass(frozen=True, eq=False)
class Memory:
    """Which intermediate tensors are in memory at once.

    Attributes:
        blocks: the different sizes of tensors; all that no cut changes is one block of one byte,
            without factors.
        steps: (moments, blocks), how many of each block are alive, at the moments that can be the
            fullest.
    """

    blocks: tuple[Block, ...] = ()
    steps: Vector = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))

    def peak(self, masks: Mapping[int, Vector]) -> int:
        """Most bytes alive at once under the masks."""
        if not len(self.steps):
            return 0
        sizes = np.array([block.bytes(masks) for block in self.blocks], dtype=np.int64)
        return int((self.steps @ sizes).max())


def outputs(recorded: Sequence[RecordedOutput], count: Counter) -> tuple[Output, ...]:
    """The recorded tensors with their sizes as counts."""
    made = []
    for r in recorded:
        sizes = tuple(map(count, r.factors))
        made.append(Output(r.module, r.operator, sizes, r.itemsize, r.layer, r.constant, r.kind))
    return tuple(made)


def lifetimes(spans: Sequence[Span], count: Counter) -> tuple[Lifetime, ...]:
    """The recorded memory with its sizes as counts."""
    end = max((s.born for s in spans), default=0) + 1
    found = []
    for s in spans:
        if s.size:
            died = s.died
            if died is None:
                died = end
            found.append(Lifetime(tuple(map(count, s.factors)), s.size, s.born, died))
    return tuple(found)


def memory(lifetimes: Sequence[Lifetime]) -> Memory:
    """Gather memory of the same size, and keep the moments that some cut may make the fullest."""
    if not lifetimes:
        return Memory()
    alive = _alive(lifetimes)
    blocks: dict[Any, tuple[int, Block]] = {(): (0, Block(Fraction(1), ()))}
    rows: dict[int, Vector] = {0: np.zeros(alive.shape[1], dtype=np.int64)}
    for lifetime, moments in zip(lifetimes, alive, strict=True):
        live = tuple(sorted((c for c in lifetime.factors if c.groups), key=_key))
        if not live:  # that many blocks of one byte
            rows[0] = rows[0] + moments * lifetime.size
            continue
        # A fraction, so that the uncut network comes out to the byte: memory that is larger than
        # the tensor in it is no multiple of the counts.
        unit = Fraction(lifetime.size, product(live, {}))
        key = (unit, *map(_key, live))
        number, _ = blocks.setdefault(key, (len(blocks), Block(unit, live)))
        rows[number] = rows.get(number, 0) + moments * 1
    return Memory(
        tuple(block for _, block in blocks.values()),
        _fullest(np.stack(list(rows.values()), axis=1)),
    )


def _key(count: Count) -> tuple[Any, ...]:
    """Equal for counts of the same."""
    held = [(p.constant, [(g, entries.tobytes()) for g, entries in p.shares]) for p in count.linear]
    return tuple((constant, *shares) for constant, shares in held)


def _alive(lifetimes: Sequence[Lifetime]) -> Vector:
    """(lifetimes, moments): whether each is alive at the moments after which something is freed.

    No other moment is fuller: until something is freed, memory only grows.
    """
    born, died = np.array([(x.born, x.died) for x in lifetimes]).T
    moments = np.array(sorted(set(died.tolist()))) - 1
    alive: Vector = (born[:, None] <= moments) & (moments < died[:, None])
    return alive


def _fullest(steps: Vector) -> Vector:
    """The rows that no other row exceeds everywhere."""
    # The fullest first: a row can only be exceeded by one that holds as much in sum.
    kept = np.zeros((0, steps.shape[1]), dtype=np.int64)
    for row in steps[np.argsort(-steps.sum(1), kind="stable")]:
        if not (kept >= row).all(1).any():
            kept = np.vstack([kept, row])
    return kept
