"""Everything that is in a model, by name, and why entries that belong to no group stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from netslim.graph.integers import Integer, Width
from netslim.graph.modules.walk import layer_of
from netslim.graph.tracing.atoms import Vector


@dataclass(frozen=True)
class Rest:
    """Entries of one axis of one tensor that belong to no group, and why they stay."""

    positions: Vector
    reason: str


@dataclass(frozen=True)
class Literal:
    """A line of code that holds the number of some channels in digits, so that they stay.

    Attributes:
        path: of the file.
        line: of the file, from 1.
        code: what stands there; ``""`` where the file cannot be read.
        numbers: which.
        remedy: what would follow a cut in place of them.
        groups: names of the groups that stay for it.
    """

    path: str
    line: int
    code: str
    numbers: tuple[int, ...]
    remedy: str
    groups: tuple[str, ...]

    def __str__(self) -> str:
        numbers = " and ".join(map(str, self.numbers))
        place = f"{Path(self.path).name}:{self.line}"
        return f"{place}: {self.code}\n    for {numbers} write {self.remedy}"


@dataclass(frozen=True)
class Inventory:
    """Names and shapes of everything in a model, and the entries that are in no group.

    Attributes:
        shapes: parameter or buffer -> its shape.
        aliases: any other name of a shared tensor -> the name it goes by in the groups.
        modules: path -> name of the module's class.
        rest: (tensor, axis) -> the entries that belong to no group.
        unused: tensors that no operator touched when the model ran.
        integers: what modules remember and no forward is known to follow.
        widths: how wide layers are.
        literals: lines of code for which channels stay.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    rest: Mapping[tuple[str, int], tuple[Rest, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    integers: tuple[Integer, ...] = ()
    widths: tuple[Width, ...] = ()
    literals: tuple[Literal, ...] = ()

    def owned(self, module: str) -> dict[str, str]:
        """Short name -> tensor, for what the module itself holds, parametrised weights included."""
        names = [*self.shapes, *self.aliases]
        own = [n for n in names if layer_of(n) == module]
        return {n.removeprefix(f"{module}."): self.aliases.get(n, n) for n in own}
