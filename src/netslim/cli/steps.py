"""`train`, `finetune`, `prune`, `evaluate`: one step of the way each, from checkpoint to
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from netslim.cli.common import add, best_with_data
from netslim.errors import RecipeError
from netslim.selection.criteria.registry import CRITERIA, reads_data
from netslim.selection.options import Normalisation, Over, Reduction

if TYPE_CHECKING:
    from netslim.methods.sensitivity_result import Sensitivity
    from netslim.training.commands.step import Pruned

_TRAIN = """\
Train a network once and write it to a file. With --sparsity.method it is trained towards a cut.
The test images are not looked at; that is what `netslim evaluate` is for. Killed at any time and
started again with the same command, it goes on from the last finished epoch. What it needs for
that lies beside FILE in a folder with the suffix .run, with a row for each epoch in metrics.csv.
"""

_FINETUNE = """\
Train a network on after a cut: as `netslim train`, but by default at a constant low rate. The
network that was cut can teach it. What `prune --mask` silenced is held at zero.
"""

_PRUNE = """\
Choose channels, cut them out of a network, prove the cut, and write the smaller network, with its
plan beside it as .plan.json. Say how much goes by a share of the whole, or name layers (`netslim
inspect` shows their names): --layers with --counts or --shares, in any order.
"""

_EVALUATE = """\
Look at the test images with a network as it is: accuracy, loss, parameters, multiply-accumulates,
size. Nothing is trained and nothing is written.
"""

_MODELS = """\
MODEL is a .safetensors file written by netslim, or zoo:NAME, torchvision:NAME, timm:NAME or
package.module:factory, whose options follow as --model.OPTION VALUE.
DATA is digits, torchvision:CIFAR10 (CIFAR100, SVHN, MNIST, ...), folder:PATH or hf:PATH.
"""

_TRAINING_MORE = (
    _MODELS
    + """
Any option of a recipe goes by its dotted name: --optimizer.*, --schedule.*, --sparsity.*,
--gradual.* (cut in steps on the way), --distill.*, --data.*, --trainer.*, and what is left of the
stage by --stages.COMMAND.OPTION:
"""
)

_TRAIN_MORE = (
    _TRAINING_MORE
    + """\
  netslim train zoo:vgg16 --data torchvision:CIFAR10 --out vgg.safetensors --augment 4 \\
      --milestones 0.5 0.75 --sparsity.method network_slimming --sparsity.strength 1e-4
  netslim train vgg.safetensors --data torchvision:CIFAR10 --out soft.safetensors --augment 4 \\
      --epochs 50 --lr 0.001 --sparsity.method soft_filter --sparsity.rate 0.125
  netslim train vgg.safetensors --data torchvision:CIFAR10 --out small.safetensors --augment 4 \\
      --lr 0.01 --gradual.budget.cut_macs 0.5 --gradual.steps 5 --gradual.schedule cubic
  netslim train zoo:resnet56 --data hf:cifar10 --out drawn.safetensors --stages.train.clip 5 \\
      --sparsity.method centripetal --sparsity.target 0.625
"""
)

_FINETUNE_MORE = (
    _TRAINING_MORE
    + """\
  netslim finetune small.safetensors --data torchvision:CIFAR10 --out tuned.safetensors \\
      --augment 4 --epochs 20 --lr 0.001 --teacher vgg.safetensors --distill.temperature 2
"""
)

_PRUNE_MORE = (
    _MODELS
    + """
  netslim prune vgg.safetensors --input 3 32 32 --cut-channels 0.7 --out small.safetensors
  netslim prune vgg.safetensors --data torchvision:CIFAR10 --cut-macs 0.5 --criterion taylor \\
      --out small.safetensors
  netslim prune vgg.safetensors --input 3 32 32 --order greedy --out small.safetensors \\
      --layers features.0 features.24 --counts 32 256
  netslim prune soft.safetensors --input 3 32 32 --by zeros --out small.safetensors
"""
)

_BUDGET = {
    "cut_channels": "share of all channels",
    "cut_macs": "share of the multiply-accumulates",
    "cut_params": "share of the parameters",
    "cut_activations": "share of what layers put out",
    "cut_peak_memory": "share of the memory that a forward pass needs at once, parameters aside",
    "cut_latency": "share of the milliseconds, by a table that is measured here or read from "
    "--latency-table",
    "max_macs": "most multiply-accumulates for one example",
    "max_params": "most parameters",
    "max_activation_bytes": "most bytes that layers put out for one example",
    "max_peak_bytes": "most bytes that one example needs at once, parameters aside",
    "max_latency_ms": "most milliseconds",
}
_PASSED = (
    "allocation", "shortcuts", "max_cut", "min_channels", "round_to", "protect", "lead", "batches", "fold",
    "recalibrate", "mode", "reduction", "over", "normalize",
)  # fmt: skip

_CHOICE = (
    "criterion", "allocation", "lead", "batches", "shortcuts", "max_cut", "min_channels", "round_to", "protect", "fold",
    "mode", "reduction", "over", "normalize", "limits",
)  # fmt: skip
_UNUSED = {
    "clusters": _CHOICE,
    "mask": (*_CHOICE, "recalibrate"),
    "zeros": ("allocation", "lead", "reduction", "over", "normalize"),
}


def register(commands: Any) -> None:
    """Add the commands."""
    train = add(
        commands,
        "train",
        "train a network once",
        _train,
        description=_TRAIN,
        epilog=_TRAIN_MORE,
        dotted=True,
    )
    _training(train, epochs=160, rate=0.1)
    tune = add(
        commands,
        "finetune",
        "train a network on after a cut",
        _finetune,
        description=_FINETUNE,
        epilog=_FINETUNE_MORE,
        dotted=True,
    )
    _training(tune, epochs=40, rate=0.001)
    _pruning(
        add(
            commands,
            "prune",
            "cut channels out of a network",
            _prune,
            description=_PRUNE,
            epilog=_PRUNE_MORE,
            dotted=True,
        )
    )
    look = add(
        commands,
        "evaluate",
        "look at the test images",
        _evaluate,
        description=_EVALUATE,
        epilog=_MODELS,
        dotted=True,
    )
    _network(look)
    look.add_argument("--data", metavar="DATA", required=True, help="the data set")
    look.add_argument(
        "--split",
        choices=["test", "validation"],
        default="test",
        help="which images (default: test)",
    )
    look.add_argument(
        "--validation",
        metavar="SHARE",
        type=float,
        help="share of training images that was set apart, as for train (default: 0.1)",
    )
    look.add_argument(
        "--ten-crop",
        metavar="PIXELS",
        type=int,
        help="mean of the answers to ten squares of each image: corners and centre, also mirrored",
    )
    look.add_argument("--json", action="store_true", help="machine-readable, shares from 0 to 1")
    _surroundings(look)


def _network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="which network")


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="the .safetensors file to write; it must not exist yet",
    )


def _surroundings(parser: argparse.ArgumentParser) -> None:
    more = parser.add_argument_group("surroundings")
    more.add_argument(
        "--data-root",
        metavar="DIR",
        help="the folder that holds data sets (default: $NETSLIM_DATA, else data)",
    )
    more.add_argument(
        "--batch-size", metavar="N", type=int, help="images in a batch (default: 128)"
    )
    more.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of everything that is random (default: 0)"
    )
    more.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], help="where to compute (default: auto)"
    )


def _training(parser: argparse.ArgumentParser, epochs: int, rate: float) -> None:
    _network(parser)
    parser.add_argument("--data", metavar="DATA", required=True, help="the data set")
    _out(parser)
    how = parser.add_argument_group("training")
    how.add_argument("--epochs", metavar="N", type=int, default=epochs, help=f"default: {epochs}")
    how.add_argument(
        "--lr", metavar="RATE", type=float, default=rate, help=f"learning rate (default: {rate})"
    )
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
        "--momentum", metavar="M", type=float, help="default: 0.9, with Nesterov's correction"
    )
    how.add_argument("--weight-decay", metavar="W", type=float, help="default: 1e-4")
    how.add_argument(
        "--augment",
        metavar="PAD",
        type=int,
        help="mirror images, and crop them after padding by PAD pixels",
    )
    how.add_argument(
        "--validation",
        metavar="SHARE",
        type=float,
        help="share of the training images that is set apart, or their number (default: 0.1)",
    )
    how.add_argument(
        "--keep",
        choices=["last", "best"],
        help="weights of the last epoch, or of the best by validation (default: last)",
    )
    how.add_argument(
        "--teacher", metavar="MODEL", help="learn from this network too, beside the labels"
    )
    _surroundings(parser)


def _pruning(parser: argparse.ArgumentParser) -> None:
    _network(parser)
    _out(parser)
    example = parser.add_argument_group("what the network takes (one of the two)")
    example.add_argument(
        "--input", metavar="N", type=int, nargs="+", help="shape of one example, such as 3 32 32"
    )
    example.add_argument(
        "--data", metavar="DATA", help="a data set, for criteria that look at images"
    )
    _amounts(parser.add_argument_group("how much goes"))
    _choice(parser.add_argument_group("which channels"))
    _limits(parser.add_argument_group("limits"))
    after = parser.add_argument_group("the cut")
    after.add_argument(
        "--fold",
        choices=["constant", "linear", "sequential", "none"],
        help="constant: move into biases what removed channels still emit; linear: fit it by "
        "what those that stay emit, by least squares; sequential: that layer after layer; all "
        "need --data (default: linear with criterion obs by itself, else none)",
    )
    after.add_argument(
        "--recalibrate",
        metavar="N",
        type=int,
        help="take batch-norm statistics anew from N batches of --data (default: as many as "
        "--batches with criterion obs by itself, else 0)",
    )
    after.add_argument(
        "--mask",
        action="store_const",
        const="mask",
        dest="mode",
        help="silence the channels and cut nothing; --by mask cuts them later",
    )
    _surroundings(parser)


def _amounts(group: Any) -> None:
    for name, text in _BUDGET.items():
        relative = name.startswith("cut_")
        number = float if relative or name == "max_latency_ms" else int
        group.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="SHARE" if relative else "N",
            type=number,
            help=text,
        )
    group.add_argument(
        "--latency-table",
        metavar="FILE",
        help="for budgets of latency: a table measured before, here or elsewhere",
    )
    group.add_argument(
        "--backend",
        choices=["eager", "compile", "onnxruntime"],
        help="for budgets of latency: what the network will run with (default: eager)",
    )
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
        choices=["scores", "zeros", "clusters", "mask"],
        default="scores",
        help="instead of an amount: what soft_filter training left at zero, what centripetal "
        "training drew together (merged), or what --mask silenced (default: scores)",
    )


def _choice(group: Any) -> None:
    group.add_argument(
        "--criterion",
        metavar="NAME",
        help=f"of the weights: {_criteria(data=False)}; of --data too: {_criteria(data=True)}; "
        "or your own as package.module:function (default: bn_scale for --cut-channels, l1 with "
        "--layers; for costs obs with --data, else l2)",
    )
    group.add_argument(
        "--order",
        choices=["independent", "greedy"],
        default="independent",
        help="greedy: kernels that read what went before are left out of a layer's scores; "
        "needs --layers",
    )
    group.add_argument(
        "--allocation",
        choices=["global", "uniform", "isomorphic", "cost", "knapsack"],
        help="how the cut is spread over layers: by one threshold, the same share of every "
        "layer, the same share of layers that are built alike, by score lost for cost saved, "
        "or that at its exact best, for small networks (default: global; without --criterion, "
        "for costs, cost with --data and else uniform)",
    )
    group.add_argument(
        "--lead",
        choices=["mean", "pacesetter"],
        help="what scores layers that are added up: all of them, or the projection or first of "
        "them (default: mean)",
    )
    group.add_argument(
        "--reduction",
        choices=get_args(Reduction),
        help="how the scores of such layers are put together; product: the geometric mean "
        "(default: mean)",
    )
    group.add_argument(
        "--over",
        choices=get_args(Over),
        help="layers that are looked at: those that make the channels, or also what scales and "
        "reads them (default: producers)",
    )
    group.add_argument(
        "--normalize",
        choices=get_args(Normalisation),
        help="what the scores of each layer are set against before layers are compared "
        "(default: nothing)",
    )
    group.add_argument(
        "--batches", metavar="N", type=int, help="of --data, for criteria that look (default: 10)"
    )


def _criteria(data: bool) -> str:
    return ", ".join(name for name in CRITERIA if reads_data(name) is data)


def _limits(group: Any) -> None:
    group.add_argument(
        "--shortcuts",
        choices=["include", "avoid"],
        help="avoid: leave alone what several layers add up",
    )
    group.add_argument("--max-cut", metavar="SHARE", type=float, help="most that goes of one layer")
    group.add_argument(
        "--limits",
        metavar="FILE",
        type=Path,
        help="instead, of each layer what this sensitivity.json allows",
    )
    group.add_argument(
        "--max-drop", metavar="POINTS", type=float, help="what one layer alone may cost by --limits"
    )
    group.add_argument(
        "--min-channels", metavar="N", type=int, help="fewest that stay in a layer (default: 1)"
    )
    group.add_argument("--round-to", metavar="N", type=int, help="what stays is a multiple of N")
    group.add_argument(
        "--protect",
        metavar="NAME",
        nargs="+",
        help="layers that are left alone, by name or pattern",
    )


# ---------------------------------------------------------------- train, finetune


def _train(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    return _fit("train", options, overrides)


def _finetune(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    return _fit("finetune", options, overrides)


def _fit(kind: str, options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training.commands import step as single

    recipe = single.step(
        kind, options.model, options.data, _stage(options), overrides, settings=_settings(options)
    )
    try:
        found = single.carry_out(recipe, options.out, command=options.typed)
    except KeyboardInterrupt:
        folder = single.folder_of(options.out)
        raise KeyboardInterrupt(
            f"what is finished is kept in {folder}; go on with: {options.typed}"
        ) from None
    print(f"trained for {len(found['curves']['epoch'])} epochs in {found['seconds']:.1f} s")
    print(f"network: {options.out}")
    return 0


def _stage(options: argparse.Namespace) -> dict[str, Any]:
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
    if options.lr_factor is not None and not options.milestones:
        raise RecipeError("--lr-factor: the rate falls at --milestones; give them too")
    schedule = {
        "name": "multistep",
        "milestones": options.milestones,
        "factor": options.lr_factor or 0.1,
    }
    return {
        "epochs": options.epochs,
        "optimizer": optimizer,
        "schedule": schedule if options.milestones else None,
        "keep": options.keep,
        "distill": {"teacher": teacher} if teacher else None,
    }


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    pad = getattr(options, "augment", None)
    data = {
        "root": options.data_root,
        "batch_size": options.batch_size,
        "validation": getattr(options, "validation", None),
        "augment": None if pad is None else {"pad": pad, "flip": True},
        "download": True if str(options.data).startswith("torchvision:") else None,
    }
    trainer = {} if options.device is None else {"device": options.device}
    return {
        "seed": options.seed,
        "data": {key: value for key, value in data.items() if value is not None},
        "trainer": trainer,
    }


# ---------------------------------------------------------------- prune


def _prune(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training.commands import step as single

    _check_input(options)
    stage = _what_goes(options, overrides)
    name, settings = options.data or "digits", _settings(options)
    if options.by == "mask":
        recipe = single.step("measure", options.model, name, {}, overrides, settings=settings)
        done = single.unmask(recipe, options.out, options.input)
    else:
        found = _limited(options, stage)
        recipe = single.step("prune", options.model, name, stage, overrides, settings=settings)
        done = single.prune(recipe, options.out, options.input, found)
    _tell(done, options.out)
    return 0


def _limited(options: argparse.Namespace, stage: dict[str, Any]) -> Sensitivity | None:
    """Put the limits that --limits and --max-drop ask for into a prune stage; from what they are."""
    if (options.limits is None) != (options.max_drop is None):
        raise RecipeError("--limits FILE and --max-drop POINTS belong together: give both")
    if options.limits is None:
        return None
    if options.max_cut is not None:
        raise RecipeError(
            "--max-cut and --limits both say what may go of a layer: give one of them"
        )
    if options.max_drop < 0:
        raise RecipeError(f"--max-drop {options.max_drop:g}: give 0 or more points")
    from netslim.methods.sensitivity_result import Sensitivity

    found = Sensitivity.load(options.limits)
    stage["max_cut"] = found.limits(
        options.max_drop / 100 if found.unit == "share" else options.max_drop
    )
    return found


def _check_input(options: argparse.Namespace) -> None:
    if (options.data is None) == (options.input is None):
        raise RecipeError(
            "say what the network takes: the shape of one example, such as --input 3 32 32, or "
            "a data set by --data"
        )
    if options.input is not None and min(options.input) < 1:
        raise RecipeError(
            f"--input {' '.join(map(str, options.input))}: every size must be 1 or more"
        )


def _what_goes(options: argparse.Namespace, overrides: Mapping[str, str]) -> dict[str, Any]:
    budget = {key: value for key in _BUDGET if (value := getattr(options, key)) is not None}
    named = _named(options)
    given = named or budget or any(key.startswith("budget.") for key in overrides)
    greedy = options.order == "greedy"
    if options.by != "scores" and (given or greedy):
        raise RecipeError(
            f"--by {options.by} finds out itself what goes: leave amounts, --layers and --order out"
        )
    unused = [key for key in _UNUSED.get(options.by, ()) if getattr(options, key) is not None]
    if unused:
        raise RecipeError(
            f"--{unused[0].replace('_', '-')} means nothing with --by {options.by}: leave it out"
        )
    if options.by == "scores" and not given:
        raise RecipeError(
            "say how much goes: for instance --cut-channels 0.5, or --layers NAME --counts 8"
        )
    if greedy and not named:
        raise RecipeError(
            "--order greedy goes from layer to layer: name --layers, with --counts or --shares"
        )
    passed = {key: value for key in _PASSED if (value := getattr(options, key)) is not None}
    own = (
        {}
        if options.criterion
        else _choice_of_netslim(options, {*budget, *_keys(overrides, "budget")}, named)
    )
    stage = {
        "by": "greedy" if greedy else options.by,
        "criterion": options.criterion,
        "budget": budget,
        "latency": _latency(options, [*budget, *overrides]),
        "per_group": named,
        **own,
        **passed,
    }
    return stage | ({"fold": None} if options.fold == "none" else {})


def _keys(overrides: Mapping[str, str], section: str) -> list[str]:
    return [key.removeprefix(f"{section}.") for key in overrides if key.startswith(f"{section}.")]


def _choice_of_netslim(
    options: argparse.Namespace, budget: Collection[str], named: Mapping[str, Any]
) -> dict[str, Any]:
    """What is taken where no criterion is given: the papers' for channels, and for costs what
    `netslim.slim` takes.
    """
    if named:
        return {"criterion": "l1"}
    if options.by == "zeros":
        return {"criterion": "l2"}
    if options.by != "scores" or not set(budget) - {"cut_channels"}:
        return {"criterion": "bn_scale"}
    if options.data is None:
        return {"criterion": "l2", "allocation": "uniform"}
    best = best_with_data(options.batches)
    return (
        {key: best[key] for key in ("criterion", "allocation")} if options.mode == "mask" else best
    )


def _latency(options: argparse.Namespace, given: Iterable[str]) -> dict[str, str] | None:
    found = {"table": options.latency_table, "backend": options.backend}
    found = {key: value for key, value in found.items() if value is not None}
    if found and not any("latency" in key for key in given):
        raise RecipeError(
            "--latency-table and --backend belong to --cut-latency or --max-latency-ms: give "
            "one of these"
        )
    if len(found) == 2:
        raise RecipeError(
            "--latency-table says itself what the network runs with: leave --backend out"
        )
    return found or None


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


def _tell(done: Pruned, out: Path) -> None:
    plan, check = done.cut.plan, done.cut.check
    print(plan.explain())
    for what in ("params", "macs"):
        before, after = getattr(done.before, what), getattr(done.after, what)
        print(f"{what}: {before:,} -> {after:,} ({after / before - 1:+.1%})")
    if plan.groups and check is not None and check.deviation is not None:
        print(f"verified: the outputs deviate by no more than {check.deviation:.1e} of the largest")
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"plan: {done.plan_file}\nnetwork: {out}")


# ---------------------------------------------------------------- evaluate


def _evaluate(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training.commands import step as single

    recipe = single.step(
        "measure", options.model, options.data, {}, overrides, settings=_settings(options)
    )
    found = single.evaluate(recipe, options.split, options.ten_crop)
    if options.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    crops = "" if options.ten_crop is None else f", ten crops of {options.ten_crop} pixels each"
    top5 = "" if found.top5 is None else f"  top-5 {found.top5:.2%}"
    size = "" if found.size_bytes is None else f"  size {found.size_bytes / 1000:,.1f} kB"
    print(f"{found.images:,} {found.split} images of {options.data}{crops}")
    print(f"top-1 {found.top1:.2%}{top5}  loss {found.loss:.4f}")
    print(f"parameters {found.params:,}  MACs {found.macs:,}{size}")
    return 0
