"""`data`: the kinds of data sets that go by a name."""

from __future__ import annotations

import argparse

from netslim.cli.common import add_json, print_json
from netslim.cli.parser import Parser

_DATA = """\
List the names that --data and the section `data` of a recipe understand, and what stands behind
each. Nothing is read or fetched.
"""
_EXAMPLES = """\
  netslim data
  netslim data --json
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_data, about=_DATA, examples=_EXAMPLES)
    add_json(parser, "names and what they are")


def _data(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.data.sources import KINDS

    if options.json:
        print_json([{"name": name, "text": text} for name, text in KINDS.items()])
        return 0
    width = max(map(len, KINDS))
    for name, text in KINDS.items():
        print(f"{name:{width}}  {text}")
    return 0
