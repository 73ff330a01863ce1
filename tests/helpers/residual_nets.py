"""Residual networks whose blocks can be counted by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(cin: int, cout: int, size: int = 3, **more: object) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, size, padding=size // 2, bias=False, **more)  # type: ignore[arg-type]


class Post(nn.Module):
    """As of ResNet: relu(x + branch(x)), and a ReLU of its own on top."""

    def __init__(self, cin: int, cout: int, stride: int = 1, act: type[nn.Module] = nn.ReLU):
        super().__init__()
        self.conv1, self.bn1 = conv(cin, cout, stride=stride), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = conv(cout, cout), nn.BatchNorm2d(cout)
        self.act = act()
        self.down = None
        if stride > 1 or cin != cout:
            self.down = nn.Sequential(conv(cin, cout, 1, stride=stride), nn.BatchNorm2d(cout))

    def forward(self, x):
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        out += x if self.down is None else self.down(x)
        return self.act(out)


class Pre(nn.Module):
    """As of a pre-activation ResNet, with functions for activations."""

    def __init__(self, width: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), conv(width, width)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width)

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        return x + self.conv2(F.relu(self.bn2(out)))


class Depth(nn.Module):
    """Drops a whole branch at random, in training."""

    def forward(self, x):
        if not self.training:
            return x
        return x * (torch.rand(len(x), *[1] * (x.dim() - 1)) < 0.5)


class Inverted(nn.Module):
    """As of MobileNetV2."""

    def __init__(self, width: int, out: int):
        super().__init__()
        inner = 2 * width
        layers = [conv(width, inner, 1), nn.BatchNorm2d(inner), nn.ReLU6(inplace=True)]
        layers += [conv(inner, inner, groups=inner), nn.BatchNorm2d(inner), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(*layers, conv(inner, out, 1), nn.BatchNorm2d(out))
        self.residual = width == out

    def forward(self, x):
        if self.residual:
            return x + self.conv(x)
        return self.conv(x)


class Next(nn.Module):
    """As of ConvNeXt: a layer scale as a parameter, and stochastic depth."""

    def __init__(self, width: int):
        super().__init__()
        self.dw = conv(width, width, 5, groups=width)
        self.norm, self.one, self.two = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(3 * width, width),
        )
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.depth = Depth()

    def forward(self, x):
        y = self.dw(x).permute(0, 2, 3, 1)
        y = self.two(F.gelu(self.one(self.norm(y)))).permute(0, 3, 1, 2)
        return x + self.depth(self.scale * y)


class Encoder(nn.Module):
    """As of ViT: two branches in one forward; attention answers with a pair."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )
        self.drop, self.depth = nn.Dropout(0.1), Depth()

    def forward(self, x):
        y = self.norm1(x)
        y, _ = self.attn(y, y, y, need_weights=False)
        x = x + self.drop(y)
        return x + self.depth(self.mlp(self.norm2(x)))


class OfPyTorch(nn.Module):
    """PyTorch's own encoder, whose layers ask their parts for this and that."""

    def __init__(self, width: int, first: bool):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True, norm_first=first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.layers(x)


class Windows(nn.Module):
    """Rearranges places by hand, so that its branches can only go together."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        n, length, c = x.shape
        y = self.norm1(x).view(n * 2, length // 2, c)
        x = x + self.attn(y).reshape(n, length, c)
        return x + self.mlp(self.norm2(x))


class Shared(nn.Module):
    """What the branch is made of is used for something else as well."""

    def __init__(self, width: int, how: str):
        super().__init__()
        self.one, self.two, self.how = conv(width, width), conv(width, width), how

    def forward(self, x):
        y = self.one(x)
        if self.how == "weights":
            return y + self.two(self.one(y))
        if self.how == "projection":
            return self.two(x) + y
        z = x + self.two(y.relu())
        if self.how == "inner":
            return z * y.sigmoid()
        return z


class Images(nn.Module):
    """A stem, what is given, and a head."""

    def __init__(self, *blocks: nn.Module, stem: int = 6, width: int | None = None):
        super().__init__()
        self.stem = nn.Sequential(conv(3, stem), nn.BatchNorm2d(stem), nn.ReLU())
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width or stem, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Tokens(nn.Module):
    """Places as tokens."""

    def __init__(self, *blocks: nn.Module, stem: int = 8):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, stem, 2, 2), nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(stem), nn.Linear(stem, 4)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Dense(nn.Module):
    """As of a DenseNet: a list of what was made so far, put side by side in each layer."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), conv(width, 2 * growth, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(2 * growth), conv(2 * growth, growth)

    def forward(self, made):
        x = self.conv1(F.relu(self.bn1(torch.cat(made, 1))))
        return self.conv2(F.relu(self.bn2(x)))


class DenseStage(nn.Module):
    """Layers that all read each other."""

    def __init__(self, width: int, growth: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(Dense(width + growth * n, growth) for n in range(layers))

    def forward(self, x):
        made = [x]
        for layer in self.layers:
            made.append(layer(made))
        return torch.cat(made, 1)
