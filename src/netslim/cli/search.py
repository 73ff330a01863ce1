"""`search`: the smallest network within an accuracy drop."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from netslim.cli.common import add, best_with_data
from netslim.cli.steps import _MODELS, _network, _settings, _surroundings
from netslim.errors import RecipeError

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
    _MODELS
    + """
Use the --validation and --seed that MODEL was trained with: it must not have seen the images that
decide.

The given network is also trained as the candidates are, uncut, and shown beside them: where that
alone raises its accuracy, a part of what the cuts lose is hidden. --reference trained counts the
drop from there.

Any option of a recipe goes by its dotted name: --optimizer.*, --schedule.*, --distill.*, --data.*,
--trainer.*, and --stages.prune.OPTION, --stages.recover.OPTION:
  netslim search vgg.safetensors --data torchvision:CIFAR10 --max-drop 0.5 --out small
  netslim search vgg.safetensors --data torchvision:CIFAR10 --max-drop 1 --over params --out small \\
      --augment 4 --epochs 4 --lr 0.02 --teacher vgg.safetensors --round-to 8
"""
)

_OF_CUT = (
    "criterion", "allocation", "batches", "shortcuts", "max_cut", "min_channels", "round_to", "protect", "fold",
    "recalibrate",
)  # fmt: skip


def register(commands: Any) -> None:
    """Add the command."""
    parser = add(
        commands,
        "search",
        "find the smallest network within an accuracy drop",
        _search,
        description=_SEARCH,
        epilog=_MORE,
        dotted=True,
    )
    _network(parser)
    parser.add_argument("--data", metavar="DATA", required=True, help="the data set")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the folder of the search"
    )
    what = parser.add_argument_group("what is looked for")
    what.add_argument(
        "--max-drop",
        metavar="POINTS",
        type=float,
        default=0.5,
        help="percentage points of validation accuracy that may be lost (default: 0.5)",
    )
    what.add_argument(
        "--over",
        choices=["macs", "params", "channels", "activations", "latency"],
        default="macs",
        help="what is cut, a share of it (default: macs)",
    )
    what.add_argument(
        "--latency-table",
        metavar="FILE",
        help="for --over latency: measured before (default: it is measured here)",
    )
    what.add_argument(
        "--backend",
        choices=["eager", "compile", "onnxruntime"],
        help="for --over latency: what the network will run with (default: eager)",
    )
    what.add_argument(
        "--tolerance",
        metavar="SHARE",
        type=float,
        default=0.02,
        help="the share is found to so much (default: 0.02)",
    )
    what.add_argument(
        "--tries",
        metavar="N",
        type=int,
        default=8,
        help="most candidates that are made (default: 8)",
    )
    what.add_argument(
        "--reference",
        choices=["given", "trained"],
        default="given",
        help="count the drop from MODEL as it is, or trained as the candidates are (default: "
        "given)",
    )
    _training(parser.add_argument_group("training of each candidate"))
    _cut(parser.add_argument_group("the cut, as for prune"))
    _surroundings(parser)


def _training(how: Any) -> None:
    how.add_argument("--epochs", metavar="N", type=int, default=2, help="default: 2; 0 for none")
    how.add_argument(
        "--lr", metavar="RATE", type=float, default=0.01, help="first learning rate (default: 0.01)"
    )
    how.add_argument(
        "--momentum", metavar="M", type=float, help="default: 0.9, with Nesterov's correction"
    )
    how.add_argument("--weight-decay", metavar="W", type=float, help="default: 1e-4")
    how.add_argument(
        "--augment",
        metavar="PAD",
        type=int,
        help="mirror images, and crop them after padding by PAD",
    )
    how.add_argument(
        "--validation",
        metavar="SHARE",
        type=float,
        help="share of training images that is set apart (default: 0.1)",
    )
    how.add_argument(
        "--teacher", metavar="MODEL", help="learn from this network too, beside the labels"
    )


def _cut(how: Any) -> None:
    how.add_argument(
        "--criterion", metavar="NAME", help="what makes a channel important (default: obs)"
    )
    how.add_argument(
        "--allocation",
        choices=["global", "uniform", "isomorphic", "cost", "knapsack"],
        help="how the cut is spread over layers (default: cost, or global with a --criterion)",
    )
    how.add_argument(
        "--batches", metavar="N", type=int, help="of --data, for criteria that look (default: 10)"
    )
    how.add_argument(
        "--shortcuts", choices=["include", "avoid"], help="avoid: leave what several layers add up"
    )
    how.add_argument("--max-cut", metavar="SHARE", type=float, help="most that goes of one layer")
    how.add_argument(
        "--min-channels", metavar="N", type=int, help="fewest that stay in a layer (default: 1)"
    )
    how.add_argument("--round-to", metavar="N", type=int, help="what stays is a multiple of N")
    how.add_argument(
        "--protect",
        metavar="NAME",
        nargs="+",
        help="layers that are left alone, by name or pattern",
    )
    how.add_argument(
        "--fold",
        choices=["constant", "linear", "sequential", "none"],
        help="what removed channels emit moves behind them (default: linear, or none with a "
        "--criterion)",
    )
    how.add_argument(
        "--recalibrate",
        metavar="N",
        type=int,
        help="take batch-norm statistics anew from N batches (default: as --batches, or 0 with "
        "a --criterion)",
    )


def _search(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training.commands import search as searching

    if options.epochs < 0:
        raise RecipeError(f"--epochs {options.epochs}: 0 or more")
    over = options.over
    aim = searching.SearchOptions(
        over, options.max_drop, options.tolerance, options.tries, options.reference
    )
    recipe = searching.template(
        options.model,
        options.data,
        over,
        {"latency": _latency(options), **_choice(options)},
        _recovery(options),
        overrides,
        settings=_settings(options),
    )
    try:
        found = searching.carry_out(recipe, aim, options.out, command=options.typed)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"what is finished is kept in {options.out}; go on with: {options.typed}"
        ) from None
    _show(found, options.out)
    return 0 if found["best"] is not None else 1


def _choice(options: argparse.Namespace) -> dict[str, Any]:
    given = {key: value for key in _OF_CUT if (value := getattr(options, key)) is not None}
    chosen = {**(best_with_data(options.batches) if options.criterion is None else {}), **given}
    return chosen | ({"fold": None} if options.fold == "none" else {})


def _latency(options: argparse.Namespace) -> dict[str, str] | None:
    found = {"table": options.latency_table, "backend": options.backend}
    found = {key: value for key, value in found.items() if value is not None}
    if found and options.over != "latency":
        raise RecipeError("--latency-table and --backend belong to --over latency")
    if len(found) == 2:
        raise RecipeError(
            "--latency-table says itself what the network runs with: leave --backend out"
        )
    return found or None


def _recovery(options: argparse.Namespace) -> dict[str, Any]:
    teacher, optimizer = options.teacher, {"lr": options.lr}
    if teacher is not None and ":" not in teacher and not teacher.endswith(".safetensors"):
        raise RecipeError(
            f"--teacher {teacher}: give a .safetensors file, or a network by name such as zoo:vgg16"
        )
    optimizer |= {
        key: value
        for key in ("momentum", "weight_decay")
        if (value := getattr(options, key)) is not None
    }
    return {
        "epochs": options.epochs,
        "optimizer": optimizer,
        "schedule": {"name": "cosine"},
        "distill": {"teacher": teacher} if teacher else None,
    }


def _show(found: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    from netslim.report.search_page import table, tests

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(found))
    said = [found["verdict"], tests(found), *(f"note: {text}" for text in found["notes"])]
    said += [f"network: {out / 'best.safetensors'}"] if found["best"] is not None else []
    for text in [*filter(None, said), f"report: {out / 'report.html'}"]:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
