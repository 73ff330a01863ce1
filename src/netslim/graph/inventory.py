"""What a traced model holds, by name, and why entries that no layer produces stay: small data for explanations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from ..plan import named_tensors
from .atoms import Vector, distinct

if TYPE_CHECKING:
    from .groups import Classes

UNUSED = "not used when the model ran on the example inputs"
UNMADE = "no layer of the model makes channels along it"


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
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    rest: Mapping[tuple[str, int], tuple[Rest, ...]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def owned(self, module: str) -> dict[str, str]:
        """Short name -> tensor, for what the module itself holds, parametrised weights included."""
        names = [*self.shapes, *self.aliases]
        own = [n for n in names if layer_of(n) == module]
        return {n.removeprefix(f"{module}."): self.aliases.get(n, n) for n in own}


def layer_of(tensor: str) -> str:
    """The module a user would name for a tensor: its owner, or the owner of the weight it parametrises."""
    path = tensor.rpartition(".")[0]
    head, found, _ = f"{path}.".partition(".parametrizations.")
    return head if found else path


def take(model: nn.Module, classes: Classes, used: set[int]) -> Inventory:
    """The inventory of a model whose groups have been formed; ``used`` holds the ids of the tensors that were."""
    named = list(named_tensors(model))
    unused = tuple(name for name, tensor in named if tensor.dim() and id(tensor) not in used)
    first = {id(tensor): name for name, tensor in named}
    modules = list(model.named_modules(remove_duplicate=False))
    every = [
        (f"{path}.{name}".lstrip("."), tensor)
        for path, m in modules
        for name, tensor in (*m._parameters.items(), *m._buffers.items())
        if tensor is not None
    ]
    return Inventory(
        {name: tuple(tensor.shape) for name, tensor in named},
        {name: first[id(tensor)] for name, tensor in every if first[id(tensor)] != name},
        {path: type(m).__name__ for path, m in modules},
        _rest(classes, set(unused)),
        unused,
    )


def _rest(classes: Classes, unused: set[str]) -> dict[tuple[str, int], tuple[Rest, ...]]:
    atoms = classes.atoms
    loose = np.flatnonzero((classes.group_of < 0) & (atoms.axis_of >= 0))
    found = {}
    for part in np.split(loose, np.flatnonzero(np.diff(atoms.axis_of[loose])) + 1):
        if len(part):
            axis = atoms.axes[atoms.axis_of[part[0]]]
            reasons = [(UNUSED, part)] if axis.tensor in unused else _by_reason(classes, part)
            found[axis.tensor, axis.axis] = tuple(Rest(members - axis.first, why) for why, members in reasons)
    return found


def _by_reason(classes: Classes, part: Vector) -> list[tuple[str, Vector]]:
    frozen = classes.atoms.frozen
    first = classes.frozen[classes.root[part]]
    reasons = {int(i): frozen[i][1] if i < len(frozen) else UNMADE for i in distinct(first)}
    return [
        (why, part[np.isin(first, [i for i, text in reasons.items() if text == why])])
        for why in dict.fromkeys(reasons.values())
    ]


def obstacles(classes: Classes) -> list[tuple[str, ...]]:
    """For each group every reason why it stays or is inexact, those that freeze it first."""
    found: list[dict[str, None]] = [{} for _ in classes.sizes]
    for vector, reason in (*classes.atoms.frozen, *classes.atoms.coupled):
        for number in distinct(classes.group_of[classes.root[vector]]).tolist():
            if number >= 0:
                found[number][reason] = None
    return [tuple(reasons) for reasons in found]
