"""The way to int8 within PyTorch: torchao's PT2E, for x86.

A program of `torch.export` gets observers, sees the batches, and has them replaced by pairs of
quantize and dequantize; `torch.compile` and AOTInductor put these together with the layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from netslim._support.packages import missing
from netslim.errors import ArgumentError, ExportError
from netslim.graph.modules.calls import as_call
from netslim.methods.quantization import Quantization
from netslim.models.export import module_of, program_bytes
from netslim.models.onnx_session import innermost, quietly

_LAYERS = ("conv", "linear", "matmul", "addmm", "bmm")  # what names of operators begin with


@dataclass(frozen=True)
class Program:
    """A file of `torch.export`, and how many of its layers compute in int8, of how many."""

    content: bytes
    layers: int
    of: int


class Examples:
    """Example inputs, one after the other; how many there were, and the first."""

    def __init__(self, examples: Iterable[Any]) -> None:
        self.examples = iter(examples)
        self.first: Any = None
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        for example in self.examples:
            if not self.count:
                self.first = example
            self.count += 1
            yield example


def need_pt2e() -> None:
    """Make sure that torchao is installed.

    Raises:
        ExportError: it is not.
    """
    if missing(["torchao"]):
        raise ExportError("PT2E needs torchao, not installed here: pip install 'netslim[pt2e]'")


def check_plain(path: Path, options: Quantization) -> None:
    """Refuse options, of which PT2E for x86 has none.

    Raises:
        ArgumentError: one is given.
    """
    if options != Quantization():
        raise ArgumentError(
            f"{path}: options of the quantization are for .onnx files; PT2E knows its own way alone"
        )


def quantized_program(
    exact: Path, examples: Examples, dynamic_batch: bool, metadata: Mapping[str, str]
) -> Program:
    """A float program in int8.

    Args:
        exact: a file of `torch.export`.
        examples: what ranges are taken from.
        dynamic_batch, metadata: as for `netslim.export`.

    Raises:
        ExportError: torchao cannot take it, or no layer of it can be brought to int8.
    """
    try:
        with quietly(), torch.no_grad():
            module = _converted(module_of(exact), examples)
    except Exception as problem:
        raise ExportError(
            f"torchao cannot bring the network to int8: {innermost(problem)}"
        ) from problem
    layers, of = _counted(module.graph)
    if not layers:
        raise ExportError("no layer of the network can be brought to int8: export it as it is")
    return Program(program_bytes(module, examples.first, dynamic_batch, metadata), layers, of)


def _converted(module: Any, examples: Examples) -> fx.GraphModule:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(module, quantizer)
    for example in examples:
        args, kwargs = as_call(example)
        observed(*args, **kwargs)
    made: fx.GraphModule = convert_pt2e(observed)
    _drop_unused(made)
    return made


def _drop_unused(module: fx.GraphModule) -> None:
    """Leave out the float weights, which nothing reads any more."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name in module.state_dict() if name not in used]:
        owner, _, last = name.rpartition(".")
        delattr(module.get_submodule(owner), last)


def _counted(graph: fx.Graph) -> tuple[int, int]:
    """How many of the layers read whole numbers alone, and how many there are."""
    layers = [node for node in graph.nodes if _operator(node).startswith(_LAYERS)]
    whole = [
        node
        for node in layers
        if all(_operator(given).startswith("dequantize") for given in node.args[:2])
    ]
    return len(whole), len(layers)


def _operator(node: Any) -> str:
    return getattr(getattr(node, "target", None), "__name__", "")


__all__ = ["Examples", "Program", "check_plain", "need_pt2e", "quantized_program"]
