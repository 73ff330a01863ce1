"""Parameters, MACs and bytes of a model.

One convention throughout: a MAC is one multiply-accumulate, two of what `torch.utils.flop_counter` calls FLOPs.
Convolutions, linear layers, matrix products, attention and recurrent layers count; norms, activations,
pooling, element-wise operations and biases do not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from netslim.errors import TraceError
from netslim.graph.calls import as_call, evaluating, no_fast_path, refusing
from netslim.wrapping import bare, eagerly

__all__ = ["Cost", "ModuleCost", "cost", "size_on_disk"]


@dataclass(frozen=True)
class ModuleCost:
    """One module's own share: its parameters and the MACs of operators it calls, without its children's."""

    params: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """What a model costs for one batch of example inputs; `str()` is a table.

    Attributes:
        params: trainable and frozen parameters, shared ones once. Buffers are not parameters.
        macs: multiply-accumulates of one forward pass of the whole batch of the example inputs.
        by_module: the modules that have parameters or do MACs, by name, in order; `""` is the model itself.
            The rows add up to the totals.
    """

    params: int
    macs: int
    by_module: dict[str, ModuleCost] = field(repr=False)

    def within(self, name: str) -> ModuleCost:
        """The sum over module `name` and everything inside it."""
        inside = f"{name}." if name else ""
        rows = [row for path, row in self.by_module.items() if f"{path}.".startswith(inside)]
        return ModuleCost(sum(row.params for row in rows), sum(row.macs for row in rows))

    def __str__(self) -> str:
        rows = [("module", "params", "share", "MACs", "share")]
        for name, row in (*self.by_module.items(), ("total", ModuleCost(self.params, self.macs))):
            params, macs = _percent(row.params, self.params), _percent(row.macs, self.macs)
            rows.append((name or "(itself)", f"{row.params:,}", params, f"{row.macs:,}", macs))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ("  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in rows)
        return "\n".join(lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole if whole else 0:.1f} %"


def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Count parameters and MACs by running `model` once, in evaluation mode and without gradients.

    Args:
        model: left as it was, training flags included.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, where the model is.
            MACs are those of this batch: give one example for the MACs of one example.

    Raises:
        TraceError: the model does not run on these inputs.
    """
    model = bare(model, TraceError, allow=("meta",))
    macs = _macs_by_module(model, example_inputs)
    params = _params_by_module(model)
    rows = {name: ModuleCost(params[name], macs[name]) for name in params if params[name] or macs[name]}
    return Cost(sum(params.values()), sum(macs.values()), rows)


def size_on_disk(model: nn.Module) -> int:
    """Bytes of the model's tensors in a safetensors file: parameters and persistent buffers, shared ones once.

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


def _macs_by_module(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """Own MACs of every module: the FLOPs counted inside its call, less those inside the calls it makes."""
    args, kwargs = as_call(example_inputs)
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with (
        eagerly(),
        evaluating(model),
        torch.no_grad(),
        _visible_attention(),
        _attributed(model, counter) as flops,
        counter,
        refusing(example_inputs),
    ):
        model(*args, **kwargs)
    return {name: count // 2 for name, count in flops.items()}


@contextmanager
def _attributed(model: nn.Module, counter: FlopCounterMode) -> Iterator[dict[str, int]]:
    """While it lasts, the dict it gives fills with the FLOPs of each module of `model` without its children's."""
    names = {id(module): name for name, module in model.named_modules()}
    own = dict.fromkeys(names.values(), 0)
    callers: list[str] = []
    settled = 0

    def settle() -> None:
        """What was counted since the last call or return belongs to the innermost running module."""
        nonlocal settled
        total = counter.get_total_flops()
        if callers:
            own[callers[-1]] += total - settled
        settled = total

    def enter(module: nn.Module, args: Any) -> None:
        settle()
        # A module made on the fly has no name: its work is its caller's.
        callers.append(names.get(id(module), callers[-1] if callers else ""))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        settle()
        callers.pop()

    handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield own
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _visible_attention() -> Iterator[None]:
    """Attention as matrix products: the counter sees through its fused operators in some releases only."""
    with no_fast_path(), sdpa_kernel(SDPBackend.MATH):
        yield


def _product(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    """FLOPs of matrix x vector and vector x vector: the first operand meets every multiplication once."""
    return 2 * prod(shapes[0])


def _added_product(added: Any, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
    return _product(*shapes)


def _recurrent(steps: Any, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
    """FLOPs of a fused recurrent layer: every weight matrix once for each step of each sequence."""
    listed = shapes[0] if isinstance(shapes[0], list) else shapes[:2]
    return 2 * prod(steps[:-1]) * sum(prod(shape) for shape in listed if len(shape) == 2)


# Operators that the counter of some torch release does not know and that would otherwise count as nothing.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _product,
    torch.ops.aten.dot: _product,
    torch.ops.aten.addmv: _added_product,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten._cudnn_rnn: _recurrent,
}
