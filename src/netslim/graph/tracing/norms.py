"""Normalisations over channels: modules that can go on over the width they had couple nothing.

A rule says of a layer normalisation that it couples its channels, and so it does of the mean that
some code takes for one of its own. When the module is over, what was coupled in it is looked at
once more: where the module is a normalisation that `known_norms` knows, over just these channels,
a cut lets it go on over their old number, and each channel may go without a change to the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from netslim.graph.modules.call_sites import (
    Site,
    base_class,
    caller,
    replaceable,
    site_of,
    way_to,
)
from netslim.graph.modules.computed_convolutions import CONVOLUTIONS
from netslim.graph.modules.known_norms import Known, known
from netslim.graph.modules.operators import tensors_in
from netslim.graph.modules.padded_calls import ATTENTION, Read, padded_call, reading
from netslim.graph.modules.padded_norms import (
    KINDS,
    SCALED,
    SLIDING,
    ZEROS,
    NormWidth,
    PaddedGroupNorm,
    PaddedNorm,
    PaddedRMSNorm,
    PaddedWholeNorm,
    usual_eps,
)
from netslim.graph.modules.padded_reductions import PaddedReduction
from netslim.graph.modules.padded_sliding import PaddedSliding
from netslim.graph.modules.walk import named_modules
from netslim.graph.tracing.atoms import Vector, among
from netslim.graph.tracing.modes import Dispatch
from netslim.graph.tracing.recorder import BY_THE_ROOT, Recorder
from netslim.graph.tracing.records import RecordedNorm, Use
from netslim.graph.tracing.storages import Extent, extent_of

_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]  # past the sizes that remember


@dataclass(slots=True)
class _Call:
    """A module's, or one in its code: what it normalised over, if that was no obstacle, and what
    had been coupled.
    """

    norm: RecordedNorm | None
    coupled: list[tuple[Vector, str]]


class _Begun(NamedTuple):
    """What there was when a module began: coupled channels, normalisations, calls in its code."""

    coupled: int
    norms: int
    calls: int


class Norms:
    """Told of every module that begins and ends."""

    def __init__(self, recorder: Recorder, operators: Dispatch) -> None:
        self.recorder, self.operators = recorder, operators
        self.began: list[_Begun] = []  # the modules under way
        self.calls: dict[nn.Module, list[_Call]] = {}
        self.within: list[_Call] = []  # in the code of modules
        self.places: dict[Any, list[_Call]] = {}  # the same, by where it is
        self.replaceable = cache(replaceable)  # it compiles the code, and is asked at each call
        self.hooked: set[nn.Module] = set()  # by others, who may do anything to what goes in

    def enter(self, module: nn.Module) -> None:
        recorder = self.recorder
        there = _Begun(len(recorder.atoms.coupled), len(recorder.norms), len(self.within))
        self.began.append(there)
        if isinstance(module, PaddedNorm):
            recorder.unwatched += 1

    def leave(
        self, module: nn.Module, path: str, args: tuple[Any, ...], named: Any, output: Any
    ) -> None:
        recorder, began = self.recorder, self.began.pop()
        if isinstance(module, PaddedNorm):
            recorder.unwatched -= 1
            if isinstance(output, Tensor):
                with recorder.unlogged():
                    self._as_operator(module, args[0], output)
        # What is made of all channels is looked at right here.
        if recorder.awaited and isinstance(output, Tensor):
            recorder.used([output])
        self.calls.setdefault(module, []).append(_Call(None, []))
        # Few modules mix channels.
        if len(recorder.atoms.coupled) > began.coupled or len(self.within) > began.calls:
            with recorder.unlogged():
                self._mixed(module, path, args, named, output, began)

    def _mixed(
        self, module: nn.Module, path: str, args: tuple[Any, ...], named: Any, output: Any,
        began: _Begun,
    ) -> None:  # fmt: skip
        """Let a module whose code mixes channels go on over their old number, where it can."""
        coupled, calls = self.recorder.atoms.coupled, self.calls[module]
        call = calls[-1]
        own = [c for c in self.within[began.calls :] if c.norm and c.norm.module == path]
        nested = len(self.recorder.norms) - began.norms - len(own)
        if nested or (len(coupled) == began.coupled and not own):
            return
        # By keyword it would have to be called as the module's own code calls its input.
        if named or len(args) != 1 or not isinstance(args[0], Tensor):
            return
        if not isinstance(output, Tensor):
            return
        mixed = coupled[began.coupled :] + [pair for each in own for pair in each.coupled]
        found = self._over(module, args[0], output, [vector for vector, _ in mixed])
        if found is None:
            return
        self._leave(own)  # it does so as a whole
        vector, kind = found
        self._repeating(module, vector, kind.dim)
        width = len(vector)
        if isinstance(module, PaddedNorm):
            width = module.padded_width
        call.norm, call.coupled = RecordedNorm(path, kind, width, vector), mixed
        del coupled[began.coupled :]
        self.recorder.norms.append(call.norm)
        if len(calls) > 1 and not self._one_width(module, calls):
            self._leave_coupled(calls)

    def called(
        self, function: Any, args: tuple[Any, ...], kwargs: Any, out: Any, began: int
    ) -> None:
        """A module's code has called a function of PyTorch's; ``began`` were coupled before.

        What mixes channels there may go on over as many as there were, where the call can be found
        in the code, and is the same one for the same channels whenever it is made.
        """
        frame = caller(function)
        if frame is None:
            return
        read, call = reading(function, args, kwargs), _Call(None, [])
        same = self.places.setdefault((self.recorder.module, way_to(frame)), [])
        same.append(call)
        if read is not None:
            held = self._mixed_by(read, out, began)
            if held:
                call.norm = self._in_code(read, frame, function, held)
            if call.norm is not None:
                call.coupled = held
                self._release(held, out)
                self.within.append(call)
                self.recorder.norms.append(call.norm)
            if read.kind == ATTENTION:
                self._may_narrow(read, frame, function)
        if not self._one_row(same):
            self._leave_coupled(same)

    def _mixed_by(self, read: Read, out: Any, began: int) -> list[tuple[Vector, str]]:
        """What a call has coupled, and what using its results would couple.

        Of attention what its scale does alone: its product and its shares are other things.
        """
        atoms = self.recorder.atoms
        waiting = [use.args for use in self._waiting(out) if use.func == atoms.couple]
        held = atoms.coupled[began:] + waiting
        if read.kind == ATTENTION:
            held = [pair for pair in held if pair[1].startswith(BY_THE_ROOT)]
        return held

    def _release(self, held: list[tuple[Vector, str]], out: Any) -> None:
        """Forget that these are coupled, or will be."""
        atoms, gone = self.recorder.atoms, set(map(id, held))
        reasons = {(id(vector), reason) for vector, reason in held}
        atoms.coupled[:] = [pair for pair in atoms.coupled if id(pair) not in gone]
        for tensor in _floating(out):
            found = self.recorder.awaited.get(id(tensor))
            if found is not None:
                found.uses[:] = [
                    use
                    for use in found.uses
                    if use.func != atoms.couple or (id(use.args[0]), use.args[1]) not in reasons
                ]

    def _waiting(self, out: Any) -> list[Use]:
        """What is to be done once somebody uses the results of a call."""
        found = (self.recorder.awaited.get(id(tensor)) for tensor in _floating(out))
        return [use for each in found if each is not None for use in each.uses]

    def _in_code(
        self, read: Read, frame: FrameType, function: Any, mixed: list[tuple[Vector, str]]
    ) -> RecordedNorm | None:
        """What a call in the code of the running module takes over channels, in whichever way.

        None where that is not all that mixes them there, or not known.
        """
        labels, find = self.recorder.get(read.x), self.recorder.atoms.find
        over = [d for d in read.dims if d in labels.dims]
        if len(over) != 1 or labels.weight:
            return None
        vector = labels.dims[over[0]]
        roots = find(vector)
        if not all(among(find(other), roots).all() for other, _ in mixed):
            return None
        site = self._site(frame, function, read.kind)
        if site is None:
            return None
        row = NormWidth("", read.kind, over[0], 0, call=site.place, text=site.text)
        width = read.width or len(vector)
        return RecordedNorm(self.recorder.module, Known(row, bare=True), width, vector)

    def _may_narrow(self, read: Read, frame: FrameType, function: Any) -> None:
        """Note that the width of heads may go, in a second run, where a scale can be passed."""
        channels = self.recorder.get(read.x).dims  # of a width alone, too: heads may be literal
        if channels and self._site(frame, function, read.kind) is not None:
            self.recorder.may_narrow = True

    def _site(self, frame: FrameType, function: Any, kind: str) -> Site | None:
        """Where in the code of the running module a function is called, if that can be replaced."""
        if function is padded_call:  # of which the text knows nothing
            function = None
        found = site_of(frame, function)
        if found is None:
            return None
        module, site = found
        if self.recorder.model.get_submodule(self.recorder.module) is not module:
            return None
        base: Any = base_class(type(module))
        if kind != ZEROS and not self.replaceable(base, site.place):
            return None
        return site

    def _one_row(self, calls: list[_Call]) -> bool:
        """Whether a place in the code does the same over the same channels at every call."""
        norms = [call.norm for call in calls if call.norm is not None]
        if len(calls) == 1 or not norms:
            return True
        find = self.recorder.atoms.find
        first = norms[0]
        return len(norms) == len(calls) and all(
            norm.known == first.known and np.array_equal(find(norm.vector), find(first.vector))
            for norm in norms
        )

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
        for call in calls:
            self.recorder.atoms.coupled.extend(call.coupled)
        self._leave(calls)

    def _leave(self, calls: list[_Call]) -> None:
        """Forget that these normalise."""
        recorder = self.recorder
        for call in calls:
            recorder.norms[:] = [norm for norm in recorder.norms if norm is not call.norm]
            call.norm, call.coupled = None, []

    def _over(
        self, module: nn.Module, x: Tensor, output: Tensor, coupled: list[Vector]
    ) -> tuple[Vector, Known] | None:
        """What a module normalises over, and how; None where it is no such normalisation."""
        kind = self._sliding(module, x) or self._known(module, x)
        if module in self.hooked or kind is None:
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
        if same and all(among(find(other), roots).all() for other in coupled):
            return vector, kind
        return None

    def _without(self, kind: Known, vector: Vector, output: Tensor) -> bool:
        """Whether a module of this kind makes what has no channels any more."""
        reduces = kind.kind in KINDS and issubclass(KINDS[kind.kind], PaddedReduction)
        if kind.kind != ZEROS and not reduces:
            return False
        find = self.recorder.atoms.find
        left = self.recorder.get(output).dims.values()
        return not any(among(find(other), find(vector)).any() for other in left)

    def _sliding(self, module: nn.Module, x: Tensor) -> Known | None:
        """What a convolution is whose input has channels in the place of space."""
        if type(module) is not nn.Conv1d or len(_SHAPE(x)) - 1 not in self.recorder.get(x).dims:
            return None
        return Known(NormWidth("", SLIDING, -1, 0), bare=True)

    def _known(self, module: nn.Module, x: Tensor) -> Known | None:
        self.recorder.unwatched += 1
        try:
            found = known(module, x, self.recorder.memo)
            if found is None or found.kind != SCALED:
                return found
            return replace(found, row=self._scaled(module, found.row))
        finally:
            self.recorder.unwatched -= 1

    def _scaled(self, module: nn.Module, row: NormWidth) -> NormWidth:
        """With the eps in numbers; and as a `PaddedRMSNorm` where others hold its weight, too, who
        would find it scaled.
        """
        own = extent_of(getattr(module, row.weight))
        if any(one is not module and own.overlaps(other) for one, other in self._held):
            return replace(row, kind=PaddedRMSNorm.kind)
        return replace(row, eps=usual_eps(module))

    @cached_property
    def _held(self) -> list[tuple[nn.Module, Extent]]:
        """Where the tensors of the model are, with the module that each is of."""
        return [
            (module, extent_of(tensor))
            for module in named_modules(self.recorder.model)
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        ]

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
        func, *args = _like(module, x)
        self.operators.told(func, output, tuple(args), {})


def _floating(out: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(out) if tensor.is_floating_point()]


def _like(module: PaddedNorm, x: Tensor) -> tuple[Any, ...]:
    """(operator, its arguments), of PyTorch's, that does to channels what a module does."""
    aten, shape = torch.ops.aten, tuple(_SHAPE(x))
    if isinstance(module, PaddedSliding):
        window = module.stride, module.padding, module.dilation, False, (0,), module.groups
        return aten.convolution.default, x, module.weight, module.bias, *window
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
