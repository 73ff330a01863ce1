"""What commands share: options by dotted name, inputs of a model, how interruptions are told."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netslim._support import refusing
from netslim.cli.parser import UsageError
from netslim.errors import INTERRUPTED, RecipeError

_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


def split_overrides(given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--a.b VALUE` and `--a.b=VALUE` out of the arguments.

    Raises:
        UsageError: one is given twice, or without a value.
    """
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
            raise UsageError(f"--{key} needs a value, for example --{key} 1")
        if key in overrides:
            raise UsageError(f"--{key} is given twice: give it once")
        overrides[key] = text
    return rest, overrides


def as_arguments(overrides: dict[str, str]) -> list[str]:
    """Overrides as they are typed."""
    typed = []
    for key, value in overrides.items():
        typed += [f"--{key}", value]
    return typed


def add_trust(parser: argparse.ArgumentParser) -> None:
    """--trust."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="call whatever constructor a .safetensors file names, also from your own modules",
    )


def add_changed_ok(parser: argparse.ArgumentParser) -> None:
    """--changed-ok."""
    parser.add_argument(
        "--changed-ok",
        action="store_true",
        help="go on, and note it, though the images or the versions of packages are no longer "
        "those that this was begun with",
    )


def add_weights(parser: argparse.ArgumentParser, **more: Any) -> None:
    """--weights; `more` as for `add_argument`."""
    parser.add_argument(
        "--weights",
        metavar="FILE",
        dest="weights_file",
        help="weights for a MODEL by name: a state dict in a .pth or .safetensors file, or what "
        "netslim.save wrote of it",
        **more,
    )


def check_networks(options: argparse.Namespace) -> None:
    """Refuse files and names of networks that are none, before all else that may be wrong.

    Raises:
        NetslimError: as `netslim.models.build`.
    """
    names = list(getattr(options, "models", []))
    if hasattr(options, "model"):
        names.append(options.model)
    teacher, files = getattr(options, "teacher", None) or "", []
    if teacher.endswith(".safetensors"):
        names.append(teacher)
    if ":" in teacher:
        names.append(teacher)
        files.append(options.teacher_weights)
    if not names:
        return
    from netslim.models.building import check_name
    from netslim.models.weights import check_file

    finished = getattr(options, "finished", ())  # endings of files that this command takes, too
    for name in names:
        if not name.endswith(finished):
            check_name(name)
    weights = getattr(options, "weights_file", None) or []
    if isinstance(weights, str):
        weights = [weights]
    for file in filter(None, [*weights, *files]):
        check_file(file)


def weights_option(options: argparse.Namespace, overrides: dict[str, str]) -> dict[str, str]:
    """The dotted options, with what --weights says as one of them."""
    file = getattr(options, "weights_file", None)
    if not isinstance(file, str):  # none, or one for each of several networks
        return overrides
    return {**overrides, "model.weights_file": json.dumps(file)}


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """The options that say what a model takes, where no data set does; `examples` reads them."""
    parser.add_argument(
        "--input",
        metavar="N",
        type=int,
        nargs="+",
        action="append",
        help="shape of one example, for instance 3 32 32; once for each input of the model, in "
        "their order (default: the images that the network's file was trained on)",
    )
    parser.add_argument(
        "--dtype",
        metavar="TYPE",
        action="append",
        help="type of the inputs, for instance int64 for tokens; once for all, or once for "
        "each (default: float32)",
    )


def examples(options: argparse.Namespace, batch: int = 1) -> tuple[Any, ...]:
    """A batch for each input of a model: random numbers, or ones where they are integers or
    booleans.

    Raises:
        RecipeError: a shape or type is impossible, or no shape is given and no file tells one.
    """
    import torch

    shapes, types = options.input or _shapes(options), options.dtype or ["float32"]
    for shape in shapes:
        check_sizes(shape)
    if len(types) not in (1, len(shapes)):
        raise RecipeError(
            f"--dtype: {len(types)} for {len(shapes)} inputs; give it once, or once for each "
            "--input"
        )
    for name in types:
        if name not in _DTYPES:
            raise RecipeError(f"--dtype {name}: choose one of {', '.join(_DTYPES)}")
    generator = torch.Generator().manual_seed(0)
    made = []
    if len(types) == 1:
        types = types * len(shapes)
    for shape, name in zip(shapes, types, strict=True):
        dtype, values = getattr(torch, name), torch.ones((batch, *shape))
        if dtype.is_floating_point:
            values = torch.randn((batch, *shape), generator=generator)
        made.append(values.to(dtype))
    return tuple(made)


def check_sizes(shape: Sequence[int]) -> None:
    """Refuse what --input says where it is no shape.

    Raises:
        RecipeError: a size is below 1.
    """
    if min(shape) < 1:
        raise RecipeError(f"--input {' '.join(map(str, shape))}: every size must be 1 or more")


def _shapes(options: argparse.Namespace) -> list[tuple[int, ...]]:
    """What the networks take, where their files say it."""
    if told := told_by_files(options):
        return [told]
    raise RecipeError(
        "--input is needed: the shape of one example without the batch, for instance --input 3 "
        "224 224"
    )


def told_by_files(options: argparse.Namespace) -> tuple[int, ...] | None:
    """The shape of the images that the networks' files were trained on; None where no file says."""
    from netslim.training.commands.predict import prepared_by

    for name in getattr(options, "models", None) or [options.model]:
        if told := prepared_by(name):
            return (told.channels, *told.size)
    return None


@contextmanager
def going_on_by(command: str, place: Path) -> Iterator[None]:
    """Inside, an interruption says where the work is kept, and by which command it goes on.

    Raises:
        KeyboardInterrupt: which says so.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"what is finished is kept in {place}; go on with: {command}"
        ) from None


def add_json(parser: argparse.ArgumentParser, what: str = "as in the files of results") -> None:
    """--json; `print_json` answers it. `what` is said of the data."""
    parser.add_argument(
        "--json", action="store_true", help=f"print JSON and nothing else, for programs: {what}"
    )


def print_json(found: Any) -> None:
    """What --json asks for."""
    print(json.dumps(found, indent=1, default=str))  # str: of places of files


def show(table: Any, lines: Iterable[str], width: int) -> None:
    """Print a table, and lines below it as they are; where there is no terminal, it is so wide."""
    from rich.console import Console

    if sys.stdout.isatty():
        console = Console()
    else:
        console = Console(width=width)
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def told(error: BaseException) -> tuple[str, int]:
    """What ends a command, in one line, and its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "; ".join(["interrupted", *map(str, error.args)]), INTERRUPTED
    line = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"the disk is full: {error.filename or 'a file'} cannot be written; make room and "
            "repeat the command: what is finished is kept"
        ), 1
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}", 1
    if isinstance(error, UsageError):
        return line, 2
    return line, 1


def note(text: str) -> None:
    """A remark, beside what the command puts out."""
    print(f"note: {text}", file=sys.stderr)


def model_options(overrides: dict[str, str], command: str) -> dict[str, Any]:
    """`--model.OPTION VALUE` as keyword arguments of the model's constructor.

    Raises:
        RecipeError: there are other dotted options.
    """
    from netslim.training.recipe.files import read_yaml

    for key in overrides:
        if not key.startswith("model."):
            raise RecipeError(
                f"--{key}: {command} takes options of the model only, as --model.OPTION VALUE"
            )
    with refusing(RecipeError, "an option of the model is not valid YAML", "correct it"):
        return {key.removeprefix("model."): read_yaml(value) for key, value in overrides.items()}


def add_free(group: Any, kind: str) -> None:
    """--free-output NAME or --free-input NAME, as often as one likes."""
    group.add_argument(
        f"--free-{kind}",
        dest=f"free_{kind}s",
        metavar="NAME",
        action="append",
        help=f"this {kind} may lose channels, by position or name, such as 1 or state.h; may be "
        "repeated",
    )
