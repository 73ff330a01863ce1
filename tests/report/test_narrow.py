"""The table of results in a terminal of 80 columns."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from netslim.report.run_page import table


def test_rows_keep_their_names_in_80_columns():
    figures = {
        "accuracy": 0.9351,
        "top5": 0.998,
        "loss": 0.21,
        "params": 20_035_018,
        "macs": 399_000_000,
        "size_bytes": 80_140_072,
        "latency_ms": 123.4,
    }
    rows = [{"key": name, "label": name, **figures} for name in ("trained", "fine-tuned")]
    shown = StringIO()
    Console(file=shown, width=80).print(table({"title": "A run", "rows": rows}))
    assert "trained" in shown.getvalue()
    assert "fine-tuned" in shown.getvalue()
