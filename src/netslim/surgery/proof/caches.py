"""What a model has computed at one run and keeps for the next, taken out of a copy of it.

A module may compute something of its weights once and keep it, as attention does with its table of
positions. Where the weights are others afterwards, silenced or random ones, it goes on with what it
kept, and a copy that was never run does not: the two differ, and no cut is at fault.

Not all that a module keeps may go: a table that somebody gave it is a part of the network. What may
go is what the next run fills in again with the same values. A copy without it computes the same,
and takes nothing from weights that it had before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from netslim.graph.modules.ambient import eagerly
from netslim.graph.modules.calls import as_call, in_mode, tensor_leaves
from netslim.graph.modules.state import is_record, state_kept
from netslim.graph.modules.walk import named_modules
from netslim.surgery.proof.silencing import seeded

_OWN_KEYS = frozenset(vars(nn.Module()))
_NOT_THERE = object()


class _Place(NamedTuple):
    """An entry of a dict, or of the attributes of an object, and what is there."""

    holder: dict[Any, Any]
    key: Any
    value: Any

    def empty(self, empty: object) -> None:
        if empty is _NOT_THERE:
            self.holder.pop(self.key, None)
        else:
            self.holder[self.key] = empty


def forget(model: nn.Module, example_inputs: Any) -> bool:
    """Take out what an evaluation fills in again; whether there was any.

    Args:
        model: a copy, with the weights that it was run with.
        example_inputs: as for `netslim.trace`.
    """
    kinds: dict[tuple[type, str], list[_Place]] = {}
    for module in named_modules(model):
        for name, place in _places(module):
            kinds.setdefault((type(module), name), []).append(place)
    forgotten = [_forgotten(model, example_inputs, places) for places in kinds.values()]
    return any(forgotten)


def keeps_something(model: nn.Module) -> bool:
    """Whether there is anything in a model that `forget` could take out."""
    return any(True for module in named_modules(model) for _ in _places(module))


def _places(module: nn.Module) -> Iterator[tuple[str, _Place]]:
    """(attribute, where it holds tensors), of all that are no parameters or buffers."""
    for name, value in vars(module).items():
        if name in _OWN_KEYS:
            continue
        if is_record(value):
            value = vars(value)
        holder, keys = vars(module), [name]
        if isinstance(value, dict):
            holder, keys = value, [*value]
        for key in keys:
            if tensor_leaves(holder[key]):
                yield name, _Place(holder, key, holder[key])


def _forgotten(model: nn.Module, example_inputs: Any, places: list[_Place]) -> bool:
    for empty in (_NOT_THERE, None):  # as attributes are before the first run
        if _refilled(model, example_inputs, places, empty):
            for place in places:
                place.empty(empty)
            return True
    return False


def _refilled(model: nn.Module, example_inputs: Any, places: list[_Place], empty: object) -> bool:
    """Whether a run fills in what is at these places; afterwards the model is as it was."""
    args, kwargs = as_call(example_inputs)
    with state_kept(model), in_mode(model, training=False), eagerly(), seeded(0), torch.no_grad():
        for place in places:
            place.empty(empty)
        try:
            model(*args, **kwargs)
        except Exception:  # it needs what was there
            return False
        return all(_alike(place.value, place.holder.get(place.key)) for place in places)


def _alike(one: Any, other: Any) -> bool:
    """Whether values are the same, but for rounding; of what holds no tensors, whether its kind."""
    leaves, structure = tree_flatten(one)
    others, other_structure = tree_flatten(other)
    if structure != other_structure:
        return False
    return all(map(_same, leaves, others))


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other)
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    # Half of the digits: it was computed in the model's own precision.
    rounding = torch.finfo(one.dtype).eps ** 0.5
    scale = float(one.abs().max()) if one.numel() else 0.0
    return torch.allclose(one.double(), other.double(), rtol=0, atol=rounding * scale)
