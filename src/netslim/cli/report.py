"""`report`: the page of a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path

from netslim.cli.parser import Parser


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_report)
    parser.add_argument("folder", metavar="DIR", type=Path, help="the run folder")


def _report(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.report import run_page

    print(run_page.write(options.folder))
    return 0
