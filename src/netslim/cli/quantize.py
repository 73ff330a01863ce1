"""`quantize`: a network in whole numbers of eight bits, beside what it was in float."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netslim.cli.common import add_json, print_json
from netslim.cli.cut_flags import add_options, given, typed
from netslim.cli.flags import (
    DATA,
    MODELS,
    add_network,
    add_surroundings,
    add_validation,
    settings,
)
from netslim.cli.parser import Parser
from netslim.errors import RecipeError
from netslim.methods.quantization import Quantization

if TYPE_CHECKING:
    from netslim.training.commands.quantize import Compared

_QUANTIZE = """\
Write a trained network as an ONNX file that computes in int8, and set it beside the same network in
float: accuracy, size and time in ONNX Runtime on the CPU, timed in turn. The ranges of int8 are
taken from training images; nothing is trained.
"""

_MORE = (
    MODELS
    + DATA
    + """
It takes the packages that pip install 'netslim[onnx]' brings.
"""
)
_EXAMPLES = """\
  netslim quantize small.safetensors --data torchvision:CIFAR10 --out small.int8.onnx
  netslim quantize small.safetensors --data folder:birds --out small.int8.onnx \\
      --percentile 99.99 --batches 4 --split test --latency-batch 8
  netslim predict small.int8.onnx cat.jpg dog.png
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_quantize, about=_QUANTIZE, more=_MORE, examples=_EXAMPLES, dotted=True)
    add_network(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="the .onnx file to write; it must not exist yet",
    )
    how = parser.add_argument_group("how it is brought to int8")
    add_options(how, Quantization)
    how.add_argument(
        "--batches",
        metavar="N",
        type=int,
        help="training batches that the ranges are taken from (default: 10)",
    )
    look = parser.add_argument_group("how it is set beside the float one")
    look.add_argument(
        "--split",
        choices=["validation", "test"],
        default="validation",
        help="which images (default: validation)",
    )
    look.add_argument(
        "--limit-images", metavar="N", type=int, help="look at N of them only, drawn by --seed"
    )
    look.add_argument(
        "--latency-batch",
        metavar="N",
        type=int,
        default=1,
        help="images in a timed call; 0 times nothing (default: 1)",
    )
    add_validation(parser, trained=True)
    add_surroundings(parser)
    add_json(parser, "float and int8: accuracy, bytes and milliseconds, and the file")


def _quantize(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training.commands import quantize, step

    if options.latency_batch < 0:
        raise RecipeError(f"--latency-batch {options.latency_batch}: give 0 or more images")
    if options.limit_images is not None and options.limit_images < 1:
        raise RecipeError(f"--limit-images {options.limit_images}: give 1 or more")
    stage = {**given(options, Quantization), **typed(options, ["batches"])}
    recipe = step.step(
        "quantize", options.model, options.data, stage, overrides, settings=settings(options)
    )
    done = quantize.quantize(
        recipe,
        options.out,
        split=options.split,
        most=options.limit_images,
        latency_batch=options.latency_batch,
    )
    if options.json:
        print_json(_data(done, options.out))
    else:
        _tell(done, options.out)
    return 0


def _data(done: Compared, out: Path) -> dict[str, Any]:
    rows = {
        name: {
            "accuracy": look.accuracy,
            "size_bytes": look.size_bytes,
            "latency_ms": look.latency and asdict(look.latency),
        }
        for name, look in done.looks.items()
    }
    made = done.made
    return {
        **rows,
        "split": done.split,
        "images": done.images,
        "noise": made.noise,
        "layers": [made.layers, made.of],
        "batches": made.batches,
        "notes": done.notes,
        "network": out,
    }


def _tell(done: Compared, out: Path) -> None:
    from netslim.report import numbers
    from netslim.training.stages.quantize import told

    print(f"{'':5}  {'accuracy':>9}  {'size':>10}  ms in ONNX Runtime (quartiles)")
    for name, look in done.looks.items():
        time = numbers.MISSING
        if look.latency is not None:
            found = look.latency
            time = f"{found.median_ms:.3g} ({found.low_ms:.3g} to {found.high_ms:.3g})"
        size = numbers.size(look.size_bytes)
        print(f"{name:5}  {numbers.percent(look.accuracy):>9}  {size:>10}  {time}")
    print(f"{done.images:,} {done.split} images; {told(done.made)}")
    for note in done.notes:
        print(f"note: {note}")
    print(f"file: {out}")
