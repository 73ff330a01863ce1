"""Several runs side by side: one self-contained page, from their results on disk alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from netslim._support import many, write_atomic
from netslim.errors import RecipeError
from netslim.report import channel_figures, figures
from netslim.report.channel_figures import Panel
from netslim.report.numbers import MISSING, mean_and_spread
from netslim.report.results_file import read
from netslim.report.results_table import results_table
from netslim.report.rows import networks, reference
from netslim.report.run_page import tradeoff_points
from netslim.report.template import document, figure, header, section, unbroken

NAME = "side-by-side.html"
Results = Mapping[str, Any]
_SAME = ("recipe", "model", "data", "stages")  # what runs of several seeds have in common


def write(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write a page about several runs; returns its path.

    Args:
        run_dirs: their folders, each another one.
        out: the page; None puts it, as `side-by-side.html`, into the folder that holds them all.

    Raises:
        RecipeError: a folder is named twice, or has no results, or damaged ones.
    """
    places = [folder.resolve() for folder in run_dirs]
    if len({*places}) < len(places):
        raise RecipeError("a run is named twice; side by side it says nothing new: name it once")
    above = Path(os.path.commonpath([place.parent for place in places]))
    names = [str(place.relative_to(above)) for place in places]
    runs = {name: read(folder) for name, folder in zip(names, run_dirs, strict=True)}
    target = out or above / NAME
    write_atomic(target, page(runs))
    return target


def page(runs: Mapping[str, Results]) -> str:
    """Several runs as one HTML document.

    Args:
        runs: name -> results, as `netslim.report.results_file.read` returns them.
    """
    title = f"{many(len(runs), 'run')} side by side"
    parts = [
        header(title, unbroken(_lead(runs))),
        section("What differs", _differences(runs)),
        section("What came out", _came_out(runs)),
        section("What it cost", _cost(runs)),
        section("Batch-norm scales after sparse training", _scales(runs)),
        section("How to repeat them", _commands(runs)),
    ]
    return document(title, parts)


def _lead(runs: Mapping[str, Results]) -> str:
    best = max(runs, key=lambda name: float(networks(runs[name]["rows"])[-1]["accuracy"]))
    least = min(runs, key=lambda name: float(networks(runs[name]["rows"])[-1]["macs"]))
    return f"The most accurate at the end is {best}; the fewest multiply-accumulates has {least}."


def _differences(runs: Mapping[str, Results]) -> str:
    """What not all of them were asked alike, a row each."""
    asked = {name: dict(_asked(results)) for name, results in runs.items()}
    keys = dict.fromkeys(key for told in asked.values() for key in told)
    lines = []
    for key in keys:
        cells = [told.get(key, MISSING) for told in asked.values()]
        if len({*cells}) > 1:
            shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            lines.append(f"<tr><th scope=row>{escape(key)}</th>{shown}</tr>")
    if not lines:
        return "<p>Nothing that their results tell.</p>"
    heads = "".join(f"<th scope=col>{escape(name)}</th>" for name in runs)
    return (
        f"<div class=scroll><table><thead><tr><th scope=col>asked</th>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _asked(results: Results) -> Iterator[tuple[str, str]]:
    for key in ("recipe", "model", "data", "seed"):
        yield key, str(results.get(key, MISSING))
    for number, stage in enumerate(results.get("stages") or [], 1):
        yield f"stage {number}", stage["does"]


def _came_out(runs: Mapping[str, Results]) -> str:
    pairs = []
    for name, results in runs.items():
        last = networks(results["rows"])[-1]
        pairs.append(({**last, "label": name, "key": "run"}, reference(results["rows"])))
    told = "".join(f"<p>{unbroken(text)}</p>" for text in _spread(runs))
    return results_table(pairs, "the network of the same run before its cut", "run") + told


def _spread(runs: Mapping[str, Results]) -> Iterator[str]:
    """What chance there is in the results of those that differ in their seeds alone."""
    alike = dict[str, list[Results]]()
    for results in runs.values():
        alike.setdefault(repr([results.get(key) for key in _SAME]), []).append(results)
    for group in alike.values():
        if len({results.get("seed") for results in group}) < 2:
            continue
        ends = [(reference(found["rows"]), networks(found["rows"])[-1]) for found in group]
        before, after = (
            mean_and_spread([100 * pair[place]["accuracy"] for pair in ends]) for place in (0, 1)
        )
        change = mean_and_spread([100 * (b["accuracy"] - a["accuracy"]) for a, b in ends])
        yield (
            f"{group[0].get('recipe')}, {len(group)} seeds: accuracy {before} % before the cut, "
            f"{after} % at the end, a change of {change} points (mean and standard deviation)."
        )


def _cost(runs: Mapping[str, Results]) -> str:
    found = [
        {"label": name, "points": tradeoff_points(results["rows"])}
        for name, results in runs.items()
    ]
    found = [run for run in found if run["points"]]
    if not found:
        return ""
    text = (
        "Test accuracy against what is left of the multiply-accumulates, from the whole network of "
        "each run to its last one, which is the large dot."
    )
    return f"<div class=single>{figure('tradeoff', figures.tradeoff(found), text)}</div>"


def _scales(runs: Mapping[str, Results]) -> str:
    found = {name: results["scales"] for name, results in runs.items() if results.get("scales")}
    known = [scales for scales in found.values() if scales.get("share_near_zero_after") is not None]
    if not known or len(known) < len(found):
        return ""
    edges = max((scales["edges"] for scales in known), key=len)
    if any(scales["edges"] != edges[: len(scales["edges"])] for scales in known):
        return ""
    panels = []
    for name, scales in found.items():
        label = name
        if scales.get("strength") is not None:
            label = f"{name}, strength {scales['strength']:.3g}"
        panels.append(Panel(label, scales["after"], scales["share_near_zero_after"]))
    text = "A channel whose scale is left of the dashed line hardly counts any more."
    drawn = channel_figures.histograms(panels, edges, known[0]["threshold"])
    return f"<div class=single>{figure('scales', drawn, text)}</div>"


def _commands(runs: Mapping[str, Results]) -> str:
    lines = "\n".join(str(results.get("command") or MISSING) for results in runs.values())
    return f"<pre><code>{escape(lines)}</code></pre>"


__all__ = ["NAME", "page", "write"]
