"""Everything that is in a model, by name, and why entries that belong to no group stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from netslim.graph.integers import Integer, Width
from netslim.graph.modules.walk import layer_of
from netslim.graph.tracing.atoms import Vector


@dataclass(frozen=True)
class Rest:
    """Entries of one axis of one tensor that belong to no group, and why they stay."""

    positions: Vector
    reason: str


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
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    rest: Mapping[tuple[str, int], tuple[Rest, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    integers: tuple[Integer, ...] = ()
    widths: tuple[Width, ...] = ()

    def owned(self, module: str) -> dict[str, str]:
        """Short name -> tensor, for what the module itself holds, parametrised weights included."""
        names = [*self.shapes, *self.aliases]
        own = [n for n in names if layer_of(n) == module]
        return {n.removeprefix(f"{module}."): self.aliases.get(n, n) for n in own}
