"""The table that sets a run beside what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from netslim.report.numbers import MISSING, count
from netslim.report.rows import Row, reference

PUBLISHED = {
    "error": "test error",
    "top5_error": "top-5 error",
    "params": "parameters",
    "params_cut": "cut",
    "macs": "MACs",
    "macs_cut": "cut",
}


def published_table(results: Mapping[str, Any]) -> str:
    """Published rows and those of the run in their terms; nothing where none are known."""
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
