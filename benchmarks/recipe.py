"""A recipe over several seeds: mean and spread of every row of its table.

    python benchmarks/recipe.py digits --seeds 0 1 2 [--out FOLDER] [--data.root FOLDER ...]

Each seed is an ordinary `netslim run` in a folder of its own, so an interrupted study goes on where
it was. Further arguments go to `netslim run` as they are. The test set is looked at once a seed, at
the end of its run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from _common import record, show

COLUMNS = ("accuracy", "params", "macs", "size_bytes")


def run(recipe: str, seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "netslim.cli",
        "run",
        recipe,
        "--seed",
        str(seed),
        "--out",
        str(folder),
        *overrides,
    ]
    subprocess.run(command, check=True)
    return dict(json.loads((folder / "results.json").read_text()))


def summary(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Row -> figure -> mean, standard deviation and the values of all seeds."""
    rows: dict[str, dict[str, Any]] = {}
    for key in [row["key"] for row in results[0]["rows"]]:
        found = [next(row for row in r["rows"] if row["key"] == key) for r in results]
        rows[key] = {
            name: {
                "mean": statistics.mean(row[name] for row in found),
                "std": statistics.stdev(row[name] for row in found) if len(found) > 1 else None,
                "values": [row[name] for row in found],
            }
            for name in COLUMNS
        }
    return rows


def table(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    lines = []
    for key, row in rows.items():
        error, std = 100 * (1 - row["accuracy"]["mean"]), row["accuracy"]["std"]
        spread = "" if std is None else f" ± {100 * std:.2f}"
        lines.append(
            (
                key,
                f"{error:.2f}{spread}",
                f"{row['params']['mean']:,.0f}",
                f"{row['macs']['mean']:,.0f}",
            )
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--out", type=Path, help="where the run folders go (default: runs/RECIPE-seeds)"
    )
    options, overrides = parser.parse_known_args()
    out = options.out or Path("runs") / f"{options.recipe}-seeds"
    results = [run(options.recipe, seed, out / str(seed), overrides) for seed in options.seeds]
    rows = summary(results)
    show(
        f"{options.recipe}, {len(results)} seeds (standard deviation)",
        ("", "error %", "params", "MACs"),
        table(rows),
    )
    content = {
        "recipe": options.recipe,
        "seeds": options.seeds,
        "published": results[0]["published"],
        "notes": results[0]["notes"],
        "seconds": [r["seconds"] for r in results],
        "share_near_zero": [(r["scales"] or {}).get("share_near_zero_after") for r in results],
        "channels_cut": [
            1 - sum(w["after"] for w in r["widths"]) / sum(w["before"] for w in r["widths"])
            for r in results
        ],
        "rows": rows,
        "verification": [r["verification"] for r in results],
        "warnings": [r["warnings"] for r in results],
    }
    print(record(options.recipe, content))


if __name__ == "__main__":
    main()
