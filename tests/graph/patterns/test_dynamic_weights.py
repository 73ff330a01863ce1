"""Weights that depend on the input: modulated convolutions, mixtures of experts, dynamic filters."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netslim import Budget, score, select, trace
from netslim.errors import PlanError
from pattern import PICTURES, Patterns, conv, tail

pattern = Patterns()
STYLES = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
BOTH = (PICTURES, STYLES)


@pytest.mark.parametrize("case", pattern, ids=str)
def test_dynamic_weights(case):
    case.check()


def weight(*shape, seed=0):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


# --- a weight times an activation: zeros in the weight silence what it reads ----------------------


class ModulatedConv(nn.Module):
    """StyleGAN2's, as the usual implementation in PyTorch has it."""

    def __init__(self, made, read, kernel, upsample=False):
        super().__init__()
        self.out_channel, self.kernel_size, self.upsample = made, kernel, upsample
        self.scale = 1 / math.sqrt(read * kernel**2)
        self.weight = nn.Parameter(torch.randn(1, made, read, kernel, kernel))
        self.modulation = nn.Linear(5, read)

    def forward(self, x, style):
        batch, read, height, width = x.shape
        style = self.modulation(style).view(batch, 1, read, 1, 1)
        weight = self.scale * self.weight * style
        norm = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
        weight = weight * norm.view(batch, self.out_channel, 1, 1, 1)
        kernel, x = self.kernel_size, x.view(1, batch * read, height, width)
        if self.upsample:
            weight = weight.transpose(1, 2)
            weight = weight.reshape(batch * read, self.out_channel, kernel, kernel)
            out = F.conv_transpose2d(x, weight, stride=2, groups=batch)
        else:
            weight = weight.view(batch * self.out_channel, read, kernel, kernel)
            out = F.conv2d(x, weight, padding=kernel // 2, groups=batch)
        return out.view(batch, self.out_channel, *out.shape[2:])


@pattern(
    {"a": 8, "c": 6, "d": 6, "b": 6},
    inputs=BOTH,
    patched={"c.out_channel": 3, "d.out_channel": 3},
    b=conv(6, 6),
    c=ModulatedConv(6, 8, 3),
    d=ModulatedConv(6, 6, 3, upsample=True),
)
def modulated_convolutions(s, x, style):
    return tail(s, s.d(s.c(s.a(x), style).relu(), style))


@pattern(
    {"a": 8, "w": 6, "b": 6},
    inputs=BOTH,
    b=conv(6, 6),
    w=weight(6, 8, 3, 3),
    style=nn.Linear(5, 8),
)
def modulated_and_normalised_with_keepdim(s, x, style):
    batch, h = len(x), s.a(x)
    weights = s.w[None] * (s.style(style)[:, None, :, None, None] + 1)
    weights = weights * torch.rsqrt((weights**2).sum((2, 3, 4), keepdim=True) + 1e-8)
    _, _, *rest = weights.shape
    weights = weights.reshape(batch * s.w.shape[0], *rest)
    h = F.conv2d(h.reshape(1, -1, 8, 8), weights, padding=1, groups=batch)
    return tail(s, h.reshape(-1, s.w.shape[0], 8, 8))


@pattern(
    {"style": 8, "w": 6, "b": 6},
    inputs=BOTH,
    b=conv(6, 6),
    w=weight(6, 8, 3, 3),
    style=nn.Linear(5, 8),
)
def activations_modulated_instead(s, x, style):
    styles = s.style(style)
    weights = s.w.unsqueeze(0) * styles.reshape(len(x), 1, -1, 1, 1)
    norm = (weights.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt()
    h = F.conv2d(s.a(x) * styles.reshape(len(x), -1, 1, 1), s.w, padding=1)
    return tail(s, h * norm.reshape(len(x), -1, 1, 1))


@pattern({"a": 8}, w=weight(6, 8))
def linear_layer_by_broadcasting(s, x):
    h = s.a(x).relu().mean((2, 3))
    return s.head((s.w * h[:, None]).sum(2).relu())


@pattern({"a": 8}, w=weight(6, 8))
def linear_layer_of_absolute_values(s, x):
    h = s.a(x).mean((2, 3))
    return s.head((s.w * h[:, None]).abs().sum(2))


# --- filters made of the activations --------------------------------------------------------------


class Involution(nn.Module):
    """A filter for each place and group of channels, all sizes kept in attributes."""

    def __init__(self, width, groups, kernel=3):
        super().__init__()
        self.width, self.groups, self.each, self.kernel = width, groups, width // groups, kernel
        self.reduce, self.span = conv(width, 4), conv(4, kernel**2 * groups)
        self.unfold = nn.Unfold(kernel, padding=kernel // 2)

    def forward(self, x):
        weight = self.span(self.reduce(x).relu())
        b, _, h, w = weight.shape
        weight = weight.view(b, self.groups, self.kernel**2, h, w).unsqueeze(2)
        windows = self.unfold(x).view(b, self.groups, self.each, self.kernel**2, h, w)
        return (weight * windows).sum(dim=3).view(b, self.width, h, w)


@pattern(
    {"a": 4, "c.reduce": 4, "b": 6},
    refused={"c.span": "it meets a fixed size in mul"},
    patched={"c.each": 2, "c.width": 4},
    c=Involution(8, 2),
)
def filters_for_each_place(s, x):
    return tail(s, s.c(s.a(x)))


# --- where zeros do not stay zeros ----------------------------------------------------------------


@pattern({}, {"a": (8, "sum over the channels")}, w=weight(6, 8))
def one_more_before_the_sum(s, x):
    h = s.a(x).relu().mean((2, 3))
    return s.head((s.w * h[:, None] + 1).sum(2).relu())


@pattern({}, {"a": (8, "mean over the channels")}, w=weight(6, 8))
def the_mean_in_place_of_the_sum(s, x):
    h = s.a(x).relu().mean((2, 3))
    return s.head((s.w * h[:, None]).mean(2).relu())


@pattern({}, {"a": (8, "sum over the channels")}, w=weight(6, 8))
def divided_by_the_weight(s, x):
    h = s.a(x).relu().mean((2, 3))
    return s.head((h[:, None] / (s.w.abs() + 1)).sum(2).relu())


@pattern({"b": 6}, {"a": (8, "sum over the channels")}, w=weight(8))
def a_scale_reads_nothing(s, x):
    h = s.a(x)
    return tail(s, h + (h * s.w[:, None, None]).sum(1, keepdim=True))


# --- experts --------------------------------------------------------------------------------------


def mixed(s, x, weights):
    """Convolve every picture with a mixture of its own of the experts' weights."""
    batch, h = len(x), s.a(x)
    shares = s.route(x.mean((2, 3))).sigmoid()
    weight = weights(shares)
    h = F.conv2d(h.reshape(1, -1, 8, 8), weight, groups=batch, padding=1)
    return tail(s, h.view(batch, -1, 8, 8))


EXPERTS = {"route": nn.Linear(3, 2), "b": conv(6, 6)}


@pattern({"a": 8, "route": 2, "w": 6, "b": 6}, w=weight(2, 6, 8, 3, 3), **EXPERTS)
def experts_in_the_shape_of_weights(s, x):
    def weights(shares):
        mixture = (shares[:, :, None, None, None, None] * s.w).sum(1)
        return mixture.view(-1, *mixture.shape[2:])

    return mixed(s, x, weights)


def rows(s, x, shares):
    return (shares @ s.w).view(len(x) * s.made, s.read, 3, 3)


@pattern(
    {"a": 8, "route": 2, "b": 6},
    w=weight(2, 6 * 8 * 9),
    made=6,
    read=8,
    patched={"read": 4},
    **EXPERTS,
)
def experts_in_rows_lose_inputs(s, x):
    """As conditionally parametrised convolutions have them: one axis cannot lose in two ways."""
    return mixed(s, x, lambda shares: rows(s, x, shares))


@pattern(
    {"route": 2, "w": 12, "b": 6},
    refused={"a": "keep the parameter in the shape of the weight"},
    w=weight(2, 12 * 8 * 9),
    made=12,
    read=8,
    patched={"made": 6},
    **{**EXPERTS, "b": conv(12, 6)},
)
def experts_in_rows_lose_outputs(s, x):
    return mixed(s, x, lambda shares: rows(s, x, shares))


@pattern(
    {"a": 8, "b": 6},
    {"q": (5, "a product of activations")},
    q=conv(8, 5, bias=False),
    k=conv(8, 5, bias=False),
)
def what_a_layer_puts_out_is_no_weight(s, x):
    """Though it is a mixture of the layer's weights: queries and keys are coupled as ever."""
    q, k = (layer(s.a(x)).flatten(2) for layer in (s.q, s.k))
    return tail(s, (q.mT @ k).mean(1).view(-1, 1, 8, 8) + s.a(x))


def test_what_the_data_say_nothing_of_is_named_where_a_budget_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 9, 1), nn.Conv2d(9, 8, 1), Modulated())
    batches = [(torch.randn(2, 3, 8, 8),) for _ in range(4)]
    graph = trace(model.eval(), PICTURES)
    scores = score(graph, model, "obs", batches=batches)
    with pytest.raises(PlanError, match=r"no scores of 1, which could go: .* criterion='l2' does"):
        select(graph, scores, Budget(cut_macs=0.7))
    assert select(graph, score(graph, model, "l2"), Budget(cut_macs=0.7)).removed


class Modulated(nn.Module):
    """Reads with a weight that is a product with what it reads."""

    def __init__(self):
        super().__init__()
        self.weight = weight(6, 8)

    def forward(self, x):
        batch, read, height, width = x.shape
        kernel = self.weight * x.mean((2, 3))[:, None]
        kernel = kernel.view(-1, read, 1, 1)
        out = F.conv2d(x.reshape(1, -1, height, width), kernel, groups=batch)
        return out.view(batch, -1, height, width)
