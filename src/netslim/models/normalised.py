"""A network that normalises its images itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """``(x - mean) / std`` of each channel, and then the network.

    Args:
        network: takes images (N, C, H, W).
        mean, std: per channel, on the scale of what goes in; on 0..1 as `netslim.data` holds them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network((images - self.mean) / self.std)
        return answer


__all__ = ["Normalised"]
