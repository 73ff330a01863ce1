"""`search`: the smallest network within an accuracy drop."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from netslim.cli.common import add_json, going_on_by, print_json, show
from netslim.cli.cut_flags import (
    add_choice,
    add_compensation,
    add_latency,
    add_limits,
    add_options,
    given,
    latency,
    made,
    typed,
)
from netslim.cli.flags import (
    DATA,
    MODELS,
    add_folder,
    add_network,
    add_surroundings,
    add_training,
    settings,
    training,
)
from netslim.cli.parser import Parser
from netslim.errors import RecipeError
from netslim.selection.options import Compensation, Limits, Scoring
from netslim.surgery.compensation.ways import BEST
from netslim.training.recipe.schema import SearchOptions

_SEARCH = """\
Find the smallest network whose validation accuracy, after a short training, is within --max-drop
percentage points of the given network's. The share that is cut is found by bisection; every
candidate is cut from MODEL itself, and the largest share that passed wins. Accuracy after a short
training is noisy, so a smaller cut may fail where a larger one passes; bisection does not look
there, and finds a share at which passing turns into failing.

Everything is kept in DIR: each candidate with its plan, weights and metrics in DIR/candidates, the
winner as DIR/best.safetensors, and in the end search.json, front.png, front.svg and report.html.
Killed at any time and started again with the same command, it goes on where it was; a finished
search only shows its results. The validation images decide; the test images are looked at once, at
the very end, with MODEL and the winner. Exit code 1 where no cut passed.
"""

_MORE = (
    MODELS
    + DATA
    + """
Use the --validation and --seed that MODEL was trained with: it must not have seen the images that
decide.

The given network is also trained as the candidates are, uncut, and shown beside them: where that
alone raises its accuracy, a part of what the cuts lose is hidden. --reference trained counts the
drop from there.

Any option of a recipe goes by its dotted name: --optimizer.*, --schedule.*, --distill.*, --data.*,
--trainer.*, and --stages.prune.OPTION, --stages.recover.OPTION.
"""
)
_EXAMPLES = """\
  netslim search vgg.safetensors --data torchvision:CIFAR10 --max-drop 0.5 --out small
  netslim search vgg.safetensors --data torchvision:CIFAR10 --max-drop 1 --resource params \\
      --out small --augment 4 --epochs 4 --lr 0.02 --teacher vgg.safetensors --round-to 8
"""

_AUTO = {
    "criterion": "obs",
    "allocation": "cost, or global with --criterion",
    "fold": f"{BEST}, or none with --criterion or --recalibrate",
    "recalibrate": "as --batches, or 0 with --criterion or --fold",
}


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_search, about=_SEARCH, more=_MORE, examples=_EXAMPLES, dotted=True)
    add_network(parser)
    add_folder(parser, "the folder of the search")
    what = parser.add_argument_group("what is looked for")
    add_options(what, SearchOptions)
    add_latency(what, "--resource latency")
    add_training(parser.add_argument_group("training of each candidate"), epochs=2, rate=0.01)
    how = parser.add_argument_group("the cut, as for prune")
    add_choice(how, _AUTO)
    add_limits(how)
    add_compensation(how, _AUTO)
    add_surroundings(parser)
    add_json(parser, "as in search.json")


def _search(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training.commands import search

    if options.epochs < 0:
        raise RecipeError(f"--epochs {options.epochs}: 0 or more")
    aim = made(SearchOptions, options)
    recipe = search.template(
        options.model,
        options.data,
        aim.resource,
        _cut(options, aim),
        {**training(options), "schedule": {"name": "cosine"}},
        overrides,
        settings=settings(options),
    )
    with going_on_by(options.typed, options.out):
        found = search.carry_out(recipe, aim, options.out, command=options.typed)
    if options.json:
        print_json(found)
    else:
        _show(found, options.out)
    return int(found["best"] is None)


def _cut(options: argparse.Namespace, aim: SearchOptions) -> dict[str, Any]:
    plain = typed(options, ("allocation", "batches"))
    timed = latency(options, aim.resource == "latency", "--resource latency")
    return {"latency": timed, **plain, **given(options, Scoring, Limits, Compensation)}


def _show(found: dict[str, Any], out: Path) -> None:
    from netslim.report.search_page import table, tests

    said = [found["verdict"], tests(found), *(f"note: {text}" for text in found["notes"])]
    if found["best"] is not None:
        said.append(f"network: {out / 'best.safetensors'}")
    said.append(f"report: {out / 'report.html'}")
    show(table(found), filter(None, said), width=120)
