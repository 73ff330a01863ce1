"""`prune`: channels cut out of a network, from checkpoint to checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netslim.cli.common import add_free, add_json, check_sizes, print_json, told_by_files
from netslim.cli.cut_flags import (
    add_choice,
    add_compensation,
    add_latency,
    add_latency_check,
    add_limits,
    add_max_drop,
    add_options,
    flag,
    given,
    latency,
    max_drop,
    typed,
)
from netslim.cli.flags import DATA, MODELS, add_file, add_network, add_surroundings, settings
from netslim.cli.parser import Parser
from netslim.errors import RecipeError
from netslim.selection.options import Budget, Compensation, Limits, Scoring, declared
from netslim.surgery.compensation.ways import BEST

if TYPE_CHECKING:
    from netslim.methods.sensitivity_result import Sensitivity
    from netslim.training.commands.step import Pruned

_PRUNE = """\
Choose channels, cut them out of a network, prove the cut, and write the smaller network, with its
plan beside it as .plan.json. Say how much goes by a share of the whole, or name layers (`netslim
inspect` shows their names): --layers with --counts or --shares, in any order.
"""

_EXAMPLES = """\
  netslim prune vgg.safetensors --input 3 32 32 --cut-channels 0.7 --out small.safetensors
  netslim prune vgg.safetensors --data torchvision:CIFAR10 --cut-macs 0.5 --criterion taylor \\
      --out small.safetensors
  netslim prune vgg.safetensors --input 3 32 32 --by greedy --out small.safetensors \\
      --layers features.0 features.24 --counts 32 256
  netslim prune soft.safetensors --input 3 32 32 --by zeros --out small.safetensors
"""

_AUTO = {
    "criterion": "l1 with --layers; obs with --data; else bn_scale for --cut-channels alone, or "
    "obs on noise (l2 for a network without batch-norm statistics)",
    "allocation": "global; without --criterion, cost with obs, and uniform with l2",
    "fold": f"{BEST} with criterion obs by itself, unless --recalibrate is given, else none; to "
    "say one needs --data",
    "recalibrate": "as many as --batches with criterion obs by itself, unless --fold is given, "
    "else 0",
}
_BY = ("scores", "greedy", "zeros", "clusters", "mask")
_PLAIN = (
    "allocation",
    "batches",
    "mode",
    "free_outputs",
)  # options of the stage, typed as they stand there
_WAYS = ("allocation", *(name for name in declared(Scoring) if name != "criterion"))
_ALL = (*_PLAIN, *declared(Scoring), *declared(Limits), "limits", *declared(Compensation))
_UNUSED = {
    "greedy": ("allocation", "blocks"),
    "zeros": (*_WAYS, "blocks"),
    "clusters": tuple(name for name in _ALL if name != "recalibrate"),
    "mask": _ALL,
}


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_prune, about=_PRUNE, more=MODELS + DATA, examples=_EXAMPLES, dotted=True)
    add_network(parser, data=False)
    add_file(parser)
    example = parser.add_argument_group("what the network takes (one of the two at most)")
    example.add_argument(
        "--input",
        metavar="N",
        type=int,
        nargs="+",
        help="shape of one example, such as 3 32 32 (default: the images that the network's file "
        "was trained on)",
    )
    example.add_argument("--data", metavar="DATA", help="a data set: better scores, and accuracies")
    example.add_argument(
        "--limit-images",
        metavar="N",
        type=int,
        help="with --data: look at N validation images before and after the cut; 0 leaves that out "
        "(default: 1000)",
    )
    _amounts(parser.add_argument_group("how much goes"))
    add_choice(parser.add_argument_group("which channels"), _AUTO)
    _limits(parser.add_argument_group("limits"))
    after = parser.add_argument_group("the cut")
    add_compensation(after, _AUTO)
    after.add_argument(
        "--mask",
        action="store_const",
        const="mask",
        dest="mode",
        help="silence the channels and cut nothing; --by mask cuts them later",
    )
    add_surroundings(parser)
    add_json(parser, "costs before and after, the proof, accuracies, and the files")


def _amounts(group: Any) -> None:
    add_options(group, Budget)
    add_latency(group, "budgets of latency")
    add_latency_check(group, "budgets of latency")
    group.add_argument(
        "--layers", metavar="NAME", nargs="+", default=[], help="layers by name or pattern"
    )
    group.add_argument(
        "--counts",
        metavar="N",
        type=int,
        nargs="+",
        default=[],
        help="channels of each of --layers",
    )
    group.add_argument(
        "--shares", metavar="S", type=float, nargs="+", default=[], help="or shares of each of them"
    )
    group.add_argument(
        "--by",
        choices=_BY,
        default="scores",
        help="greedy: --layers one after the other, where kernels that read what went before are "
        "left out of a layer's scores; or instead of an amount, zeros: what soft_filter training "
        "left at zero, clusters: what centripetal training drew together (merged), mask: what "
        "--mask silenced (default: scores)",
    )


def _limits(group: Any) -> None:
    add_limits(group)
    add_free(group, "output")
    group.add_argument(
        "--limits",
        metavar="FILE",
        type=Path,
        help="instead of --max-cut, of each layer what this sensitivity.json allows",
    )
    add_max_drop(group, "what one layer alone may cost by --limits")


# ---------------------------------------------------------------- from what was typed to a stage


def _prune(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training.commands import step

    stage = _what_goes(options, overrides)
    _check_input(options)
    name, around = options.data or "digits", settings(options)
    look = options.limit_images
    if look is None:
        look = step.LOOK
    if options.by == "mask":
        recipe = step.step("measure", options.model, name, {}, overrides, settings=around)
        done = step.unmask(recipe, options.out, options.input, look)
    else:
        found = _limited(options, stage)
        recipe = step.step("prune", options.model, name, stage, overrides, settings=around)
        done = step.prune(recipe, options.out, options.input, found, look)
    if options.json:
        print_json(_data(done, options.out, options.say))
    else:
        _tell(done, options.out, options.say)
    return 0


def _limited(options: argparse.Namespace, stage: dict[str, Any]) -> Sensitivity | None:
    """Put what --limits and --max-drop ask for into a prune stage; from what they are taken."""
    drop = max_drop(options)
    if (options.limits is None) != (drop is None):
        raise RecipeError("--limits FILE and --max-drop POINTS belong together: give both")
    if drop is None:
        return None
    if options.max_cut is not None:
        raise RecipeError(
            "--max-cut and --limits both say what may go of a layer: give one of them"
        )
    from netslim.methods.sensitivity_result import Sensitivity

    found = Sensitivity.load(options.limits)
    if found.unit == "share":
        drop /= 100
    stage["max_cut"] = found.limits(drop)
    return found


def _check_input(options: argparse.Namespace) -> None:
    """One of the two is given, or told by the network's file; and it makes sense."""
    if options.data is None and options.input is None:
        options.input = told_by_files(options)
    if (options.data is None) == (options.input is None):
        raise RecipeError(
            "say what the network takes: the shape of one example, such as --input 3 32 32, or a "
            "data set by --data"
        )
    look = options.limit_images
    if look is not None and options.data is None:
        raise RecipeError("--limit-images is of --data, which is not given: leave it out")
    if look is not None and look < 0:
        raise RecipeError(f"--limit-images {look}: give 0 or more images of --data to look at")
    if options.input is not None:
        check_sizes(options.input)


def _what_goes(options: argparse.Namespace, overrides: Mapping[str, str]) -> dict[str, Any]:
    """The prune stage."""
    budget, named = given(options, Budget), _named(options)
    asked = [*budget, *(key for key in overrides if key.startswith("budget."))]
    _check_by(options, bool(named), bool(asked))
    timed = any("latency" in key for key in asked)
    return {
        "by": options.by,
        "budget": budget,
        "latency": latency(options, timed, "--cut-latency or --max-latency-ms: give one of these"),
        "per_group": named,
        **typed(options, _PLAIN),
        **given(options, Scoring, Limits, Compensation),
    }


def _check_by(options: argparse.Namespace, named: bool, asked: bool) -> None:
    by = options.by
    if by in ("zeros", "clusters", "mask") and (named or asked):
        raise RecipeError(f"--by {by} finds out itself what goes: leave amounts and --layers out")
    unused = [key for key in _UNUSED.get(by, ()) if getattr(options, key) is not None]
    if unused:
        raise RecipeError(f"{flag(unused[0])} means nothing with --by {by}: leave it out")
    if by == "scores" and not (named or asked):
        raise RecipeError(
            "say how much goes: for instance --cut-channels 0.5, or --layers NAME --counts 8"
        )
    if by == "greedy" and not named:
        raise RecipeError(
            "--by greedy goes from layer to layer: name --layers, with --counts or --shares"
        )


def _named(options: argparse.Namespace) -> dict[str, int | float]:
    layers, amounts = options.layers, options.counts or options.shares
    if len(layers) != len(amounts) or (options.counts and options.shares):
        raise RecipeError(
            f"--layers names {len(layers)}, --counts {len(options.counts)} and --shares "
            f"{len(options.shares)}: give as many --counts as --layers, or as many --shares"
        )
    twice = next((name for name in layers if layers.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"--layers names {twice!r} twice: give it once, with all that goes of it")
    return dict(zip(layers, amounts, strict=True))


def _data(done: Pruned, out: Path, say: Callable[[str], str]) -> dict[str, Any]:
    """The keys are those that `results.json` has of networks and cuts."""
    from netslim.training.stages.outcome import widths

    before, after = asdict(done.before), asdict(done.after)
    if done.accuracies is not None:
        before["accuracy"], after["accuracy"] = done.accuracies
    check, why = done.cut.check, done.cut.plan.why
    return {
        "before": before,
        "after": after,
        "images": done.images,
        "deviation": check and check.deviation,
        "widths": widths(done.cut.graph.groups, done.cut.plan),
        **({"latency": dict(why.latency)} if why and why.latency else {}),
        "notes": [say(text) for text in (*done.cut.notes, *done.notices)],
        "warnings": [say(text) for text in done.warnings],
        "plan": done.plan_file,
        "network": out,
    }


def _tell(done: Pruned, out: Path, say: Callable[[str], str]) -> None:
    from netslim.report.numbers import percent, signed

    plan, check = done.cut.plan, done.cut.check
    print(say(plan.explain()))
    for what in ("params", "macs"):
        before, after = getattr(done.before, what), getattr(done.after, what)
        print(f"{what}: {before:,} -> {after:,} ({after / before - 1:+z.1%})")
    if done.accuracies is not None:
        was, now = done.accuracies
        print(
            f"validation accuracy: {percent(was)} -> {percent(now)} "
            f"({signed(100 * (now - was))} points, {done.images:,} images)"
        )
    cut = plan.groups or plan.dropped
    if cut and check is not None and check.deviation is not None:
        print(f"verified: the outputs deviate by no more than {check.deviation:.1e} of the largest")
    for notice in (*done.cut.notes, *done.notices):
        print(f"note: {say(notice)}")
    for warning in done.warnings:
        print(f"warning: {say(warning)}", file=sys.stderr)
    print(f"plan: {done.plan_file}\nnetwork: {out}")
