"""A kernel as an ONNX graph of one layer, in float or in int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from netslim.errors import ArgumentError
from netslim.measure.table.kernels import Kernel

_OPSET, _IR = 17, 8  # known to every ONNX Runtime that knows the exports of this PyTorch
STEP, ZERO = 1 / 32, 128  # between whole numbers; and which of them is 0


def onnx_kernel(
    kernel: Kernel, depth: int, width: int, weight: Tensor, bias: Tensor | None
) -> bytes:
    """The file of a network that is this kernel alone, with these weights.

    Raises:
        ArgumentError: onnx is not installed.
    """
    helper, arrays = _onnx()
    named = {"w": weight}
    if bias is not None:
        named["b"] = bias
    values = [arrays.from_array(tensor.cpu().numpy(), name) for name, tensor in named.items()]
    shape, _, groups = kernel.shapes(depth, width)
    node = helper.make_node(_operator(kernel), ["x", *named], ["y"], **_attributes(kernel, groups))
    return _file([node], values, shape, values[0].data_type)


def int8_kernel(
    kernel: Kernel, depth: int, width: int, weight: Tensor, bias: Tensor | None
) -> bytes:
    """The same in int8: whole numbers in and out, as it has them within a network.

    Raises:
        ArgumentError: onnx is not installed.
    """
    helper, arrays = _onnx()
    shape, _, groups = kernel.shapes(depth, width)
    steps = np.full(width, STEP, dtype=np.float32)
    given: dict[str, Any] = {
        "step": np.float32(STEP),
        "zero": np.uint8(ZERO),
        "steps": steps,
        "w": (weight.float().cpu() / STEP).round().clamp(-127, 127).to(torch.int8).numpy(),
    }
    # Of a transposed convolution the outputs are the second axis, and each group has its own.
    axis = int(_operator(kernel) == "ConvTranspose")
    if axis:
        given["steps"] = steps[: width // groups]
    read = ["x_", "w_"]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "step", "zero"], ["x_"]),
        helper.make_node("DequantizeLinear", ["w", "steps"], ["w_"], axis=axis),
    ]
    if bias is not None:
        given["b"] = (bias.float().cpu() / STEP**2).round().to(torch.int32).numpy()
        given["small"] = steps * np.float32(STEP)
        nodes.append(helper.make_node("DequantizeLinear", ["b", "small"], ["b_"], axis=0))
        read.append("b_")
    nodes.append(helper.make_node(_operator(kernel), read, ["y_"], **_attributes(kernel, groups)))
    nodes.append(helper.make_node("QuantizeLinear", ["y_", "step", "zero"], ["y"]))
    values = [arrays.from_array(np.asarray(array), name) for name, array in given.items()]
    return _file(nodes, values, shape, values[1].data_type)


def whole_numbers(x: Tensor) -> Tensor:
    """What `int8_kernel` reads for these numbers."""
    return (x.float() / STEP + ZERO).round().clamp(0, 255).to(torch.uint8)


def _onnx() -> tuple[Any, Any]:
    try:
        from onnx import helper, numpy_helper
    except ImportError:
        raise ArgumentError(
            "a latency table for onnxruntime needs onnx: pip install 'netslim[onnx]'"
        ) from None
    return helper, numpy_helper


def _file(nodes: list[Any], values: list[Any], shape: tuple[int, ...], kind: int) -> bytes:
    """From `x` of this shape to `y`, both of this type."""
    helper, _ = _onnx()
    x = helper.make_tensor_value_info("x", kind, list(shape))
    y = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "kernel", [x], [y], values)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR
    )
    return bytes(model.SerializeToString())


def _operator(kernel: Kernel) -> str:
    """The operator of ONNX, which is none of those that rules are for."""
    if kernel.operator == "linear":
        return "Gemm"
    if kernel.options[3]:
        return "ConvTranspose"
    return "Conv"


def _attributes(kernel: Kernel, groups: int) -> dict[str, Any]:
    if kernel.operator == "linear":
        return {"transB": 1}
    stride, padding, dilation, transposed, output_padding, _ = kernel.options
    found = {
        "strides": stride,
        "pads": [*padding, *padding],  # before and after
        "dilations": dilation,
        "group": groups,
        "kernel_shape": kernel.window,
    }
    if transposed:
        found["output_padding"] = output_padding
    return found


__all__ = ["int8_kernel", "onnx_kernel", "whole_numbers"]
