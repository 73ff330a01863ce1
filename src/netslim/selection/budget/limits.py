"""What a cut must respect, whatever it is to reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor
from numbers import Integral, Real
from typing import Literal

from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.words.naming import assigned, meant

Shortcuts = Literal["include", "avoid"]


@dataclass(frozen=True)
class Limits:
    """See `netslim.select`.

    Raises:
        ArgumentError: a limit is out of range.
    """

    min_channels: int = 1
    max_cut: float | Mapping[str, float | int] | None = None
    round_to: int = 1
    protect: Iterable[str] = ()
    shortcuts: Shortcuts = "include"
    allow_inexact: bool = False

    def __post_init__(self) -> None:
        counts = (self.min_channels, self.round_to)
        if not all(isinstance(n, Integral) and not isinstance(n, bool) and n >= 1 for n in counts):
            raise ArgumentError(
                "min_channels and round_to must be at least 1 and whole numbers, got "
                f"{self.min_channels!r} and {self.round_to!r}"
            )
        if isinstance(self.max_cut, Mapping):
            for name, value in self.max_cut.items():
                _check_cap(name, value)
        elif self.max_cut is not None and not (_is_number(self.max_cut) and 0 <= self.max_cut < 1):
            raise ArgumentError(f"max_cut must be at least 0 and below 1, got {self.max_cut!r}")
        names = (self.protect,) if isinstance(self.protect, str) else self.protect
        names = tuple(names) if isinstance(names, Iterable) else (names,)
        if not all(isinstance(name, str) for name in names):
            raise ArgumentError(
                "protect takes names or patterns of groups, such as ['layer1.*'], got "
                f"{self.protect!r}"
            )
        object.__setattr__(self, "protect", names)
        if self.shortcuts not in ("include", "avoid"):
            raise ArgumentError(f"shortcuts must be 'include' or 'avoid', got {self.shortcuts!r}")

    def __str__(self) -> str:
        own = isinstance(self.max_cut, Mapping)
        cap = (
            ""
            if self.max_cut is None
            else " and max_cut by name"
            if own
            else f" and max_cut={self.max_cut}"
        )
        return f"min_channels={self.min_channels}{cap}"

    def caps(self, graph: ChannelGraph) -> list[int]:
        """For each group of the graph, how many of its units may go.

        Raises:
            ArgumentError: ``max_cut`` names no group.
        """
        named: Mapping[str, float | int | None] = {}
        if isinstance(self.max_cut, Mapping):
            named = {
                g: v
                for g, (_, v) in assigned(graph, self.max_cut, "max_cut names no group").items()
            }
        elif self.max_cut is not None:
            named = {g.name: self.max_cut for g in graph.groups}
        return [self._cap(group, named.get(group.name)) for group in graph.groups]

    def _cap(self, group: ChannelGroup, cap: float | int | None) -> int:
        if cap is None:
            most = group.size
        else:
            most = int(cap) if isinstance(cap, Integral) else floor(group.size * float(cap) + 1e-9)
        return max(0, min(most, group.size - self.min_channels))

    def staying(self, graph: ChannelGraph) -> dict[str, str]:
        """Group name -> reason, for the groups that are left alone whatever their scores.

        Raises:
            ArgumentError: ``protect`` names no group.
        """
        guarded = {
            g.name for name in self.protect for g in meant(graph, name, "protect names no group")
        }
        found = {
            g.name: str(g.reason)
            for g in graph.groups
            if g.frozen or not (g.exact or self.allow_inexact)
        }
        for group in graph.groups:
            if group.name in guarded:
                found.setdefault(group.name, "protected")
            elif group.shortcut and self.shortcuts == "avoid":
                found.setdefault(
                    group.name, "the outputs of several layers are added in it (shortcuts='avoid')"
                )
        return found


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_cap(name: str, value: object) -> None:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if whole and int(value) >= 0:  # type: ignore[call-overload]
        return
    if whole or not _is_number(value) or not 0 <= float(value) < 1:  # type: ignore[arg-type]
        raise ArgumentError(
            f"max_cut of {name!r}: give the share (float from 0 to below 1) or the number "
            f"(int) of channels that may go, got {value!r}"
        )


__all__ = ["Limits", "Shortcuts"]
