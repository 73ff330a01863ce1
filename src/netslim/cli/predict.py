"""`predict`: what a network says of pictures."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from netslim.cli.common import add_json, add_trust
from netslim.cli.parser import Parser
from netslim.errors import RecipeError

_PREDICT = """\
Classify pictures. Each is decoded, resized and normalised as the network's file says, which is as
the images were that it was trained on.
"""

_EXAMPLES = """\
  netslim predict small.safetensors cat.jpg dog.png
  netslim predict small.onnx holidays --top 3 --json
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_predict, about=_PREDICT, examples=_EXAMPLES)
    parser.add_argument("network", metavar="NETWORK", help="a .safetensors or .onnx file")
    parser.add_argument(
        "pictures", metavar="PICTURE", nargs="+", help="files, and folders with pictures"
    )
    parser.add_argument("--top", metavar="N", type=int, default=1, help="classes (default: 1)")
    add_json(parser, "a line for each picture")
    add_trust(parser)


def _predict(options: argparse.Namespace, _: dict[str, str]) -> int:
    from netslim.training.commands import predict

    if options.top < 1:
        raise RecipeError(f"--top {options.top}: give 1 or more")
    unread = 0
    for answer in predict.predict(
        options.network, options.pictures, top=options.top, trust=options.trust
    ):
        if options.json:
            print(json.dumps(asdict(answer)))
        elif not answer.problem:
            said = "  ".join(f"{name} {share:.1%}" for name, share in answer.classes)
            print(f"{answer.picture}  {said}")
        if answer.problem:
            unread += 1
            print(f"netslim: {answer.problem}", file=sys.stderr)
    return int(unread > 0)
