"""Numbers that may change from step to step, where a captured step finds what they are now.

A CUDA graph goes on with the numbers and the addresses that it was captured with: a strength that
went into it as a float would be for good what it was then. So on a GPU such a number is a tensor,
written in place; on a CPU it stays the float that it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FLOATS = ("cpu",)  # where floats do


class Adjustable:
    """A number: `value` says what it is and may be assigned to, `beside` gives it to a device.

    Args:
        value: what it is at first.
    """

    def __init__(self, value: float) -> None:
        self._value = value
        self._there: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @property
    def value(self) -> float:
        """What it is now."""
        return self._value

    @value.setter
    def value(self, value: float) -> None:
        self._value = value
        for tensor in self._there.values():
            tensor.fill_(value)

    def beside(self, like: Tensor) -> float | Tensor:
        """As what works on `like` needs it: a float, or on a GPU a 0-D tensor of its type, the same
        one each time.
        """
        if like.device.type in _FLOATS or hasattr(like, "to_local"):  # nothing sharded is captured
            return self._value
        key = like.device, like.dtype
        if key not in self._there:
            self._there[key] = torch.full((), self._value, dtype=like.dtype, device=like.device)
        return self._there[key]
