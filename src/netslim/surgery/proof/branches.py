"""Sums that residual branches end in, found again in any run: to silence them, or look at them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from netslim.errors import VerificationError
from netslim.graph.blocks import Addition
from netslim.graph.modules.operators import operator
from netslim.graph.modules.walk import named_modules
from netslim.graph.modules.watching import OperatorMode, hung

Args = tuple[Any, ...]


class AtSums(OperatorMode):
    """Meets some sums of a run, as it knows in which module each operator runs.

    Args:
        sums: which.
    """

    def __init__(self, sums: Iterable[Addition]) -> None:
        super().__init__()
        self.sums = {(one.module, one.operator, one.number): one for one in sums}
        self.seen: set[Addition] = set()
        self.under_way: list[tuple[str, Counter[str]]] = []

    def met(self, one: Addition, args: Args) -> Args:
        """What a sum is given in place of ``args``."""
        raise NotImplementedError

    def run(self, func: Any, args: Args, kwargs: dict[str, Any]) -> Any:
        if self.under_way:
            path, counts = self.under_way[-1]
            name = operator(func).name
            found = self.sums.get((path, name, counts[name]))
            counts[name] += 1
            if found is not None:
                self.seen.add(found)
                args = self.met(found, args)
        return func(*args, **kwargs)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Inside, it sees what the model runs."""
        paths = {m: p for m, p in named_modules(model).items() if not _scripted(m)}

        def enter(module: nn.Module, args: Any) -> None:
            self.under_way.append((paths[module], Counter()))

        def leave(module: nn.Module, args: Any, answer: Any) -> None:
            self.under_way.pop()

        def hooks() -> Iterator[RemovableHandle]:
            for module in paths:
                yield module.register_forward_pre_hook(enter, prepend=True)
                yield module.register_forward_hook(leave, always_call=True)

        with hung(hooks()), self:
            yield


class _Silent(AtSums):
    """Gives sums zeros in place of their branches."""

    def met(self, one: Addition, args: Args) -> Args:
        branch: Tensor = args[one.operand]
        if one.operand == 0:  # what is written into it has its memory
            return branch.zero_(), *args[1:]
        return args[0], torch.zeros_like(branch), *args[2:]


@contextmanager
def branches_silenced(model: nn.Module, sums: Iterable[Addition]) -> Iterator[None]:
    """Inside, these sums of a model's forward are what they are without their branches.

    Raises:
        VerificationError: on leaving, a sum did not run.
    """
    silent = _Silent(sums)
    if not silent.sums:
        yield
        return
    with silent.watching(model):
        yield
    for one in set(silent.sums.values()) - silent.seen:
        raise VerificationError(
            f"the branch that {one.module!r} adds was to be silent, and its operator "
            f"{one.operator} number {one.number} did not run: trace and select again"
        )


@contextmanager
def branches_silent(model: nn.Module, sums: Iterable[Addition]) -> Iterator[None]:
    """The same, whether or not the run inside gets as far as the sums."""
    silent = _Silent(sums)
    if not silent.sums:
        yield
        return
    with silent.watching(model):
        yield


def _scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


__all__ = ["AtSums", "branches_silenced", "branches_silent"]
