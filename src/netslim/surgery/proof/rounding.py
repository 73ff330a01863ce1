"""Networks whose outputs hinge on rounding, so that no two ways to compute them agree.

A fresh layer normalisation makes numbers whose sum is zero. A mask or an order of tokens that is
made of such sums is made of rounding, and the cut network, which sums in another order, has another
one. So has the original itself, as soon as its weights are others in the last place; and with
weights that are any other ones the two agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

LAST_PLACES = 8.0  # by how many times the precision weights are moved to find out
APART = 1e-3  # how far, relative to each, in order to compare elsewhere


@torch.no_grad()
def move(model: nn.Module, seed: int, by: float | None = None) -> None:
    """Make every parameter a little another one, in place.

    Args:
        model: in any precision.
        seed: of what is drawn.
        by: relative to each number; `LAST_PLACES` of its precision where nothing is said.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            far = by or LAST_PLACES * torch.finfo(parameter.dtype).eps
            drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 2 - 1
            parameter.mul_((1 + far * drawn).to(parameter))


@contextmanager
def moved(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, the parameters are others in their last places."""
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        move(model, seed)
        yield
    finally:
        with torch.no_grad():
            for parameter, values in before:
                parameter.copy_(values)


__all__ = ["APART", "move", "moved"]
