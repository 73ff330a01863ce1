"""From tied atoms to groups: what can be removed together, what each removal costs, and what must
stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.counts import Cost, Count
from netslim.graph.groups import ChannelGroup, SizeRule, Slice
from netslim.graph.inventory import Inventory
from netslim.graph.memory import lifetimes, outputs
from netslim.graph.modules.walk import fingerprint, layer_of, named_tensors
from netslim.graph.tracing.atoms import (
    ADDED,
    ATOM,
    CHANNEL,
    CONSUMER,
    PRODUCER,
    SCALE,
    Atoms,
    Vector,
    distinct,
    numbered,
)
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.remembered import settle_sizes

if TYPE_CHECKING:
    pass
from netslim.graph.inventory import Rest

_ROLES = {CONSUMER: "consumer", PRODUCER: "producer", SCALE: "scale", CHANNEL: "channel"}


class Classes:
    """The classes of tied atoms of a finished trace, grouped by signature."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self.root = atoms.find(np.arange(len(atoms.parent), dtype=ATOM))
        self.root[0] = 0
        self.frozen = self._first_reason(atoms.frozen)
        self.coupled = self._first_reason(atoms.coupled)
        self.role = np.zeros_like(atoms.roles)
        np.bitwise_or.at(self.role, self.root, atoms.roles)
        self.group_of = np.full(len(self.root), -1, dtype=ATOM)
        self.unit_of = np.full(len(self.root), -1, dtype=ATOM)
        self.sizes: list[int] = []

    def _first_reason(self, entries: Sequence[tuple[Vector, str]]) -> Vector:
        """For each class the number of the first entry that touches it, or a number past the end."""
        first = np.full(len(self.root), len(entries), dtype=ATOM)
        for i, (vector, _) in enumerate(entries):
            roots = self.root[vector]
            first[roots] = np.minimum(first[roots], i)
        return first

    def form(self) -> list[ChannelGroup]:
        """Group the classes that a layer produces; number groups and units for every atom."""
        axis_of, root = self.atoms.axis_of, self.root
        produced = (self.role[root] & PRODUCER) > 0
        produced[axis_of < 0] = False
        members = np.flatnonzero(produced)
        mixer = np.random.default_rng(0).integers(1, 2**62, size=len(self.atoms.axes) + 2)
        roots, place = numbered(root[members])
        key = np.zeros(
            len(roots), dtype=np.int64
        )  # equal for classes with the same axes, frozen alike, coupled alike
        np.add.at(key, place, mixer[axis_of[members]])
        key[self.frozen[roots] < len(self.atoms.frozen)] += mixer[-2]
        key[self.coupled[roots] < len(self.atoms.coupled)] += mixer[-1]
        family = numbered(key)[1][place]
        order = np.argsort(family, kind="stable")
        members = members[order]
        starts = np.flatnonzero(np.diff(family[order])) + 1
        drafts = [self._group(part) for part in np.split(members, starts) if len(part)]
        drafts.sort(key=lambda draft: draft[0])
        names = _unique([group.name for _, group, _, _ in drafts])
        groups = []
        for number, ((_, group, part, units), name) in enumerate(zip(drafts, names, strict=True)):
            self.group_of[root[part]], self.unit_of[root[part]] = number, units
            groups.append(replace(group, name=name))
        self.group_of, self.unit_of = self.group_of[root], self.unit_of[root]
        self.sizes = [group.size for group in groups]
        return groups

    def _group(self, part: Vector) -> tuple[int, ChannelGroup, Vector, Vector]:
        atoms, axes = self.atoms, self.atoms.axes
        axis_of = atoms.axis_of[part]
        roots, units = numbered(self.root[part])
        starts = np.concatenate([[0], np.flatnonzero(np.diff(axis_of)) + 1, [len(part)]])
        pieces = [slice(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True)]
        order = {
            int(axis_of[p.start]): atoms.order.get(int(axis_of[p.start]), len(axes)) for p in pieces
        }
        makers = [p for p in pieces if (atoms.roles[part[p]] & PRODUCER).any()]
        makers.sort(key=lambda p: order[int(axis_of[p.start])])
        lead = makers[0]
        units = _renumber(units, units[lead], len(roots))
        slices = tuple(
            Slice(axes[a].tensor, axes[a].axis, role, part[p] - axes[a].first, units[p], mixed)
            for p in pieces
            for a, (role, mixed) in [(int(axis_of[p.start]), self._role(part[p]))]
        )
        lead_axis = int(axis_of[lead.start])
        name = layer_of(axes[lead_axis].tensor) or axes[lead_axis].tensor
        exact, frozen, reason = self._verdict(int(roots[0]))
        producers = tuple(dict.fromkeys(axes[int(axis_of[p.start])].tensor for p in makers))
        to_itself = len(producers) == 1 and lead.stop - lead.start > len(roots)
        shortcut = not to_itself and bool((self.role[roots] & ADDED).any())
        group = ChannelGroup(
            name, len(roots), slices, exact, frozen, reason, producers=producers, shortcut=shortcut
        )
        return order[lead_axis], group, part, units

    def _role(self, vector: Vector) -> tuple[str, bool]:
        """The role of a piece of an axis, and whether it reads what it makes."""
        bits = int(np.bitwise_or.reduce(self.atoms.roles[vector]))
        role = next((name for bit, name in _ROLES.items() if bits & bit), "channel")
        return role, bool(bits & CONSUMER and bits & PRODUCER)

    def _verdict(self, root: int) -> tuple[bool, bool, str | None]:
        frozen, coupled = int(self.frozen[root]), int(self.coupled[root])
        exact = coupled >= len(self.atoms.coupled)
        why = None if exact else self.atoms.coupled[coupled][1]
        if frozen < len(self.atoms.frozen):
            return exact, True, self.atoms.frozen[frozen][1]
        if exact and not self.role[root] & CONSUMER:
            return True, True, "no weights read it"
        return exact, False, why

    def count(self, factor: int | Vector) -> Count:
        """The count of a dimension: an integer, or a vector of atoms."""
        if isinstance(factor, (int, np.integer)):
            return Count(int(factor), ())
        groups, units = self.group_of[factor], self.unit_of[factor]
        shares = []
        first = int(groups[0])
        one = bool((groups == first).all())
        if one and first >= 0:
            return Count(0, ((first, np.bincount(units, minlength=self.sizes[first])),))
        for g in [] if one else distinct(groups[groups >= 0]).tolist():
            shares.append((g, np.bincount(units[groups == g], minlength=self.sizes[g])))
        return Count(int((groups < 0).sum()), tuple(shares))


def _renumber(units: Vector, lead: Vector, size: int) -> Vector:
    """Number units by where they first stand in the leading slice."""
    first = np.full(size, len(lead))
    np.minimum.at(first, lead, np.arange(len(lead)))
    rank = np.empty(size, dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(size)
    return rank[units]


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


def build(recorder: Recorder) -> ChannelGraph:
    """Form the groups of a finished recording."""
    atoms = recorder.atoms
    bindings = settle_sizes(recorder)
    classes = Classes(atoms)
    groups = classes.form()
    cache: dict[tuple[bool, int], Count] = {}

    def count(factor: int | Vector) -> Count:
        key = (True, id(factor)) if isinstance(factor, np.ndarray) else (False, int(factor))
        found = cache.get(key)
        if found is None:
            found = cache[key] = classes.count(factor)
        return found

    costs = [
        Cost(c.module, c.operator, tuple(count(f) for f in c.factors), c.call)
        for c in recorder.costs
    ]
    parameters = {}
    for name, tensor in named_tensors(recorder.model):
        if not isinstance(tensor, nn.Parameter):
            continue
        axes = atoms.axes_of[id(tensor)]
        factors = [count(axes.get(d, n)) for d, n in enumerate(tensor.shape)]
        parameters[name] = Cost(name.rpartition(".")[0], "parameters", tuple(factors))
    rules = [SizeRule(m, a, old, count(vector)) for (m, a), (old, vector) in bindings.items()]
    return ChannelGraph(
        tuple(
            replace(g, reasons=reasons)
            for g, reasons in zip(groups, obstacles(classes), strict=True)
        ),
        fingerprint(recorder.model),
        {op: tuple(sorted(paths)) for op, paths in sorted(recorder.unsupported.items())},
        tuple(costs),
        parameters,
        tuple(r for r in rules if r.count.shares),
        {(a.tensor, a.axis): a.size for a in atoms.axes},
        take(recorder.model, classes, recorder.touched),
        outputs(recorder.outputs, count),
        lifetimes(recorder.storages.spans, count),
    )


UNUSED = "not used when the model ran on the example inputs"
UNMADE = "no layer of the model makes channels along it"


def take(model: nn.Module, classes: Classes, used: set[int]) -> Inventory:
    """The inventory of a model whose groups have been formed; ``used`` holds the ids of the tensors
    that were.
    """
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
            found[axis.tensor, axis.axis] = tuple(
                Rest(members - axis.first, why) for why, members in reasons
            )
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


__all__ = ["build"]
