"""From tied atoms to `ChannelGroup`s: what can be removed together, what each removal costs, and what must stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from ..errors import StaleGraphError
from ..plan import fingerprint, named_tensors
from .atoms import ADDED, ATOM, CHANNEL, CONSUMER, PRODUCER, SCALE, Atoms, Vector, distinct, numbered
from .counts import Cost, Count
from .inventory import Inventory, layer_of, obstacles, take
from .memory import Lifetime, Memory, Output, lifetimes, memory, outputs
from .recorder import Recorder
from .settle import settle

_ROLES = {CONSUMER: "consumer", PRODUCER: "producer", SCALE: "scale", CHANNEL: "channel"}


@dataclass(frozen=True)
class Slice:
    """Where a group lives in one axis of one tensor: entry ``positions[i]`` belongs to unit ``units[i]``.

    ``mixed`` says that weights which read the units take part in making them as well (tied weights).
    """

    tensor: str
    axis: int
    role: str
    positions: Vector
    units: Vector
    mixed: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Units that compete with each other and share one shape of slices.

    Attributes:
        name: the module that produces the channels.
        size: number of units; a unit is what can be removed alone.
        slices: all the tensor entries that go with the units.
        exact: whether removing a unit equals silencing it; where not, ``reason`` says which operator mixes channels.
        frozen: whether it cannot be cut at all; ``reason`` says why.
        reasons: every reason found, where several things stand in the way.
        producers: the tensors that produce the channels, in order of execution.
        shortcut: whether the outputs of several layers are added in these channels, as along a residual shortcut
            (a padding counts; layers that scale them, depthwise or as a gate, do not).
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    exact: bool = True
    frozen: bool = False
    reason: str | None = None
    reasons: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()
    shortcut: bool = False

    def __repr__(self) -> str:
        return f"<ChannelGroup {self.name!r}: {self.size} channels, {self.verdict}>"

    def __str__(self) -> str:
        from .explain import sentences

        return sentences(self)

    @property
    def verdict(self) -> str:
        """``"exact"``, ``"inexact"`` (may be cut with ``allow_inexact=True``) or ``"stays"``."""
        return "stays" if self.frozen else "exact" if self.exact else "inexact"

    @property
    def prunable(self) -> bool:
        """Whether units of this group can be cut exactly."""
        return self.exact and not self.frozen

    def tensors(self, role: str) -> list[Slice]:
        """The slices with this role: producer, consumer, scale or channel."""
        return [s for s in self.slices if s.role == role]


@dataclass(frozen=True)
class SizeRule:
    """A module attribute that must follow the kept entries of a dimension: ``old * kept / size``."""

    module: str
    attribute: str
    old: int
    count: Count


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """What must be cut together in a model, learnt by running it once; the model itself is not held.

    Attributes:
        groups: all groups that a layer of the model produces, in order of execution, frozen ones included.
        fingerprint: of the architecture it was traced from.
        unsupported: operators without a rule -> paths of the modules that called them.
        costs: multiply-accumulates of the traced call, as products of group sizes.
        parameters: for each parameter, the product of its axes' counts.
        size_rules: module attributes that follow a cut.
        axis_sizes: (tensor, axis) -> entries.
        inventory: names and shapes of everything in the model, and why entries in no group stay.
        outputs: what the operators of the traced call put out, in order of execution.
        lifetimes: the memory that the inputs and these take, and from when to when.
    """

    groups: tuple[ChannelGroup, ...]
    fingerprint: str
    unsupported: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    costs: tuple[Cost, ...] = ()
    parameters: Mapping[str, Cost] = field(default_factory=dict)
    size_rules: tuple[SizeRule, ...] = ()
    axis_sizes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    inventory: Inventory = field(default_factory=Inventory)
    outputs: tuple[Output, ...] = ()
    lifetimes: tuple[Lifetime, ...] = ()

    @cached_property
    def _index(self) -> dict[str, int]:
        return {g.name: i for i, g in enumerate(self.groups)}

    def __getitem__(self, name: str) -> ChannelGroup:
        """The group of this name; or the one that the module or tensor of this name produces, scales or reads.

        A module that holds other modules stands for the one group they produce, if it is one.

        Raises:
            PlanError: there is no such name (the nearest are given), or it takes part in several groups.
        """
        from .explain import find

        return find(self, name)

    def explain(self, name: str) -> str:
        """Tell in sentences what a module, tensor or group is coupled to, and why it can or cannot be cut.

        Raises:
            PlanError: there is no such name; the nearest are given.
        """
        from .explain import explain

        return explain(self, name)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups that can be cut exactly."""
        return tuple(g for g in self.groups if g.prunable)

    @property
    def frozen(self) -> dict[str, str]:
        """Name -> reason, for the groups that cannot be cut, or not exactly."""
        return {g.name: str(g.reason) for g in self.groups if not g.prunable}

    def prunable_share(self, allow_inexact: bool = False) -> float:
        """Share of the parameters that lie in channels which can be cut, 0 to 1."""
        groups = {i: g for i, g in enumerate(self.groups) if not g.frozen and (g.exact or allow_inexact)}
        none = {i: np.zeros(g.size, dtype=bool) for i, g in groups.items()}
        return 1 - self.params(none) / self.params() if self.params() else 0.0

    def number(self, name: str) -> int:
        """Position of the group in ``groups``."""
        return self._index[name]

    def check(self, model: nn.Module) -> None:
        """Refuse a model that is not, or no longer, the traced one.

        Raises:
            StaleGraphError: names both fingerprints.
        """
        found = fingerprint(model)
        if found != self.fingerprint:
            raise StaleGraphError(
                f"the graph was traced from the architecture {self.fingerprint}, the model is now {found}: "
                "trace it again (netslim.trace)"
            )

    def macs(self, masks: Mapping[int, Vector] | None = None) -> int:
        """Multiply-accumulates of the traced call when group ``g`` keeps the units of ``masks[g]``."""
        return sum(c.macs(masks or {}) for c in self.costs)

    def params(self, masks: Mapping[int, Vector] | None = None) -> int:
        """Number of parameters under the masks."""
        return sum(c.macs(masks or {}) for c in self.parameters.values())

    @cached_property
    def memory(self) -> Memory:
        """Which tensors are in memory at once."""
        return memory(self.lifetimes)

    @cached_property
    def _layers(self) -> tuple[Output, ...]:
        return tuple(o for o in self.outputs if o.layer)

    def activations(self, masks: Mapping[int, Vector] | None = None) -> int:
        """Elements that layers put out in the traced call, under the masks.

        Layers are convolutions, linear layers, matrix products, attention and recurrent layers; norms, activation
        functions, pooling and sums are none, nor is what does not depend on the inputs. Source: Radosavovic et al.
        2020, "Designing Network Design Spaces", section 3.1, who count convolutions; fvcore and timm count as here.
        """
        return sum(o.elements(masks or {}) for o in self._layers)

    def activation_bytes(self, masks: Mapping[int, Vector] | None = None) -> int:
        """Bytes of the `activations` in the data types of the traced call, under the masks."""
        return sum(o.bytes(masks or {}) for o in self._layers)

    def peak_bytes(self, masks: Mapping[int, Vector] | None = None) -> int:
        """Most bytes of tensors alive at once in the traced call, under the masks.

        Counted are the inputs and whatever operators put out, until the eager evaluation call, without gradients, lets
        go of it; not parameters and buffers, nor what an operator needs only while it runs.
        """
        return self.memory.peak(masks or {})

    def __repr__(self) -> str:
        return f"<ChannelGraph of {self.fingerprint}: {len(self.prunable)} of {len(self)} groups can be cut exactly>"

    def __str__(self) -> str:
        from .display import text

        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """Groups, axes, shares, reasons, size rules and unknown operators as plain data."""
        from .display import as_dict

        return as_dict(self)


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
        key = np.zeros(len(roots), dtype=np.int64)  # equal for classes with the same axes, frozen alike, coupled alike
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
        order = {int(axis_of[p.start]): atoms.order.get(int(axis_of[p.start]), len(axes)) for p in pieces}
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
        group = ChannelGroup(name, len(roots), slices, exact, frozen, reason, producers=producers, shortcut=shortcut)
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
    bindings = settle(recorder)
    classes = Classes(atoms)
    groups = classes.form()
    cache: dict[tuple[bool, int], Count] = {}

    def count(factor: int | Vector) -> Count:
        key = (True, id(factor)) if isinstance(factor, np.ndarray) else (False, int(factor))
        found = cache.get(key)
        if found is None:
            found = cache[key] = classes.count(factor)
        return found

    costs = [Cost(c.module, c.operator, tuple(count(f) for f in c.factors)) for c in recorder.costs]
    parameters = {}
    for name, tensor in named_tensors(recorder.model):
        if not isinstance(tensor, nn.Parameter):
            continue
        axes = atoms.axes_of[id(tensor)]
        factors = [count(axes.get(d, n)) for d, n in enumerate(tensor.shape)]
        parameters[name] = Cost(name.rpartition(".")[0], "parameters", tuple(factors))
    rules = [SizeRule(m, a, old, count(vector)) for (m, a), (old, vector) in bindings.items()]
    return ChannelGraph(
        tuple(replace(g, reasons=reasons) for g, reasons in zip(groups, obstacles(classes), strict=True)),
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


__all__ = ["ChannelGraph", "ChannelGroup", "Cost", "Count", "Memory", "Output", "SizeRule", "Slice", "build"]
