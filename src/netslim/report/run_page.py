"""What a run found: a table for the terminal, and `report.html`, one self-contained page.

Reads a run folder alone (`results.json`, `config.yaml`, `environment.json`), so a report can be
made again at any time, on any machine. The page loads nothing, adapts to light and dark mode, and
reads on a phone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netslim._support import write_atomic
from netslim.report import figures
from netslim.report.numbers import MISSING, count, duration, flat, gone, percent, signed
from netslim.report.results_file import read, text_of
from netslim.report.rows import METRICS, ON_PAGE, Row, part_left, ratio, reference, spread, value
from netslim.report.template import (
    document,
    facts,
    figure,
    header,
    remarks,
    section,
    settings,
    unbroken,
)

if TYPE_CHECKING:
    from rich.table import Table

PUBLISHED = {
    "error": "test error",
    "top5_error": "top-5 error",
    "params": "parameters",
    "params_cut": "cut",
    "macs": "MACs",
    "macs_cut": "cut",
}


def write(run_dir: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run folder, from the results in it; returns its path.

    The page is complete or not there: it is written beside its place and then renamed.

    Raises:
        RecipeError: there are no results, or the file is damaged.
    """
    folder = Path(run_dir)
    results = read(folder)
    html = page(results, text_of(folder / "config.yaml"))
    target = folder / "report.html"
    write_atomic(target, html)
    return target


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


def page(results: Mapping[str, Any], config: str | None = None) -> str:
    """The whole report as one HTML document.

    Args:
        results: as `netslim.report.results_file.read` returns them.
        config: the run's `config.yaml`, shown as it is.
    """
    title = str(results.get("title") or results.get("recipe") or "netslim run")
    return document(title, _parts(results, title, config))


def _parts(results: Mapping[str, Any], title: str, config: str | None) -> Iterator[str]:
    yield header(title, unbroken(summary(results)))
    yield remarks("warning", "Warning", results.get("warnings") or [])
    yield remarks("note", "Note", results.get("notes") or [])
    yield section("Results", _results_table(results["rows"]))
    yield section("Beside the published figures", _published_table(results))
    yield section("What happened inside", _figures(results))
    yield section("Proof of the cut", _verification(results.get("verification") or []))
    yield section("How to repeat it", _provenance(results, config))


def summary(results: Mapping[str, Any]) -> str:
    """What the run did, in one sentence with its numbers."""
    first, last = reference(results["rows"]), results["rows"][-1]
    accuracy = f"{percent(first['accuracy'])} to {percent(last['accuracy'])}"
    change = signed(100 * (last["accuracy"] - first["accuracy"]))
    outcome = f"test accuracy went from {accuracy} ({change} points)."
    if last["params"] == first["params"]:
        return f"Nothing was cut from the network of {count(last['params'])} parameters; {outcome}"
    params = _shrunk(last, first, "params", "parameters")
    macs = _shrunk(last, first, "macs", "multiply-accumulates")
    return f"Cutting {_channels(results)} took the network from {params} and from {macs}; {outcome}"


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


def _results_table(rows: Sequence[Row]) -> str:
    beside, keys = reference(rows), _on_page(rows)
    headings = [ON_PAGE[key] for key in keys]
    head = "".join(f'<th scope=col title="{hint}">{heading}</th>' for heading, hint in headings)
    body = "\n".join(_results_row(row, beside, keys) for row in rows)
    return (
        f"<table class=cards><thead><tr><th scope=col>network</th>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table>\n"
        f"<p class=small>× is the ratio to “{escape(beside['label'])}”, for accuracy the "
        "difference in percentage points. The test set was looked at once, after everything "
        "was decided. MACs are the multiply-accumulates of one image; latency is the median of "
        "one forward pass, its quartiles in brackets; kB and MB are powers of ten.</p>"
    )


def _on_page(rows: Sequence[Row]) -> list[str]:
    """The columns of the page: accuracy among the first five only where it was measured."""
    keys = list(ON_PAGE)
    if any(row.get("top5") is None for row in rows):
        keys.remove("top5")
    return keys


def _results_row(row: Row, beside: Row, keys: Sequence[str]) -> str:
    cells = [f"<th scope=row>{escape(row['label'])}</th>"]
    for key in keys:
        shown = f"<b>{value(row, key)}</b> <span>{ratio(row, beside, key)}</span>"
        if key == "latency_ms":
            shown += f" <small>{spread(row)}</small>"
        part, bar = part_left(row, beside, key), ""
        if part is not None:
            bar = f'<i class=bar style="width:{100 * part:.1f}%"></i>'
        cells.append(f'<td data-label="{ON_PAGE[key][0]}"><div>{shown}</div>{bar}</td>')
    kind = "last" if row["key"].startswith("fine-tuned") else ""
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _published_table(results: Mapping[str, Any]) -> str:
    published = results.get("published") or []
    if not published:
        return ""
    ours = [_as_published(row, reference(results["rows"])) for row in results["rows"]]
    named: set[str] = set().union(*published)
    keys = [key for key in PUBLISHED if key in named] + sorted(
        named - {*PUBLISHED, "label", "beside"}
    )
    head = "".join(f"<th scope=col>{escape(PUBLISHED.get(key, key))}</th>" for key in keys)
    return (
        "<div class=scroll><table><thead><tr><th "
        f"scope=col>network</th>{head}</tr></thead>\n<tbody>\n"
        + _published_rows("published", published, keys)
        + _published_rows("this run", ours, keys)
        + "</tbody></table></div>"
    )


def _published_rows(group: str, rows: Sequence[Row], keys: Sequence[str]) -> str:
    lines = [f"<tr class=group><th colspan={len(keys) + 1} scope=rowgroup>{group}</th></tr>"]
    for row in rows:
        cells = "".join(f"<td>{escape(_figure_of(row, key))}</td>" for key in keys)
        lines.append(f"<tr><th scope=row>{escape(str(row.get('label', '')))}</th>{cells}</tr>")
    return "\n".join(lines) + "\n"


def _as_published(row: Row, beside: Row) -> dict[str, Any]:
    """One of our rows in the terms of a paper: error and cuts in percent."""
    found = {
        "label": row["label"],
        "error": 100 * (1 - row["accuracy"]),
        "top5_error": None,
        "params": row["params"],
        "macs": row["macs"],
    }
    if row.get("top5") is not None:
        found["top5_error"] = 100 * (1 - row["top5"])
    if row["params"] != beside["params"]:
        for key in ("params", "macs"):
            found[f"{key}_cut"] = 100 * (1 - row[key] / max(beside[key], 1))
    return found


def _figure_of(row: Row, key: str) -> str:
    number = row.get(key)
    if number is None or isinstance(number, str):
        return number or MISSING
    if key in ("params", "macs"):
        return count(number)
    unit = " %" if key in PUBLISHED else ""
    if not isinstance(number, float):
        return f"{number}{unit}"
    if "error" in key:
        return f"{number:.2f}{unit}"
    return f"{number:.1f}{unit}"


def _figures(results: Mapping[str, Any]) -> str:
    drawn = ""
    scales = results.get("scales") or {}
    if scales.get("share_near_zero_after") is not None:
        share = percent(scales["share_near_zero_after"], 1)
        text = (
            f"Batch-norm scales. After training {share} of them are below "
            f"{scales['threshold']:g}, where a channel hardly counts any more."
        )
        drawn += figure("scales", figures.scales(scales), text)
    if results.get("widths"):
        text = "Width of every layer before and after the cut."
        drawn += figure("widths", figures.widths(results["widths"]), text)
    if results.get("curves"):
        text = (
            "Training, stage by stage. The training loss is what is minimised: with a "
            "penalty, or a teacher's part."
        )
        drawn += figure("curves", figures.curves(results["curves"]), text)
    if not drawn:
        return ""
    return f"<div class=figures>{drawn}</div>"


def _verification(checks: Sequence[Row]) -> str:
    if not checks:
        return ""
    lines = "\n".join(
        f"<tr><th scope=row>{escape(str(check['stage']))}</th><td>{check['cut']:,}</td>"
        f"<td>{check['changed']:,}</td><td>{_deviation(check)}</td></tr>"
        for check in checks
    )
    return (
        "<p>Each time, the smaller network was compared with the one it was cut from, its "
        "removed channels silenced, or made the same as those they are merged into: in "
        "float64, with the trained weights and with random ones, the outputs must be equal.</p>\n"
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


def _provenance(results: Mapping[str, Any], config: str | None) -> str:
    command = escape(str(results.get("command") or MISSING))
    known: dict[str, str] = {}
    if results.get("seconds") is not None:
        known["time taken"] = duration(results["seconds"])
    if results.get("images"):
        known["images"] = prepared(results["images"])
    known |= flat(results.get("environment") or {})
    known.pop("command", None)
    if config is None:
        config = "config.yaml was not in the run folder."
    return f"<pre><code>{command}</code></pre>\n{facts(known)}\n{settings(config)}"


def prepared(images: Mapping[str, Any]) -> str:
    """How pictures become inputs of the network; whoever uses it has to do the same."""
    mean, std = (", ".join(f"{v:.4g}" for v in images[key]) for key in ("mean", "std"))
    size = " × ".join(map(str, images["size"]))
    return f"{size} pixels, scaled to 0..1, less the mean {mean}, divided by {std}"


__all__ = ["page", "prepared", "summary", "table", "write"]
