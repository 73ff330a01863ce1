"""Cut a model as a plan says: slice every tensor, then the Python sizes that mirror their shapes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import SurgeryError
from .plan import PruningPlan, TensorCut, compose, named_tensors

Model = TypeVar("Model", bound=nn.Module)
_HISTORY = "_netslim_plan"


def prune(model: Model, plan: PruningPlan) -> Model:
    """A new, physically smaller copy of ``model``.

    Train/eval mode, ``requires_grad``, dtype, device, memory format, hooks and tied weights are as in ``model``,
    which is not changed.

    Raises:
        PlanError: the plan was made for another architecture.
        SurgeryError: a tensor or attribute the plan names is not as the plan says.
    """
    plan.check(model)
    tensors = dict(named_tensors(model))
    memo: dict[int, Any] = {}
    for name, value in _smaller(model, plan, tensors).items():
        old = tensors[name]
        memo[id(old)] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    small = copy.deepcopy(model, memo)
    _finish(small, plan)
    return small


def prune_(model: Model, plan: PruningPlan, optimizer: Optimizer | Iterable[Optimizer] = ()) -> Model:
    """Cut ``model`` in place and return it; parameters keep their identity, so optimizers go on working.

    Everything is computed before anything is changed: on an error the model and the optimizer are as they were.

    Args:
        model: the model the plan was made for.
        plan: what to keep.
        optimizer: one or several optimizers whose state (momentum and the like) is cut with the parameters.

    Raises:
        PlanError: the plan was made for another architecture.
        SurgeryError: a tensor, attribute or optimizer state does not fit the plan.
    """
    plan.check(model)
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    tensors = dict(named_tensors(model))
    smaller = _smaller(model, plan, tensors)
    cuts = _cuts(plan)
    states = [_cut_state(o, tensors, cuts) for o in optimizers]
    gradients = {n: _slice(g, c) for n, c in cuts.items() if (g := tensors[n].grad) is not None}
    for name, value in smaller.items():
        tensors[name].grad = None
        tensors[name].data = value
        tensors[name].grad = gradients.get(name)
    for optim, state in zip(optimizers, states, strict=True):
        for parameter, values in state.items():
            optim.state[parameter].update(values)
    _finish(model, plan)
    return model


def _cuts(plan: PruningPlan) -> dict[str, list[TensorCut]]:
    by_tensor: dict[str, list[TensorCut]] = {}
    for cut in plan.tensors:
        by_tensor.setdefault(cut.tensor, []).append(cut)
    return by_tensor


def _smaller(model: nn.Module, plan: PruningPlan, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The cut tensors by name, after everything the plan expects of the model has been checked."""
    cuts = _cuts(plan)
    _check(tensors, cuts)
    for patch in plan.patches:
        found = getattr(_module(model, patch.module), patch.attribute, None)
        if found != patch.old:
            raise SurgeryError(
                f"{patch.module}.{patch.attribute} is {found!r}, the plan expects {patch.old}; "
                "the model has changed since the plan was made: trace and select again"
            )
    return {name: _slice(tensors[name].data, c) for name, c in cuts.items()}


def _finish(model: nn.Module, plan: PruningPlan) -> None:
    """Bring Python's sizes up to date and remember the cut."""
    for patch in plan.patches:
        setattr(_module(model, patch.module), patch.attribute, patch.new)
    _mirror(model, {cut.tensor for cut in plan.tensors})
    past = history(model)
    model.__dict__[_HISTORY] = plan if past is None else compose(past, plan)


def history(model: nn.Module) -> PruningPlan | None:
    """The composed plan of all cuts that made this model from its original architecture, if netslim cut it."""
    return getattr(model, _HISTORY, None)


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise SurgeryError(f"the plan names the module {path!r}, which the model does not have") from None


def _check(tensors: dict[str, Tensor], by_tensor: dict[str, list[TensorCut]]) -> None:
    for name, cuts in by_tensor.items():
        if name not in tensors:
            raise SurgeryError(f"the plan cuts {name!r}, which the model does not have")
        shape = tensors[name].shape
        for cut in cuts:
            if cut.axis >= len(shape) or shape[cut.axis] != cut.size:
                raise SurgeryError(
                    f"the plan expects {cut.size} entries on axis {cut.axis} of {name!r}, its shape is {tuple(shape)}"
                )
            if not cut.kept:
                raise SurgeryError(f"the plan keeps nothing of axis {cut.axis} of {name!r}; a layer may not die")


def _slice(tensor: Tensor, cuts: Iterable[TensorCut]) -> Tensor:
    """Keep the planned entries of each axis, in the memory format of the original."""
    result = tensor
    for cut in cuts:
        result = result.index_select(cut.axis, torch.tensor(cut.kept, device=tensor.device))
    format_ = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if format_ is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=format_):
        return result.contiguous(memory_format=format_)
    return result.contiguous()


def _cut_state(
    optimizer: Optimizer, tensors: dict[str, Tensor], by_tensor: dict[str, list[TensorCut]]
) -> dict[Tensor, dict[str, Any]]:
    """The optimizer's state for the cut parameters, cut alike; state of any other shape is refused."""
    result: dict[Tensor, dict[str, Any]] = {}
    for name, cuts in by_tensor.items():
        parameter = tensors[name]
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor) or (value.numel() == 1 and parameter.numel() > 1):
                continue
            if value.shape != parameter.shape:
                raise SurgeryError(
                    f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {name!r} of shape "
                    f"{tuple(parameter.shape)}, which cannot be cut with it; make a new optimizer after prune_"
                )
            result.setdefault(parameter, {})[key] = _slice(value, cuts)
    return result


def _mirror(model: nn.Module, changed: set[str]) -> None:
    """Bring the attributes in which PyTorch's modules repeat their shapes up to date."""
    owners = {id(t) for n, t in named_tensors(model) if n in changed}
    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values()]
        own += [p for m in module.children() if type(m).__name__ == "ParametrizationList" for p in m.parameters()]
        if any(id(t) in owners for t in own if t is not None):
            _mirror_module(module)


def _mirror_module(module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        a, b = (0, 1) if module.transposed else (1, 0)
        sizes = {a: weight.shape[a], b: weight.shape[b]}  # type: ignore[union-attr]
        sizes[1] *= module.groups
        module.in_channels, module.out_channels = sizes[a], sizes[b]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        vector = weight if weight is not None else module.running_mean
        if vector is not None:
            module.num_features = len(vector)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = len(weight)
    elif isinstance(module, nn.LayerNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape  # type: ignore[union-attr]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)  # type: ignore[arg-type]
