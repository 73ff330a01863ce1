"""Calls that take their sizes from other tensors, as calls that are given these sizes.

``x.view_as(y)`` reads the sizes of ``y`` where nobody sees it, so that what ties the channels of
the two would be lost. ``x.view(y.shape)`` means the same, in sizes that know where they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

Shape = Callable[[Tensor], Sequence[int]]  # sizes that know where they came from
Run = Callable[..., Any]  # a function of PyTorch on its arguments


def _with_its_shape(function: Callable[..., Any]) -> Callable[..., Any]:
    def spelled_out(run: Run, shape: Shape, input: Tensor, other: Tensor) -> Any:
        return run(function, input, shape(other))

    return spelled_out


def _broadcast_tensors(run: Run, shape: Shape, *given: Any) -> Any:
    tensors: Sequence[Tensor] = given
    if len(given) == 1 and isinstance(given[0], list | tuple):
        tensors = given[0]
    known = [list(reversed(shape(tensor))) for tensor in tensors]
    common = [
        next((size for size in sizes if not _is_one(size)), 1)
        for sizes in zip_longest(*known, fillvalue=1)
    ]
    return tuple(run(torch.Tensor.expand, tensor, common[::-1]) for tensor in tensors)


def _is_one(size: int) -> bool:
    """As PyTorch asks it: a comparison of the size itself would be a decision of the model."""
    return int.__int__(size) == 1


def _sum_to_size(run: Run, shape: Shape, input: Tensor, *size: Any) -> Any:
    wanted = size
    if len(size) == 1 and isinstance(size[0], Sequence):
        wanted = tuple(size[0])
    lead = input.dim() - len(wanted)
    summed = [*range(lead)]
    for d, length in enumerate(wanted, lead):
        if _is_one(length) and input.shape[d] != 1:
            summed.append(d)
    if summed:
        input = run(torch.Tensor.sum, input, summed, True)
    return run(torch.Tensor.reshape, input, wanted)


BY_ANOTHER: dict[Any, Callable[..., Any]] = {
    torch.Tensor.view_as: _with_its_shape(torch.Tensor.view),
    torch.Tensor.reshape_as: _with_its_shape(torch.Tensor.reshape),
    torch.Tensor.expand_as: _with_its_shape(torch.Tensor.expand),
    torch.Tensor.sum_to_size: _sum_to_size,
    torch.broadcast_tensors: _broadcast_tensors,
}

__all__ = ["BY_ANOTHER"]
