"""What each group of channels alone costs: one page, from what `Sensitivity.to_dict` gives."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from netslim._support import is_whole
from netslim.methods.sensitivity_result import shown_drop
from netslim.report import figures
from netslim.report.chance import noise
from netslim.report.numbers import flat, gone, percent
from netslim.report.template import document, facts, figure, header, remarks, section, unbroken

_HEAT_MAP = (
    "Every row is a group, first to last; the darker, the more is lost when that share of it goes."
)
_LINES = "What remains when a share of one group goes; dashed: the whole network."
_EXPLANATION = (
    "The drop is in percentage points where values are accuracies; parameters and "
    "multiply-accumulates are what this cut alone saves of the whole network."
)


def page(data: Mapping[str, Any]) -> str:
    """What each group alone costs, as one HTML document.

    Args:
        data: of `netslim.methods.Sensitivity.to_dict`.
    """
    model, name = data["settings"].get("model"), "a network"
    if isinstance(model, Mapping):
        name = model.get("name", name)
    title = f"Sensitivity of {name}"
    groups = {row["group"] for row in data["rows"]}
    lead = (
        f"{len(groups)} groups of channels, each cut alone and nothing trained after it. The whole "
        f"network reaches {_value(data, data['baseline'])}; what is shown is how much of that goes."
    )
    drawn = figure("sensitivity", figures.sensitivity(data), _HEAT_MAP)
    if (lines := figures.sensitivity_lines(data)) is not None:
        drawn += figure("lines", lines, _LINES)
    parts = [
        header(title, unbroken(lead)),
        remarks("note", "Note", [*noise_of(data), *data["notes"]]),
        section("What goes with each group", f"<div class=figures>{drawn}</div>"),
        section("In figures", _table(data)),
        section("How it was measured", facts(flat(data["settings"]))),
    ]
    return document(title, parts)


def noise_of(data: Mapping[str, Any], max_drop: float | None = None) -> list[str]:
    """What the number of pictures leaves open, where it is known; `max_drop` in points."""
    images, split = (data["settings"].get(key) for key in ("images", "split"))
    if not is_whole(images) or images < 1 or data["unit"] != "share":
        return []
    return [noise(data["baseline"], images, str(split), max_drop)]


def _table(data: Mapping[str, Any]) -> str:
    quality = "value"
    if data["unit"] == "share":
        quality = "accuracy"
    heads = ("group", "share that goes", "channels", "of", quality, "drop", "parameters", "MACs")
    headings = "".join(f"<th scope=col>{text}</th>" for text in heads)
    body = "\n".join(_line(data, row) for row in data["rows"])
    return (
        f"<div class=scroll><table><thead><tr>{headings}</tr></thead>\n<tbody>\n"
        f"{body}</tbody></table></div>\n<p class=small>{_EXPLANATION}</p>"
    )


def _line(data: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    figures_of_row = (
        f"{100 * row['ratio']:g} %",
        f"{row['removed']:,}",
        f"{row['size']:,}",
        _value(data, row["value"]),
        shown_drop(row["drop"], data["unit"]),
        gone(data["params"] - row["params"], data["params"]),
        gone(data["macs"] - row["macs"], data["macs"]),
    )
    cells = "".join(f"<td>{cell}</td>" for cell in figures_of_row)
    return f"<tr><th scope=row>{escape(row['group'])}</th>{cells}</tr>"


def _value(data: Mapping[str, Any], value: float) -> str:
    if data["unit"] == "share":
        return percent(value)
    return f"{value:g}"


__all__ = ["noise_of", "page"]
