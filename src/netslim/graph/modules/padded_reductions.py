"""Means and maxima over channels that go on over as many as there were: the others are zeros.

Each is a module of its own that takes an input to one number for each place, or to several, as the
pooling over channels in a CBAM does: the largest and the mean, one behind the other.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from netslim.graph.modules.padded_norms import NormWidth, PaddedNorm, own_tensors


class PaddedReduction(PaddedNorm):
    """Numbers that are taken of all channels, of which some are missing: `PaddedNorm`.

    Attributes:
        parts: which, one behind the other along the dimension of the channels.
        keeps: whether that dimension stays.
    """

    parts: ClassVar[tuple[str, ...]]
    keeps: ClassVar[bool] = True
    has_eps = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.does = f"takes its {cls.kind.removeprefix('flat ')}"

    @classmethod
    def _fits(cls, module: nn.Module, norm: NormWidth) -> bool:
        """Whether a module has what this needs."""
        return not own_tensors(module) and not module._modules

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, ...) or (..., C) to the same with 1 or 2 in the place of C, or without."""
        out = torch.cat([getattr(self, f"_{part}")(x) for part in self.parts], self.padded_dim)
        if self.keeps:
            return out
        return out.squeeze(self.padded_dim)

    def _mean(self, x: Tensor) -> Tensor:
        share = x.shape[self.padded_dim] / self.padded_width
        return x.mean(self.padded_dim, keepdim=True) * share

    def _max(self, x: Tensor) -> Tensor:
        largest = x.amax(self.padded_dim, keepdim=True)
        if not isinstance(x, Proxy) and x.shape[self.padded_dim] == self.padded_width:
            return largest
        return largest.clamp_min(0)  # some are missing, which are zeros


class PaddedMean(PaddedReduction):
    """A mean over channels: `PaddedReduction`."""

    kind, parts = "mean", ("mean",)


class PaddedFlatMean(PaddedReduction):
    """A mean over channels, whose dimension is gone: `PaddedReduction`."""

    kind, parts, keeps = "flat mean", ("mean",), False


class PaddedMax(PaddedReduction):
    """The largest of the channels: `PaddedReduction`."""

    kind, parts = "maximum", ("max",)


class PaddedFlatMax(PaddedReduction):
    """The largest of the channels, whose dimension is gone: `PaddedReduction`."""

    kind, parts, keeps = "flat maximum", ("max",), False


class PaddedMaxAndMean(PaddedReduction):
    """The largest of the channels and their mean: `PaddedReduction`."""

    kind, parts = "maximum and mean", ("max", "mean")


class PaddedMeanAndMax(PaddedReduction):
    """The mean of the channels and the largest: `PaddedReduction`."""

    kind, parts = "mean and maximum", ("mean", "max")
