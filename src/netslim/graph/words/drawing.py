"""The channel graph as a picture: layers in rows, groups of channels as lines along them.

It is drawn as commits are by version control. A layer has a row; a group of channels is a line from
the first layer that takes part in it to the last, as wide as it has channels. A dot says that the
layer makes them, a ring that it reads them: all dots on one line lose the same channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape

from netslim.errors import ArgumentError
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.walk import layer_of
from netslim.graph.traced import TracedGraph
from netslim.graph.words.phrases import amount

_ROW, _LANE, _EDGE, _LETTER = 22, 20, 12, 6.7  # pixels; a letter is as wide as the last, at most
_THINNEST, _WIDEST = 1.5, 13.0
_COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#7b5ea7", "#b08900", "#3d5a80", "#a23b72", "#2a9d8f")
_STAYS = "#9a9a9a"


@dataclass(frozen=True)
class _Line:
    """A group on the picture: its lane, and the rows where layers make and read it."""

    group: ChannelGroup
    lane: int
    made: frozenset[int]
    read: frozenset[int]

    @property
    def rows(self) -> list[int]:
        return sorted(self.made | self.read)

    @property
    def x(self) -> float:
        return _EDGE + _LANE * (self.lane + 0.5)


def svg(graph: TracedGraph, kept: Mapping[str, int] | None = None) -> str:
    """The picture; see `ChannelGraph.to_svg`."""
    stay = _checked(graph, kept or {})
    layers = _layers(graph)
    lines = list(_lines(graph, layers))
    lanes = max((line.lane for line in lines), default=-1) + 1
    most = max((line.group.size for line in lines), default=1)
    rows = [_told(layer, row, lines, stay) for row, layer in enumerate(layers)]
    start = 2 * _EDGE + _LANE * lanes
    width = round(start + _LETTER * max(map(len, rows), default=0) + _EDGE)
    height = 2 * _EDGE + _ROW * len(rows)
    parts = [part for line in lines for part in _drawn(line, most, stay)]
    parts += [
        f'<text x="{start}" y="{_y(row) + 4}">{escape(text)}</text>'
        for row, text in enumerate(rows)
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="monospace" font-size="11" fill="#222">\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _checked(graph: TracedGraph, kept: Mapping[str, int]) -> dict[str, int]:
    """How many channels of each group stay, all where nothing is said."""
    stay = {group.name: group.size for group in graph.groups}
    for name, number in kept.items():
        size = graph.groups[graph.number(name)].size
        if not 0 <= number <= size:
            raise ArgumentError(f"kept says {number} of {name!r}, which has 0 to {size} channels")
        stay[name] = number
    return stay


def _layers(graph: TracedGraph) -> list[str]:
    """The layers that make or read channels, as they run."""
    taking = {
        _layer(part.tensor): None
        for group in graph.groups
        for part in (*group.tensors("producer"), *group.tensors("consumer"))
    }
    ran = {output.module: place for place, output in reversed([*enumerate(graph.outputs)])}
    return sorted(taking, key=lambda layer: ran.get(layer, len(graph.outputs)))


def _layer(tensor: str) -> str:
    return layer_of(tensor) or tensor


def _lines(graph: TracedGraph, layers: Iterable[str]) -> Iterator[_Line]:
    """The groups, each in the first lane that is free from its first layer to its last."""
    rows = {layer: row for row, layer in enumerate(layers)}
    spans = []
    for group in graph.groups:
        made, read = (
            frozenset(rows[_layer(part.tensor)] for part in group.tensors(role))
            for role in ("producer", "consumer")
        )
        if made | read:
            spans.append((min(made | read), -max(made | read), group, made, read))
    free: list[int] = []  # of each lane, the last row that is taken
    for first, last, group, made, read in sorted(spans, key=lambda span: span[:2]):
        lane = next((lane for lane, end in enumerate(free) if end < first), len(free))
        free[lane : lane + 1] = [-last]
        yield _Line(group, lane, made, read)


def _drawn(line: _Line, most: int, stay: Mapping[str, int]) -> Iterator[str]:
    """A group: pale as wide as it was, full as wide as it is; dots and rings over it."""
    group, rows = line.group, line.rows
    colour, dashes = _COLOURS[line.lane % len(_COLOURS)], ""
    if not group.prunable:
        colour, dashes = _STAYS, ' stroke-dasharray="4 3"'
    left = stay[group.name]
    said = f"{group.name}: {amount(group.size, 'channel')}, {group.verdict}"
    if left < group.size:
        said = f"{group.name}: {left:,} of {amount(group.size, 'channel')} stay"
    yield f'<g stroke="{colour}"{dashes}><title>{escape(said)}</title>'
    path = f'd="M{line.x:g} {_y(rows[0])}V{_y(rows[-1])}" fill="none" stroke-linecap="round"'
    if left < group.size:
        yield f'<path {path} stroke-width="{_wide(group.size, most):.2f}" opacity="0.3"/>'
    if left:
        yield f'<path {path} stroke-width="{_wide(left, most):.2f}"/>'
    yield "</g>"
    for row in rows:
        inside = colour if row in line.made else "#fff"
        yield (
            f'<circle cx="{line.x:g}" cy="{_y(row)}" r="4.5" fill="{inside}" stroke="{colour}" '
            'stroke-width="1.5"/>'
        )


def _wide(channels: int, most: int) -> float:
    return max(_THINNEST, _WIDEST * channels / most)


def _y(row: int) -> int:
    return _EDGE + _ROW * row + _ROW // 2


def _told(layer: str, row: int, lines: Iterable[_Line], stay: Mapping[str, int]) -> str:
    """``conv1: reads 16, makes 32``, of the channels that are in a group."""
    lines, said = list(lines), []
    for verb, rows in (("reads", "read"), ("makes", "made")):
        groups = [line.group for line in lines if row in getattr(line, rows)]
        before, after = sum(g.size for g in groups), sum(stay[g.name] for g in groups)
        if after < before:
            said.append(f"{verb} {after} of {before}")
        elif groups:
            said.append(f"{verb} {before}")
    return f"{layer}: {', '.join(said)}"


__all__ = ["svg"]
