"""`sensitivity`: which layers can be cut, and how far."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from netslim.cli.common import add_json, going_on_by, print_json
from netslim.cli.cut_flags import (
    add_limits,
    add_max_drop,
    add_options,
    add_scoring,
    made,
    max_drop,
)
from netslim.cli.flags import (
    DATA,
    MODELS,
    add_folder,
    add_network,
    add_surroundings,
    add_validation,
    settings,
)
from netslim.cli.parser import Parser
from netslim.training.recipe.schema import Exploration

if TYPE_CHECKING:
    from netslim.methods.sensitivity_result import Sensitivity

_SENSITIVITY = """\
Cut each group of channels alone, at several ratios, and look at what is left with images that were
set apart from the training images. Nothing is trained, and the test images are not looked at.
Everything lands in the folder DIR: sensitivity.json and .csv, pictures, a page. Killed at any time
and started again with the same command, it measures what is missing; a finished one only shows it.
"""

_MORE = (
    MODELS
    + DATA
    + """
The images are those that `netslim train` has set apart, if --seed, --validation and --data.* are as
there. --max-drop tells how far each group may be cut, which `netslim prune` respects.
"""
)
_EXAMPLES = """\
  netslim sensitivity vgg.safetensors --data torchvision:CIFAR10 --out explored --recalibrate 10
  netslim prune vgg.safetensors --input 3 32 32 --cut-macs 0.4 --out small.safetensors \\
      --limits explored/sensitivity.json --max-drop 1
  netslim sensitivity vgg.safetensors --data torchvision:CIFAR10 --out explored --recalibrate 10 \\
      --max-drop 1 --json
"""


_CUT = ("ratios", "layers", "batches")  # options of what is cut; the others say what is looked at


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(
        _sensitivity, about=_SENSITIVITY, more=_MORE, examples=_EXAMPLES, dotted=True
    )
    add_network(parser)
    add_folder(parser, "the folder to write")
    what = parser.add_argument_group("what is cut")
    add_options(what, Exploration, only=_CUT, told={"ratios": "0.25 0.5 0.75"})
    add_scoring(what, "l2")
    add_limits(what)
    look = parser.add_argument_group("what is looked at")
    add_options(look, Exploration, but=_CUT)
    add_validation(look, trained=True)
    add_max_drop(look, "tell how far each group may be cut for so many points")
    add_surroundings(parser)
    add_json(parser, "as in sensitivity.json; with --max-drop, the limits too")


def _sensitivity(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.report.sensitivity_page import noise_of
    from netslim.training.commands import sensitivity, step

    how, drop = made(Exploration, options), max_drop(options)
    recipe = step.step(
        "measure", options.model, options.data, {}, overrides, settings=settings(options)
    )
    with going_on_by(options.typed, options.out):
        found = sensitivity.explore(recipe, options.out, how)
    if drop is not None:
        drop /= 100
    if options.json:
        print_json(_data(found, drop))
        return 0
    print(found.table(drop))
    for text in noise_of(found.to_dict(), options.max_drop):
        print(f"note: {text}")
    print(f"results: {options.out / 'sensitivity.json'}\npage: {options.out / 'sensitivity.html'}")
    return 0


def _data(found: Sensitivity, drop: float | None) -> dict[str, Any]:
    if drop is None:
        return found.to_dict()
    return {**found.to_dict(), "limits": found.limits(drop)}
