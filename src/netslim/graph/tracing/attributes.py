"""While a model runs, the integers in its modules' attributes know their own names."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from netslim.graph.modules.configurations import is_configuration, name_read, with_entries
from netslim.graph.modules.padded_norms import PaddedNorm
from netslim.graph.modules.repeated_sizes import repeated
from netslim.graph.modules.walk import named_modules
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.sizes import Size, Value, watchers

_OWN_KEYS = frozenset(nn.Module().__dict__)
_PLAIN_KEYS = ("unflattened_size", "normalized_shape")  # sizes in tuples of PyTorch's own modules
_KNOWING = frozenset({Size, Value})
_DEEPEST, _LONGEST = 2, 64  # containers of sizes that are looked into


Make = Callable[[Size], int]  # what takes the place of an attribute


@contextlib.contextmanager
def remembered_attributes(recorder: Recorder) -> Iterator[None]:
    """Integers in the attributes of modules know their own names while the model runs."""
    modules = {
        module: path
        for module, path in named_modules(recorder.model).items()
        if not isinstance(module, torch.jit.ScriptModule)
    }
    replaced = []
    for module, path in modules.items():
        for key, value in _watched(module).items():
            known = _remembered(recorder, value, path, key, 0, Size.itself)
            if known is not value:
                _note_own(recorder, module, path, key)
                recorder.holders[module, key] = path, value
                replaced.append((module, key, known, module.__dict__.get(key)))
                module.__dict__[key] = known
    try:
        yield
    finally:
        # What forward assigned meanwhile is its own, and is left; sizes that it computed and kept
        # become plain numbers, or the next call would compute with those of this trace.
        for module, key, known, before in replaced:
            if module.__dict__.get(key) is known:
                _put_back(module, key, before)
        for module in modules:
            _forget(module)


def _watched(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that may hold sizes: of PyTorch's own layers integers do."""
    kind, held = type(module), module.__dict__
    if issubclass(kind, PaddedNorm):
        return {key: held[key] for key in _PLAIN_KEYS if key in held}
    if kind.__module__.startswith("torch.nn.modules."):
        return {k: v for k, v in held.items() if type(v) is int or k in _PLAIN_KEYS}
    found = {**_class_sizes(kind), **held}
    return {key: value for key, value in found.items() if key not in _OWN_KEYS}


def make_attributes(recorder: Recorder, make: Make) -> None:
    """Let the attributes that know their own names be whatever ``make`` makes of these."""
    for (module, key), (path, value) in recorder.holders.items():
        module.__dict__[key] = _remembered(recorder, value, path, key, 0, make)


def plain_names(attributes: Iterable[tuple[str, str]]) -> set[str]:
    """The names of attributes of modules and configurations, without what is in them."""
    return {name_read(name) for _, name in attributes}


def _note_own(recorder: Recorder, module: nn.Module, path: str, key: str) -> None:
    """Note which dimension of its weight an attribute of PyTorch's own layers repeats.

    A cut of that sets the attribute anew, whether or not anything else asks for it.
    """
    found = repeated(module, key)
    if found is None:
        return
    tensor, axis = found
    vector = recorder.get(getattr(module, tensor)).dims.get(axis)
    # In groups a convolution has more inputs than one of them: in proportion.
    if vector is not None:
        recorder.owned[path, key] = vector


def _put_back(module: nn.Module, key: str, before: Any) -> None:
    """The attribute as it was: None where the module had none of its own, but its class."""
    if before is None:
        del module.__dict__[key]
    else:
        module.__dict__[key] = before


def _forget(module: nn.Module) -> None:
    """Make plain numbers of what ``forward`` itself computed from sizes and kept."""
    attributes = module.__dict__
    kept = [key for key, value in attributes.items() if type(value) in _KNOWING]
    for key in kept:
        value = attributes[key]
        if isinstance(value, Size):
            attributes[key] = int.__int__(value)
        else:
            attributes[key] = float.__float__(value)


def _class_sizes(own: type) -> dict[str, int]:
    """Integers that the classes of a user's module keep for all instances."""
    found: dict[str, int] = {}
    for kind in reversed(own.__mro__):
        if not kind.__module__.startswith(("torch.", "builtins")):
            sizes = {k: v for k, v in vars(kind).items() if type(v) is int}
            found.update({k: v for k, v in sizes.items() if not k.startswith("__")})
    return found


def _remembered(
    recorder: Recorder, value: Any, module: str, name: str, depth: int, make: Make
) -> Any:
    """The value with its integers above 1, in short containers too, as sizes named after it.

    Sizes of 0 and 1 stay plain: no cut changes them, and code is full of them as numbers.
    """
    if type(value) is int:
        if value <= 1:
            return value
        recorder.attributes[module, name] = value
        return make(Size(value, ("attribute", module, name)))
    if is_configuration(value) and not depth:
        return _configured(recorder, value, module, name, make)
    if type(value) not in (list, tuple, dict) or depth == _DEEPEST or len(value) > _LONGEST:
        return value
    items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    known = {
        key: _remembered(recorder, item, module, f"{name}[{key!r}]", depth + 1, make)
        for key, item in items.items()
    }
    if all(known[key] is item for key, item in items.items()):
        return value
    return known if isinstance(value, dict) else type(value)(known.values())


def _configured(recorder: Recorder, value: Any, module: str, name: str, make: Make) -> Any:
    """A configuration with sizes that know their names, as far as the code reads such names.

    A copy of this module's own: others may hold the same, and read it as something else.
    """
    known = {}
    for key, entry in vars(value).items():
        if key in recorder.names_read:
            named = _remembered(recorder, entry, module, f"{name}.{key}", 1, make)
            if named is not entry:
                known[key] = named
    return value if not known else with_entries(value, known)


@contextlib.contextmanager
def watched_sizes(recorder: Recorder) -> Iterator[None]:
    """The recorder is told what the code finds when it compares sizes, in this thread alone."""
    watcher = threading.get_ident(), recorder.noticed
    watchers.append(watcher)
    try:
        yield
    finally:
        watchers.remove(watcher)
