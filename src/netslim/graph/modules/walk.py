"""The modules and tensors of a model by name, and the fingerprint of its architecture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


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
    return digest_of((name, tuple(tensor.shape)) for name, tensor in lasting_tensors(model))


def digest_of(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """The `fingerprint` of a model whose tensors have these names and shapes, in this order."""
    digest = hashlib.sha256()
    for name, shape in shapes:
        digest.update(f"{name}{shape};".encode())
    return digest.hexdigest()[:16]


def lasting_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """As `named_tensors`, without the buffers that are not saved."""
    passing: set[str] = set()
    for module, path in named_modules(model).items():
        passing.update(joined(path, name) for name in module._non_persistent_buffers_set)
    return ((name, tensor) for name, tensor in named_tensors(model) if name not in passing)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """All parameters, then all buffers (non-persistent ones too), shared ones once.

    As ``named_parameters`` and ``named_buffers`` in one walk over the modules, which is many times
    faster. A shared tensor goes by its first name.
    """
    modules = named_modules(model)
    for kind in ("_parameters", "_buffers"):
        seen: set[int] = set()
        for module, prefix in modules.items():
            for name, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield joined(prefix, name), tensor


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
