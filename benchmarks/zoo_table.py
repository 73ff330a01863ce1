"""The rows of `benchmarks/zoo.py` on disk, and what they come to: a Markdown table and a summary
against the goals.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _common import PEER

FIELDS = (
    "model",
    "kind",
    "params",
    "tool",
    "traced",
    "verdict",
    "deviation",
    "precision",
    "cut",
    "felt",
    "verified",
    "dropped",
    "why",
    "share",
    "share_inexact",
    "inexact_cut",
    "left",
    "seconds",
    "wall_seconds",
    "memory_mib",
    "check_seconds",
    "frozen",
    "unsupported",
)
NUMBERS = {"params", "deviation", "cut", "felt", "share", "share_inexact", "left"} | {
    "seconds",
    "wall_seconds",
    "memory_mib",
    "check_seconds",
}
NOISE_MIB = 8.0  # peaks that differ by less are one level

Row = dict[str, Any]


def create(path: Path) -> None:
    """A table with its header and no row, where there is none yet."""
    if not path.exists():
        path.write_text(",".join(FIELDS) + "\n", encoding="utf-8")


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row in one write, so that several processes may share the file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    with open(path, "ab", buffering=0) as file:
        file.write(text.getvalue().encode())


def read(path: Path) -> list[Row]:
    """All rows, numbers as numbers and what is not known as None; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: _value(k, v) for k, v in row.items()} for row in csv.DictReader(file)]


def _value(field: str, text: str) -> Any:
    if not text:
        return None
    return float(text) if field in NUMBERS else text


def line(row: Mapping[str, Any]) -> str:
    """A row in short, for the terminal."""
    parts = [f"{row['model']:<48}{row['tool']:<14}{row.get('verdict', ''):<9}"]
    parts += [
        f"{key} {row[key]:.4g}"
        for key in ("deviation", "share", "seconds", "memory_mib")
        if key in row
    ]
    parts += [
        f"{key}: {row[key]}"
        for key in ("dropped", "why", "inexact_cut")
        if row.get(key) not in (None, "runs")
    ]
    return "  ".join(parts)


# --- what the rows come to ------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, medians and goals; each goal lists the networks that miss it."""
    ours = {r["model"]: r for r in rows if r["tool"] == "netslim"}
    theirs = {r["model"]: r for r in rows if r["tool"] == PEER}
    counts = {
        t: dict(Counter(r["verdict"] for r in rows if r["tool"] == t)) for t in ("netslim", PEER)
    }
    return {
        "networks": len({r["model"] for r in rows}),
        "verdicts": {t: dict(sorted(c.items())) for t, c in counts.items() if c},
        "coverage": coverage(list(ours.values())),
        "against_peer": comparison(ours, theirs),
    }


def coverage(rows: Sequence[Row]) -> dict[str, Any]:
    """What netslim traces, cuts and proves."""
    cnns = [r["share"] for r in rows if r["kind"] == "CNN" and r["share"] is not None]
    mixing = [r["share_inexact"] for r in rows if (r["share_inexact"] or 0) > (r["share"] or 0)]
    tried = [r for r in rows if r["verified"]]
    return {
        "traced": _goal(rows, lambda r: r["traced"] == "yes"),
        "verified at the first try": _goal(tried, lambda r: r["verified"] == "yes"),
        "verified, if need be without named groups": _goal(
            tried, lambda r: r["verified"] == "yes" or r["dropped"]
        ),
        "not wrong": _goal(rows, lambda r: r["verdict"] not in ("wrong", "broken", "crashed")),
        "inexact cut runs": _goal(
            [r for r in rows if r["inexact_cut"]], lambda r: r["inexact_cut"] == "runs"
        ),
        "at most 20 s": _goal(rows, lambda r: r["seconds"] is not None and r["seconds"] <= 20),
        "median share of parameters, CNNs": _median(cnns),
        "median share with inexact groups, where there are any": _median(mixing),
        "cut channels": sum(r["cut"] or 0 for r in rows),
        "cut channels felt by the outputs": sum(r["felt"] or 0 for r in rows),
    }


def comparison(ours: Mapping[str, Row], theirs: Mapping[str, Row]) -> dict[str, Any]:
    """Seconds and memory, over the networks where both tools came to the end of their cut."""
    both = [
        (ours[m], theirs[m])
        for m in ours
        if m in theirs and ours[m]["seconds"] and theirs[m]["seconds"]
    ]
    if not both:
        return {}
    times = {a["model"]: a["seconds"] / b["seconds"] for a, b in both}
    memory = {a["model"]: a["memory_mib"] - b["memory_mib"] for a, b in both}
    dense = [
        (a["seconds"], b["seconds"]) for a, b in both if a["model"] == "torchvision:densenet201"
    ]
    return {
        "networks": len(both),
        "median time ratio": _median(times.values()),
        "largest time ratio": max(times.values()),
        "slower than 1.2 times": sorted(m for m, ratio in times.items() if ratio > 1.2),
        "where both are exact": _times([times[a["model"]] for a, b in both if _exact(a, b)]),
        "median difference of memory, MiB": _median(memory.values()),
        "more memory": sorted(m for m, more in memory.items() if more > NOISE_MIB),
        "densenet201, seconds": dense[0] if dense else None,
    }


def _exact(*rows: Row) -> bool:
    return all(row["verdict"] == "exact" for row in rows)


def _times(ratios: Sequence[float]) -> dict[str, Any]:
    """Of so many networks, what a quarter, half and three quarters of the ratios lie below."""
    return {
        "networks": len(ratios),
        "quarters of the time ratio": statistics.quantiles(ratios) if len(ratios) > 1 else None,
        "slower": sum(ratio > 1 for ratio in ratios),
    }


def _goal(rows: Iterable[Row], holds: Any) -> dict[str, Any]:
    rows = list(rows)
    missed = [r["model"] for r in rows if not holds(r)]
    return {
        "share": 1 - len(missed) / len(rows) if rows else None,
        "of": len(rows),
        "missed": missed,
    }


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


# --- Markdown -------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """The summary, then a line a network with both tools side by side."""
    by_model: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["tool"]] = row
    head: tuple[str, ...] = (
        "network",
        "params",
        "netslim",
        "deviation",
        "felt / cut",
        "share",
        "with inexact",
        "s",
        "MiB",
    )
    head += (PEER, "deviation", "s", "MiB", "remarks")
    table = [head, ("---", *["---:"] * (len(head) - 2), "---")]
    table += [
        _cells(name, pair.get("netslim", {}), pair.get(PEER, {})) for name, pair in by_model.items()
    ]
    lines = ["# Any model: netslim and torch-pruning 1.6.1", "", *_points(found), ""]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in table]) + "\n"


def _cells(name: str, a: Row, b: Row) -> tuple[str, ...]:
    felt = f"{_text(a, 'felt', '.0f')} / {_text(a, 'cut', '.0f')}"
    remarks = [
        f"without {a['dropped']}" if a.get("dropped") else "",
        a.get("why") or "",
        b.get("why") or "",
    ]
    return (
        name,
        _text(a or b, "params", ",.0f"),
        a.get("verdict") or "",
        _text(a, "deviation", ".1e"),
        felt,
        _text(a, "share", ".3f"),
        _text(a, "share_inexact", ".3f"),
        _text(a, "seconds", ".2f"),
        _text(a, "memory_mib", ".0f"),
        b.get("verdict") or "",
        _text(b, "deviation", ".1e"),
        _text(b, "seconds", ".2f"),
        _text(b, "memory_mib", ".0f"),
        "; ".join(r for r in remarks if r).replace("|", "\\|"),
    )


def _text(row: Row, key: str, form: str) -> str:
    value = row.get(key)
    return "" if value is None else format(value, form)


def _points(found: Mapping[str, Any], depth: int = 0) -> list[str]:
    lines = []
    for key, value in found.items():
        if isinstance(value, Mapping) and "missed" in value:
            share = "" if value["share"] is None else f"{value['share']:.1%} of {value['of']}"
            value = share + (f"; not {', '.join(value['missed'])}" if value["missed"] else "")
        if isinstance(value, Mapping):
            lines += [f"{'  ' * depth}- {key}", *_points(value, depth + 1)]
        else:
            lines.append(
                f"{'  ' * depth}- {key}: {f'{value:.4g}' if isinstance(value, float) else value}"
            )
    return lines
