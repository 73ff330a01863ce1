"""Run the model once and let labels flow.

A tensor carries labels: for each dimension that belongs to a channel, the vector of its atoms. A
`TorchDispatchMode` sees every ATen operator and hands it to its rule; a `TorchFunctionMode` sees the call the
user wrote, which tells whether a size was a literal, a module attribute or read from a shape.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..errors import TraceError
from .atoms import Atoms, Vector
from .sizes import Size, symbols

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)
_TRACES = count()
_CHECK_THEIR_SIZES = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Labels:
    """What a tensor carries: atoms by dimension, and whether it was computed from parameters alone."""

    dims: Mapping[int, Vector]
    weight: bool


NOTHING = Labels({}, True)


@dataclass(frozen=True)
class Constraint:
    """After a cut the size ``expression`` must equal the number of kept entries of ``vector`` (or ``size``)."""

    expression: Any
    vector: Vector | None
    size: int
    where: str


@dataclass(frozen=True)
class OperatorCost:
    """Multiply-accumulates of one operator: the product of its factors, numbers or counts of kept entries."""

    module: str
    operator: str
    factors: tuple[int | Vector, ...]


@dataclass
class Recorder:
    """Everything learnt from one run."""

    atoms: Atoms
    model: nn.Module
    labels: dict[int, tuple[Any, Labels]] = field(default_factory=dict)
    sizes: list[Vector] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    costs: list[OperatorCost] = field(default_factory=list)
    unsupported: dict[str, set[str]] = field(default_factory=dict)
    calls: list[tuple[Any, tuple, dict]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    trace: int = field(default_factory=lambda: next(_TRACES))

    # --- labels ------------------------------------------------------------------------------------------------

    def get(self, tensor: Any) -> Labels:
        """The labels of a tensor; a constant has none."""
        found = self.labels.get(id(tensor))
        return NOTHING if found is None else found[1]

    def set(self, tensor: Tensor, dims: Mapping[int, Vector], weight: bool) -> None:
        """Give a tensor its labels, for as long as it lives."""
        key = id(tensor)
        for d in [d for d, vector in dims.items() if len(vector) == 1]:
            self.atoms.freeze(dims[d], f"a single channel is taken apart from the others{self.where()}")
            dims = {other: v for other, v in dims.items() if other != d}
        if not dims and weight:
            self.labels.pop(key, None)
            return
        labels = self.labels

        def forget(reference: Any) -> None:
            entry = labels.get(key)
            if entry is not None and entry[0] is reference:
                del labels[key]

        labels[key] = (weakref.ref(tensor, forget), Labels(dims, weight))

    def meet(self, left: Vector | None, right: Vector | None, what: str) -> Vector | None:
        """Tie two dimensions that must keep equal sizes; a labelled one meeting an unlabelled one must stay."""
        if left is None or right is None:
            live = right if left is None else left
            if live is not None:
                self.atoms.freeze(live, f"it meets a fixed size in {what}{self.where()}")
            return live
        if left is not right:
            self.atoms.tie(left, right, lambda: f"it meets constant channels in {what}{self.where()}")
        return left

    def mark(self, labels: Labels, dim: int, role: int) -> None:
        """Note a role for the atoms of a weight's dimension."""
        if labels.weight and dim in labels.dims:
            self.atoms.mark(labels.dims[dim], role)

    # --- sizes -------------------------------------------------------------------------------------------------

    def shape(self, tensor: Tensor, sizes: Any) -> Any:
        """The sizes of a tensor as the user's code sees them while tracing."""
        dims = self.get(tensor).dims
        if not dims:
            return sizes
        return torch.Size([self._size(value, dims.get(d)) for d, value in enumerate(sizes)])

    def _size(self, value: int, vector: Vector | None) -> int:
        if vector is None:
            return value
        self.sizes.append(vector)
        return Size(value, ("size", self.trace, len(self.sizes) - 1))

    def mine(self, value: Any) -> Any:
        """The expression of a size that this trace can resolve, or None for a number baked into the code."""
        if not isinstance(value, Size):
            return None
        leaves = list(symbols(value.expression))
        known = all(s[0] == "attribute" or s[1] == self.trace for s in leaves)
        return value.expression if leaves and known else None

    def constrain(self, value: Any, vector: Vector | None, size: int) -> None:
        """Ask that the size ``value`` of the user's code (None: PyTorch's own) follows ``vector`` when channels go."""
        if value is None:
            return
        expr = self.mine(value)
        if expr is not None:
            self.constraints.append(Constraint(expr, vector, size, self.where()))
        elif vector is not None:
            self.atoms.freeze(vector, f"the size {int(value)} is written into the code{self.where()}")

    # --- context -----------------------------------------------------------------------------------------------

    @property
    def call(self) -> tuple[Any, tuple, dict]:
        """The innermost function the user's code called: (function, args, kwargs)."""
        return self.calls[-1] if self.calls else (None, (), {})

    @property
    def module(self) -> str:
        """Path of the module that is running."""
        return self.modules[-1] if self.modules else ""

    def where(self) -> str:
        """``" (file.py:12)"``: the line of the user's code that is running."""
        frame = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if not name.startswith((_TORCH, _HERE, "<")):
                return f" ({Path(name).name}:{frame.f_lineno})"
            frame = frame.f_back  # type: ignore[assignment]
        return f" (module {self.module})" if self.module else ""

    def unknown(self, operator: str, inputs: list[Labels], why: str = "netslim has no rule for") -> None:
        """Freeze everything an operator without a rule touches, and list it."""
        touched = [v for labels in inputs for v in labels.dims.values()]
        if touched:
            self.unsupported.setdefault(operator, set()).add(self.module)
            for vector in touched:
                self.atoms.freeze(vector, f"{why} {operator}{self.where()}")

    def hold(self, module: nn.Module, inputs: Any) -> None:
        """Freeze a module that refuses inputs and weights of other sizes than it was built for."""
        held = [v for p in module.parameters() for v in self.atoms.axes_of[id(p)].values()]
        held += [v for t in _tensors(inputs) for v in self.get(t).dims.values()]
        for vector in held:
            self.atoms.freeze(vector, f"{type(module).__name__} {self.module!r} checks its own sizes")

    def cost(self, operator: str, *factors: int | Vector | None) -> None:
        self.costs.append(OperatorCost(self.module, operator, tuple(f for f in factors if f is not None)))


class _Dispatch(TorchDispatchMode):
    def __init__(self, recorder: Recorder, rules: Mapping[str, Any], fallback: Any) -> None:
        super().__init__()
        self.recorder, self.rules, self.fallback = recorder, rules, fallback

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            rule = self.rules.get(func._schema.name.partition("::")[2], self.fallback)
            rule(self.recorder, func, out, *args, **kwargs)
        return out


_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]


class _Function(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if func == _SHAPE:
            return recorder.shape(args[0], func(*args))
        if func == torch.Tensor.size:
            out = recorder.shape(args[0], func(args[0]))
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return out if dim is None else out[dim]
        recorder.calls.append((func, args, kwargs))
        try:
            out = func(*args, **kwargs)
        finally:
            recorder.calls.pop()
        if func == _DATA:
            labels = recorder.get(args[0])
            recorder.set(out, labels.dims, labels.weight)
        return out


def record(model: nn.Module, example_inputs: Any, rules: Mapping[str, Any], fallback: Any) -> Recorder:
    """Run ``model`` once on ``example_inputs`` in evaluation mode, without gradients, and follow its channels.

    The model is left as it was: training flags and attributes are restored.

    Raises:
        TraceError: the model does not run on these inputs.
    """
    recorder = Recorder(Atoms(model), model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        del name
        recorder.set(tensor, recorder.atoms.axes_of[id(tensor)], weight=True)
    args, kwargs = as_call(example_inputs)
    for value in tree_flatten((args, kwargs))[0]:
        if isinstance(value, Tensor):
            recorder.set(value, {}, weight=False)
    with (
        evaluating(model),
        torch.no_grad(),
        _remembered_attributes(model),
        _module_paths(recorder),
        no_fast_path(),
        _Function(recorder),
        _Dispatch(recorder, rules, fallback),
    ):
        try:
            outputs = model(*args, **kwargs)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(
                f"the model does not run on these example inputs ({describe(example_inputs)}): "
                f"{type(error).__name__}: {error}; pass inputs that model(...) accepts in evaluation mode"
            ) from error
    for tensor in _tensors(outputs):
        for vector in recorder.get(tensor).dims.values():
            recorder.atoms.freeze(vector, "it is an output of the network")
    return recorder


def as_call(example_inputs: Any) -> tuple[tuple, dict[str, Any]]:
    """A tensor, a tuple of positional inputs or a dict of keyword inputs -> (args, kwargs)."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def describe(example_inputs: Any) -> str:
    """Shapes of the inputs, for messages."""
    args, kwargs = as_call(example_inputs)
    parts = [str(tuple(a.shape)) if isinstance(a, Tensor) else type(a).__name__ for a in args]
    parts += [f"{k}={tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__}" for k, v in kwargs.items()]
    return ", ".join(parts)


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor inside nested containers, dataclasses and plain objects."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in _tensors(v)]
    if hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        return [t for v in vars(value).values() for t in _tensors(v)]
    return []


output_tensors = _tensors


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own flag as it was afterwards."""
    flags = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def _remembered_attributes(model: nn.Module) -> Iterator[None]:
    """Integer attributes of modules know their own names while the model runs."""
    modules = [(p, m) for p, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)]
    for path, module in modules:
        for key, value in module.__dict__.items():
            if type(value) is int and value > 1:
                module.__dict__[key] = Size(value, ("attribute", path, key))
    try:
        yield
    finally:
        for _, module in modules:
            for key, value in module.__dict__.items():
                if isinstance(value, Size):
                    module.__dict__[key] = int.__int__(value)


@contextlib.contextmanager
def _module_paths(recorder: Recorder) -> Iterator[None]:
    paths = {id(m): p for p, m in recorder.model.named_modules()}
    depth: list[bool] = []

    def enter(module: nn.Module, args: Any) -> None:
        known = id(module) in paths
        depth.append(known)
        if known:
            recorder.modules.append(paths[id(module)])
        if isinstance(module, _CHECK_THEIR_SIZES):
            recorder.hold(module, args)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if depth.pop():
            recorder.modules.pop()

    handles = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """The fused multi-head attention is one opaque operator; run its parts instead."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
