"""A model on its inputs as one call: as it is, compiled, or in another runtime."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from netslim._support import first_line
from netslim.errors import ArgumentError, ExportError, TraceError
from netslim.graph.modules.calls import advice, as_call, evaluating
from netslim.graph.modules.unwrapping import inside, without_values
from netslim.measure.runtimes import Backend
from netslim.models.export import onnx_bytes, program_of
from netslim.models.onnx_session import Session, quietly
from netslim.models.runtimes import aotinductor, executorch, onnx_int8, openvino
from netslim.surgery.ports import cut_inputs

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ready:
    """A call without arguments, where it computes, and what runs it."""

    call: Call
    device: torch.device
    backend: str = "eager"

    def __call__(self) -> object:
        return self.call()


@contextmanager
def prepared(
    model: nn.Module,
    example_inputs: Any,
    backend: Backend = "eager",
    device: torch.device | str | None = None,
    name: str = "model",
) -> Iterator[Ready]:
    """The forward pass of ``model`` on the example inputs, ready to be called.

    The model is in evaluation mode while this lasts.

    Args:
        model: it is not changed; on another device a copy of it runs.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        backend: as for `netslim.latency`. With CPU threads as torch has them set now.
        device: None is where the parameters are.
        name: of the model, for messages.

    Raises:
        ArgumentError: the device or backend cannot be used here, or the backend cannot take the
            model.
        TraceError: the model does not run on the example inputs.
    """
    check_backend(backend)
    if any(map(without_values, (*model.parameters(), *model.buffers()))):
        raise ArgumentError(
            f"latency: {name!r} has no values, so nothing would be computed: it was made on the "
            "meta device or in a FakeTensorMode; make it, and load its weights, outside"
        )
    place = home(model, example_inputs) if device is None else usable(device)
    if backend != "eager":  # which has no use for what is compiled already
        model = inside(model)
    model = _on(model, place)
    inputs = moved(cut_inputs(model, example_inputs), place)
    with evaluating(model), torch.no_grad():
        _try(model, inputs, name)
        yield Ready(_BACKENDS[backend](model, inputs, place, name), place, backend)


def check_backend(backend: str, among: Any = Backend) -> None:
    """Refuse what is no backend, or none of those `among` which is to be chosen.

    Raises:
        ArgumentError: names those there are.
    """
    if backend not in get_args(among):
        known = ", ".join(get_args(among))
        raise ArgumentError(f"latency: there is no backend {backend!r}; choose one of {known}")


def usable(device: torch.device | str) -> torch.device:
    """The device, with its number.

    Raises:
        ArgumentError: it cannot be used here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as problem:
        raise ArgumentError(
            f"latency: device {str(device)!r} cannot be used here: {first_line(problem)}. Try 'cpu'"
        ) from problem


def moved(inputs: Any, place: torch.device) -> Any:
    """The inputs with their tensors on a device."""
    return tree_map(lambda value: value.to(place) if isinstance(value, Tensor) else value, inputs)


def home(model: nn.Module, inputs: Any) -> torch.device:
    """Where a model is, or if it has no tensors, its inputs."""
    for value in (*model.parameters(), *model.buffers(), *tree_leaves(inputs)):
        if isinstance(value, Tensor):
            return value.device
    return torch.device("cpu")


def _on(model: nn.Module, device: torch.device) -> nn.Module:
    if all(tensor.device == device for tensor in (*model.parameters(), *model.buffers())):
        return model
    return copy.deepcopy(model).to(device)


def _try(model: nn.Module, inputs: Any, name: str) -> None:
    try:
        args, kwargs = as_call(inputs)
        model(*args, **kwargs)
    except Exception as problem:
        raise TraceError(
            f"latency: {name!r} did not run on the example inputs: {problem}; {advice(inputs)}"
        ) from problem


def _eager(model: nn.Module, inputs: Any, device: torch.device, name: str) -> Call:
    """The model as it is."""
    args, kwargs = as_call(inputs)
    return lambda: model(*args, **kwargs)


def _compiled(model: nn.Module, inputs: Any, device: torch.device, name: str) -> Call:
    """The model through `torch.compile`, compiled by a first call.

    Compiled code is kept by code object, and all models of a class share that of its forward: they
    would push each other out, or wait for each other's guards. So each is compiled within a
    function whose code is its own, and goes when that goes.
    """

    def forward() -> object:
        return model(*args, **kwargs)

    args, kwargs = as_call(inputs)
    own = types.FunctionType(
        forward.__code__.replace(), forward.__globals__, name, None, forward.__closure__
    )
    try:
        with quietly():
            call = torch.compile(own, dynamic=False)
            call()
    except Exception as problem:
        needed = "Triton, and a GPU that it knows"
        if device.type == "cpu":
            needed = "g++ or clang"
        raise ArgumentError(
            f"latency: torch.compile failed on {name!r}: {first_line(problem)}. It needs {needed}; "
            "backend='eager' needs neither"
        ) from problem
    return call


def _onnxruntime(model: nn.Module, inputs: Any, device: torch.device, name: str) -> Call:
    """The model as ONNX in ONNX Runtime, its inputs bound once."""
    try:
        running = Session(onnx_bytes(model, inputs), device)
    except ExportError as problem:
        raise ArgumentError(f"latency: {name!r} cannot run in ONNX Runtime: {problem}") from problem
    return running.bound(inputs)


def _onnxruntime_int8(model: nn.Module, inputs: Any, device: torch.device, name: str) -> Call:
    """The model as an int8 file in ONNX Runtime. Ranges are of these inputs alone: what it computes
    may be of no use, but the time that it takes does not depend on them.
    """
    try:
        content = onnx_bytes(model, inputs)
        with TemporaryDirectory() as folder:
            exact, made = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            exact.write_bytes(content)
            onnx_int8.write(exact, made, _Once(Session(content, device).arrays(inputs)))
            running = Session(made.read_bytes(), device)
    except ExportError as problem:
        raise ArgumentError(f"latency: {name!r} cannot run in int8: {problem}") from problem
    return running.bound(inputs)


class _Once:
    """One batch, as calibration reads it."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.left: list[dict[str, Any]] = [arrays]

    def get_next(self) -> dict[str, Any] | None:
        """The batch, and then None."""
        if not self.left:
            return None
        return self.left.pop()


def _openvino(model: nn.Module, inputs: Any, device: torch.device, name: str) -> Call:
    """The model as ONNX in OpenVINO."""
    with _on_the_cpu(device, name, "OpenVINO"):
        openvino.need()
        return openvino.Network(onnx_bytes(model, inputs)).bound(inputs)


def _executorch(model: nn.Module, inputs: Any, device: torch.device, name: str) -> Call:
    """The model in ExecuTorch."""
    with _on_the_cpu(device, name, "ExecuTorch"):
        executorch.need()
        return executorch.Network(executorch.content(program_of(model, inputs), {})).bound(inputs)


def _aotinductor(model: nn.Module, inputs: Any, device: torch.device, name: str) -> Call:
    """The model compiled ahead of time; the package may go once it is loaded."""
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt2"
            path.write_bytes(aotinductor.content(program_of(model, inputs), {}))
            return aotinductor.Network(str(path)).bound(inputs)
    except ExportError as problem:
        raise ArgumentError(f"latency: {name!r} cannot be compiled ahead: {problem}") from problem


@contextmanager
def _on_the_cpu(device: torch.device, name: str, runtime: str) -> Iterator[None]:
    """For a runtime that is used on the CPU alone, and may not take a model."""
    if device.type != "cpu":
        raise ArgumentError(f"latency: {runtime} is timed on the CPU: give device='cpu'")
    try:
        yield
    except ExportError as problem:
        raise ArgumentError(f"latency: {name!r} cannot run in {runtime}: {problem}") from problem


_BACKENDS: dict[Backend, Callable[[nn.Module, Any, torch.device, str], Call]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
    "onnxruntime-int8": _onnxruntime_int8,
    "openvino": _openvino,
    "executorch": _executorch,
    "aotinductor": _aotinductor,
}
