"""Which parameters of a model are the directions and the gains of weight norm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm as Hook

from netslim.graph.modules.walk import named_modules, named_tensors, parametrized


@dataclass(frozen=True)
class WeightNorm:
    """A weight ``gain * direction / |direction|``, with the norm over all dimensions but ``dim``.

    Attributes:
        direction: name of the parameter of the weight's shape.
        gain: name of the parameter of size 1 along all dimensions but ``dim``.
        dim: that dimension; -1 where the norm is one number.
    """

    direction: str
    gain: str
    dim: int

    def lengths(self, direction: Tensor) -> Tensor:
        """|direction|, in the shape of the gain."""
        over = [d for d in range(direction.dim()) if d != self.dim]  # all of them for -1
        exact = torch.promote_types(direction.dtype, torch.float32)
        # The same bits however it lies in memory.
        plain = direction.detach().to(exact).contiguous()
        lengths: Tensor = torch.linalg.vector_norm(plain, dim=over, keepdim=self.dim >= 0)
        return lengths

    def weight(self, direction: Tensor, gain: Tensor) -> Tensor:
        """gain * direction / |direction|."""
        weight: Tensor = direction.detach() * (gain.detach() / self.lengths(direction))
        return weight.to(direction.dtype)

    def follow(self, gain: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Direction and gain with which what is left of the weight stays as it is.

        Where all that is left of a direction is zero, 0 / 0 would be the weight. It is zero, too,
        and so with a gain of 0 and any other direction.

        Args:
            gain: as it was.
            before: the directions as they were.
            after: what became of them.
        """
        old, new = self.lengths(before), self.lengths(after)
        followed = (gain.detach() * torch.where(old > 0, new / old, 1.0)).to(gain.dtype)
        return after.detach().masked_fill((old > 0) & (new == 0), 1), followed


def weight_norms(model: nn.Module, shared: bool = False) -> list[WeightNorm]:
    """Those that `torch.nn.utils` made, parametrised or by a hook, by names of `named_tensors`.

    Args:
        model: any module.
        shared: those as well that share their gain with another.
    """
    parts: list[tuple[Tensor, Tensor, int]] = []
    for module in named_modules(model):
        parts += (*_parametrised(module), *_hooked(module))
    if not parts:  # as nearly always
        return []
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    found = [WeightNorm(names[id(v)], names[id(g)], dimension(dim, v.dim())) for v, g, dim in parts]
    uses = Counter(norm.gain for norm in found)
    return [norm for norm in found if shared or uses[norm.gain] == 1]


def dimension(dim: int, dims: int) -> int:
    """The dimension that weight norm is told to leave out, as `WeightNorm.dim`.

    To PyTorch -1 is not the last one but none of them; -2 is the last but one.
    """
    if dim == -1:
        return dim
    return dim % dims


def _parametrised(module: nn.Module) -> Iterator[tuple[Tensor, Tensor, int]]:
    if not parametrized(module):
        return
    for steps in module.parametrizations.values():  # type: ignore[operator]
        if len(steps) == 1 and isinstance(steps[0], parametrizations._WeightNorm):
            yield steps.original1, steps.original0, steps[0].dim


def _hooked(module: nn.Module) -> Iterator[tuple[Tensor, Tensor, int]]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, Hook):
            yield getattr(module, f"{hook.name}_v"), getattr(module, f"{hook.name}_g"), hook.dim
