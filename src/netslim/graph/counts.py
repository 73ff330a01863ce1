"""How many entries of a dimension are kept under a cut, and products of such counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from netslim.graph.tracing.atoms import Vector


@dataclass(frozen=True)
class Count:
    """How many entries of a dimension are kept: a constant, plus for each group its kept units'
    shares.
    """

    constant: int
    shares: tuple[tuple[int, Vector], ...]  # (group number, entries for each of its units)

    def kept(self, masks: Mapping[int, Vector]) -> int:
        """Entries left when group ``g`` keeps the units of the boolean ``masks[g]`` (all, when
        absent).
        """
        total = self.constant
        for group, entries in self.shares:
            mask = masks.get(group)
            total += int(entries.sum() if mask is None else entries[mask].sum())
        return total


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one operator as a product of counts."""

    module: str
    operator: str
    factors: tuple[Count, ...]

    def macs(self, masks: Mapping[int, Vector]) -> int:
        """Multiply-accumulates under the masks."""
        return product(self.factors, masks)


def product(factors: tuple[Count, ...], masks: Mapping[int, Vector]) -> int:
    """The product of the factors under the masks."""
    result = 1
    for factor in factors:
        result *= factor.kept(masks)
    return result
