"""Models that `torch.distributed.fsdp.fully_shard` (FSDP2) has shared out, whole for a while.

What FSDP2 lays out for a model, its groups of parameters, their parts and the hooks that gather
them, is made for the sizes the model has. So it is taken off, and put on again with the same
settings once the model has its new sizes::

    gather every parameter, its gradient and its state in the optimizers
    take FSDP2 off every module: class, hooks, state
        the model is plain, and whatever can be done to a plain model can be done
    fully_shard every module again, the inner ones first
    share out gradients and states again

FSDP2 makes other parameters than there were, and a part is an object of another kind than a whole.
Optimizers and loops know parameters by what object they are. So in the end the parts are the
objects that they were before: `torch.utils.swap_tensors` gives them what the new ones hold.

There is no public way to take FSDP2 off; the private names that are needed are in `_Layout` and
below, and where a version of PyTorch lacks one, the model is refused as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import swap_tensors

import netslim.ranks as ranks
from netslim._support import checks_calls
from netslim.errors import SurgeryError
from netslim.graph.modules.unwrapping import class_names, gathered
from netslim.graph.modules.walk import named_modules
from netslim.surgery.optimizers import all_optimizers

_KEYS = ("__composable_api_state_key", "_is_fsdp_managed_module", "_fsdp_use_orig_params")
_REMEDY = (
    "gather its full state dict into a plain model (torch.distributed.checkpoint.state_dict), cut "
    "that, and shard the result"
)


@contextmanager
@checks_calls
def unsharded(model: nn.Module, optimizer: Optimizer | Iterable[Optimizer] = ()) -> Iterator[None]:
    """Inside, a model that `fully_shard` (FSDP2) has sharded is whole and plain on every rank.

    So it can be traced, scored, cut, saved or exported; afterwards it is sharded again as it was.
    Modules and parameters are the same objects then as before. A model that is not sharded is left
    as it is.

    Args:
        model: on every rank the same; every rank has room for all of it.
        optimizer: one or several that hold the whole parameters and their whole state inside;
            needed where the model is cut.

    Raises:
        SurgeryError: it is sharded in a way that cannot be put on again.

    Example:
        >>> with netslim.surgery.unsharded(model):
        ...     graph = netslim.trace(model, images)
    """
    with in_one_piece(model, optimizer):
        yield


@contextmanager
def in_one_piece(model: Any, optimizer: Any = ()) -> Iterator[None]:
    """`unsharded`, for what looks at its arguments itself."""
    layout = _Layout.of(model)
    if layout is None:
        yield
        return
    stepping = all_optimizers(optimizer)
    layout.gather()
    _hand_over(stepping, layout.wholes, lambda value, _: gathered(value))
    try:
        with ranks.among(layout.group):
            yield
    finally:
        layout.shard()
        _hand_over(stepping, {whole: part for part, whole in layout.wholes.items()}, part_like)


def unshard(model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
    """Take FSDP2 off for good: model and optimizers' states are whole and plain on every rank."""
    layout = _Layout.of(model)
    if layout is not None:
        layout.gather()
        _hand_over(optimizers, layout.wholes, lambda value, _: gathered(value))


def is_sharded(model: object) -> bool:
    """Whether this is a model that FSDP2 has sharded, or a part of it."""
    if not isinstance(model, nn.Module):
        return False
    kinds = set(map(type, named_modules(model)))
    return any("torch.FSDPModule" in class_names(kind) for kind in kinds)


def part_like(value: Tensor, parameter: Tensor) -> Tensor:
    """The part of a tensor that belongs to a parameter's part; other shapes stay whole. A
    collective call.
    """
    from torch.distributed.tensor import distribute_tensor

    like: Any = parameter
    if value.shape != parameter.shape or not hasattr(parameter, "placements"):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements)


def _hand_over(
    optimizers: Iterable[Optimizer],
    new: Mapping[Tensor, Tensor],
    converted: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Give optimizers other parameters for those they have, and their state as it is for these."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [new.get(one, one) for one in group["params"]]
        for old in [one for one in optimizer.state if one in new]:
            state = optimizer.state.pop(old)
            for key, value in state.items():
                if isinstance(value, Tensor):
                    state[key] = converted(value, new[old])
            optimizer.state[new[old]] = state


@dataclass(frozen=True)
class _Call:
    """One call of `fully_shard`: the modules it was called with, and its settings."""

    modules: tuple[nn.Module, ...]
    state: Any
    settings: dict[str, Any]


class _Layout:
    """How a model is sharded; all that is private to FSDP2 is here and below."""

    def __init__(self, model: nn.Module, calls: list[_Call]) -> None:
        self.model, self.calls = model, calls
        meshes = [call.settings["mesh"] for call in calls]
        self.group = meshes[0].get_group() if meshes[0].ndim == 1 else dist.group.WORLD
        self.wholes: dict[Any, nn.Parameter] = {}  # a parameter, and all of it
        self.ignored: set[nn.Parameter] = set()
        self.dims: dict[nn.Parameter, Any] = {}  # whole parameters that are split along another one

    @staticmethod
    def of(model: nn.Module) -> _Layout | None:
        """The layout of a model; None where it is not sharded.

        Raises:
            SurgeryError: it is sharded in a way that cannot be put on again.
        """
        if not is_sharded(model):
            return None
        try:
            return _Layout(model, _calls(model))
        except AttributeError as error:
            raise SurgeryError(
                f"the model is sharded in a way that cannot be taken off ({error}): {_REMEDY}"
            ) from error

    def gather(self) -> None:
        """Make the model plain."""
        for module in chain.from_iterable(call.modules for call in self.calls):
            module.reshard()  # type: ignore[operator]
        for holder, name, part in list(_parameters(self.model)):
            placements = getattr(part, "placements", None)
            if placements is None:
                self.ignored.add(part)
                continue
            if part not in self.wholes:
                self.wholes[part] = _whole(part)
            whole = self.wholes[part]
            if other := [one for one in placements if getattr(one, "dim", 0)]:
                self.dims[whole] = other[0]
            holder._parameters[name] = whole
        for call in self.calls:
            _take_off(call)
        for module in self.model.modules():
            for key in [key for key in vars(module) if key.startswith(_KEYS)]:
                del vars(module)[key]

    def shard(self) -> None:
        """Shard the plain model again; the parts are the objects that they were before."""
        from torch.distributed.fsdp import fully_shard

        extra: dict[str, Any] = {}
        if self.dims:
            extra["shard_placement_fn"] = self.dims.get
        within = chain.from_iterable(call.modules for call in self.calls)
        # Where no call holds any of them, as always with torch 2.6, which knows no such option.
        if not self.ignored.isdisjoint(one for module in within for one in module.parameters()):
            extra["ignored_params"] = self.ignored
        put_on: Any = fully_shard
        exchange: Any = swap_tensors
        places = list(_parameters(self.model))
        for call in reversed(self.calls):  # a module comes before what lies in it
            put_on(list(call.modules), **call.settings, **extra)
        parts = {whole: holder._parameters[name] for holder, name, whole in places}
        same = {parts[whole]: part for part, whole in self.wholes.items()}
        for group in chain.from_iterable(_groups(_state(call.modules[0])) for call in self.calls):
            for held in group.fsdp_params:
                held.sharded_param = same.get(held.sharded_param, held.sharded_param)
                held._setattr_on_modules(held.sharded_param)
        for part, whole in self.wholes.items():
            exchange(part, parts[whole])
            part.grad = None
            if whole.grad is not None:
                part.grad = part_like(whole.grad, part)


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield module, name, parameter


def _whole(part: Any) -> nn.Parameter:
    # A copy: on a mesh of one, the whole tensor is the part itself.
    found = nn.Parameter(gathered(part.detach()).clone(), part.requires_grad)
    if part.grad is not None:
        found.grad = gathered(part.grad)
    return found


def _calls(model: nn.Module) -> list[_Call]:
    """Every call of `fully_shard`, the outermost first."""
    modules = [one for one in model.modules() if "torch.FSDPModule" in class_names(type(one))]
    states: dict[int, Any] = {id(one): one for one in map(_state, modules)}
    settings = {key: _settings(state) for key, state in states.items()}
    meshes = [found["mesh"] for found in settings.values() if "mesh" in found]
    return [
        _Call(tuple(state._modules), state, {"mesh": meshes[0], **settings[key]})
        for key, state in states.items()
    ]


def _state(module: Any) -> Any:
    return module._get_fsdp_state()


def _groups(state: Any) -> list[Any]:
    """The groups of parameters of one call: of older versions there is one, or none."""
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [one for one in (state._fsdp_param_group,) if one is not None]


def _settings(state: Any) -> dict[str, Any]:
    """What one call was given; a module without parameters of its own does not say all of it."""
    groups, found = _groups(state), {"mp_policy": state._mp_policy}
    if len(groups) > 1:
        raise SurgeryError(f"some parameters of the model have a mesh of their own: {_REMEDY}")
    for group in groups:
        after = group.post_forward_mesh_info
        found |= {"mesh": group.mesh_info.mesh, "offload_policy": group.offload_policy}
        found["reshard_after_forward"] = after is not None
        if after is not None and after is not group.mesh_info:
            found["reshard_after_forward"] = int(after.shard_mesh_size)
    if getattr(state, "_auto_reshard_after_forward", False):
        found["reshard_after_forward"] = None
    return found


def _take_off(call: _Call) -> None:
    """Hooks and class of the modules of one call."""
    state = call.state
    for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
        handle.remove()
    for group in _groups(state):
        for handles in (
            group._module_to_pre_save_state_dict_hook_handle,
            group._module_to_pre_load_state_dict_hook_handle,
        ):
            for handle in handles.values():
                handle.remove()
        for held in group.fsdp_params:  # or whole weights that are loaded would be taken for parts
            held._post_load_hook_handle.remove()
    from torch.distributed import _composable_state as composable

    for module in call.modules:
        composable._module_state_mapping.pop(module, None)
        module.__class__ = type(module).__mro__[2]  # FSDPNAME, FSDPModule, NAME


__all__ = ["in_one_piece", "is_sharded", "part_like", "unshard", "unsharded"]
