"""What watches a model while it runs.

A `TorchDispatchMode` sees every operator and hands it to its rule; a `TorchFunctionMode` sees the
call the user wrote, which tells whether a size was a literal, a module attribute or read from a
shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from netslim.errors import TraceError
from netslim.graph.tracing.attention import hold_width
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.sizes import Size, Value
from netslim.graph.tracing.storages import tensors_in


class Dispatch(TorchDispatchMode):
    def __init__(self, recorder: Recorder, rules: Mapping[str, Any], fallback: Any) -> None:
        super().__init__()
        self.recorder, self.rules, self.fallback = recorder, rules, fallback

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else PyTorch imports torch._dynamo when the first operator runs, which takes seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = self.rules.get(func._schema.name.removeprefix("aten::"))
        if rule is None and _made_of_others(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        self.recorder.in_rule = True
        try:
            with torch._C.DisableTorchFunction():
                self._follow(rule or self.fallback, func, out, args, kwargs)
        finally:
            self.recorder.in_rule = False
        return out

    def _follow(self, rule: Any, func: Any, out: Any, args: tuple, kwargs: dict) -> None:
        recorder, inputs = self.recorder, tensors_in(args, kwargs)
        if recorder.numbers:
            recorder.used([t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)])
        name, counted = func._schema.name.removeprefix("aten::"), len(recorder.costs)
        recorder.begin(name)
        self._apply(rule, func, out, args, kwargs, inputs)
        if not recorder.training:
            recorder.put_out(name, inputs, out, layer=len(recorder.costs) > counted)
        for value in (*args, *kwargs.values()):
            recorder.touched.update(
                map(id, value if isinstance(value, (list, tuple)) else (value,))
            )

    def _apply(
        self, rule: Any, func: Any, out: Any, args: tuple, kwargs: dict, inputs: list[Tensor]
    ) -> None:
        """Call the rule; where one breaks off, what its operator touches stays and costs nothing.

        A `TraceError` goes through: that is what a rule raises on purpose, to tell whoever wrote it
        or the model what to do. Any other error is an accident in the rule, ours or registered, and
        no reason to refuse the model.
        """
        recorder, before = self.recorder, [self.recorder.get(t) for t in inputs]
        counted = len(recorder.costs)
        try:
            rule(recorder, func, out, *args, **{k: v for k, v in kwargs.items() if k != "out"})
        except TraceError:
            raise
        except Exception as error:
            del recorder.costs[counted:]
            recorder.failed(error, before, tensors_in(out))


@cache
def _made_of_others(func: Any) -> bool:
    """Whether an operator runs as others, which is left to us to see to in inference mode."""
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    )


_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_NUMEL = (torch.Tensor.numel, torch.Tensor.nelement, torch.numel)


# What takes sizes of dimensions: their rules see to them.
_WIDTHS = frozenset(
    """
    view reshape expand broadcast_to repeat tile split split_with_sizes chunk unflatten narrow roll pad zeros ones full
    empty new_zeros new_ones new_full new_empty randn rand conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d group_norm layer_norm rms_norm multi_head_attention_forward __getitem__ __setitem__ arange linspace
    channel_shuffle select flatten transpose permute unsqueeze squeeze sum mean amax amin softmax cat stack unbind
    movedim dropout eye affine_grid affine_grid_generator deform_conv2d max_unpool1d max_unpool2d max_unpool3d
    """.split()  # noqa: SIM905
)
_ARITHMETIC = frozenset(
    """
    add sub mul div truediv divide multiply subtract true_divide floordiv floor_divide pow mod remainder fmod rsub clamp
    clamp_min clamp_max maximum minimum eq ne lt le gt ge fill addcmul addcdiv lerp tensor as_tensor
    """.split()  # noqa: SIM905
)


def _values(recorder: Recorder, func: Any, args: tuple, kwargs: dict) -> None:
    """Note the sizes that the user's code passes as values."""
    numbers = [
        n for v in (*args, *kwargs.values()) for n in (v if isinstance(v, (list, tuple)) else (v,))
    ]
    numbers = [n for n in numbers if type(n) is Size or type(n) is Value]
    name = getattr(func, "__name__", "") if numbers else ""
    bare = name.strip("_")
    soft = bare in _ARITHMETIC or (bare[:1] == "r" and bare[1:] in _ARITHMETIC)
    for number in numbers if soft or name not in _WIDTHS else ():
        recorder.value(number, name, soft or type(number) is Value)


class Function(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if func == _SHAPE:
            return recorder.shape(args[0], func(*args))
        if func == torch.Tensor.size:
            out = recorder.shape(args[0], func(args[0]))
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return out if dim is None else out[dim]
        if func in _NUMEL:
            return prod(recorder.shape(args[0], _SHAPE(args[0])))
        if func == torch.Tensor.__len__:
            for size in recorder.shape(args[0], _SHAPE(args[0]))[:1]:
                recorder.value(size, "len", soft=False)
        _values(recorder, func, args, kwargs)
        recorder.calls.append((func, args, kwargs))
        if func is F.multi_head_attention_forward:
            args, kwargs = (), hold_width(recorder, args, kwargs)
        try:
            out = func(*args, **kwargs)
        finally:
            recorder.calls.pop()
        if func == _DATA:
            labels = recorder.get(args[0])
            recorder.set(out, labels.dims, labels.weight)
            recorder.touched.add(id(args[0]))
        return out
