"""`bench paper`: rows of the published tables."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from netslim.cli.common import add_changed_ok, add_json, as_arguments, going_on_by, print_json
from netslim.cli.parser import Parser, UsageError

if TYPE_CHECKING:
    from netslim.training.commands.paper import Outcome

_ABOUT = """\
Run rows of the published tables from the shipped recipes: several rows, several seeds, within a
given time. What is finished is never done again, and what two rows have in common is done once.

Stopped, by itself when the time is up or in any other way, the same command goes on. OUT holds the
results, paper.json and results.md, and beside them what unfinished rows go on from on another
machine (carried-1.part ...): copy all of it there, and repeat the command. Exit code 0 where all
rows are finished, 1 where one has failed, 3 where the time was up before.
"""
_TIME_UP = 3  # see `netslim.cli.EXIT_CODES`
_RESULTS = {"out": Path("paper"), "page": None}  # where they go if nothing is said
_MORE = "Any value of the recipes can be overridden by its dotted name, for all rows alike.\n"
_EXAMPLES = """\
  netslim bench paper --rows vgg19-cifar10 --minutes 9
  netslim bench paper --rows resnet56-l1-a resnet56-l1-b --seeds 0 1 2 --data.name hf:cifar10
  netslim bench paper --small --minutes 60
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_paper, about=_ABOUT, more=_MORE, examples=_EXAMPLES, dotted=True)
    parser.add_argument(
        "--rows",
        metavar="ROW",
        nargs="+",
        help="names of recipes (default: the published rows that say most for their time)",
    )
    parser.add_argument(
        "--small", action="store_true", help="the small twins of the rows (default: of all rows)"
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        nargs="+",
        default=[0],
        help="of weights, order and augmentation (default: 0)",
    )
    parser.add_argument(
        "--minutes", metavar="M", type=float, help="stop by then (default: when all is finished)"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=_RESULTS["out"],
        help="where the results go (default: paper)",
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=Path,
        default=Path("runs/paper"),
        help="where the run folders lie (default: runs/paper)",
    )
    parser.add_argument(
        "--page", metavar="FILE", type=Path, help="the page (default: results.md in OUT)"
    )
    add_changed_ok(parser)
    add_json(parser, "what is finished, what has failed, and where the results are")


def _paper(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    begun = time.monotonic()  # what is imported takes its time, too
    from netslim.training.commands import paper

    if options.minutes is not None and options.minutes <= 0:
        raise UsageError(
            f"--minutes {options.minutes:g}: give more than 0; see netslim bench paper --help"
        )
    names = options.rows or paper.default_rows(options.small)
    asked = paper.recipes(names, options.seeds, overrides, small=options.small)
    with going_on_by(options.typed, options.runs):
        done = paper.carry_out(
            asked,
            options.out,
            options.runs,
            page=options.page,
            options=list(_same(options, overrides)),
            deadline=paper.deadline_in(options.minutes, time.monotonic() - begun),
            changed_ok=options.changed_ok,
        )
    _tell(done, options, time.monotonic() - begun)
    if done.failed:
        return 1
    if done.stopped:
        return _TIME_UP
    return 0


def _tell(done: Outcome, options: argparse.Namespace, spent: float) -> None:
    from netslim.training.commands import paper

    results, page = options.out / "paper.json", options.page or options.out / "results.md"
    if options.json:
        print_json({**asdict(done), "results": results, "page": page})
        return
    print(paper.told(done, options.minutes, spent))
    print(f"results: {results}")
    print(f"page: {page}")
    if done.stopped:
        print(f"go on with: {options.typed}")
    for row, problem in done.failed.items():
        print(f"{row} failed: {problem}")


def _same(options: argparse.Namespace, overrides: dict[str, str]) -> Iterator[str]:
    """What adds further rows to the same results, on whatever machine."""
    yield from ("--seeds", *map(str, options.seeds))
    for name, usual in _RESULTS.items():
        if (place := getattr(options, name)) != usual:
            yield from (f"--{name}", str(place))
    yield from as_arguments({key: overrides[key] for key in overrides if key != "data.root"})
