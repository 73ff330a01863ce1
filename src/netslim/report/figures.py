"""The figures of a report, drawn from plain dictionaries (parts of `results.json`) as SVG or PNG.

matplotlib's object-oriented interface alone is used, so no state is shared with a user's own plots.
Colours are those of Okabe and Ito (2008), which stay distinct under colour blindness. In SVG they
are CSS variables, for the page that embeds a figure to adapt to a dark background.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

INK, BLUE, ORANGE, PALE = "#22262b", "#0072b2", "#d55e00", "#c3c9d1"
CSS = {INK: f"var(--ink, {INK})", BLUE: f"var(--blue, {BLUE})"}
CSS |= {ORANGE: f"var(--orange, {ORANGE})", PALE: f"var(--pale, {PALE})"}
WIDTH = 5.2  # inches: half of a report page, or the whole width of a phone
ROUND = [1, 2, 2.5, 5, 10]  # steps between ticks
OF_METHODS = {  # column of metrics.csv: what it is
    "near_zero": "scales near zero",
    "zero": "filters at zero",
    "deviation": "deviation in clusters",
    "macs_left": "multiply-accumulates left",
}
_NO_SHARES = {"deviation"}  # columns that are no share of 1
_FAR = 8.0  # percent of the cost left
FEW_LINES = 16  # groups that are drawn as a line each; more are told apart in a heat-map alone
# None to the largest: ever darker, so grey will do.
DROPS = ("#f2f4f6", "#9cc3dd", "#2f7fb5", "#0b3a66", "#06182b")
LINES = ("#06182b", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7")  # first group to last
RUNS = ("#0072b2", "#009e73", "#b8860b", "#d55e00", "#cc79a7")  # seen on light and on dark
DASHES: Any = ("solid", (0, (4, 1.5)), (0, (1.2, 1.4)))
MANY_LAYERS = 36  # beyond this, rows get thin and only some layers are named
STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "grid.alpha": 0.16,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
    "text.parse_math": False,  # names may hold any sign
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}


def curves(stages: Sequence[Mapping[str, Any]], format: str = "svg") -> bytes:
    """Loss, validation accuracy and what a sparsity method reports, by epoch and stage.

    Args:
        stages: `results["curves"]`: one mapping a stage with `stage` and, by epoch, `train_loss`
            (penalty included), `penalty`, `val_loss`, `val_accuracy` and the keys of `OF_METHODS`.
            A missing list or value leaves a gap; where a method reports nothing at all, its panel
            is left out.
        format: "svg" or "png".
    """
    more = [key for key in OF_METHODS if any(value is not None for value in _all(stages, key))]
    heights = (1.25, *[1] * (1 + len(more)))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 + 1.75 * sum(heights)), layout="constrained")
        panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
        _losses(panels[0], stages)
        _line(panels[1], stages, "val_accuracy", ORANGE, percent=True)
        panels[1].set(ylabel="validation accuracy")
        for axes, key in zip(panels[2:], more, strict=True):
            share = key not in _NO_SHARES
            _line(axes, stages, key, BLUE, percent=share)
            axes.set(ylabel=OF_METHODS[key], ylim=(0, 103 if share else None))
        shares = [True, *(key not in _NO_SHARES for key in more)]
        _finish_curves(figure, stages, panels, percent=shares)
        return render(figure, format, "curves")


def _all(stages: Sequence[Mapping[str, Any]], key: str) -> Iterator[Any]:
    """The values of all epochs of all stages."""
    return chain.from_iterable(stage.get(key) or [] for stage in stages)


def _losses(axes: Axes, stages: Sequence[Mapping[str, Any]]) -> None:
    training, penalised = "training", any(_all(stages, "penalty"))
    if penalised:
        training = "training, with penalty"
    _line(axes, stages, "train_loss", BLUE, label=training)
    _line(axes, stages, "val_loss", ORANGE, label="validation")
    if penalised:
        _line(axes, stages, "penalty", INK, label="penalty alone", linestyle=(0, (1, 1.6)))
    axes.set(ylabel="loss", ylim=(0, None))


def sensitivity(data: Mapping[str, Any], format: str = "svg") -> bytes:
    """Heat-map of what is lost when one group is cut alone: the first on top, ratios rising.

    The colour goes with the square root of the drop, for what decides is whether a few points are
    lost or none. Where there is room, each cell holds its drop; a cut that did better than the
    baseline has a minus.

    Args:
        data: of `netslim.methods.Sensitivity.to_dict`: `unit` and `rows` of `group`, `ratio` and
            `drop`.
        format: "svg" or "png".
    """
    names, ratios, drops = _drops(data)
    unit, cells, many = _unit(data), _CELLS, len(names) > MANY_LAYERS
    if many:
        cells = _SMALL_CELLS
    labels = 0.4 + cells.letter * max(map(len, names))
    with rc_context(STYLE):
        wide = max(3.6, labels + cells.width * len(ratios) + 1.1)
        size = (wide, 1.05 + cells.height * len(names))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        norm = PowerNorm(0.5, 0, max(float(np.nanmax(drops)), unit.least), clip=True)
        colours = LinearSegmentedColormap.from_list("drops", DROPS)
        shown = np.ma.masked_invalid(drops)
        mesh = axes.pcolormesh(
            shown, cmap=colours, norm=norm, snap=True, edgecolors="#ffffff", linewidth=cells.gap
        )
        _frame_cells(axes, names, ratios, cells.font)
        if not many and len(ratios) <= 10:
            _label_cells(axes, drops, norm, unit.digits)
        bar = figure.colorbar(mesh, ax=axes, aspect=30, fraction=0.06, pad=0.03)
        bar.set_label(unit.drop)
        bar.set_ticks(_rounded_ticks(float(norm.vmax or 1)))
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)
        return render(figure, format, "sensitivity")


def sensitivity_lines(data: Mapping[str, Any], format: str = "svg") -> bytes | None:
    """What remains against the share that goes, a line a group (as Li et al. 2017, Fig. 2b).

    Args:
        data: as for `sensitivity`, with its `baseline` and each row's `value`, `removed` and
            `size`.
        format: "svg" or "png".

    Returns:
        The drawing, or None where there are more groups than can be told apart (`FEW_LINES`).
    """
    names, _, _ = _drops(data)
    if len(names) > FEW_LINES:
        return None
    unit = _unit(data)
    whole = unit.scale * data["baseline"]
    with rc_context(STYLE):
        figure = Figure(figsize=(1.3 * WIDTH, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.axhline(whole, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), alpha=0.6)
        colours = LinearSegmentedColormap.from_list("lines", LINES)
        for number, name in enumerate(names):
            mine = [row for row in data["rows"] if row["group"] == name]
            mine.sort(key=lambda row: row["removed"])
            x = [0, *(100 * row["removed"] / row["size"] for row in mine)]
            y = [whole, *(unit.scale * row["value"] for row in mine)]
            colour = colours(number / max(len(names) - 1, 1))
            dashes = DASHES[number % len(DASHES)]
            axes.plot(x, y, "o", markersize=3.2, label=name, color=colour, linestyle=dashes)
        axes.set(xlabel="channels of the group that go", ylabel=unit.quality, xlim=(0, None))
        axes.grid(axis="y")
        axes.xaxis.set_major_formatter(PERCENT)
        if unit is _SHARE:
            axes.yaxis.set_major_formatter(PERCENT)
        figure.legend(loc="outside right upper", fontsize=8.5, handlelength=2.6)
        return render(figure, format, "sensitivity-lines")


@dataclass(frozen=True)
class _Unit:
    """How a quality and its drops are written: the scale colours have ends at `least` or above."""

    scale: int
    quality: str
    drop: str
    digits: str
    least: float


_SHARE = _Unit(100, "accuracy", "drop in points", ".1f", 1.0)
_VALUE = _Unit(1, "value", "drop of the value", ".3g", 1e-12)


def _unit(data: Mapping[str, Any]) -> _Unit:
    if data["unit"] == "share":
        return _SHARE
    return _VALUE


@dataclass(frozen=True)
class _Cells:
    """Sizes in a table of colours: inches of a cell and of a letter of its names, points."""

    height: float
    width: float
    letter: float
    gap: float
    font: float


_CELLS = _Cells(0.235, 0.6, 0.075, 1.0, 8.5)
_SMALL_CELLS = _Cells(0.125, 0.42, 0.058, 0.4, 6.5)


def _drops(data: Mapping[str, Any]) -> tuple[list[str], list[float], np.ndarray]:
    """Groups, ratios, drops (groups, ratios): points where values are shares, NaN where none."""
    rows, scale = data["rows"], _unit(data).scale
    names = list(dict.fromkeys(row["group"] for row in rows))
    ratios = sorted({row["ratio"] for row in rows})
    drops = np.full((len(names), len(ratios)), np.nan)
    for row in rows:
        drops[names.index(row["group"]), ratios.index(row["ratio"])] = scale * row["drop"]
    return names, ratios, drops


def _frame_cells(axes: Axes, names: Sequence[str], ratios: Sequence[float], font: float) -> None:
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=font)
    axes.set_xticks(np.arange(len(ratios)) + 0.5, [f"{100 * ratio:g} %" for ratio in ratios])
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.set_xlabel("channels of one group that go")


def _label_cells(axes: Axes, drops: np.ndarray, norm: PowerNorm, digits: str) -> None:
    """Each cell's drop, in black or white, whichever can be read on the colour of the cell.

    Not in `INK`, which a dark page makes light.
    """
    centred: Any = {"ha": "center", "va": "center", "fontsize": 8}
    for (row, column), drop in np.ndenumerate(drops):
        if np.isfinite(drop):
            text = f"{drop:{digits}}".replace("-0.0", "0.0").replace("-", "−")
            colour = "#101418"
            if norm(drop) > 0.45:
                colour = "#ffffff"
            axes.text(column + 0.5, row + 0.5, text, color=colour, **centred)


def _rounded_ticks(last: float) -> list[float]:
    """0 and round numbers up to `last`, spread over a square-root scale."""
    steps = [0.0]
    for share in (0.04, 0.16, 0.36, 0.64, 1.0):
        power = 10 ** np.floor(np.log10(share * last))
        below = share * last * (1 + 1e-9)
        steps.append(max(step * power for step in (1, 2, 5) if step * power <= below))
    return sorted(set(steps))


def front(data: Mapping[str, Any], format: str = "svg") -> bytes:
    """Accuracy against cost of the networks that a search tried, numbered in that order.

    Accuracies far below the allowed drop would flatten all others: they are drawn at the lower
    edge, as triangles, with their values.

    Args:
        data: of `search.json`: `resource`, `max_drop` in points, `baseline`, `best` (a share or
            None) and `rows`, the first of them the given network, with `key`, `accuracy` and the
            cost that `resource` names; candidates with `share` and `passed`. Rows without an
            accuracy could not be reached and are left out.
        format: "svg" or "png".
    """
    resource = data["resource"]
    whole = data["rows"][0][resource]
    floor = 100 * data["baseline"] - data["max_drop"]
    tried = [row for row in data["rows"] if row["key"] == "candidate"]
    points = []
    for number, row in enumerate(tried, 1):
        if "accuracy" in row:
            points.append((100 * row[resource] / whole, 100 * row["accuracy"], number, row))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
        axes = figure.subplots()
        bottom = _bottom([y for _, y, _, _ in points], floor, max(data["max_drop"], 0.5))
        axes.axhline(floor, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
        axes.annotate(
            f"allowed drop: {data['max_drop']:g}", (1, floor), (-2, 3), ("axes fraction", "data"),
            "offset points", ha="right", fontsize=8.5,
        )  # fmt: skip
        uncut = [100 * row["accuracy"] for row in data["rows"] if row["key"] != "candidate"]
        line = sorted([(x, max(y, bottom)) for x, y, _, _ in points] + [(100.0, uncut[0])])
        axes.plot(*zip(*line, strict=True), color=PALE, linewidth=1.2, zorder=1)
        _uncut(axes, uncut)
        for x, y, number, row in points:
            _candidate(axes, x, y, number, row, row["share"] == data["best"], bottom)
        _finish_front(figure, axes, resource, bottom, min([100.0, *(x for x, *_ in points)]))
        return render(figure, format, "front")


def _line(
    axes: Axes,
    stages: Sequence[Mapping[str, Any]],
    key: str,
    colour: str,
    percent: bool = False,
    **style: Any,
) -> None:
    """One line through all stages; a gap between two stages, because surgery lies between them."""
    x, y = [], []
    for start, stage in zip(_starts(stages), stages, strict=False):
        values = np.array(stage.get(key) or [], dtype=float).tolist()  # None becomes NaN
        x += [*range(start + 1, start + 1 + len(values)), start + len(values)]
        y += [*values, np.nan]
    if percent:
        y = [100 * value for value in y]
    marker = None
    if _starts(stages)[-1] <= 12:
        marker = "o"
    axes.plot(x, np.asarray(y), color=colour, marker=marker, markersize=3.2, **style)


def _finish_curves(
    figure: Figure,
    stages: Sequence[Mapping[str, Any]],
    panels: Sequence[Axes],
    percent: Sequence[bool],
) -> None:
    starts = _starts(stages)
    for axes in panels:
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
        for boundary in starts[1:-1]:
            axes.axvline(boundary + 0.5, color=INK, linewidth=0.8, alpha=0.45)
    for axes, share in zip(panels[1:], percent, strict=True):
        if share:
            axes.yaxis.set_major_formatter(PERCENT)
    _name_stages(panels[0], stages)
    panels[-1].set_xlabel("epoch, counted through all stages")
    panels[-1].set_xlim(0.5, max(starts[-1], 1) + 0.5)
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3,
        columnspacing=1.2, handlelength=1.6,
    )  # fmt: skip
    figure.align_ylabels(panels)


def _name_stages(axes: Axes, stages: Sequence[Mapping[str, Any]]) -> None:
    short = min(len(stage["epoch"]) for stage in stages) < 0.15 * _starts(stages)[-1]
    tilt = 30 if len(stages) > 4 or short else 0
    for start, stage in zip(_starts(stages), stages, strict=False):
        axes.annotate(
            str(stage["stage"]), (start + 0.5, 1), (1, 3), ("data", "axes fraction"),
            "offset points", fontsize=8.5, style="italic", rotation=tilt,
        )  # fmt: skip


def _starts(stages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Epochs done before each stage, and in all: [0, n1, n1 + n2, ...]."""
    return [0, *np.cumsum([len(stage["epoch"]) for stage in stages], dtype=int).tolist()]


def tradeoff(runs: Sequence[Mapping[str, Any]], format: str = "svg") -> bytes:
    """Accuracy against what is left of the MACs, a line a run from its whole network to the last.

    Args:
        runs: each with a `label` and `points` of `label`, `left` (a share of 1) and `accuracy`. Of
            one run the points are named, of several the lines.
        format: "svg" or "png".
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
        axes = figure.subplots()
        colours = LinearSegmentedColormap.from_list("runs", RUNS)
        for number, run in enumerate(runs):
            x, y = ([100 * point[key] for point in run["points"]] for key in ("left", "accuracy"))
            colour: Any = BLUE
            dashes = DASHES[number % len(DASHES)]
            if len(runs) > 1:
                colour = colours(number / (len(runs) - 1))
            axes.plot(x, y, "o", color=colour, linestyle=dashes, markersize=5, label=run["label"])
            axes.plot(x[-1:], y[-1:], "o", color=colour, markersize=9)
        _finish_tradeoff(figure, axes, runs)
        return render(figure, format, "tradeoff")


def _finish_tradeoff(figure: Figure, axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    axes.set(xlabel="MACs left", ylabel="test accuracy")
    axes.margins(y=0.15)
    axes.set_xticks(range(0, 101, 25))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    _costs(axes, min(100 * point["left"] for run in runs for point in run["points"]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PERCENT)
    axes.grid()
    if len(runs) > 1:
        figure.legend(loc="outside upper left", ncols=2, fontsize=8.5)
        return
    for number, point in enumerate(runs[0]["points"]):
        axes.annotate(
            point["label"], (100 * point["left"], 100 * point["accuracy"]),
            (6, (7, -13)[number % 2]), textcoords="offset points", fontsize=8.5,
        )  # fmt: skip
    first, last = axes.get_xlim()
    axes.set_xlim(first, last * 1.4)


def _costs(axes: Axes, least: float) -> None:
    """An axis of costs in percent, logarithmic where they reach far down: small ones lie close."""
    axes.set_xlim(0, 104)
    if least >= _FAR:
        return
    axes.set_xscale("log")
    axes.set_xlim(0.8 * least, 125)
    ticks = [step * 10.0**power for power, step in product(range(-4, 3), (1, 2, 5))]
    axes.set_xticks([tick for tick in ticks if 0.8 * least <= tick <= 100])
    axes.xaxis.set_minor_locator(NullLocator())


def _bottom(accuracies: Sequence[float], floor: float, drop: float) -> float:
    """The lower edge, in percent: as far below the floor as shows how candidates fail."""
    lowest = min([floor, *(y for y in accuracies if y > floor - 12 * drop)])
    return lowest - 0.25 * (floor + drop - lowest) - 0.5 * drop


def _uncut(axes: Axes, accuracies: Sequence[float]) -> None:
    looks = (("as given", 5, INK), ("uncut, trained alike", 9, "none"))
    for y, (label, size, fill) in zip(accuracies, looks, strict=False):
        axes.plot(
            100, y, "s", color=INK, markersize=size, markerfacecolor=fill, linestyle="",
            label=label, zorder=3,
        )  # fmt: skip


def _candidate(
    axes: Axes, x: float, y: float, number: int, row: Mapping[str, Any], best: bool, bottom: float
) -> None:
    """A point for a candidate: full where it passed, ringed where it is the best of these.

    One below the lower edge is a triangle on it, with its value.
    """
    label: str | None
    label, colour, fill = ("passed", BLUE, BLUE) if row["passed"] else ("failed", ORANGE, "none")
    marker, text, side, place = "o", str(number), "center", (0, 8)
    if best:
        place = (0, 11)
        axes.plot(
            x, y, "o", color=BLUE, markersize=13, markerfacecolor="none", markeredgewidth=1.4,
            linestyle="", label="the smallest that passed", zorder=2,
        )  # fmt: skip
    if y < bottom:
        marker, text, side, place = "v", f"{number}: {y:.1f} %", "left", (7, 3)
    if label in axes.get_legend_handles_labels()[1]:
        label = None  # once in the legend is enough
    at = (x, max(y, bottom))
    axes.plot(
        *at, marker, color=colour, markersize=6, linestyle="", markerfacecolor=fill, label=label,
        zorder=3, clip_on=False,
    )  # fmt: skip
    axes.annotate(text, at, place, textcoords="offset points", ha=side, fontsize=8.5)


def _finish_front(figure: Figure, axes: Axes, resource: str, bottom: float, least: float) -> None:
    names = {"macs": "MACs", "params": "parameters", "latency": "latency, by the table,"}
    axes.set(xlabel=f"{names.get(resource, resource)} left", ylabel="validation accuracy")
    top = axes.dataLim.y1
    axes.set_ylim(bottom, top + 0.12 * (top - bottom))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND))
    _costs(axes, least)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PERCENT)
    axes.grid()
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, columnspacing=1.2
    )


PERCENT = FuncFormatter(lambda value, _: f"{value:g} %")


def render(figure: Figure, format: str, name: str) -> bytes:
    """The figure as bytes, the same each time; in SVG, colours are CSS variables.

    What makes SVG files differ from run to run, dates and random ids, is left out or fixed.
    """
    buffer = io.BytesIO()
    if format == "png":
        figure.savefig(buffer, format="png", dpi=160)
        return buffer.getvalue()
    unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=unsaid)
    drawing = buffer.getvalue().decode()
    for colour, variable in CSS.items():
        drawing = drawing.replace(colour, variable)
    return drawing.encode()
