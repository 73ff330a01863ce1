"""What can run a network, by name; nothing here waits for torch."""

from typing import Literal

TableBackend = Literal["eager", "compile", "onnxruntime"]  # what times layers one by one, too
Backend = Literal["eager", "compile", "onnxruntime", "openvino", "executorch", "aotinductor"]

__all__ = ["Backend", "TableBackend"]
