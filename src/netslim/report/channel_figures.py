"""The figures that tell where channels went, and why: the network, scores and scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from netslim.graph.words import drawing
from netslim.report.figures import (
    BLUE,
    INK,
    MANY_LAYERS,
    ORANGE,
    PERCENT,
    ROUND,
    STYLE,
    WIDTH,
    render,
)

_BEHIND = "#8a929c"  # histograms beside the ones that count


def network(shown: drawing.Picture, stay: Mapping[str, int]) -> bytes:
    """The network as its graph, in colours of the page, as SVG.

    Args:
        shown: layers and groups.
        stay: group -> how many of its channels stay.
    """
    svg = drawing.drawn(shown, stay)
    # Half-way to the ink, lines are darker on white paper and lighter on black.
    for colour in drawing.COLOURS:
        svg = svg.replace(f'"{colour}"', f'"color-mix(in srgb, {colour} 78%, var(--ink))"')
    svg = svg.replace(f'"{drawing.STAYS}"', '"var(--soft)"')
    svg = svg.replace(f'"{drawing.INK}"', '"var(--ink)"')
    return svg.replace(f'"{drawing.PAPER}"', '"var(--paper)"').encode()


def scales(data: Mapping[str, Any], format: str = "svg") -> bytes:
    """Histograms of the BN scales' magnitudes before and after training, and of other trainings
    beside it.

    Args:
        data: `results["scales"]`: `edges` (n + 1 rising magnitudes from 0), `before` and `after` (n
            counts each), `threshold`, and the two shares near zero; `strength` where it is known,
            and `others` with `label`, `counts` and `share_near_zero`.
        format: "svg" or "png".
    """
    after = "after training"
    if data.get("strength"):
        after = f"{after}, strength {data['strength']:.3g}"
    panels = [Panel("before training", data["before"], data["share_near_zero_before"], ORANGE)]
    for other in data.get("others") or []:
        panels.append(Panel(other["label"], other["counts"], other["share_near_zero"], _BEHIND))
    panels.append(Panel(after, data["after"], data["share_near_zero_after"], BLUE))
    return histograms(panels, data["edges"], data["threshold"], format)


@dataclass(frozen=True)
class Panel:
    """A histogram: what it is of, its counts, the share near zero, and its colour."""

    label: str
    counts: Sequence[int]
    share: float
    colour: str = BLUE


def histograms(
    panels: Sequence[Panel], edges: Sequence[float], threshold: float, format: str = "svg"
) -> bytes:
    """Histograms of scales, one above the other.

    Args:
        panels: each with as many counts as there are bins, or fewer where the last are empty.
        edges: of the bins; magnitudes that rise from 0.
        threshold: below which a scale is near zero.
        format: "svg" or "png".
    """
    places = np.asarray(edges, dtype=float)
    with rc_context(STYLE):
        size = (WIDTH, 0.7 + 2.4 / max(1.5, len(panels) / 2) * len(panels))
        figure = Figure(figsize=size, layout="constrained")
        found = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(found, panels, strict=True):
            _histogram(axes, places, panel, threshold)
            told = f"{100 * panel.share:.1f} % below {threshold:g} (dashed)"
            axes.set_title(f"{panel.label}: {told}")
        found[-1].set_xlabel("magnitude of the batch-norm scale |γ|  (logarithmic, from 0)")
        figure.supylabel("share of all channels", fontsize=9.5)
        return render(figure, format, "scales")


def _histogram(axes: Axes, edges: np.ndarray, panel: Panel, threshold: float) -> None:
    heights = np.zeros(len(edges) - 1)
    heights[: len(panel.counts)] = panel.counts
    axes.stairs(100 * heights / max(heights.sum(), 1), edges, fill=True, color=panel.colour)
    _from_zero(axes, edges[edges > 0][0], max(edges[-1], 1.5 * threshold))
    axes.axvline(threshold, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND))
    axes.grid(axis="y")


def _from_zero(axes: Axes, first: float, last: float) -> None:
    """A logarithmic axis to `last` on which the bin from 0 to `first` still has its place."""
    axes.set_xscale("symlog", linthresh=first, linscale=0.25)
    axes.set_xlim(0, last)
    decades = 10.0 ** np.arange(np.ceil(np.log10(1.01 * first)), np.floor(np.log10(last)) + 1)
    names = [f"{decade:g}".replace("e-0", "e-") for decade in decades]
    axes.set_xticks([0, *decades], ["0", *names])
    axes.xaxis.set_minor_locator(NullLocator())


def selection(data: Mapping[str, Any], format: str = "svg") -> bytes:
    """The scales of one layer over training, brighter where they are larger: the channels in rows,
    the largest at the end on top (Liu et al. 2017, Fig. 6).

    Args:
        data: `results["scales"]`: `levels`, before the first epoch and after each, of every channel
            the number of its bin as two hexadecimal digits; the edges of these `bins`; `layer`.
        format: "svg" or "png".
    """
    seen = np.array([[*bytes.fromhex(text)] for text in data["levels"]]).T
    seen = seen[np.argsort(-seen[:, -1], kind="stable")]
    channels, epochs = seen.shape
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        place = (-0.5, epochs - 0.5, channels, 0)
        image = axes.imshow(seen, cmap="cividis", aspect="auto", interpolation="none", extent=place)
        axes.set(xlabel="epoch", ylabel=f"channels of {data['layer']}")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, aspect=30, fraction=0.06, pad=0.03)
        bar.set_label("|γ|")
        decades = [place for place, edge in enumerate(data["bins"]) if _is_decade(edge)]
        decades = [place for place in decades if seen.min() <= place <= seen.max()]
        bar.set_ticks(decades, labels=[f"{data['bins'][place]:g}" for place in decades])
        bar.outline.set_visible(False)
        return render(figure, format, "selection")


def _is_decade(edge: float) -> bool:
    return edge > 0 and f"{edge:e}".startswith("1.000000")


def scores(data: Mapping[str, Any], format: str = "svg") -> bytes:
    """Of each layer, the scores of the channels that went and of those that stay: from the least to
    the largest, with a dot in the middle. The threshold of a layer is where one ends and the other
    begins.

    Args:
        data: one of `results["scores"]`: `criterion`, and `layers` with `layer` and, as three
            numbers that rise or none, `gone` and `kept`.
        format: "svg" or "png".
    """
    layers = data["layers"]
    row = 0.235  # inches
    if len(layers) > MANY_LAYERS:
        row = 0.09
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.1 + len(layers) * row), layout="constrained")
        axes = figure.subplots()
        for key, colour, shift in (("gone", ORANGE, 0.16), ("kept", BLUE, -0.16)):
            places = [(n + shift, layer[key]) for n, layer in enumerate(layers) if layer[key]]
            for place, (least, _, most) in places:
                axes.plot([least, most], [place, place], color=colour, linewidth=2.2)
            middles = [ends[1] for _, ends in places]
            said = {"gone": "channels that went", "kept": "channels that stay"}[key]
            axes.plot(
                middles, [place for place, _ in places], "o", color=colour, markersize=4, label=said
            )
        _name_layers(axes, layers, every=-(-len(layers) // MANY_LAYERS))
        _score_axis(axes, [score for layer in layers for score in layer["gone"] + layer["kept"]])
        axes.set_xlabel(f"score ({data['criterion'] or 'as given'})")
        figure.legend(loc="outside upper right", ncols=2)
        return render(figure, format, "scores")


def _score_axis(axes: Axes, found: Sequence[float]) -> None:
    """Logarithmic where scores say how much, and not which way."""
    above = [score for score in found if score > 0]
    if min(found) < 0 or not above or max(above) < 20 * min(above):
        return
    if min(found) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=min(above), linscale=0.25)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _name_layers(axes: Axes, layers: Sequence[Mapping[str, Any]], every: int) -> None:
    names = [str(layer["layer"]) for layer in layers[::every]]
    axes.set_yticks(range(0, len(layers), every), names, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
