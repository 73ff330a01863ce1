"""`recipes`: what is shipped."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from netslim.cli.parser import Parser


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_recipes)
    parser.add_argument(
        "recipe", metavar="NAME", nargs="?", help="show the YAML of this one instead"
    )


def _recipes(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.training.recipe.files import recipe_text, shipped, tree_of

    if options.recipe is not None:
        print(recipe_text(options.recipe), end="")
        return 0
    names = shipped()
    width = max(map(len, names))
    for name in names:
        tree = tree_of(name)
        print(f"{name:{width}}  {tree['title']}{_published(tree.get('published', ()))}")
    print("netslim recipes NAME shows one whole, with every published figure")
    return 0


def _published(rows: Sequence[Mapping[str, Any]]) -> str:
    """The published errors in percent, before the cut and after, of the source that comes first."""
    errors = [str(row["error"]) for row in rows if "error" in row]
    if not errors:
        return ""
    return f"; published error {' -> '.join(errors[:2])}"
