"""Weights that are shared, computed, bare, or normalised, and normalisation of what they make."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from netslim import Budget, prune, score, select, trace, verify
from pattern import NUMBERS, PICTURES, TOKENS, Line, Patterns, conv, steps, tail

pattern = Patterns()
OVER = "over the channels"


@pytest.mark.parametrize("case", pattern, ids=str)
def test_weights(case):
    case.check()


def old(normalise, layer, **kwargs):
    """A re-parametrisation by the functions that PyTorch deprecates and checkpoints still need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return normalise(layer, **kwargs)


def weight(*shape, seed=0):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


@pattern({"a": 8, "b": 6}, d=weight(8))
def weight_of_a_diagonal(s, x):
    """Row and column of a channel are one entry."""
    return tail(s, F.conv2d(s.a(x).relu(), torch.diag(s.d)[..., None, None]))


@pattern({"b": 6}, refused={"a": "it meets a fixed size"}, d=weight(7))
def weight_beside_the_diagonal(s, x):
    return tail(s, F.conv2d(s.a(x).relu(), torch.diag(s.d, 1)[..., None, None]))


@pattern({"a": 4, "a#2": 4, "u": 3, "v": 5, "b": 6}, u=weight(3, 4), v=weight(5, 4, seed=1))
def weight_in_blocks(s, x):
    return tail(s, F.conv2d(s.a(x).relu(), torch.block_diag(s.u, s.v)[..., None, None]))


# --- re-parametrised weights ----------------------------------------------------------------------


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=old(nn.utils.weight_norm, conv(8, 5)))
def old_weight_norm(s, x):
    """A filter's norm is over what it reads; its gain follows, so that the rest stays as it is."""
    return tail(s, s.c(s.a(x)))


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=parametrizations.weight_norm(conv(8, 5)))
def weight_norm(s, x):
    return tail(s, s.c(s.a(x)))


def transposed():
    return nn.ConvTranspose2d(8, 5, 2, stride=2)


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=parametrizations.weight_norm(transposed()))
def weight_norm_of_a_transposed_convolution(s, x):
    """The filters of dimension 0 are of what it reads: those that go are silenced by their gains."""
    return tail(s, s.c(s.a(x).relu()))


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=old(nn.utils.weight_norm, transposed()))
def old_weight_norm_of_a_transposed_convolution(s, x):
    return tail(s, s.c(s.a(x).relu()))


@pattern(
    {"v": 8, "b": 6}, {"a": (8, OVER)}, b=conv(8, 6), v=weight(8, 8, 1, 1), g=weight(8, 1, 1, 1)
)
def weight_norm_by_hand(s, x):
    """Nobody but this line knows that ``g`` is a gain."""
    return tail(s, F.conv2d(s.a(x), torch._weight_norm(s.v, s.g, 0)))


@pattern({"a": 8, "b": 6}, a=parametrizations.weight_norm(conv(3, 8)))
def weight_norm_of_what_makes_the_channels(s, x):
    return tail(s, s.a(x).relu())


@pattern(
    {"a": 8, "b": 6, "c": 5},
    b=conv(5, 6),
    c=old(nn.utils.spectral_norm, conv(8, 5)),
)
def old_spectral_norm(s, x):
    """A matrix's norm is over all that it reads and makes, and stays as it was."""
    return tail(s, s.c(s.a(x)))


@pattern(
    {"a": 8, "b": 6, "c": 5},
    b=conv(5, 6),
    c=parametrizations.spectral_norm(conv(8, 5)),
)
def spectral_norm(s, x):
    return tail(s, s.c(s.a(x)))


class Scaled(nn.Module):
    """A learnt scale for each output channel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5, 1, 1, 1))

    def forward(self, w):
        return w * self.scale


def parametrised(layer, how):
    parametrize.register_parametrization(layer, "weight", how)
    return layer


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=parametrised(conv(8, 5), Scaled()))
def scaled_weight(s, x):
    return tail(s, s.c(s.a(x)))


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).transpose(-1, -2)


@pattern(
    {"b": 6},
    {"a": (8, "its own transpose")},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Linear(8, 6),
    c=parametrised(nn.Linear(8, 8), Symmetric()),
)
def symmetric_weight(s, x):
    """Rows and columns go together; no one axis of the stored weight alone silences a channel."""
    return steps(s, s.c(s.a(x)))


@pattern(
    {"a": 8, "b": 6},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Linear(8, 6),
    c=nn.Linear(8, 8, bias=False),
)
def triangular_weight(s, x):
    """As above: the triangle ties rows to columns."""
    return steps(s, F.linear(s.a(x), s.c.weight.tril()).relu())


@pattern(
    {"b": 6},
    refused={name: Line("tril", "a triangle is cut out of the channels") for name in "ac"},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Linear(5, 6),
    c=nn.Linear(8, 5, bias=False),
)
def triangle_of_a_rectangle(s, x):
    """No row goes with a column of its own, so either would shift the diagonal."""
    return steps(s, F.linear(s.a(x), s.c.weight.tril()).relu())


@pattern(
    {"a": 8, "c": 8, "b": 6},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Linear(8, 6),
    c=nn.Linear(8, 8),
    mask=nn.Buffer(torch.ones(8, 8).tril()),
)
def masked_weight(s, x):
    """The mask is cut with the weight."""
    return steps(s, F.linear(s.a(x), s.c.weight * s.mask, s.c.bias))


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        mean, std = (
            self.weight.mean((1, 2, 3), keepdim=True),
            self.weight.std((1, 2, 3), keepdim=True),
        )
        return self._conv_forward(x, (self.weight - mean) / (std + 1e-5), self.bias)


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=StandardisedConv(8, 5, 3))
def weight_standardisation(s, x):
    return tail(s, s.c(s.a(x)))


class StandardisedByBatchNorm(nn.Conv2d):
    def forward(self, x):
        w = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0
        )
        return self._conv_forward(x, w.reshape_as(self.weight), self.bias)


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=StandardisedByBatchNorm(8, 5, 3))
def weight_standardisation_by_batch_norm(s, x):
    return tail(s, s.c(s.a(x)))


@pattern(
    {"a": 8, "experts": 5, "b": 6},
    {"c": (2, "softmax over the channels")},
    b=conv(5, 6),
    c=nn.Linear(3, 2),
    experts=weight(2, 5, 8, 1, 1),
)
def mixture_of_weights(s, x):
    mix = s.c(x.mean((0, 2, 3))).softmax(0)
    w = (mix.view(-1, 1, 1, 1, 1) * s.experts).sum(0)
    return tail(s, F.conv2d(s.a(x), w).relu())


# --- shared weights -------------------------------------------------------------------------------


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def a_layer_used_twice(s, x):
    return tail(s, s.c(s.c(s.a(x)).relu()))


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=conv(8, 5), d=conv(3, 8))
def a_layer_on_two_branches(s, x):
    return tail(s, s.c(s.a(x)).relu() * s.c(s.d(x)))


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def a_layer_in_a_loop(s, x):
    h = s.a(x)
    for _ in range(3):
        h = h + s.c(h).relu()
    return tail(s, h)


@pattern({"a": 8, "b": 6})
class TiedWeights(nn.Module):
    """Two layers, one parameter: what the first makes and what the second makes go with what they
    read.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = (
            conv(3, 8),
            conv(8, 6),
            conv(8, 8),
            conv(8, 8),
            nn.Linear(6, 2),
        )
        self.d.weight = self.c.weight

    def forward(self, x):
        return tail(self, self.d(self.c(self.a(x)).relu()))


@pattern(
    {"a": 8, "code": 5, "b": 6},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Linear(8, 6),
    code=nn.Linear(8, 5),
)
def tied_autoencoder(s, x):
    return steps(s, F.linear(s.code(s.a(x)).relu(), s.code.weight.t()))


@pattern(
    {"words": 8, "fc": 5},
    refused={"words#2": "picked by number"},
    outputs=(),
    inputs=NUMBERS,
    words=nn.Embedding(10, 8),
    fc=nn.Linear(8, 5),
    out=nn.Linear(5, 8),
)
def tied_embedding(s, numbers):
    h = s.words(numbers)
    return (h + s.out(s.fc(h).relu())) @ s.words.weight.t()


@pattern({"first.conv": 8, "b": 6})
class SharedModule(nn.Module):
    """One convolution under two names, and one norm for each."""

    def __init__(self):
        super().__init__()
        shared = conv(8, 8)
        self.first = nn.ModuleDict({"conv": conv(3, 8), "shared": shared})
        self.second = nn.ModuleList([shared, nn.BatchNorm2d(8)])
        self.b, self.head = conv(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.first["shared"](self.first["conv"](x)).relu()
        for layer in self.second:
            h = layer(h)
        return tail(self, h)


@pattern({"stem.0.a": 8, "stem.1.inner.0": 5, "b": 6})
class NestedModules(nn.Module):
    def __init__(self):
        super().__init__()
        inner = nn.ModuleDict({"inner": nn.Sequential(conv(8, 5), nn.ReLU(), conv(5, 8))})
        self.stem = nn.ModuleList([nn.ModuleDict({"a": conv(3, 8)}), inner])
        self.b, self.head = conv(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.stem[0]["a"](x)
        return tail(self, h + self.stem[1]["inner"](h))


@pattern({"a": 8, "code": 5, "b": 6}, code=conv(8, 5, 3))
def tied_decoder_of_maps(s, x):
    code = s.code(s.a(x)).relu()
    return tail(s, F.conv_transpose2d(code, s.code.weight, padding=1))


# --- bare parameters ------------------------------------------------------------------------------


@pattern({"a": 8, "b": 6}, scale=weight(8), b=nn.Linear(8, 6))
def layer_scale_with_channels_last(s, x):
    h = s.a(x).permute(0, 2, 3, 1)
    return s.head(s.b(h.relu() * s.scale).mean((1, 2)))


@pattern({"a": 8, "b": 6}, scale=weight(1, 8, 1, 1), bias=weight(8, 1, 1, seed=1))
def scale_and_bias_of_other_layouts(s, x):
    return tail(s, s.a(x) * s.scale + s.bias)


@pattern({"a": 8, "b": 6}, scale=weight(8))
def scale_by_view_of_its_own_length(s, x):
    return tail(s, s.a(x) * s.scale.view(1, -1, 1, 1) + s.scale[:, None, None])


@pattern({"a": 8, "b": 6}, c=conv(8, 8), scale=nn.Parameter(torch.zeros(1)))
def scale_of_a_whole_branch(s, x):
    h = s.a(x)
    return tail(s, h + s.scale * s.c(h).relu())


@pattern(
    {"a": 8, "w": 6},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Identity(),
    w=weight(8, 6),
    bias=weight(6),
)
def product_with_a_parameter(s, x):
    return steps(s, s.a(x) @ s.w + s.bias)


@pattern(
    {"a": 8, "w": 6},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Identity(),
    w=weight(6, 8),
    bias=weight(6),
)
def linear_with_a_parameter(s, x):
    return steps(s, F.linear(s.a(x), s.w, s.bias))


@pattern(
    {"a": 8, "weights": 5, "table": 6},
    weights=nn.ParameterList([weight(5, 8, 3, 3)]),
    table=nn.ParameterDict({"b": weight(6, 5, 1, 1)}),
    b=nn.Identity(),
)
def convolutions_with_parameters(s, x):
    return tail(s, F.conv2d(F.conv2d(s.a(x), s.weights[0]).relu(), s.table["b"]))


@pattern({"a": 8, "w": 6}, w=weight(2, 3, 6, 8), b=nn.Identity())
def kernel_of_another_layout(s, x):
    return tail(s, F.conv2d(s.a(x), s.w.permute(2, 3, 0, 1)))


@pattern({"a": 8, "b": 6}, place=weight(1, 8, 4, 4))
def resized_position_map(s, x):
    h = s.a(x)
    return tail(s, h + F.interpolate(s.place, size=h.shape[2:], mode="bicubic"))


@pattern(
    {"b": 6}, refused={"a": "convolution", "fc": Line("view(8, 8, 1, 1)")}, fc=nn.Linear(3, 64)
)
def weight_made_by_a_layer(s, x):
    w = s.fc(x.mean((0, 2, 3))).view(8, 8, 1, 1)
    return tail(s, F.conv2d(s.a(x), w))


@pattern({"a": 8, "b": 6}, slope=nn.PReLU(8), one=nn.PReLU())
def prelu(s, x):
    return tail(s, s.one(s.slope(s.a(x))))


@pattern({"a": 8, "b": 6}, slope=weight(8))
def prelu_with_a_parameter(s, x):
    return tail(s, F.prelu(s.a(x), s.slope))


@pattern({"a": 8, "b": 6}, table=weight(5, 8))
def parameter_by_its_rows(s, x):
    """Row 3 is picked by its number, its channels follow."""
    return tail(s, s.a(x) * s.table[3].view(1, -1, 1, 1))


# --- buffers and constants ------------------------------------------------------------------------


@pattern({"a": 8, "b": 6}, mask=nn.Buffer(torch.arange(8.0).view(1, 8, 1, 1)))
def buffer_per_channel(s, x):
    return tail(s, s.a(x) * s.mask)


@pattern({"a": 8, "b": 6}, mask=nn.Buffer(torch.arange(8) % 2 == 0, persistent=False))
def registered_mask(s, x):
    return tail(s, s.a(x).masked_fill(s.mask[:, None, None], 0.5))


@pattern(
    {"b": 6}, refused={"a": Line("s.mask", "fixed size")}, mask=torch.arange(8.0).view(1, 8, 1, 1)
)
def tensor_that_is_no_buffer(s, x):
    return tail(s, s.a(x) * s.mask)


@pattern({"a": 8, "b": 6}, mean=nn.Buffer(torch.ones(1, 3, 1, 1)), std=torch.full((3, 1, 1), 2.0))
def standardised_input(s, x):
    return tail(s, s.a((x - s.mean) / s.std))


# --- normalisation --------------------------------------------------------------------------------


@pattern(
    {"a": 8, "b": 6},
    norm=nn.BatchNorm2d(8, affine=False),
    still=nn.BatchNorm2d(8, track_running_stats=False),
)
def batch_norm_without_scale_or_statistics(s, x):
    return tail(s, s.norm(s.a(x)).relu() + s.still(s.a(x)))


@pattern({"a": 8}, norm=nn.BatchNorm1d(8 * 64), head=nn.Linear(8 * 64, 2))
def batch_norm_of_flat_maps(s, x):
    return s.head(s.norm(s.a(x).flatten(1)))


@pattern({"a": 8, "b": 6}, norm=nn.BatchNorm2d(8))
def batch_norm_by_hand(s, x):
    scale = s.norm.weight * (s.norm.running_var + s.norm.eps).rsqrt()
    shift = s.norm.bias - s.norm.running_mean * scale
    return tail(s, s.a(x) * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1))


@pattern({"a": 8, "b": 6}, norm=nn.SyncBatchNorm(8))
def sync_batch_norm(s, x):
    return tail(s, s.norm(s.a(x)))


@pattern({"a": 8, "b": 6}, plain=nn.InstanceNorm2d(8), affine=nn.InstanceNorm2d(8, affine=True))
def instance_norm(s, x):
    return tail(s, s.affine(s.plain(s.a(x)).relu()))


@pattern({"a": 8, "b": 6}, norm=nn.InstanceNorm2d(8, affine=True, track_running_stats=True))
def instance_norm_with_statistics(s, x):
    return tail(s, s.norm(s.a(x)).relu())


@pattern({"a": 8, "b": 6}, norm=nn.GroupNorm(8, 8))
def group_norm_of_one_channel_a_group(s, x):
    return tail(s, s.norm(s.a(x)))


@pattern({"a": 8, "b": 6}, norm=nn.GroupNorm(1, 8))
def group_norm_of_one_group(s, x):
    return tail(s, s.norm(s.a(x)))


@pattern({"a": 4, "b": 6}, norm=nn.GroupNorm(2, 8))
def group_norm_of_two_groups(s, x):
    """The groups stay two and equal, so channel i goes with channel i + 4."""
    return tail(s, s.norm(s.a(x)))


@pattern({"a": 8, "b": 6}, norm=nn.LayerNorm(8))
def layer_norm_over_channels(s, x):
    return tail(s, s.norm(s.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pattern({"a": 8, "b": 6}, norm=nn.LayerNorm([8, 8, 8]))
def layer_norm_over_everything(s, x):
    return tail(s, s.norm(s.a(x)))


@pattern({"a": 8, "b": 6}, norm=nn.LayerNorm([8, 8]))
def layer_norm_over_space(s, x):
    return tail(s, s.norm(s.a(x)))


@pattern({"b": 6}, {"a": (8, "layer normalisation")}, scale=weight(8), bias=weight(8, seed=1))
def layer_norm_by_its_shape(s, x):
    h = s.a(x).permute(0, 2, 3, 1)
    return tail(s, F.layer_norm(h, h.shape[-1:], s.scale, s.bias).permute(0, 3, 1, 2))


@pattern(
    {"a": 8, "b": 6},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Linear(8, 6),
    norm=nn.RMSNorm(8),
)
def rms_norm(s, x):
    return steps(s, s.norm(s.a(x)))


@pattern({"b": 6}, {"a": (8, OVER)}, scale=weight(8, 1, 1))
def channel_norm_by_hand(s, x):
    h = s.a(x)
    h = (h - h.mean(1, keepdim=True)) * (h.var(1, keepdim=True) + 1e-5).rsqrt()
    return tail(s, h * s.scale)


@pattern({"b": 6}, {"a": (8, OVER)}, gamma=weight(8), beta=weight(8, seed=1))
def global_response_norm(s, x):
    h = s.a(x).permute(0, 2, 3, 1)
    g = h.norm(p=2, dim=(1, 2), keepdim=True)
    h = h + s.gamma * (h * g / (g.mean(-1, keepdim=True) + 1e-6)) + s.beta
    return tail(s, h.permute(0, 3, 1, 2))


@pattern({"a": 8, "b": 6}, tau=weight(1, 8, 1, 1))
def filter_response_norm(s, x):
    h = s.a(x)
    h = h * torch.rsqrt(h.square().mean((2, 3), keepdim=True) + 1e-6)
    return tail(s, torch.maximum(h, s.tau))


@pattern({"b": 6}, {"a": (8, OVER)}, norm=nn.LocalResponseNorm(3))
def local_response_norm(s, x):
    """The mean over neighbouring channels: sizes do not matter, values do."""
    return tail(s, s.norm(s.a(x)))


@pattern({"a": 8, "b": 6}, style=nn.Conv2d(3, 8, 3))
def adaptive_instance_norm(s, x):
    h, y = s.a(x), s.style(x)
    std, mean = torch.std_mean(y, (2, 3), keepdim=True)
    return tail(s, (h - h.mean((2, 3), keepdim=True)) / h.std((2, 3), keepdim=True) * std + mean)


# --- mixing channels ------------------------------------------------------------------------------


@pattern({"b": 6}, {"a": (8, f"mean {OVER}")})
def mean_over_channels(s, x):
    h = s.a(x)
    return tail(s, h - h.mean(1, keepdim=True))


@pattern({"b": 6}, {"a": (8, f"amax {OVER}")})
def maximum_over_channels(s, x):
    h = s.a(x)
    return tail(s, h * h.amax(1, keepdim=True))


@pattern({"b": 6}, {"a": (8, f"softmax {OVER}")})
def softmax_over_channels(s, x):
    return tail(s, s.a(x).softmax(1))


@pattern({"a": 8, "b": 6})
def softmax_over_space(s, x):
    h = s.a(x)
    return tail(s, h * h.flatten(2).softmax(-1).view_as(h))


@pattern({"b": 6}, {"a": (8, f"mean {OVER}"), "c": (5, f"mean {OVER}")}, c=conv(3, 5))
def mean_over_the_channels_of_two_layers(s, x):
    pairs = s.a(x)[:, :, None] * s.c(x)[:, None]
    return tail(s, s.a(x) + pairs.relu().mean((1, 2))[:, None])


@pattern({"b": 6}, {"a": (8, f"cumsum {OVER}")})
def cumulative_sum_over_channels(s, x):
    return tail(s, s.a(x).cumsum(1))


@pattern({"b": 6}, refused={"a": Line("sort(dim=1)", "sort")})
def sorted_channels(s, x):
    """What comes out is ranks, which are not the channels that went in."""
    return tail(s, s.a(x).sort(dim=1)[0])


@pattern({"b": 6}, refused={"a": Line("topk(3", "topk")}, b=conv(3, 6))
def largest_three_channels(s, x):
    """There must stay three to choose from, and what comes out has no channels of its own."""
    return tail(s, s.a(x).topk(3, dim=1)[0])


@pattern({"a": 8, "b": 6}, {}, b=nn.Linear(8 * 4, 6))
def largest_places_of_each_channel(s, x):
    return s.head(s.b(s.a(x).flatten(2).topk(4, dim=2)[0].flatten(1)).relu())


@pattern({"a": 8, "b": 6})
def running_extremes_over_space(s, x):
    h = s.a(x)
    return tail(s, h.cummax(2).values + h.cummin(3)[0] + h.flatten(2).sort(-1)[0].view_as(h))


@pattern({"a": 8, "b": 6})
def medians_and_counts_over_space(s, x):
    h = s.a(x)
    return tail(s, h.nanmedian(2, keepdim=True)[0] + h.count_nonzero((2, 3))[..., None, None])


@pattern({"b": 6}, refused={"a": Line("cummax(1)", "cummax")})
def running_extremes_over_channels(s, x):
    return tail(s, s.a(x).cummax(1)[0])


@pattern({"a": 8, "b": 6}, refused={"head": "max"}, outputs=())
def classes_by_their_numbers(s, x):
    """A class that goes would renumber the others."""
    return tail(s, s.a(x)).max(1)


@pattern({"b": 6}, {"a": (8, OVER)}, b=nn.Linear(8, 6))
def normalised_features(s, x):
    return s.head(s.b(F.normalize(s.a(x).mean((2, 3)))).relu())


@pattern({"a": 8}, {"b": (6, OVER)}, head=weight(2, 6))
def cosine_classifier(s, x):
    return F.linear(F.normalize(s.b(s.a(x)).mean((2, 3))), F.normalize(s.head))


@pattern({"a": 8}, {"b": (6, OVER)}, outputs=(), inputs=(PICTURES, PICTURES.flip(0)))
def cosine_similarity(s, x, y):
    return F.cosine_similarity(s.b(s.a(x)).mean((2, 3)), s.b(s.a(y).relu()).mean((2, 3)))


# --- tables and products of two -------------------------------------------------------------------


@pattern(
    {"words": 8, "b": 6},
    inputs=NUMBERS,
    words=nn.Embedding(10, 8, padding_idx=0),
    b=nn.Linear(8, 6),
)
def embedding(s, numbers):
    return steps(s, s.words(numbers))


@pattern(
    {"bag": 8, "b": 6}, inputs=NUMBERS, bag=nn.EmbeddingBag(10, 8, mode="sum"), b=nn.Linear(8, 6)
)
def embedding_bag(s, numbers):
    return s.head(s.b(s.bag(numbers)).relu())


@pattern({"words": 8, "b": 6}, inputs=NUMBERS, words=weight(10, 8), b=nn.Linear(8, 6))
def rows_of_a_parameter(s, numbers):
    return steps(s, s.words[numbers])


@pattern(
    {"b": 6},
    {"a": (8, OVER)},
    {"codes": "argmin"},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Linear(8, 6),
    codes=weight(4, 8),
)
def vector_quantiser(s, x):
    h = s.a(x)
    distance = h.square().sum(-1, keepdim=True) - 2 * h @ s.codes.t() + s.codes.square().sum(1)
    return steps(s, h + F.embedding(distance.argmin(-1), s.codes))


@pattern({"a": 8, "b": 6}, inputs=(PICTURES, NUMBERS[:, 0]), classes=nn.Embedding(10, 8))
def class_condition(s, x, numbers):
    h = s.a(x)
    return tail(s, h * s.classes(numbers)[:, :, None, None].expand_as(h))


@pattern(
    {"a": 8, "c": 5, "mix": 4, "b": 6},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Linear(4, 6),
    c=nn.Linear(3, 5),
    mix=nn.Bilinear(8, 5, 4),
)
def bilinear(s, x):
    return steps(s, s.mix(s.a(x), s.c(x)))


@pattern(
    {"a": 8, "b": 6},
    refused={"c": Line("flatten(1)", "two channel dimensions merge")},
    inputs=TOKENS[:, 0],
    a=nn.Linear(3, 8),
    b=nn.Linear(40, 6),
    c=nn.Linear(3, 5),
)
def outer_product(s, x):
    """Of two dimensions that become one the longer may go."""
    y = s.a(x).unsqueeze(2) * s.c(x).unsqueeze(1)
    return s.head(s.b(y.flatten(1)).relu())


# --- computed weights: which parameters silence what they read ------------------------------------

READ, MADE = 8, 4
MASK = (weight(MADE, READ) > -0.5).float()


def standardised(w):
    return (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5)


def straight_through(w):
    return w + (torch.round(4 * w) / 4 - w).detach()


def written_by_a_view(w):
    w = 2 * w
    w.t().add_(1)
    return w


def written_in_place(w):
    return w.clone().mul_(2).sub_(0)


def iterated(w):
    for _ in range(30):
        w = 0.5 * w + w * w.tanh() * w.abs().sigmoid()
    return w


def low_rank():
    return {"a": weight(MADE, 2, seed=1), "b": weight(2, READ, seed=2)}


def another(*shape):
    return {"v": weight(*shape or (MADE, READ), seed=3)}


# (what is computed of the weight and others, these, which of all the silence is in: none if cutting
# is not exact, and the reason then)
ZERO, CHANGED = "a computed weight that is not 0 where", "over the channels"
PARTS = "a computed weight that is written into part by part"
REASONS = (ZERO, CHANGED, PARTS)
COMPUTED = {
    "softplus": (F.softplus, {}, ZERO),
    "softplus, turned and doubled": (lambda w: (F.softplus(w).t() * 2).t(), {}, ZERO),
    "softplus, copied and doubled": (lambda w: F.softplus(w).contiguous() * 2, {}, ZERO),
    "a chain that ends at 0": (lambda w: (w.exp().t().contiguous() - 1).t(), {}, "weight"),
    "exp": (torch.exp, {}, ZERO),
    "a number more": (lambda w: w + 1.5, {}, ZERO),
    "a constant more": (lambda w, v: w + v, another(MADE, 1), ZERO),
    "clamped away from 0": (lambda w: w.clamp(0.1, 1), {}, ZERO),
    "signs": (lambda w: torch.where(w >= 0, 1.0, -1.0), {}, ZERO),
    "tanh": (lambda w: w.tanh() * 2, {}, "weight"),
    "norms": (lambda w: F.normalize(w, dim=0), {}, "weight"),
    "standardised": (standardised, {}, CHANGED),
    "its own mask": (lambda w: torch.where(w > 0.1, w, 0), {}, "weight"),
    "masked": (lambda w, m: w * m, {"m": MASK}, "weight"),
    "mask first": (lambda w, m: (m * w).t().contiguous().t(), {"m": MASK}, "weight"),
    "filled with 0": (lambda w, m: w.masked_fill(m == 0, 0.0), {"m": MASK}, "weight"),
    "filled with 1": (lambda w, m: w.masked_fill(m == 0, 1.0), {"m": MASK}, ZERO),
    "low rank": (lambda w, a, b: w + 0.5 * (a @ b), low_rank(), "b weight"),
    "low rank first": (lambda w, a, b: a @ b + w, low_rank(), "b weight"),
    "low rank, fused": (lambda w, a, b: torch.addmm(w, a, b), low_rank(), "b weight"),
    "low rank of zeros": (
        lambda w, a, b: w + a @ b,
        {"a": nn.Parameter(torch.zeros(MADE, 2)), "b": weight(2, READ)},
        "b weight",
    ),
    "outer product": (
        lambda w, a, b: w + a * b, {"a": weight(MADE, 1), "b": weight(1, READ)}, "b weight"
    ),
    "two": (lambda w, v: w + v, another(), "v weight"),
    "three": (lambda w, v, u: w + v - u, {**another(), "u": weight(MADE, READ)}, "u v weight"),
    "interpolated": (lambda w, v: torch.lerp(w, v, 0.3), another(), "v weight"),
    "stacked": (lambda w, v: torch.stack([w, v]).mean(0), another(), "v weight"),
    "one of two": (lambda w, m, v: torch.where(m > 0, w, v), {"m": MASK, **another()}, "v weight"),
    "joined rows": (lambda w, v: torch.cat([w[:2], v]), another(2, READ), "v weight"),
    "a row more": (lambda w, v: w + v, another(READ), "v weight"),
    "product": (lambda w, v: w * v, another(), "weight"),
    "scaled": (lambda w, v: v.exp() * w, another(READ), "weight"),
    "gated": (
        lambda w, v, u: v.sigmoid() * w + u,
        {**another(READ), "u": weight(MADE, READ)},
        "u weight",
    ),
    "divided": (lambda w, v: w / v, another(READ), "weight"),
    "of roots": (lambda w, v: w / (v.abs() + 1).log(), another(READ), "weight"),
    "layers of weights": (
        lambda w, a, b, c: w * F.linear(a.relu(), b, c).tanh(),
        {"a": weight(MADE, 2), "b": weight(READ, 2), "c": weight(READ)},
        "weight",
    ),
    "a buffer more": (lambda w, b: w + b, {"b": torch.randn(MADE, READ)}, "b weight"),
    "rounded": (straight_through, {}, "weight"),
    "quantised": (
        lambda w: torch.fake_quantize_per_tensor_affine(w, 0.1, 3, -128, 127), {}, "weight"
    ),
    "quantised by filters": (
        lambda w, s, z: torch.fake_quantize_per_channel_affine(w, s, z, 0, -8, 7),
        {"s": torch.full((MADE,), 0.1), "z": torch.ones(MADE, dtype=torch.int32)},
        "weight",
    ),
    "by many iterations": (iterated, {}, "weight"),
    "stopped gradient": (lambda w: w.detach() * 1.5, {}, "weight"),
    "data": (lambda w: w.data + 1, {}, ZERO),
    "in place": (written_in_place, {}, "weight"),
    "by a view": (written_by_a_view, {}, PARTS),
    "several, summed": (lambda w, v: w * v.sum(0), another(3, MADE, READ), "v"),
}  # fmt: skip


class Computed(nn.Module):
    """A linear layer with a computed weight."""

    def __init__(self, function, tensors):
        super().__init__()
        self.function, self.names = function, ["weight", *tensors]
        self.weight = weight(MADE, READ)
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                setattr(self, name, nn.Parameter(tensor.detach().clone()))
            else:
                self.register_buffer(name, tensor.clone())

    def forward(self, x):
        return F.linear(x, self.function(*[getattr(self, name) for name in self.names]))


@pytest.mark.parametrize("kind", COMPUTED)
def test_channels_that_a_computed_weight_reads_are_silenced_in_all_that_must_be_0(kind):
    function, tensors, answer = COMPUTED[kind]
    check_computed(Computed(function, tensors), answer)


@pytest.mark.parametrize("kind", ["softplus", "tanh", "exp", "standardised"])
def test_parametrizations_are_computed_weights(kind):
    class Own(nn.Module):
        def forward(self, w):
            return COMPUTED[kind][0](w)

    reading = parametrize.register_parametrization(nn.Linear(READ, MADE), "weight", Own())
    answer = COMPUTED[kind][2]
    if answer == "weight":
        answer = "parametrizations.weight.original"
    check_computed(reading, answer)


def check_computed(reading, answer):
    """What it reads is silenced in the tensors that ``answer`` names, or inexact for a reason."""
    model = nn.Sequential(nn.Linear(3, READ), nn.ReLU(), reading, nn.ReLU(), nn.Linear(MADE, 2))
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x)
    group = graph["0"]
    if answer in REASONS:
        assert (group.exact, group.frozen) == (False, False)
        assert answer in group.reason
    else:
        assert group.prunable
        read = {s.tensor.removeprefix("2.") for s in group.tensors("consumer")}
        assert read == set(answer.split())
    plan = select(graph, score(graph, model, "l1"), Budget(cut_channels=0.3))
    proof = verify(model, prune(model, plan), plan, x, graph=graph)
    assert proof.deviation < 1e-6
