"""DenseNet for CIFAR (Huang et al. 2016, arXiv 1608.06993): depth 3n + 4, no compression."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim.errors import ArgumentError
from netslim.models.zoo._common import builder, initialise, scaled


class DenseLayer(nn.Module):
    """BN-ReLU-3x3, its output appended to its input: `(N, C, H, W)` -> `(N, C + growth, H, W)`."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(F.relu(self.bn(x)))), 1)


class Transition(nn.Module):
    """BN-ReLU-1x1 and a 2x2 average pool; the width stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """Stem, dense blocks and transitions, BN, linear layer. `(N, C, H, W)` -> `(N, classes)`."""

    def __init__(
        self, layers: int, stem: int, growth: int, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        ends = [stem + growth * layers * block for block in range(4)]
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.dense1 = _dense_block(layers, ends[0], growth)
        self.transition1 = Transition(ends[1])
        self.dense2 = _dense_block(layers, ends[1], growth)
        self.transition2 = Transition(ends[2])
        self.dense3 = _dense_block(layers, ends[2], growth)
        self.bn = nn.BatchNorm2d(ends[3])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(ends[3], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.dense1(self.conv1(x)))
        x = self.dense3(self.transition2(self.dense2(x)))
        logits: Tensor = self.fc(torch.flatten(self.pool(F.relu(self.bn(x))), 1))
        return logits


def _dense_block(layers: int, channels: int, growth: int) -> nn.Sequential:
    return nn.Sequential(*(DenseLayer(channels + growth * i, growth) for i in range(layers)))


@builder
def densenet(
    depth: int,
    num_classes: int = 10,
    width: float = 1.0,
    in_channels: int = 3,
    stem: int = 16,
    growth: int = 12,
) -> DenseNet:
    """A CIFAR DenseNet of `depth` 3n + 4.

    Args:
        stem: channels of the first convolution (times `width`).
        growth: channels each layer adds (times `width`).

    Raises:
        ArgumentError: a depth that is not 3n + 4, or widths of 0 or less.

    Example:
        >>> network = netslim.zoo.densenet(22, growth=4)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    if depth < 7 or (depth - 4) % 3:
        raise ArgumentError(
            f"a CIFAR DenseNet has depth 3n + 4 (7, 10, ..., 40, ..., 100), not {depth}"
        )
    stem, growth = scaled(stem, width), scaled(growth, width)
    return DenseNet((depth - 4) // 3, stem, growth, num_classes, in_channels)


@builder
def densenet40(
    num_classes: int = 10, width: float = 1.0, in_channels: int = 3, stem: int = 16
) -> DenseNet:
    """DenseNet-40 of Network Slimming, Table 1; 1,019,722 parameters (1,059,298 with `stem=24`).

    Example:
        >>> network = netslim.zoo.densenet40(width=0.25)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return densenet(40, num_classes, width, in_channels, stem)
