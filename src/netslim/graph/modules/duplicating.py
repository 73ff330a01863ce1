"""Copies of models that stand on their own."""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from netslim.errors import SurgeryError
from netslim.graph.modules.ambient import by_itself
from netslim.graph.modules.configurations import complete
from netslim.graph.modules.unwrapping import Model, class_names
from netslim.graph.modules.walk import named_modules, parametrized

_COPY_THEMSELVES = {"torch.OptimizedModule", "torch.ScriptModule"}
_CONTAINERS = {dict, OrderedDict, set, list}
_PLAIN = {bool, int, float, str, type(None)}


@by_itself
def duplicate(model: Model, memo: dict[int, Any] | None = None) -> Model:
    """A deep copy that stands on its own: nothing in it runs the original.

    Tensors that modules keep from an earlier call are copied without their history, and a compiled
    ``forward`` becomes the plain one.

    Args:
        model: what to copy.
        memo: of `copy.deepcopy`: what to put in place of which object, by id.

    Raises:
        SurgeryError: a part cannot be copied, or its ``forward`` was replaced by a function that
            holds the original.
    """
    if memo is None:
        memo = {}
    forwards = _own_forwards(model)
    for module in named_modules(model):
        for tensor in _kept_tensors(module):
            if not tensor.is_leaf:
                memo.setdefault(id(tensor), tensor.detach().clone())
        _copy_what_is_empty(module, memo)
    try:
        result = copy.deepcopy(model, memo)
        complete((v for module in named_modules(model) for v in vars(module).values()), memo)
        for path, forward in forwards.items():
            vars(result.get_submodule(path))["forward"] = copy.deepcopy(forward, memo)
        for module in named_modules(result):
            _own_class(module)
    except Exception as error:
        raise SurgeryError(
            f"the model cannot be copied ({type(error).__name__}: {error}): take what cannot "
            "be copied out of its attributes, or cut in place with netslim.prune_"
        ) from error
    return result


def _own_forwards(model: nn.Module) -> dict[str, Any]:
    """Path -> the ``forward`` that took the place of a class's own, free of compilation."""
    walked = named_modules(model)
    modules, forwards = set(map(id, walked)), {}
    for module, path in walked.items():
        forward = vars(module).get("forward")
        if forward is None or _COPY_THEMSELVES.intersection(class_names(type(module))):
            continue
        forwards[path] = getattr(forward, "_torchdynamo_orig_callable", forward)
        if _holds(forwards[path], modules):
            raise SurgeryError(
                f"the forward of {path or 'the model'} was replaced by a function that holds "
                "the module itself, so a copy would still run the original: put the module's "
                "own forward back (del module.forward) before the cut, or cut in place with "
                "netslim.prune_"
            )
    return forwards


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own.

    `torch.nn.utils.parametrize` makes a class for each module, whose properties are the computed
    weights, and takes them off that class when parametrizations are removed. A deep copy has the
    same class, so that what is removed from the copy would be missing in the original.
    """
    made = type(module)
    if not parametrized(module) or isinstance(module, torch.jit.ScriptModule):
        return
    if set(module.parametrizations) <= vars(made).keys():  # type: ignore[arg-type]
        module.__class__ = type(made.__name__, made.__bases__, dict(vars(made)))


def _copy_what_is_empty(module: nn.Module, memo: dict[int, Any]) -> None:
    """Put new containers into the memo for those of a module that hold nothing.

    A module has a dozen of them, for hooks that few have; `copy.deepcopy` takes each apart as any
    object, which is half of its time.
    """
    for value in vars(module).values():
        if type(value) in _CONTAINERS and not value:
            memo.setdefault(id(value), type(value)())


def _kept_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The tensors among a module's attributes, and in their lists and dicts."""
    for value in vars(module).values():
        kind = type(value)
        if kind in _PLAIN or (kind in _CONTAINERS and not value):
            continue  # as nearly all
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (v for v in value if isinstance(v, Tensor))
        elif isinstance(value, dict):
            yield from (v for v in value.values() if isinstance(v, Tensor))


def _holds(function: Any, modules: set[int]) -> bool:
    """Whether a function holds one of the modules, or a method of one, in its closure.

    `copy.deepcopy` copies no closures, so a copy of the function would still run that module.
    Functions in the closure have closures themselves.
    """
    waiting, seen = [function], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, functools.partial):
            one = one.func
        else:
            one = getattr(one, "__func__", one)
        if not isinstance(one, types.FunctionType) or id(one) in seen:
            continue
        seen.add(id(one))
        for value in _closure(one):
            if id(value) in modules or id(getattr(value, "__self__", None)) in modules:
                return True
            waiting.append(value)
    return False


def _closure(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            value = cell.cell_contents
            yield value
            if isinstance(value, functools.partial):
                yield from (value.func, *value.args, *value.keywords.values())
