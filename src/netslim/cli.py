"""The command line: each command is one library call.

Whatever goes wrong on purpose (`NetslimError`) is one line on standard error and exit code 1; Ctrl-C is one line and
130; `--debug` shows the traceback instead. Wrong usage exits with 2, as argparse does.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from netslim.errors import NetslimError, RecipeError

_RUN = """\
Carry out a recipe: train with sparsity, cut, prove the cut, fine-tune, measure, report.

Everything lands in one folder. Killed at any time and started again with the same command, a run goes on from the last
finished epoch and ends with the same numbers; a finished one only shows its results.
"""

_OVERRIDES = """\
any value of the recipe can be overridden by its dotted name (`netslim recipes NAME` shows them):
  netslim run digits --seed 3
  netslim run vgg16-cifar10-small --data.root /data --model.width 0.5
  netslim run digits --stages.sparse.epochs 40 --stages.prune.budget.cut_channels 0.5
  netslim run my-recipe.yaml --trainer.device cpu --out runs/mine
"""

_INSPECT = """\
Run a model once and show its channel graph: the groups of channels that must be cut together, their share of parameters
and multiply-accumulates, and why some stay. The inputs are random numbers, a batch of one; integers and booleans are 1.
"""

_MODELS = """\
MODEL is zoo:NAME, torchvision:NAME, timm:NAME, package.module:factory, or a checkpoint written by netslim;
its options follow as --model.OPTION VALUE:
  netslim inspect zoo:vgg16 --input 3 32 32 --model.width 0.25
  netslim inspect torchvision:resnet18 --input 3 224 224 --json
  netslim inspect torchvision:resnet18 --input 3 224 224 --explain layer3.0.conv2.weight --explain bn1
  netslim inspect mypackage.models:translator --input 32 --input 32 --dtype int64
"""

_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


def main(arguments: Sequence[str] | None = None) -> int:
    """The `netslim` command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        return _dispatch([item for item in given if item != "--debug"])
    except BrokenPipeError:  # the reader of our output, a pager for instance, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (NetslimError, OSError, KeyboardInterrupt) as error:
        if debug:
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        said = "; ".join(["interrupted", *map(str, error.args)]) if interrupted else " ".join(str(error).split())
        print(f"netslim: {said}", file=sys.stderr)
        return 130 if interrupted else 1


def _dispatch(given: list[str]) -> int:
    parser = _parser()
    given, overrides = _split_overrides(given)
    options = parser.parse_args(given)
    command: Callable[[argparse.Namespace, dict[str, str]], int] | None = getattr(options, "command", None)
    if command is None:
        parser.print_help()
        return 2
    if overrides and command not in (_run, _inspect):
        parser.error(f"unrecognized arguments: --{next(iter(overrides))}")
    return command(options, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = _sub(
        None,
        "netslim",
        "Make a convolutional network smaller: sparse training, channel cuts that are proved, reports.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = _sub(commands, "run", "carry out a recipe, from data to report", _run, _RUN, _OVERRIDES)
    run.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe, or a YAML file")
    run.add_argument("--out", metavar="DIR", type=Path, help="the run folder (default: runs/RECIPE)")
    run.add_argument("--seed", metavar="N", help="seed of weights, order and augmentation (default: the recipe's)")

    recipes = _sub(commands, "recipes", "list the shipped recipes and their published figures", _recipes)
    recipes.add_argument("recipe", metavar="NAME", nargs="?", help="show the YAML of this one instead")

    inspect = _sub(commands, "inspect", "show which channels of a model can be cut", _inspect, _INSPECT, _MODELS)
    inspect.add_argument("model", metavar="MODEL", help="which model")
    inspect.add_argument(
        "--input",
        metavar="N",
        type=int,
        nargs="+",
        action="append",
        required=True,
        help="shape of one example, for instance 3 32 32; once for each input of the model, in their order",
    )
    inspect.add_argument(
        "--dtype",
        metavar="TYPE",
        action="append",
        help="type of the inputs, for instance int64 for tokens; once for all, or once for each (default: float32)",
    )
    inspect.add_argument(
        "--explain",
        metavar="NAME",
        action="append",
        default=[],
        help="tell what this layer, tensor or group is coupled to and why it can or cannot be cut; may be repeated",
    )
    inspect.add_argument("--json", action="store_true", help="everything, machine-readable")

    report = _sub(commands, "report", "make report.html of a finished run again", _report)
    report.add_argument("folder", metavar="DIR", type=Path, help="the run folder")
    return parser


def _sub(
    commands: Any, name: str, text: str, command: Any = None, description: str = "", epilog: str = ""
) -> argparse.ArgumentParser:
    """A command's parser, or without `commands` the main one."""
    style: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
        "epilog": epilog,
    }
    if commands is None:
        parser = argparse.ArgumentParser(prog=name, description=text, **style)
    else:
        parser = commands.add_parser(name, help=text, description=description or text, **style)
        parser.set_defaults(command=command)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"netslim {version('netslim')}")
        parser.exit()


def _split_overrides(given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--a.b VALUE` and `--a.b=VALUE` out of the arguments."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    items = iter(given)
    for item in items:
        key, equals, value = item.removeprefix("--").partition("=")
        if not item.startswith("--") or "." not in key:
            rest.append(item)
            continue
        text = value if equals else next(items, None)
        if text is None or (not equals and text.startswith("--")):
            raise RecipeError(f"--{key} needs a value, for example --{key} 1")
        overrides[key] = text
    return rest, overrides


# ---------------------------------------------------------------- commands


def _run(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training import load_recipe

    if options.seed is not None:
        overrides["seed"] = options.seed
    recipe = load_recipe(options.recipe, overrides)
    folder = options.out if options.out is not None else Path("runs") / recipe.name
    command = shlex.join(["netslim", "run", options.recipe, *_as_arguments(overrides), "--out", str(folder)])

    from netslim.training import run

    try:
        results = run(recipe, folder, command=command)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what is finished is kept in {folder}; go on with: {command}") from None
    _show(results, folder)
    return 0


def _as_arguments(overrides: dict[str, str]) -> list[str]:
    return [item for key, value in overrides.items() for item in (f"--{key}", value)]


def _show(results: dict[str, Any], folder: Path) -> None:
    from rich.console import Console

    from netslim.report import table

    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table(results))
    for kind in ("notes", "warnings"):
        for text in results[kind]:
            console.print(f"{kind[:-1]}: {text}", markup=False, highlight=False, soft_wrap=True)
    for name, what in (("results.json", "results"), ("report.html", "report")):
        console.print(f"{what}: {folder / name}", markup=False, highlight=False, soft_wrap=True)


def _recipes(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.training import load_recipe, recipe_text, shipped

    if options.recipe is not None:
        print(recipe_text(options.recipe), end="")
        return 0
    for name in shipped():
        recipe = load_recipe(name)
        print(f"{name}\n    {recipe.title}")
        for row in recipe.published:
            figures = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.items() if key != "label")
            print(f"    published, {row.get('label', '')}: {figures}")
    return 0


def _inspect(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    import netslim
    from netslim import models
    from netslim.training.recipe import read_yaml

    for key in overrides:
        if not key.startswith("model."):
            raise RecipeError(f"--{key}: inspect takes options of the model only, as --model.OPTION VALUE")
    kwargs = {key.removeprefix("model."): read_yaml(value) for key, value in overrides.items()}
    examples = _examples(options.input, options.dtype or ["float32"])
    model = models.build(options.model, **kwargs).eval()
    try:
        graph = netslim.trace(model, examples)
    except netslim.TraceError as error:
        if "does not run on" not in str(error):
            raise
        hint = "--input is the shape of one example without the batch, once for each input; tokens need --dtype int64"
        raise netslim.TraceError(f"{error} ({hint})") from error
    told = {name: graph.explain(name) for name in options.explain}
    if options.json:
        print(json.dumps(graph.to_dict() | ({"explain": told} if told else {}), indent=1))
    else:
        print("\n\n".join(told.values()) if told else graph)
    return 0


def _examples(shapes: list[list[int]], types: list[str]) -> tuple[Any, ...]:
    """One example for each input of a model: random numbers, or ones where they are integers or booleans."""
    import torch

    for shape in shapes:
        if min(shape) < 1:
            raise RecipeError(f"--input {shlex.join(map(str, shape))}: every size must be 1 or more")
    if len(types) not in (1, len(shapes)):
        raise RecipeError(f"--dtype: {len(types)} for {len(shapes)} inputs; give it once, or once for each --input")
    for name in types:
        if name not in _DTYPES:
            raise RecipeError(f"--dtype {name}: choose one of {', '.join(_DTYPES)}")
    generator = torch.Generator().manual_seed(0)
    examples = []
    for shape, name in zip(shapes, types * len(shapes) if len(types) == 1 else types, strict=True):
        dtype = getattr(torch, name)
        values = torch.randn(1, *shape, generator=generator) if dtype.is_floating_point else torch.ones(1, *shape)
        examples.append(values.to(dtype))
    return tuple(examples)


def _report(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim import report

    print(report.write(options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
