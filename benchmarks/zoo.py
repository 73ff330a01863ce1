"""Any model: netslim and torch-pruning 1.6.1 over the same 436 networks of torchvision, timm,
transformers, segmentation_models_pytorch, MONAI and ultralytics (of those that are installed).

    python benchmarks/zoo.py [--only PATTERN ...] [--tools netslim torch-pruning] [--limit 60]
    [--out DIR] [--jobs 1]

Every tool prunes every network in a process of its own, forked from one that has imported
everything, on one thread; which tool comes first alternates from network to network, and a tool
that takes longer than the limit is killed. Both get the same network with the same random weights
and the same small input. netslim cuts a random half of every group that it calls exact,
torch-pruning half of every layer but the last by magnitude, both in place. Timed are tracing,
choosing and cutting, not the verification after it; seconds are processor time, so neighbours on a
shared machine do not count, and memory is the peak above the level before.

Without torch-pruning netslim runs alone. Rows are appended to DIR/zoo.csv as soon as they are known, and what stands there is not run again,
so an interrupted run goes on where it was. At the end DIR/zoo.md holds a table and a summary;
without --out all goes to results/, with the summary as results/zoo.json, which says when --only has
renewed some rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import _common
import timm  # noqa: F401  (imported before the processes are forked)
import torch
import torchvision  # noqa: F401
import zoo_table
from torch import nn
from zoo_families import convolutional, names
from zoo_tools import TOOLS, Report, Subject, first_line, output_layers, parameters, prepare, use

CHECK_LIMIT = 300.0  # seconds for the verification, which is not what is measured


# --- processes ------------------------------------------------------------------------------------


def forked(work: Callable[[Report], None], limit: float) -> dict[str, Any]:
    """What `work` reports from a process of its own, and its ``error``.

    It is killed when it has run for `limit` seconds, or once it has reported ``seconds``, for
    `CHECK_LIMIT` more.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _child(work, write)
    os.close(write)
    found, late = _listen(read, limit)
    if late:
        os.kill(child, signal.SIGKILL)
        found["error"] = (
            f"no result within {limit:g} s"
            if "seconds" not in found
            else "verification took too long"
        )
        found["timeout"] = True
    os.close(read)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and not late:
        found["error"] = f"killed by signal {os.WTERMSIG(status)}"
    return found


def _child(work: Callable[[Report], None], write: int) -> None:
    """Run `work` in a fresh child and end the process."""

    def report(values: Mapping[str, Any]) -> None:
        os.write(write, json.dumps(dict(values)).encode() + b"\n")

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        work(report)
    except BaseException as error:
        report({"error": first_line(error)})
    os._exit(0)


def _listen(read: int, limit: float) -> tuple[dict[str, Any], bool]:
    """All that comes through the pipe until it is closed, and whether the time ran out before."""
    found: dict[str, Any] = {}
    pending, end = b"", time.monotonic() + limit
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return found, True
        piece = os.read(read, 1 << 16)
        if not piece:
            return found, False
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            values = json.loads(line)
            if "seconds" in values:
                end = time.monotonic() + CHECK_LIMIT
            found |= values


def run_network(name: str, tools: list[str], limit: float, table: Path) -> None:
    """Build the network once and let every tool prune it in a fork of this process."""
    facts = {"model": name, "kind": "CNN" if convolutional(name) else "hybrid"}
    try:
        model, inputs = prepare(name)
        original, _ = prepare(name)
    except Exception as error:
        for tool in tools:
            zoo_table.append(
                table, {**facts, "tool": tool, "verdict": "unbuilt", "why": first_line(error)}
            )
        return
    heads = forked(partial(_tell_heads, model, inputs), CHECK_LIMIT).get("heads", [])
    for tool in tools:
        subject = Subject(name, model, original, inputs, heads)
        found = forked(partial(use, tool, subject), limit)
        row = {**facts, "tool": tool, "params": parameters(model), **found, **verdict(found)}
        zoo_table.append(table, row)
        print(zoo_table.line(row), flush=True)


def _tell_heads(model: nn.Module, inputs: Any, report: Report) -> None:
    report({"heads": output_layers(model, inputs)})


def verdict(found: Mapping[str, Any]) -> dict[str, str]:
    """How a tool ended that did not come as far as the judge, and why; it says nothing where the
    judge spoke.
    """
    if "verdict" in found or "error" not in found:
        return {}
    if "seconds" in found:
        return {"verdict": "unclear", "why": found["error"]}
    if "timeout" in found:
        return {"verdict": "timeout", "why": found["error"]}
    return {"verdict": "crashed" if "traced" in found else "refused", "why": found["error"]}


def run_all(chosen: list[str], tools: list[str], limit: float, jobs: int, table: Path) -> None:
    """Every network that is not yet in the table, `jobs` at a time."""
    zoo_table.create(table)
    done = {(row["model"], row["tool"]) for row in zoo_table.read(table)}
    running: dict[int, str] = {}
    for number, name in enumerate(names()):
        order = tools if number % 2 == 0 else tools[::-1]
        missing = [tool for tool in order if (name, tool) not in done]
        if name not in chosen or not missing:
            continue
        if len(running) == jobs:
            _wait(running)
        child = os.fork()
        if child == 0:
            _run_and_leave(name, missing, limit, table)
        running[child] = name
    while running:
        _wait(running)


def _run_and_leave(name: str, tools: list[str], limit: float, table: Path) -> None:
    try:
        run_network(name, tools, limit, table)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _wait(running: dict[int, str]) -> None:
    child, status = os.wait()
    name = running.pop(child)
    if status:
        print(
            f"{name}: its process ended with status {status}; what is missing runs again next time",
            file=sys.stderr,
        )


def warm_up(tools: list[str]) -> None:
    """Let the tools cut a tiny network, so that no process pays for what is imported at first use."""
    for name in tools:
        model, original = (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)) for _ in range(2)
        )
        TOOLS[name]().cut(
            Subject("tiny", model, original, torch.randn(1, 3, 8, 8), ["2"]), lambda values: None
        )


def main() -> None:
    """Run what is missing, then write the table and the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="such as 'timm:*resnet*'"
    )
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument(
        "--limit", type=float, default=60, help="seconds a tool may take for a network"
    )
    parser.add_argument("--out", type=Path, help="folder for the table (default: results/)")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = options.out or _common.RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [n for n in names() if any(fnmatchcase(n, p) for p in options.only)]
    if not chosen:
        sys.exit(f"no network matches {' '.join(options.only)}; names look like {names()[0]}")
    tools = [tool for tool in options.tools if tool != _common.PEER or _common.with_peer()]
    if not tools:
        sys.exit("no tool is left to run")
    warm_up(tools)
    gc.collect()
    gc.freeze()
    run_all(chosen, tools, options.limit, options.jobs, folder / "zoo.csv")
    gc.unfreeze()
    rows = zoo_table.read(folder / "zoo.csv")
    found = zoo_table.summary(rows)
    (folder / "zoo.md").write_text(zoo_table.markdown(rows, found), encoding="utf-8")
    print(json.dumps(found, indent=2))
    if options.out is None:
        partly = options.only != ["*"]
        content = {"limit_seconds": options.limit, **found}
        print(_common.record("zoo", content, partly=partly))


if __name__ == "__main__":
    main()
