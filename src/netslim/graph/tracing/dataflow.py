"""Which operator read what in a run, and within which calls of modules: what blocks are found in.

Values are numbered: one for each tensor that an operator made, and for each time that one was
written to. A tensor that shares its memory with one that was written to since has the value of the
last write, whichever of its views that went through.

Only whoever asks for blocks has it recorded. No tensor is held.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from netslim.graph.modules.calls import output_tensors
from netslim.graph.modules.operators import tensors_in
from netslim.graph.modules.walk import named_modules
from netslim.graph.modules.watching import hung
from netslim.graph.tracing.storages import storage_of

INPUT = -1  # the step that makes what nobody made: inputs of the model
_SUMS = frozenset({"add", "add_"})


@dataclass(frozen=True)
class Sum:
    """What a sum of two tensors was given, and whether either could stand in its place.

    ``alike[i]`` says that operand i has the shape and the type of the result, and enters as it is.
    """

    operands: tuple[int, int]
    alike: tuple[bool, bool]


@dataclass(frozen=True)
class Step:
    """An operator that ran.

    Attributes:
        operator: its ATen name.
        reads, makes: values.
        tensors: names of the parameters and buffers that it was given.
        costs, outputs: which of those that the recorder counted are its own.
        added: of a sum.
        joined: the values that a concatenation along dimension 1 puts side by side.
    """

    operator: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    tensors: tuple[str, ...]
    costs: range
    outputs: range
    added: Sum | None = None
    joined: tuple[int, ...] = ()


@dataclass
class ModuleCall:
    """A call of a module, and the steps ``start .. stop`` that ran within.

    Attributes:
        path: of the module.
        parent: number of the call around it; -1 for that of the model.
        takes: position or name of each argument that is a tensor -> its value; of one in a list
            ``"0.1"``, both positions.
        alone: whether one tensor by position is all that it takes.
        answer: what it gives, with `Made` for tensors; None where it holds something else, too.
    """

    path: str
    parent: int
    start: int
    takes: dict[str, int]
    alone: bool
    stop: int = 0
    answer: Any = None


@dataclass(frozen=True)
class Made:
    """A tensor that a module gave: its value and dimensions; ``real``: whether it is of numbers
    with a point.
    """

    value: int
    dims: int
    real: bool


class Odd:
    """In place of an answer that is none of tensors, None, and tuples and lists of them."""


@dataclass
class Dataflow:
    """All of one run.

    Attributes:
        steps: in order.
        calls: of modules, in the order in which they began.
        maker: of each value the step that made it, or `INPUT`.
        shapes: of each value.
        results: values that the model gives.
        names: id of a parameter or buffer -> its name.
    """

    names: Mapping[int, str]
    steps: list[Step] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    maker: list[int] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    results: set[int] = field(default_factory=set)
    # Id of a tensor -> itself, its value, and when it was made; memory -> what was written last.
    _known: dict[int, tuple[weakref.ref[Tensor], int, int]] = field(default_factory=dict)
    _written: dict[int, tuple[int, int]] = field(default_factory=dict)
    _under_way: list[int] = field(default_factory=list)  # calls, the innermost last
    _time: int = 0

    def begin(self, tensors: Sequence[Tensor]) -> None:
        """Inputs of the model."""
        for tensor in tensors:
            self._make(tensor, INPUT)

    def finish(self, answer: Any) -> None:
        """The model has run; no tensor is asked for any more."""
        found = (self.value(tensor) for tensor in output_tensors(answer))
        self.results = {value for value in found if value is not None}
        self._known.clear()
        self._written.clear()

    def ran(
        self, operator: str, inputs: Sequence[Tensor], args: Sequence[Any], kwargs: Any, out: Any,
        costs: range, outputs: range,
    ) -> None:  # fmt: skip
        """An operator has run."""
        given = [self.value(tensor) for tensor in inputs]
        own = tuple(self.names[id(tensor)] for tensor in inputs if id(tensor) in self.names)
        made = tensors_in(out)
        added = None
        if operator in _SUMS:
            added = _sum(inputs, given, made[0], args, kwargs)
        joined: tuple[int, ...] = ()
        if operator == "cat" and _dim(args, kwargs) % made[0].dim() == 1:
            joined = tuple(value for value in given if value is not None)
            joined *= len(joined) == len(given)
        self._time += 1
        number, makes = len(self.steps), []
        for tensor in made:
            makes.append(self._make(tensor, number))
            memory = storage_of(tensor)
            if memory is not None and any(tensor is one for one in inputs):
                self._written[memory._cdata] = makes[-1], self._time
        reads = tuple(dict.fromkeys(value for value in given if value is not None))
        step = Step(operator, reads, tuple(makes), own, costs, outputs, added, joined)
        self.steps.append(step)

    def value(self, tensor: Tensor) -> int | None:
        """That of a tensor; None for one that no operator of the run made."""
        known = self._known.get(id(tensor))
        if known is None or known[0]() is not tensor:
            return None
        _, value, made = known
        memory = storage_of(tensor)
        if memory is not None:
            written, when = self._written.get(memory._cdata, (value, made))
            if when > made:
                return written
        return value

    def _make(self, tensor: Tensor, step: int) -> int:
        value = len(self.maker)
        self.maker.append(step)
        self.shapes.append(tuple(tensor.shape))
        self._known[id(tensor)] = weakref.ref(tensor), value, self._time
        return value

    def enter(self, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module begins."""
        takes: dict[str, int] = {}
        for key, given in ((str(k), v) for k, v in (*enumerate(args), *kwargs.items())):
            if isinstance(given, (list, tuple)):
                held = {f"{key}.{place}": one for place, one in enumerate(given)}
            else:
                held = {key: given}
            for name, one in held.items():
                if isinstance(one, Tensor) and (value := self.value(one)) is not None:
                    takes[name] = value
        parent = next(reversed(self._under_way), -1)
        self._under_way.append(len(self.calls))
        alone = len(args) == 1 and not kwargs and "0" in takes
        self.calls.append(ModuleCall(path, parent, len(self.steps), takes, alone))

    def leave(self, answer: Any) -> None:
        """The innermost module ends."""
        call = self.calls[self._under_way.pop()]
        call.stop, call.answer = len(self.steps), self._described(answer)

    def _described(self, answer: Any) -> Any:
        if answer is None:
            return None
        if isinstance(answer, Tensor):
            value = self.value(answer)
            if value is None:
                return Odd()
            return Made(value, answer.dim(), answer.is_floating_point())
        if type(answer) in (tuple, list):
            return type(answer)(map(self._described, answer))
        return Odd()


def _sum(
    inputs: Sequence[Tensor], given: Sequence[int | None], out: Tensor, args: Sequence[Any],
    kwargs: Any,
) -> Sum | None:  # fmt: skip
    """None for what is no sum of two tensors that operators have made."""
    first, second = (*given, None, None)[:2]
    if first is None or second is None:
        return None
    alpha = kwargs.get("alpha", 1)
    if len(args) > 2:
        alpha = args[2]
    alike = [one.shape == out.shape and one.dtype == out.dtype for one in inputs]
    return Sum((first, second), (alike[0], alike[1] and alpha == 1))


def _dim(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Along which a concatenation puts tensors side by side."""
    dim: int = kwargs.get("dim", 0)
    if len(args) > 1:
        dim = args[1]
    return dim


@contextlib.contextmanager
def watching_calls(flow: Dataflow | None, model: nn.Module) -> Iterator[None]:
    """Inside, the flow is told of every call of a module."""
    if flow is None:
        yield
        return
    paths = {m: p for m, p in named_modules(model).items() if not _scripted(m)}

    thread = threading.get_ident()

    # Another thread that runs the model has calls of its own, and none of the arguments by name
    # where it runs while hooks are removed.
    def enter(module: nn.Module, args: Any, *kwargs: Any) -> None:
        if threading.get_ident() == thread:
            with torch._C.DisableTorchFunction():
                flow.enter(paths[module], args, *kwargs)

    def leave(module: nn.Module, args: Any, answer: Any) -> None:
        if threading.get_ident() == thread:
            with torch._C.DisableTorchFunction():
                flow.leave(answer)

    def around() -> Iterator[RemovableHandle]:
        # Around whatever other hooks do, which belongs to the call.
        for module in paths:
            yield module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
            yield module.register_forward_hook(leave)

    with hung(around()):
        yield


def _scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


__all__ = ["INPUT", "Dataflow", "Made", "ModuleCall", "Odd", "Step", "Sum", "watching_calls"]
