"""The modules and tensors of a model by name, and the fingerprint of its architecture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


@dataclass(frozen=True, eq=False)
class Walked:
    """A model's modules and tensors by name, as they were when it was walked through.

    What asks for them in many places has one made and hands it on, as long as nothing is changed.

    Attributes:
        model: whose they are.
        modules: as `named_modules`.
        tensors: as `named_tensors`, by name.
    """

    model: nn.Module
    modules: dict[nn.Module, str]
    tensors: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Walked:
        """Walk through a model."""
        modules = named_modules(model)
        return cls(model, modules, _tensors_of(modules))

    @cached_property
    def by_path(self) -> dict[str, nn.Module]:
        """Path -> module; of several paths the first alone."""
        return {path: module for module, path in self.modules.items()}

    @cached_property
    def names(self) -> dict[int, str]:
        """Name of a tensor, by its id."""
        return {id(tensor): name for name, tensor in self.tensors.items()}

    @cached_property
    def lasting(self) -> dict[str, Any]:
        """The tensors without the buffers that are not saved."""
        passing: set[str] = set()
        for module, path in self.modules.items():
            if module._non_persistent_buffers_set:
                passing.update(joined(path, name) for name in module._non_persistent_buffers_set)
        return {name: tensor for name, tensor in self.tensors.items() if name not in passing}

    @cached_property
    def fingerprint(self) -> str:
        """As `fingerprint` of the model."""
        return digest_of((name, tuple(tensor.shape)) for name, tensor in self.lasting.items())


def layer_of(tensor: str) -> str:
    """The module a user would name for a tensor: its owner, or whose weight it parametrises."""
    path = tensor.rpartition(".")[0]
    head, found, _ = f"{path}.".partition(".parametrizations.")
    if not found:
        return path
    return head


def fingerprint(model: nn.Module) -> str:
    """A short digest of the names and shapes of all parameters and lasting buffers.

    Values, dtype, device and train/eval mode do not enter, so a trained copy has the fingerprint of
    a fresh one; nor do buffers that are not saved, which a model may make anew for the size of its
    input.
    """
    return Walked.of(model).fingerprint


def digest_of(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """The `fingerprint` of a model whose tensors have these names and shapes, in this order."""
    text = "".join([f"{name}{shape};" for name, shape in shapes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def lasting_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """As `named_tensors`, without the buffers that are not saved."""
    return iter(Walked.of(model).lasting.items())


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """All parameters, then all buffers (non-persistent ones too), shared ones once.

    As ``named_parameters`` and ``named_buffers`` in one walk over the modules, which is many times
    faster. A shared tensor goes by its first name.
    """
    return iter(_tensors_of(named_modules(model)).items())


def tensors_held(model: nn.Module) -> list[Any]:
    """The tensors of a model, whatever their names; shared ones as often as they are held."""
    held = [part for one in named_modules(model) for part in (one._parameters, one._buffers)]
    return [tensor for part in held for tensor in part.values() if tensor is not None]


def _tensors_of(modules: dict[nn.Module, str]) -> dict[str, Any]:
    """The tensors of modules, as `named_tensors`."""
    found: dict[str, Any] = {}
    for kind in ("_parameters", "_buffers"):
        seen: set[int] = set()
        for module, path in modules.items():
            held = getattr(module, kind)
            if not held:
                continue
            prefix = path and f"{path}."
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[prefix + name] = tensor
    return found


def named_modules(model: nn.Module) -> dict[nn.Module, str]:
    """Every module once -> its path, as ``model.named_modules()`` but many times faster."""
    found: dict[nn.Module, str] = {model: ""}
    _walk(model, "", found)
    return found


def _walk(module: nn.Module, prefix: str, found: dict[nn.Module, str]) -> None:
    for name, child in module._modules.items():
        if child is not None and child not in found:
            path = found[child] = prefix + name
            if child._modules:
                _walk(child, f"{path}.", found)


def parametrized(module: nn.Module) -> bool:
    """As `torch.nn.utils.parametrize.is_parametrized`, which takes long to find no such part."""
    return "parametrizations" in module._modules and parametrize.is_parametrized(module)


def all_paths(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of every place, a module at several places several times, in their order."""
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from all_paths(child, joined(path, name))


def joined(path: str, name: str) -> str:
    """The name of what is called ``name`` in the module at ``path``; either may be empty."""
    if not path or not name:
        return path or name
    return f"{path}.{name}"
