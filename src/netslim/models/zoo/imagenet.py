"""ImageNet networks: torchvision's ResNets with a width, and VGG-A of Network Slimming."""

from torch import nn

from netslim.models.zoo._common import builder
from netslim.models.zoo._vgg import LAYERS, VGG, vgg


@builder
def vgg_a(num_classes: int = 1000, width: float = 1.0, in_channels: int = 3) -> VGG:
    """VGG-A with BN, also behind both 4096-unit layers, without dropout (Liu et al. 2017).

    For 224x224 pictures; 132,885,224 parameters, 10,944 BN scales, 7.609G MACs.

    Example:
        >>> network = netslim.zoo.vgg_a(width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 224, 224)).shape)
        (1, 1000)
    """
    layers = (*LAYERS[11], "M")
    return vgg(layers, num_classes, width, in_channels, head=(4096, 4096), conv_bias=True, pool=7)


@builder
def resnet18(num_classes: int = 1000, width: float = 1.0, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet-18; 11,689,512 parameters.

    Example:
        >>> network = netslim.zoo.resnet18(num_classes=10, width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return _resnet(18, num_classes, width, in_channels)


@builder
def resnet34(num_classes: int = 1000, width: float = 1.0, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet-34; 21,797,672 parameters.

    Example:
        >>> network = netslim.zoo.resnet34(num_classes=10, width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return _resnet(34, num_classes, width, in_channels)


@builder
def resnet50(num_classes: int = 1000, width: float = 1.0, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet-50; 25,557,032 parameters.

    Example:
        >>> network = netslim.zoo.resnet50(num_classes=10, width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return _resnet(50, num_classes, width, in_channels)


@builder
def resnet101(num_classes: int = 1000, width: float = 1.0, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet-101; 44,549,160 parameters.

    Example:
        >>> network = netslim.zoo.resnet101(num_classes=10, width=0.125)
        >>> tuple(network.eval()(torch.randn(1, 3, 32, 32)).shape)
        (1, 10)
    """
    return _resnet(101, num_classes, width, in_channels)


def _resnet(depth: int, num_classes: int, width: float, in_channels: int) -> nn.Module:
    from netslim.models.zoo._imagenet import ScaledResNet

    return ScaledResNet(depth, num_classes, width, in_channels)
