"""`options`: every key of a recipe, as its class declares it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from netslim.cli.common import add_json, print_json
from netslim.cli.parser import Parser
from netslim.errors import RecipeError

if TYPE_CHECKING:
    from netslim.training.recipe.reference import Key

_OPTIONS = """\
List every key that a recipe may have: what it may be, its default, what it means. On the command
line each goes by its dotted name, --KEY VALUE, where NAME is the name of a stage.
"""
_EXAMPLES = """\
  netslim options
  netslim options optimizer
  netslim options stages.NAME.budget --json
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_options, about=_OPTIONS, examples=_EXAMPLES)
    parser.add_argument(
        "part", metavar="PART", nargs="?", default="", help="only keys with this in them"
    )
    add_json(parser, "keys, the stages that have them, types, defaults and meanings")


def _options(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.training.recipe.reference import keys

    found = [one for one in keys() if options.part in one.key]
    if not found:
        raise RecipeError(f"no key has {options.part!r} in it; netslim options lists all")
    if options.json:
        print_json([asdict(one) for one in found])
        return 0
    for where, group in groupby(found, key=_where):
        print(where)
        for one in group:
            print(f"  {_told(one)}")
    return 0


def _where(one: Key) -> str:
    if one.method:
        return f"stages {_named(one.stages)} with sparsity.method {one.method}:"
    if one.stages:
        return f"stages {_named(one.stages)}:"
    return "all of a recipe:"


def _named(stages: Sequence[str]) -> str:
    return ", ".join(stages)


def _told(one: Key) -> str:
    """Key, type, default and meaning in a line."""
    default = "needed"
    if not one.needed:
        default = f"default {json.dumps(one.default)}"
    return f"{one.key}  ({one.type}; {default})  {one.help}"
