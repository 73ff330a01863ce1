"""`models`: the networks that go by a name."""

from __future__ import annotations

import argparse
from typing import Any

from netslim.cli.common import add_json, print_json
from netslim.cli.parser import Parser
from netslim.errors import RecipeError

_MODELS = """\
List the networks that go by a name: those of netslim (zoo:NAME), each with its parameters, those of
torchvision, and those of timm where it is installed. Nothing is fetched.
"""
_MORE = "A network of your own goes by package.module:factory, and a trained one by its file.\n"
_EXAMPLES = """\
  netslim models
  netslim models resnet
  netslim models zoo: --json
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_models, about=_MODELS, more=_MORE, examples=_EXAMPLES)
    parser.add_argument(
        "part",
        metavar="PART",
        nargs="?",
        default="",
        help="only names with this in them, such as vgg; or with this source, such as zoo:",
    )
    add_json(parser, "names, where they are from, and of netslim's the parameters")


def _models(options: argparse.Namespace, _: dict[str, str]) -> int:
    rows = [_row(name) for name in _names(options.part)]
    if not rows:
        raise RecipeError(f"no network has {options.part!r} in its name; netslim models lists all")
    if options.json:
        print_json(rows)
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:{width}}  {_told(row)}".rstrip())
    return 0


def _names(part: str) -> list[str]:
    """Those of netslim first; where a source is named, the others are not imported."""
    from netslim import models

    if ":" in part:
        return models.names(part)
    found = [name for name in models.names() if part in name.partition(":")[2]]
    return sorted(found, key=lambda name: not name.startswith("zoo:"))


def _row(name: str) -> dict[str, Any]:
    source = name.partition(":")[0]
    if source != "zoo":  # to build all of these would take minutes
        return {"name": name, "source": source}
    return {"name": name, "source": "netslim", **_size(name)}


def _size(name: str) -> dict[str, Any]:
    import torch

    from netslim import models

    try:
        with torch.device("meta"):  # shapes without values
            network = models.build(name)
    except RecipeError as error:  # a family, whose depth or layers have to be said
        return {"params": None, "needs": str(error).removeprefix(f"{name} needs ").rstrip(".")}
    return {"params": sum(parameter.numel() for parameter in network.parameters())}


def _told(row: dict[str, Any]) -> str:
    if "needs" in row:
        return f"needs {row['needs']}"
    if "params" in row:
        return f"{row['params']:,} parameters"
    return ""
