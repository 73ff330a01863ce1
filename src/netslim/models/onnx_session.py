"""A model in ONNX Runtime as one call.

Imports nothing of ONNX until it is asked to run something: the packages are an extra. The session
takes as many threads as torch has set, so that both are timed on equal terms.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor

from netslim._support.packages import missing
from netslim.errors import ExportError
from netslim.graph.modules.calls import as_call, tensor_leaves

Outputs = Sequence[Tensor]


def need_onnx() -> None:
    """Make sure that what ONNX needs is installed.

    Raises:
        ExportError: names what is not, and the command that installs it.
    """
    if lacking := missing(("onnx", "onnxscript", "onnxruntime")):
        raise ExportError(
            f"ONNX needs {', '.join(lacking)}, not installed here: pip install 'netslim[onnx]'"
        )


# ---------------------------------------------------------------- reading back


class Session:
    """An ONNX file in ONNX Runtime."""

    def __init__(self, content: bytes | str, device: torch.device) -> None:
        import onnxruntime

        provider, where = "CPUExecutionProvider", {}
        if device.type == "cuda":
            provider, where = "CUDAExecutionProvider", {"device_id": device.index or 0}
        if provider not in onnxruntime.get_available_providers():
            raise ExportError(
                f"this ONNX Runtime has no {provider}: pip install onnxruntime-gpu, or use "
                "device='cpu'"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        # Threads that wait for work by spinning would slow down whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        providers = [(provider, where)]
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=providers)
        except Exception as problem:
            said = innermost(problem)
            remedy = "it has all operators in float32: model.float()"
            if "protobuf" in said.lower():  # it is not even read
                remedy = "is it a whole .onnx file?"
            raise ExportError(f"ONNX Runtime cannot load it: {said}; {remedy}") from problem
        # It does not fail where a provider cannot start, but falls back to the CPU.
        if self.session.get_providers()[0] != provider:
            raise ExportError(
                f"ONNX Runtime could not start its {provider}: see whether its CUDA fits this "
                "machine's"
            )
        self.kind, self.index = device.type, device.index or 0
        self.inputs = [item.name for item in self.session.get_inputs()]
        self.outputs = [item.name for item in self.session.get_outputs()]

    def __call__(self, inputs: Any) -> Outputs:
        arrays = self.arrays(inputs)
        return [torch.from_numpy(array) for array in self.session.run(None, arrays)]

    def bound(self, inputs: Any) -> Callable[[], object]:
        """A call on these inputs, which are brought to the device once; its outputs stay there.

        Raises:
            ExportError: an input is bfloat16.
        """
        from onnxruntime import OrtValue

        binding = self.session.io_binding()
        arrays = self.arrays(inputs)
        values = {}
        for name, array in arrays.items():
            values[name] = OrtValue.ortvalue_from_numpy(array, self.kind, self.index)
            binding.bind_ortvalue_input(name, values[name])
        for name in self.outputs:
            binding.bind_output(name, self.kind, self.index)
        kept = (binding, arrays, values)  # ONNX Runtime reads their memory

        def call() -> object:
            self.session.run_with_iobinding(binding)
            return kept

        return call

    def arrays(self, inputs: Any) -> dict[str, Any]:
        """`named_arrays`, by the file's names."""
        return named_arrays(self.inputs, inputs)


def named_arrays(names: Sequence[str], inputs: Any) -> dict[str, Any]:
    """Inputs as NumPy arrays, by a file's names: keywords are these names, others come in order.

    Raises:
        ExportError: an input is bfloat16.
    """
    if isinstance(inputs, Mapping) and set(names) <= set(inputs):
        return {name: _array(inputs[name]) for name in names}
    return {name: _array(one) for name, one in zip(names, tensors_of(inputs), strict=True)}


def _array(tensor: Tensor) -> Any:
    if tensor.dtype is torch.bfloat16:
        raise ExportError(
            "NumPy, whose arrays runtimes take, knows no bfloat16: convert the model with .float() "
            "or .half()"
        )
    return tensor.detach().cpu().numpy()


def tensors_of(inputs: Any) -> list[Tensor]:
    """The tensors among example inputs, in order."""
    return tensor_leaves(as_call(inputs))


# ---------------------------------------------------------------- what exporters say


@contextmanager
def quietly() -> Iterator[None]:
    """Without what exporters and compilers print, warn and log; what matters is an exception."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def innermost(problem: BaseException) -> str:
    """The first line of the innermost cause, which is where exporters say what is the matter."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    text = str(problem).partition(" For more information")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = [line[:300].rstrip(".") for line in lines[:1]]
    return ": ".join([type(problem).__name__, *first])
