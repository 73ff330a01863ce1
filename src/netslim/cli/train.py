"""`train`: a network trained once, from checkpoint to checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from netslim._support import many
from netslim.cli.common import add_changed_ok, add_json, going_on_by, print_json
from netslim.cli.flags import (
    DATA,
    MODELS,
    add_file,
    add_network,
    add_surroundings,
    add_training,
    settings,
    training,
)
from netslim.cli.parser import Parser
from netslim.errors import RecipeError

_TRAIN = """\
Train a network once and write it to a file. With --sparsity.method it is trained towards a cut.
The test images are not looked at; that is what `netslim evaluate` is for. Killed at any time and
started again with the same command, it goes on from the last finished epoch. What it needs for
that lies beside FILE in a folder with the suffix .run, with a row for each epoch in metrics.csv.
"""

MORE = (
    MODELS
    + DATA
    + """
Any option of a recipe goes by its dotted name: --optimizer.*, --schedule.*, --sparsity.*,
--gradual.* (cut in steps on the way; with --gradual.budget.*, and the options of `netslim prune`
by their names in recipes), --distill.*, --data.*, --trainer.*, and what is left of the stage by
--stages.COMMAND.OPTION.
"""
)

_EXAMPLES = """\
  netslim train zoo:vgg16 --data torchvision:CIFAR10 --out vgg.safetensors --augment 4 \\
      --milestones 0.5 0.75 --sparsity.method network_slimming --sparsity.strength 1e-4
  netslim train vgg.safetensors --data torchvision:CIFAR10 --out soft.safetensors --augment 4 \\
      --epochs 50 --lr 0.001 --sparsity.method soft_filter --sparsity.rate 0.125
  netslim train vgg.safetensors --data torchvision:CIFAR10 --out small.safetensors --augment 4 \\
      --lr 0.01 --gradual.budget.cut_macs 0.5 --gradual.steps 5 --gradual.round_to 8
  netslim train zoo:resnet56 --data hf:cifar10 --out drawn.safetensors --stages.train.clip 5 \\
      --sparsity.method centripetal --sparsity.target 0.625
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_train, about=_TRAIN, more=MORE, examples=_EXAMPLES, dotted=True)
    add_flags(parser, epochs=160, rate=0.1)


def add_flags(parser: Parser, epochs: int, rate: float) -> None:
    """Flags of both commands that train; the defaults differ."""
    add_network(parser)
    add_file(parser)
    how = parser.add_argument_group("training")
    add_training(how, epochs, rate)
    how.add_argument(
        "--milestones",
        metavar="E",
        type=float,
        nargs="+",
        default=[],
        help="when the rate falls: epochs, or below 1 shares of all epochs (default: it stays)",
    )
    how.add_argument(
        "--lr-factor",
        metavar="F",
        type=float,
        help="what it is multiplied with then (default: 0.1)",
    )
    how.add_argument(
        "--keep",
        choices=["last", "best"],
        help="weights of the last epoch, or of the best by validation (default: last)",
    )
    add_surroundings(parser)
    add_changed_ok(parser)
    add_json(parser, "as in stage.json of the stage, and the network's file")


def _train(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    return fit("train", options, overrides)


def fit(kind: str, options: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Carry out a training stage of this kind."""
    from netslim.training.commands import step
    from netslim.training.launched import place

    recipe = step.step(
        kind, options.model, options.data, _stage(options), overrides, settings=settings(options)
    )
    with going_on_by(options.typed, step.folder_of(options.out)):
        found = step.carry_out(
            recipe, options.out, command=options.typed, changed_ok=options.changed_ok
        )
    if place().rank:
        return 0
    if options.json:
        print_json({**found, "network": options.out})
        return 0
    print(f"trained for {many(len(found['curves']['epoch']), 'epoch')} in {found['seconds']:.1f} s")
    print(f"network: {options.out}")
    return 0


def _stage(options: argparse.Namespace) -> dict[str, Any]:
    if options.lr_factor is not None and not options.milestones:
        raise RecipeError("--lr-factor: the rate falls at --milestones; give them too")
    stage = training(options)
    if options.milestones:
        factor = options.lr_factor
        if factor is None:
            factor = 0.1
        milestones = options.milestones
        stage["schedule"] = {"name": "multistep", "milestones": milestones, "factor": factor}
    if options.keep is not None:
        stage["keep"] = options.keep
    return stage
