"""Silence whole branches: the sums that they end in are given zeros instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from netslim.errors import VerificationError
from netslim.graph.blocks import Addition
from netslim.graph.modules.walk import named_modules
from netslim.graph.modules.watching import OperatorMode


class _Silent(OperatorMode):
    """Gives some sums zeros for one operand, and knows in which module an operator runs."""

    def __init__(self, sums: Iterable[Addition]) -> None:
        super().__init__()
        self.operands = {(one.module, one.operator, one.number): one.operand for one in sums}
        self.seen: set[tuple[str, str, int]] = set()
        self.under_way: list[tuple[str, Counter[str]]] = []

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.under_way:
            path, counts = self.under_way[-1]
            name = func._schema.name.removeprefix("aten::")
            place = path, name, counts[name]
            counts[name] += 1
            if place in self.operands:
                self.seen.add(place)
                args = _without(args, self.operands[place])
        return func(*args, **kwargs)


def _without(args: tuple[Any, ...], operand: int) -> tuple[Any, ...]:
    """The operands with one silent; where a sum is written into it, its memory is."""
    branch: Tensor = args[operand]
    if operand == 0:
        return branch.zero_(), *args[1:]
    return args[0], torch.zeros_like(branch), *args[2:]


@contextmanager
def branches_silenced(model: nn.Module, sums: Iterable[Addition]) -> Iterator[None]:
    """Inside, these sums of a model's forward are what they are without their branches.

    Raises:
        VerificationError: on leaving, a sum did not run.
    """
    silent = _Silent(sums)
    if not silent.operands:
        yield
        return
    paths = {m: p for m, p in named_modules(model).items() if not _scripted(m)}

    def enter(module: nn.Module, args: Any) -> None:
        silent.under_way.append((paths[module], Counter()))

    def leave(module: nn.Module, args: Any, answer: Any) -> None:
        silent.under_way.pop()

    handles = []
    for module in paths:
        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with silent:
            yield
    finally:
        for handle in handles:
            handle.remove()
    missed = silent.operands.keys() - silent.seen
    if missed:
        path, operator, number = min(missed)
        raise VerificationError(
            f"the branch that {path!r} adds was to be silent, and its operator {operator} number "
            f"{number} did not run: trace and select again"
        )


def _scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


__all__ = ["branches_silenced"]
