"""What the benchmarks share: where they ran, a table, and a JSON file in results/."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from netslim.training.stages.environment import describe

RESULTS = Path(__file__).parent / "results"
PEER = "torch-pruning"


def with_peer() -> bool:
    """Whether the peer is there to be compared with; where it is not, that is said."""
    if importlib.util.find_spec("torch_pruning") is not None:
        return True
    print(
        f"{PEER} is not installed (it comes with the extra: pip install -e '.[bench]'): "
        "its part is left out",
        file=sys.stderr,
    )
    return False


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Machine, versions, date, and the command that was typed."""
    script = Path(sys.argv[0])
    command = shlex.join(["python", f"{script.parent.name}/{script.name}", *sys.argv[1:]])
    return describe(torch.device(device), "float32", command)


def record(
    name: str,
    results: Mapping[str, Any],
    device: str | torch.device = "cpu",
    folder: Path = RESULTS,
    *,
    partly: bool = False,
) -> Path:
    """Write `results` with machine, versions and date to results/NAME.json; the file's path.

    Where they were renewed `partly`, those of the others stay, and when that was is said beside.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    here = environment(device)
    content = {**results, "environment": here}
    if partly and path.exists():
        renewed = {key: here[key] for key in ("date", "command")}
        known = json.loads(path.read_text(encoding="utf-8"))
        content = {**results, "renewed": renewed, "environment": known["environment"]}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def write_page(path: Path, table: str) -> None:
    """Put the table between its two marks."""
    text = path.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- table -->\n).*?(\n<!-- end of table -->)", re.DOTALL)
    path.write_text(marked.sub(lambda found: f"{found[1]}{table}{found[2]}", text), "utf-8")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; the first column is left-aligned, the others right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of samples."""
    low, median, high = statistics.quantiles(samples, n=4)
    return {"median": median, "low": low, "high": high, "samples": len(samples)}
