"""Changes of shape and order: flatten, view, permute, shuffle, roll, flip, repeat, unfold, products
by einsum.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pattern import TOKENS, Line, Patterns, conv, steps, tail

pattern = Patterns()
PARAMETER = nn.Parameter(torch.randn(8, 6, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("case", pattern, ids=str)
def test_reshaping(case):
    case.check()


# --- flatten --------------------------------------------------------------------------------------


@pattern({"a": 8}, head=nn.Linear(8 * 64, 2))
def flatten(s, x):
    return s.head(s.a(x).flatten(1))


@pattern({"a": 8}, head=nn.Linear(8 * 4, 2), pool=nn.AdaptiveAvgPool2d(2), flat=nn.Flatten())
def flatten_after_adaptive_pooling(s, x):
    return s.head(s.flat(s.pool(s.a(x))))


@pattern({"a": 8}, head=nn.Linear(8 * 64, 2))
def flatten_with_channels_last(s, x):
    return s.head(s.a(x).permute(0, 2, 3, 1).flatten(1))


@pattern({"a": 8, "b": 6}, b=nn.Linear(8 * 8, 6), head=nn.Linear(6 * 8, 2))
def flatten_rows(s, x):
    """Channels and columns together, rows apart, then all together."""
    h = s.a(x).transpose(1, 2).flatten(2)
    return s.head(s.b(h).relu().flatten(1))


@pattern({"a": 8}, head=nn.Linear(8 * 64, 2))
def view_with_the_rest(s, x):
    return s.head(s.a(x).view(x.size(0), -1))


@pattern({"a": 8}, head=nn.Linear(8 * 64, 2))
def view_by_a_product_of_sizes(s, x):
    h = s.a(x)
    features = 1
    for size in h.size()[1:]:
        features *= size
    return s.head(h.view(-1, features))


@pattern(refused={"a": Line("view(-1, 512)", "written into the code")}, head=nn.Linear(8 * 64, 2))
def view_by_a_number(s, x):
    return s.head(s.a(x).view(-1, 512))


@pattern({"a": 8}, head=nn.Linear(8, 2))
def squeeze_all(s, x):
    return s.head(F.adaptive_max_pool2d(s.a(x), 1).squeeze())


@pattern({"a": 8}, head=nn.Linear(8, 2))
def squeeze_and_unsqueeze(s, x):
    h = s.a(x).mean((-2, -1), keepdim=True).squeeze(-1).unsqueeze(1).unsqueeze(-2)
    return s.head(h[:, 0, :, 0, 0])


# --- out of a vector ------------------------------------------------------------------------------


@pattern({"fc": 8, "b": 6}, inputs=TOKENS[:, 0], fc=nn.Linear(3, 8 * 4))
def unflatten_with_the_rest(s, x):
    return tail(s, s.fc(x).unflatten(1, (-1, 2, 2)))


@pattern(
    {"fc": 8, "b": 6}, inputs=TOKENS[:, 0], fc=nn.Linear(3, 8 * 4), maps=nn.Unflatten(1, (8, 2, 2))
)
def unflatten_module(s, x):
    return tail(s, s.maps(s.fc(x)))


@pattern(
    {"fc": 8, "b": 6}, inputs=TOKENS[:, 0], fc=nn.Linear(3, 8 * 4), width=8, patched={"width": 4}
)
def view_of_a_vector_by_an_attribute(s, x):
    return tail(s, s.fc(x).view(-1, s.width, 2, 2))


@pattern(
    {"b": 6},
    refused={"fc": Line("view(-1, 8, 2, 2)", "written into the code")},
    inputs=TOKENS[:, 0],
    fc=nn.Linear(3, 32),
)
def view_of_a_vector_by_a_number(s, x):
    return tail(s, s.fc(x).view(-1, 8, 2, 2))


@pattern(
    {"fc": 4, "b": 6},
    inputs=TOKENS[:, 0],
    fc=nn.Linear(3, 4 * 4),
    b=nn.Conv1d(4, 6, 1),
    head=nn.Linear(6 * 4, 2),
)
def view_with_channels_last(s, x):
    """Entry ``4 p + c`` of the vector is channel ``c`` at place ``p``."""
    return s.head(s.b(s.fc(x).view(len(x), 4, -1).transpose(1, 2)).relu().flatten(1))


# --- channels in two dimensions -------------------------------------------------------------------


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def view_groups_first(s, x):
    h = s.a(x)
    n, _, height, width = h.shape
    return tail(s, h.view(n, 2, -1, height, width).sum(1))  # channel i goes with i + 4


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def view_groups_last(s, x):
    h = s.a(x)
    n, _, height, width = h.shape
    return tail(s, h.view(n, -1, 2, height, width).sum(2))  # channel 2 i goes with 2 i + 1


@pattern({"a": 4, "b": 6})
def channel_shuffle_by_hand(s, x):
    h = s.a(x).relu()
    n, c, height, width = h.size()
    h = h.view(n, 2, c // 2, height, width).transpose(1, 2).contiguous()
    return tail(s, h.view(n, -1, height, width))


@pattern({"a": 4, "b": 6}, groups=2)
def channel_shuffle_by_groups(s, x):
    h = s.a(x)
    n, c, height, width = h.size()
    return tail(
        s,
        h.reshape(n, s.groups, c // s.groups, height, width)
        .permute(0, 2, 1, 3, 4)
        .reshape(h.shape),
    )


@pattern({"b": 6}, refused={"a": Line("view(2, 2, 4", "written into the code")})
def channel_shuffle_by_numbers(s, x):
    h = s.a(x).view(2, 2, 4, 8, 8).transpose(1, 2)
    return tail(s, h.reshape(2, 8, 8, 8))


@pattern({"a": 4, "b": 6}, shuffle=nn.ChannelShuffle(2))
def channel_shuffle_module(s, x):
    return tail(s, s.shuffle(s.a(x)))


@pattern({"a": 4, "inner": 5, "b": 6}, inner=conv(4, 5), outer=conv(5, 4))
def shuffle_unit(s, x):
    p, q = s.a(x).chunk(2, dim=1)
    h = torch.cat((p, s.outer(s.inner(q).relu())), dim=1)
    n, c, height, width = h.shape
    h = h.view(n, 2, c // 2, height, width).transpose(1, 2)
    return tail(s, h.reshape(n, c, height, width))


@pattern({"a": 2, "b": 6}, b=conv(2, 6), shuffle=nn.PixelShuffle(2))
def pixel_shuffle(s, x):
    return tail(s, s.shuffle(s.a(x)))


@pattern({"a": 8, "b": 6}, b=conv(32, 6), shuffle=nn.PixelUnshuffle(2))
def pixel_unshuffle(s, x):
    return tail(s, s.shuffle(s.a(x)))


@pattern({"a": 2, "b": 6}, b=conv(2, 6))
def depth_to_space(s, x):
    """Channel ``2 (2 i + j) + c`` becomes place (i, j) of channel ``c``."""
    h = s.a(x)
    n, c, height, width = h.shape
    h = h.view(n, 2, 2, c // 4, height, width).permute(0, 3, 4, 1, 5, 2)
    return tail(s, h.reshape(n, c // 4, height * 2, width * 2).relu())


@pattern({"a": 8, "b": 6}, b=conv(32, 6))
def space_to_depth(s, x):
    h = s.a(x)
    n, c, height, width = h.shape
    h = h.view(n, c, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return tail(s, h.reshape(n, c * 4, height // 2, width // 2))


@pattern({"a": 8, "b": 6}, b=conv(32, 6))
def focus(s, x):
    h = s.a(x)
    corners = [h[..., ::2, ::2], h[..., 1::2, ::2], h[..., ::2, 1::2], h[..., 1::2, 1::2]]
    return tail(s, torch.cat(corners, 1))


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def unflatten_and_fold(s, x):
    return tail(s, s.a(x).unflatten(1, (2, -1)).prod(1))


@pattern({"b": 6}, refused={"a": Line("unflatten", "written into the code")}, b=conv(4, 6))
def unflatten_by_numbers(s, x):
    return tail(s, s.a(x).unflatten(1, (2, 4)).prod(1))


@pattern(
    {"b": 6}, refused={"a": Line("flatten(1)", "two channel dimensions merge")}, b=nn.Linear(64, 6)
)
def channels_by_channels(s, x):
    h = s.a(x).flatten(2)
    return s.head(s.b(torch.bmm(h, h.transpose(1, 2)).flatten(1)))


# --- order ----------------------------------------------------------------------------------------


@pattern({"a": 8, "b": 6})
def roll_over_space(s, x):
    return tail(s, torch.roll(s.a(x), (1, 2), (2, 3)) * s.a(x))


@pattern({"a": 7, "b": 6}, refused={"a#2": Line("torch.roll", "rolled")})
def roll_by_a_number(s, x):
    """The channel that comes round to the front stays the last; the others may go."""
    return tail(s, torch.roll(s.a(x), 1, 1).relu())


@pattern({"a": 4, "b": 6})
def roll_by_half(s, x):
    h = s.a(x)
    return tail(s, h * torch.roll(h, h.shape[1] // 2, 1))


@pattern({"a": 8, "b": 6})
def flip_channels(s, x):
    return tail(s, s.a(x).flip(1).relu())


@pattern({"a": 4, "b": 6})
def flip_and_add(s, x):
    h = s.a(x)
    return tail(s, h.relu() + torch.flip(h, (1, 3)))  # channel i goes with 7 - i


@pattern({"a": 8, "b": 6})
def turned_pictures(s, x):
    h = s.a(x)
    return tail(s, h.relu() + torch.rot90(h, 1, (2, 3)) + h.fliplr().fliplr().transpose(2, 3))


@pattern({"a": 8, "b": 6}, b=conv(16, 6))
def repeat_channels(s, x):
    return tail(s, s.a(x).repeat(1, 2, 1, 1))


@pattern({"a": 8, "b": 6}, b=conv(16, 6))
def tile_channels(s, x):
    return tail(s, torch.tile(s.a(x), (2, 1, 1)))


@pattern({"a": 8, "b": 6}, b=conv(16, 6))
def repeat_interleave_channels(s, x):
    return tail(s, s.a(x).repeat_interleave(2, 1))


@pattern({"a": 8, "b": 6}, b=conv(16, 6))
def each_channel_twice(s, x):
    h = s.a(x)
    n, c, height, width = h.shape
    return tail(s, h.unsqueeze(2).expand(-1, -1, 2, -1, -1).reshape(n, c * 2, height, width))


@pattern({"a": 8, "b": 6})
def expand_over_space(s, x):
    h = s.a(x)
    pooled = h.mean((2, 3), keepdim=True)
    return tail(s, h + pooled.relu().expand(-1, -1, 8, 8) - pooled.expand_as(h))


@pattern({"b": 6}, refused={"a": Line("expand(2, 8,", "written into the code")})
def expand_by_numbers(s, x):
    return tail(s, s.a(x).mean((2, 3), keepdim=True).expand(2, 8, 4, 4))


@pattern({"a": 8, "b": 6}, c=conv(8, 1))
def one_map_expanded_to_all(s, x):
    h = s.a(x)
    return tail(s, h * s.c(h).sigmoid().expand(-1, h.shape[1], -1, -1))


# --- channels last, tokens ------------------------------------------------------------------------


@pattern({"a": 8, "fc": 16, "b": 6}, fc=nn.Linear(8, 16), out=nn.Linear(16, 8))
def inverted_bottleneck_with_channels_last(s, x):
    h = s.a(x)
    y = s.out(F.gelu(s.fc(h.permute(0, 2, 3, 1))))
    return tail(s, h + y.permute(0, 3, 1, 2))


@pattern({"a": 8, "b": 6}, b=nn.Linear(8, 6))
def maps_to_tokens(s, x):
    return steps(s, s.a(x).flatten(2).transpose(1, 2))


@pattern({"a": 8, "b": 6}, c=nn.Linear(8, 8))
def tokens_to_maps(s, x):
    h = s.a(x)
    n, c, height, width = h.shape
    tokens = s.c(h.flatten(2).mT).movedim(1, 2)
    return tail(s, h + tokens.view(n, c, height, width))


@pattern(
    {"a": 8, "b": 6},
    b=nn.Linear(8, 6),
    token=nn.Parameter(torch.ones(1, 1, 8)),
    place=nn.Parameter(torch.ones(1, 65, 8)),
)
def class_token_and_positions(s, x):
    tokens = s.a(x).flatten(2).swapaxes(1, 2)
    tokens = torch.cat([s.token.expand(len(x), -1, -1), tokens], 1) + s.place
    return steps(s, tokens)


@pattern({"a": 8, "b": 6}, b=nn.Linear(32, 6))
def patch_merging(s, x):
    h = s.a(x).permute(0, 2, 3, 1)
    h = torch.cat([h[:, 0::2, 0::2], h[:, 1::2, 0::2], h[:, 0::2, 1::2], h[:, 1::2, 1::2]], -1)
    return s.head(s.b(h).relu().mean((1, 2)))


@pattern({"a": 8, "fc": 8, "b": 6}, fc=nn.Linear(8, 8), window=4)
def windows(s, x):
    h = s.a(x).permute(0, 2, 3, 1)
    n, height, width, c = h.shape
    h = h.view(n, height // s.window, s.window, width // s.window, s.window, c).permute(
        0, 1, 3, 2, 4, 5
    )
    h = s.fc(h.reshape(-1, s.window * s.window, c)).relu()
    h = h.view(n, height // s.window, width // s.window, s.window, s.window, -1).permute(
        0, 1, 3, 2, 4, 5
    )
    return tail(s, h.reshape(n, height, width, -1).permute(0, 3, 1, 2))


@pattern(
    {"a": 8, "mix": 12, "fc": 10, "b": 6},
    refused={"unmix": "fixed size in add"},
    b=nn.Linear(8, 6),
    mix=nn.Linear(64, 12),
    unmix=nn.Linear(12, 64),
    fc=nn.Linear(8, 10),
    out=nn.Linear(10, 8),
)
def mlp_mixer(s, x):
    tokens = s.a(x).flatten(2).transpose(1, 2)
    tokens = tokens + s.unmix(F.gelu(s.mix(tokens.transpose(1, 2)))).transpose(1, 2)
    return steps(s, tokens + s.out(F.gelu(s.fc(tokens))))


@pattern(
    {"fc": 4, "b": 6},
    refused={"gate": "fixed size in mul"},
    inputs=TOKENS,
    fc=nn.Linear(3, 8),
    gate=nn.Linear(5, 5),
    b=nn.Linear(4, 6),
)
def spatial_gating(s, x):
    p, q = F.gelu(s.fc(x)).chunk(2, -1)
    return steps(s, p * s.gate(q.transpose(1, 2)).transpose(1, 2))


# --- windows over space ---------------------------------------------------------------------------


@pattern({"a": 8, "b": 6}, b=nn.Linear(72, 6))
def im2col(s, x):
    return steps(s, F.unfold(s.a(x), 3, padding=1).transpose(1, 2))


@pattern({"a": 8, "b": 6})
def col2im(s, x):
    patches = F.unfold(s.a(x), 2, stride=2)
    return tail(s, F.fold(patches.relu(), (8, 8), 2, stride=2))


@pattern({"a": 8, "b": 6}, b=conv(32, 6))
def sliding_windows(s, x):
    h = s.a(x).unfold(2, 2, 2).unfold(3, 2, 2)
    n, c, height, width, *_ = h.shape
    return tail(s, h.permute(0, 1, 4, 5, 2, 3).reshape(n, c * 4, height, width))


@pattern(
    {"a": 4, "r": 5, "b": 6},
    refused={"span": "fixed size in mul"},
    r=conv(8, 5),
    span=conv(5, 18),
    groups=2,
)
def involution(s, x):
    """Two groups of channels, each with a kernel of its own at every place."""
    h = s.a(x)
    n, c, height, width = h.shape
    kernel = s.span(s.r(h).relu()).view(n, s.groups, 9, height, width).unsqueeze(2)
    patches = F.unfold(h, 3, padding=1).view(n, s.groups, c // s.groups, 9, height, width)
    return tail(s, (kernel * patches).sum(3).view(n, c, height, width))


# --- products -------------------------------------------------------------------------------------


@pattern({"a": 8, "w": 6}, w=PARAMETER, b=nn.Identity())
def einsum_with_a_weight(s, x):
    return tail(s, torch.einsum("nchw,co->nohw", s.a(x), s.w))


@pattern({"a": 8, "b": 6}, gate=nn.Linear(8, 8))
def einsum_as_a_gate(s, x):
    h = s.a(x)
    return tail(s, torch.einsum("nchw,nc->nchw", h, s.gate(h.mean((2, 3))).sigmoid()))


@pattern({"a": 8, "b": 6}, {"c": (4, "mean over the channels")}, b=nn.Linear(8, 6), c=conv(8, 4))
def einsum_over_space(s, x):
    """Channel by channel correlations of two branches; both stay dimensions of their own, one is
    averaged over.
    """
    h = s.a(x)
    scores = torch.einsum("nchw,nkhw->nkc", h, s.c(h).relu())
    return s.head((s.b(scores).relu()).mean(1))


@pattern({"a": 8, "w": 6}, inputs=TOKENS, a=nn.Linear(3, 8), b=nn.Identity(), w=PARAMETER)
def batched_product_with_a_weight(s, x):
    return steps(s, torch.bmm(s.a(x), s.w.expand(len(x), -1, -1)))


@pattern(
    {"a": 8, "b": 6},
    {"mix": (4, "mean over the channels")},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Linear(8, 6),
    mix=nn.Parameter(torch.ones(4, 5)),
)
def product_over_steps(s, x):
    return steps(s, s.mix @ s.a(x))


@pattern(
    {"a": 8, "b": 6},
    inputs=TOKENS,
    a=nn.Linear(3, 8),
    b=nn.Linear(5, 6),
    c=nn.Linear(3, 8),
)
def product_of_activations(s, x):
    return steps(s, s.a(x) @ s.c(x).transpose(1, 2))
