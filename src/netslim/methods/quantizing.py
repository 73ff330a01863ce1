"""A trained network in whole numbers of eight bits, and proof of what that costs.

A layer computes in int8 where both what it reads and its weights are given as whole numbers with a
step size. The steps of weights follow from the weights; those of what layers put out from what they
are seen to put out on a few batches of training data. Batch normalisation is first folded into the
convolution before it, so that no step lies in between: ONNX Runtime's own preparation does that.

In the file each such tensor goes through a pair of operators, QuantizeLinear and DequantizeLinear
(QDQ); runtimes that know int8 put them together with the layer between.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from netslim._support import check_batches, checks_calls, expect
from netslim.errors import ArgumentError, ExportError
from netslim.graph.modules.batches import inputs_of
from netslim.methods.quantization import Quantization
from netslim.methods.quantizing_program import (
    Examples,
    check_plain,
    need_pt2e,
    quantized_program,
)
from netslim.models.export import beside, check_new, export, module_of
from netslim.models.onnx_session import Outputs, Session, need_onnx
from netslim.models.parity import run
from netslim.models.runtimes import onnx_int8

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # whose weights are most of a network
_DEQUANTIZED = "DequantizeLinear"


@checks_calls
@dataclass(frozen=True, slots=True)
class Quantized:
    """A file in int8 that `quantize` has written.

    Attributes:
        path, size_bytes: the file.
        float_bytes: of the same network in float32, in the same format.
        noise: by how much its outputs on the first batch differ from those in float: the root mean
            square of the differences, relative to that of the outputs.
        layers, of: how many convolutions, linear layers and products of matrices compute in int8,
            of how many.
        batches: how many the ranges were taken from.
        inputs, outputs: names of the tensors in the file.
        weight_bits: how many bits the weights have (`Quantization.weight_type`).

    Example:
        >>> found: netslim.methods.Quantized = netslim.quantize(model, loader, "small.int8.onnx")
        >>> found.layers == found.of, found.noise < 0.2
        (True, True)
    """

    path: Path
    size_bytes: int
    float_bytes: int
    noise: float
    layers: int
    of: int
    batches: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_bits: int = 8


@checks_calls
def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    path: str | os.PathLike[str],
    options: Quantization = Quantization(),
    *,
    dynamic_batch: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Quantized:
    """Write a trained model as a file that computes in int8: static, after training.

    To `.onnx` it is QDQ by ONNX Runtime; to `.pt2` a program of `torch.export`, quantised by
    torchao's PT2E for x86, which `torch.export.load` reads once `torchao.quantization.pt2e` is
    imported. The model is exported in float and proved as by `netslim.export`; the int8 file is
    read back and run, and gets its name only then. It does not compute the same: `noise` says by
    how much, and accuracy has to be measured.

    Args:
        model: any module that `netslim.export` can write in the format; it is not changed.
        batches: a data loader or list, some ten batches of training data (labels are not needed),
            prepared as in training; ranges are taken from them. Never the images that the result is
            judged by.
        path: an `.onnx` or `.pt2` file that does not exist yet.
        options: how step sizes are chosen; PT2E knows its own way alone.
        dynamic_batch, metadata: as for `netslim.export`.

    Raises:
        ArgumentError: the path's ending is neither, options are given for PT2E, or there is no
            batch.
        ExportError: the file exists, packages are missing (`pip install netslim[onnx]`, `[pt2e]`),
            the model cannot be exported, or no layer of it can be brought to int8; nothing is left
            behind.
        TraceError: the model does not run on the first batch.

    Example:
        >>> netslim.quantize(model, loader, "small.int8.onnx")  # doctest: +ELLIPSIS
        Quantized(...)
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ArgumentError(f"{path}: a network in int8 is written to a .onnx or .pt2 file")
    check_new(path)
    expect(options, Quantization, "options", "quantize(model, batches, path, Quantization())")
    if path.suffix == ".pt2":
        check_plain(path, options)
        need_pt2e()
    else:
        need_onnx()
    first, rest = _first(examples_of(batches))
    with TemporaryDirectory() as folder:
        exact = Path(folder) / f"float{path.suffix}"
        done = export(model, first, exact, dynamic_batch=dynamic_batch, metadata=metadata)
        if path.suffix == ".onnx":
            return to_int8(exact, chain([first], rest), path, options)
        examples = Examples(chain([first], rest))
        made = quantized_program(exact, examples, dynamic_batch, metadata or {})
        with beside(path) as temporary:
            temporary.write_bytes(made.content)
            expected, found = run(module_of(exact), first), run(module_of(temporary), first)
            noise = _noise(expected, found)
    size, names = done.size_bytes, (done.inputs, done.outputs)
    counts = made.layers, made.of, examples.count
    return Quantized(path, len(made.content), size, noise, *counts, *names)


def examples_of(batches: Iterable[Any]) -> Iterator[Any]:
    """The inputs in each batch, as `netslim.export` takes them."""
    for batch in check_batches(batches):
        args, kwargs = inputs_of(batch)
        yield kwargs or args


def _first(examples: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
    for first in examples:
        return first, examples
    raise ArgumentError("batches= gives no batch: pass a data loader or a list of training batches")


def to_int8(exact: Path, examples: Iterable[Any], path: Path, options: Quantization) -> Quantized:
    """`quantize`, of a network that is an ONNX file already, on example inputs of its model.

    Raises:
        ExportError: as `quantize`.
    """
    given = Session(str(exact), torch.device("cpu"))
    seen = _Seen(given, examples)
    with TemporaryDirectory() as folder:
        made = Path(folder) / "int8.onnx"
        bits = onnx_int8.write(exact, made, seen, **vars(options))
        layers, of = _counted(made)
        if not layers:
            raise ExportError("no layer of the network can be brought to int8: export it as it is")
        content = _with_metadata(made, exact)
    with beside(path) as temporary:
        temporary.write_bytes(content)
        found = Session(str(temporary), torch.device("cpu"))
        noise = _noise(given(seen.first), found(seen.first))
    names = tuple(found.inputs), tuple(found.outputs)
    size = exact.stat().st_size
    return Quantized(path, len(content), size, noise, layers, of, seen.count, *names, bits)


class _Seen(Examples):
    """What ONNX Runtime's calibration reads: one batch after the other, by the file's names."""

    def __init__(self, session: Session, examples: Iterable[Any]) -> None:
        super().__init__(examples)
        self.session = session

    def get_next(self) -> dict[str, Any] | None:
        """The next batch as arrays; None after the last."""
        for example in self:
            return self.session.arrays(example)
        return None


def _counted(path: Path) -> tuple[int, int]:
    """How many of the layers read whole numbers alone, and how many there are."""
    import onnx

    nodes = onnx.load(path).graph.node
    maker = {name: node.op_type for node in nodes for name in node.output}
    layers = [node for node in nodes if node.op_type in _LAYERS]
    whole = [node for node in layers if {maker.get(n) for n in node.input[:2]} == {_DEQUANTIZED}]
    return len(whole), len(layers)


def _with_metadata(made: Path, exact: Path) -> bytes:
    """The file with the metadata that the float one has, and without the names of tools."""
    import onnx

    proto, told = onnx.load(made), onnx.load(exact, load_external_data=False).metadata_props
    onnx.helper.set_model_props(proto, {item.key: item.value for item in told})
    content: bytes = proto.SerializeToString()
    return content


def _noise(expected: Outputs, found: Outputs) -> float:
    """The root mean square of the differences, relative to that of what is expected."""
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True)]
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(a.square().sum()) for a, _ in pairs)
    if not math.isfinite(off):
        raise ExportError("in int8 the network puts out values that are no numbers")
    return math.sqrt(off / max(size, math.ulp(0.0)))


__all__ = ["Quantized", "examples_of", "quantize", "to_int8"]
