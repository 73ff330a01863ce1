"""How a network is brought to whole numbers of eight bits: the options, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from netslim._support import checks_calls
from netslim.selection.options import Checked, option

Scales = Literal["channel", "tensor"]
Activations = Literal["uint8", "int8"]
WeightType = Literal["auto", "int8", "int7"]


@checks_calls
@dataclass(frozen=True)
class Quantization(Checked):
    """How `netslim.quantize` chooses the steps between whole numbers.

    Attributes:
        percentile: how much of the values that a layer is seen to put out lies within the range of
            eight bits, in percent; None for all of them, from the smallest to the largest. All
            values of all batches are held in memory for a percentile.
        scales: one step size for each output channel of a layer's weights, or one for all of them.
        activations: what layers put out as. On x86 ``uint8`` is the one that is fast (a ResNet-18
            three times as fast as with ``int8``, which takes as long as float32). Other devices may
            want ``int8``.
        weight_type: how many bits the weights of layers have. An x86 processor without VNNI adds
            two products of eight bits in sixteen, and cuts off what does not fit, so that outputs
            may be off by a fifth; with seven bits (``reduce_range`` of ONNX Runtime) all sums fit.
            ``auto`` takes seven where this processor is found to cut off, else eight: say it where
            the file is for another one.

    Raises:
        ArgumentError: an option is out of range.

    Example:
        >>> netslim.methods.Quantization(percentile=99.99).scales
        'channel'
    """

    percentile: float | None = option(
        None,
        "percent of a layer's values that lie within the range of eight bits, such as 99.99 "
        "(default: all)",
        metavar="P",
        above=50,
        below=100,
    )
    scales: Scales = option(
        "channel", "one step size for each output channel of weights, or for each tensor"
    )
    activations: Activations = option(
        "uint8", "what layers put out as: uint8 is the fast one on x86"
    )
    weight_type: WeightType = option(
        "auto",
        "bits of weights; int7 is for x86 processors without VNNI, which cut off sums with int8 "
        "(auto: as this processor needs)",
    )


__all__ = ["Activations", "Quantization", "Scales", "WeightType"]
