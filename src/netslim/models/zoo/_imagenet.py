"""torchvision's ResNets with other widths; apart from the rest of the zoo, as torchvision is slow
to import.
"""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from netslim.models.zoo._common import scaled

_LAYERS: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
}


class ScaledResNet(ResNet):
    """torchvision's `ResNet` with every stage and the stem `width` times as wide. `(N, C, H, W)` ->
    `(N, classes)`.
    """

    def __init__(self, depth: int, num_classes: int, width: float, in_channels: int) -> None:
        self.width, self.stem = width, scaled(64, width)
        block, layers = _LAYERS[depth]
        super().__init__(block, layers)
        self.conv1 = nn.Conv2d(in_channels, self.stem, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(self.stem)
        self.fc = nn.Linear(self.inplanes, num_classes)

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self.stem
        return super()._make_layer(block, scaled(planes, self.width), blocks, stride, dilate)
