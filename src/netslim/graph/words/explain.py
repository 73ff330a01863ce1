"""Say in sentences what a tensor, layer or group is coupled to, and why it can or cannot be cut.

A layer has many axes and most of them share a fate: all four tensors of a batch norm go with the
same channels. So the fate of each axis is put in words that name no axis (`_fates`), axes with the
same words are put together, and each fate becomes one sentence with its axes in front (`_said`).
Groups that the sentences name are told below: in detail where they are few, else in a line each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netslim._support import nearest
from netslim.errors import ArgumentError
from netslim.graph.groups import ChannelGroup, Slice, described, per_unit
from netslim.graph.inventory import Rest
from netslim.graph.traced import TracedGraph
from netslim.graph.words.phrases import amount, entries, enumerated, shape

Fate = tuple[str, str, str]  # verb for one axis, verb for several, the rest of the sentence
Part = tuple[ChannelGroup, Slice]  # what a group holds of an axis

_WITH = ("goes with", "go with")
_VERBS = {
    "producer": ("makes", "make"),
    "scale": _WITH,
    "channel": _WITH,
    "consumer": ("reads", "read"),
}
_DETAILED = 3
_LINES = 20


def find(graph: TracedGraph, name: str) -> ChannelGroup:
    """The group of this name, or that the module or tensor of this name makes, scales or reads.

    A module that holds other modules stands for the one group they produce, if it is one.

    Raises:
        ArgumentError: there is no such name (the nearest are given), or it takes part in several
            groups.
    """
    named = {g.name: g for g in graph.groups}
    if name in named:
        return named[name]
    wanted = set(tensors_of(graph, name).values())
    for role in ("producer", "scale", "channel", "consumer"):
        groups = [g for g in graph.groups if any(s.tensor in wanted for s in g.tensors(role))]
        if len(groups) == 1:
            return groups[0]
        if groups:
            names = enumerated([f"{g.name!r} ({g.size})" for g in groups], 12)
            raise ArgumentError(
                f"{name!r} takes part in {len(groups)} groups: {names}; ask for one of them"
            )
    inside = _made_inside(graph, name)
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = enumerated([repr(g.name) for g in inside], 6)
        raise ArgumentError(
            f"the layers inside {name!r} make {len(inside)} groups: {names}; ask for one of them"
        )
    if wanted or name in graph.inventory.modules:
        raise ArgumentError(
            f"{name!r} is in no group of channels; graph.explain({name!r}) says why"
        )
    raise unknown(graph, name)


def _held_inside(graph: TracedGraph, name: str) -> list[str]:
    """The tensors that the modules within a module hold."""
    if name not in graph.inventory.modules:
        return []
    own, inside = graph.inventory.owned(name).values(), _prefix(name)
    return [t for t in graph.inventory.shapes if t.startswith(inside) and t not in own]


def _prefix(module: str) -> str:
    """How the names of all that is inside a module begin."""
    if not module:
        return ""
    return f"{module}."


def _made_inside(graph: TracedGraph, name: str) -> list[ChannelGroup]:
    """The groups that the modules within a module produce."""
    if name not in graph.inventory.modules:
        return []
    inside = _prefix(name)
    return [
        g for g in graph.groups if any(s.tensor.startswith(inside) for s in g.tensors("producer"))
    ]


def explain(graph: TracedGraph, name: str) -> str:
    """Tell what a tensor, a module or a group is coupled to, and why it can or cannot be cut.

    Raises:
        ArgumentError: there is no such name; the nearest are given.
    """
    tensors = tensors_of(graph, name)
    if tensors and _held_inside(graph, name):
        return f"{_layer(graph, name, tensors)}\n{_container(graph, name)}"
    if tensors:
        return _layer(graph, name, tensors)
    group = next((g for g in graph.groups if g.name == name), None)
    if group is not None:
        return sentences(group, graph)
    if name in graph.inventory.modules:
        return _container(graph, name)
    raise unknown(graph, name)


def tensors_of(graph: TracedGraph, name: str) -> dict[str, str]:
    """Short name -> tensor: of a module, all it holds itself; of a tensor, itself; else nothing."""
    inventory = graph.inventory
    tensor = inventory.aliases.get(name, name)
    if tensor in inventory.shapes:
        return {name: tensor}
    return inventory.owned(name)


def unknown(graph: TracedGraph, name: str) -> ArgumentError:
    """The error for a name that means nothing here, with the nearest that do."""
    return ArgumentError(f"no group, module or tensor is named {name!r}{hint(graph, name)}")


def hint(graph: TracedGraph, name: str) -> str:
    """A hint for a name that means nothing here: the nearest that do."""
    inventory = graph.inventory
    known = dict.fromkeys(
        [*(g.name for g in graph.groups), *inventory.modules, *inventory.shapes, *inventory.aliases]
    )
    return nearest(name, known, otherwise="; print(graph), or netslim inspect, lists the groups")


# --- one group ------------------------------------------------------------------------------------


def sentences(group: ChannelGroup, graph: TracedGraph) -> str:
    """A paragraph on one group, with its share of the network."""
    lines = described(group)
    number = graph.number(group.name)
    params, macs, activations = graph.shares()[group.name]
    held = f"{params:.1%} of the parameters, {macs:.1%} of the multiply-accumulates"
    lines.append(f"They hold {held} and {activations:.1%} of the activations.")
    for rule in graph.size_rules:
        if number in rule.count.groups:
            lines.append(
                f"{rule.module or 'The model'}.{rule.attribute} ({rule.old}) follows their number."
            )
    lines += [
        f"To change: {literal}."
        for literal in graph.inventory.literals
        if group.name in literal.groups
    ]
    shrinking = [str(port) for port in graph.ports if (port.groups == number).any()]
    if shrinking:
        lines.append(f"Free to shrink with them: {enumerated(shrinking, 8)}.")
    over = [path or "the model itself" for path in dict.fromkeys(graph.normalising(group.name))]
    if over:
        lines.append(
            f"Normalised by {enumerated(over, 8)} over as many as before, without them, too."
        )
    return "\n  ".join(lines)


# --- a tensor, or a layer with its tensors --------------------------------------------------------


def _layer(graph: TracedGraph, name: str, tensors: Mapping[str, str]) -> str:
    """All on a tensor, or on a module with what it holds itself."""
    shared = [
        f"  {s} is shared: it is {t}." for s, t in tensors.items() if t not in (s, f"{name}.{s}")
    ]
    lines, groups = _axes(graph, tensors, many=len(tensors) > 1)
    # A layer may touch a hundred groups, as one behind a long concatenation does: those it makes
    # are told in sentences, and of the others a line each.
    told = _worth_telling(groups, set(tensors.values()))
    lines += [sentences(g, graph) for g in told]
    rest = [g for g in groups if g not in told]
    if rest:
        which = "These"
        if told:
            which = "The other"
        lines += [f"{which} groups are:", *_overview(rest)]
    return "\n".join([_title(graph, name, tensors), *shared, *lines])


def _title(graph: TracedGraph, name: str, tensors: Mapping[str, str]) -> str:
    """``fc (Linear): weight 10 x 64, bias 10``."""
    shapes = graph.inventory.shapes
    if list(tensors) == [name]:
        return f"{name}: {shape(shapes[tensors[name]])}"
    kind = graph.inventory.modules.get(name)
    title = name or "The model"
    if kind is not None:
        title += f" ({kind})"
    sizes = [f"{s} {shape(shapes[t])}" for s, t in tensors.items() if s == name or shapes[t]]
    return f"{title}: {', '.join(sizes)}"


def _worth_telling(groups: list[ChannelGroup], own: set[str]) -> list[ChannelGroup]:
    """The groups to tell of in detail: all if few, else those that these tensors make, if few."""
    if len(groups) <= _DETAILED:
        return groups
    made = [g for g in groups if any(s.tensor in own for s in g.tensors("producer"))]
    if len(made) > _DETAILED:
        return []
    return made


def _axes(
    graph: TracedGraph, tensors: Mapping[str, str], many: bool
) -> tuple[list[str], list[ChannelGroup]]:
    """A sentence for each different fate of an axis, and the groups they name."""
    held: dict[tuple[str, int], list[Part]] = {}
    for group in graph.groups:
        for s in group.slices:
            if s.role != "silenced":  # which stands there as what makes the channels, too
                held.setdefault((s.tensor, s.axis), []).append((group, s))
    told: dict[Fate, dict[str, list[int]]] = {}
    named: dict[str, ChannelGroup] = {}
    for short, tensor in tensors.items():
        for axis, size in enumerate(graph.inventory.shapes[tensor]):
            parts = held.get((tensor, axis), [])
            named.update({group.name: group for group, _ in parts})
            for fate in _fates(graph, tensor, axis, size, parts):
                told.setdefault(fate, {}).setdefault(short, []).append(axis)
    shapes = graph.inventory.shapes
    flat = {short for short, tensor in tensors.items() if many and len(shapes[tensor]) == 1}
    lines = [_said(fate, where, flat, many) for fate, where in told.items()]
    return lines or ["  No axis is longer than 1: there is nothing to cut."], list(named.values())


def _said(fate: Fate, where: Mapping[str, list[int]], flat: set[str], many: bool) -> str:
    """One sentence on all the axes that share a fate."""
    places = []
    for short, axes in where.items():
        if short in flat:
            places.append(short)
        elif many:
            places.append(f"{_numbered(axes)} of {short}")
        else:
            places.append(_numbered(axes))
    plural = sum(map(len, where.values())) > 1
    start = enumerated(places, 12)
    if start.startswith(("axis ", "axes ")):
        start = start[:1].upper() + start[1:]
    return f"  {start} {fate[plural]} {fate[2]}"


def _numbered(axes: list[int]) -> str:
    if len(axes) == 1:
        return f"axis {axes[0]}"
    return f"axes {enumerated([*map(str, axes)], len(axes))}"


def _fates(
    graph: TracedGraph, tensor: str, axis: int, size: int, parts: Sequence[Part]
) -> list[Fate]:
    """What becomes of the entries of one axis."""
    if size > 1 and (tensor, axis) not in graph.axis_sizes:
        return [("runs", "run", "over the kernel, which is never cut.")]
    said = _several(parts)
    if len(parts) == 1:
        said = [_share(*parts[0])]
    return [*said, *(_stay(r, size) for r in graph.inventory.rest.get((tensor, axis), ()))]


def _share(group: ChannelGroup, part: Slice) -> Fate:
    each = per_unit(part, group)
    spread = ""
    if each > 1:
        spread = f", {each} entries each"
    channels = amount(group.size, "channel")
    return (*_VERBS[part.role], f"the {channels} of group {group.name}{spread}.")


def _several(parts: Sequence[Part]) -> list[Fate]:
    """Groups that the axis does the same to are told of together."""
    fates = []
    for verbs in dict.fromkeys(_VERBS[s.role] for _, s in parts):
        groups = [f"{g.name} ({len(s.positions)})" for g, s in parts if _VERBS[s.role] == verbs]
        fates.append(
            (*verbs, f"channels of {amount(len(groups), 'group')}: {enumerated(groups, 4)}.")
        )
    return fates


def _stay(rest: Rest, size: int) -> Fate:
    if len(rest.positions) == size:
        return ("stays:", "stay:", f"{rest.reason}.")
    return ("stays", "stay", f"in part, {entries(rest.positions)}: {rest.reason}.")


def _overview(groups: Sequence[ChannelGroup]) -> list[str]:
    """A line a group."""
    width = max((len(g.name) for g in groups), default=0)
    lines = []
    for g in groups[:_LINES]:
        verdict = g.verdict
        if not g.prunable:
            verdict += f": {g.reason}"
        lines.append(f"  {g.name:<{width}}  {amount(g.size, 'channel')}, {verdict}")
    if len(groups) > _LINES:
        lines.append(f"  and {len(groups) - _LINES} more: print(graph) lists them")
    return lines


def _container(graph: TracedGraph, name: str) -> str:
    """A module that holds other modules, or nothing at all."""
    inside = _prefix(name)
    title = f"{name or 'The model'} ({graph.inventory.modules[name]})"
    held = [t for t in graph.inventory.shapes if t.startswith(inside)]
    if not held:
        return f"{title} holds no parameters or buffers: there is nothing to cut in it."
    groups = [g for g in graph.groups if any(s.tensor.startswith(inside) for s in g.slices)]
    part = amount(len(groups), "group") if groups else "no group"
    lines = [f"{title} takes part in {part}.", *_overview(groups)]
    unused = [t for t in held if t in graph.inventory.unused]
    if unused:
        lines.append(f"  Not used when the model ran: {enumerated(unused, 8)}.")
    return "\n".join(lines)


__all__ = ["explain", "find", "hint", "sentences", "tensors_of", "unknown"]
