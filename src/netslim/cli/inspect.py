"""`inspect`: the channel graph of a model."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import Any

from netslim.cli.common import add
from netslim.errors import RecipeError

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


def register(commands: Any) -> None:
    """Add the command."""
    inspect = add(
        commands,
        "inspect",
        "show which channels of a model can be cut",
        _inspect,
        description=_INSPECT,
        epilog=_MODELS,
        dotted=True,
    )
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
