"""`run`: a whole run by recipe."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from netslim.cli.common import add_changed_ok, add_trust, as_arguments, going_on_by, show
from netslim.cli.parser import Parser

_RUN = """\
Carry out a recipe: train with sparsity, cut, prove the cut, fine-tune, measure, report.

Everything lands in one folder. Killed at any time and started again with the same command, a run
goes on from the last finished epoch and ends with the same numbers; a finished one only shows its
results.
"""

_OVERRIDES = """\
any value of the recipe can be overridden by its dotted name (`netslim recipes NAME` shows them):
  netslim run digits --seed 3
  netslim run vgg16-cifar10-small --data.root /data --model.width 0.5
  netslim run digits --stages.sparse.epochs 40 --stages.prune.budget.cut_channels 0.5
  netslim run my-recipe.yaml --trainer.device cpu --out runs/mine
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_run, about=_RUN, more=_OVERRIDES, dotted=True)
    parser.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe, or a YAML file")
    add_trust(parser)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="the run folder (default: runs/RECIPE)"
    )
    add_changed_ok(parser)
    parser.add_argument(
        "--seed",
        metavar="N",
        help="seed of weights, order and augmentation (default: the recipe's)",
    )


def _run(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training.recipe.reading import load_recipe

    if options.seed is not None:
        overrides["seed"] = options.seed
    recipe = load_recipe(options.recipe, overrides)
    typed = ["netslim", "run", options.recipe, *as_arguments(overrides)]
    if options.trust:
        recipe = replace(recipe, trust=True)
        typed.append("--trust")
    folder = options.out or Path("runs") / recipe.name
    command = shlex.join([*typed, "--out", str(folder)])

    from netslim.training import run
    from netslim.training.processes import place

    with going_on_by(command, folder):
        results = run(recipe, folder, command=command, changed_ok=options.changed_ok)
    if place().rank == 0:
        _show(results, folder)
    return 0


def _show(results: dict[str, Any], folder: Path) -> None:
    from netslim.report.run_page import table

    lines = [f"note: {text}" for text in results["notes"]]
    lines += [f"warning: {text}" for text in results["warnings"]]
    files = {"network": results.get("network"), "results": "results.json", "report": "report.html"}
    lines += [f"{what}: {folder / name}" for what, name in files.items() if name is not None]
    show(table(results), lines, width=100)
