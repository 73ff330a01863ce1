"""The channel graph for people: a table, and plain data."""

from __future__ import annotations

from typing import Any

import numpy as np

from .groups import ChannelGraph, ChannelGroup


def shares(graph: ChannelGraph) -> dict[str, tuple[float, float]]:
    """Group name -> (share of the parameters, share of the MACs) that would go with all of its units."""
    params, macs = graph.params(), graph.macs()
    result = {}
    for i, group in enumerate(graph.groups):
        none = {i: np.zeros(group.size, dtype=bool)}
        result[group.name] = (
            1 - graph.params(none) / params if params else 0.0,
            1 - graph.macs(none) / macs if macs else 0.0,
        )
    return result


def _status(group: ChannelGroup) -> str:
    if group.prunable:
        return ""
    kind = "stays" if group.frozen else "inexact"
    return f"{kind}: {group.reason}"


def text(graph: ChannelGraph) -> str:
    """A table of the groups, in order of execution, and what netslim could not follow."""
    rows = [("group", "channels", "params", "MACs", "layers", "")]
    share = shares(graph)
    for group in graph.groups:
        p, m = share[group.name]
        rows.append(
            (
                group.name,
                str(group.size),
                f"{p:.1%}",
                f"{m:.1%}",
                str(len(group.tensors("producer"))),
                _status(group),
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    lines = []
    for first, *numbers, status in rows:
        columns = [f"{n:>{w}}" for n, w in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *columns, status]))
    free = graph.prunable
    lines.append(
        f"{len(free)} of {len(graph.groups)} groups can be cut exactly: "
        f"{sum(g.size for g in free)} of {sum(g.size for g in graph.groups)} channels; "
        f"{graph.params():,} parameters, {graph.macs():,} multiply-accumulates for the traced input."
    )
    for operator, modules in graph.unsupported.items():
        places = ", ".join(m or "(top level)" for m in modules)
        lines.append(f"no rule for operator {operator} (in {places}): what it touches stays")
    return "\n".join(line.rstrip() for line in lines)


def as_dict(graph: ChannelGraph) -> dict[str, Any]:
    """The same as plain data, for JSON."""
    share = shares(graph)
    return {
        "fingerprint": graph.fingerprint,
        "params": graph.params(),
        "macs": graph.macs(),
        "groups": [
            {
                "name": g.name,
                "channels": g.size,
                "prunable": g.prunable,
                "exact": g.exact,
                "frozen": g.frozen,
                "reason": g.reason,
                "params_share": share[g.name][0],
                "macs_share": share[g.name][1],
                "tensors": [{"tensor": s.tensor, "axis": s.axis, "role": s.role} for s in g.slices],
            }
            for g in graph.groups
        ],
        "unsupported": {op: list(paths) for op, paths in graph.unsupported.items()},
    }
