"""The groups that a user means by a name or a pattern, and who gets what in a mapping of names."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from netslim._support import described, listed, nearest
from netslim.errors import ArgumentError, PlanError
from netslim.graph.groups import ChannelGroup
from netslim.graph.traced import TracedGraph
from netslim.graph.words.explain import find, hint, tensors_of


def is_pattern(graph: TracedGraph, name: str) -> bool:
    """Whether a name holds ``*``, ``?`` or ``[`` and is no group's own name."""
    return any(sign in name for sign in "*?[") and all(name != g.name for g in graph.groups)


def meant(graph: TracedGraph, name: str, problem: str) -> list[ChannelGroup]:
    """The groups whose names match a pattern; or the one of a plain name, as in ``graph[name]``.

    Args:
        graph: of the model.
        name: a pattern of group names (``"layer1.*"``), or the name of a group, module or tensor.
        problem: how the message begins when there is none, such as ``"protect names no group"``.

    Raises:
        ArgumentError: there is no such group (the nearest names are given), or a plain name stands
            for several.
    """
    if not isinstance(name, str):
        raise ArgumentError(f"{problem}: groups go by their names, got {described(name)}")
    if is_pattern(graph, name):
        if found := [g for g in graph.groups if fnmatchcase(g.name, name)]:
            return found
        names = [group.name for group in graph.groups]
        raise ArgumentError(f"{problem}: {name!r}{nearest(name, names)}")
    if (
        name in graph.inventory.modules
        or tensors_of(graph, name)
        or any(g.name == name for g in graph.groups)
    ):
        return [find(graph, name)]
    raise ArgumentError(f"{problem}: {name!r}{hint(graph, name)}")


def assigned(
    graph: TracedGraph, mapping: Mapping[str, Any], problem: str
) -> dict[str, tuple[str, Any]]:
    """Group name -> (the entry that decides, its value), in the order of the graph.

    A plain name wins over every pattern, wherever it stands; of two patterns the later one wins.

    Raises:
        ArgumentError: as `meant` does, or two plain names give one group different values.
    """
    # Stable: patterns first. What is no name is refused when its turn comes.
    names = sorted(mapping, key=lambda name: not is_pattern(graph, str(name)))
    found: dict[str, tuple[str, Any]] = {}
    for name in names:
        for group in meant(graph, name, problem):
            other, value = found.get(group.name, ("*", None))
            if not is_pattern(graph, other) and value != mapping[name]:
                raise ArgumentError(
                    f"{other!r} and {name!r} are both the group {group.name!r}, which cannot "
                    f"take both {value!r} and {mapping[name]!r}: leave one out"
                )
            found[group.name] = (name, mapping[name])
    return {g.name: found[g.name] for g in graph.groups if g.name in found}


def granted(
    graph: TracedGraph, mapping: Mapping[str, Any], staying: Mapping[str, str], problem: str
) -> dict[str, Any]:
    """Group name -> its value, for the groups of a mapping that may be acted on.

    Args:
        graph: of the model.
        mapping: name or pattern -> value; which entry decides, see `assigned`.
        staying: group name -> why it is left alone, for those that are.
        problem: how messages begin, such as ``"per_group names no group that can be cut"``.

    Raises:
        ArgumentError: as `assigned` does.
        PlanError: an entry means groups that all are left alone, unless its value is 0.
    """
    wanted = assigned(graph, mapping, problem)
    for entry, value in mapping.items():
        reasons = [staying.get(g.name) for g in meant(graph, entry, problem)]
        if all(reasons) and value != 0:
            free = [g.name for g in graph.groups if g.name not in staying]
            which = ""
            if free:
                which = f"; these can: {listed(free)}"
            raise PlanError(f"{problem}: {entry!r} stays: {reasons[0]}{which}")
    return {name: value for name, (_, value) in wanted.items() if name not in staying}


__all__ = ["assigned", "granted", "is_pattern", "meant"]
