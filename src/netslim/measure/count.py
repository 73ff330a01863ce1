"""Parameters, MACs, activations and bytes of a model.

One convention throughout: a MAC is one multiply-accumulate, two of what `torch.utils.flop_counter`
calls FLOPs. Convolutions, linear layers, matrix products, attention and recurrent layers count;
norms, activation functions, pooling, element-wise operations and biases do not. Activations are the
elements that these same layers put out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from netslim.errors import TraceError
from netslim.graph.modules.calls import as_call, evaluating, no_fast_path, refusing
from netslim.graph.modules.wrapping import bare, eagerly

__all__ = ["Cost", "ModuleCost", "cost", "size_on_disk"]


@dataclass(frozen=True)
class ModuleCost:
    """One module's own share, without its children's.

    Attributes:
        params: its parameters.
        macs: multiply-accumulates of the operators it calls.
        activations: elements that the layers among these operators put out.
    """

    params: int
    macs: int
    activations: int = 0


@dataclass(frozen=True)
class Cost:
    """What a model costs for one batch of example inputs; `str()` is a table.

    Attributes:
        params: trainable and frozen parameters, shared ones once. Buffers are not parameters.
        macs: multiply-accumulates of one forward pass of the whole batch of the example inputs.
        by_module: the modules that have parameters or do MACs, by name, in order; `""` is the model
            itself. The rows add up to the totals.
        activations: elements that layers put out in this pass: convolutions, linear layers, matrix
            products, attention and recurrent layers, as in RegNet (Radosavovic et al. 2020), fvcore
            and timm. What does not depend on the inputs, such as a standardised weight, is none.
        activation_bytes: bytes of these elements in their data types.
        peak_bytes: most bytes of inputs and intermediate tensors alive at once in this pass, which
            is eager and without gradients. Parameters, buffers, and what an operator needs only
            while it runs, do not count.
    """

    params: int
    macs: int
    by_module: dict[str, ModuleCost] = field(repr=False)
    activations: int = 0
    activation_bytes: int = 0
    peak_bytes: int = 0

    def within(self, name: str) -> ModuleCost:
        """The sum over module `name` and everything inside it."""
        inside = f"{name}." if name else ""
        rows = [row for path, row in self.by_module.items() if f"{path}.".startswith(inside)]
        return ModuleCost(
            sum(row.params for row in rows),
            sum(row.macs for row in rows),
            sum(row.activations for row in rows),
        )

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("module", "params", "share", "MACs", "share", "activations", "share")
        ]
        total = ModuleCost(self.params, self.macs, self.activations)
        for name, row in (*self.by_module.items(), ("total", total)):
            rows.append((name or "(itself)", *_cells(row, total)))
        widths = [max(len(row[column]) for row in rows) for column in range(7)]
        lines = [
            "  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in rows
        ]
        return "\n".join(
            [
                *lines,
                f"at most {self.peak_bytes:,} bytes of inputs and intermediate tensors at once",
            ]
        )


def _cells(row: ModuleCost, total: ModuleCost) -> Iterator[str]:
    """Each figure and its share of the total."""
    for name in ("params", "macs", "activations"):
        part, whole = getattr(row, name), getattr(total, name)
        yield f"{part:,}"
        yield f"{100 * part / whole if whole else 0:.1f} %"


def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Count parameters, MACs and activations by running `model` once, in evaluation mode and
    without gradients.

    Args:
        model: left as it was, training flags included.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, where
            the model is. MACs and activations are those of this batch: give one example for the
            MACs of one example.

    Raises:
        TraceError: the model does not run on these inputs.
    """
    model = bare(model, TraceError, allow=("meta",))
    outputs, flops, activations = _run(model, example_inputs)
    params = _params_by_module(model)
    rows = {name: ModuleCost(params[name], flops[name] // 2, activations[name]) for name in params}
    return Cost(
        sum(params.values()),
        sum(row.macs for row in rows.values()),
        {name: row for name, row in rows.items() if row != ModuleCost(0, 0)},
        outputs.elements,
        outputs.bytes,
        outputs.peak,
    )


def size_on_disk(model: nn.Module) -> int:
    """Bytes of the model's tensors in a safetensors file: parameters and persistent buffers, shared
    ones once.

    The file's header, some tens of bytes a tensor, comes on top.
    """
    tensors = {id(t): t for t in model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _params_by_module(model: nn.Module) -> dict[str, int]:
    """Own parameters of every module; a shared one belongs to the first module that has it."""
    seen: set[int] = set()
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        counts[name] = sum(p.numel() for p in own)
    return counts


def _run(model: nn.Module, example_inputs: Any) -> tuple[_Outputs, dict[str, int], dict[str, int]]:
    """What the run put out, and own FLOPs and activations of every module: without those of the
    calls it makes.
    """
    args, kwargs = as_call(example_inputs)
    outputs = _Outputs([leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    meters = (counter.get_total_flops, lambda: outputs.elements)
    with (
        eagerly(),
        evaluating(model),
        torch.no_grad(),
        no_fast_path(),
        _attributed(model, meters) as (flops, activations),
        outputs,
        counter,
        refusing(example_inputs),
    ):
        model(*args, **kwargs)
    return outputs, flops, activations


@contextmanager
def _attributed(
    model: nn.Module, meters: Sequence[Callable[[], int]]
) -> Iterator[list[dict[str, int]]]:
    """While it lasts, the dicts it gives fill with what each meter counts in a module without its
    children.
    """
    names = {id(module): name for name, module in model.named_modules()}
    own = [dict.fromkeys(names.values(), 0) for _ in meters]
    callers: list[str] = []
    settled = [0 for _ in meters]

    def settle() -> None:
        """What was counted since the last call or return belongs to the innermost running module."""
        for i, meter in enumerate(meters):
            total = meter()
            if callers:
                own[i][callers[-1]] += total - settled[i]
            settled[i] = total

    def enter(module: nn.Module, args: Any) -> None:
        settle()
        # A module made on the fly has no name: its work is its caller's.
        callers.append(names.get(id(module), callers[-1] if callers else ""))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        settle()
        callers.pop()

    handles = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield own
    finally:
        for handle in handles:
            handle.remove()


class _Outputs(TorchDispatchMode):
    """Counts what layers put out, and follows which memory is alive, through references that keep
    none alive.
    """

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.elements = self.bytes = self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}  # and its bytes
        self._moving: set[int] = set()  # memory whose content depends on the inputs
        for tensor in inputs:
            for storage in _storages(tensor):
                size = min(storage.nbytes(), tensor.numel() * tensor.element_size())
                self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), size))
                self._moving.add(storage._cdata)
        self._look()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else PyTorch imports torch._dynamo when the first operator runs, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        for key in [key for key, (reference, _) in self._alive.items() if reference.expired()]:
            del self._alive[key]
            self._moving.discard(key)
        out = func(*args, **(kwargs or {}))
        read = {s._cdata for leaf in tree_leaves((args, kwargs)) for s in _storages(leaf)}
        moving = not self._moving.isdisjoint(read)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for storage in (s for tensor in results for s in _storages(tensor)):
            size = 0 if storage._cdata in read else storage.nbytes()
            self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), size))
            if moving:
                self._moving.add(storage._cdata)
        if moving and func._schema.name.removeprefix("aten::").removesuffix("_") in _LAYERS:
            self.elements += results[0].numel()
            self.bytes += results[0].numel() * results[0].element_size()
        self._look()
        return out

    def _look(self) -> None:
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))


def _storages(value: Any) -> Iterator[Any]:
    """The memory behind a tensor; none for sparse ones, and for what is no tensor."""
    if isinstance(value, Tensor):
        with suppress(NotImplementedError, RuntimeError):
            yield value.untyped_storage()


# Operators that do multiply-accumulates: what they put out first is activations.
_LAYERS = frozenset(
    """
    mm bmm addmm baddbmm _addmm_activation mv addmv dot vdot linear mkldnn_linear _mkldnn_linear _trilinear convolution
    _convolution convolution_overrideable mkldnn_convolution cudnn_convolution torchvision::deform_conv2d
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_fused_attention_overrideable
    _scaled_dot_product_attention_math mkldnn_rnn_layer _cudnn_rnn
    """.split()  # noqa: SIM905
)


def _product(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    """FLOPs of matrix x vector and vector x vector: the first operand meets every multiplication
    once.
    """
    return 2 * prod(shapes[0])


def _added_product(added: Any, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
    return _product(*shapes)


def _recurrent(steps: Any, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
    """FLOPs of a fused recurrent layer: every weight matrix once for each step of each sequence."""
    listed = shapes[0] if isinstance(shapes[0], list) else shapes[:2]
    return 2 * prod(steps[:-1]) * sum(prod(shape) for shape in listed if len(shape) == 2)


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of fused attention: queries times keys, and the result times values."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


# Operators that the counter of some torch release does not know and that would otherwise count as
# nothing.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _product,
    torch.ops.aten.dot: _product,
    torch.ops.aten.addmv: _added_product,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten._cudnn_rnn: _recurrent,
    **{
        getattr(torch.ops.aten, name): _attention
        for name in sorted(_LAYERS)
        if name.startswith("_scaled_dot_product")
        and not name.endswith("math")
        and hasattr(torch.ops.aten, name)
    },
}
