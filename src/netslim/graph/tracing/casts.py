"""Plain integers that the code makes of sizes: ``int(x.shape[1])``, and where they end up.

Whatever a size does, ``int(size)`` is a plain number, and no more is known of it. So it is guessed:
where such a number is asked to be the size of the very channels that it was read from, it is taken
for that size. The run without computations (rerun.py) tells whether this was right: there `int`
gives another number, which must stand in the calls where it was guessed and nowhere else. Channels
whose number goes another way, or of a model that cannot be run so, stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from netslim.graph.tracing.records import ValueUse
from netslim.graph.tracing.sizes import Size


@dataclass
class Casts:
    """The sizes that became plain integers.

    Attributes:
        made: each with what to say if it must stay.
        lines: where a number was taken for one of them. No run tells of what is done in training,
            where only these count.
    """

    made: list[tuple[Size, ValueUse]] = field(default_factory=list)
    lines: set[str] = field(default_factory=set)

    def untold(self, size: Size, uses: list[ValueUse], training: bool) -> list[ValueUse]:
        """Note a size of which the user's code has made a plain integer; what no run will tell."""
        if training and not {use.reason for use in uses} <= {use.reason for _, use in self.made}:
            return uses
        self.made += [(size, use) for use in uses]
        return []

    def of(self, number: int, where: str, training: bool) -> Iterator[Size]:
        """The sizes that this number may be, the latest first."""
        if not training or where in self.lines:
            yield from (s for s, _ in reversed(self.made) if int.__int__(s) == number)

    def uses(self) -> list[ValueUse]:
        """All of them as numbers that are used in a way that nobody can follow."""
        return [use for _, use in self.made]


@dataclass
class Expected:
    """Numbers that a call must be given in a run in which `int` gives other ones.

    Attributes:
        lies: what may stand in the place of a number.
        met: numbers in whose place such a one was found.
        stayed: numbers that also stand elsewhere in the call: nobody knows which one was meant.
    """

    lies: dict[int, set[int]] = field(default_factory=dict)
    met: set[int] = field(default_factory=set)
    stayed: set[int] = field(default_factory=set)

    def add(self, size: Size, pretended: int) -> None:
        """A size that was guessed in this call, and what `int` gives of it now."""
        truth, lie = int.__int__(size), int.__int__(pretended)
        if lie != truth:
            self.lies.setdefault(truth, set()).add(lie)

    def met_by(self, one: Any, other: Any) -> bool:
        """Whether what was told of the call is what it was, up to these, of which none lacks."""
        alike = self._alike(one, other)
        return alike and self.met == self.lies.keys() and not self.stayed

    def _alike(self, one: Any, other: Any) -> bool:
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(map(self._alike, one, other))
        if one == other:
            if type(one) is int and one in self.lies:
                self.stayed.add(one)
            return True
        found = type(one) is int and type(other) is int and other in self.lies.get(one, ())
        if found:
            self.met.add(one)
        return found


def expected(guessed: Collection[Size], pretend: Any) -> Expected:
    """What a call must be given where these are pretended to be others."""
    found = Expected()
    for size in guessed:
        found.add(size, pretend(size))
    return found


__all__ = ["Casts", "Expected", "expected"]
