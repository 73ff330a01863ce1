"""What watches a model while it runs: two modes of PyTorch, for two layers of the same call.

The user writes ``x.view(n, self.width)``. PyTorch first asks the `TorchFunctionMode`, which sees
just that: the function, and arguments that may be `Size`s, integers that remember where they came
from (sizes.py). Then it goes down into C++, where a size is a number and nothing else, and comes
back to the `TorchDispatchMode` with the operator ``aten::view`` and the sizes ``[2, 64]``. The
second mode knows exactly what is computed, the first one what was meant: whether 64 was a literal,
an attribute or read from a shape. So `Function` keeps the calls under way on a stack, and the rule
that `Dispatch` applies looks there (`Recorder.call`) for what it was asked.

A rule reads shapes itself, and those must be plain numbers, or it would take its own arithmetic for
the user's: the function mode is off while a rule runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from netslim.errors import TraceError
from netslim.graph.modules.operators import operator, tensors_in
from netslim.graph.modules.padded_calls import FUNCTIONS, REDUCTIONS, PaddedCall, padded_call
from netslim.graph.modules.watching import OperatorMode
from netslim.graph.tracing.attention import hold_width
from netslim.graph.tracing.batch_norms import EMPTY, NATIVE, BatchNorm, Seen, taken_apart
from netslim.graph.tracing.by_another import BY_ANOTHER
from netslim.graph.tracing.passed import Args, Kwargs, note_unseen, widths_passed
from netslim.graph.tracing.recorder import BY_THE_ROOT, Recorder, Rule
from netslim.graph.tracing.sizes import Size


class Dispatch(OperatorMode):
    """Hands every operator that runs to its rule."""

    def __init__(self, recorder: Recorder, rules: Mapping[str, Rule], fallback: Rule) -> None:
        super().__init__()
        self.recorder, self.rules, self.fallback = recorder, rules, fallback
        self.seen: Seen | None = None  # what ran, where somebody wants to know

    def run(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        if self.recorder.unwatched:
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        known = operator(func)
        rule = self.rules.get(known.name)
        # In inference mode PyTorch leaves it to us to take an operator apart into those it runs as.
        if rule is None and known.composite:
            with self:
                return func.decompose(*args, **kwargs)
        # What runs below is no call of the user's, who may have asked for something else.
        with torch._C.DisableTorchFunction():
            out = func(*args, **kwargs)
        if self.seen is not None:
            self.seen.append((func, args, kwargs, out))
        self.ran(rule or self.fallback, func, out, args, kwargs)
        return out

    def whole(self, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
        """Run an operator that PyTorch takes apart as if it did not, for it has a rule."""
        with torch._C._DisableTorchDispatch():
            out = func(*args, **kwargs)
        self.told(func, out, args, kwargs)
        return out

    def told(self, func: OpOverload, out: Any, args: Args, kwargs: Kwargs) -> None:
        """Follow what ran as an operator that has a rule, or did the same as it does."""
        self.ran(self.rules[operator(func).name], func, out, args, kwargs)

    def batch_norm(self, call: BatchNorm, out: Any) -> None:
        """Follow a batch normalisation that ran as the operators that it is taken apart into."""
        self.recorder.begin(EMPTY)
        self.told(NATIVE, (out,), call.told, {})

    def ran(self, rule: Rule, func: OpOverload, out: Any, args: Args, kwargs: Kwargs) -> None:
        """An operator has run: let its rule say what it did (`Recorder.where` looks for this)."""
        self.recorder.in_rule = True
        try:
            with torch._C.DisableTorchFunction():
                self._follow(rule, func, out, args, kwargs)
        finally:
            self.recorder.in_rule = False

    def _follow(self, rule: Rule, func: OpOverload, out: Any, args: Args, kwargs: Kwargs) -> None:
        """Apply the rule, and note what the operator used and put out."""
        recorder, known = self.recorder, operator(func)
        name, inputs = known.name, known.given(args, kwargs)
        counted = len(recorder.costs)
        if recorder.awaited:
            recorder.used(inputs)
        recorder.begin(name)
        if name == "_local_scalar_dense":
            recorder.read(inputs[0], out)
        if recorder.readers:
            for tensor in inputs:
                recorder.readers.get(id(tensor), set()).add(name)
        made = tensors_in(out)
        self._apply(rule, func, out, args, kwargs, inputs, made)
        if not recorder.training:
            put_out = len(recorder.outputs)
            recorder.put_out(name, inputs, made, layer=len(recorder.costs) > counted)
            if recorder.flow is not None:
                costs = range(counted, len(recorder.costs))
                outputs = range(put_out, len(recorder.outputs))
                recorder.flow.ran(name, inputs, args, kwargs, out, costs, outputs)
        recorder.touched.update(map(id, inputs))

    def _apply(
        self, rule: Rule, func: OpOverload, out: Any, args: Args, kwargs: Kwargs,
        inputs: list[Tensor], made: list[Tensor],
    ) -> None:  # fmt: skip
        """Call the rule; where one breaks off, what its operator touches stays and costs nothing.

        A `TraceError` goes through: that is what a rule raises on purpose, to tell whoever wrote it
        or the model what to do. Any other error is an accident in the rule, ours or registered, and
        no reason to refuse the model.
        """
        recorder, known = self.recorder, operator(func)
        before = {id(t): recorder.get(t) for t in inputs}
        counted, given = len(recorder.costs), kwargs
        if known.results and kwargs:
            given = {k: v for k, v in kwargs.items() if k not in known.results}
        try:
            rule(recorder, func, out, *args, **given)
        except TraceError:
            raise
        except Exception as error:
            del recorder.costs[counted:]
            recorder.failed(error, [*before.values()], made)
            return
        recorder.computed(func, args, kwargs, made, before)
        if recorder.narrows_heads:
            recorder.pass_zeros(known.name, args, [*before.values()], made)


_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_DETACH = torch.ops.aten.detach.default
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_NUMBERS_OF = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__)
# What leads to all numbers of a tensor, past PyTorch's operators.
_OUT_OF_SIGHT = (*_NUMBERS_OF, torch.Tensor.__dlpack__)
# Plain numbers that follow from the sizes of a tensor.
_LAYOUT: dict[Any, str] = {
    torch.Tensor.stride: "stride",
    torch.Tensor.storage_offset: "storage_offset",
    torch.Tensor.nbytes.__get__: "nbytes",  # type: ignore[attr-defined]
}
_LONGEST = 64  # a tensor of more numbers is no list of sizes
_NUMEL = (torch.Tensor.numel, torch.Tensor.nelement, torch.numel)


def _depends_on_sizes(layout: Any) -> bool:
    """Whether a stride or the like is not what it is for every size."""
    return layout not in (0, 1)


def _tolist(tensor: Tensor) -> Any:
    """What is in a short tensor of integers."""
    if tensor.numel() > _LONGEST or tensor.is_floating_point() or tensor.is_complex():
        return []
    with torch._C.DisableTorchFunction():
        return tensor.tolist()


class Function(TorchFunctionMode):
    """Keeps what the user's code called, and answers with sizes that know where they came from.

    Args:
        recorder: of the run.
        operators: the other mode.
        within: told of each call that may mix channels in the midst of a module's code: the
            function, its arguments, what came out, and how much had been coupled before.
    """

    def __init__(
        self,
        recorder: Recorder,
        operators: Dispatch,
        within: Callable[[Any, Args, Kwargs, Any, int], None],
    ) -> None:
        super().__init__()
        self.recorder, self.operators, self.within = recorder, operators, within
        self.apart: dict[Hashable, bool] = {}  # kinds of batch norms: whether that is as expected

    def __torch_function__(
        self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        kwargs, log = kwargs or {}, self.recorder.log
        if log is None or self.recorder.training:
            return self._answered(func, args, kwargs)
        told = log.given(func, args, kwargs)  # before it writes into what it is given
        return log.note(func, told, args, kwargs, self._answered(func, args, kwargs))

    def _answered(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        recorder = self.recorder
        if recorder.unwatched:
            return func(*args, **kwargs)
        if func == _SHAPE:
            return recorder.shape(args[0], func(*args))
        if func == torch.Tensor.size:
            return _size(recorder.shape(args[0], func(args[0])), *args[1:], **kwargs)
        if func in _NUMEL:
            return prod(recorder.shape(args[0], _SHAPE(args[0])))
        if func in _LAYOUT and _depends_on_sizes(func(*args, **kwargs)):
            for size in recorder.shape(args[0], _SHAPE(args[0])):
                recorder.value(size, _LAYOUT[func], soft=False)
        if func == torch.Tensor.__len__:
            for size in recorder.shape(args[0], _SHAPE(args[0]))[:1]:
                recorder.value(size, "len", soft=False)
        if func in BY_ANOTHER:
            return BY_ANOTHER[func](self._again, self._shape, *args, **kwargs)
        widths = widths_passed(recorder, func, args, kwargs)
        if widths:
            out = self._watched(widths, func, args, kwargs)
        else:
            out = self._called(func, args, kwargs)
        if func in _OUT_OF_SIGHT:
            recorder.hidden(args[0], func.__name__.strip("_"))
        if func in _NUMBERS_OF:
            for number in tree_leaves(_tolist(args[0])):
                recorder.read(args[0], number)
        if func == _DATA:
            labels = recorder.get(args[0])
            recorder.set(out, labels.dims, labels.weight)
            recorder.computed(_DETACH, args, {}, [out], {id(args[0]): labels})
            recorder.touched.add(id(args[0]))
        return out

    def _again(self, func: Any, *args: Any) -> Any:
        return self._answered(func, args, {})

    def _shape(self, tensor: Tensor) -> torch.Size:
        return self.recorder.shape(tensor, _SHAPE(tensor))

    def _watched(self, widths: Sequence[Size], func: Any, args: Args, kwargs: Kwargs) -> Any:
        """Call it, and look which sizes no rule asked about."""
        recorder = self.recorder
        outer, recorder.asked = recorder.asked, set()
        try:
            out = self._called(func, args, kwargs)
            note_unseen(recorder, func, args, widths, recorder.asked)
        finally:
            recorder.asked = outer
        return out

    def _called(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        recorder, before = self.recorder, len(self.recorder.atoms.coupled)
        recorder.calls.append((func, args, kwargs))
        try:
            if func in _NORMALISATIONS:
                _hold_shape(recorder, *args, **kwargs)
            if func is F.multi_head_attention_forward:
                args, kwargs = (), hold_width(recorder, args, kwargs)
            out = self._run(func, args, kwargs)
        finally:
            recorder.calls.pop()
        if func is F.scaled_dot_product_attention:
            _hold_root(recorder, *args, **kwargs)
        if not recorder.calls and (func in FUNCTIONS or func is padded_call):
            self.within(func, args, kwargs, out, before)
        return out

    def _run(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        if func is torch._weight_norm:
            # Along most dimensions it runs as a norm and a division, which nobody could tell from
            # others; as a whole it says which tensor holds the gains that can follow a cut.
            return self.operators.whole(torch.ops.aten._weight_norm.default, args, kwargs)
        if func is padded_call:
            return self._padded(*args, **kwargs)
        if func is F.batch_norm:
            return self._batch_norm(args, kwargs)
        return func(*args, **kwargs)

    def _batch_norm(self, args: Args, kwargs: Kwargs) -> Any:
        """One below the other mode, where it is known what that would see (batch_norms.py)."""
        call = kind = None
        with suppress(TypeError):  # PyTorch says better what is wrong with a call
            call = BatchNorm(*args, **kwargs)
        if call is not None and self.recorder.flow is None:
            kind = call.kind()
        if call is None or kind is None or self.apart.get(kind) is False:
            return F.batch_norm(*args, **kwargs)
        if kind in self.apart:
            with torch._C._DisableTorchDispatch():
                out = F.batch_norm(*args, **kwargs)
            self.operators.batch_norm(call, out)
            return out
        seen = self.operators.seen = []
        try:
            out = F.batch_norm(*args, **kwargs)
        finally:
            self.operators.seen = None
        self.apart[kind] = taken_apart(call, out, seen)
        return out

    def _padded(self, call: PaddedCall, *args: Any, **kwargs: Any) -> Any:
        """A call over more channels than there are, told as the operator that it is otherwise."""
        recorder, reduction = self.recorder, REDUCTIONS[call.row.kind]
        recorder.unwatched += 1
        try:
            out = call(*args, **kwargs)
        finally:
            recorder.unwatched -= 1
        given = reduction.given(args, kwargs)
        assert given is not None  # it has been computed
        if "normalized_shape" in given:
            _hold_shape(recorder, given["x"], given["normalized_shape"])
        with torch._C.DisableTorchFunction():
            func, *rest = reduction.told(given["x"], given)
        self.operators.told(func, out, tuple(rest), {})
        return out


_NORMALISATIONS = (F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm)


def _hold_shape(
    recorder: Recorder, input: Tensor, normalized_shape: Sequence[int], *args: Any, **kwargs: Any
) -> None:
    """The last sizes of what is normalised are told: whatever operators it then runs as."""
    dims, first = recorder.get(input).dims, input.dim() - len(normalized_shape)
    for d, size in enumerate(normalized_shape, first):
        recorder.constrain(size, dims.get(d), int.__int__(size))


def _hold_root(recorder: Recorder, query: Tensor, *args: Any, **kwargs: Any) -> None:
    """Without a scale attention divides by the root of a width, whatever operators it runs as."""
    if kwargs.get("scale") is None:
        recorder.couple(recorder.get(query).dims.get(query.dim() - 1), BY_THE_ROOT)


def _size(shape: Any, dim: int | None = None) -> Any:
    """What ``tensor.size(dim)`` gives."""
    if dim is None:
        return shape
    return shape[dim]
