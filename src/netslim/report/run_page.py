"""What a run found: a table for the terminal, and `report.html`, one self-contained page.

Reads a run folder alone (`results.json`, `config.yaml`, `environment.json`), so a report can be
made again at any time, on any machine. The page loads nothing, adapts to light and dark mode, and
reads on a phone.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netslim._support import write_atomic
from netslim.errors import RecipeError
from netslim.report import figures

if TYPE_CHECKING:
    from rich.table import Table
from netslim.report.template import PAGE, STYLE

FORMAT = 1
MISSING = "–"
METRICS = {  # key of a row: heading, what one may want to know about it
    "accuracy": ("test accuracy", "difference in percentage points"),
    "params": ("parameters", ""),
    "macs": ("MACs", "multiply-accumulates of one image"),
    "size_bytes": ("size on disk", ""),
    "latency_ms": ("latency", "median of one forward pass"),
}
ON_PAGE = {
    "accuracy": METRICS["accuracy"],
    "top5": ("top-5", "the class is among the first five"),
    **METRICS,
}
ROW: dict[str, Any] = {"key": str, "label": str, **dict.fromkeys(METRICS, (int, float))}
_SHARES = ("accuracy", "top5")
PUBLISHED = {
    "error": "test error",
    "top5_error": "top-5 error",
    "params": "parameters",
    "params_cut": "cut",
    "macs": "MACs",
    "macs_cut": "cut",
}

Row = Mapping[str, Any]


def write(run_dir: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run folder, from the results in it; returns its path.

    The page is complete or not there: it is written beside its place and then renamed.

    Raises:
        RecipeError: there are no results, or the file is damaged.
    """
    folder = Path(run_dir)
    results = read(folder)
    try:
        html = page(results, _text(folder / "config.yaml"))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
        what = f"an entry is missing or has the wrong form ({type(problem).__name__}: {problem})"
        raise _damaged(folder / "results.json", what) from problem
    target = folder / "report.html"
    write_atomic(target, html)
    return target


def read(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked contents of a run folder's `results.json`, with the environment filled in.

    Raises:
        RecipeError: the file is missing, damaged, or written by a newer netslim.
    """
    folder = Path(run_dir)
    path = folder / "results.json"
    if not path.is_file():
        raise RecipeError(
            f"{folder}: no results.json here, so nothing to report. Give the folder of a "
            "finished run; for an unfinished one, give its 'netslim run' command again and it "
            "goes on where it was"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise _damaged(path, str(problem)) from problem
    check(results, path)
    results["environment"] = results.get("environment") or _environment(folder / "environment.json")
    return dict(results)


def check(results: Any, path: str | os.PathLike[str] = "results") -> None:
    """Make sure that all a report needs is there and of the right kind.

    Raises:
        RecipeError: naming the file and the entry.
    """
    if not isinstance(results, dict):
        raise _damaged(path, "it does not hold a mapping")
    if results.get("format") != FORMAT:
        found = results.get("format")
        raise RecipeError(
            f"{path}: format {found!r} is not known to this netslim (it reads {FORMAT}); use a "
            "newer one"
        )
    rows = results.get("rows")
    if not isinstance(rows, list) or not rows:
        raise _damaged(path, "'rows' is missing or empty")
    for index, row in enumerate(rows):
        for key, kind in ROW.items():
            value = row.get(key) if isinstance(row, dict) else None
            value = _median(row) if key == "latency_ms" and isinstance(row, dict) else value
            if not isinstance(value, kind):
                raise _damaged(
                    path, f"rows.{index}.{key} is missing or of the wrong type ({value!r})"
                )


def table(results: Mapping[str, Any]) -> Table:
    """The results for a terminal of 100 columns: each network, and its ratio to the unpruned one."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = results["rows"]
    reference = _reference(rows)
    title = Text(str(results.get("title", "")))
    caption = Text(
        f"× is the ratio to “{reference['label']}”; accuracy: difference in percentage points"
    )
    found = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    found.add_column("network", max_width=18)
    columns = [_aligned(rows, reference, key) for key in METRICS]
    for heading, _ in METRICS.values():
        found.add_column(heading, no_wrap=True)
    for row, *cells in zip(rows, *columns, strict=True):
        found.add_row(
            Text(row["label"]), *map(Text, cells), style="bold" if row is rows[-1] else None
        )
    return found


def _aligned(rows: Sequence[Row], reference: Row, key: str) -> list[str]:
    values = [_value(row, key) for row in rows]
    ratios = [_ratio(row, reference, key) for row in rows]
    return [
        f"{value:>{max(map(len, values))}} {ratio}"
        for value, ratio in zip(values, ratios, strict=True)
    ]


def page(results: Mapping[str, Any], config: str | None = None) -> str:
    """The whole report as one HTML document.

    Args:
        results: as `read` returns them.
        config: the run's `config.yaml`, shown as it is.
    """
    title = str(results.get("title") or results.get("recipe") or "netslim run")
    body = "\n".join(filter(None, _sections(results, title, config)))
    return PAGE.format(title=escape(title), style=STYLE, body=body)


def sensitivity(data: Mapping[str, Any]) -> str:
    """What each group alone costs, as one HTML document.

    Args:
        data: of `netslim.methods.Sensitivity.to_dict`.
    """
    title = f"Sensitivity of {(data['settings'].get('model') or {}).get('name', 'a network')}"
    share = data["unit"] == "share"
    baseline = _percent(data["baseline"]) if share else f"{data['baseline']:g}"
    lead = (
        f"{len({row['group'] for row in data['rows']})} groups of channels, each cut alone and "
        f"nothing trained after it. The whole network reaches {baseline}; what is shown is how "
        "much of that goes."
    )
    text = (
        "Every row is a group, first to last; the darker, the more is lost when that share "
        "of it goes."
    )
    drawn = [_figure("sensitivity", figures.sensitivity(data), text)]
    if (lines := figures.sensitivity_lines(data)) is not None:
        drawn.append(
            _figure(
                "lines",
                lines,
                "What remains when a share of one group goes; dashed: the whole network.",
            )
        )
    facts = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>"
        for key, value in _flat(data["settings"]).items()
    )
    body = [
        f"<header><h1>{escape(title)}</h1><p "
        f"class=lead>{escape(lead).replace(' %', '&nbsp;%')}</p></header>",
        _remarks("note", "Note", data["notes"]),
        _section("What goes with each group", f"<div class=figures>{''.join(drawn)}</div>"),
        _section("In figures", _drops_table(data, share)),
        _section("How it was measured", f"<dl>{facts}</dl>"),
    ]
    return PAGE.format(title=escape(title), style=STYLE, body="\n".join(filter(None, body)))


def _drops_table(data: Mapping[str, Any], share: bool) -> str:
    head = (
        "share that goes",
        "channels",
        "of",
        "accuracy" if share else "value",
        "drop",
        "parameters",
        "MACs",
    )
    lines = []
    for row in data["rows"]:
        drop = f"{100 * row['drop']:.2f}" if share else f"{row['drop']:.4g}"
        saved = (_cut(data[key] - row[key], data[key]) for key in ("params", "macs"))
        value = _percent(row["value"]) if share else f"{row['value']:g}"
        cells = (
            f"{100 * row['ratio']:g} %",
            f"{row['removed']:,}",
            f"{row['size']:,}",
            value,
            drop,
            *saved,
        )
        lines.append(
            "<tr><th "
            f"scope=row>{escape(row['group'])}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    headings = "".join(f"<th scope=col>{text}</th>" for text in ("group", *head))
    return (
        f"<div class=scroll><table><thead><tr>{headings}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + "</tbody></table>"
        "</div>\n<p class=small>The drop is in percentage points where values are accuracies; "
        "parameters and multiply-accumulates are what this cut alone saves of the whole "
        "network.</p>"
    )


# ---- What the page is made of, from top to bottom


def _sections(results: Mapping[str, Any], title: str, config: str | None) -> Iterator[str]:
    lead = escape(summary(results)).replace(" %", "&nbsp;%")
    yield f"<header><h1>{escape(title)}</h1><p class=lead>{lead}</p></header>"
    yield _remarks("warning", "Warning", results.get("warnings") or [])
    yield _remarks("note", "Note", results.get("notes") or [])
    yield _section("Results", _results_table(results["rows"]))
    yield _section("Beside the published figures", _published_table(results))
    yield _section("What happened inside", _figures(results))
    yield _section("Proof of the cut", _verification(results.get("verification") or []))
    yield _section("How to repeat it", _provenance(results, config))


def summary(results: Mapping[str, Any]) -> str:
    """What the run did, in one sentence with its numbers."""
    first, last = _reference(results["rows"]), results["rows"][-1]
    accuracy = f"{_percent(first['accuracy'])} to {_percent(last['accuracy'])}"
    change = _signed(100 * (last["accuracy"] - first["accuracy"]))
    outcome = f"test accuracy went from {accuracy} ({change} points)."
    if last["params"] == first["params"]:
        return f"Nothing was cut from the network of {_count(last['params'])} parameters; {outcome}"
    params, macs = _shrunk(last, first, "params"), _shrunk(last, first, "macs")
    return f"Cutting {_channels(results)} took the network from {params} and from {macs}; {outcome}"


def _channels(results: Mapping[str, Any]) -> str:
    layers = results.get("widths") or []
    before, after = (sum(layer[when] for layer in layers) for when in ("before", "after"))
    return f"{_cut(after, before)} of the {before:,} channels" if before else "channels"


def _shrunk(row: Row, reference: Row, key: str) -> str:
    unit = {"params": "parameters", "macs": "multiply-accumulates"}[key]
    return (
        f"{_count(reference[key])} to {_count(row[key])} {unit} (−{_cut(row[key], reference[key])})"
    )


def _remarks(kind: str, word: str, remarks: Iterable[Any]) -> str:
    return "\n".join(
        f'<p class="remark {kind}" role=note><strong>{word}.</strong> {escape(str(remark))}</p>'
        for remark in remarks
    )


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{heading}</h2>\n{content}\n</section>" if content else ""


def _results_table(rows: Sequence[Row]) -> str:
    reference, keys = _reference(rows), _on_page(rows)
    headings = [ON_PAGE[key] for key in keys]
    head = "".join(f'<th scope=col title="{hint}">{heading}</th>' for heading, hint in headings)
    body = "\n".join(_results_row(row, reference, keys) for row in rows)
    return (
        f"<table class=cards><thead><tr><th scope=col>network</th>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table>\n"
        f"<p class=small>× is the ratio to “{escape(reference['label'])}”, for accuracy the "
        "difference in percentage points. The test set was looked at once, after everything "
        "was decided. MACs are the multiply-accumulates of one image; latency is the median of "
        "one forward pass, its quartiles in brackets; kB and MB are powers of ten.</p>"
    )


def _on_page(rows: Sequence[Row]) -> list[str]:
    """The columns of the page: accuracy among the first five only where it was measured."""
    return [
        key for key in ON_PAGE if key != "top5" or all(row.get("top5") is not None for row in rows)
    ]


def _results_row(row: Row, reference: Row, keys: Sequence[str]) -> str:
    cells = [f"<th scope=row>{escape(row['label'])}</th>"]
    for key in keys:
        heading, ratio = ON_PAGE[key][0], _ratio(row, reference, key)
        spread = f" <small>{_spread(row)}</small>" if key == "latency_ms" else ""
        share = _share(row, reference, key)
        bar = f'<i class=bar style="width:{100 * share:.1f}%"></i>' if share is not None else ""
        value = f"<b>{_value(row, key)}</b> <span>{ratio}</span>{spread}"
        cells.append(f'<td data-label="{heading}"><div>{value}</div>{bar}</td>')
    return (
        f'<tr class="{"last" if row["key"].startswith("fine-tuned") else ""}">{"".join(cells)}</tr>'
    )


def _published_table(results: Mapping[str, Any]) -> str:
    published = results.get("published") or []
    if not published:
        return ""
    ours = [_as_published(row, _reference(results["rows"])) for row in results["rows"]]
    known = [key for key in PUBLISHED if any(key in row for row in published)]
    further = sorted({key for row in published for key in row} - {*PUBLISHED, "label"})
    head = "".join(
        f"<th scope=col>{escape(PUBLISHED.get(key, key))}</th>" for key in [*known, *further]
    )
    return (
        "<div class=scroll><table><thead><tr><th "
        f"scope=col>network</th>{head}</tr></thead>\n<tbody>\n"
        + _published_rows("published", published, [*known, *further])
        + _published_rows("this run", ours, [*known, *further])
        + "</tbody></table></div>"
    )


def _published_rows(group: str, rows: Sequence[Row], keys: Sequence[str]) -> str:
    lines = [f"<tr class=group><th colspan={len(keys) + 1} scope=rowgroup>{group}</th></tr>"]
    for row in rows:
        cells = "".join(f"<td>{escape(_figure_of(row, key))}</td>" for key in keys)
        lines.append(f"<tr><th scope=row>{escape(str(row.get('label', '')))}</th>{cells}</tr>")
    return "\n".join(lines) + "\n"


def _as_published(row: Row, reference: Row) -> dict[str, Any]:
    """One of our rows in the terms of a paper: error and cuts in percent."""
    cuts = {
        f"{key}_cut": 100 * (1 - row[key] / max(reference[key], 1)) for key in ("params", "macs")
    }
    if row["params"] == reference["params"]:
        cuts = {}
    return {
        "label": row["label"],
        "error": 100 * (1 - row["accuracy"]),
        "top5_error": None if row.get("top5") is None else 100 * (1 - row["top5"]),
        "params": row["params"],
        "macs": row["macs"],
    } | cuts


def _figure_of(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value or MISSING
    if key in ("params", "macs"):
        return _count(value)
    unit = " %" if key in PUBLISHED else ""
    return (
        f"{value:.{2 if 'error' in key else 1}f}{unit}"
        if isinstance(value, float)
        else f"{value}{unit}"
    )


def _figures(results: Mapping[str, Any]) -> str:
    drawn = []
    found = results.get("scales") or {}
    if found.get("share_near_zero_after") is not None:
        share = (
            f"{_percent(found['share_near_zero_after'], 1)} of them are below "
            f"{found['threshold']:g}"
        )
        text = f"Batch-norm scales. After training {share}, where a channel hardly counts any more."
        drawn.append(_figure("scales", figures.scales(found), text))
    if results.get("widths"):
        drawn.append(
            _figure(
                "widths",
                figures.widths(results["widths"]),
                "Width of every layer before and after the cut.",
            )
        )
    if results.get("curves"):
        text = (
            "Training, stage by stage. The training loss is what is minimised: with a "
            "penalty, or a teacher's part."
        )
        drawn.append(_figure("curves", figures.curves(results["curves"]), text))
    return f"<div class=figures>{''.join(drawn)}</div>" if drawn else ""


def _figure(name: str, drawing: bytes, caption: str) -> str:
    """A figure inside the page; its ids are prefixed, because three drawings share one document."""
    svg = drawing.decode()[drawing.decode().index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>\n"


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
    """None stands for a cut through channels that cannot be silenced exactly, so only shapes were
    tried.
    """
    return "only shapes tried" if check["deviation"] is None else f"{check['deviation']:.1e}"


def _provenance(results: Mapping[str, Any], config: str | None) -> str:
    command = escape(str(results.get("command") or MISSING))
    taken = {} if results.get("seconds") is None else {"time taken": _duration(results["seconds"])}
    facts = taken | _flat(results.get("environment") or {})
    facts.pop("command", None)
    listed = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()
    )
    shown = "config.yaml was not in the run folder." if config is None else config
    return (
        f"<pre><code>{command}</code></pre>\n<dl>{listed}</dl>\n"
        f"<details><summary>Every setting (config.yaml)</summary>"
        f"<pre><code>{escape(shown)}</code></pre></details>"
    )


# ---- Numbers, as people read them


def _reference(rows: Sequence[Row]) -> Row:
    """The unpruned network that ratios refer to."""
    return next((row for row in rows if row["key"] == "before"), rows[0])


def _value(row: Row, key: str) -> str:
    if key in _SHARES:
        return _percent(row[key])
    if key == "latency_ms":
        return (
            MISSING
            if _median(row) is None or math.isnan(_median(row))
            else f"{_median(row):#.3g} ms"
        )
    return f"{_count(row[key])}B" if key == "size_bytes" else _count(row[key])


def _ratio(row: Row, reference: Row, key: str) -> str:
    if row is reference:
        return ""
    if key in _SHARES:
        return _signed(100 * (row[key] - reference[key]))
    share = _share(row, reference, key)
    return MISSING if share is None else f"×{share:.3f}" if share < 1.5 else f"×{share:.2f}"


def _share(row: Row, reference: Row, key: str) -> float | None:
    if key in _SHARES:
        return None
    ours, theirs = (
        _median(item) if key == "latency_ms" else item[key] for item in (row, reference)
    )
    return ours / theirs if theirs and math.isfinite(ours / theirs) else None


def _median(row: Row) -> Any:
    """Milliseconds; not a number where latency was not measured."""
    measured = row.get("latency_ms")
    return (
        measured.get("median")
        if isinstance(measured, dict)
        else math.nan
        if measured is None
        else None
    )


def _spread(row: Row) -> str:
    found = row.get("latency_ms") or {}
    return (
        f"({found['low']:#.3g} to {found['high']:#.3g})" if {"low", "high"} <= found.keys() else ""
    )


def _count(number: float) -> str:
    """Four significant digits with a unit: 20.04 M, 545.8 k, 812."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.99995 * size:
            return f"{number / size:#.4g} {unit}"
    return f"{number:g} "


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else MISSING


def _cut(after: float, before: float) -> str:
    return _percent(1 - after / before, 1) if before else MISSING


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−") if math.isfinite(points) else MISSING


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = (
        [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(hours or minutes) + [f"{rest} s"]
    )
    return " ".join(parts)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level: {"a": {"b": 1}} becomes {"a b": "1"}."""
    flat: dict[str, str] = {}
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            flat |= _flat(value, f"{name} ")
        else:
            flat[name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat


# ---- Files


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _environment(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path) or "{}")
    except ValueError:
        return {"environment": f"{path.name} is damaged"}
    return found if isinstance(found, dict) else {}


def _damaged(path: str | os.PathLike[str], what: str) -> RecipeError:
    return RecipeError(
        f"{path}: the results are damaged: {what}. Delete this file and give the 'netslim run' "
        "command again; stages that are finished are not repeated"
    )
