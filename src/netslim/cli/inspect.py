"""`inspect`: the channel graph of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from netslim._support.files import write_atomic
from netslim.cli.common import (
    add_free,
    add_inputs,
    add_json,
    examples,
    model_options,
    note,
    print_json,
)
from netslim.cli.flags import MODELS, add_network
from netslim.cli.parser import Parser

_INSPECT = """\
Run a model once and show its channel graph: the groups of channels that must be cut together, their
share of parameters, multiply-accumulates and activations (what layers put out), and why some stay.
The inputs are random numbers, a batch of one; integers and booleans are 1.
"""

_EXAMPLES = """\
  netslim inspect zoo:vgg16 --input 3 32 32 --model.width 0.25
  netslim inspect torchvision:resnet18 --input 3 224 224 --json
  netslim inspect torchvision:resnet18 --input 3 224 224 --explain layer3.0.conv2.weight \\
      --explain bn1
  netslim inspect torchvision:resnet18 --input 3 224 224 --draw resnet18.svg
  netslim inspect mypackage.models:translator --input 32 --input 32 --dtype int64
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_inspect, about=_INSPECT, more=MODELS, examples=_EXAMPLES, dotted=True)
    add_network(parser, data=False)
    add_inputs(parser)
    parser.add_argument(
        "--explain",
        metavar="NAME",
        action="append",
        default=[],
        help="tell what this layer, tensor or group is coupled to and why it can or cannot be "
        "cut; may be repeated",
    )
    parser.add_argument(
        "--draw",
        metavar="FILE.svg",
        type=Path,
        help="draw the graph as well: layers in rows, groups as lines as wide as their channels; a "
        "file that is there is replaced",
    )
    add_free(parser, "output")
    add_free(parser, "input")
    add_json(parser, "the whole channel graph")


def _inspect(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    import netslim
    from netslim import models

    kwargs = model_options(overrides, "inspect")
    model = models.build(options.model, trust=options.trust, say=note, **kwargs).eval()
    inputs = examples(options)
    try:
        graph = netslim.trace(
            model,
            inputs,
            free_outputs=options.free_outputs or (),
            free_inputs=options.free_inputs or (),
            blocks=True,
        )
    except netslim.errors.TraceError as error:
        if "does not run on" not in str(error):
            raise
        hint = (
            "--input is the shape of one example without the batch, once for each input; "
            "tokens need --dtype int64"
        )
        raise netslim.errors.TraceError(f"{error} ({hint})") from error
    if options.draw:
        write_atomic(options.draw, graph.to_svg())
        note(f"the graph is drawn in {options.draw}")
    told = {name: graph.explain(name) for name in options.explain}
    if options.json:
        found = graph.to_dict()
        if told:
            found["explain"] = told
        print_json(found)
    else:
        print("\n\n".join(told.values()) or graph)
    return 0
