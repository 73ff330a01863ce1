"""The CIFAR ResNets of He et al. 2015 (arXiv 1512.03385, 4.2): depth 6n + 2, basic blocks."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim._support import brief
from netslim.errors import ArgumentError
from netslim.models.zoo._common import builder, initialise, scaled

Shortcut = Literal["A", "B"]


class ZeroPadShortcut(nn.Module):
    """Option A: every `stride`-th position, channels of zeros before and after; no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def _shortcut(option: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if option == "A":
        return ZeroPadShortcut(in_channels, out_channels, stride)
    projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BN and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(shortcut, in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, three stages of `blocks` blocks, a linear layer. `(N, C, H, W)` -> `(N, classes)`."""

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, int, int],
        num_classes: int,
        in_channels: int,
        shortcut: Shortcut,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(blocks, widths[0], widths[0], 1, shortcut)
        self.layer2 = _stage(blocks, widths[0], widths[1], 2, shortcut)
        self.layer3 = _stage(blocks, widths[1], widths[2], 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.pool(x), 1))
        return logits


def _stage(
    blocks: int, in_channels: int, channels: int, stride: int, shortcut: Shortcut
) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, shortcut)
    rest = (BasicBlock(channels, channels, 1, shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


@builder
def resnet(
    depth: int,
    num_classes: int = 10,
    width: float = 1.0,
    in_channels: int = 3,
    shortcut: Shortcut = "A",
) -> ResNet:
    """A CIFAR ResNet of `depth` 6n + 2.

    Args:
        shortcut: where a stage begins, `"A"` pads with zero channels, `"B"` projects (1x1
            convolution, BN).

    Raises:
        ArgumentError: a depth that is not 6n + 2, another shortcut, or a width of 0 or less.

    Example:
        >>> network = netslim.zoo.resnet(8, width=0.5, shortcut="B")
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    if depth < 8 or (depth - 2) % 6:
        raise ArgumentError(
            f"a basic-block CIFAR ResNet has depth 6n + 2 (8, 14, 20, 26, 32, ...), not {depth}"
        )
    if shortcut not in ("A", "B"):
        raise ArgumentError(
            f"shortcut must be 'A' (zero-padded) or 'B' (projection), not {brief(shortcut)}"
        )
    widths = (scaled(16, width), scaled(32, width), scaled(64, width))
    return ResNet((depth - 2) // 6, widths, num_classes, in_channels, shortcut)


@builder
def resnet20(
    num_classes: int = 10, width: float = 1.0, in_channels: int = 3, shortcut: Shortcut = "A"
) -> ResNet:
    """ResNet-20; 269,722 parameters with shortcut A.

    Example:
        >>> network = netslim.zoo.resnet20(width=0.25)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return resnet(20, num_classes, width, in_channels, shortcut)


@builder
def resnet32(
    num_classes: int = 10, width: float = 1.0, in_channels: int = 3, shortcut: Shortcut = "A"
) -> ResNet:
    """ResNet-32; 464,154 parameters with shortcut A.

    Example:
        >>> network = netslim.zoo.resnet32(width=0.25)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return resnet(32, num_classes, width, in_channels, shortcut)


@builder
def resnet44(
    num_classes: int = 10, width: float = 1.0, in_channels: int = 3, shortcut: Shortcut = "A"
) -> ResNet:
    """ResNet-44; 658,586 parameters with shortcut A.

    Example:
        >>> network = netslim.zoo.resnet44(width=0.25)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return resnet(44, num_classes, width, in_channels, shortcut)


@builder
def resnet56(
    num_classes: int = 10, width: float = 1.0, in_channels: int = 3, shortcut: Shortcut = "A"
) -> ResNet:
    """ResNet-56; 853,018 parameters with shortcut A.

    Example:
        >>> network = netslim.zoo.resnet56(width=0.25)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return resnet(56, num_classes, width, in_channels, shortcut)


@builder
def resnet110(
    num_classes: int = 10, width: float = 1.0, in_channels: int = 3, shortcut: Shortcut = "A"
) -> ResNet:
    """ResNet-110; 1,727,962 parameters with shortcut A.

    Example:
        >>> network = netslim.zoo.resnet110(width=0.25)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return resnet(110, num_classes, width, in_channels, shortcut)
