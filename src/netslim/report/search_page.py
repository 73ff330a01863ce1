"""What a search found: the verdict, what to make of it, a table for the terminal, and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from netslim.methods.search import SearchResult, Terms, outcome
from netslim.report import figures
from netslim.report.chance import chance, noise
from netslim.report.numbers import MISSING, signed
from netslim.report.template import document, figure, header, remarks, section, settings

if TYPE_CHECKING:
    from rich.table import Table

Found = Mapping[str, Any]
NAMES = {
    "macs": "MACs",
    "params": "parameters",
    "channels": "channels",
    "activations": "activations",
    "latency": "latency",
}
_UNCUT = {"original": "as given", "trained": "uncut, trained alike"}
_CAPTION = (
    "Validation accuracy of every candidate against what it costs, numbered in the order in "
    "which they were tried. Each was cut from the given network and trained for the same short "
    "time."
)


def verdict(found: SearchResult[Any], resource: str, max_drop: float) -> str:
    """The outcome in a sentence or two, in the terms of the command."""
    terms = Terms(
        points(max_drop),
        lambda share, drop: f"{100 * share:.1f} % of the {NAMES[resource]} {_lost(100 * drop)}",
        "--epochs, --lr",
        "--tolerance",
        "give more --tries",
    )
    return outcome(found.candidates, found.best, found.baseline, terms)


def points(number: float) -> str:
    """A number of percentage points in words."""
    if number == 1:
        return "1 point"
    return f"{number:g} points"


def _lost(drop: float) -> str:
    if round(drop, 2) == 0:
        return "loses nothing"
    if drop < 0:
        return f"gains {-drop:.2f} points"
    return f"loses {drop:.2f} points"


def notes(
    original: Found, trained: Found, labels: Sequence[int], max_drop: float, from_given: bool
) -> Iterator[str]:
    """What to know before the figures are believed; `labels` are those of the validation images."""
    accuracy, images = original["accuracy"], len(labels)
    yield noise(accuracy, images, "validation", max_drop)
    if said := chance(accuracy, labels):
        yield f"given network: {said}"
    gain = 100 * (trained["accuracy"] - accuracy)
    if trained is not original:
        yield f"by the same training the given network, uncut, {_lost(-gain)}"
    if from_given and gain > max(max_drop, 100 / images):
        yield (
            "this is more than the drop allowed, so the given network was not trained to its "
            "end, and a part of what the cuts lose is hidden: count the drop from the trained "
            "network with --reference trained"
        )


def table(found: Found) -> Table:
    """The candidates for a terminal, in the order in which they were tried."""
    from rich import box
    from rich.table import Table

    shown = Table(title=found["title"], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in _headings(found):
        shown.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    for row, cells in _cells(found):
        shown.add_row(*cells, style="bold" if _is_best(row, found) else None)
    return shown


def _is_best(row: Found, found: Found) -> bool:
    return bool(row["key"] == "candidate" and row["share"] == found["best"])


def _headings(found: Found) -> list[str]:
    costs = [NAMES[key] for key in _costs(found)]
    return ["network", "cut asked", "validation", "points", "", *costs]


def _costs(found: Found) -> list[str]:
    return list(dict.fromkeys(["params", "macs", found["resource"]]))


def _amount(key: str, value: float) -> str:
    if key == "latency":
        return f"{value:.3g} ms"
    return f"{value:,}"


def _cells(found: Found) -> Iterator[tuple[Found, list[str]]]:
    """Each row, and what its cells say."""
    original = found["rows"][0]
    keys = _costs(found)
    number = 0
    for row in found["rows"]:
        label, share = _UNCUT.get(row["key"], ""), MISSING
        if row["key"] == "candidate":
            number += 1
            label, share = f"candidate {number}", f"{100 * row['share']:.1f} %"
        if "unreachable" in row:
            unknown = [MISSING] * len(keys)
            yield row, [label, share, MISSING, MISSING, "cannot be reached", *unknown]
            continue
        accuracy = f"{100 * row['accuracy']:.2f} %"
        change = signed(100 * (row["accuracy"] - found["baseline"]))
        outcome = {True: "passed", False: "failed", None: ""}[row.get("passed")]
        if _is_best(row, found):
            outcome = "best"
        costs = [f"{_amount(key, row[key])} ×{row[key] / original[key]:.3f}" for key in keys]
        yield row, [label, share, accuracy, change, outcome, *costs]


def page(found: Found, config: str) -> str:
    """One self-contained HTML document: verdict, picture, table, how to repeat it."""
    picture = f"<div class=single>{_picture(found)}</div>"
    command = f"<pre><code>{escape(found['command'])}</code></pre>"
    parts = [
        header(found["title"], escape(found["verdict"])),
        remarks("note", "Note", found["notes"]),
        section("Accuracy against cost", picture),
        section("Candidates", _rows(found) + _tests(found)),
        section("How to repeat it", command + settings(config)),
    ]
    return document(found["title"], parts)


def _picture(found: Found) -> str:
    return figure("front", figures.front(found), _CAPTION)


def _rows(found: Found) -> str:
    head = "".join(f"<th scope=col>{escape(heading)}</th>" for heading in _headings(found))
    lines = []
    for row, (label, *cells) in _cells(found):
        kind = " class=last" if _is_best(row, found) else ""
        shown = "".join(f"<td><b>{escape(cell)}</b></td>" for cell in cells)
        lines.append(f"<tr{kind}><th scope=row>{escape(label)}</th>{shown}</tr>")
    return (
        f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>\n"
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def tests(found: Found) -> str:
    """What the one look at the test images found."""
    if not found["tests"]:
        return ""
    named = {"original": "as given", "best": "best candidate"}
    seen = [f"{named[key]} {100 * look['accuracy']:.2f} %" for key, look in found["tests"].items()]
    return f"test images, looked at once: {', '.join(seen)}"


def _tests(found: Found) -> str:
    if not found["tests"]:
        return ""
    return f"<p>{escape(tests(found))}</p>"
