"""An ONNX file in whole numbers of eight bits, by ONNX Runtime's own static quantisation."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from netslim.errors import ExportError
from netslim.models.onnx_session import Session, innermost, quietly


def write(
    exact: Path,
    made: Path,
    readings: Any,
    *,
    scales: Literal["channel", "tensor"] = "channel",
    activations: Literal["uint8", "int8"] = "uint8",
    weight_type: Literal["auto", "int8", "int7"] = "auto",
    percentile: float | None = None,
) -> int:
    """Write the network of the file `exact` as the int8 file `made`, in pairs of QuantizeLinear and
    DequantizeLinear (QDQ).

    Args:
        exact, made: ONNX files in folders of their own: others are written beside `made`.
        readings: whose ``get_next()`` gives a dictionary of arrays by the file's names, and None
            after the last; ranges are taken from what layers put out on these.
        scales, activations, weight_type, percentile: as for `netslim.methods.Quantization`.

    Returns:
        How many bits the weights have.

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
    seven = weight_type == "int7" or (weight_type == "auto" and cuts_off())
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
                reduce_range=seven,
                calibrate_method=method,
                extra_options=more,
            )
    except Exception as problem:
        raise ExportError(
            f"ONNX Runtime cannot bring the network to int8: {innermost(problem)}"
        ) from problem
    return 7 if seven else 8


@cache
def cuts_off() -> bool:
    """Whether this processor cuts off sums of products with weights of eight bits, as those do that
    add two of them in sixteen bits: the largest of all products, added up, tell.

    ONNX Runtime computes on x86 with activations of ``uint8``, whatever the file says.
    """
    from onnx import TensorProto, helper, numpy_helper

    largest = torch.full((8, 64), 255, dtype=torch.uint8)
    weights = torch.full((64, 16), 127, dtype=torch.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weights"], ["sums"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (8, 64))],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, (8, 16))],
        [numpy_helper.from_array(weights.numpy(), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (sums,) = Session(model.SerializeToString(), torch.device("cpu"))(largest)
    return not torch.equal(sums, largest.int() @ weights.int())


__all__ = ["cuts_off", "write"]
