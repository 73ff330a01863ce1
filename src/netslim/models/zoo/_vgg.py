"""VGG for small pictures: the lists of Network Slimming, and VGG-16 with other papers' heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netslim._support import brief
from netslim.errors import ArgumentError
from netslim.models.zoo._common import builder, initialise, scaled

Layers = Sequence[int | str]

LAYERS: dict[int, tuple[int | str, ...]] = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    13: (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    16: (64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3),
    19: (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4),
}


class VGG(nn.Module):
    """Convolutions with BN and ReLU, a pool, linear layers. `(N, C, H, W)` -> `(N, classes)`."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential, pool: int = 1) -> None:
        super().__init__()
        self.features = features
        # With 1, on the 2x2 maps that 32x32 pictures leave, this is the port's 2x2 average pool.
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = classifier
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def _convolutions(
    layers: Layers, in_channels: int, width: float, bias: bool
) -> tuple[nn.Sequential, int]:
    modules: list[nn.Module] = []
    channels = in_channels
    for layer in layers:
        if isinstance(layer, str):
            if layer != "M":
                raise ArgumentError(
                    f"a VGG layer is a number of channels or 'M' (2x2 max pool), not {brief(layer)}"
                )
            modules.append(nn.MaxPool2d(2))
            continue
        out = scaled(layer, width)
        modules.append(nn.Conv2d(channels, out, 3, padding=1, bias=bias))
        modules += [nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        channels = out
    if not any(isinstance(layer, int) for layer in layers):
        raise ArgumentError("layers need at least one convolution: give such as [16, 'M', 32]")
    return nn.Sequential(*modules), channels


def _classifier(
    features: int, head: Sequence[int], num_classes: int, width: float, norm: bool, dropout: float
) -> nn.Sequential:
    modules: list[nn.Module] = []
    for units in head:
        out = scaled(units, width)
        modules.append(nn.Linear(features, out))
        if norm:
            modules.append(nn.BatchNorm1d(out))
        modules.append(nn.ReLU(inplace=True))
        if dropout:
            modules.append(nn.Dropout(dropout))
        features = out
    return nn.Sequential(*modules, nn.Linear(features, num_classes))


@builder
def vgg(
    layers: Layers,
    num_classes: int = 10,
    width: float = 1.0,
    in_channels: int = 3,
    head: Sequence[int] = (),
    head_norm: bool = True,
    conv_bias: bool = False,
    dropout: float = 0.0,
    pool: int = 1,
) -> VGG:
    """A VGG from a list: a number is a 3x3 convolution with BN and ReLU, `"M"` a 2x2 max pool.

    Args:
        layers: for example `[16, 16, "M", 32, 32]`, which reads 8x8 digits with `in_channels=1`.
        head: hidden linear layers between the average pool and the last linear layer.
        head_norm: whether each of them has a BN.
        conv_bias: whether the convolutions have a bias (their BN makes it redundant).
        dropout: probability after each hidden linear layer.
        pool: height and width of the maps after the average pool, whatever the size of the
            pictures.

    Raises:
        ArgumentError: a layer that is neither a positive number nor `"M"`, no convolution, a width
            of 0 or less.

    Example:
        >>> network = netslim.zoo.vgg([8, "M", 16], in_channels=1)
        >>> tuple(network.eval()(torch.randn(1, 1, 8, 8)).shape)
        (1, 10)
    """
    features, channels = _convolutions(layers, in_channels, width, conv_bias)
    inputs = channels * pool**2
    classifier = _classifier(inputs, head, num_classes, width, head_norm, dropout)
    return VGG(features, classifier, pool)


@builder
def vgg11(num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> VGG:
    """VGG-11 for 32x32 pictures: 8 convolutions, one linear layer; 9,228,362 parameters.

    Example:
        >>> network = netslim.zoo.vgg11(width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return vgg(LAYERS[11], num_classes, width, in_channels)


@builder
def vgg13(num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> VGG:
    """VGG-13 for 32x32 pictures: 10 convolutions, one linear layer; 9,413,066 parameters.

    Example:
        >>> network = netslim.zoo.vgg13(width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return vgg(LAYERS[13], num_classes, width, in_channels)


@builder
def vgg16(num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> VGG:
    """VGG-16 for 32x32 pictures: 13 convolutions, one linear layer; 14,724,042 parameters.

    Example:
        >>> network = netslim.zoo.vgg16(width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return vgg(LAYERS[16], num_classes, width, in_channels)


@builder
def vgg19(num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> VGG:
    """VGG-19 of Network Slimming, Table 1: 16 convolutions; 20,035,018 parameters.

    Example:
        >>> network = netslim.zoo.vgg19(width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return vgg(LAYERS[19], num_classes, width, in_channels)


@builder
def vgg16_fc512(num_classes: int = 10, width: float = 1.0, in_channels: int = 3) -> VGG:
    """VGG-16 of Li et al. 2016 (arXiv 1608.08710), Table 2, with a 512-unit layer.

    14,987,722 parameters.

    Example:
        >>> network = netslim.zoo.vgg16_fc512(width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return vgg((*LAYERS[16], "M"), num_classes, width, in_channels, head=(512,))


@builder
def vgg16_bn_4096(
    num_classes: int = 10, width: float = 1.0, in_channels: int = 3, dropout: float = 0.5
) -> VGG:
    """VGG-16 with ImageNet's two 4096-unit linear layers and convolution biases.

    33,646,666 parameters.

    Example:
        >>> network = netslim.zoo.vgg16_bn_4096(width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return vgg(
        (*LAYERS[16], "M"), num_classes, width, in_channels, head=(4096, 4096),
        head_norm=False, conv_bias=True, dropout=dropout,
    )  # fmt: skip
