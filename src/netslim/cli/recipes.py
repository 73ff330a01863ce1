"""`recipes`: what is shipped."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from netslim.cli.common import add_json, print_json
from netslim.cli.parser import Parser

_EXAMPLES = """\
  netslim recipes
  netslim recipes vgg16-cifar10-small
  netslim recipes digits > my-recipe.yaml
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_recipes, examples=_EXAMPLES)
    parser.add_argument(
        "recipe", metavar="NAME", nargs="?", help="show the YAML of this one instead"
    )
    add_json(parser, "names, titles and published figures, or all of one recipe")


def _recipes(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.training.recipe.files import recipe_text, shipped, tree_of

    if options.json:
        print_json(_data(options.recipe))
        return 0
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


def _data(name: str | None) -> Any:
    """A recipe as it is, or what there is to know of each before one is chosen."""
    from netslim.training.recipe.files import shipped, tree_of

    if name is not None:
        return tree_of(name)
    trees = {name: tree_of(name) for name in shipped()}
    return [
        {"name": name, "title": tree["title"], "published": tree.get("published", [])}
        for name, tree in trees.items()
    ]


def _published(rows: Sequence[Mapping[str, Any]]) -> str:
    """The published errors in percent, before the cut and after, of the source that comes first."""
    errors = [str(row["error"]) for row in rows if "error" in row]
    if not errors:
        return ""
    return f"; published error {' -> '.join(errors[:2])}"
