"""What can run a network, by name; nothing here waits for torch."""

from typing import Literal

# What times layers one by one, too.
TableBackend = Literal["eager", "compile", "onnxruntime", "onnxruntime-int8"]
Backend = Literal[
    "eager",
    "compile",
    "onnxruntime",
    "onnxruntime-int8",
    "openvino",
    "executorch",
    "aotinductor",
]


def in_onnxruntime(backend: str) -> bool:
    """Whether ONNX Runtime runs it, in whatever numbers."""
    return backend.startswith("onnxruntime")


__all__ = ["Backend", "TableBackend", "in_onnxruntime"]
