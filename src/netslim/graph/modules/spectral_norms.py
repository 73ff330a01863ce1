"""Which tensors of a model are those of spectral norm, and how they go on without a part of them.

A weight is divided by an estimate of its largest singular value, ``sigma = u^T W v``. The unit
vectors u and v, two buffers, are improved with every step of training (Miyato et al. 2018); in
evaluation they are as they are. Without some rows and columns of W the estimate would be another
one, and so would what is left of the weight. It stays with another u: as ``W v`` is all that u is
multiplied with, a vector along it of the right length gives the old sigma. The next step of
training makes a unit vector of it again, and estimates the norm of what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm as Hook

from netslim.graph.modules.walk import named_modules, named_tensors, parametrized

Parts = Sequence[Tensor]  # W, u and v


@dataclass(frozen=True)
class SpectralNorm:
    """A weight ``W / (u^T W v)``, of which W has the rows that are along ``dim``.

    Attributes:
        weight: name of the parameter W.
        left: name of the buffer u.
        right: name of the buffer v.
        dim: of W.
    """

    weight: str
    left: str
    right: str
    dim: int

    @property
    def names(self) -> tuple[str, str, str]:
        return self.weight, self.left, self.right

    def sigma(self, parts: Parts) -> Tensor:
        """u^T W v of these three."""
        weight, left, right = map(_exact, parts)
        return left @ self._image(weight, right)

    def follow(self, sigma: Tensor, after: Parts) -> tuple[Tensor, Tensor]:
        """The u and the v with which what is left has the sigma that there was.

        Where ``W v`` is zero there is another v; where W is, there is none.

        Args:
            sigma: as it was.
            after: what became of W, u and v.
        """
        weight, left, right = map(_exact, after)
        if weight.is_meta:
            return after[1], after[2]
        if not self._image(weight, right).any():
            matrix = weight.movedim(self.dim, 0).flatten(1)
            right = nn.functional.normalize(matrix[matrix.square().sum(1).argmax()], dim=0)
        image = self._image(weight, right)
        if image.any():
            left = image * (sigma / image.square().sum())
        return left.to(after[1].dtype), right.to(after[2].dtype)

    def _image(self, weight: Tensor, right: Tensor) -> Tensor:
        return weight.movedim(self.dim, 0).flatten(1) @ right


def spectral_norms(model: nn.Module) -> list[SpectralNorm]:
    """Those that `torch.nn.utils` made, parametrised or by a hook, by names of `named_tensors`."""
    parts: list[tuple[Tensor, Tensor, Tensor, int]] = []
    for module in named_modules(model):
        parts += (*_parametrised(module), *_hooked(module))
    if not parts:  # as nearly always
        return []
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    return [SpectralNorm(names[id(w)], names[id(u)], names[id(v)], dim) for w, u, v, dim in parts]


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()


def _parametrised(module: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    if not parametrized(module):
        return
    for steps in module.parametrizations.values():  # type: ignore[operator]
        if len(steps) == 1 and isinstance(steps[0], parametrizations._SpectralNorm):
            step: nn.Module = steps[0]
            if "_u" in step._buffers:  # a vector is divided by its length, and has none
                left, right = step.get_buffer("_u"), step.get_buffer("_v")
                yield steps.original, left, right, steps[0].dim


def _hooked(module: nn.Module) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, Hook):
            weight, u, v = (getattr(module, f"{hook.name}_{part}") for part in ("orig", "u", "v"))
            yield weight, u, v, hook.dim % weight.dim()
