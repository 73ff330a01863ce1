"""Normalisations over channels find zeros where channels are silent.

What else reads a channel has a weight that can be zero there. A normalisation has none: it takes
its statistics over all that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.hooks import RemovableHandle

from netslim.errors import PlanError, SurgeryError
from netslim.graph.modules.call_sites import caller, check_call, site_of
from netslim.graph.modules.computed_convolutions import CONVOLUTIONS
from netslim.graph.modules.padded_calls import FUNCTIONS, PAIRS, PaddedCall, padded_call
from netslim.graph.modules.padded_norms import NormWidth
from netslim.graph.modules.walk import named_modules, named_tensors
from netslim.graph.tracing.modes import Dispatch
from netslim.surgery.plan import PruningPlan
from netslim.surgery.rows import TensorCut


class GivenZeros:
    """A forward pre-hook: the module finds zeros in some entries of its input.

    A trace looks past it, and so does a module that is no longer as wide: it has been cut.

    Args:
        dim: of the input.
        width: of that dimension.
        gone: shape (entries,), which of it are zeros.
    """

    gives_zeros = True  # and does nothing else, which a trace asks

    def __init__(self, dim: int, width: int, gone: Tensor) -> None:
        self.dim, self.width = dim, width
        self.gone = tuple(gone.tolist())
        self._gone = {gone.device: gone}  # on each device: CUDA graphs can copy nothing to theirs

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = args[0]
        if _traced() or x.shape[self.dim] != self.width:
            return None
        return (self.filled(x), *args[1:])

    def filled(self, x: Tensor) -> Tensor:
        """The input with zeros."""
        if x.device not in self._gone:
            self._gone[x.device] = next(iter(self._gone.values())).to(x.device)
        return x.index_fill(self.dim, self._gone[x.device], 0)


class CallsGivenZeros(TorchFunctionMode):
    """Inside, functions that the code of modules calls find zeros in some entries of their input.

    Args:
        zeros: by module and place in its code.
    """

    def __init__(self, zeros: Mapping[tuple[nn.Module, str], GivenZeros]) -> None:
        super().__init__()
        self.zeros = zeros

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if (func in FUNCTIONS or func is padded_call) and not _traced():
            found = site_of(caller(func))
            if found is not None and (found[0], found[1].place) in self.zeros:
                args = self._given(self.zeros[found[0], found[1].place], args, func in PAIRS)
        return func(*args, **(kwargs or {}))

    def _given(self, zeros: GivenZeros, args: tuple[Any, ...], pair: bool) -> tuple[Any, ...]:
        """The arguments; the input is the first of a function, and the second of a `PaddedCall`.

        Of a ``pair`` it is the first and the second.
        """
        first = int(isinstance(args[0], PaddedCall))
        behind = first + 1 + pair
        given = map(zeros.filled, args[first:behind])
        return (*args[:first], *given, *args[behind:])


class GivenZerosWithin:
    """A forward pre-hook: a call in the module's code finds zeros in some entries of its input.

    Args:
        call: its place.
        zeros: what it is given.
    """

    gives_zeros = True

    def __init__(self, call: str, zeros: GivenZeros) -> None:
        self.call, self.zeros = call, zeros
        self._modes: list[CallsGivenZeros] = []  # of calls of the module that are under way

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        mode = CallsGivenZeros({(module, self.call): self.zeros})
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._modes.append(mode)

    def leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """The forward hook that goes with it."""
        if self._modes:
            self._modes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    leave.gives_zeros = True  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> GivenZerosWithin:
        return type(self)(self.call, self.zeros)


def hang(module: nn.Module, call: str, zeros: GivenZeros) -> list[RemovableHandle]:
    """Give zeros to a module, or to a call in its code; the handles take that off again."""
    if not call:
        return [module.register_forward_pre_hook(zeros)]
    within = GivenZerosWithin(call, zeros)
    after = module.register_forward_hook(within.leave, always_call=True)
    return [module.register_forward_pre_hook(within), after]


def _traced() -> bool:
    """Whether `netslim.trace` looks, to which numbered channels would be ones that stay."""
    if torch.compiler.is_compiling():
        return False
    return any(isinstance(mode, Dispatch) for mode in _get_current_dispatch_mode_stack())


def silent_inputs(
    model: nn.Module, plan: PruningPlan
) -> Iterator[tuple[nn.Module, str, GivenZeros]]:
    """(module, call in its code, what it is given) of the normalisations that lose channels by a
    plan, as far as it tells.

    Raises:
        PlanError: one has no weights, whose rows would tell which channels it loses.
    """
    tensors = dict(named_tensors(model))
    for norm in plan.norms:
        module: Any = model.get_submodule(norm.module)
        own = {id(tensor) for tensor in module._parameters.values() if tensor is not None}
        rows = [row for row in plan.tensors if id(tensors[row.tensor]) in own]
        if norm.lost:
            yield module, norm.call, GivenZeros(norm.dim, norm.size, torch.tensor(norm.lost))
            continue
        row = next((row for row in rows if _along_input(module, norm, row)), None)
        if row is None:
            raise PlanError(
                f"{norm.module!r} normalises over channels, and has no weights by which a mask "
                "could tell which of them go: cut it with netslim.prune"
            )
        gone = np.array(row.removed)
        groups = 1
        if norm.kind in CONVOLUTIONS:  # its weight has the inputs of one group, which all lose them
            groups = module.groups
            gone = np.add.outer(row.size * np.arange(groups), gone).ravel()
        yield module, "", GivenZeros(norm.dim, row.size * groups, torch.from_numpy(gone))


@dataclass(frozen=True)
class Zeros:
    """A `GivenZeros` as plain data.

    Attributes:
        module: its path.
        dim: of the input.
        width: of that dimension.
        gone: which entries of it are zeros.
        call: the place of the call in its code; ``""`` for the module as a whole.
    """

    module: str
    dim: int
    width: int
    gone: tuple[int, ...]
    call: str = ""


def zeros_given(model: nn.Module) -> tuple[Zeros, ...]:
    """What masks have hung on the modules of a bare model."""
    found = []
    for module, path in named_modules(model).items():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, GivenZeros):
                found.append(Zeros(path, hook.dim, hook.width, hook.gone))
            elif isinstance(hook, GivenZerosWithin):
                zeros = hook.zeros
                found.append(Zeros(path, zeros.dim, zeros.width, zeros.gone, hook.call))
    return tuple(found)


def give_zeros(model: nn.Module, zeros: Iterable[Zeros]) -> None:
    """Hang on the modules of a bare model what hung there.

    Raises:
        SurgeryError: there is no such module, or no such entry of its input.
    """
    modules = {path: module for module, path in named_modules(model).items()}
    for row in zeros:
        if row.module not in modules or not all(0 <= entry < row.width for entry in row.gone):
            raise SurgeryError(f"zeros are given to {row.module!r}, which cannot take them")
        if row.call:
            check_call(modules[row.module], row.call)
        gone = torch.tensor(row.gone, dtype=torch.long)
        hang(modules[row.module], row.call, GivenZeros(row.dim, row.width, gone))


def normed_weights(model: nn.Module, plan: PruningPlan) -> set[tuple[int, int]]:
    """(id of a weight that is normalised before it is used, the axis that reads): zeros in it would
    not stay zeros, and its module is given some instead.
    """
    convolutions = (norm.module for norm in plan.norms if norm.kind in CONVOLUTIONS)
    return {(id(model.get_submodule(path).weight), 1) for path in convolutions}


def drop(module: nn.Module) -> None:
    """Take these hooks off a module that has been cut, where they do nothing any more."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if getattr(hook, "gives_zeros", False)]:
            del hooks[key]


def _along_input(module: nn.Module, norm: NormWidth, row: TensorCut) -> bool:
    """Whether a row tells which channels of its input a module loses."""
    if norm.kind in CONVOLUTIONS:
        return row.axis == 1
    return len(row.kept) < row.size
