"""Pre-activation bottleneck ResNets for CIFAR (He et al. 2016, arXiv 1603.05027): depth 9n + 2."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim.errors import ArgumentError
from netslim.models.zoo._common import builder, initialise, scaled

_EXPANSION = 4


class PreActBottleneck(nn.Module):
    """BN-ReLU-1x1, BN-ReLU-3x3, BN-ReLU-1x1 beside a shortcut.

    The shortcut is projected, without a BN, where the shape changes.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * _EXPANSION
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        total: Tensor = out + self.shortcut(x)
        return total


class PreResNet(nn.Module):
    """Stem, three stages of bottlenecks, BN, linear layer. `(N, C, H, W)` -> `(N, classes)`."""

    def __init__(
        self, blocks: int, widths: tuple[int, int, int], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.layer1 = _stage(blocks, widths[0], widths[0], 1)
        self.layer2 = _stage(blocks, widths[0] * _EXPANSION, widths[1], 2)
        self.layer3 = _stage(blocks, widths[1] * _EXPANSION, widths[2], 2)
        self.bn = nn.BatchNorm2d(widths[2] * _EXPANSION)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2] * _EXPANSION, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.fc(torch.flatten(self.pool(F.relu(self.bn(x))), 1))
        return logits


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = PreActBottleneck(in_channels, channels, stride)
    rest = (PreActBottleneck(channels * _EXPANSION, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


@builder
def preresnet(
    depth: int, num_classes: int = 10, width: float = 1.0, in_channels: int = 3
) -> PreResNet:
    """A pre-activation bottleneck ResNet of `depth` 9n + 2.

    Raises:
        ArgumentError: a depth that is not 9n + 2, or a width of 0 or less.

    Example:
        >>> network = netslim.zoo.preresnet(20, num_classes=100, width=0.5)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 100)
    """
    if depth < 11 or (depth - 2) % 9:
        raise ArgumentError(
            f"a bottleneck CIFAR ResNet has depth 9n + 2 (11, 20, 29, ..., 164), not {depth}"
        )
    widths = (scaled(16, width), scaled(32, width), scaled(64, width))
    return PreResNet((depth - 2) // 9, widths, num_classes, in_channels)


@builder
def preresnet164(num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> PreResNet:
    """ResNet-164 of Network Slimming, Table 1; 1,703,258 parameters and 12,112 BN scales.

    Example:
        >>> network = netslim.zoo.preresnet164(width=0.25)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return preresnet(164, num_classes, width, in_channels)
