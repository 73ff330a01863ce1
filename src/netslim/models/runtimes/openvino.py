"""A model in OpenVINO, which reads it as ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from netslim._support.packages import missing
from netslim.errors import ExportError
from netslim.models.onnx_session import Outputs, innermost, named_arrays

_NOTED = "netslim"  # under which the file holds metadata


def need() -> None:
    """Make sure that OpenVINO is installed; what ONNX needs, the export to ONNX sees to.

    Raises:
        ExportError: it is not.
    """
    if missing(["openvino"]):
        raise ExportError(
            "OpenVINO needs openvino, not installed here: pip install 'netslim[openvino]'"
        )


def files(content: bytes, metadata: Mapping[str, str]) -> dict[str, bytes]:
    """An ONNX file as OpenVINO's: what the graph is (.xml), and its numbers (.bin), in float32.

    Raises:
        ExportError: OpenVINO cannot read it.
    """
    import openvino

    try:
        model = openvino.Core().read_model(model=content, weights=b"")
        for name, text in metadata.items():
            model.set_rt_info(text, [_NOTED, name])
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.xml"
            openvino.save_model(model, path, compress_to_fp16=False)
            return {end: path.with_suffix(end).read_bytes() for end in (".xml", ".bin")}
    except RuntimeError as problem:
        raise ExportError(f"OpenVINO cannot read the model: {innermost(problem)}") from problem


class Network:
    """A model compiled for the CPU, in the precision it was written in, with torch's threads.

    Args:
        content: an ONNX file, or OpenVINO's own (.xml).
        weights: of the latter.
    """

    def __init__(self, content: bytes, weights: bytes = b"") -> None:
        import openvino

        core = openvino.Core()
        hints = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        try:
            compiled = core.compile_model(core.read_model(content, weights), "CPU", hints)
        except RuntimeError as problem:
            raise ExportError(f"OpenVINO cannot load it: {innermost(problem)}") from problem
        self.request = compiled.create_infer_request()
        self.inputs = [port.any_name for port in compiled.inputs]
        self.outputs = compiled.outputs

    def __call__(self, inputs: Any) -> Outputs:
        found = self.request.infer(named_arrays(self.inputs, inputs))
        return [torch.from_numpy(found[port].copy()) for port in self.outputs]

    def bound(self, inputs: Any) -> Callable[[], object]:
        """A call on these inputs, which the runtime reads where they are."""
        import openvino

        arrays = named_arrays(self.inputs, inputs)
        for name, array in arrays.items():
            self.request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

        def call() -> object:
            self.request.infer()
            return arrays  # whose memory is read

        return call


__all__ = ["Network", "files", "need"]
