"""What can run a network, by name; nothing here waits for torch."""

from typing import Literal

Backend = Literal["eager", "compile", "onnxruntime"]

__all__ = ["Backend"]
