"""The calls of PyTorch that a model's code makes: enough to run the code again without computing.

Of each call it keeps the function, what it was given, and the shape of what came out. The code that
is run again gets tensors of these shapes in return, whose values nobody computes; numbers that it
took out of tensors it gets as they were. So a second run costs what its Python costs.

Tensors are told apart by when they were made, parameters and buffers by their names.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netslim.graph.modules.unwrapping import without_values
from netslim.graph.tracing.pretended import Pretended
from netslim.graph.tracing.sizes import Size

_SHORTEST = 64  # tensors and arrays of up to so many entries are told with what is in them
_AS_THEY_ARE = frozenset(
    {bool, int, str, bytes, complex, type(None), type(Ellipsis), torch.dtype, torch.device}
)


@dataclass(frozen=True)
class Hollow:
    """A tensor that came out of a call, without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    number: int

    def made(self) -> Tensor:
        empty = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        # An index must be one; other values nobody looks at.
        if not (self.dtype.is_floating_point or self.dtype.is_complex):
            empty.zero_()
        return empty


@dataclass(frozen=True)
class Given:
    """A tensor that came out of a call as it went in, the so-manieth of its arguments."""

    position: int


@dataclass(frozen=True)
class Told:
    """What a call was given, in numbers and words; ``contents`` of what comes from nowhere."""

    arguments: Any
    contents: tuple[Any, ...]


@dataclass(frozen=True)
class Entry:
    """One call; ``guessed`` are the sizes that plain numbers in it were taken for (casts.py)."""

    function: Any
    told: Told
    out: Any
    guessed: tuple[Size, ...] = ()


class Known:
    """Tensors by when they were made, for as long as they live; those of the model by name."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self._made: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._by_number: dict[int, weakref.ref[Tensor]] = {}

    def number(self, tensor: Tensor, number: int) -> Tensor:
        """Give a tensor that was made just now its number."""
        reference = self._by_number[number] = weakref.ref(tensor)
        self._made[id(tensor)] = reference, number
        return tensor

    def numbered(self, number: int) -> Tensor | None:
        """The tensor of this number, if it lives."""
        found = self._by_number.get(number)
        if found is None:
            return None
        return found()

    def key(self, tensor: Tensor) -> int | str | None:
        """The name or number of a tensor; None for one of which nobody knows where it is from."""
        name = self.names.get(id(tensor))
        if name is not None:
            return name
        found = self._made.get(id(tensor))
        if found is None or found[0]() is not tensor:
            return None
        return found[1]

    def given(self, function: Any, args: Any, kwargs: Any) -> Told:
        """What a call is given; without the words that an assertion would say of sizes."""
        if function is torch._assert:
            args, kwargs = args[:1], {}
        return self.told(args, kwargs)

    def told(self, *values: Any) -> Told:
        """Values as they can be compared between two runs."""
        contents: list[Any] = []
        return Told(self._all_told(values, contents), tuple(contents))

    def _all_told(self, values: Iterable[Any], contents: list[Any]) -> list[Any]:
        told = []
        for value in values:
            if type(value) not in _AS_THEY_ARE:  # as most are
                value = self._told(value, contents)
            told.append(value)
        return told

    def _told(self, value: Any, contents: list[Any]) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            key = self.key(value)
            if key is None:
                contents.append(_content(value))
            return key, value.shape, value.dtype
        if kind is Size:
            return int.__int__(value)
        if kind is Pretended:
            return value.truth
        if isinstance(value, (list, tuple)):
            return self._all_told(value, contents)
        if isinstance(value, dict):
            return list(value), self._all_told(value.values(), contents)
        if isinstance(value, float):
            return float.__repr__(value)  # NaN equals itself there
        if isinstance(value, slice):
            return self._all_told((value.start, value.stop, value.step), contents)
        if isinstance(value, np.ndarray):
            contents.append(value.tolist() if value.size <= _SHORTEST else None)
            return value.shape, value.dtype
        return kind


def _content(tensor: Tensor) -> Any:
    if tensor.numel() > _SHORTEST or without_values(tensor) or tensor.layout is not torch.strided:
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # of vmap
        return None
    return repr(tensor.tolist())


class Iterated(list[Any]):
    """What came out one by one."""


class Log(Known):
    """The calls of a run, in order.

    Attributes:
        read: names that the code may read (`names_read`).
        entries: the calls.
        end: what the model gave in the end.
        guessed: sizes that plain numbers of the call under way were taken for.
    """

    def __init__(self, names: Mapping[int, str], read: frozenset[str]) -> None:
        super().__init__(names)
        self.read = read
        self.entries: list[Entry] = []
        self.count = 0  # of tensors
        self.end: Told | None = None
        self.guessed: list[Size] = []

    def note(self, function: Any, told: Told, args: Any, kwargs: Any, out: Any) -> Any:
        """Note a call that was made; gives what came out, for whoever asked."""
        if isinstance(out, Iterator):  # of which nobody else could take
            return iter(self.note(function, told, args, kwargs, Iterated(out)))
        hollow, guessed = self._without_values(out, args, kwargs), tuple(self.guessed)
        self.entries.append(Entry(function, told, hollow, guessed))
        self.guessed.clear()
        return out

    def _without_values(self, out: Any, args: Any, kwargs: Any) -> Any:
        if type(out) in _AS_THEY_ARE or type(out) is Size:
            return out
        if isinstance(out, Tensor):
            for position, tensor in enumerate(tensors_among(args, kwargs)):
                if tensor is out:
                    return Given(position)
            return self._hollow(out)
        if isinstance(out, np.ndarray):
            return out.copy()
        return rebuilt(out, lambda entry: self._without_values(entry, args, kwargs))

    def _hollow(self, out: Tensor) -> Any:
        key = self.key(out)
        if isinstance(key, str) or out.layout is not torch.strided:
            return out
        if key is None:
            key = self.add(out)
        return Hollow(tuple(out.shape), out.stride(), out.dtype, out.device, key)

    def add(self, tensor: Tensor) -> int:
        """Number the next tensor."""
        self.count += 1
        self.number(tensor, self.count)
        return self.count


def tensors_among(args: Iterable[Any], kwargs: Mapping[Any, Any]) -> list[Tensor]:
    """The tensors in arguments, in order."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_among(value, {})
        elif isinstance(value, dict):
            found += tensors_among((), value)
    return found


def rebuilt(value: Any, change: Any) -> Any:
    """A container with other entries; what is none as it is."""
    kind = type(value)
    if isinstance(value, dict):
        return {key: change(entry) for key, entry in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    entries = [change(entry) for entry in value]
    if hasattr(value, "_fields"):  # a named tuple takes its entries one by one
        return kind(*entries)
    return kind(entries)


__all__ = ["Entry", "Given", "Hollow", "Iterated", "Known", "Log", "rebuilt", "tensors_among"]
