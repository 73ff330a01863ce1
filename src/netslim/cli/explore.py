"""`sensitivity`: which layers can be cut, and how far."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from netslim.cli.common import add
from netslim.cli.steps import _MODELS, _network, _settings, _surroundings
from netslim.errors import RecipeError

_SENSITIVITY = """\
Cut each group of channels alone, at several ratios, and look at what is left with images that were
set apart from the training images. Nothing is trained, and the test images are not looked at.
Everything lands in the folder DIR: sensitivity.json and .csv, pictures, a page. Killed at any time
and started again with the same command, it measures what is missing; a finished one only shows it.
"""

_MORE = (
    _MODELS
    + """
The images are those that `netslim train` has set apart, if --seed, --validation and --data.* are as
there. --max-drop tells how far each group may be cut, which `netslim prune` respects:
  netslim sensitivity vgg.safetensors --data torchvision:CIFAR10 --out explored --recalibrate 10
  netslim prune vgg.safetensors --input 3 32 32 --cut-macs 0.4 --out small.safetensors \\
      --limits explored/sensitivity.json --max-drop 1
"""
)


def register(commands: Any) -> None:
    """Add the command."""
    parser = add(
        commands,
        "sensitivity",
        "cut each group of channels alone and look at what is lost",
        _sensitivity,
        description=_SENSITIVITY,
        epilog=_MORE,
        dotted=True,
    )
    _network(parser)
    parser.add_argument("--data", metavar="DATA", required=True, help="the data set")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the folder to write"
    )
    what = parser.add_argument_group("what is cut")
    what.add_argument(
        "--ratios",
        metavar="SHARE",
        type=float,
        nargs="+",
        default=[0.25, 0.5, 0.75],
        help="shares of a group that go (default: 0.25 0.5 0.75)",
    )
    what.add_argument(
        "--criterion",
        metavar="NAME",
        default="l2",
        help="which channels go, as for prune (default: l2)",
    )
    what.add_argument(
        "--layers", metavar="NAME", nargs="+", default=[], help="only these, by name or pattern"
    )
    what.add_argument(
        "--shortcuts",
        choices=["include", "avoid"],
        default="include",
        help="avoid: leave out what several layers add up",
    )
    what.add_argument(
        "--batches", metavar="N", type=int, default=10, help="of --data, for criteria that look"
    )
    look = parser.add_argument_group("what is looked at")
    look.add_argument(
        "--recalibrate",
        metavar="N",
        type=int,
        default=0,
        help="take batch-norm statistics anew from N batches before each look",
    )
    look.add_argument(
        "--split",
        choices=["validation", "train"],
        default="validation",
        help="which images (default: validation)",
    )
    look.add_argument(
        "--validation",
        metavar="SHARE",
        type=float,
        help="share of training images that was set apart, as for train (default: 0.1)",
    )
    look.add_argument(
        "--limit-images", metavar="N", type=int, help="look at N of them only, drawn by --seed"
    )
    look.add_argument(
        "--max-drop",
        metavar="POINTS",
        type=float,
        help="tell how far each group may be cut for so many points",
    )
    _surroundings(parser)


def _sensitivity(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training.commands import sensitivity as exploring
    from netslim.training.commands import step as single

    _check(options)
    recipe = single.step(
        "measure", options.model, options.data, {}, overrides, settings=_settings(options)
    )
    how = exploring.Exploration(
        criterion=options.criterion,
        ratios=tuple(sorted(set(options.ratios))),
        layers=tuple(options.layers),
        shortcuts=options.shortcuts,
        batches=options.batches,
        recalibrate=options.recalibrate,
        split=options.split,
        images=options.limit_images,
    )
    try:
        found = exploring.explore(recipe, options.out, how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"what is measured is kept in {options.out}; go on with: {options.typed}"
        ) from None
    print(found.table(None if options.max_drop is None else options.max_drop / 100))
    print(f"results: {options.out / 'sensitivity.json'}\npage: {options.out / 'sensitivity.html'}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Mistakes show before anything is read."""
    wrong = next((ratio for ratio in options.ratios if not 0 < ratio < 1), None)
    if wrong is not None:
        raise RecipeError(f"--ratios {wrong:g}: give shares above 0 and below 1")
    for name, least in (("batches", 1), ("recalibrate", 0), ("limit_images", 1), ("max_drop", 0)):
        value = getattr(options, name)
        if value is not None and not least <= value < float("inf"):
            raise RecipeError(f"--{name.replace('_', '-')} {value:g}: give {least} or more")
