"""A model compiled ahead of time by `torch.compile`'s compiler: machine code in a package.

It runs on machines like the one it was compiled on, with a torch like the one that compiled it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from netslim.errors import ExportError
from netslim.graph.modules.calls import as_call, output_tensors
from netslim.models.onnx_session import Outputs, innermost, quietly


def content(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """A package, from the program of a model; for where the model is.

    Raises:
        ExportError: it cannot be compiled.
    """
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.pt2")
        try:
            with quietly():
                torch._inductor.aoti_compile_and_package(
                    program,
                    package_path=path,
                    inductor_configs={"aot_inductor.metadata": dict(metadata)},
                )
        except Exception as problem:
            raise ExportError(
                f"AOTInductor cannot compile the model: {innermost(problem)}; it needs g++ or "
                "clang, and on a GPU Triton"
            ) from problem
        return Path(path).read_bytes()


class Network:
    """A package that `content` made. Its machine code is loaded into this process."""

    def __init__(self, path: str) -> None:
        try:
            with quietly():
                self.model: Callable[..., Any] = torch._inductor.aoti_load_package(path)
        except Exception as problem:
            raise ExportError(f"AOTInductor cannot load it: {innermost(problem)}") from problem

    def __call__(self, inputs: Any) -> Outputs:
        args, kwargs = as_call(inputs)
        return output_tensors(self.model(*args, **kwargs))

    def bound(self, inputs: Any) -> Callable[[], object]:
        """A call on these inputs."""
        args, kwargs = as_call(inputs)
        return lambda: self.model(*args, **kwargs)


__all__ = ["Network", "content"]
