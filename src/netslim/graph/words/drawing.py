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
from netslim.graph.modules.walk import layer_of
from netslim.graph.traced import TracedGraph
from netslim.graph.words.phrases import amount

_ROW, _LANE, _EDGE, _LETTER = 22, 20, 12, 6.7  # pixels; a letter is as wide as the last, at most
_THINNEST, _WIDEST = 1.5, 13.0
COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#7b5ea7", "#b08900", "#3d5a80", "#a23b72", "#2a9d8f")
STAYS, INK, PAPER = "#9a9a9a", "#222", "#fff"
_MOST = 1 << 40  # channels
_CUT = ("exact", "")  # verdicts of groups that can be cut, or of which nothing is known


@dataclass(frozen=True)
class Line:
    """A group of channels on the picture.

    Attributes:
        name, size, verdict: of the group.
        why: the reason why it stays, if it does.
        made, read: numbers of the layers that make its channels, and that read them.
    """

    name: str
    size: int
    verdict: str = ""
    why: str = ""
    made: tuple[int, ...] = ()
    read: tuple[int, ...] = ()

    @property
    def rows(self) -> list[int]:
        """The layers that take part in it, first to last."""
        return sorted({*self.made, *self.read})


@dataclass(frozen=True)
class Picture:
    """What a graph's picture shows, as plain data: it can be kept, and drawn without the graph.

    Attributes:
        layers: their names, as they run.
        lines: the groups, from top to bottom.

    Raises:
        ValueError: a line is at no layer, or has no channels.
    """

    layers: tuple[str, ...]
    lines: tuple[Line, ...]

    def __post_init__(self) -> None:
        for line in self.lines:
            if not 0 < line.size < _MOST:
                raise ValueError(f"the line {line.name!r} has no channels, or too many")
            if not line.rows or not 0 <= line.rows[0] <= line.rows[-1] < len(self.layers):
                raise ValueError(f"the line {line.name!r} is at no layer of the picture")


def picture(graph: TracedGraph) -> Picture:
    """What there is to be drawn of a graph."""
    layers = _layers(graph)
    return Picture(tuple(layers), tuple(_lines(graph, layers)))


def svg(graph: TracedGraph, kept: Mapping[str, int] | None = None) -> str:
    """The picture; see `ChannelGraph.to_svg`."""
    return drawn(picture(graph), _checked(graph, kept or {}))


def drawn(shown: Picture, stay: Mapping[str, int]) -> str:
    """A picture as SVG.

    Args:
        shown: what is drawn.
        stay: group -> how many of its channels stay; all where nothing is said.
    """
    stay = {line.name: line.size for line in shown.lines} | dict(stay)
    places = _lanes(shown.lines)
    most = max((line.size for line in shown.lines), default=1)
    rows = [_told(layer, row, shown.lines, stay) for row, layer in enumerate(shown.layers)]
    start = 2 * _EDGE + _LANE * len({*places})
    width = round(start + _LETTER * max(map(len, rows), default=0) + _EDGE)
    height = 2 * _EDGE + _ROW * len(rows)
    parts = [
        part
        for line, lane in zip(shown.lines, places, strict=True)
        for part in _drawn(line, lane, most, stay)
    ]
    parts += [
        f'<text x="{start}" y="{_y(row) + 4}">{escape(text)}</text>'
        for row, text in enumerate(rows)
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="monospace" font-size="11" fill="{INK}">\n'
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>\n{body}\n</svg>\n'
    )


def _checked(graph: TracedGraph, kept: Mapping[str, int]) -> Mapping[str, int]:
    """How many channels of each group stay, where something is said of it."""
    for name, number in kept.items():
        size = graph.groups[graph.number(name)].size
        if not 0 <= number <= size:
            raise ArgumentError(f"kept says {number} of {name!r}, which has 0 to {size} channels")
    return kept


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


def _lines(graph: TracedGraph, layers: Iterable[str]) -> Iterator[Line]:
    """The groups, in the order of their first layers; of several the longest first."""
    rows = {layer: row for row, layer in enumerate(layers)}
    found = []
    for group in graph.groups:
        made, read = (
            tuple(sorted({rows[_layer(part.tensor)] for part in group.tensors(role)}))
            for role in ("producer", "consumer")
        )
        if made or read:
            why = group.reason or ""
            found.append(Line(group.name, group.size, group.verdict, why, made, read))
    return iter(sorted(found, key=lambda line: (line.rows[0], -line.rows[-1])))


def _lanes(lines: Iterable[Line]) -> list[int]:
    """Of each line, the first lane that is free from its first layer to its last."""
    found, free = list[int](), list[int]()  # of each lane, the last row that is taken
    for line in lines:
        first, last = line.rows[0], line.rows[-1]
        lane = next((lane for lane, end in enumerate(free) if end < first), len(free))
        free[lane : lane + 1] = [last]
        found.append(lane)
    return found


def _drawn(line: Line, lane: int, most: int, stay: Mapping[str, int]) -> Iterator[str]:
    """A group: pale as wide as it was, full as wide as it is; dots and rings over it."""
    rows, x = line.rows, _EDGE + _LANE * (lane + 0.5)
    colour, dashes = COLOURS[lane % len(COLOURS)], ""
    if line.verdict not in _CUT:
        colour, dashes = STAYS, ' stroke-dasharray="4 3"'
    left = stay[line.name]
    said = f"{line.name}: {amount(line.size, 'channel')}, {line.verdict}"
    if left < line.size:
        said = f"{line.name}: {left:,} of {amount(line.size, 'channel')} stay"
    yield f'<g stroke="{colour}"{dashes}><title>{escape(said)}</title>'
    path = f'd="M{x:g} {_y(rows[0])}V{_y(rows[-1])}" fill="none" stroke-linecap="round"'
    if left < line.size:
        yield f'<path {path} stroke-width="{_wide(line.size, most):.2f}" opacity="0.3"/>'
    if left:
        yield f'<path {path} stroke-width="{_wide(left, most):.2f}"/>'
    yield "</g>"
    for row in rows:
        inside = PAPER
        if row in line.made:
            inside = colour
        yield (
            f'<circle cx="{x:g}" cy="{_y(row)}" r="4.5" fill="{inside}" stroke="{colour}" '
            'stroke-width="1.5"/>'
        )


def _wide(channels: int, most: int) -> float:
    return max(_THINNEST, _WIDEST * channels / most)


def _y(row: int) -> int:
    return _EDGE + _ROW * row + _ROW // 2


def _told(layer: str, row: int, lines: Iterable[Line], stay: Mapping[str, int]) -> str:
    """``conv1: reads 16, makes 32``, of the channels that are in a group."""
    lines, said = list(lines), []
    for verb, rows in (("reads", "read"), ("makes", "made")):
        mine = [line for line in lines if row in getattr(line, rows)]
        before, after = sum(line.size for line in mine), sum(stay[line.name] for line in mine)
        if after < before:
            said.append(f"{verb} {after} of {before}")
        elif mine:
            said.append(f"{verb} {before}")
    return f"{layer}: {', '.join(said)}"


__all__ = ["COLOURS", "INK", "PAPER", "STAYS", "Line", "Picture", "drawn", "picture", "svg"]
