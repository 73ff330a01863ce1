"""The network in an ONNX file, as a module that ONNX Runtime runs on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netslim._support import parse_json, read_bytes, refusing
from netslim.data.preprocessing import INSIDE, KEY, Preprocessing
from netslim.errors import DataError, ExportError, NetslimError, RecipeError
from netslim.measure.backends import Ready
from netslim.models.onnx_session import Session, innermost, need_onnx


class InOnnxRuntime(nn.Module):
    """The network in an ONNX file, run on the CPU by ONNX Runtime.

    Args:
        content: of the file.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.size_bytes = len(content)
        self.session = Session(content, torch.device("cpu"))

    def forward(self, images: Tensor) -> Tensor:
        return self.session(images)[0].to(images.device)

    def ready(self, images: Tensor) -> Ready:
        """A call on these images, to be timed."""
        call = self.session.bound(images)
        return Ready(call, torch.device("cpu"), "onnxruntime")


class Exported(InOnnxRuntime):
    """The network in an ONNX file of any origin, with what that says of its images.

    Attributes:
        prepared: how they were in training; None where the file does not say. Its inputs are made
            so, whether or not it normalises by itself.
    """

    def __init__(self, path: str) -> None:
        need_onnx()
        with refusing(RecipeError, f"cannot read {path}", "give the file of a network"):
            content = read_bytes(path)
        try:
            super().__init__(content)
        except ExportError as problem:
            raise ExportError(f"{path}: {problem}") from problem
        metadata = self.session.session.get_modelmeta().custom_metadata_map
        with refusing(DataError, f"{path}: its metadata are no JSON", "export the network again"):
            told = {key: parse_json(metadata[key]) for key in (KEY, INSIDE) if key in metadata}
        self.prepared = Preprocessing.noted(told, path)
        self.inside = bool(told.get(INSIDE))

    def forward(self, images: Tensor) -> Tensor:
        if self.inside and self.prepared is not None:
            images = self.prepared.denormalise(images.cpu())
        try:
            return super().forward(images)
        except NetslimError:
            raise
        except Exception as problem:  # of ONNX Runtime's own kinds, as for images of another shape
            raise ValueError(innermost(problem)) from problem


__all__ = ["Exported", "InOnnxRuntime"]
