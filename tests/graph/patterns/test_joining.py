"""Branches that join and part: residuals, concatenation, splits, slices, gates, pyramids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

from nets import Chain, DenseBlock, Residual
from pattern import Line, Patterns, conv, tail

pattern = Patterns()


@pytest.mark.parametrize("case", pattern, ids=str)
def test_joining(case):
    case.check()


pattern({"first.0": 6, "second.0": 5})(Chain)
pattern({"stem.0": 6, "inner.0": 5})(Residual)
pattern({"stem": 6, "conv1": 4, "conv2": 4})(DenseBlock)


# --- sums -----------------------------------------------------------------------------------------


@pattern({"a": 8}, refused={"c": "fixed size in add"}, outputs=(), c=conv(8, 3, 3))
def global_residual_from_input_to_output(s, x):
    return x + s.c(s.a(x).relu())


@pattern({"a": 8}, refused={"c": "fixed size in add"}, outputs=(), c=conv(8, 12))
def global_residual_of_an_upscaler(s, x):
    return F.interpolate(x, scale_factor=2) + F.pixel_shuffle(s.c(s.a(x).relu()), 2)


@pattern({"a": 8, "c": 8, "b": 6}, c=conv(8, 8, 3, stride=2), d=conv(8, 8, stride=2))
def shortcut_by_projection(s, x):
    h = s.a(x).relu()
    return tail(s, s.c(h) + s.d(h))


@pattern({"a": 8, "b": 6}, c=conv(8, 8), d=conv(8, 8))
def residual_chain(s, x):
    h = s.a(x)
    h = h + s.c(h.relu())
    return tail(s, h + s.d(h.relu()))


@pattern({"a": 8, "b": 6}, c=conv(8, 8), drop=StochasticDepth(0.5, "row"), dropout=nn.Dropout2d())
def stochastic_depth_and_dropout(s, x):
    h = s.a(x)
    return tail(s, h + s.drop(s.dropout(s.c(h).relu())))


@pattern({"a": 8, "b": 6}, gate=conv(8, 8))
def highway(s, x):
    h = s.a(x)
    t = s.gate(h).sigmoid()
    return tail(s, t * h.relu() + (1 - t) * h)


@pattern({"a": 8, "b": 6}, c=conv(8, 1))
def map_of_one_channel_on_all(s, x):
    h = s.a(x)
    return tail(s, h * s.c(h).sigmoid())


@pattern({"b": 6}, refused={"a": Line("torch.arange", "fixed size")}, b=conv(8, 6))
def constant_per_channel(s, x):
    return tail(s, s.a(x) + torch.arange(8.0).view(1, 8, 1, 1))


@pattern(
    {"b": 6}, refused={"a": Line("s.a(x) + x.repeat", "fixed size")}, a=conv(3, 6), b=conv(6, 6)
)
def sum_with_the_input(s, x):
    return tail(s, s.a(x) + x.repeat(1, 2, 1, 1))


# --- zeros for channels that are not there --------------------------------------------------------


@pattern({"a": 4, "b": 6}, refused={"c": "constant"}, a=conv(3, 4), c=conv(4, 8, stride=2))
def shortcut_padded_by_numbers(s, x):
    h = s.a(x)
    return tail(s, s.c(h).relu() + F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


@pattern({"a": 4, "c": 4, "b": 6}, a=conv(3, 4), c=conv(4, 8))
def shortcut_padded_to_fit(s, x):
    """As many zeros as the sum needs: the channels of ``c`` beyond those of ``a`` go one by one."""
    h = s.a(x)
    y = s.c(h).relu()
    return tail(s, y + F.pad(h, (0, 0, 0, 0, 0, y.shape[1] - h.shape[1])))


@pattern({"a": 4, "b": 6}, a=conv(3, 4), c=conv(4, 8))
def shortcut_padded_to_twice(s, x):
    h = s.a(x)
    return tail(s, s.c(h).relu() + F.pad(h, (0, 0, 0, 0, 0, h.shape[1])))


@pattern({"a": 4, "b": 6}, a=conv(3, 4), c=conv(4, 8))
def shortcut_with_zeros_like_it(s, x):
    h = s.a(x)
    return tail(s, s.c(h).relu() + torch.cat([h, torch.zeros_like(h)], 1))


@pattern({"a": 4, "b": 6}, a=conv(3, 4), c=conv(4, 8))
def shortcut_with_zeros_of_its_shape(s, x):
    h = s.a(x)
    n, c, height, width = h.shape
    return tail(s, s.c(h).relu() + torch.cat([torch.zeros(n, c, height, width), h], 1))


@pattern({"a": 4, "c": 4, "b": 6}, a=conv(3, 4), c=conv(4, 8))
def shortcut_with_the_zeros_that_are_missing(s, x):
    h = s.a(x)
    y = s.c(h)
    zeros = h.new_zeros(h.size(0), y.size(1) - h.size(1), *h.shape[2:])
    return tail(s, y.relu() + torch.cat([h, zeros], 1))


@pattern({"a": 4, "b": 6}, refused={"c": "constant"}, a=conv(3, 4), c=conv(4, 8))
def shortcut_with_four_zeros(s, x):
    h = s.a(x)
    return tail(s, s.c(h).relu() + torch.cat([h, torch.zeros(2, 4, 8, 8)], 1))


# --- concatenation --------------------------------------------------------------------------------


@pattern(
    {"a": 8, "c": 4, "d": 5, "e": 3, "b": 6},
    b=conv(20, 6),
    c=conv(8, 4),
    d=conv(8, 5, 3),
    e=conv(8, 3, 5),
)
def inception(s, x):
    h = s.a(x)
    branches = [s.c(h), s.d(h), s.e(h), F.max_pool2d(h, 3, 1, 1)]
    return tail(s, torch.cat([h.relu() for h in branches], 1))


@pattern({"a": 8, "b": 6}, b=conv(11, 6))
def cat_with_the_input(s, x):
    return tail(s, torch.cat([x, s.a(x)], 1))


@pattern({"a": 8, "b": 6}, b=conv(16, 6))
def cat_with_itself(s, x):
    h = s.a(x)
    return tail(s, torch.cat([h, h.neg().relu()], 1))  # CReLU


@pattern({"a": 8, "b": 6}, c=conv(3, 8))
def cat_along_the_batch(s, x):
    return tail(s, torch.cat([s.a(x), s.c(x)]))


@pattern({"a": 8, "b": 6}, c=conv(3, 8))
def cat_along_space(s, x):
    return tail(s, torch.cat([s.a(x), s.c(x)], -1))


@pattern({"a": 8, "b": 6}, c=conv(3, 8))
def stack_and_sum(s, x):
    return tail(s, torch.stack([s.a(x), s.c(x).relu()], 1).sum(1))


@pattern({"a": 8, "b": 6}, b=conv(16, 6), c=conv(3, 8))
def stack_and_flatten(s, x):
    return tail(s, torch.stack([s.a(x), s.c(x)], 2).flatten(1, 2))  # a and c interleaved


@pattern({"a": 8, "b": 6}, c=conv(3, 8))
def stack_and_unbind(s, x):
    p, q = torch.stack([s.a(x), s.c(x)]).unbind(0)
    return tail(s, p * q.sigmoid())


@pattern(
    {"a": 8, "up": 5, "c": 6, "b": 6},
    b=conv(13, 6),
    c=conv(8, 6, 3, stride=2),
    up=nn.ConvTranspose2d(6, 5, 3, 2),
)
def unet_skip_with_crop(s, x):
    h = s.a(x).relu()
    up = s.up(s.c(h).relu())
    return tail(s, torch.cat([up[:, :, : h.shape[2], : h.shape[3]], h], 1))


@pattern(
    {"a": 8, "c": 6, "p": 5, "b": 6},
    b=conv(5, 6),
    c=conv(8, 6, 3, stride=2),
    p=conv(6, 5),
    q=conv(8, 5),
)
def pyramid_from_the_top_down(s, x):
    h = s.a(x).relu()
    top = s.p(s.c(h).relu())
    return tail(s, s.q(h) + F.interpolate(top, size=h.shape[-2:], mode="bilinear"))


# --- parts of equal size --------------------------------------------------------------------------


@pattern({"a": 4, "b": 6})
def chunks_change_places(s, x):
    p, q = s.a(x).chunk(2, 1)
    return tail(s, torch.cat([q, p], 1))


@pattern({"a": 4, "c": 4, "d": 4, "b": 6}, b=conv(16, 6), c=conv(4, 4, 3), d=conv(4, 4, 3))
def c2f(s, x):
    parts = list(s.a(x).relu().chunk(2, 1))
    for block in (s.c, s.d):
        parts.append(block(parts[-1]).relu())
    return tail(s, torch.cat(parts, 1))


@pattern(
    {"a": 4, "inner": 5, "b": 6},
    b=conv(12, 6),
    width=4,
    inner=conv(4, 5),
    outer=conv(5, 4),
    patched={"width": 2},
)
def c2f_with_shortcuts(s, x):
    parts = list(s.a(x).split((s.width, s.width), 1))
    parts.append(parts[-1] + s.outer(s.inner(parts[-1]).relu()))
    return tail(s, torch.cat(parts, 1))


@pattern(
    {"a": 4, "d": 4, "b": 6},
    a=conv(3, 12),
    b=conv(12, 6),
    c=conv(4, 4),
    d=conv(4, 4),
    width=4,
    patched={"width": 2},
)
def res2net(s, x):
    p, q, r = s.a(x).relu().split(s.width, 1)
    y = s.c(p).relu()  # goes with q
    return tail(s, torch.cat([y, s.d(y + q).relu(), r], 1))


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def gated_linear_unit(s, x):
    return tail(s, F.glu(s.a(x), 1))


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def swiglu_by_hand(s, x):
    p, q = s.a(x).tensor_split(2, 1)
    return tail(s, F.silu(p) * q)


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def maxout_of_halves(s, x):
    p, q = s.a(x).chunk(2, dim=1)
    return tail(s, torch.maximum(p, q))  # max feature map


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def maxout_of_neighbours(s, x):
    h = s.a(x)
    n, c, height, width = h.shape
    return tail(s, h.view(n, c // 2, 2, height, width).max(2)[0])


@pattern({"a": 8, "c": 4, "b": 6}, c=conv(8, 4), d=conv(4, 8), e=conv(4, 8), f=conv(3, 8))
def selective_kernel(s, x):
    u = torch.stack([s.a(x).relu(), s.f(x).relu()], 1)
    z = s.c(u.sum(1).mean((2, 3), keepdim=True)).relu()
    weights = torch.stack([s.d(z), s.e(z)], 1).softmax(1)
    return tail(s, (u * weights).sum(1))


@pattern({"a": 4, "c": 3, "b": 6}, b=conv(4, 6), c=conv(4, 3), d=conv(3, 8), radix=2)
def split_attention(s, x):
    h = s.a(x).relu()
    n, rc, height, width = h.shape
    parts = h.reshape(n, s.radix, rc // s.radix, height, width)
    z = s.d(s.c(parts.sum(1).mean((2, 3), keepdim=True)).relu())
    weights = z.view(n, s.radix, -1).softmax(1).reshape(n, s.radix, rc // s.radix, 1, 1)
    return tail(s, (parts * weights).sum(1))


@pattern({"a": 8, "b": 6}, b=conv(16, 6), cheap=conv(8, 8, 3, groups=8), width=16, patched={})
def ghost_module(s, x):
    h = s.a(x).relu()
    return tail(s, torch.cat([h, s.cheap(h).relu()], 1))


@pattern({"b": 6}, refused={"a": Line("chunk(3", "unequal parts")})
def chunks_of_unequal_size(s, x):
    """Three, three and two: no smaller number need part alike."""
    p, q, r = s.a(x).chunk(3, 1)
    return tail(s, torch.cat([r, q, p.relu()], 1))


@pattern({"a": 2, "b": 6})
def split_by_a_share(s, x):
    """A quarter and the rest: one channel and three go together."""
    h = s.a(x)
    c = h.shape[1]
    p, q = h.split([c // 4, c - c // 4], 1)
    return tail(s, torch.cat([q, p.relu()], 1))


@pattern({"a": 8, "b": 6}, c=conv(8, 8, 3, stride=2), weights=nn.Parameter(torch.ones(2)))
def weighted_fusion(s, x):
    h = s.a(x)
    w = s.weights.relu()
    w = w / (w.sum() + 1e-4)
    return tail(s, w[0] * h + w[1] * F.interpolate(s.c(h), scale_factor=2))


# --- slices ---------------------------------------------------------------------------------------


@pattern({"a": 4, "b": 6})
def slices_at_half(s, x):
    h = s.a(x)
    return tail(s, torch.cat([h[:, h.shape[1] // 2 :], h[:, : h.shape[1] // 2]], 1))


@pattern({"a": 4, "b": 6})
def slices_from_the_end(s, x):
    h = s.a(x)
    half = h.shape[1] // 2
    return tail(s, torch.cat([h[:, -half:], h[:, :-half].relu()], 1))


@pattern({"a": 3, "a#2": 5, "b": 6}, b=conv(3, 6), c=conv(5, 6), width=3, patched={"width": 2})
def slices_at_an_attribute(s, x):
    h = s.a(x)
    return s.head((s.b(h[:, : s.width]) * s.c(h[:, s.width :])).mean((2, 3)))


@pattern(
    {"a": 3, "a#2": 5, "d": 4, "b": 6},
    b=conv(12, 6),
    c=conv(8, 3),
    d=conv(8, 4),
    width=3,
    patched={"width": 2},
)
def dual_path(s, x):
    """The first three are a residual path, the others and what is added a dense one."""
    h = s.a(x)
    summed, kept = h[:, : s.width], h[:, s.width :]
    return tail(s, torch.cat([summed + s.c(h.relu()), kept, s.d(h)], 1))


@pattern({"a": 4, "b": 6})
def narrow_at_half(s, x):
    h = s.a(x)
    half = h.size(1) // 2
    return tail(s, torch.cat([h.narrow(1, 0, half).relu(), h.narrow(1, half, half)], 1))


@pattern({"a": 4, "b": 6}, refused={"a#2": Line("[:, :4]", "(4)")})
def slices_at_a_number(s, x):
    """What comes before the boundary stays, what comes after may go."""
    h = s.a(x)
    p = h[:, :4]
    return tail(s, torch.cat([h[:, 4:].relu(), p], 1))


@pattern({"a": 6, "b": 6}, refused={"a#2": Line("[:, -2:]")}, b=conv(10, 6))
def the_last_two_by_number(s, x):
    """What comes after a boundary counted from the end stays, what comes before may go."""
    h = s.a(x)
    return tail(s, torch.cat([h, h[:, -2:].relu()], 1))


@pattern({"a": 7, "b": 6}, refused={"a#2": Line("[:, :1]")})
def first_channel_as_a_gate(s, x):
    h = s.a(x)
    return tail(s, h * h[:, :1].sigmoid())


@pattern({"a": 7, "b": 6}, refused={"a#2": Line("h[:, 0]", "channel")})
def one_channel_by_its_number(s, x):
    """Channel 0 stays channel 0 whatever goes after it."""
    h = s.a(x)
    return tail(s, h * h[:, 0].sigmoid().unsqueeze(1))


@pattern({"a": 4, "b": 6})
def every_second_channel(s, x):
    """Pairs go together, so that what was even stays even."""
    h = s.a(x)
    return tail(s, torch.cat([h[:, ::2], h[:, 1::2].relu()], 1))


@pattern({"b": 6}, refused={"a": Line("split([3, 5]", "written into the code")})
def split_by_numbers(s, x):
    p, q = s.a(x).split([3, 5], 1)
    return tail(s, torch.cat([q, p.relu()], 1))


@pattern(
    {"a": 3, "a#2": 5, "b": 6},
    sizes=[3, 5],
    b=conv(3, 6),
    c=conv(5, 6),
    patched={"sizes[0]": 2, "sizes[1]": 3},
)
def split_by_a_list(s, x):
    p, q = s.a(x).split(s.sizes, 1)
    return s.head((s.b(p) * s.c(q)).mean((2, 3)))


@pattern({"b": 6}, refused={"a": "picked by their numbers"})
def channels_by_their_numbers(s, x):
    return tail(s, s.a(x)[:, [0, 2, 4, 6, 1, 3, 5, 7]])


@pattern({"b": 6}, refused={"a": "picked by"}, unsupported=("index_select",))
def channels_by_a_tensor_of_numbers(s, x):
    return tail(s, s.a(x).index_select(1, torch.tensor([3, 2, 1, 0, 4, 5, 6, 7])))


# --- assignment -----------------------------------------------------------------------------------


@pattern({"a": 2, "b": 6})
def temporal_shift(s, x):
    """Boundaries at a quarter and a half: one, one and two channels go together."""
    h = s.a(x)
    fold = h.shape[1] // 4
    y = torch.zeros_like(h)
    y[:-1, :fold] = h[1:, :fold]
    y[1:, fold : 2 * fold] = h[:-1, fold : 2 * fold]
    y[:, 2 * fold :] = h[:, 2 * fold :]
    return tail(s, y)


@pattern({"a": 4, "a#2": 4, "b": 6}, c=conv(3, 4))
def sum_into_the_first_channels(s, x):
    """The first channels of ``a`` go with those of ``c``, the others one by one."""
    h, y = s.a(x), s.c(x)
    h[:, : y.shape[1]] += y
    return tail(s, h.relu())


@pattern({"a": 5, "b": 6}, a=conv(3, 5), b=conv(10, 6), c=conv(3, 5))
def assignment_of_halves(s, x):
    p, q = s.a(x), s.c(x)
    n, c, height, width = p.shape
    y = p.new_empty(n, 2 * c, height, width)
    y[:, :c] = p
    y[:, c:] = q.relu()
    return tail(s, y)


@pattern({"a": 8, "b": 6}, b=conv(16, 6), c=conv(3, 8))
def interleaved_assignment(s, x):
    p, q = s.a(x), s.c(x)
    n, c, height, width = p.shape
    y = p.new_zeros(n, 2 * c, height, width)
    y[:, 0::2] = p
    y[:, 1::2] = q.relu()
    return tail(s, y)


@pattern({"a": 8, "b": 6})
def assignment_over_space(s, x):
    h = s.a(x).clone()
    h[:, :, 2:4] = 0
    h[..., 1::2] = h[..., ::2].relu()
    return tail(s, h)


@pattern({"a": 5, "b": 6}, refused={"a#2": Line("[:, 1:3] = 0")})
def assignment_by_numbers(s, x):
    """What comes before the last boundary stays."""
    h = s.a(x).relu()
    h[:, 1:3] = 0
    return tail(s, h)
