"""Unwrapping models: wrappings are taken off that pass calls on, and refused that hide parts.

Every verb looks at the module inside, so graphs, scores, plans and checkpoints carry its names:
what was made from the bare model fits the wrapped one, and the other way round. What a verb returns
is bare: wrap or compile it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from netslim.errors import ArgumentError, NetslimError
from netslim.graph.modules.walk import Walked

Model = TypeVar("Model", bound=nn.Module)

# Classes by package and name: they move between files from one release to the next, and some are
# not installed.
_INSIDE = {
    "torch.DistributedDataParallel": "module",
    "torch.DataParallel": "module",
    "torch.OptimizedModule": "_orig_mod",
    "torch.AveragedModel": "module",
    "timm.ModelEmaV2": "module",
    "timm.ModelEmaV3": "module",
    "lightning._FabricModule": "_forward_module",
    "lightning_fabric._FabricModule": "_forward_module",
}
_ONLY_OUTSIDE = {"torch.DistributedDataParallel", "torch.DataParallel"}

_SHARDED = (
    "its parameters are sharded: cut the model before it is sharded, or gather the full state "
    "dict into an unwrapped model (torch.distributed.checkpoint.state_dict), cut that, and "
    "shard the result"
)
_SCRIPTED = "TorchScript code is fixed: pass the Python module, and script the result"
_EXPORTED = (
    "an exported program is fixed: cut the Python module it was exported from, and "
    "export the result"
)
_QUANTISED = (
    "its weights are quantised or about to be: cut the floating-point model first, "
    "then quantise the result"
)
_REFUSED = {  # class -> (kind, what to do)
    "torch.ScriptModule": ("scripted", _SCRIPTED),
    "torch.FullyShardedDataParallel": ("sharded", _SHARDED),
    "torch.FSDPModule": ("sharded", _SHARDED),
    "deepspeed.DeepSpeedEngine": ("sharded", "cut the module before deepspeed.initialize takes it"),
    "torch._StatefulGraphModule": ("exported", _EXPORTED),
    "torch.ExportedProgram": ("exported", _EXPORTED),
    "torch.InterpreterModule": ("exported", _EXPORTED),
    "torch.ScriptFunction": ("scripted", _SCRIPTED),
}
_QUANTISING = (
    *("nn.quantized.", "nn.intrinsic.quantized.", "nn.sparse.quantized."),
    *("nn.qat.", "nn.intrinsic.qat."),
)
_OBSERVING = ("quantization.observer", "quantization.fake_quantize")
_FLOAT_YET = {"FloatFunctional", "FXFloatFunctional"}


def inside(model: Any) -> Any:
    """The module within data parallelism, `torch.compile` or a weight average."""
    return list(_layers(model))[-1]


def reducing(model: Any) -> Any:
    """The `DistributedDataParallel` that reduces the gradients of the model; None without."""
    found = (
        one for one in _layers(model) if "torch.DistributedDataParallel" in class_names(type(one))
    )
    return next(found, None)


def bare(
    model: Model,
    error: Callable[[str], NetslimError],
    *,
    allow: Collection[str] = (),
    call: str = "",
) -> Model:
    """The plain Python module within ``model``, in which every tensor can be seen and cut.

    Checkers take it to be of the model's own type, as it is where nothing wraps it.

    Args:
        model: any module, wrapped or not.
        error: what to raise for one that cannot be worked on.
        allow: of ``"meta"`` (tensors without values) and ``"sharded"``, what is all right here.
        call: as it should look, for the message on what is no module, such as ``"prune(model,
            plan)"``.

    Raises:
        ArgumentError: ``model`` is no module.
        error: it or a part of it is scripted, exported, quantised, sharded, lazy, or without
            values; the message names the part and the remedy.
    """
    return cast(Model, bare_walked(model, error, allow=allow, call=call).model)


def bare_walked(
    model: Any,
    error: Callable[[str], NetslimError],
    *,
    allow: Collection[str] = (),
    call: str = "",
) -> Walked:
    """What `bare` gives, as it was walked through for that; see there."""
    inner = inside(model)
    if not isinstance(inner, nn.Module):
        known = next(
            (_REFUSED[name][1] for name in class_names(type(inner)) if name in _REFUSED), None
        )
        said = f"netslim needs a torch.nn.Module, got {type(inner).__name__}"
        if known is None:
            raise ArgumentError(f"{said}; call {call}" if call else said)
        raise error(f"{said}; {known}")
    walked = Walked.of(inner)
    for kind, path, what in _obstacles(walked):
        if kind not in allow:
            raise error(f"{path or 'the model'} {what}")
    return walked


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; a collective call when it is."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor


def without_values(tensor: Tensor) -> bool:
    """Whether it is on the meta device or of a `FakeTensorMode`: a shape, and nothing in it."""
    return tensor.is_meta or "torch.FakeTensor" in class_names(type(tensor))


def _layers(model: Any) -> Iterator[Any]:
    """The model and, from the outside to the inside, the modules it wraps."""
    while True:
        yield model
        wrapping = [name for name in class_names(type(model)) if name in _INSIDE]
        if not wrapping:
            return
        model = getattr(model, _INSIDE[wrapping[0]])


class _Suspicion(NamedTuple):
    """What is to be looked at in the modules of one class."""

    refused: tuple[str, ...]  # of its classes, those that `_REFUSED` holds
    wrapping: bool
    quantised: bool
    graph: bool

    @classmethod
    def of(cls, kind: type) -> _Suspicion | None:
        """None where nothing is, as nearly always."""
        names = class_names(kind)
        refused = tuple(name for name in names if name in _REFUSED)
        wrapping, graph = bool(_ONLY_OUTSIDE.intersection(names)), issubclass(kind, GraphModule)
        found = cls(refused, wrapping, _quantised(kind), graph)
        return found if any(found) else None


def _obstacles(walked: Walked) -> Iterator[tuple[str, str, str]]:
    """(kind, path, what is the matter and what to do) for every part that cannot be worked on."""
    kinds = {kind: _Suspicion.of(kind) for kind in set(map(type, walked.modules))}
    for module, path in walked.modules.items():
        kind = type(module)
        found = kinds[kind]
        if found is None:
            continue
        for name in found.refused:
            harmless = name == "torch.ScriptModule" and path and _stateless(module)
            if not harmless:
                yield _REFUSED[name][0], path, f"is {_a(module)}; {_REFUSED[name][1]}"
        if path and found.wrapping:
            remedy = "put its .module in its place first"
            yield "wrapped", path, f"is {_a(module)} inside the model: {remedy}"
        if found.quantised or _quantising(module):
            yield "quantised", path, f"is a {kind.__module__}.{kind.__name__}; {_QUANTISED}"
    for name, tensor in walked.tensors.items():
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
        if plain and not (tensor.is_meta or tensor.is_quantized):
            continue
        if (matter := _matter(tensor)) is not None:
            yield matter[0], repr(name), matter[1]


def _matter(tensor: Tensor) -> tuple[str, str] | None:
    """What keeps one tensor from being cut: its kind, and what to do."""
    if is_lazy(tensor):
        return "lazy", (
            "has no shape yet: run the model once on an example batch, so that its lazy layers "
            "are made"
        )
    if is_traceable_wrapper_subclass(tensor):
        if "torch.DTensor" in class_names(type(tensor)):
            return "sharded", f"is a DTensor; {_SHARDED}"
        return "subclass", (
            f"is {_a(tensor)}, a tensor made of others, as quantised weights are: cut the "
            "plain model first, then convert the result"
        )
    if tensor.is_quantized:
        return "quantised", f"is a quantised tensor; {_QUANTISED}"
    if tensor.layout is not torch.strided:
        return "layout", (
            f"has the layout {tensor.layout}; only dense tensors can be cut: call .to_dense() on it"
        )
    if "torch.FakeTensor" in class_names(type(tensor)):
        return "fake", (
            "is a fake tensor and has no values: it was made in a FakeTensorMode; make the model, "
            "and load its weights, outside of it"
        )
    if tensor.is_meta:
        return "meta", (
            "is on the meta device and has no values: build the model on a real device, or call "
            "model.to_empty(device='cpu') and load its weights"
        )
    return None


def _stateless(module: nn.Module) -> bool:
    """Whether a scripted module is code alone, as an activation.

    One that was frozen hides its weights, and has lost the attribute ``training``.
    """
    tensors = (*module.parameters(), *module.buffers())
    return hasattr(module, "training") and not tensors


def _quantised(kind: type) -> bool:
    """Whether a class computes with quantised weights, or watches what shall be quantised."""
    if not kind.__module__.startswith("torch.") or kind.__name__ in _FLOAT_YET:
        return False
    where = kind.__module__.removeprefix("torch.ao.").removeprefix("torch.") + "."
    observing = kind.__module__.startswith("torch.ao.") and where.startswith(_OBSERVING)
    return observing or where.startswith(_QUANTISING)


def _quantising(module: nn.Module) -> bool:
    """Whether a graph quantises what runs through it."""
    if not isinstance(module, GraphModule):
        return False
    calls = [n for n in module.graph.nodes if n.op in ("call_function", "call_method")]
    targets = [str(node.target) for node in calls]
    return any("quantize_per_" in target or "dequantize" in target for target in targets)


def class_names(kind: type) -> tuple[str, ...]:
    """``package.Class`` of a class and all its bases."""
    return tuple(f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in kind.__mro__)


def _a(thing: Any) -> str:
    name = type(thing).__name__
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"
