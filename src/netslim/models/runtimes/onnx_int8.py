"""An ONNX file in whole numbers of eight bits, by ONNX Runtime's own static quantisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from netslim.errors import ExportError
from netslim.models.onnx_session import innermost, quietly


def write(
    exact: Path,
    made: Path,
    readings: Any,
    *,
    scales: Literal["channel", "tensor"] = "channel",
    activations: Literal["uint8", "int8"] = "uint8",
    percentile: float | None = None,
) -> None:
    """Write the network of the file `exact` as the int8 file `made`, in pairs of QuantizeLinear and
    DequantizeLinear (QDQ).

    Args:
        exact, made: ONNX files in folders of their own: others are written beside `made`.
        readings: whose ``get_next()`` gives a dictionary of arrays by the file's names, and None
            after the last; ranges are taken from what layers put out on these.
        scales, activations, percentile: as for `netslim.methods.Quantization`.

    Raises:
        ExportError: ONNX Runtime cannot.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    kinds = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
    # Not by entropy: as ONNX Runtime calls that, it has one range to choose from, the largest.
    method, more = CalibrationMethod.MinMax, {}
    if percentile is not None:
        method, more = CalibrationMethod.Percentile, {"CalibPercentile": percentile}
    ready = made.with_name("ready.onnx")
    try:
        with quietly():
            quant_pre_process(str(exact), str(ready))
            quantize_static(
                str(ready),
                str(made),
                readings,
                quant_format=QuantFormat.QDQ,
                per_channel=scales == "channel",
                activation_type=kinds[activations],
                weight_type=QuantType.QInt8,
                calibrate_method=method,
                extra_options=more,
            )
    except Exception as problem:
        raise ExportError(
            f"ONNX Runtime cannot bring the network to int8: {innermost(problem)}"
        ) from problem


__all__ = ["write"]
