"""`evaluate`: what a network does on the test images."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from netslim.cli.common import add_json, print_json
from netslim.cli.flags import (
    DATA,
    MODELS,
    add_network,
    add_surroundings,
    add_validation,
    settings,
)
from netslim.cli.parser import Parser
from netslim.report import numbers

_EVALUATE = """\
Look at the test images with a network as it is: accuracy, loss, parameters, multiply-accumulates,
size. Nothing is trained and nothing is written. An .onnx file is run by ONNX Runtime on the CPU, on
images that are prepared as it says; its parameters and multiply-accumulates are not told.
"""

_EXAMPLES = """\
  netslim evaluate small.safetensors --data torchvision:CIFAR10
  netslim evaluate small.safetensors --data folder:birds --split validation --json
  netslim evaluate small.int8.onnx --data torchvision:CIFAR10
  netslim evaluate torchvision:resnet50 --weights resnet50.pth --data folder:imagenet \\
      --data.mean "[0.485, 0.456, 0.406]" --data.std "[0.229, 0.224, 0.225]"
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(
        _evaluate, about=_EVALUATE, more=MODELS + DATA, examples=_EXAMPLES, dotted=True
    )
    add_network(parser)
    parser.set_defaults(finished=(".onnx",))
    parser.add_argument(
        "--split",
        choices=["test", "validation"],
        default="test",
        help="which images (default: test)",
    )
    add_validation(parser, trained=True)
    parser.add_argument(
        "--ten-crop",
        metavar="PIXELS",
        type=int,
        help="mean of the answers to ten squares of each image: corners and centre, also mirrored",
    )
    add_json(parser, "accuracies as shares from 0 to 1")
    add_surroundings(parser)


def _evaluate(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    from netslim.training.commands import step

    recipe = step.step(
        "measure", options.model, options.data, {}, overrides, settings=settings(options)
    )
    found = step.evaluate(recipe, options.split, options.ten_crop)
    if options.json:
        print_json(asdict(found))
        return 0
    crops = top5 = ""
    size = []
    if options.ten_crop is not None:
        crops = f", ten crops of {options.ten_crop} pixels each"
    if found.top5 is not None:
        top5 = f"  top-5 {found.top5:.2%}"
    if found.params is not None and found.macs is not None:
        size.append(f"parameters {found.params:,}  MACs {found.macs:,}")
    if found.size_bytes is not None:
        size.append(f"size on disk {numbers.size(found.size_bytes)}")
    print(f"{found.images:,} {found.split} images of {options.data}{crops}")
    print(f"top-1 {found.top1:.2%}{top5}  loss {found.loss:.4f}")
    print("  ".join(size))
    for note in found.notes:
        print(f"note: {note}")
    return 0
