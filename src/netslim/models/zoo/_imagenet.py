"""torchvision's ResNets with other widths; alone in a module, as torchvision is slow to import."""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from netslim.models.zoo._common import scaled

_LAYERS: dict[int, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
}


class ScaledResNet(ResNet):  # type: ignore[misc]  # torchvision comes without types
    """torchvision's `ResNet`, `width` times as wide. `(N, C, H, W)` -> `(N, classes)`.

    The stages are built within torchvision's constructor, so their width is slipped in where it
    makes them; stem and last layer are put in their places afterwards.
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
        if planes == 64:  # the first stage, which reads the stem
            self.inplanes = self.stem
        width = scaled(planes, self.width)
        stage: nn.Sequential = super()._make_layer(block, width, blocks, stride, dilate)
        return stage
