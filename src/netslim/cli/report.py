"""`report`: the page of a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path

from netslim.cli.common import add_json, print_json
from netslim.cli.parser import Parser

_MORE = """\
examples:
  netslim report runs/digits
  netslim report runs/digits --json
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_report, more=_MORE)
    parser.add_argument("folder", metavar="DIR", type=Path, help="the run folder")
    add_json(parser, "where the page is")


def _report(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.report import run_page

    page = run_page.write(options.folder)
    if options.json:
        print_json({"report": page})
    else:
        print(page)
    return 0
