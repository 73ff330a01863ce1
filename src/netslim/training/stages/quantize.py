"""The network in hand as ONNX files, in float and in int8, and both of them as modules that run.

The two lie beside each other, for only on one and the same runtime does it show what int8 costs and
saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

import netslim
from netslim._support.progress import Progress, counted, untold
from netslim.data.preprocessing import Preprocessing
from netslim.methods.quantizing import Quantized, examples_of, to_int8
from netslim.training.recipe.schema import Quantize
from netslim.training.stages.folder import Forms

_SHORT = 7  # bits of weights

Batches = Callable[[int], Iterable[Any]]  # how many -> so many training batches


def carry_out(
    stage: Quantize,
    network: nn.Module,
    example: Tensor,
    batches: Batches,
    prepared: Preprocessing,
    forms: Forms,
    progress: Progress = untold,
) -> Quantized:
    """Write both files.

    Args:
        stage: how.
        network: as it is in hand.
        example: a batch of images (B, C, H, W).
        batches: of training images, which ranges are taken from.
        prepared: how the images were; the files say so.
        forms: where to; what a killed run has left there is written anew.
        progress: told of the export, and how many batches were looked at.

    Raises:
        ExportError: as `netslim.quantize`.
    """
    for path in (forms.exact, forms.int8):
        path.unlink(missing_ok=True)
    metadata = prepared.for_files()
    netslim.export(network, example, forms.exact, metadata=metadata, progress=progress)
    looked = counted(batches(stage.batches), stage.batches, "taking ranges", progress)
    seen = examples_of(looked)
    return to_int8(forms.exact, seen, forms.int8, stage.quantization)


def told(done: Quantized) -> str:
    """What was made, in a sentence."""
    said = (
        f"{done.layers} of {done.of} layers compute in int8 (training batches looked at: "
        f"{done.batches}); on the first the outputs are off by {done.noise:.1%} of their size"
    )
    if done.weight_bits == _SHORT:
        said += "; weights have 7 bits, as processors without VNNI cut off sums with 8"
    return said


def where(forms: Iterable[str]) -> Iterator[str]:
    """What is said of rows of files, if there are any among forms of networks."""
    if {*forms} - {"torch"}:
        yield "onnx and int8 are files that ONNX Runtime runs on the CPU, both timed in turn"


__all__ = ["Batches", "carry_out"]
