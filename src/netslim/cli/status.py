"""`status`: how far a run is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from netslim._support import many
from netslim.cli.parser import Parser

if TYPE_CHECKING:
    from netslim.training.commands.status import StageStatus, Status

_STATUS = """\
Say how far a run is, from its folder: which stages are finished, how many epochs of the one at
work, how long the training will take, and whether a process works in it. Nothing is written.
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_status, about=_STATUS)
    parser.add_argument("folder", metavar="DIR", type=Path, help="the run folder")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def _status(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.training.commands.status import status

    found = status(options.folder)
    if options.json:
        print(json.dumps(found.to_dict(), indent=1))
        return 0
    for line in _lines(found):
        print(line)
    return 0


def _lines(found: Status) -> list[str]:
    from netslim.training.loop.progress import in_words

    first = f"{found.folder}: {found.recipe}, {found.state}"
    if found.process is not None:
        first += f" ({found.process})"
    if found.seconds_left and found.state == "running":
        first += f", about {in_words(found.seconds_left)} of training left"
    width = max(len(stage.stage) for stage in found.stages)
    return [first, *(f"{stage.stage:<{width}}  {_told(stage)}" for stage in found.stages)]


def _told(stage: StageStatus) -> str:
    if stage.epochs is None or stage.state == "waiting":
        return stage.state
    return f"{stage.state}, {stage.done} of {many(stage.epochs, 'epoch')}"
