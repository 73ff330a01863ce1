"""The table of a page: networks in rows, accuracy and cost in columns, each beside another."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from netslim.report.rows import ON_PAGE, Row, part_left, ratio, spread, value

Pair = tuple[Row, Row]  # a network, and the one that it is compared with


def results_table(pairs: Sequence[Pair], beside: str, of: str = "network") -> str:
    """The table, and what its figures are.

    Args:
        pairs: its rows, each with the one that its ratios refer to.
        beside: what that is, in words.
        of: what the rows are.
    """
    keys = _on_page([row for row, _ in pairs])
    headings = [ON_PAGE[key] for key in keys]
    head = "".join(f'<th scope=col title="{hint}">{heading}</th>' for heading, hint in headings)
    body = "\n".join(_line(row, other, keys) for row, other in pairs)
    return (
        f"<table class=cards><thead><tr><th scope=col>{of}</th>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table>\n"
        f"<p class=small>× is the ratio to {escape(beside)}, for accuracy the difference in "
        "percentage points. MACs are the multiply-accumulates of one image; peak memory is what "
        "inputs and intermediate tensors of one image take at once, without the weights; latency "
        "is the median of one forward pass, its quartiles in brackets; kB and MB are powers of "
        "ten.</p>"
    )


def _on_page(rows: Sequence[Row]) -> list[str]:
    """The columns: those of which not all results know only where all do."""
    keys = list(ON_PAGE)
    if any(row.get("top5") is None for row in rows):
        keys.remove("top5")
    if all(row.get("peak_bytes") is None for row in rows):
        keys.remove("peak_bytes")
    return keys


def _line(row: Row, beside: Row, keys: Sequence[str]) -> str:
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
