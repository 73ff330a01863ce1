"""Two networks for the digits: one that can be cut anywhere, one with a group whose cut never
verifies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nets import channels_in_memory


class Sound(nn.Module):
    """Three layers of 8, 8 and 12 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.third, self.norm3 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()
        x = self.looked_at(self.norm2(self.second(x)).relu())
        return self.head(self.norm3(self.third(x)).relu().mean((2, 3)))

    def looked_at(self, x: Tensor) -> Tensor:
        return x


class Baked(Sound):
    """Holds the width of ``second`` in its Python code, where no trace sees it."""

    def looked_at(self, x: Tensor) -> Tensor:
        if channels_in_memory(x) != 8:
            raise ValueError("eight channels expected")
        return x


def _filled(network: nn.Module) -> nn.Module:
    """With the same random weights, scales and statistics each time."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 1.0 if parameter.dim() == 1 else 0.3
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def sound() -> nn.Module:
    return _filled(Sound())


def baked() -> nn.Module:
    return _filled(Baked())
