"""The model card of a run's network: what it is, what it can do, what it was made of, and by what.

Markdown that begins with facts for programs, as the Hugging Face hub wants it. All of it is from
`results.json`; what a run does not know, such as under which licence its author publishes it, the
card says is not known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from netslim._support.front_matter import front_matter
from netslim.report.numbers import MISSING, flat
from netslim.report.results_file import read
from netslim.report.rows import METRICS, Row, networks, value
from netslim.report.run_page import prepared, summary

_TASK = "image-classification"


def model_card(
    run_dir: str | os.PathLike[str], *, license: str | None = None, title: str | None = None
) -> str:
    """The card of the network that a finished run ended with.

    Args:
        run_dir: its folder.
        license: of the weights, as the hub names licences, such as `apache-2.0`; None says that
            nothing is said.
        title: of the card; None takes that of the run.

    Raises:
        RecipeError: there are no results, or they are damaged.
    """
    results = read(Path(run_dir))
    name = title or str(results.get("title") or results.get("recipe") or "A network")
    text = "\n\n".join(part for part in _sections(results, name, license) if part)
    return f"{front_matter(_facts(results, name, license))}{text}\n"


def _facts(results: Mapping[str, Any], name: str, license: str | None) -> dict[str, Any]:
    last, data = networks(results["rows"])[-1], results.get("data")
    found = {
        "task": {"type": _TASK},
        "dataset": {"name": data, "type": data},
        "metrics": [{"type": "accuracy", "name": "test accuracy", "value": last["accuracy"]}],
    }
    return {
        "license": license,
        "library_name": "netslim",
        "pipeline_tag": _TASK,
        "tags": ["netslim", "pruning", _TASK],
        "metrics": ["accuracy"],
        "model-index": [{"name": name, "results": [found]}] if data else None,
    }


def _sections(results: Mapping[str, Any], name: str, license: str | None) -> Iterator[str]:
    yield f"# {name}\n\n{summary({**results, 'rows': networks(results['rows'])})}"
    yield f"## Results\n\n{_table(results['rows'])}\n\n{_MEANING}"
    yield _proof(results.get("verification") or [])
    yield f"## Data\n\n{_data(results)}"
    yield _list("Notes", [*(results.get("warnings") or []), *(results.get("notes") or [])])
    yield f"## How it was made\n\n{_made(results)}"
    yield f"## Licence\n\n{license or 'Not said; ask whoever published it before you use it.'}"


_MEANING = (
    "Accuracy is on the test images, which were looked at once, after everything was decided. MACs "
    "are the multiply-accumulates of one image; latency is the median of one forward pass."
)


def _table(rows: Sequence[Row]) -> str:
    heads = [heading for heading, _ in METRICS.values()]
    lines = [f"| network | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in rows:
        cells = [value(row, key).strip() for key in METRICS]
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _proof(checks: Sequence[Row]) -> str:
    if not checks:
        return ""
    lines = [
        f"- {check['stage']}: {check['cut']:,} channels cut, {check['changed']:,} of them felt in "
        f"the output; largest relative deviation {_deviation(check)}"
        for check in checks
    ]
    return (
        "## Proof of the cut\n\nThe smaller network was compared in float64 with the one it was "
        "cut from, whose removed channels were silenced, with trained and with random weights:\n\n"
        + "\n".join(lines)
    )


def _deviation(check: Row) -> str:
    if check["deviation"] is None:
        return "not looked at, for shapes alone could be tried"
    return f"{check['deviation']:.1e}"


def _data(results: Mapping[str, Any]) -> str:
    said = f"`{results['data']}`" if results.get("data") else "Which data set is not said."
    if results.get("images"):
        said += f". Inputs: {prepared(results['images'])}."
    return said


def _list(heading: str, texts: Sequence[str]) -> str:
    if not texts:
        return ""
    return f"## {heading}\n\n" + "\n".join(f"- {text}" for text in texts)


def _made(results: Mapping[str, Any]) -> str:
    known = flat(results.get("environment") or {})
    told = "\n".join(f"- {name}: {text}" for name, text in known.items() if name != "command")
    return f"```console\n{results.get('command') or MISSING}\n```\n\n{told}"


__all__ = ["model_card"]
