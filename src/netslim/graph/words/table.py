"""The channel graph for people: a table, and plain data."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from math import floor
from typing import Any

from netslim._support import many
from netslim.graph.groups import ChannelGroup, Port, Slice, per_unit
from netslim.graph.integers import Integer
from netslim.graph.modules.walk import layer_of
from netslim.graph.traced import TracedGraph
from netslim.graph.tracing.atoms import distinct
from netslim.graph.words.phrases import TEACH, enumerated

_HEAD = ("group", "channels", "params", "MACs", "activations", "together with")
_MOST = 8
_INEXACT = "inexact, cut only with allow_inexact=True"


def text(graph: TracedGraph) -> str:
    """A table of the groups in order of execution; at its end those that stay, and why."""
    share = graph.shares()
    sections: dict[str, list[tuple[str, ...]]] = {}
    for group in sorted(graph.groups, key=lambda g: ("exact", "inexact", "stays").index(g.verdict)):
        shares = [f"{part:.1%}" for part in share[group.name]]
        size = f"{group.size:,}"
        if group.block:
            size = "block"
        row = (group.name, size, *shares, _others_too(group))
        sections.setdefault(_title(group), []).append(row)
    rows = [_HEAD, *chain.from_iterable(sections.values())]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [_line(_HEAD, widths)]
    for title, part in sections.items():
        if title:
            lines.append(f"\n{title}:")
        lines += [_line(row, widths) for row in part]
    return "\n".join([*lines, "", *_summary(graph)])


def _title(group: ChannelGroup) -> str:
    if group.block:
        return "residual branches, which go as a whole with blocks=True"
    if group.prunable:
        return ""
    if group.frozen:
        return f"stays: {group.reason}"
    return f"{_INEXACT}: {group.reason}"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    first, *numbers, last = row
    columns = [f"{n:>{w}}" for n, w in zip(numbers, widths[1:], strict=True)]
    return "  ".join([f"{first:<{widths[0]}}", *columns, last]).rstrip()


def _others_too(group: ChannelGroup) -> str:
    """The rows that a channel has in the layer that makes it, if several; others that make it."""
    makers = group.tensors("producer")
    layers = dict.fromkeys(layer_of(s.tensor) or s.tensor for s in makers)
    others = [layer for layer in layers if layer != group.name]
    rows = next((per_unit(s, group) for s in makers if layer_of(s.tensor) == group.name), 1)
    said = []
    if group.of_heads:
        said.append("of every head")
    if rows > 1:
        said.append(f"{rows} rows each")
    if others:
        said.append(enumerated(others, 3))
    return ", ".join(said)


def _summary(graph: TracedGraph) -> list[str]:
    channels = [group for group in graph.groups if not group.block]
    free = [group for group in channels if group.prunable]
    exact, relaxed = graph.prunable_share(), graph.prunable_share(allow_inexact=True)
    more = ""
    if relaxed > exact:
        more = f" ({_floor(relaxed)} with allow_inexact=True)"
    cut, all_ = (sum(g.size for g in groups) for groups in (free, channels))
    lines = [
        f"{len(free)} of {len(channels)} groups can be cut exactly: {cut:,} of {all_:,} "
        f"channels, which hold {_floor(exact)} of the parameters{more}.",
        f"{graph.params():,} parameters, {graph.macs():,} multiply-accumulates for the traced "
        "input.",
        f"{graph.activations():,} activations (elements that layers put out); "
        f"at most {graph.peak_bytes():,} bytes of inputs and intermediate tensors at once.",
        "A group's share counts every weight that shrinks with it: one between two groups "
        "counts in both.",
    ]
    blocks = [group.name for group in graph.groups if group.block]
    if blocks:
        lines.append(f"{many(len(blocks), 'block')} can go as a whole: {enumerated(blocks, 8)}.")
    if graph.ports:
        ports = dict.fromkeys(map(str, graph.ports))
        lines.append(f"Free to shrink: {enumerated([*ports], 8)}.")
    lines += [*_told_of_widths(graph), *never_ran(graph)]
    literals = graph.inventory.literals
    if literals:
        lines.append("Channels stay for a number that is written into a line of code:")
    for literal in literals[:_MOST]:
        lines.append(f"  {literal}; {enumerated(literal.groups, 4)} may then go")
    if len(literals) > _MOST:
        lines.append(f"  and {len(literals) - _MOST} more lines")
    for operator, modules in graph.unsupported.items():
        places = enumerated([m or "the top level" for m in modules], 4)
        lines.append(
            f"operator {operator} is not followed (in {places}): what it touches stays; {TEACH}"
        )
    return lines


def _told_of_widths(graph: TracedGraph) -> list[str]:
    unread = [f"{i.path} ({i.value})" for i in _unread(graph)]
    if not unread:
        return []
    return [
        f"Widths that no forward reads, but other methods may: {enumerated(unread, 6)}. They "
        "follow a cut that leaves them one meaning; of others the plan says so."
    ]


def never_ran(graph: TracedGraph) -> list[str]:
    """A sentence on parameters that never ran; none where all did.

    They may be most of a network, and no group holds them.
    """
    idle = [name for name in graph.inventory.unused if name in graph.parameters]
    if not idle:
        return []
    held = sum(graph.parameters[name].macs({}) for name in idle) / max(graph.params(), 1)
    layers = [*dict.fromkeys(layer_of(name) or name for name in idle)]
    return [
        f"{held:.1%} of the parameters were not used when the model ran, and stay: "
        f"{enumerated(layers, 4)}"
    ]


def _unread(graph: TracedGraph) -> list[Integer]:
    """Integers that a cut may make wrong: equal to the width of a layer within their module."""
    cut: set[tuple[str, int]] = set()
    for group in graph.groups:
        if not group.frozen:
            cut.update((s.tensor, s.axis) for s in group.slices)
    found: dict[Integer, None] = {}
    for width in graph.inventory.widths:
        if (width.tensor, width.axis) in cut:
            for integer in graph.inventory.integers:
                if integer.value == width.size and integer.holds(width.layer):
                    found[integer] = None
    return list(found)


def _floor(share: float) -> str:
    """Nothing is called 100 % that is not."""
    return f"{floor(share * 1000) / 10}%"


def as_dict(graph: TracedGraph) -> dict[str, Any]:
    """The same as plain data, for JSON, and every axis of every tensor."""
    share = graph.shares()
    size_rules = []
    for rule in graph.size_rules:
        groups = [graph.groups[g].name for g in rule.count.groups]
        size_rules.append(
            {
                "module": rule.module,
                "attribute": rule.attribute,
                "value": rule.old,
                "groups": groups,
            }
        )
    return {
        "fingerprint": graph.fingerprint,
        "params": graph.params(),
        "macs": graph.macs(),
        "activations": graph.activations(),
        "activation_bytes": graph.activation_bytes(),
        "peak_bytes": graph.peak_bytes(),
        "prunable_share": {
            "exact": graph.prunable_share(),
            "allow_inexact": graph.prunable_share(allow_inexact=True),
        },
        "groups": [_group(g, *share[g.name]) for g in graph.groups if not g.block],
        **_blocks(graph, share),
        "axes": _axes(graph),
        "size_rules": size_rules,
        "literals": [
            {
                "file": literal.path,
                "line": literal.line,
                "code": literal.code,
                "numbers": list(literal.numbers),
                "write": literal.remedy,
                "groups": list(literal.groups),
            }
            for literal in graph.inventory.literals
        ],
        "ports": [_port(graph, port) for port in graph.ports],
        "unread_sizes": [
            {"module": i.module, "attribute": i.attribute, "value": i.value} for i in _unread(graph)
        ],
        "unsupported": {op: list(paths) for op, paths in graph.unsupported.items()},
    }


def _blocks(graph: TracedGraph, share: Mapping[str, tuple[float, float, float]]) -> dict[str, Any]:
    """Where they were asked for."""
    if graph.blocks is None:
        return {}
    keys = ("params_share", "macs_share", "activations_share")
    found = []
    for group in graph.groups:
        if group.block:
            tensors = sorted(graph.block(group.name).tensors)
            shares = dict(zip(keys, share[group.name], strict=True))
            found.append({"name": group.name, **shares, "tensors": tensors})
    return {"blocks": found}


def _port(graph: TracedGraph, port: Port) -> dict[str, Any]:
    groups = [graph.groups[n].name for n in distinct(port.groups[port.groups >= 0]).tolist()]
    where = {"kind": port.kind, "name": port.name, "dim": port.dim, "size": len(port.groups)}
    return where | {"fed_by": port.fed_by, "groups": groups}


def _group(group: ChannelGroup, params: float, macs: float, activations: float) -> dict[str, Any]:
    reasons = list(group.reasons)
    if not reasons and group.reason is not None:
        reasons.append(group.reason)
    return {
        "name": group.name,
        "channels": group.size,
        "prunable": group.prunable,
        "exact": group.exact,
        "frozen": group.frozen,
        "reason": group.reason,
        "reasons": reasons,
        "params_share": params,
        "macs_share": macs,
        "activations_share": activations,
        "tensors": [_slice(s) | {"entries_each": per_unit(s, group)} for s in group.slices],
    }


def _slice(part: Slice) -> dict[str, Any]:
    return {"tensor": part.tensor, "axis": part.axis, "role": part.role}


def _axes(graph: TracedGraph) -> list[dict[str, Any]]:
    """For every axis longer than 1, kernels aside: what each group holds, and why the rest stay."""
    parts: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in graph.axis_sizes}
    for group in graph.groups:
        for s in group.slices:
            held = {"entries": len(s.positions), "group": group.name, "role": s.role}
            fate = {"verdict": group.verdict, "reason": group.reason}
            parts[s.tensor, s.axis].append(held | fate)
    for key, rest in graph.inventory.rest.items():
        alone = {"group": None, "role": None, "verdict": "stays"}
        parts[key] += [{"entries": len(r.positions), **alone, "reason": r.reason} for r in rest]
    return [
        {"tensor": t, "axis": a, "size": graph.axis_sizes[t, a], "parts": entries}
        for (t, a), entries in parts.items()
    ]
