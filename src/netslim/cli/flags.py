"""Flags that several commands have: networks, data, files, training.

Nothing here waits for torch, so that help does not; flags of a cut, whose texts come from what is
registered, are in `netslim.cli.cut_flags`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from netslim.cli.common import add_trust, add_weights
from netslim.errors import RecipeError
from netslim.models.other_files import WEIGHTS, no_checkpoint

MODELS = """\
MODEL is a .safetensors file written by netslim, or zoo:NAME, torchvision:NAME, timm:NAME or
package.module:factory, whose options follow as --model.OPTION VALUE. A file whose network comes
from a module of your own needs --trust. A network that was trained elsewhere goes by its name, with
its weights from a .pth or .safetensors file: MODEL --weights FILE. Such a file does not say how its
images were normalised: say it, by --data.mean and --data.std, wherever there is --data.
"""
DATA = """\
DATA is digits, torchvision:CIFAR10 (CIFAR100, SVHN, MNIST, ...), folder:PATH (pictures in a
sub-folder for each class), hf:PATH or wds:PATH.
"""
RUNTIMES = """\
ONNX takes the packages that pip install 'netslim[onnx]' brings, OpenVINO and ExecuTorch those of
'netslim[openvino]' and 'netslim[executorch]'; compile and AOTInductor a C++ compiler (on a GPU:
Triton).
"""
RATES = ("momentum", "weight_decay")  # of the optimizer, besides the learning rate


# ---------------------------------------------------------------- networks, data, files


def add_network(parser: argparse.ArgumentParser, *, data: bool = True) -> None:
    """MODEL, and --data."""
    parser.add_argument("model", metavar="MODEL", help="which network: a file or a name, see below")
    add_weights(parser)
    add_trust(parser)
    if data:
        parser.add_argument("--data", metavar="DATA", required=True, help="which images, see below")


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


def add_validation(group: Any, *, trained: bool = False) -> None:
    """--validation SHARE; of a network that is `trained`, it must be what it was then."""
    text = "share of the training images that is set apart"
    if trained:
        text = "share of training images that was set apart, as for train"
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
    group.add_argument(
        "--epochs",
        metavar="N",
        type=int,
        default=epochs,
        help=f"passes over the training images (default: {epochs})",
    )
    group.add_argument(
        "--lr",
        metavar="RATE",
        type=float,
        default=rate,
        help=f"learning rate, the first where it falls (default: {rate})",
    )
    group.add_argument(
        "--momentum",
        metavar="M",
        type=float,
        help="of SGD (default: 0.9, with Nesterov's correction)",
    )
    group.add_argument(
        "--weight-decay", metavar="W", type=float, help="pull of weights to 0 (default: 1e-4)"
    )
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
    group.add_argument(
        "--teacher-weights",
        metavar="FILE",
        help="weights for a --teacher by name: a .pth or .safetensors file, as for --weights",
    )


def _check_teacher(teacher: str) -> None:
    """Refuse a folder, and an export, which cannot teach with whatever weights beside it."""
    told = no_checkpoint(teacher)
    if told and not teacher.endswith(WEIGHTS):
        raise RecipeError(f"--teacher: {told}")


def training(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_training` offers, as options of a stage.

    Raises:
        RecipeError: a teacher lacks its weights, or weights their teacher.
    """
    teacher, weights = options.teacher, options.teacher_weights
    if teacher is not None and ":" not in teacher and not teacher.endswith(".safetensors"):
        _check_teacher(teacher)
        file = "FILE"
        if Path(teacher).suffix:
            file = teacher
        raise RecipeError(
            f"--teacher {teacher}: give a .safetensors file, or a network by name with its weights "
            f"beside it, such as --teacher zoo:vgg16 --teacher-weights {file}"
        )
    if weights is not None and (teacher is None or ":" not in teacher):
        raise RecipeError(
            f"--teacher-weights {weights}: name the network that they belong to, such as "
            "--teacher zoo:vgg16"
        )
    rates = {key: value for key in RATES if (value := getattr(options, key)) is not None}
    found = {"epochs": options.epochs, "optimizer": {"lr": options.lr, **rates}}
    if teacher is not None:
        found["distill"] = {"teacher": teacher, "teacher_weights": weights}
    return found
