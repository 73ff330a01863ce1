"""`status`: how far a run is."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netslim._support import many
from netslim.cli.common import add_json, print_json
from netslim.cli.parser import Parser
from netslim.errors import NetslimError

if TYPE_CHECKING:
    from netslim.training.commands.status import StageStatus, Status

_STATUS = """\
Say how far a run is, from its folder: which stages are finished, how many epochs of the one at
work, how long the training will take, and whether a process works in it. Nothing is written. Of a
folder in which the folders of several runs lie, a line for each.
"""


_EXAMPLES = """\
  netslim status runs/digits
  netslim status runs --json
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_status, about=_STATUS, examples=_EXAMPLES)
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="the run folder, or one of several runs"
    )
    add_json(parser, "a run, or a list of several")


def _status(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.report import results_file
    from netslim.training.commands.status import runs_in, status

    several = runs_in(options.folder)
    if several:
        return _several(several, options.json)
    found = status(options.folder)
    if options.json:
        print_json(found.to_dict())
        return 0
    width = max(len(stage.stage) for stage in found.stages)
    print(_line(found))
    for stage in found.stages:
        print(f"{stage.stage:<{width}}  {_told(stage)}")
    if found.damage is not None:
        print(f"{results_file.NAME:<{width}}  damaged: {found.damage}")
    return 0


def _several(folders: Iterable[Path], as_json: bool) -> int:
    """One run after the other; one that cannot be read hides no other."""
    from netslim.training.commands.status import status

    found: list[dict[str, Any]] = []
    for folder in folders:
        try:
            run = status(folder)
        except NetslimError as error:
            found.append({"folder": str(folder), "error": str(error)})
            line = f"{folder}: {error}"
        else:
            found.append(run.to_dict())
            line = _line(run, whole=False)
        if not as_json:
            print(line)
    if as_json:
        print_json(found)
    return int(any("error" in run for run in found))


def _line(found: Status, *, whole: bool = True) -> str:
    """How far a run is; where that is not the `whole` answer, with the stage that it is in."""
    from netslim.report import results_file
    from netslim.training.loop.progress import in_words

    text = f"{found.folder}: {found.recipe}, {found.state}"
    if found.process is not None:
        text += f" ({found.process})"
    current = [stage for stage in found.stages if stage.state != "finished"]
    if current and not whole:
        text += f", {current[0].stage} {_told(current[0])}"
    if found.damage is not None and not whole:
        text += f", {results_file.NAME} damaged: {found.damage}"
    if found.seconds_left and found.state == "running":
        text += f", about {in_words(found.seconds_left)} of training left"
    return text


def _told(stage: StageStatus) -> str:
    if stage.damage is not None:
        return f"{stage.state}: {stage.damage}"
    if stage.epochs is None or stage.state == "waiting":
        return stage.state
    return f"{stage.state}, {stage.done} of {many(stage.epochs, 'epoch')}"
