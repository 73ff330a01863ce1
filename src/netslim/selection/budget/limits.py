"""What limits mean for the groups of a graph: how many units may go, and which stay whole."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from numbers import Integral

from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.words.naming import assigned, meant
from netslim.selection.options import Limits


def caps(limits: Limits, graph: ChannelGraph) -> list[int]:
    """For each group of the graph, how many of its units may go.

    Raises:
        ArgumentError: ``max_cut`` names no group.
    """
    named: Mapping[str, float | int | None] = {}
    if isinstance(limits.max_cut, Mapping):
        found = assigned(graph, limits.max_cut, "max_cut names no group")
        named = {group: cap for group, (_, cap) in found.items()}
    elif limits.max_cut is not None:
        named = {group.name: limits.max_cut for group in graph.groups}
    return [_cap(group, named.get(group.name), limits.min_channels) for group in graph.groups]


def _cap(group: ChannelGroup, cap: float | int | None, least: int) -> int:
    if cap is None:
        most = group.size
    else:
        most = int(cap) if isinstance(cap, Integral) else floor(group.size * float(cap) + 1e-9)
    return max(0, min(most, group.size - least))


def staying(limits: Limits, graph: ChannelGraph) -> dict[str, str]:
    """Group name -> reason, for the groups that are left alone whatever their scores.

    Raises:
        ArgumentError: ``protect`` names no group.
    """
    unknown = "protect names no group"
    guarded = {group.name for name in limits.protect for group in meant(graph, name, unknown)}
    found = {
        group.name: str(group.reason)
        for group in graph.groups
        if group.frozen or not (group.exact or limits.allow_inexact)
    }
    for group in graph.groups:
        if group.name in guarded:
            found.setdefault(group.name, "protected")
        elif group.shortcut and limits.shortcuts == "avoid":
            why = "the outputs of several layers are added in it (shortcuts='avoid')"
            found.setdefault(group.name, why)
    return found


def shown(limits: Limits) -> str:
    """What bounds the units that may go of a group, for messages."""
    if limits.max_cut is None:
        return f"min_channels={limits.min_channels}"
    cap = "max_cut by name" if isinstance(limits.max_cut, Mapping) else f"max_cut={limits.max_cut}"
    return f"min_channels={limits.min_channels} and {cap}"


__all__ = ["caps", "shown", "staying"]
