"""A model in ExecuTorch: for telephones and what is smaller, with XNNPACK's kernels on CPUs.

Memory is planned beforehand, so a file has one batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from netslim._support.packages import missing
from netslim.errors import ExportError
from netslim.models.onnx_session import Outputs, innermost, quietly, tensors_of


def need() -> None:
    """Make sure that ExecuTorch is installed.

    Raises:
        ExportError: it is not.
    """
    if missing(["executorch"]):
        raise ExportError(
            "ExecuTorch needs executorch, not installed here: pip install 'netslim[executorch]'"
        )


def content(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """A `.pte` file; of the metadata, each text is a method without inputs that returns it.

    Raises:
        ExportError: ExecuTorch cannot take the program.
    """
    try:
        with quietly():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()], constant_methods=dict(metadata)
            )
            made: bytes = lowered.to_executorch().buffer
    except Exception as problem:
        raise ExportError(
            f"the model cannot be written for ExecuTorch: {innermost(problem)}"
        ) from problem
    return made


class Network:
    """A `.pte` file in ExecuTorch's runtime, with torch's threads."""

    def __init__(self, content: bytes) -> None:
        try:
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime

            portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
            self.program = Runtime.get().load_program(content)
            self.method = self.program.load_method("forward")
        except Exception as problem:
            raise ExportError(f"ExecuTorch cannot load it: {innermost(problem)}") from problem

    def __call__(self, inputs: Any) -> Outputs:
        found = self.method.execute(tensors_of(inputs))
        return [tensor.clone() for tensor in found]  # their memory is written to by the next call

    def bound(self, inputs: Any) -> Callable[[], object]:
        """A call on these inputs."""
        tensors = [tensor.contiguous() for tensor in tensors_of(inputs)]
        return lambda: self.method.execute(tensors)


__all__ = ["Network", "content", "need"]
