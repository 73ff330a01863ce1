"""A kernel as an ONNX graph of one node."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from netslim.errors import ArgumentError
from netslim.measure.table.kernels import Kernel

_OPSET, _IR = 17, 8  # known to every ONNX Runtime that knows the exports of this PyTorch


def onnx_kernel(
    kernel: Kernel, depth: int, width: int, weight: Tensor, bias: Tensor | None
) -> bytes:
    """The file of a network that is this kernel alone, with these weights.

    Raises:
        ArgumentError: onnx is not installed.
    """
    try:
        from onnx import helper, numpy_helper
    except ImportError:
        raise ArgumentError(
            "a latency table for onnxruntime needs onnx: pip install 'netslim[onnx]'"
        ) from None
    shape, _, groups = kernel.shapes(depth, width)
    named = {"w": weight}
    if bias is not None:
        named["b"] = bias
    values = [numpy_helper.from_array(tensor.cpu().numpy(), name) for name, tensor in named.items()]
    node = helper.make_node(_operator(kernel), ["x", *named], ["y"], **_attributes(kernel, groups))
    kind = values[0].data_type
    x = helper.make_tensor_value_info("x", kind, list(shape))
    y = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph([node], "kernel", [x], [y], values)
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


__all__ = ["onnx_kernel"]
