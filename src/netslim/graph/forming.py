"""From tied atoms to groups: what can go together, what each removal costs, and what must stay.

A class of tied atoms is what can be removed alone, a *unit*. Which units compete, so that "a third
of them" means something? Those with the same *signature*: as many atoms on each axis as the others.
The channels of a convolution with its batch normalisation, in front of a flatten of 7 x 7 places,
have one atom each on the axes of conv.weight, bn.weight and bn.bias and 49 on the columns of
fc.weight, every one of them: they are one group. If the first 8 of them are also read by another
layer, those have one atom more, and are a group of their own. Frozen ones and coupled ones never
share a group with others, since they have another fate.

Signatures are lists of numbers, and there may be a hundred thousand classes. So each axis draws a
random number of 62 bits, and a class adds up those of its atoms (modulo 2^64, in one `np.add.at`).
Equal signatures give equal sums; that unequal ones do is as likely as guessing 62 bits. The numbers
come of a fixed seed: a model always gives the same groups.
"""

from __future__ import annotations

import linecache
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from netslim.graph.blocks import Block, Blocks, Joined
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.counts import Cost, Count
from netslim.graph.groups import ChannelGroup, NormRule, Order, Port, SizeRule, Slice
from netslim.graph.head_widths import HeadWidths, Met, held_as_heads, met, met_in_both
from netslim.graph.integers import integers, names_by_part, widths
from netslim.graph.inventory import Inventory, Literal, Rest
from netslim.graph.memory import Counter as Counting
from netslim.graph.memory import lifetimes, outputs
from netslim.graph.modules.computed_convolutions import CONVOLUTIONS
from netslim.graph.modules.padded_calls import ATTENTION
from netslim.graph.modules.walk import (
    all_paths,
    fingerprint,
    joined,
    lasting_tensors,
    layer_of,
    named_modules,
    named_tensors,
)
from netslim.graph.tracing.atoms import (
    ADDED,
    ATOM,
    CHANNEL,
    CONSUMER,
    LEAVES,
    PRODUCER,
    SCALE,
    Atoms,
    Vector,
    distinct,
    numbered,
)
from netslim.graph.tracing.dataflow import INPUT, Dataflow, Step
from netslim.graph.tracing.ports import Ports
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.records import RecordedNorm
from netslim.graph.tracing.remembered import Bindings

_FEW = 2**16
_STATEMENT = 4  # lines that one may run over
_ROLES = {CONSUMER: "consumer", PRODUCER: "producer", SCALE: "scale", CHANNEL: "channel"}


class _Draft(NamedTuple):
    """A group that lacks what only a look at all groups can tell: its own name, its reasons."""

    order: int  # when its channels are first made
    layer: str
    group: Callable[..., ChannelGroup]
    part: Vector  # its atoms
    units: Vector  # theirs


@cache
def _role(bits: int) -> tuple[str, bool]:
    """The role of atoms of one axis, by all of theirs, and whether they read what they make."""
    role = next((name for bit, name in _ROLES.items() if bits & bit), "channel")
    return role, bool(bits & CONSUMER and bits & PRODUCER)


class Classes:
    """The classes of tied atoms of a finished trace, grouped by signature."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self.root = atoms.find(np.arange(len(atoms.parent), dtype=ATOM))
        self.root[0] = 0
        self.frozen = self._first_reason(atoms.frozen)
        self.coupled = self._first_reason(atoms.coupled)
        self.silent = np.zeros(len(self.root), dtype=bool)
        self.silent[self.root[np.concatenate([np.empty(0, dtype=ATOM), *atoms.silent])]] = True
        self.role = np.zeros_like(atoms.roles)
        np.bitwise_or.at(self.role, self.root, atoms.roles)
        self.group_of = np.full(len(self.root), -1, dtype=ATOM)
        self.unit_of = np.full(len(self.root), -1, dtype=ATOM)
        self.sizes: list[int] = []

    def _first_reason(self, entries: Sequence[tuple[Vector, str]]) -> Vector:
        """For each class the number of the first entry that touches it, or one past the end."""
        first = np.full(len(self.root), len(entries), dtype=ATOM)
        for i, (vector, _) in enumerate(entries):
            roots = self.root.take(vector)
            first[roots] = np.minimum(first.take(roots), i)
        return first

    def form(self) -> list[ChannelGroup]:
        """Group the classes that a layer produces; number groups and units for every atom."""
        root = self.root
        drafts = [self._draft(part) for part in self._families()]
        drafts.sort(key=lambda draft: draft.order)
        for number, draft in enumerate(drafts):
            # Noted at the root of each class; below, `root` hands it on to every atom of the
            # class, also to those of operators, which are on no axis and so in no part.
            roots = root.take(draft.part)
            self.group_of[roots], self.unit_of[roots] = number, draft.units
        self.group_of, self.unit_of = self.group_of.take(root), self.unit_of.take(root)
        names = _unique([draft.layer for draft in drafts])
        reasons = self._obstacles(len(drafts))
        groups = [
            draft.group(name=name, reasons=why)
            for draft, name, why in zip(drafts, names, reasons, strict=True)
        ]
        self.sizes = [group.size for group in groups]
        return groups

    def _obstacles(self, groups: int) -> list[tuple[str, ...]]:
        """For each group every reason why it stays or is inexact, those that freeze it first."""
        found: list[dict[str, None]] = [{} for _ in range(groups)]
        for vector, reason in (*self.atoms.frozen, *self.atoms.coupled):
            for number in distinct(self.group_of.take(vector)).tolist():
                if number >= 0:
                    found[number][reason] = None
        return [tuple(reasons) for reasons in found]

    def _families(self) -> list[Vector]:
        """The atoms on axes of the classes that a layer produces, by the signature of the class."""
        axis_of, root = self.atoms.axis_of, self.root
        produced = (self.role.take(root) & PRODUCER) > 0
        produced[axis_of < 0] = False
        members = np.flatnonzero(produced)
        # Numbers more than axes: for being silenced where they are made, frozen, and coupled.
        mixer = np.random.default_rng(0).integers(1, 2**62, size=len(self.atoms.axes) + 3)
        roots, place = numbered(root.take(members))
        signature = np.zeros(len(roots), dtype=np.int64)
        np.add.at(signature, place, mixer.take(axis_of.take(members)))
        signature[self.silent.take(roots)] += mixer[-3]
        signature[self.frozen.take(roots) < len(self.atoms.frozen)] += mixer[-2]
        signature[self.coupled.take(roots) < len(self.atoms.coupled)] += mixer[-1]
        family = numbered(signature)[1].take(place)
        if len(roots) < _FEW:
            family = family.astype(np.uint16)  # which NumPy sorts many times faster
        order = np.argsort(family, kind="stable")
        starts = np.flatnonzero(np.diff(family.take(order))) + 1
        return [part for part in np.split(members.take(order), starts) if len(part)]

    def _draft(self, part: Vector) -> _Draft:
        """The group of the atoms ``part``, which are in order: axis by axis, entry by entry."""
        atoms, axes = self.atoms, self.atoms.axes
        axis_of = atoms.axis_of.take(part)
        roots, units = numbered(self.root.take(part))
        starts = np.concatenate([[0], np.flatnonzero(np.diff(axis_of)) + 1])
        bits = np.bitwise_or.reduceat(atoms.roles.take(part), starts).tolist()
        silent = self.silent.take(self.root.take(part.take(starts))).tolist()
        numbers = axis_of.take(starts).tolist()
        held = [axes[number] for number in numbers]
        sizes = np.diff(starts, append=len(part))
        positions = part - np.repeat([axis.first for axis in held], sizes)
        pieces = list(map(slice, starts.tolist(), (starts + sizes).tolist()))
        # The group is named after the layer that makes its channels first, and its units are
        # numbered as the filters of that layer are.
        met = [atoms.order.get(number, len(axes)) for number in numbers]
        makers = [n for n, own in enumerate(bits) if own & PRODUCER]
        makers.sort(key=met.__getitem__)
        lead = makers[0]
        units = _renumber(units, units[pieces[lead]], len(roots))
        slices = []
        for axis, at, own, quiet in zip(held, pieces, bits, silent, strict=True):
            role, mixed = _role(own)
            slices.append(Slice(axis.tensor, axis.axis, role, positions[at], units[at], mixed))
            if quiet and role != "consumer":
                slices.append(replace(slices[-1], role="silenced"))
        first = held[lead].tensor
        exact, frozen, reason = self._verdict(int(roots[0]))
        producers = tuple(dict.fromkeys(held[n].tensor for n in makers))
        # One layer with several outputs a unit may have had its own added to each other, as in
        # ``x[:, :8] + x[:, 8:]``: no shortcut, for there is no second layer.
        to_itself = len(producers) == 1 and int(sizes[lead]) > len(roots)
        group = partial(
            ChannelGroup,
            size=len(roots),
            slices=tuple(slices),
            exact=exact,
            frozen=frozen,
            reason=reason,
            producers=producers,
            shortcut=not to_itself and bool((self.role.take(roots) & ADDED).any()),
        )
        return _Draft(met[lead], layer_of(first) or first, group, part, units)

    def _verdict(self, root: int) -> tuple[bool, bool, str | None]:
        """(exact, frozen, the first reason why not) of a class."""
        # All classes of a group have the same fate, which is part of their signature: ask one.
        frozen, coupled = int(self.frozen[root]), int(self.coupled[root])
        exact = coupled >= len(self.atoms.coupled)
        if frozen < len(self.atoms.frozen):
            return exact, True, self.atoms.frozen[frozen][1]
        if not exact:
            return False, False, self.atoms.coupled[coupled][1]
        # A channel is removed where it is read. What nobody reads leaves the network, or is lost:
        # there is no weight in which it could be silenced, so nothing could be proved; of a free
        # output what is left is compared.
        if not (self.role[root] & (CONSUMER | LEAVES) or self.silent[root]):
            return True, True, "no weights read it"
        return True, False, None

    def followed(self, vector: Vector) -> tuple[Vector, Vector]:
        """(group, unit) of each entry of a dimension; -1 for no group."""
        return self.group_of.take(vector), self.unit_of.take(vector)

    def count(self, factor: int | Vector) -> Count:
        """The count of a dimension: an integer, or a vector of atoms."""
        if isinstance(factor, (int, np.integer)):
            return Count(int(factor), ())
        groups, units = self.group_of.take(factor), self.unit_of.take(factor)
        first = int(groups[0])
        if not np.count_nonzero(groups != first):  # as nearly always, and quicker
            # Atoms of no group stay, whatever is cut.
            if first < 0:
                return Count(len(groups), ())
            return Count(0, ((first, np.bincount(units, minlength=self.sizes[first])),))
        order = np.argsort(groups, kind="stable")
        groups, units = groups.take(order), units.take(order)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(groups)) + 1]).tolist()
        ends, held = [*starts[1:], len(groups)], groups.take(starts).tolist()
        shares = [
            (group, np.bincount(units[start:end], minlength=self.sizes[group]))
            for group, start, end in zip(held, starts, ends, strict=True)
            if group >= 0
        ]
        return Count(int(np.count_nonzero(groups < 0)), tuple(shares))


def _renumber(units: Vector, lead: Vector, size: int) -> Vector:
    """Number units by where they first stand in the leading slice."""
    first = np.full(size, len(lead))
    # A unit with several entries in the leading slice is numbered by its first: units 2 2 0 0 1 1
    # become 0 0 1 1 2 2.
    np.minimum.at(first, lead, np.arange(len(lead)))
    rank: Vector = np.empty(size, dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(size)
    renumbered: Vector = rank.take(units)
    return renumbered


def _unique(names: list[str]) -> list[str]:
    """The names, from the second of the same on as ``name#2``."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        number = seen[name] = seen.get(name, 0) + 1
        if number > 1:
            result.append(f"{name}#{number}")
        else:
            result.append(name)
    return result


_Formed = tuple[Classes, list[ChannelGroup]]
Settled = tuple[Recorder, Bindings]  # a finished recording, in which attributes follow cuts


def build(
    heads: Settled, ports: Ports, narrower: Settled | None = None, again: Ports | None = None
) -> ChannelGraph:
    """Form the groups of a finished recording, and those of a second one that go beside them.

    Args:
        heads: the recording.
        ports: its inputs and outputs.
        narrower: one of the same call in which heads become narrower (head_widths.py).
        again: the inputs and outputs of that.
    """
    recorder, bindings = heads
    recorder.atoms.silence_gains()
    classes = Classes(recorder.atoms)
    groups = classes.form()
    counted, norms = None, [*_norms(recorder.norms, classes.followed)]
    if narrower is not None and again is not None:
        other = Classes(narrower[0].atoms)
        theirs = other.form()
        _settle_by_width(narrower[0], (other, theirs), groups, norms)
        formed = (classes, groups), (other, theirs)
        counted = _with_widths(formed, heads, narrower, again)
    if counted is None:
        rules = [SizeRule(*key, old, classes.count(v)) for key, (old, v) in bindings.items()]
        counted = _Counted(met(recorder), _remembering(classes.count), [], rules)
    known = recorder.consulted | {(rule.module, rule.attribute) for rule in counted.rules}
    unread = {key: value for key, value in recorder.attributes.items() if key not in known}
    inventory = take(recorder.model, classes, recorder.touched, unread, recorder.names_read)
    inventory = replace(inventory, literals=tuple(_literals(recorder, classes, groups)))
    wider = _renamed(counted.widths, groups)
    groups = [*held_as_heads(groups, wider), *wider]
    blocks = None
    if recorder.flow is not None:
        lasting = {name: tuple(t.shape) for name, t in lasting_tensors(recorder.model)}
        joined = dict(_joined(recorder.flow, counted, groups))
        parts = named_modules(recorder.model)
        writing = {path for part, path in parts.items() if getattr(part, "inplace", None) is True}
        aware = {path for part, path in parts.items() if _told_of_training(_names_in(part))}
        # Functions that it calls may ask for it, too.
        aware |= {path for path, names in names_by_part(recorder.model) if _told_of_training(names)}
        blocks = Blocks(recorder.flow, inventory.modules, writing, aware, lasting, joined)
        counted.gate(blocks, len(groups))
        groups += _block_groups(blocks, groups)
    return ChannelGraph(
        tuple(groups),
        fingerprint(recorder.model),
        {op: tuple(sorted(paths)) for op, paths in sorted(recorder.unsupported.items())},
        counted.costs,
        counted.parameters,
        tuple(_followed(recorder, counted.rules)),
        {(a.tensor, a.axis): a.size for a in recorder.atoms.axes},
        inventory,
        counted.outputs,
        counted.lifetimes,
        (*norms, *counted.norms),
        tuple(_ports(ports, classes)),
        tuple(_orders(recorder, classes)),
        blocks,
    )


def _joined(
    flow: Dataflow, counted: _Counted, groups: Sequence[ChannelGroup]
) -> Iterator[tuple[int, Joined]]:
    """The values that are read by concatenations alone, and are all of some groups that can go."""
    readers: dict[int, list[Step]] = {}
    for step in flow.steps:
        for value in step.reads:
            readers.setdefault(value, []).append(step)
    for value, reading in readers.items():
        if flow.maker[value] == INPUT or not all(step.joined for step in reading):
            continue
        maker = flow.steps[flow.maker[value]]
        place = maker.makes.index(value)
        if value in flow.results or place >= len(maker.outputs):
            continue
        count = counted.outputs[maker.outputs[place]].factors[1]
        whole = not count.constant and count.times is None
        if whole and all((n == 1).all() and groups[g].prunable for g, n in count.shares):
            numbers = tuple(g for g, _ in count.shares)
            made = [s.tensor for g in numbers for s in groups[g].tensors("producer")]
            yield value, Joined(numbers, frozenset(made))


def _names_in(part: nn.Module) -> Iterable[str]:
    """Those that the forward of a module reads itself, be it PyTorch's."""
    forward = getattr(type(part), "forward", None)  # of a scripted module only it has one itself
    code = getattr(forward, "__code__", None)
    names: tuple[str, ...] = getattr(code, "co_names", ())
    return names


def _told_of_training(names: Iterable[str]) -> bool:
    """Whether code that reads these asks whether it is trained, or calls a dropout."""
    return any(n == "training" or ("dropout" in n and n.isidentifier()) for n in names)


def _block_groups(blocks: Blocks, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """A group for each block, under a name that no other has."""
    taken = {group.name for group in groups}
    bare = []
    for block in blocks.found:
        name = block.name
        if name in taken:
            name += "#block"
        bare.append(name)
    found = []
    # A branch around others may do most of its work in one of theirs.
    for name, block in zip(_unique(bare), blocks.found, strict=True):
        fewest = min(_made_in(groups, block).values(), default=1)
        found.append(ChannelGroup(name, 1, (), block=True, stands_for=fewest))
    return found


def _made_in(groups: Sequence[ChannelGroup], block: Block) -> Counter[str]:
    """How many channels each layer of a block makes, by the names of their weights."""
    made: Counter[str] = Counter()
    for group in groups:
        for s in group.tensors("producer"):
            if s.tensor in block.tensors:
                made[s.tensor] += len(distinct(s.units))
    return made


def _orders(recorder: Recorder, classes: Classes) -> Iterator[Order]:
    """The buffers whose numbers mean channels of some group."""
    for name, vector in recorder.orders.items():
        groups = classes.group_of.take(vector)
        if (groups >= 0).any():
            yield Order(name, groups, classes.unit_of.take(vector))


def _ports(ports: Ports, classes: Classes) -> Iterator[Port]:
    """Those inputs and outputs that hold channels of some group."""
    for kind, vectors in (("input", ports.inputs), ("output", ports.outputs)):
        for (name, dim), vector in vectors.items():
            groups, units = classes.group_of.take(vector), classes.unit_of.take(vector)
            if (groups >= 0).any():
                fed_by = ""
                if kind == "input":
                    fed_by = ports.feeds.get(name, "")
                yield Port(kind, name, dim, groups, units, fed_by)


def _literals(
    recorder: Recorder, classes: Classes, groups: Sequence[ChannelGroup]
) -> Iterator[Literal]:
    """The lines that hold the number of channels which stay, each once."""
    numbers: dict[tuple[str, int, str], dict[int, None]] = {}
    names: dict[tuple[str, int, str], dict[str, None]] = {}
    for written in recorder.literals:
        held = distinct(classes.group_of.take(written.vector[written.vector > 0])).tolist()
        frozen = [groups[n].name for n in held if n >= 0 and groups[n].frozen]
        if frozen:
            key = written.path, written.line, written.remedy
            numbers.setdefault(key, {}).update(dict.fromkeys(written.numbers))
            names.setdefault(key, {}).update(dict.fromkeys(frozen))
    for key, known in numbers.items():
        path, line, remedy = key
        # A number that does not stand there was computed, or a module of PyTorch's own holds it.
        code = "".join(linecache.getline(path, line + i) for i in range(_STATEMENT))
        there = tuple(n for n in known if re.search(rf"\b{n}\b", code))
        if there:
            first = linecache.getline(path, line).strip()
            yield Literal(path, line, first, there, remedy, tuple(names[key]))


def _followed(recorder: Recorder, rules: Sequence[SizeRule]) -> Iterator[SizeRule]:
    """The rules of attributes that some cut changes, and that nothing else brings up to date."""
    # A convolution that becomes a plain one is brought up to date as these are, and reads nothing.
    plain = {norm.module for norm in recorder.norms if norm.known.kind in CONVOLUTIONS}
    for rule in rules:
        own = rule.module in plain and (rule.module, rule.attribute) in recorder.owned
        if rule.count.groups and not own:
            yield rule


class _Counted:
    """All that is counted of a recording, in products of what is kept."""

    def __init__(
        self, met: Met, count: Counting, widths: list[ChannelGroup], rules: list[SizeRule]
    ) -> None:
        self.widths, self.rules = widths, rules
        self.norms: list[NormRule] = []  # that know the width of heads
        self.costs = tuple(
            [Cost(c.module, c.operator, tuple(map(count, c.factors)), c.call) for c in met.costs]
        )
        self.parameters = {
            p.module: Cost(p.module.rpartition(".")[0], p.operator, tuple(map(count, p.factors)))
            for p in met.parameters
        }
        self.outputs = outputs(met.outputs, count)
        self.lifetimes = lifetimes(met.spans, count)

    def gate(self, blocks: Blocks, first: int) -> None:
        """Have all that feeds a block alone go with it; its group is number ``first``, and so on.

        Memory is left as it is: what a stream is kept in changes with what is added to it, so that
        a peak without a block is only known not to be higher.
        """
        steps, costs, made = blocks.flow.steps, list(self.costs), list(self.outputs)
        for number, block in enumerate(blocks.found, first):
            gate = Count(0, ((number, np.ones(1, dtype=np.int64)),))
            for step in block.steps:
                for place in steps[step].costs:
                    costs[place] = replace(costs[place], gates=(*costs[place].gates, gate))
                for place in steps[step].outputs:
                    made[place] = replace(made[place], gates=(*made[place].gates, gate))
            for name in block.tensors & self.parameters.keys():
                one = self.parameters[name]
                self.parameters[name] = replace(one, gates=(*one.gates, gate))
        self.costs, self.outputs = tuple(costs), tuple(made)


def _settle_by_width(
    second: Recorder,
    formed: _Formed,
    groups: list[ChannelGroup],
    norms: list[NormRule],
) -> None:
    """Where the code has the number of heads as a literal, the width of heads goes alone, and the
    first recording has it as it is; but only the second one tells that it can go exactly. Puts
    these groups in the place of the first one's, and adds the scales of attention that keep them
    exact.
    """
    inexact = {_lies(g): n for n, g in enumerate(groups) if not (g.frozen or g.exact)}
    if not inexact:
        return
    other, theirs = formed
    found = np.full(len(theirs) + 1, -1)  # the last: entries in no group are -1
    for twin, group in enumerate(theirs):
        number = inexact.get(_lies(group)) if group.prunable else None
        if number is not None:
            found[twin] = number
            groups[number] = replace(group, name=groups[number].name)

    def followed(vector: Vector) -> tuple[Vector, Vector]:
        numbers, units = other.followed(vector)
        return found.take(numbers), units

    known = {(norm.module, norm.row.call) for norm in norms}
    scales = [norm for norm in second.norms if norm.known.kind == ATTENTION]
    found_too = _norms(scales, followed)
    norms += [norm for norm in found_too if (norm.module, norm.row.call) not in known]


def _lies(group: ChannelGroup) -> tuple[object, ...]:
    """Where its units lie."""
    return tuple(
        sorted(
            (s.tensor, s.axis, s.positions.tobytes(), s.units.tobytes())
            for s in group.slices
            if s.role != "silenced"
        )
    )


def _with_widths(
    formed: tuple[_Formed, _Formed],
    heads: Settled,
    narrower: Settled,
    ports: Ports,
) -> _Counted | None:
    """All that is counted, where the width of heads goes, too; None where nothing of it can."""
    (first, ours), (second, theirs) = heads, narrower
    (classes, whole), (other, groups) = formed
    of_width = [norm for norm in second.norms if _of_width_alone(norm, classes)]
    known = [norm.vector for norm in second.norms if not _of_width_alone(norm, classes)]
    known += [*second.orders.values(), *ports.inputs.values(), *ports.outputs.values()]
    widths = HeadWidths(classes, other, whole, groups, known)
    both = met_in_both(first, second)
    while both is not None and widths.groups:
        found = _Counted(both, _remembering(widths.count), widths.groups, [])
        if widths.settled():
            found.rules = widths.rules(ours, theirs)
            found.norms = list(_norms(of_width, widths.followed))
            return found
    return None


def _of_width_alone(norm: RecordedNorm, heads: Classes) -> bool:
    """Whether what a normalisation goes on over is the width of heads and nothing of the heads: a
    scale of attention, or a module over one head at a time, of whose weight no head has a part.
    """
    row = norm.known.row
    if norm.known.kind == ATTENTION:
        return True
    if norm.known.bare or row.call:
        return False
    names = [joined(norm.module, name) for name in (row.weight, row.bias) if name]
    held = [
        heads.group_of[axis.first : axis.first + axis.size]
        for axis in heads.atoms.axes
        if axis.tensor in names
    ]
    return bool(held) and all((groups < 0).all() for groups in held)


def _renamed(widths: list[ChannelGroup], groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """The groups under names that no other has."""
    bare = [group.name.partition("#")[0] for group in (*groups, *widths)]
    names = _unique(bare)[len(groups) :]
    return [replace(group, name=name) for group, name in zip(widths, names, strict=True)]


def _norms(
    norms: Iterable[RecordedNorm], followed: Callable[[Vector], tuple[Vector, Vector]]
) -> Iterator[NormRule]:
    """The normalisations that can go on over their width, each module once for each place."""
    seen = set()
    for norm in norms:
        groups, units = followed(norm.vector)
        key = norm.module, norm.known.row.call, groups.tobytes(), units.tobytes()
        if key not in seen and (groups >= 0).any():
            seen.add(key)
            known = norm.known
            row = replace(known.row, module=norm.module, width=norm.width)
            yield NormRule(row, known.casts, known.bare, groups, units)


def _remembering(count: Callable[[Any], Count]) -> Counting:
    """The same function; each vector is counted once (they live as long as the recording)."""
    cache: dict[Any, Count] = {}
    vectors: dict[int, Count] = {}  # of those that are one, by id: most sizes are numbers or these

    def remembered(factor: Any) -> Count:
        kind = type(factor)
        if kind is np.ndarray:
            found = vectors.get(id(factor))
            if found is None:
                found = vectors[id(factor)] = count(factor)
            return found
        key = factor
        if kind is not int:
            key = _identity(factor)
        found = cache.get(key)
        if found is None:
            found = cache[key] = count(factor)
        return found

    return remembered


def _identity(factor: Any) -> Any:
    """Equal for a dimension that is met again; of two recordings it is a pair."""
    if isinstance(factor, tuple):
        return tuple([_identity(one) for one in factor])
    if isinstance(factor, np.ndarray):
        return None, id(factor)  # no pair of sizes
    return int(factor)


UNUSED = "not used when the model ran on the example inputs"
UNMADE = "no layer of the model makes channels along it"


def take(
    model: nn.Module,
    classes: Classes,
    used: set[int],
    remembered: Mapping[tuple[str, str], int],
    read: frozenset[str],
) -> Inventory:
    """The inventory of a model whose groups have been formed.

    Args:
        model: the traced one.
        classes: the formed groups.
        used: ids of the used tensors.
        remembered: (module, attribute) -> integers that no operator was given.
        read: names that running it may read.
    """
    named = dict(named_tensors(model))  # running it may have made buffers anew
    first = {id(tensor): name for name, tensor in named.items()}
    unused = tuple(n for n, tensor in named.items() if tensor.dim() and id(tensor) not in used)
    modules, aliases = dict(all_paths(model)), {}
    for path, module in modules.items():
        for short, tensor in (*module._parameters.items(), *module._buffers.items()):
            name = joined(path, short)
            if tensor is not None and first[id(tensor)] != name:
                aliases[name] = first[id(tensor)]
    return Inventory(
        {name: tuple(tensor.shape) for name, tensor in named.items()},
        aliases,
        {path: type(module).__name__ for path, module in modules.items()},
        _rest(classes, set(unused)),
        unused,
        integers(model, remembered, read),
        widths(model, first),
    )


def _rest(classes: Classes, unused: set[str]) -> dict[tuple[str, int], tuple[Rest, ...]]:
    """(tensor, axis) -> the entries that are in no group, and why they stay."""
    atoms = classes.atoms
    loose = np.flatnonzero((classes.group_of < 0) & (atoms.axis_of >= 0))
    found = {}
    for part in np.split(loose, np.flatnonzero(np.diff(atoms.axis_of[loose])) + 1):
        if len(part):
            axis = atoms.axes[atoms.axis_of[part[0]]]
            reasons = {UNUSED: part}
            if axis.tensor not in unused:
                reasons = _by_reason(classes, part)
            found[axis.tensor, axis.axis] = tuple(
                Rest(members - axis.first, why) for why, members in reasons.items()
            )
    return found


def _by_reason(classes: Classes, part: Vector) -> dict[str, Vector]:
    """Why atoms stay -> those that stay for it."""
    frozen = classes.atoms.frozen
    first = classes.frozen[classes.root[part]]
    numbers: dict[str, list[int]] = {}
    for i in distinct(first).tolist():
        why = UNMADE
        if i < len(frozen):
            why = frozen[i][1]
        numbers.setdefault(why, []).append(i)
    return {why: part[np.isin(first, same)] for why, same in numbers.items()}


__all__ = ["build"]
