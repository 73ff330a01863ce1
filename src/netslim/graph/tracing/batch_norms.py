"""Batch normalisation in evaluation, told as the operator that it runs as.

Of the two operators that PyTorch takes `F.batch_norm` apart into, one makes a tensor without
entries that nobody reads, and both go through a mode, which costs more than they do; half of the
operators of a convolutional network are these. So the first time that one of a kind is called in a
run, it is seen what it is taken apart into. Where that is what is expected, all others of its kind
run below the modes, and are told as what they would have been.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from netslim.graph.modules.operators import operator
from netslim.graph.tracing.passed import Args, Kwargs

EMPTY = "empty"
NATIVE = torch.ops.aten.native_batch_norm.default
_PLAIN = frozenset({Tensor, nn.Parameter})
_STRIDED = torch.strided
_MODES = torch._C._len_torch_dispatch_stack
Seen = list[tuple[Any, Args, Kwargs, Any]]  # an operator that ran, what it was given, and gave


class BatchNorm(NamedTuple):
    """A call of `F.batch_norm`."""

    input: Any
    running_mean: Any
    running_var: Any
    weight: Any = None
    bias: Any = None
    training: bool = False
    momentum: Any = 0.1
    eps: float = 1e-5

    @property
    def tensors(self) -> Args:
        """Those that the operator takes first, in its order."""
        return self.input, self.weight, self.bias, self.running_mean, self.running_var

    @property
    def told(self) -> Args:
        """What the operator is given."""
        return *self.tensors, False, self.momentum, self.eps

    def kind(self) -> Hashable:
        """Equal for calls that are taken apart alike; None where that is not known."""
        plain = self.training is False and type(self.momentum) is type(self.eps) is float
        given = [t for t in self.tensors if t is not None]
        # Without statistics of its own it takes those of the batch.
        if not plain or self.running_mean is None or self.running_var is None:
            return None
        # Transforms of `torch.func` and modes within the model's code see it otherwise.
        if torch._C._functorch.peek_interpreter_stack() is not None or _MODES() > 1:
            return None
        if any(type(t) not in _PLAIN or not t.is_cpu or t.layout is not _STRIDED for t in given):
            return None
        if not self.input.numel():
            return None
        affine = self.weight is not None, self.bias is not None
        around = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _casting()
        return (*around, self.input.dim(), *affine, *[t.dtype for t in given])


def _casting() -> bool:
    return torch.is_autocast_enabled("cpu")


def taken_apart(call: BatchNorm, out: Any, seen: Seen) -> bool:
    """Whether a call ran as what is expected, and gave the first that came of it."""
    if len(seen) != 2 or operator(seen[0][0]).name != EMPTY or seen[0][3].numel():
        return False
    func, args, kwargs, made = seen[1]
    if func is not NATIVE or kwargs or len(args) != len(call.told) or made[0] is not out:
        return False
    tensors = len(call.tensors)
    same = all(one is other for one, other in zip(args[:tensors], call.tensors, strict=True))
    return same and args[tensors:] == call.told[tensors:] and not any(t.numel() for t in made[1:])


__all__ = ["EMPTY", "NATIVE", "BatchNorm", "Seen", "taken_apart"]
