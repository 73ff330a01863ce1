"""Batch normalisation over the images of all ranks.

Every call of `torch.nn.functional.batch_norm` is caught, from whichever module it comes, so that
networks stay the modules they are: `torch.nn.SyncBatchNorm` would take the place of modules that
methods and cuts hold, lose what subclasses do beside normalising, and works on GPUs alone.

Sums instead of means are exchanged, since ranks may have one image more than others; and the
variance in a second exchange, from what is centred, as a difference of large sums would lose it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class OverAllRanks(TorchFunctionMode):
    """Inside, batch norm that is training takes its statistics from the images of all ranks."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.batch_norm`."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    others = [dim for dim in range(input.dim()) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(input.dim())]
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    number = values.new_full((1,), values.numel() / values.shape[1])
    sums = _summed(torch.cat([values.sum(others), number]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - mean.view(shape)
    variance = _summed(centred.square().sum(others)) / count
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = variance * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    found = centred * torch.rsqrt(variance + eps).view(shape)
    if weight is not None:
        found = found * weight.view(shape)
    if bias is not None:
        found = found + bias.view(shape)
    return found.to(input.dtype)


class _Summed(torch.autograd.Function):
    """The sum over the ranks; each rank's part goes into the losses of all."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _summed(value: Tensor) -> Tensor:
    total: Tensor = _Summed.apply(value)
    return total


__all__ = ["OverAllRanks"]
