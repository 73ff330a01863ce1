"""`recipes`: what is shipped."""

from __future__ import annotations

import argparse

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
    for name in shipped():
        tree = tree_of(name)
        print(f"{name}\n    {tree['title']}")
        for row in tree.get("published", ()):
            figures = ", ".join(
                f"{key.replace('_', ' ')} {value}" for key, value in row.items() if key != "label"
            )
            print(f"    published, {row.get('label', '')}: {figures}")
    return 0
