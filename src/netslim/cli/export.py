"""`export`: a network written for another runtime."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from netslim.cli.common import add_inputs, add_json, examples, model_options, note, print_json
from netslim.cli.flags import MODELS, RUNTIMES, add_network
from netslim.cli.parser import Parser
from netslim.errors import RecipeError
from netslim.models.other_files import Format

if TYPE_CHECKING:
    from torch import nn

    from netslim.models import Exported

_EXPORT = """\
Write a network to a file for another runtime: ONNX (.onnx), torch.export (.pt2), OpenVINO (.xml,
with a .bin beside it), ExecuTorch (.pte) or AOTInductor (.aoti.pt2: machine code for machines like
this one). The file is read back and run, on random inputs and on batches of several sizes, and is
there only if its outputs equal those of the network. Nothing is overwritten.
"""

_EXAMPLES = """\
  netslim export small.safetensors --input 3 32 32 --out small.onnx
  netslim export small.safetensors --input 3 32 32 --out small.pt2 --batch 8
  netslim export small.safetensors --input 3 32 32 --out small.pte --batch 1
  netslim export mypackage.models:tagger --input 32 --dtype int64 --out tagger.onnx --opset 18
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(
        _export, about=_EXPORT, more=MODELS + RUNTIMES, examples=_EXAMPLES, dotted=True
    )
    add_network(parser, data=False)
    add_inputs(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="the file to write; it must not exist yet, and its ending says the format",
    )
    parser.add_argument(
        "--to",
        choices=get_args(Format),
        help="the format, for a file whose ending says none, or another one",
    )
    parser.add_argument(
        "--batch", metavar="N", default="dynamic", help="one batch size for good (default: dynamic)"
    )
    parser.add_argument(
        "--opset", metavar="N", type=int, help="of ONNX (default: what this torch writes)"
    )
    parser.add_argument(
        "--normalise",
        action="store_true",
        help="write the normalisation into the file, too, which then takes images on the scale "
        "0..1 (default: it takes normalised ones, and its metadata tell by which values)",
    )
    parser.add_argument(
        "--tolerance",
        metavar="T",
        nargs="+",
        help="largest accepted deviation, relative to the largest output (default: 1e-4 in "
        "float32); or of single outputs, as boxes=1e-3 logits=1e-4",
    )
    add_json(parser, "the file, its tensors, and how it was verified")


def _prepared(network: nn.Module, options: argparse.Namespace) -> tuple[nn.Module, dict[str, str]]:
    """The network, which normalises by itself where that is asked for, and what its file says."""
    from netslim.models.normalised import Normalised
    from netslim.training.commands.predict import prepared_by

    prepared = prepared_by(options.model)
    if options.normalise and prepared is None:
        raise RecipeError(
            f"--normalise: {options.model} does not say how its images are normalised"
        )
    if prepared is None:
        return network, {}
    if options.normalise:
        network = Normalised(network, prepared.mean, prepared.std)
    return network, prepared.for_files(options.normalise)


def _takes(normalised_inside: bool) -> str:
    """What the file wants of images, as its metadata tell, too."""
    if normalised_inside:
        return "images: on the scale 0..1; the file normalises them by the values in its metadata"
    return "images: normalised already, by the mean and std in its metadata (or give --normalise)"


def _export(options: argparse.Namespace, overrides: dict[str, str]) -> int:
    import netslim
    from netslim import models
    from netslim.training.loop.progress import Display

    kwargs, dynamic = model_options(overrides, "export"), options.batch == "dynamic"
    if not dynamic and not (options.batch.isdecimal() and int(options.batch)):
        raise RecipeError(
            f"--batch {options.batch}: give a number of examples, 1 or more, or dynamic"
        )
    inputs = examples(options, 1 if dynamic else int(options.batch))
    network = models.build(options.model, trust=options.trust, say=note, **kwargs)
    network, metadata = _prepared(network, options)
    with Display().counting("export") as progress:
        done = netslim.export(
            network,
            inputs,
            options.out,
            format=options.to,
            dynamic_batch=dynamic,
            opset=options.opset,
            tolerance=_tolerance(options.tolerance),
            metadata=metadata,
            progress=progress,
        )
    if options.json:
        print_json({**asdict(done), "metadata": metadata})
    else:
        _tell(done, options.normalise, metadata)
    return 0


def _tell(done: Exported, normalised: bool, metadata: Mapping[str, str]) -> None:
    kind: str = done.format
    if done.opset is not None:
        kind = f"ONNX, opset {done.opset}"
    sizes = " and ".join(map(str, done.batch_sizes))
    print(
        f"{kind}, {done.size_bytes / 1000:,.1f} kB: {', '.join(done.inputs)} -> "
        f"{', '.join(done.outputs)}"
    )
    print(
        f"verified: the outputs deviate by no more than {done.deviation:.1e} of the largest, "
        f"in batches of {sizes}"
    )
    if metadata:
        print(_takes(normalised))
    print(f"file: {done.path}")


def _tolerance(words: list[str] | None) -> float | dict[str, float] | None:
    """One number, or pairs of an output and a number."""
    if words is None:
        return None
    pairs = [word.rpartition("=") for word in words]
    try:
        numbers = {name: float(number) for name, _, number in pairs}
    except ValueError:
        numbers = {}
    if len(numbers) != len(words) or ("" in numbers and len(words) > 1):
        raise RecipeError(
            f"--tolerance {' '.join(words)}: give one number, or outputs as boxes=1e-3 logits=1e-4"
        )
    return numbers.get("", numbers)
