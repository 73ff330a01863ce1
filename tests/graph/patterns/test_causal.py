"""Causal convolutions over time: stacks with weight norm, gates, skips, and what is trimmed off."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from pattern import Patterns

pattern = Patterns()
WAVES = torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", pattern, ids=str)
def test_causal(case):
    case.check()


def normed(*args, **kwargs):
    return weight_norm(nn.Conv1d(*args, **kwargs))


class GatedBlock(nn.Module):
    """WaveNet's: both halves of a dilated convolution, a residual and a skip."""

    def __init__(self, width, dilation):
        super().__init__()
        self.conv = normed(width, 2 * width, 2, dilation=dilation, padding=dilation)
        self.res, self.skip = normed(width, width, 1), normed(width, 5, 1)

    def forward(self, x):
        y = self.conv(x)[:, :, : x.size(-1)]
        a, b = y.split(y.size(1) // 2, dim=1)
        y = torch.tanh(a) * torch.sigmoid(b)
        return (self.res(y) + x) * math.sqrt(0.5), self.skip(y)


@pattern(
    {"a": 6, "blocks.0.conv": 6, "blocks.1.conv": 6, "blocks.0.skip": 5, "b": 4},
    inputs=WAVES,
    a=normed(1, 6, 1),
    blocks=nn.ModuleList([GatedBlock(6, 1), GatedBlock(6, 2)]),
    b=normed(5, 4, 1),
    head=normed(4, 3, 1),
)
def wavenet(s, x):
    x, skips = s.a(x), 0
    for block in s.blocks:
        x, skip = block(x)
        skips = skips + skip
    return s.head(s.b((skips * math.sqrt(0.5)).relu()).relu())


class Trimmed(nn.Module):
    """A layer of a temporal convolutional network: padded on both sides, cut on one."""

    def __init__(self, read, made, dilation):
        super().__init__()
        self.first = normed(read, made, 3, padding=2 * dilation, dilation=dilation)
        self.second = normed(made, made, 3, padding=2 * dilation, dilation=dilation)
        self.shortcut = nn.Conv1d(read, made, 1) if read != made else nn.Identity()
        self.trim = 2 * dilation

    def forward(self, x):
        h = self.first(x)[:, :, : -self.trim].contiguous().relu()
        h = self.second(h)[:, :, : -self.trim].contiguous().relu()
        return (h + self.shortcut(x)).relu()


@pattern(
    {"a.first": 6, "a.second": 6, "b.first": 6, "c.first": 5, "c.second": 5},
    inputs=WAVES,
    a=Trimmed(1, 6, 1),
    b=Trimmed(6, 6, 2),
    c=Trimmed(6, 5, 4),
    head=nn.Linear(5, 2),
)
def temporal_convolutions(s, x):
    return s.head(s.c(s.b(s.a(x)))[:, :, -1])


@pattern({"a": 6, "b": 4}, inputs=WAVES, a=normed(1, 6, 3), b=normed(6, 4, 3), head=nn.Linear(4, 2))
def padded_on_the_left(s, x):
    h = s.a(nn.functional.pad(x, (2, 0))).relu()
    return s.head(s.b(nn.functional.pad(h, (2, 0))).relu().mean(2))
