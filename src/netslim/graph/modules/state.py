"""What a forward pass writes down, put back as it was.

A model may count its calls, keep its last features, update estimates of its own. Whoever runs it to
learn something must leave none of that behind: the next run would begin elsewhere, and what is
compared with it would seem to be wrong.

Put back are attributes of modules, their hooks, parts and other entries, what is in their
containers and plain objects, and the values of buffers and of other tensors that they hold; not
those of parameters, of which a copy would cost as much memory as the model. No value is copied of
PyTorch's own layers: in evaluation mode they write none.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netslim.graph.modules.unwrapping import without_values
from netslim.graph.modules.walk import named_modules

_OWN_KEYS = frozenset(vars(nn.Module())) - {"_buffers", "_parameters"}
_TABLES = [name for name, held in vars(nn.Module()).items() if isinstance(held, (dict, set))]
_PLAIN = frozenset({bool, int, float, str, bytes, type(None), torch.dtype, torch.device})
_CONTAINERS = (list, dict, set, deque)
_DEEPEST = 3  # containers and objects in each other


@contextlib.contextmanager
def state_kept(
    model: nn.Module, besides: Collection[nn.Module] = (), training: bool = False
) -> Iterator[Callable[[], None]]:
    """Whatever the model writes down inside, it is as it was afterwards.

    What it gives puts all of that back, for who runs the model several times.

    Args:
        model: which runs inside.
        besides: parts of it whose writing is wanted.
        training: whether it may run in training mode.
    """
    before = _State((module for module in named_modules(model) if module not in besides), training)
    try:
        yield before.put_back
    finally:
        before.put_back()


class _State:
    """What modules remember beside their parameters."""

    def __init__(self, modules: Iterable[nn.Module], training: bool) -> None:
        self._training = training
        self._containers: list[tuple[Any, Any]] = []
        self._empty: list[Any] = []  # tables of modules, most of which have nothing in them
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._seen: set[int] = set()
        for module in modules:
            self._look_at_module(module)

    def _look_at_module(self, module: nn.Module) -> None:
        attributes = vars(module)
        self._containers.append((attributes, dict(attributes)))
        # Hooks, too: who puts some in at the first run and notes that it has, would do so again.
        tables = [attributes.get(name) for name in _TABLES]
        self._containers += [(table, table.copy()) for table in tables if table]
        self._empty += [table for table in tables if not table and table is not None]
        own = type(module).__module__.startswith("torch.nn.")
        if self._training or not own:
            for buffer in module._buffers.values():
                self._look_at(buffer, 0)
        if own:
            return
        for name, value in attributes.items():
            if name not in _OWN_KEYS and type(value) not in _PLAIN:
                self._look_at(value, 0)

    def _look_at(self, value: Any, depth: int) -> None:
        """Remember a value that can change, and what it holds."""
        if depth > _DEEPEST or type(value) in _PLAIN or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            if not (value.requires_grad or value.is_inference() or without_values(value)):
                self._tensors.append((value, value.clone()))
        elif isinstance(value, np.ndarray):
            self._arrays.append((value, value.copy()))
        elif isinstance(value, (tuple, *_CONTAINERS)):
            if not isinstance(value, tuple):
                self._containers.append((value, copy.copy(value)))
            for entry in list(_entries(value)):
                self._look_at(entry, depth + 1)
        elif is_record(value):
            self._containers.append((vars(value), dict(vars(value))))
            for entry in list(vars(value).values()):
                self._look_at(entry, depth + 1)

    def put_back(self) -> None:
        """Each container, array and tensor has what it had; what holds it, too."""
        for table in filter(None, self._empty):
            table.clear()
        for container, before in self._containers:
            if container or before:
                _refill(container, before)
        for array, entries in self._arrays:
            array[...] = entries
        with torch.no_grad():
            for tensor, value in self._tensors:
                if tensor.requires_grad:  # what was written came of parameters
                    tensor.detach_()
                # A write would tell autograd that what it has saved is no longer what it was.
                if tensor.shape != value.shape:
                    tensor.data = value
                elif not torch.equal(tensor, value):
                    tensor.copy_(value)


def _entries(container: Any) -> Any:
    if isinstance(container, dict):
        return container.values()
    return container


def is_record(value: Any) -> bool:
    """Whether it is a plain object that holds values, as a cache does: no code, no module."""
    return hasattr(value, "__dict__") and not (callable(value) or isinstance(value, type(torch)))


def _refill(container: Any, before: Any) -> None:
    """Put back what was in a container, if anything in it is another one.

    Nothing is taken out that stays: another thread may be running this very model.
    """
    if isinstance(container, dict) and [*container] == [*before]:
        if all(map(operator.is_, container.values(), before.values())):
            return
        for key, value in before.items():
            if container[key] is not value:
                container[key] = value
    elif isinstance(container, (dict, set)):
        container.clear()
        container.update(before)
    elif [*map(id, container)] != [*map(id, before)]:
        container.clear()
        container.extend(before)


__all__ = ["is_record", "state_kept"]
