"""Networks written for other runtimes and compared there: ONNX, `torch.export`, OpenVINO,
ExecuTorch, AOTInductor.

A file gets its name only after it was read back, run, and found to compute what the module computes
(`netslim.models.parity`): who finds a file can rely on it.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from netslim._support import brief, checks_calls, is_number, nearest, replacing
from netslim._support.progress import Progress, untold
from netslim.errors import ArgumentError, ExportError
from netslim.graph.modules.ambient import FAST_PATH, by_itself
from netslim.graph.modules.calls import (
    as_call,
    evaluating,
    output_tensors,
    refusing,
)
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.unwrapping import bare
from netslim.models.onnx_session import Session, innermost, need_onnx, quietly, tensors_of
from netslim.models.other_files import EXPORTS, Format, format_of
from netslim.models.parity import Computes, batch_size, batched, compare, run, with_batch
from netslim.models.runtimes import aotinductor, executorch, openvino
from netslim.surgery.ports import cut_inputs

Written = tuple[tuple[bytes, ...], int | None]  # what is in the files, and the opset of ONNX
FORMATS: tuple[Format, ...] = get_args(Format)
BATCH = "batch"  # what the first dimension is called in a file that takes batches of any size
LARGEST = 2**31 - 1  # without a limit torch 2.6 refuses some models


@checks_calls
@dataclass(frozen=True, slots=True)
class Exported:
    """A file that `export` has written.

    Attributes:
        path, size_bytes: the file; of OpenVINO the bytes of both.
        format: `onnx`, `torch.export`, `openvino`, `executorch` or `aotinductor`.
        deviation: largest difference between an output of the file and of the model, relative to
            the largest entry of that output, over all inputs that were tried; for outputs of
            integers the share of entries that differ.
        batch_sizes: that were tried; more than one where the file takes batches of any size.
        inputs, outputs: names of the tensors in the file.
        opset: of ONNX; else None.

    Example:
        >>> written: netslim.models.Exported = netslim.export(model, images, "small.pt2")
        >>> written.format, written.path.stat().st_size == written.size_bytes
        ('torch.export', True)
    """

    path: Path
    size_bytes: int
    format: Format
    deviation: float
    batch_sizes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int | None = None


@checks_calls
@by_itself
def export(
    model: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    dynamic_batch: bool = True,
    opset: int | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress = untold,
) -> Exported:
    """Write a model to a file for another runtime, and prove that the file computes the same.

    The file is read back and run, in its runtime, on the example inputs, on random ones of the same
    shapes and, with ``dynamic_batch``, on batches of other sizes. It gets its name only when all
    agree, so that a file by that name can be relied on. Where the model orders rows by scores
    (topk, sort, nms), rows may change places whose scores are nearly equal.

    Args:
        model: any module; it is not changed, and exported in evaluation mode. A copy on the CPU is
            exported, but to `torch.export` and `aotinductor`, whose files belong to the device
            where the model is.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs. What is
            no tensor becomes a constant of the file.
        path: a file that does not exist yet.
        format: `onnx`, `torch.export`, `openvino`, `executorch` or `aotinductor` (machine code for
            machines like this one); by default what the ending of ``path`` says: `.onnx`, `.pt2`,
            `.xml` (with a `.bin` beside it), `.pte` or `.aoti.pt2`.
        dynamic_batch: let the first dimension of the inputs vary; without it the file takes the
            shapes of the example, as every file of ExecuTorch does.
        opset: of ONNX; by default what this torch writes.
        tolerance: largest accepted relative deviation, or one for each output by its name; by
            default 1e-9 in float64, 1e-4 in float32, else 2e-2.
        metadata: texts by name that the file keeps, such as how its inputs are prepared: in
            ``metadata_props`` of ONNX, in ``extra_files`` of `torch.export`, in the metadata of
            AOTInductor and the runtime information of OpenVINO; in ExecuTorch as methods.
        progress: called with what is at work, how many steps are done, and how many there are.

    Raises:
        ArgumentError: the path's ending and ``format`` name no format, or ``opset`` is not its.
        ExportError: the file exists, packages are missing (`pip install netslim[onnx]`,
            `[openvino]` or `[executorch]`), the model cannot be exported, or the file deviates;
            nothing is left behind then.
        TraceError: the model does not run on the example inputs.

    Example:
        >>> netslim.export(model, images, "small.pt2")  # doctest: +ELLIPSIS
        Exported(...)
    """
    _check_tolerance(tolerance)
    path = Path(path)
    kind = _format(path, format, opset)
    beside_it = [path.with_suffix(end) for end in _BESIDE.get(kind, ())]
    for file in (path, *beside_it):
        check_new(file)
    if kind == "executorch" and dynamic_batch:
        raise ArgumentError(
            f"{path}: ExecuTorch plans its memory for one batch size: say dynamic_batch=False"
        )
    model = bare(model, ExportError, call="export(model, example_inputs, path)")
    example_inputs = cut_inputs(model, example_inputs)
    for need in _NEEDS.get(kind, ()):
        need()
    if kind not in _WHERE_IT_IS:
        model, example_inputs = _on_cpu(model, example_inputs)
    with evaluating(model), torch.no_grad():
        with refusing(example_inputs):
            run(model, example_inputs)
        progress("following the model", 0, 4)
        traced = _trace(model, example_inputs, dynamic_batch)
        _check_names(tolerance, traced.output_names)
        progress(f"writing {kind}", 1, 4)
        contents, written = _WRITERS[kind](traced, opset, metadata or {})
        with ExitStack() as stack:
            # What is named first is renamed last: who finds it finds the others, too.
            places = [stack.enter_context(beside(file)) for file in (path, *beside_it)]
            for place, content in zip(places, contents, strict=True):
                place.write_bytes(content)
            progress("reading it back", 2, 4)
            loaded = _LOADERS[kind](*places)
            progress("comparing", 3, 4)
            deviation, sizes = compare(
                model, loaded, example_inputs, dynamic_batch, tolerance, traced.output_names
            )
    names = traced.input_names, traced.output_names
    return Exported(path, sum(map(len, contents)), kind, deviation, sizes, *names, opset=written)


def onnx_bytes(model: nn.Module, example_inputs: Any) -> bytes:
    """The model as ONNX, for the shapes and the device of the example inputs alone.

    Raises:
        ExportError: packages are missing, or the model cannot be exported.
    """
    need_onnx()
    model = bare(model, ExportError)
    with evaluating(model), torch.no_grad():
        return _as_onnx(_trace(model, example_inputs, dynamic=False), None, {})[0]


def program_bytes(
    module: nn.Module, example_inputs: Any, dynamic_batch: bool, metadata: Mapping[str, str]
) -> bytes:
    """A file of `torch.export`, of a module in evaluation mode; nothing is compared.

    Raises:
        ExportError: the module cannot be exported.
    """
    with torch.no_grad():
        return _as_program(_trace(module, example_inputs, dynamic_batch), metadata)


def program_of(model: nn.Module, example_inputs: Any) -> torch.export.ExportedProgram:
    """The model by `torch.export`, for the shapes and the device of the example inputs alone.

    Raises:
        ExportError: the model cannot be exported.
    """
    model = bare(model, ExportError)
    with evaluating(model), torch.no_grad():
        return _trace(model, example_inputs, dynamic=False).program


# ---------------------------------------------------------------- what is asked for


def check_new(path: Path) -> None:
    """Refuse to write to a file that is there.

    Raises:
        ExportError: it is.
    """
    if path.exists():
        raise ExportError(
            f"{path} exists already, and finished work is not overwritten; choose another name"
        )


def _format(path: Path, given: str | None, opset: int | None) -> Format:
    if given is None:
        kind, wrong = format_of(path.name), f"{path}: its ending names no format"
    else:
        kind, wrong = next((f for f in FORMATS if f == given), None), f"format={given!r}"
    if kind is None:
        raise ArgumentError(
            f"{wrong}; write to a file that ends in {', '.join(sorted(EXPORTS))}, or say format= "
            f"one of {', '.join(FORMATS)}"
        )
    if opset is not None and kind != "onnx":
        raise ArgumentError(
            f"opset={opset} belongs to ONNX, and {path} is a file of {kind}: leave it out"
        )
    return kind


def _check_names(tolerance: object, outputs: tuple[str, ...]) -> None:
    if isinstance(tolerance, Mapping):
        for name in tolerance:
            if name not in outputs:
                raise ArgumentError(f"tolerance names the output {name!r}{nearest(name, outputs)}")


def _check_tolerance(tolerance: float | Mapping[str, float] | None) -> None:
    accepted = tolerance.values() if isinstance(tolerance, Mapping) else [tolerance or 0]
    if not all(is_number(value) and value >= 0 for value in accepted):
        raise ArgumentError(f"tolerance must be a number of at least 0, got {brief(tolerance)}")


def _on_cpu(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    if any(t.device.type != "cpu" for t in (*model.parameters(), *model.buffers())):
        model = duplicate(model).cpu()
    return model, tree_map(
        lambda value: value.cpu() if isinstance(value, Tensor) else value, inputs
    )


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
        names, values = self.program.graph_signature.user_inputs, tree_leaves(as_call(self.inputs))
        given = zip(names, values, strict=True)
        return tuple(str(name) for name, value in given if isinstance(value, Tensor))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Keys of an output dictionary, else `output`, or `output_0`, `output_1` and so on."""
        count = len(self.program.graph_signature.user_outputs)
        spec = self.program.call_spec.out_spec
        if spec is not None and spec.type is dict:
            keys = tuple(spec.context)
            if len(keys) == count and all(isinstance(key, str) for key in keys):
                return keys
        if count == 1:
            return ("output",)
        return tuple(f"output_{number}" for number in range(count))


def _in_order(model: nn.Module, inputs: Any) -> Any:
    """Keyword inputs in the order of the model's parameters: files know them by that too."""
    if not isinstance(inputs, Mapping):
        return inputs
    parameters = inspect.signature(model.forward).parameters
    place = {name: number for number, name in enumerate(parameters)}
    return dict(sorted(inputs.items(), key=lambda item: place.get(item[0], len(place))))


def _trace(model: nn.Module, inputs: Any, dynamic: bool) -> _Traced:
    inputs = _in_order(model, inputs)
    shapes, example = None, inputs
    if dynamic:
        # torch.export takes a size of 1 for a constant.
        example = batched(inputs, max(2, batch_size(inputs)))
        shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for tensor in with_batch(example):
            shapes[tensor] = {0: torch.export.Dim(BATCH, max=LARGEST)}
    args, kwargs = as_call(example)
    try:
        with quietly(), FAST_PATH.held():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as problem:
        remedy = ""
        if dynamic:
            remedy = "; where the model fixes its batch size, export with dynamic_batch=False"
        raise ExportError(
            f"torch.export cannot follow the model: {innermost(problem)}{remedy}"
        ) from problem
    return _Traced(model, inputs, dynamic, program)


def _as_program(traced: _Traced, metadata: Mapping[str, str]) -> bytes:
    """A file of `torch.export`."""
    content = BytesIO()
    with quietly():
        torch.export.save(traced.program, content, extra_files=dict(metadata))
    return content.getvalue()


def _onnx_files(traced: _Traced, opset: int | None, metadata: Mapping[str, str]) -> Written:
    content, written = _as_onnx(traced, opset, metadata)
    return (content,), written


def _openvino_files(traced: _Traced, _: int | None, metadata: Mapping[str, str]) -> Written:
    made = openvino.files(_as_onnx(traced, None, {})[0], metadata)
    return (made[".xml"], made[".bin"]), None


def _program_file(traced: _Traced, _: int | None, metadata: Mapping[str, str]) -> Written:
    return (_as_program(traced, metadata),), None


def _executorch_file(traced: _Traced, _: int | None, metadata: Mapping[str, str]) -> Written:
    return (executorch.content(traced.program, metadata),), None


def _package(traced: _Traced, _: int | None, metadata: Mapping[str, str]) -> Written:
    return (aotinductor.content(traced.program, metadata),), None


def _as_onnx(traced: _Traced, opset: int | None, metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """An ONNX file, and its opset."""
    import onnx

    with quietly():
        try:
            proto = _translated(traced, opset)
        except Exception as problem:
            # The older exporter: torch 2.6 does not know today's onnxscript.
            try:
                proto = onnx.load_from_string(_scripted(traced, opset))
            except Exception:
                raise ExportError(
                    f"the model cannot be written as ONNX: {innermost(problem)}"
                ) from problem
    written = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    if opset not in (None, written):
        raise ExportError(
            f"torch did not write opset {opset} but {written}: give another one, or none"
        )
    _name_batch(proto)
    onnx.helper.set_model_props(proto, dict(metadata))
    return proto.SerializeToString(), written


def _translated(traced: _Traced, opset: int | None) -> Any:
    """As ONNX, from the graph of operators."""
    made = torch.onnx.export(
        traced.program, dynamo=True, verbose=False, external_data=False, opset_version=opset,
        output_names=list(traced.output_names),
    )  # fmt: skip
    assert made is not None
    return made.model_proto


def _scripted(traced: _Traced, opset: int | None) -> bytes:
    """As ONNX, by running the model once more under TorchScript's tracer."""
    tensors, file = tuple(tensors_of(traced.inputs)), BytesIO()
    axes: dict[str, dict[int, str]] | None = None
    if traced.dynamic:
        free = {id(tensor) for tensor in with_batch(traced.inputs)}
        axes = {name: {0: BATCH} for name in traced.output_names}
        for name, tensor in zip(traced.input_names, tensors, strict=True):
            if id(tensor) in free:
                axes[name] = {0: BATCH}
    torch.onnx.export(
        _OnTensors(traced.model, traced.inputs).eval(),
        tensors,
        file,  # type: ignore[arg-type]
        dynamo=False,
        opset_version=opset,
        input_names=traced.input_names,
        output_names=traced.output_names,
        dynamic_axes=axes,
    )
    return file.getvalue()


class _OnTensors(nn.Module):
    """A model as a function of the tensors among its inputs: all that the older exporter takes."""

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
    symbols = {dim.dim_param for dim in _dimensions(proto.graph.input)} - {""}
    if len(symbols) != 1:
        return
    symbol = re.compile(rf"\b{re.escape(*symbols)}\b")  # also within products, "2*s0"
    graph = proto.graph
    for dim in _dimensions((*graph.input, *graph.output, *graph.value_info)):
        if dim.dim_param:
            dim.dim_param = symbol.sub(BATCH, dim.dim_param)


def _dimensions(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from value.type.tensor_type.shape.dim


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """`replacing`, in a folder that is made.

    Raises:
        ExportError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from None


def _load_onnx(path: Path) -> Computes:
    return Session(str(path), torch.device("cpu"))


def module_of(path: Path) -> nn.Module:
    """What a file of `torch.export` computes, as a module."""
    with quietly():
        found: nn.Module = torch.export.load(path).module()
    return found


def _load_program(path: Path) -> Computes:
    module = module_of(path)
    return lambda inputs: run(module, inputs)


def _load_openvino(path: Path, weights: Path) -> Computes:
    return openvino.Network(path.read_bytes(), weights.read_bytes())


def _load_executorch(path: Path) -> Computes:
    return executorch.Network(path.read_bytes())


def _load_package(path: Path) -> Computes:
    return aotinductor.Network(str(path))


_NEEDS: dict[Format, tuple[Callable[[], None], ...]] = {
    "onnx": (need_onnx,),
    "openvino": (openvino.need, need_onnx),
    "executorch": (executorch.need,),
}
_WHERE_IT_IS: tuple[Format, ...] = ("torch.export", "aotinductor")  # and not on the CPU
_BESIDE: dict[Format, tuple[str, ...]] = {"openvino": (".bin",)}  # endings of further files
_WRITERS: dict[Format, Callable[[_Traced, int | None, Mapping[str, str]], Written]] = {
    "onnx": _onnx_files,
    "torch.export": _program_file,
    "openvino": _openvino_files,
    "executorch": _executorch_file,
    "aotinductor": _package,
}
_LOADERS: dict[Format, Callable[..., Computes]] = {
    "onnx": _load_onnx,
    "torch.export": _load_program,
    "openvino": _load_openvino,
    "executorch": _load_executorch,
    "aotinductor": _load_package,
}
