"""`report`: the page of a finished run, or of several side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from netslim.cli.common import add_json, print_json
from netslim.cli.parser import Parser
from netslim.errors import RecipeError

_REPORT = """\
Write the page of a finished run, report.html in its folder; or, of several runs, a page that sets
them side by side, with their spread where they differ in their seeds alone. What `netslim
sensitivity --out RUN/sensitivity` has measured is shown on the page of that run.
"""

_EXAMPLES = """\
  netslim report runs/digits
  netslim report runs/digits --json
  netslim report runs/digits runs/digits-strong --out compared.html
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_report, about=_REPORT, examples=_EXAMPLES)
    parser.add_argument(
        "folders", metavar="DIR", type=Path, nargs="+", help="the run folder, or several"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="the page of several runs (default: side-by-side.html in the folder that holds them)",
    )
    add_json(parser, "where the page is")


def _report(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.report import run_page, runs_page

    if len(options.folders) > 1:
        page = runs_page.write(options.folders, options.out)
    elif options.out is not None:
        raise RecipeError("--out is for several runs; the page of one lies in its folder")
    else:
        page = run_page.write(options.folders[0])
    if options.json:
        print_json({"report": page})
    else:
        print(page)
    return 0
