"""The figures of a report, drawn from plain dictionaries (the parts of `results.json`) to SVG or PNG bytes.

matplotlib's object-oriented interface alone is used, so no state is shared with a user's own plots. Colours
are those of Okabe and Ito (2008), which stay distinct under colour blindness. In SVG they are CSS variables,
for the page that embeds a figure to adapt to a dark background.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
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
}
MANY_LAYERS = 36  # beyond this, bars get thin and only some layers are named
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
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}


def scales(data: Mapping[str, Any], format: str = "svg") -> bytes:
    """Histogram of the BN scales' magnitudes before and after training, with the penalty where there is one.

    Args:
        data: `results["scales"]`: `edges` (n + 1 rising magnitudes from 0), `before` and `after` (n counts
            each), `threshold`, and the two shares near zero.
        format: "svg" or "png".
    """
    edges = np.asarray(data["edges"], dtype=float)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        above, below = figure.subplots(2, sharex=True)
        _scale_panel(above, edges, data, "before", ORANGE)
        _scale_panel(below, edges, data, "after", BLUE)
        below.set_xlabel("magnitude of the batch-norm scale |γ|  (logarithmic, from 0)")
        figure.supylabel("share of all channels", fontsize=9.5)
        return _render(figure, format, "scales")


def widths(layers: Sequence[Mapping[str, Any]], format: str = "svg") -> bytes:
    """Channels of each layer before and after the cut, as bars from the first layer (top) to the last.

    Args:
        layers: `results["widths"]`: rows of `layer`, `before` and `after` (channels).
        format: "svg" or "png".
    """
    count, many = len(layers), len(layers) > MANY_LAYERS
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + count * (0.09 if many else 0.235)), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(count)
        before, after = (np.array([layer[when] for layer in layers], dtype=float) for when in ("before", "after"))
        axes.barh(rows, before, 0.78, color=PALE, label="before")
        axes.barh(rows, after, 0.78, color=BLUE, label="after")
        _name_layers(axes, layers, every=-(-count // MANY_LAYERS))
        if not many:
            _label_bars(axes, before, after)
        axes.set_xlabel("channels")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
        return _render(figure, format, "widths")


def curves(stages: Sequence[Mapping[str, Any]], format: str = "svg") -> bytes:
    """Loss, validation accuracy and what a sparsity method reports by epoch, one stage after another.

    Args:
        stages: `results["curves"]`: one mapping a stage with `stage` and, by epoch, `train_loss` (penalty
            included), `penalty`, `val_loss`, `val_accuracy` and the keys of `OF_METHODS`. A missing list or value
            leaves a gap; where a method reports nothing at all, its panel is left out.
        format: "svg" or "png".
    """
    more = [key for key in OF_METHODS if any(value is not None for stage in stages for value in stage.get(key) or [])]
    heights = (1.25, 1, *(1 for _ in more))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 + 1.75 * sum(heights)), layout="constrained")
        panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
        penalised = any(value for stage in stages for value in stage.get("penalty") or [])
        _line(panels[0], stages, "train_loss", BLUE, label="training, with penalty" if penalised else "training")
        _line(panels[0], stages, "val_loss", ORANGE, label="validation")
        if penalised:
            _line(panels[0], stages, "penalty", INK, label="penalty alone", linestyle=(0, (1, 1.6)))
        _line(panels[1], stages, "val_accuracy", ORANGE, percent=True)
        panels[0].set(ylabel="loss", ylim=(0, None))
        panels[1].set(ylabel="validation accuracy")
        for axes, key in zip(panels[2:], more, strict=True):
            share = key != "deviation"
            _line(axes, stages, key, BLUE, percent=share)
            axes.set(ylabel=OF_METHODS[key], ylim=(0, 103 if share else None))
        _finish_curves(figure, stages, panels, percent=[key != "deviation" for key in ("val_accuracy", *more)])
        return _render(figure, format, "curves")


def _scale_panel(axes: Axes, edges: np.ndarray, data: Mapping[str, Any], when: str, colour: str) -> None:
    counts = np.asarray(data[when], dtype=float)
    axes.stairs(100 * counts / max(counts.sum(), 1), edges, fill=True, color=colour)
    _from_zero(axes, edges[edges > 0][0], max(edges[-1], 1.5 * data["threshold"]))
    axes.axvline(data["threshold"], color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.yaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
    axes.grid(axis="y")
    share = 100 * data[f"share_near_zero_{when}"]
    axes.set_title(f"{when} training: {share:.1f} % below {data['threshold']:g} (dashed)")


def _from_zero(axes: Axes, first: float, last: float) -> None:
    """A logarithmic axis to `last` on which the first bin, from 0 to `first`, still has its place."""
    axes.set_xscale("symlog", linthresh=first, linscale=0.25)
    axes.set_xlim(0, last)
    decades = 10.0 ** np.arange(np.ceil(np.log10(1.01 * first)), np.floor(np.log10(last)) + 1)
    axes.set_xticks([0, *decades], ["0", *(f"{decade:g}".replace("e-0", "e-") for decade in decades)])
    axes.xaxis.set_minor_locator(NullLocator())


def _name_layers(axes: Axes, layers: Sequence[Mapping[str, Any]], every: int) -> None:
    axes.set_yticks(range(0, len(layers), every), [str(layer["layer"]) for layer in layers[::every]], fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _label_bars(axes: Axes, before: np.ndarray, after: np.ndarray) -> None:
    for row, (wide, narrow) in enumerate(zip(before, after, strict=True)):
        axes.annotate(
            f"{narrow:.0f} of {wide:.0f}",
            (wide, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axes.set_xlim(0, before.max() * 1.2)


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
        values = [np.nan if value is None else value for value in stage.get(key) or []]
        x += [*range(start + 1, start + 1 + len(values)), start + len(values)]
        y += [*values, np.nan]
    marker = "o" if _starts(stages)[-1] <= 12 else None
    axes.plot(x, np.asarray(y) * (100 if percent else 1), color=colour, marker=marker, markersize=3.2, **style)


def _finish_curves(
    figure: Figure, stages: Sequence[Mapping[str, Any]], panels: Sequence[Axes], percent: Sequence[bool]
) -> None:
    starts = _starts(stages)
    for axes in panels:
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
        for boundary in starts[1:-1]:
            axes.axvline(boundary + 0.5, color=INK, linewidth=0.8, alpha=0.45)
    for axes, share in zip(panels[1:], percent, strict=True):
        if share:
            axes.yaxis.set_major_formatter(_percent)
    _name_stages(panels[0], stages)
    panels[-1].set_xlabel("epoch, counted through all stages")
    panels[-1].set_xlim(0.5, max(starts[-1], 1) + 0.5)
    panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper right", ncols=3, columnspacing=1.2, handlelength=1.6)
    figure.align_ylabels(panels)


def _name_stages(axes: Axes, stages: Sequence[Mapping[str, Any]]) -> None:
    short = min(len(stage["epoch"]) for stage in stages) < 0.15 * _starts(stages)[-1]
    tilt = 30 if len(stages) > 4 or short else 0
    for start, stage in zip(_starts(stages), stages, strict=False):
        axes.annotate(
            str(stage["stage"]),
            (start + 0.5, 1),
            xytext=(1, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8.5,
            style="italic",
            rotation=tilt,
        )


def _starts(stages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Epochs done before each stage, and in all: [0, n1, n1 + n2, ...]."""
    return [0, *np.cumsum([len(stage["epoch"]) for stage in stages], dtype=int).tolist()]


_percent = FuncFormatter(lambda value, _: f"{value:g} %")


def _render(figure: Figure, format: str, name: str) -> bytes:
    """The figure as bytes, the same ones each time; in SVG, colours as CSS variables on no background."""
    buffer = io.BytesIO()
    if format == "png":
        figure.savefig(buffer, format="png", dpi=160)
        return buffer.getvalue()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    drawing = buffer.getvalue().decode()
    for colour, variable in CSS.items():
        drawing = drawing.replace(colour, variable)
    return drawing.encode()
