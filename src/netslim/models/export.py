"""Networks written for other runtimes, as ONNX or by `torch.export`, and compared there with the
module itself.
"""

from __future__ import annotations

import inspect
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from netslim._support import expect, replacing
from netslim.errors import ExportError
from netslim.graph.modules.calls import (
    as_call,
    describe,
    evaluating,
    no_fast_path,
    output_tensors,
    refusing,
)
from netslim.graph.modules.wrapping import bare, duplicate
from netslim.models.onnx_session import Outputs, Session, _need_onnx, _reason, _tensors, quietly

Format = Literal["onnx", "torch.export"]
Loaded = Callable[[Any], Outputs]  # example inputs -> what the file computes from them

SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch.export"}
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest output
LOW_PRECISION = 2e-2
BATCH = "batch"  # what the first dimension is called in a file that takes batches of any size
LARGEST = 2**31 - 1  # without a limit torch 2.6 refuses some models


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that `export` has written.

    Attributes:
        path, size_bytes: the file.
        format: `onnx` or `torch.export`.
        deviation: largest difference between an output of the file and of the model, relative to
            the largest entry of that output, over all inputs that were tried; for outputs of
            integers the share of entries that differ.
        batch_sizes: that were tried; more than one where the file takes batches of any size.
        inputs, outputs: names of the tensors in the file.
        opset: of ONNX; else None.
    """

    path: Path
    size_bytes: int
    format: Format
    deviation: float
    batch_sizes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int | None = None


def export(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    dynamic_batch: bool = True,
    opset: int | None = None,
    tolerance: float | None = None,
) -> Exported:
    """Write a model to a file for another runtime, and prove that the file computes the same.

    The file is read back and run, in ONNX Runtime or by `torch.export.load`, on the example inputs,
    on random ones of the same shapes and, with ``dynamic_batch``, on batches of other sizes. It
    gets its name only when all agree, so that a file by that name can be relied on.

    Args:
        model: any module; it is not changed, and exported in evaluation mode. To ONNX a copy on the
            CPU is exported; a `torch.export` file belongs to the device where the model is.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs. What is
            no tensor becomes a constant of the file.
        path: a file that does not exist yet.
        format: `onnx` or `torch.export`; by default what the ending of ``path`` says, `.onnx` or
            `.pt2`.
        dynamic_batch: let the first dimension of the inputs vary; without it the file takes the
            shapes of the example.
        opset: of ONNX; by default what this torch writes.
        tolerance: largest accepted relative deviation; by default 1e-9 in float64, 1e-4 in float32,
            else 2e-2.

    Raises:
        ExportError: the file exists, packages are missing (`pip install netslim[onnx]`), the model
            cannot be exported, or the file deviates; nothing is left behind then.
        TraceError: the model does not run on the example inputs.
    """
    expect(path, (str, os.PathLike), "path", "export(model, example_inputs, path)")
    path = Path(path)
    kind = _format(path, format, opset)
    if path.exists():
        raise ExportError(
            f"{path} exists already, and finished work is not overwritten; choose another name"
        )
    model = bare(model, ExportError, call="export(model, example_inputs, path)")
    if kind == "onnx":
        _need_onnx()
        model, example_inputs = _on_cpu(model, example_inputs)
    with evaluating(model), torch.no_grad():
        with refusing(example_inputs):
            _run(model, example_inputs)
        traced = _trace(model, example_inputs, dynamic_batch)
        content, written = (
            (_as_program(traced), None) if kind == "torch.export" else _as_onnx(traced, opset)
        )
        with _beside(path) as temporary:
            temporary.write_bytes(content)
            loaded = _LOADERS[kind](temporary)
            deviation, sizes = _compare(model, loaded, example_inputs, dynamic_batch, tolerance)
    return Exported(
        path, len(content), kind, deviation, sizes, traced.input_names, traced.output_names, written
    )


def onnx_bytes(model: nn.Module, example_inputs: Any) -> bytes:
    """The model as ONNX, for the shapes and the device of the example inputs alone.

    Raises:
        ExportError: packages are missing, or the model cannot be exported.
    """
    _need_onnx()
    model = bare(model, ExportError)
    with evaluating(model), torch.no_grad():
        return _as_onnx(_trace(model, example_inputs, dynamic=False), None)[0]


# ---------------------------------------------------------------- what is asked for


def _format(path: Path, given: str | None, opset: int | None) -> Format:
    kind = SUFFIXES.get(path.suffix) if given is None else given
    if kind not in get_args(Format):
        wrong = f"format={given!r}" if given is not None else f"{path}: its ending names no format"
        raise ExportError(
            f"{wrong}; write to a file that ends in .onnx or .pt2, or say format='onnx' or "
            "'torch.export'"
        )
    if opset is not None and kind != "onnx":
        raise ExportError(
            f"opset={opset} belongs to ONNX, and {path} is written by torch.export: leave it out"
        )
    return kind  # type: ignore[return-value]


def _on_cpu(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    elsewhere = any(t.device.type != "cpu" for t in [*model.parameters(), *model.buffers()])
    moved = tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, inputs)
    return (duplicate(model).cpu() if elsewhere else model), moved


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class _Traced:
    """A model as one graph of operators, and what it was made from."""

    model: nn.Module
    inputs: Any
    dynamic: bool
    program: torch.export.ExportedProgram

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of the tensors among the inputs, in order."""
        given = zip(
            self.program.graph_signature.user_inputs, tree_leaves(as_call(self.inputs)), strict=True
        )
        return tuple(str(name) for name, value in given if isinstance(value, Tensor))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Keys of an output dictionary, else `output`, or `output_0`, `output_1` and so on."""
        count = len(self.program.graph_signature.user_outputs)
        spec = self.program.call_spec.out_spec
        keys = spec.context if spec is not None and spec.type is dict else None
        if keys is not None and len(keys) == count and all(isinstance(key, str) for key in keys):
            return tuple(keys)
        return ("output",) if count == 1 else tuple(f"output_{number}" for number in range(count))


def _trace(model: nn.Module, inputs: Any, dynamic: bool) -> _Traced:
    inputs = _in_order(model, inputs)
    shapes, example = None, inputs
    if dynamic:
        example = _batched(
            inputs, max(2, _batch_size(inputs))
        )  # torch.export takes a size of 1 for a constant
        shapes = torch.export.ShapesCollection()
        for tensor in _with_batch(example, _batch_size(example)):
            shapes[tensor] = {0: torch.export.Dim(BATCH, max=LARGEST)}
    args, kwargs = as_call(example)
    try:
        with quietly(), no_fast_path():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as problem:
        remedy = (
            "; where the model fixes its batch size, export with dynamic_batch=False"
            if dynamic
            else ""
        )
        raise ExportError(
            f"torch.export cannot follow the model: {_reason(problem)}{remedy}"
        ) from problem
    return _Traced(model, inputs, dynamic, program)


def _as_program(traced: _Traced) -> bytes:
    with quietly(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "program.pt2")
        torch.export.save(traced.program, file)
        return file.read_bytes()


def _as_onnx(traced: _Traced, opset: int | None) -> tuple[bytes, int]:
    """An ONNX file, and its opset."""
    import onnx

    with quietly():
        try:
            proto = _translated(traced, opset)
        except Exception as problem:
            try:  # the older exporter: torch 2.6 does not know today's onnxscript
                proto = onnx.load_from_string(_scripted(traced, opset))
            except Exception:
                raise ExportError(
                    f"the model cannot be written as ONNX: {_reason(problem)}"
                ) from problem
    written = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    if opset not in (None, written):
        raise ExportError(
            f"torch did not write opset {opset} but {written}: give another one, or none"
        )
    _name_batch(proto)
    return proto.SerializeToString(), written


def _translated(traced: _Traced, opset: int | None) -> Any:
    names = list(traced.output_names)
    made = torch.onnx.export(
        traced.program,
        dynamo=True,
        verbose=False,
        external_data=False,
        opset_version=opset,
        output_names=names,
    )
    assert made is not None
    return made.model_proto


def _scripted(traced: _Traced, opset: int | None) -> bytes:
    tensors, file = tuple(_tensors(traced.inputs)), BytesIO()
    batched = {id(tensor) for tensor in _with_batch(traced.inputs, _batch_size(traced.inputs))}
    free = [
        name
        for name, tensor in zip(traced.input_names, tensors, strict=True)
        if id(tensor) in batched
    ]
    torch.onnx.export(
        _OnTensors(traced.model, traced.inputs).eval(),
        tensors,
        file,  # type: ignore[arg-type]
        dynamo=False,
        opset_version=opset,
        input_names=traced.input_names,
        output_names=traced.output_names,
        dynamic_axes={name: {0: BATCH} for name in (*free, *traced.output_names)}
        if traced.dynamic
        else None,
    )
    return file.getvalue()


class _OnTensors(nn.Module):
    """A model as a function of the tensors among its inputs alone, which is all that the older
    exporter takes.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.leaves, self.spec = tree_flatten(as_call(inputs))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.spec)
        return tuple(output_tensors(self.model(*args, **kwargs)))


def _name_batch(proto: Any) -> None:
    """Call the batch size by its name: torch makes up a symbol for it."""
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    symbols = {
        dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim
    } - {""}
    if len(symbols) != 1:
        return
    symbol = re.compile(rf"\b{re.escape(*symbols)}\b")
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim):
        if dim.dim_param:
            dim.dim_param = symbol.sub(BATCH, dim.dim_param)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """`replacing`, in a folder that is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from None


def _load_onnx(path: Path) -> Loaded:
    return Session(str(path), torch.device("cpu"))


def _load_program(path: Path) -> Loaded:
    with quietly():
        module = torch.export.load(path).module()
    return lambda inputs: _run(module, inputs)


_LOADERS: dict[Format, Callable[[Path], Loaded]] = {
    "onnx": _load_onnx,
    "torch.export": _load_program,
}


# ---------------------------------------------------------------- the comparison


def _compare(
    model: nn.Module, loaded: Loaded, example: Any, dynamic: bool, tolerance: float | None
) -> tuple[float, tuple[int, ...]]:
    """The largest deviation, and the batch sizes at which it was looked for."""
    size = _batch_size(example)
    sizes = sorted({1, size, size + 2}) if dynamic else [size]
    generator = torch.Generator().manual_seed(0)
    trials = [example, *(_random(_batched(example, count), generator) for count in sizes)]
    worst = 0.0
    for inputs in trials:
        expected = _run(model, inputs)
        try:
            found = loaded(inputs)
        except ExportError:
            raise
        except Exception as problem:
            raise ExportError(
                f"the file does not run on inputs of {describe(inputs)}: {_reason(problem)}"
            ) from problem
        off, allowed = (
            _deviation(expected, found),
            _tolerance(expected) if tolerance is None else tolerance,
        )
        worst = max(worst, off)
        if not off <= allowed:
            raise ExportError(
                "the file does not compute what the model does: on inputs of "
                f"{describe(inputs)} outputs deviate by {off:.1e} of the largest, and "
                f"{allowed:.1e} is accepted; nothing was written"
            )
    return worst, tuple(sizes)


def _deviation(expected: Outputs, found: Outputs) -> float:
    if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in found]:
        return math.inf
    return max((_off(a, b.to(a.device)) for a, b in zip(expected, found, strict=True)), default=0.0)


def _off(expected: Tensor, found: Tensor) -> float:
    """The largest difference relative to the largest entry; infinite where one of the two is not a
    number.
    """
    if not expected.numel():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return float((expected != found).double().mean())
    same = (expected == found) | (expected.isnan() & found.isnan())
    finite = expected.isfinite() & found.isfinite()
    if not (same | finite).all():
        return math.inf
    wide = torch.complex128 if expected.is_complex() else torch.float64
    largest = expected[finite].to(wide).abs().amax() if finite.any() else torch.tensor(0.0)
    gap = (
        (expected[finite].to(wide) - found[finite].to(wide)).abs().amax()
        if finite.any()
        else torch.tensor(0.0)
    )
    return float(gap / largest) if largest > 0 else float(gap)


def _tolerance(outputs: Outputs) -> float:
    return max(
        (TOLERANCES.get(t.dtype, LOW_PRECISION) for t in outputs if t.is_floating_point()),
        default=1e-4,
    )


# ---------------------------------------------------------------- inputs and outputs


def _run(model: Any, inputs: Any) -> Outputs:
    args, kwargs = as_call(inputs)
    return output_tensors(model(*args, **kwargs))


def _batch_size(inputs: Any) -> int:
    """The first dimension of the first input that has one."""
    return next((t.shape[0] for t in _tensors(inputs) if t.dim()), 1)


def _in_order(model: nn.Module, inputs: Any) -> Any:
    """Keyword inputs in the order of the model's parameters: files know inputs by their order too."""
    if not isinstance(inputs, Mapping):
        return inputs
    order = list(inspect.signature(model.forward).parameters)
    return dict(
        sorted(
            inputs.items(),
            key=lambda item: order.index(item[0]) if item[0] in order else len(order),
        )
    )


def _with_batch(inputs: Any, size: int) -> list[Tensor]:
    return [t for t in _tensors(inputs) if t.dim() and t.shape[0] == size]


def _batched(inputs: Any, count: int) -> Any:
    """The inputs with another batch size: their examples over again."""
    size = _batch_size(inputs)

    def change(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim() or value.shape[0] != size:
            return value
        return value[torch.arange(count, device=value.device) % size]

    return tree_map(change, inputs)


def _random(inputs: Any, generator: torch.Generator) -> Any:
    """Normal numbers where the inputs are real; integers and booleans keep their values, in another
    order.
    """

    def change(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point() or value.is_complex():
            return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        order = torch.randperm(value.numel(), generator=generator).to(value.device)
        return value.flatten()[order].view(value.shape)

    return tree_map(change, inputs)
