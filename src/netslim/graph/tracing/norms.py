"""Normalisations over channels: modules that can go on over the width they had couple nothing.

A rule says of a layer normalisation that it couples its channels, and so it does of the mean that
some code takes for one of its own. When the module is over, what was coupled in it is looked at
once more: where the module is a normalisation that `known_norms` knows, over just these channels,
a cut lets it go on over their old number, and each channel may go without a change to the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netslim.graph.modules.computed_convolutions import CONVOLUTIONS
from netslim.graph.modules.known_norms import Known, known
from netslim.graph.modules.padded_norms import (
    KINDS,
    ZEROS,
    PaddedGroupNorm,
    PaddedNorm,
    PaddedWholeNorm,
)
from netslim.graph.modules.padded_reductions import PaddedReduction
from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.modes import Dispatch
from netslim.graph.tracing.recorder import RecordedNorm, Recorder, Rule

_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]  # past the sizes that remember


@dataclass
class _Call:
    """A module's: what it normalised over, if that was no obstacle, and what had been coupled."""

    norm: RecordedNorm | None
    coupled: list[tuple[Vector, str]]


class Norms:
    """Told of every module that begins and ends."""

    def __init__(self, recorder: Recorder, operators: Dispatch, rules: Mapping[str, Rule]) -> None:
        self.recorder, self.operators, self.rules = recorder, operators, rules
        self.began: list[tuple[int, int]] = []  # what was coupled before the modules under way
        self.calls: dict[nn.Module, list[_Call]] = {}
        self.hooked: set[nn.Module] = set()  # by others, who may do anything to what goes in

    def enter(self, module: nn.Module) -> None:
        recorder = self.recorder
        self.began.append((len(recorder.atoms.coupled), len(recorder.norms)))
        if isinstance(module, PaddedNorm):
            recorder.unwatched += 1

    def leave(
        self, module: nn.Module, path: str, args: tuple[Any, ...], named: Any, output: Any
    ) -> None:
        began, norms = self.began.pop()
        if isinstance(module, PaddedNorm):
            self.recorder.unwatched -= 1
            if isinstance(output, Tensor):
                self._as_operator(module, args[0], output)
        if isinstance(output, Tensor):  # what is made of all channels is looked at right here
            self.recorder.used([output])
        coupled = self.recorder.atoms.coupled
        call = _Call(None, [])
        calls = self.calls.setdefault(module, [])
        calls.append(call)
        if len(coupled) == began or len(self.recorder.norms) > norms:
            return
        # By keyword it would have to be called as the module's own code calls its input.
        if named or len(args) != 1 or not isinstance(args[0], Tensor):
            return
        if not isinstance(output, Tensor):
            return
        found = self._over(module, args[0], output, [vector for vector, _ in coupled[began:]])
        if found is None:
            return
        vector, kind = found
        self._repeating(module, vector, kind.dim)
        width = len(vector)
        if isinstance(module, PaddedNorm):
            width = module.padded_width
        call.norm, call.coupled = RecordedNorm(path, kind, width, vector), coupled[began:]
        del coupled[began:]
        self.recorder.norms.append(call.norm)
        if len(calls) > 1 and not self._one_width(module, calls):
            self._leave_coupled(calls)

    def _one_width(self, module: nn.Module, calls: list[_Call]) -> bool:
        """Whether all calls of a module normalise over as many channels, along one dimension.

        Its weights see to the number: they are a channel's at every call.
        """
        norms = [call.norm for call in calls if call.norm is not None]
        kinds = {norm.known for norm in norms}
        alike = len(norms) == len(calls) and len(kinds) == 1
        return alike and not any(known.bare for known in kinds)

    def _leave_coupled(self, calls: list[_Call]) -> None:
        """What one module normalises over here and there, over other widths, stays as it was."""
        recorder = self.recorder
        for call in calls:
            recorder.norms[:] = [norm for norm in recorder.norms if norm is not call.norm]
            recorder.atoms.coupled.extend(call.coupled)
            call.norm, call.coupled = None, []

    def _over(
        self, module: nn.Module, x: Tensor, output: Tensor, coupled: list[Vector]
    ) -> tuple[Vector, Known] | None:
        """What a module normalises over, and how; None where it is no such normalisation."""
        if module in self.hooked or (kind := self._known(module, x)) is None:
            return None
        labels = self.recorder.get(x).dims
        if kind.kind == PaddedWholeNorm.kind and 1 not in labels:  # it may be any of several
            kind = replace(kind, row=replace(kind.row, dim=-1))
        dim = kind.dim % len(_SHAPE(x))
        vector = labels.get(dim)
        made = self.recorder.get(output).dims.get(dim)
        if vector is None:
            return None
        if kind.kind in CONVOLUTIONS or self._without(kind, vector, output):  # it makes others
            made = vector
        if made is None or output.dtype != x.dtype:
            return None
        find = self.recorder.atoms.find
        roots = find(vector)
        same = np.array_equal(roots, find(made))
        if same and all(np.isin(find(other), roots).all() for other in coupled):
            return vector, kind
        return None

    def _without(self, kind: Known, vector: Vector, output: Tensor) -> bool:
        """Whether a module of this kind makes what has no channels any more."""
        if kind.kind != ZEROS and not issubclass(KINDS[kind.kind], PaddedReduction):
            return False
        find = self.recorder.atoms.find
        left = self.recorder.get(output).dims.values()
        return not any(np.isin(find(other), find(vector)).any() for other in left)

    def _known(self, module: nn.Module, x: Tensor) -> Known | None:
        self.recorder.unwatched += 1
        try:
            return known(module, x, self.recorder.memo)
        finally:
            self.recorder.unwatched -= 1

    def _repeating(self, module: nn.Module, vector: Vector, dim: int) -> None:
        """Ask that the width which a module has written down follows its channels.

        Whether or not its own code reads that: once it is a `PaddedNorm` nobody does, and what a
        second cut does to it must go on from what the first one did.
        """
        held = getattr(module, "normalized_shape", ())
        if not isinstance(held, tuple | list):
            held = (held,)
        own = held[-1:]
        if dim == 1:
            own = held[:1]
        for size in own:
            if self.recorder.mine(size) is not None and int.__int__(size) == len(vector):
                self.recorder.constrain(size, vector, len(vector))

    def _as_operator(self, module: PaddedNorm, x: Tensor, output: Tensor) -> None:
        """What ran unseen, told as the operator of PyTorch's that does the same to channels."""
        vector = self.recorder.get(x).dims.get(module.padded_dim % len(_SHAPE(x)))
        if vector is not None:
            self._repeating(module, vector, module.padded_dim)
        operator, *args = _like(module, x)
        name = operator._schema.name.removeprefix("aten::")
        self.operators.ran(self.rules[name], operator, output, tuple(args), {})


def _like(module: PaddedNorm, x: Tensor) -> tuple[Any, ...]:
    """(operator, its arguments), of PyTorch's, that does to channels what a module does."""
    aten, shape = torch.ops.aten, tuple(_SHAPE(x))
    if isinstance(module, PaddedReduction):
        return aten.mean.dim, x, [module.padded_dim], module.keeps
    if isinstance(module, PaddedWholeNorm):
        over = shape[-len(module.normalized_shape) :]
        return aten.native_layer_norm.default, x, over, module.weight, module.bias, 0.0
    names = module.padded_weight, module.padded_bias
    weight, bias = (_flat(getattr(module, name, None)) for name in names)
    if module.padded_dim == -1:
        return aten.native_layer_norm.default, x, shape[-1:], weight, bias, 0.0
    groups = 1
    if isinstance(module, PaddedGroupNorm):
        groups = module.num_groups
    return aten.native_group_norm.default, x, weight, bias, *shape[:2], 0, groups, 0.0


def _flat(vector: Tensor | None) -> Tensor | None:
    """In one dimension what ConvNeXt V2 keeps in four."""
    if vector is None or vector.dim() == 1:
        return vector
    return vector.flatten()
