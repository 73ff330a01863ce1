"""Flags that several commands have. Those of a cut are made of the classes that declare its
options, so that a new option there is a flag of every command that cuts.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from netslim.cli.common import add_trust, add_weights
from netslim.errors import ArgumentError, RecipeError
from netslim.measure.backends import Backend
from netslim.selection.budget.allocation import ALLOCATIONS
from netslim.selection.criteria.registry import CRITERIA, reads_data
from netslim.selection.options import Compensation, Limits, Scoring, declared
from netslim.training.recipe.schema import assembled, option_types

Options = TypeVar("Options")

MODELS = """\
MODEL is a .safetensors file written by netslim, or zoo:NAME, torchvision:NAME, timm:NAME or
package.module:factory, whose options follow as --model.OPTION VALUE. A file whose network comes
from a module of your own needs --trust. A network that was trained elsewhere goes by its name, with
its weights from a .pth or .safetensors file: MODEL --weights FILE. Such a file does not say how its
images were normalised: say it, by --data.mean and --data.std, wherever there is --data.
"""
DATA = """\
DATA is digits, torchvision:CIFAR10 (CIFAR100, SVHN, MNIST, ...), folder:PATH or hf:PATH.
"""
RUNTIMES = """\
ONNX takes the packages that pip install 'netslim[onnx]' brings, the backend compile a C++ compiler
(on a GPU: Triton).
"""
RATES = ("momentum", "weight_decay")  # of the optimizer, besides the learning rate


# ---------------------------------------------------------------- made of options classes


def flag(name: str) -> str:
    """The flag of an option: ``round_to`` is ``--round-to``."""
    return f"--{name.replace('_', '-')}"


def add_options(
    group: Any,
    kind: type[Any],
    *,
    told: Mapping[str, str] | None = None,
    more: Mapping[str, str] | None = None,
    only: Collection[str] = (),
    but: Collection[str] = (),
) -> None:
    """A flag for each option that a class declares; what is not typed is None.

    Args:
        group: a parser, or a group of one.
        kind: the class, see `netslim.selection.options`.
        told: name -> what is said about its default, where that is not the class's own.
        more: name -> what is said besides its meaning, such as the names that it understands.
        only: names of the options that are taken; none given takes all.
        but: names of options that are left out.
    """
    hints = get_type_hints(kind)
    for name, item in declared(kind).items():
        if (only and name not in only) or name in but:
            continue
        said = [item.metadata["help"]]
        if more and name in more:
            said.append(more[name])
        text = f"{': '.join(said)}{_default((told or {}).get(name, item.default))}"
        how = _value(hints[name], item.metadata["metavar"])
        group.add_argument(flag(name), dest=name, help=text.replace("%", "%%"), **how)


def _default(value: Any) -> str:
    shown = isinstance(value, str | int | float) and value not in ("", False)
    if shown:
        return f" (default: {value})"
    return ""


def _value(hint: Any, metavar: str) -> dict[str, Any]:
    """How a value of this type is typed."""
    kinds: tuple[Any, ...] = (hint,)
    if get_origin(hint) not in (None, Literal):
        kinds = get_args(hint)
    choices: list[Any] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            choices += get_args(kind)
    if choices and not {int, float} & {*kinds}:
        none = ["none"] * (NoneType in kinds)
        return {"choices": [*choices, *none], "type": _word}
    if kinds == (bool,):
        return {"action": "store_const", "const": True}
    if get_origin(hint) not in (None, Literal) and issubclass(_origin(hint), Iterable):
        inner = get_args(hint)[0]
        return {"type": inner, "nargs": "+", "metavar": metavar}
    number = next((kind for kind in (float, int) if kind in kinds), str)
    return {"type": number, "metavar": metavar}


def _word(text: str) -> str:
    """A choice; `null`, as recipes have it, is `none`."""
    return {"null": "none"}.get(text, text)


def _origin(hint: Any) -> type[Any]:
    found = get_origin(hint)
    if isinstance(found, type):
        return found
    return object


def given(options: argparse.Namespace, *kinds: type[Any]) -> dict[str, Any]:
    """The options of these classes that were typed, by name."""
    return _typed(options, chain.from_iterable(map(declared, kinds)))


def _typed(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    found = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    return {name: None if value == "none" else value for name, value in found.items()}


def made(kind: type[Options], options: argparse.Namespace) -> Options:
    """The class's options, those of its flat fields included, as they were typed, the others at
    their defaults.

    Raises:
        RecipeError: one is out of range, by its flag.
    """
    try:
        return assembled(kind, _typed(options, option_types(kind)))
    except ArgumentError as error:
        name, _, rest = str(error).partition(" ")
        raise RecipeError(f"{flag(name)} {rest}") from None


# ---------------------------------------------------------------- a cut


def add_choice(group: Any, told: Mapping[str, str]) -> None:
    """What decides which channels go; `told` as for `add_options`, and for ``allocation``."""
    add_scoring(group, told["criterion"])
    ways = "; ".join(f"{name}: {_said(way)}" for name, way in ALLOCATIONS.items())
    group.add_argument(
        "--allocation",
        metavar="NAME",
        help=f"how the cut is spread over layers; {ways} (default: {told['allocation']})",
    )
    group.add_argument(
        "--batches", metavar="N", type=int, help="of --data, for criteria that look (default: 10)"
    )


def add_scoring(group: Any, default: str) -> None:
    """What makes a channel important; `default` is said of the criterion."""
    plain, looking = (
        ", ".join(name for name in CRITERIA if reads_data(name) is data) for data in (False, True)
    )
    names = f"{plain}; by --data too: {looking}; or your own, package.module:function"
    add_options(group, Scoring, told={"criterion": default}, more={"criterion": names})


def _said(way: Any) -> str:
    """The first paragraph of what a way of allocation says about itself."""
    text = " ".join((way.__doc__ or "your own").partition("\n\n")[0].split()).rstrip(".")
    return text[:1].lower() + text[1:]


def add_limits(group: Any) -> None:
    """What a cut must respect."""
    add_options(group, Limits)


def add_compensation(group: Any, auto: Mapping[str, str]) -> None:
    """What is done about that which removed channels emit; `auto` as `told` of `add_options`."""
    add_options(group, Compensation, told=auto)


def add_latency(group: Any, what: str) -> None:
    """How long layers take; `what` it is for."""
    group.add_argument(
        "--latency-table",
        metavar="FILE",
        help=f"for {what}: a table measured before, here or elsewhere (default: measured here)",
    )
    group.add_argument(
        "--backend",
        choices=get_args(Backend),
        help=f"for {what}: what the network will run with (default: eager)",
    )


def latency(options: argparse.Namespace, asked: bool, what: str) -> dict[str, str]:
    """The section `latency` of a stage; empty where nothing was typed.

    Args:
        options: as typed.
        asked: whether anything is cut by latency.
        what: the flags by which it would be.
    """
    found = {"table": options.latency_table, "backend": options.backend}
    found = {key: value for key, value in found.items() if value is not None}
    if found and not asked:
        raise RecipeError(f"--latency-table and --backend belong to {what}")
    if len(found) == 2:
        raise RecipeError(
            "--latency-table says itself what the network runs with: leave --backend out"
        )
    return found


# ---------------------------------------------------------------- networks, data, files


def add_network(parser: argparse.ArgumentParser, *, data: bool = True) -> None:
    """MODEL, and --data."""
    parser.add_argument("model", metavar="MODEL", help="which network")
    add_weights(parser)
    add_trust(parser)
    if data:
        parser.add_argument("--data", metavar="DATA", required=True, help="the data set")


def add_file(parser: argparse.ArgumentParser) -> None:
    """--out FILE."""
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="the .safetensors file to write; it must not exist yet",
    )


def add_folder(parser: argparse.ArgumentParser, what: str) -> None:
    """--out DIR."""
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help=what)


def add_validation(
    group: Any, text: str = "share of the training images that is set apart"
) -> None:
    """--validation SHARE."""
    group.add_argument("--validation", metavar="SHARE", type=float, help=f"{text} (default: 0.1)")


def add_surroundings(parser: argparse.ArgumentParser) -> None:
    """Where data lie, and how they are looked at; `settings` reads them."""
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
        "--seed",
        metavar="N",
        type=int,
        default=0,
        help="of everything that is random (default: 0)",
    )
    more.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], help="where to compute (default: auto)"
    )


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Seed, data and trainer of a recipe."""
    pad, augment = getattr(options, "augment", None), None
    if pad is not None:
        augment = {"pad": pad, "flip": True}
    data = {
        "root": options.data_root,
        "batch_size": options.batch_size,
        "validation": getattr(options, "validation", None),
        "augment": augment,
        "download": str(options.data).startswith("torchvision:") or None,
    }
    trainer = {}
    if options.device is not None:
        trainer["device"] = options.device
    return {
        "seed": options.seed,
        "trust": options.trust,
        "data": {key: value for key, value in data.items() if value is not None},
        "trainer": trainer,
    }


# ---------------------------------------------------------------- training


def add_training(group: Any, epochs: int, rate: float) -> None:
    """Flags of any training; `training` reads them."""
    group.add_argument("--epochs", metavar="N", type=int, default=epochs, help=f"default: {epochs}")
    group.add_argument(
        "--lr",
        metavar="RATE",
        type=float,
        default=rate,
        help=f"learning rate, the first where it falls (default: {rate})",
    )
    group.add_argument(
        "--momentum", metavar="M", type=float, help="default: 0.9, with Nesterov's correction"
    )
    group.add_argument("--weight-decay", metavar="W", type=float, help="default: 1e-4")
    group.add_argument(
        "--augment",
        metavar="PAD",
        type=int,
        help="mirror images, and crop them after padding by PAD pixels",
    )
    add_validation(group)
    group.add_argument(
        "--teacher", metavar="MODEL", help="learn from this network too, beside the labels"
    )


def training(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_training` offers, as options of a stage."""
    teacher = options.teacher
    if teacher is not None and ":" not in teacher and not teacher.endswith(".safetensors"):
        raise RecipeError(
            f"--teacher {teacher}: give a .safetensors file, or a network by name such as zoo:vgg16"
        )
    rates = {key: value for key in RATES if (value := getattr(options, key)) is not None}
    found = {"epochs": options.epochs, "optimizer": {"lr": options.lr, **rates}}
    if teacher is not None:
        found["distill"] = {"teacher": teacher}
    return found
