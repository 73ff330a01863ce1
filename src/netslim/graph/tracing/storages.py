"""What the operators of a run put out, and from when to when its memory is alive.

A tensor is a view of a *storage*, the memory itself, and storages are what must be counted: ten
slices of one tensor take no room, and a tensor that nobody holds any more still does while a view
of it lives. The run is the eager one, so Python frees each storage the moment its last tensor goes;
we hold weak references and look, whenever new memory is taken, which storages have gone since.
Nothing needs to be known of the model's code for that, nor of the operators.

Time is counted in *steps*, the operators that take new memory, because only then the total grows:
the fullest moments are among them. We look after the operator has run, so in ``x = f(x)`` the old x
and the new one overlap, as they do (f reads the one while it makes the other); what went between
two steps does not overlap with the second.

A trap: storages are told apart by their addresses (``_cdata``), and a new one may get the address
of one that has gone. The weak reference prevents that: PyTorch gives an address away only when it
is dropped too, which `_bury` does in the same look that finds the storage gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from netslim.graph.tracing.atoms import Vector

NEW, IN_PLACE, VIEW = "new", "in-place", "view"


class RecordedOutput(NamedTuple):
    """One tensor that an operator put out; `memory.Output` once its sizes are counts."""

    module: str
    operator: str
    factors: tuple[int | Vector, ...]
    itemsize: int
    layer: bool
    constant: bool
    kind: str


@dataclass
class Span:
    """One piece of memory of ``size`` bytes, in proportion to the product of ``factors``.

    It is alive from step ``born`` until before step ``died`` (None: at the end still).
    """

    factors: tuple[int | Vector, ...]
    size: int
    born: int
    died: int | None = None


class Storages:
    """Follows the memory of a run; a step is an operator that takes new memory.

    It holds weak references only: nothing lives longer for being watched. Tensors that share memory
    count once. What was there before the run, as parameters, is not counted.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._known: dict[int, tuple[StorageWeakRef, Span | None]] = {}
        self._from_inputs: set[int] = set()  # what depends on the inputs of the model
        self._steps = 0

    def begin(self, tensor: Tensor, factors: tuple[int | Vector, ...]) -> None:
        """An input of the model, which its caller holds until the end."""
        storage = storage_of(tensor)
        if storage is not None and storage._cdata not in self._known:
            size = min(storage.nbytes(), tensor.numel() * tensor.itemsize)
            self._add(storage, Span(factors, size, 0))
            self._from_inputs.add(storage._cdata)

    def depend_on_inputs(self, storages: set[int]) -> bool:
        """Whether any of these depends on the inputs of the model."""
        return not self._from_inputs.isdisjoint(storages)

    def note(
        self, tensor: Tensor, factors: tuple[int | Vector, ...], inputs: set[int], step: bool
    ) -> str:
        """Note what an operator put out: new memory, or a view; ``step``: its first tensor."""
        storage = storage_of(tensor)
        if storage is None:
            return NEW
        key = storage._cdata
        # Memory of an input that is not known was there before the run, as that of a parameter:
        # what an operator makes of it in place or as a view is not new.
        new = key not in self._known and key not in inputs
        if new:
            if step:
                self._bury()
            self._add(storage, Span(factors, storage.nbytes(), self._steps))
        if self.depend_on_inputs(inputs):
            # A parameter that is written to from now on depends on the inputs; it has no span, and
            # is known so that its address is forgotten with it.
            if key not in self._known:
                self._add(storage, None)
            self._from_inputs.add(key)
        if new:
            return NEW
        return VIEW

    def _bury(self) -> None:
        """What was freed since the last step was gone before this one."""
        self._steps += 1
        for key in [key for key in self._known if _expired(key)]:
            span = self._known.pop(key)[1]
            self._from_inputs.discard(key)
            if span is not None:
                span.died = self._steps

    def _add(self, storage: Any, span: Span | None) -> None:
        self._known[storage._cdata] = _weakly(storage), span
        if span is not None:
            self.spans.append(span)


_expired = torch.UntypedStorage._expired
_weakly: Callable[[Any], StorageWeakRef] = StorageWeakRef


def storage_of(tensor: Tensor) -> Any:
    """The memory behind a tensor; None where it has none that could be followed, as sparse ones."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def storages_of(tensors: list[Tensor]) -> set[int]:
    """What identifies the memory behind the tensors, while they live."""
    return {storage._cdata for storage in map(storage_of, tensors) if storage is not None}


class Extent(NamedTuple):
    """Where the numbers of a tensor are: the device, and the first byte and the end there."""

    device: torch.device
    start: int
    stop: int

    def overlaps(self, other: Extent) -> bool:
        """Whether what is written to one may change the other."""
        together = self.device == other.device
        return together and self.start < other.stop and other.start < self.stop


def extent_of(tensor: Tensor) -> Extent:
    """Where the numbers of a tensor are that holds values."""
    if not tensor.numel():
        return Extent(tensor.device, 0, 0)
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * step for size, step in steps)
    start = tensor.data_ptr()
    return Extent(tensor.device, start, start + (last + 1) * tensor.element_size())
