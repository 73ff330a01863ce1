"""How much of networks with normalisations over channels and with heads can be cut exactly.

    python benchmarks/shares.py [--only PATTERN ...] [--limit 100] [--out DIR]

Of each network of share_models.py: the share of its parameters that `netslim inspect` says can go
exactly, and the deviation that `netslim.verify` finds after half of the channels of every exact
group, drawn at random, have gone; its parameters are random. Each runs in a process of its own.
Rows are written to DIR/shares.json as soon as they are known, and what stands there is not run
again, so an interrupted run goes on where it was; remove the file to measure anew. DIR/shares.md is
the table. Without --out both are in results/.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import _common
import torch
from share_models import build, names
from zoo import forked
from zoo_tools import Report, first_line, halves, parameters, shares

import netslim
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise

Row = Mapping[str, Any]
WANTED, LEAST = 0.99, 0.9  # what issue 16 asks of the median, and of each


def measure(name: str, report: Report) -> None:
    """Trace, cut and prove a network, and report what is known as soon as it is."""
    start = time.process_time()
    model, inputs = build(name)
    randomise(model)
    report({"params": parameters(model)})
    graph = netslim.trace(model, inputs)
    found = shares(graph)
    report({"share": found["share"], "with_inexact": found["share_inexact"]})
    report({"held": [reason for reason in found["frozen"].split("; ") if reason]})
    plan = plan_keeping(graph, halves(graph))
    if plan.groups:
        report(proof(model, plan, inputs, graph))
    report({"cpu_seconds": time.process_time() - start})


def proof(
    model: torch.nn.Module, plan: netslim.PruningPlan, inputs: Any, graph: netslim.ChannelGraph
) -> dict[str, Any]:
    """The deviation, how many channels went, and how many of these the outputs feel."""
    try:
        check = netslim.verify(model, netslim.prune(model, plan), plan, inputs, graph=graph)
    except Exception as error:
        return {"error": first_line(error)}
    return {
        "deviation": check.deviation,
        "cut": check.cut,
        "felt": check.changed,
        "double": check.double,
    }


def summary(rows: Mapping[str, Row]) -> dict[str, Any]:
    """How the shares are spread, and what is below the goals."""
    known = {name: row["share"] for name, row in rows.items() if "share" in row}
    return {
        "networks": len(rows),
        "median": statistics.median(known.values()),
        "below": {
            n: round(s, 4) for n, s in sorted(known.items(), key=lambda e: e[1]) if s < LEAST
        },
        "failed": {n: row["error"] for n, row in rows.items() if "error" in row},
        "largest_deviation": max(
            (
                r["deviation"]
                for r in rows.values()
                if r.get("deviation") is not None and r["double"]
            ),
            default=0.0,
        ),
    }


def _earlier(rows: Mapping[str, Row]) -> list[str]:
    """A word on rows that are not of this version."""
    old = [name for name, row in rows.items() if row.get("earlier")]
    if not old:
        return []
    return [
        f"Measured with an earlier version, and not again since: {len(old)} networks, marked by a star.",
        "",
    ]


def markdown(rows: Mapping[str, Row], found: Mapping[str, Any]) -> str:
    """The table, the worst first."""
    lines = [
        "# What can be cut exactly of networks with normalisations over channels and with heads",
        "",
        f"By `python benchmarks/shares.py`: {found['networks']} networks, the median share of their parameters that",
        f"can go exactly is {found['median']:.4f}, {len(found['below'])} are below {LEAST}; half of every exact group was cut at random and",
        f"verified with random weights: the largest deviation is {found['largest_deviation']:.1e}, {len(found['failed'])} failed.",
        "",
        *_earlier(rows),
        "| network | parameters | share | and inexactly | deviation | channels cut | felt | what holds the rest |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for name, row in sorted(rows.items(), key=lambda each: each[1].get("share", -1)):
        held = "; ".join(row.get("held", [])[:2]).replace("|", "\\|")
        deviation = row.get("deviation")
        told = row.get("error", "") if deviation is None else f"{deviation:.1e}"
        lines.append(
            f"| {name}{'*' * bool(row.get('earlier'))} | {row.get('params', 0):,} | {row.get('share', 0):.4f} | {row.get('with_inexact', 0):.4f} "
            f"| {told} | {row.get('cut', 0)} | {row.get('felt', 0)} | {held[:160]} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="such as 'timm:*swin*'"
    )
    parser.add_argument("--limit", type=float, default=100, help="seconds for a network")
    parser.add_argument(
        "--out", type=Path, default=_common.RESULTS, help="folder (default: results/)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "shares.json"
    rows: dict[str, Row] = {}
    if path.exists():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    chosen = [n for n in names() if n not in rows and any(fnmatchcase(n, p) for p in options.only)]
    for library in sorted({name.partition(":")[0] for name in chosen}):  # imported before the forks
        build(next(name for name in names() if name.startswith(library)))
    gc.freeze()
    for name in chosen:
        rows[name] = forked(partial(measure, name), options.limit)
        print(name, json.dumps({k: v for k, v in rows[name].items() if k != "held"}), flush=True)
        _common.record("shares", {"rows": rows}, folder=options.out)
    if not any("share" in row for row in rows.values()):
        sys.exit(f"no network that matches {' '.join(options.only)} was traced")
    found = summary(rows)
    _common.record("shares", {**found, "rows": rows}, folder=options.out)
    (options.out / "shares.md").write_text(markdown(rows, found), encoding="utf-8")


if __name__ == "__main__":
    main()
