"""Weights that a fresh network computes before each call, and that a file holds as they are.

Weight norm, spectral norm, the masks of `torch.nn.utils.prune` and any other parametrisation are
there for training, and are taken off a network when that is over: before it is cut or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.prune import BasePruningMethod, remove
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.unwrapping import Model

# What takes a hook off again, and the hook's attribute with the name of the weight.
_HOOKS: tuple[tuple[type, str, Callable[[nn.Module, str], object]], ...] = (
    (WeightNorm, "name", remove_weight_norm),
    (SpectralNorm, "name", remove_spectral_norm),
    (BasePruningMethod, "_tensor_name", remove),
)


def storing(model: Model, names: Collection[str]) -> Model:
    """The model, or a copy in which the weights of these names are stored and not computed."""
    modules = dict(model.named_modules())
    split = [name.rpartition(".") for name in names]
    computed = [
        (path, name) for path, _, name in split if path in modules and _taker(modules[path], name)
    ]
    if not computed:
        return model
    result = duplicate(model)
    for path, name in computed:
        module = result.get_submodule(path)
        taker = _taker(module, name)
        if taker is not None:
            taker(module, name)
    return result


def _taker(module: nn.Module, name: str) -> Callable[[nn.Module, str], object] | None:
    """What makes a computed weight a stored one; None if it is none."""
    if parametrize.is_parametrized(module, name):
        return parametrize.remove_parametrizations
    for hook in module._forward_pre_hooks.values():
        for kind, attribute, taker in _HOOKS:
            if isinstance(hook, kind) and getattr(hook, attribute) == name:
                return taker
    return None


__all__ = ["storing"]
