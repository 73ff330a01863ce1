"""Weights of normalisations that other code reads, too, and would find scaled.

A penalty on them in the forward of the network is code of that kind, which runs in training alone.
So the network is run once more as it is trained, and it is noted who is given such a weight.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from netslim.graph.modules.calls import as_call, in_mode
from netslim.graph.modules.operators import operator
from netslim.graph.modules.padded_norms import SCALED, PaddedRMSNorm
from netslim.graph.modules.watching import OperatorMode, hung
from netslim.graph.tracing.other_sizes import untouched
from netslim.graph.tracing.recorder import Recorder


def leave_unscaled(recorder: Recorder, example_inputs: Any) -> None:
    """Let normalisations become a `PaddedRMSNorm` where their own code is not all that reads their
    weight: that leaves the weight as it is.
    """
    rows = {norm.module: norm.known.row for norm in recorder.norms if norm.known.kind == SCALED}
    if not rows:
        return
    modules = {path: recorder.model.get_submodule(path) for path in rows}
    weights = {id(getattr(modules[path], row.weight)): path for path, row in rows.items()}
    elsewhere = recorder.facts.elsewhere
    if not rows.keys() <= elsewhere.keys():
        read = _read_elsewhere(recorder.model, example_inputs, weights)
        elsewhere.update({path: path in read for path in rows})
    for number, norm in enumerate(recorder.norms):
        if norm.known.kind == SCALED and elsewhere[norm.module]:
            row = replace(norm.known.row, kind=PaddedRMSNorm.kind)
            recorder.norms[number] = replace(norm, known=replace(norm.known, row=row))


def _read_elsewhere(model: nn.Module, example_inputs: Any, weights: Mapping[int, str]) -> set[str]:
    """The paths of the modules whose weights operators outside of them are given.

    Args:
        model: it is as it was afterwards.
        example_inputs: that it runs on.
        weights: id of each weight -> the path of its module.
    """
    seen = _Seen(weights)
    args, kwargs = as_call(example_inputs)
    # Whatever ran, even up to an error, tells.
    with (
        contextlib.suppress(Exception),
        torch.no_grad(),
        untouched(model),
        in_mode(model, training=True),
        _within(model, seen),
        seen,
    ):
        model(*args, **kwargs)
    return seen.elsewhere


class _Seen(OperatorMode):
    """Notes which weights are read while their module does not run."""

    def __init__(self, weights: Mapping[int, str]) -> None:
        super().__init__()
        self.weights, self.running = weights, Counter[str]()
        self.elsewhere: set[str] = set()

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for tensor in operator(func).given(args, kwargs):
            path = self.weights.get(id(tensor))
            if path is not None and not self.running[path]:
                self.elsewhere.add(path)
        return func(*args, **kwargs)


@contextlib.contextmanager
def _within(model: nn.Module, seen: _Seen) -> Iterator[None]:
    """Inside, it is told which of the modules run."""

    def enter(path: str) -> None:
        seen.running[path] += 1

    def leave(path: str) -> None:
        seen.running[path] -= 1

    def hooks() -> Iterator[RemovableHandle]:
        for path in seen.weights.values():
            module = model.get_submodule(path)
            yield module.register_forward_pre_hook(lambda *_, path=path: enter(path))
            yield module.register_forward_hook(lambda *_, path=path: leave(path), always_call=True)

    with hung(hooks()):
        yield


__all__ = ["leave_unscaled"]
