"""`criteria`: what can decide which channels go, and how many of each layer."""

from __future__ import annotations

import argparse
import re
from typing import Any

from netslim.cli import registered
from netslim.cli.common import add_json, print_json
from netslim.cli.parser import Parser

_CRITERIA = """\
List the criteria that score channels (--criterion), the ways in which a cut is spread over layers
(--allocation) and the methods that train towards a cut (--sparsity.method), with what each says of
itself and the paper that it comes from.
"""
_EXAMPLES = """\
  netslim criteria
  netslim criteria --json
"""
# Lee et al. (2021, Eq. 2); or, in brackets, Liu et al. 2017, section 3
_PAPER = re.compile(r"(\w+ et al\.) \((\d{4}[^()]*)\)|\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_criteria, about=_CRITERIA, examples=_EXAMPLES)
    add_json(parser, "criteria, allocations and methods, with their texts")


def _criteria(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.training.recipe.schema import METHODS

    looks = registered.criteria()
    ways, methods = registered.allocations(), {name: kind.__doc__ for name, kind in METHODS.items()}
    found: dict[str, list[dict[str, Any]]] = {
        "criteria": [
            {**_row(name, text), "needs_data": looks[name]}
            for name, text in registered.criterion_texts().items()
        ],
        "allocations": [_row(name, text) for name, text in ways.items()],
        "methods": [_row(name, text) for name, text in methods.items()],
    }
    if options.json:
        print_json(found)
        return 0
    width = max(len(row["name"]) for rows in found.values() for row in rows)
    for title, rows in found.items():
        print(f"{title}:")
        for row in rows:
            print(f"  {row['name']:{width}}  {_told(row)}")
    return 0


def _row(name: str, docstring: str | None) -> dict[str, Any]:
    """With the first paragraph of what it says of itself, and the first paper that it names."""
    docstring = docstring or ""
    found, paper = _PAPER.search(" ".join(docstring.split())), None
    if found is not None:
        paper = " ".join(filter(None, found.groups()))
    return {"name": name, "text": registered.first_paragraph(docstring), "paper": paper}


def _told(row: dict[str, Any]) -> str:
    """A row in words; a paper that its text names is not named again."""
    parts = [row["text"]]
    if row["paper"] and row["paper"] not in row["text"]:
        parts.append(f"({row['paper']})")
    if row.get("needs_data"):
        parts.append("[needs --data]")
    return " ".join(parts)
