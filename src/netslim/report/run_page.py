"""What a run found: a table for the terminal, and `report.html`, one self-contained page.

Reads a run folder alone (`results.json`, `config.yaml`, `environment.json`, and what `netslim
sensitivity` has left in the folder `sensitivity` of it), so a report can be made again at any time,
on any machine. The page loads nothing, adapts to light and dark mode, and reads on a phone.

It tells one story from top to bottom: what was asked, what came out, where the channels went and
why, what that cost, how sure all of it is, and how the network is used.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from netslim._support import many, write_atomic
from netslim._support.names import listed
from netslim.graph.words.drawing import Line, Picture
from netslim.methods.sensitivity_result import Sensitivity
from netslim.report import channel_figures, figures
from netslim.report.chance import noise
from netslim.report.numbers import MISSING, count, duration, flat, gone, percent, signed
from netslim.report.published import published_table
from netslim.report.results_file import read, text_of
from netslim.report.results_table import results_table
from netslim.report.rows import METRICS, Row, networks, part_left, ratio, reference, value
from netslim.report.template import (
    document,
    facts,
    figure,
    folded,
    header,
    remarks,
    section,
    settings,
    unbroken,
)

if TYPE_CHECKING:
    from rich.table import Table


def write(run_dir: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run folder, from the results in it; returns its path.

    The page is complete or not there: it is written beside its place and then renamed.

    Raises:
        RecipeError: there are no results, or the file is damaged.
        PlanError: `sensitivity/sensitivity.json` is damaged.
    """
    folder = Path(run_dir)
    results = read(folder)
    html = page(results, text_of(folder / "config.yaml"), _sensitivity(folder))
    target = folder / "report.html"
    write_atomic(target, html)
    return target


def _sensitivity(folder: Path) -> Mapping[str, Any] | None:
    """What `netslim sensitivity --out RUN/sensitivity` has measured, if it has."""
    path = folder / "sensitivity" / "sensitivity.json"
    if not path.exists():
        return None
    return Sensitivity.load(path).to_dict()


# ---- For the terminal


def table(results: Mapping[str, Any]) -> Table:
    """The results for 100 columns: each network, and its ratio to the unpruned one."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = results["rows"]
    beside = reference(rows)
    title = Text(str(results.get("title", "")))
    caption = Text(
        f"× is the ratio to “{beside['label']}”; accuracy: difference in percentage points"
    )
    found = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # In a narrow terminal figures go over two lines; without a least width the names would go.
    labels = [len(row["label"]) for row in rows]
    found.add_column("network", min_width=min(18, max(labels)), max_width=18)
    for heading, _ in METRICS.values():
        found.add_column(heading)
    columns = [_aligned(rows, beside, key) for key in METRICS]
    for row, *cells in zip(rows, *columns, strict=True):
        style = "bold" if row is rows[-1] else None
        found.add_row(Text(row["label"]), *map(Text, cells), style=style)
    return found


def _aligned(rows: Sequence[Row], beside: Row, key: str) -> list[str]:
    values = [value(row, key) for row in rows]
    width = max(map(len, values))
    ratios = (ratio(row, beside, key) for row in rows)
    return [f"{shown:>{width}} {part}" for shown, part in zip(values, ratios, strict=True)]


# ---- What the page is made of, from top to bottom


def page(
    results: Mapping[str, Any],
    config: str | None = None,
    sensitivity: Mapping[str, Any] | None = None,
) -> str:
    """The whole report as one HTML document.

    Args:
        results: as `netslim.report.results_file.read` returns them.
        config: the run's `config.yaml`, shown as it is.
        sensitivity: of `netslim.methods.Sensitivity.to_dict`, where it was measured.
    """
    title = str(results.get("title") or results.get("recipe") or "netslim run")
    return document(title, _parts(results, title, config, sensitivity))


def _parts(
    results: Mapping[str, Any],
    title: str,
    config: str | None,
    sensitivity: Mapping[str, Any] | None,
) -> Iterator[str]:
    yield header(title, unbroken(summary(results)))
    yield remarks("warning", "Warning", results.get("warnings") or [])
    yield section("What was asked", _asked(results))
    yield section("What came out", _came_out(results))
    yield section("Where the channels went", _where(results))
    yield section("Why these channels", _why(results))
    yield section("What it cost", _cost(results, sensitivity))
    yield section("How sure this is", _sure(results))
    yield section("How to use the network", _use(results))
    yield section("How to repeat the run", _provenance(results, config))


def summary(results: Mapping[str, Any]) -> str:
    """What the run did, in one sentence with its numbers."""
    first, last = reference(results["rows"]), results["rows"][-1]
    accuracy = f"{percent(first['accuracy'])} to {percent(last['accuracy'])}"
    change = signed(100 * (last["accuracy"] - first["accuracy"]))
    blind = _by_chance(results, first, last)
    outcome = f"test accuracy went from {accuracy} ({change} points){blind}."
    if last["params"] == first["params"]:
        return f"Nothing was cut from the network of {count(last['params'])} parameters; {outcome}"
    params = _shrunk(last, first, "params", "parameters")
    macs = _shrunk(last, first, "macs", "multiply-accumulates")
    return f"Cutting {_channels(results)} took the network from {params} and from {macs}; {outcome}"


def _by_chance(results: Mapping[str, Any], first: Row, last: Row) -> str:
    """How the sentence goes on where an accuracy in it is not to be told from chance."""
    labels = results.get("by_chance") or []
    found = [percent(row["accuracy"]) for row in (first, last) if row["label"] in labels]
    if len(found) == 2:
        return ", and both may be chance"
    return f", and {found[0]} may be chance" if found else ""


def _channels(results: Mapping[str, Any]) -> str:
    layers = results.get("widths") or []
    before = sum(layer["before"] for layer in layers)
    if not before:
        return "channels"
    after = sum(layer["after"] for layer in layers)
    return f"{gone(after, before)} of the {before:,} channels"


def _shrunk(row: Row, beside: Row, key: str, unit: str) -> str:
    before, after = beside[key], row[key]
    return f"{count(before)} to {count(after)} {unit} (−{gone(after, before)})"


# ---- What was asked, and what came out


def _asked(results: Mapping[str, Any]) -> str:
    stages = results.get("stages") or []
    if not stages:
        return ""
    model, data = (f"<code>{escape(str(results.get(key)))}</code>" for key in ("model", "data"))
    lines = (f"<li><b>{escape(row['stage'])}</b> {escape(row['does'])}</li>" for row in stages)
    return f"<p>The network {model} on {data}, stage by stage:</p><ol>{''.join(lines)}</ol>"


def _came_out(results: Mapping[str, Any]) -> str:
    rows = results["rows"]
    beside = reference(rows)
    label = f"“{beside['label']}”"
    found = results_table([(row, beside) for row in rows], label)
    if published := published_table(results):
        found += f"\n<h3>Beside the published figures</h3>\n{published}"
    return found


# ---- Where the channels went, and why


_PICTURE = (
    "A row is a layer, in the order in which they run. A line is a group of channels that can only "
    "go together, as wide as it has channels: pale before the cut, full after it. A dot makes "
    "these channels, a ring reads them. Grey and dashed is what cannot be cut exactly."
)


def _where(results: Mapping[str, Any]) -> str:
    layers = results.get("widths") or []
    if not layers:
        return ""
    shown = _picture(results)
    most = {line.name: line.size for line in shown.lines}
    stay = {row["layer"]: min(row["after"], most.get(row["layer"], 0)) for row in layers}
    drawn = figure("network", channel_figures.network(shown, stay), _PICTURE, kind="graph")
    return f"<p>{unbroken(_most_and_least(layers))}</p>\n{drawn}"


def _picture(results: Mapping[str, Any]) -> Picture:
    """The picture that was kept; of a run that kept none, its layers alone."""
    if kept := results.get("picture"):
        lines = tuple(Line(**line) for line in kept["lines"])
        return Picture(tuple(kept["layers"]), lines)
    widths = results["widths"]
    lines = tuple(
        Line(row["layer"], max(row["before"], row["after"]), made=(number,))
        for number, row in enumerate(widths)
    )
    return Picture(tuple(row["layer"] for row in widths), lines)


def _most_and_least(layers: Sequence[Mapping[str, Any]]) -> str:
    before, after = (sum(row[key] for row in layers) for key in ("before", "after"))
    told = f"{after:,} of {many(before, 'channel')} stay"
    if before == after:
        return f"{told}: nothing was cut."
    by_share = sorted(layers, key=lambda row: row["after"] / max(row["before"], 1))
    least, most = (
        f"{row['layer']} ({row['after']:,} of {row['before']:,} stay)"
        for row in (by_share[0], by_share[-1])
    )
    return f"{told}. The most went from {least}, the least from {most}."


def _why(results: Mapping[str, Any]) -> str:
    drawn = _scores(results) + _scales(results.get("scales") or {})
    if not drawn:
        return ""
    return f"<div class=figures>{drawn}</div>"


def _scores(results: Mapping[str, Any]) -> str:
    """Of the first cut: the later ones choose among what that has left."""
    found = results.get("scores") or []
    if not found or not any(row["gone"] or row["kept"] for row in found[0]["layers"]):
        return ""
    text = (
        "The scores by which channels were chosen, layer by layer, least to largest, with a dot in "
        "the middle: a layer's threshold lies where those that went end and those that stay begin."
    )
    if len(found) > 1:
        text += f" Shown is the first cut, {found[0]['stage']}."
    return figure("scores", channel_figures.scores(found[0]), text)


def _scales(scales: Mapping[str, Any]) -> str:
    drawn = ""
    if scales.get("share_near_zero_after") is not None:
        share = percent(scales["share_near_zero_after"], 1)
        text = (
            f"Batch-norm scales. After training {share} of them are below "
            f"{scales['threshold']:g}, where a channel hardly counts any more."
        )
        drawn += figure("scales", channel_figures.scales(scales), text)
    if scales.get("levels"):
        text = (
            f"The scales of one layer, {scales['layer']}, over training: a row is a channel, "
            "brighter is larger, and the largest at the end are on top. Channels that turn dark "
            "are those that can go."
        )
        drawn += figure("selection", channel_figures.selection(scales), text)
    return drawn


# ---- What it cost


def _cost(results: Mapping[str, Any], sensitivity: Mapping[str, Any] | None) -> str:
    drawn = ""
    if len(points := tradeoff_points(results["rows"])) > 1:
        text = "Test accuracy against what is left of the multiply-accumulates."
        runs = [{"label": "", "points": points}]
        drawn += figure("tradeoff", figures.tradeoff(runs), text)
    if results.get("curves"):
        text = (
            "Training, stage by stage. The training loss is what is minimised: with a "
            "penalty, or a teacher's part."
        )
        drawn += figure("curves", figures.curves(results["curves"]), text)
    if sensitivity is not None:
        text = (
            "What each group of channels alone costs, nothing trained after it: the darker, the "
            "more accuracy is lost when that share of it goes."
        )
        drawn += figure("sensitivity", figures.sensitivity(sensitivity), text)
    if not drawn:
        return ""
    return f"<div class=figures>{drawn}</div>"


def tradeoff_points(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What `figures.tradeoff` draws of a run, from its whole network on; nothing where nothing was
    cut.
    """
    beside = reference(rows)
    found = []
    for row in networks(rows):
        left = part_left(row, beside, "macs")
        if left and left > 0:
            found.append({"label": row["label"], "left": left, "accuracy": row["accuracy"]})
    if {point["left"] for point in found} == {1.0}:
        return []
    return sorted(found, key=lambda point: -point["left"])


# ---- How sure it is


def _sure(results: Mapping[str, Any]) -> str:
    parts = [f"<p>{unbroken(text)}</p>" for text in _spread(results)]
    parts += [_verification(results.get("verification") or []), _stays(results)]
    if notes := remarks("note", "Note", results.get("notes") or []):
        parts.append(f"<h3>What else to know</h3>\n{notes}")
    return "\n".join(filter(None, parts))


def _spread(results: Mapping[str, Any]) -> Iterator[str]:
    """What one run leaves open."""
    seed, images = results.get("seed"), results.get("test_images")
    accuracy = networks(results["rows"])[-1]["accuracy"]
    if images and images > 0 and 0 <= accuracy <= 1:
        told = noise(accuracy, images, "test")
        yield f"The test set was looked at once, after everything was decided: {told}."
    if seed is not None:
        yield (
            f"This is one run, with seed {seed}; how much another seed would change is not in it. "
            "netslim run --seeds 0 1 2 makes several, and netslim report with their folders sets "
            "them side by side, with their spread."
        )


def _verification(checks: Sequence[Row]) -> str:
    if not checks:
        return ""
    lines = "\n".join(
        f"<tr><th scope=row>{escape(str(check['stage']))}</th><td>{check['cut']:,}</td>"
        f"<td>{check['changed']:,}</td><td>{_deviation(check)}</td></tr>"
        for check in checks
    )
    return (
        "<h3>Proof of the cut</h3>\n<p>Each time, the smaller network was compared with the one "
        "it was cut from, its removed channels silenced, or made the same as those they are "
        "merged into: in float64, with the trained weights and with random ones, the outputs must "
        "be equal.</p>\n"
        "<div class=scroll><table><thead><tr><th scope=col>stage</th><th scope=col>channels "
        "cut</th><th scope=col>of these, felt in the output</th>"
        "<th scope=col>largest relative "
        f"deviation</th></tr></thead><tbody>\n{lines}\n</tbody></table></div>"
    )


def _deviation(check: Row) -> str:
    """None stands for a cut through channels that cannot be silenced exactly: shapes alone held."""
    if check["deviation"] is None:
        return "only shapes tried"
    return f"{check['deviation']:.1e}"


def _stays(results: Mapping[str, Any]) -> str:
    """What was not cut, and why."""
    reasons = dict[str, list[str]]()
    for line in (results.get("picture") or {}).get("lines", []):
        if line["verdict"] not in ("exact", ""):
            why = line["why"] or "cutting it would change what the other channels compute"
            reasons.setdefault(why, []).append(line["name"])
    for row in results.get("widths") or []:
        if row["before"] == row["after"]:
            reasons.setdefault("none of its channels was chosen", []).append(row["layer"])
    if not reasons:
        return ""
    told = {listed(names, most=6): why for why, names in reasons.items()}
    return f"<h3>What stayed whole, and why</h3>\n{facts(told)}"


# ---- How it is used, and made again


def _use(results: Mapping[str, Any]) -> str:
    file = results.get("network")
    if not file:
        return ""
    place = _placed(results, file)
    build = f'network = netslim.models.build("{place}")'
    if results.get("trust"):  # its constructor is the user's own
        build = f'network = netslim.models.build("{place}", trust=True)'
    if not results.get("constructor"):
        build = f'network = netslim.load(YourNetwork(), "{place}")  # as it was before the cut'
    lines = ("import netslim", build, "scores = network.eval()(images)")
    known = {"file": f"{file}, in the folder of this page"}
    if place != file:
        known["path"] = "as above from where the run was started"
    if results.get("trust") and results.get("constructor"):
        module = results["constructor"].partition(":")[0].partition(".")[0]
        known["your module"] = (
            f"the folder with {module} must be the current directory, or on PYTHONPATH: it builds "
            "the network"
        )
    last = networks(results["rows"])[-1]
    known["size"] = value(last, "size_bytes")
    if results.get("images"):
        known["images"] = prepared(results["images"])
    code = escape("\n".join(lines), quote=False)
    return f"<pre><code>{code}</code></pre>\n{facts(known)}"


def _placed(results: Mapping[str, Any], file: str) -> str:
    """A file of the run folder, from where the run was started, where its command says it."""
    try:
        typed = shlex.split(results.get("command") or "")
    except ValueError:  # it is no line of a shell
        return file
    if "--out" not in typed[:-1]:
        return file
    return (PurePath(typed[typed.index("--out") + 1]) / file).as_posix()


def _provenance(results: Mapping[str, Any], config: str | None) -> str:
    command = escape(str(results.get("command") or MISSING))
    known: dict[str, str] = {}
    if results.get("seconds") is not None:
        known["time taken"] = duration(results["seconds"])
    known |= flat(results.get("environment") or {})
    known.pop("command", None)
    if config is None:
        config = "config.yaml was not in the run folder."
    return (
        f"<pre><code>{command}</code></pre>\n"
        + folded("Where it ran, and with which versions", facts(known))
        + settings(config)
    )


def prepared(images: Mapping[str, Any]) -> str:
    """How pictures become inputs of the network; whoever uses it has to do the same."""
    mean, std = (", ".join(f"{v:.4g}" for v in images[key]) for key in ("mean", "std"))
    size = " × ".join(map(str, images["size"]))
    return f"{size} pixels, scaled to 0..1, less the mean {mean}, divided by {std}"


__all__ = ["page", "prepared", "summary", "table", "tradeoff_points", "write"]
