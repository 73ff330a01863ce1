"""What limits mean for the groups of a graph: how many units may go, and which stay whole."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from math import floor
from numbers import Integral

from netslim._support import checks_calls
from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.words.naming import assigned, meant
from netslim.selection.options import Limits


@checks_calls
def caps(limits: Limits, graph: ChannelGraph) -> list[int]:
    """For each group of the graph, how many of its units may go.

    Raises:
        ArgumentError: ``max_cut`` names no group.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> netslim.selection.budget.caps(netslim.Limits(max_cut=0.5), graph)  # of 8, 16 and 3
        [4, 8, 1]
    """
    named: Mapping[str, float | int | None] = {}
    if isinstance(limits.max_cut, Mapping):
        found = assigned(graph, limits.max_cut, "max_cut names no group")
        named = {group: cap for group, (_, cap) in found.items()}
    elif limits.max_cut is not None:
        named = {group.name: limits.max_cut for group in graph.groups if not group.block}
    return [_cap(group, named.get(group.name), limits.min_channels) for group in graph.groups]


def _cap(group: ChannelGroup, cap: float | int | None, least: int) -> int:
    most = group.size
    if group.block:
        least = 0
    if isinstance(cap, Integral):
        most = int(cap)
    elif cap is not None:
        most = floor(group.size * float(cap) + 1e-9)  # 0.29 * 100 is 28.999...
    return max(0, min(most, group.size - least))


@checks_calls
def staying(limits: Limits, graph: ChannelGraph) -> dict[str, str]:
    """Group name -> reason, for the groups that are left alone whatever their scores.

    Raises:
        ArgumentError: ``protect`` names no group, or ``blocks`` asks for what the graph does not
            know.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> netslim.selection.budget.staying(netslim.Limits(protect=["features.0"]), graph)
        {'classifier.0': 'it is an output of the network', 'features.0': 'protected'}
    """
    if limits.blocks and graph.blocks is None:
        raise ArgumentError(
            "blocks=True drops residual branches, and the graph was not asked for them: trace with "
            "netslim.trace(model, example_inputs, blocks=True)"
        )
    unknown = "protect names no group"
    named = chain.from_iterable(meant(graph, name, unknown) for name in limits.protect)
    guarded = {group.name for group in named}
    found = {
        group.name: str(group.reason)
        for group in graph.groups
        if group.frozen or not (group.exact or limits.allow_inexact)
    }
    for group in graph.groups:
        if group.block and not limits.blocks:
            found[group.name] = "a block, and these go with blocks=True alone"
        elif group.name in guarded:
            found.setdefault(group.name, "protected")
        elif group.shortcut and limits.shortcuts == "avoid":
            why = "the outputs of several layers are added in it (shortcuts='avoid')"
            found.setdefault(group.name, why)
    return found


def shown(limits: Limits) -> str:
    """What bounds the units that may go of a group, for messages."""
    least = f"min_channels={limits.min_channels}"
    return least if limits.max_cut is None else f"{least} and {shown_cap(limits)}"


def shown_cap(limits: Limits) -> str:
    """``max_cut``, for messages."""
    if isinstance(limits.max_cut, Mapping):
        return "max_cut by name"
    return f"max_cut={limits.max_cut}"


__all__ = ["caps", "shown", "shown_cap", "staying"]
