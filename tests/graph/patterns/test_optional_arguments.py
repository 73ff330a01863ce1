"""Arguments that operators take beside their inputs, and that change which channels go together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import deform_conv2d, roi_align

from pattern import TOKENS, Patterns, conv, steps, tail

pattern = Patterns()
PRODUCT = "product of activations"
ROOT = "attention divides by the root of their number"
REGIONS = torch.tensor([[0.0, 0, 0, 4, 4], [1, 2, 2, 7, 7]])


@pytest.mark.parametrize("case", pattern, ids=str)
def test_optional_arguments(case):
    case.check()


def tokens(exact=None, inexact=None, refused=None, **parts):
    """A pattern over five tokens of three features, ``q``, ``k`` and ``v`` make heads of them."""
    made = {name: nn.Linear(3, 24) for name in ("q", "k", "v")}
    return pattern(
        exact,
        inexact,
        refused,
        **{"inputs": TOKENS, **made, "a": nn.Identity(), "b": nn.Linear(24, 6), **parts},
    )


def heads(h, width=6):
    return h.view(*h.shape[:2], -1, width).transpose(1, 2)


def together(h):
    return h.transpose(1, 2).flatten(2)


# --- attention ------------------------------------------------------------------------------------

SLOPES = 2.0 ** -torch.arange(1.0, 5)[:, None, None]
FIXED = "it meets a fixed size in"


@tokens({"b": 6}, refused={"q": FIXED})
def a_mask_with_a_slope_for_every_head(s, x):
    bias = (SLOPES * torch.arange(5.0)).expand(4, 5, 5).to(x.dtype)
    q, k, v = heads(s.q(x)), heads(s.k(x)), heads(s.v(x))
    return steps(s, together(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))


@tokens({"b": 6}, refused={"q": FIXED})
def a_boolean_mask_of_all_heads(s, x):
    mask = torch.ones(2, 4, 5, 5, dtype=torch.bool).tril()
    q, k, v = heads(s.q(x)), heads(s.k(x)), heads(s.v(x))
    return steps(s, together(F.scaled_dot_product_attention(q, k, v, mask)))


@tokens({"q": 4, "b": 6})
def a_mask_that_all_heads_share(s, x):
    q, k, v = heads(s.q(x)), heads(s.k(x)), heads(s.v(x))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    return steps(s, together(F.scaled_dot_product_attention(q, k, v, mask)))


@tokens({"q": 4, "b": 6}, bias=nn.Linear(3, 4))
def a_mask_that_the_network_makes_for_each_head(s, x):
    """A head goes with what makes its mask: relative positions, as T5's and Swin's."""
    q, k, v = heads(s.q(x)), heads(s.k(x)), heads(s.v(x))
    mask = s.bias(x).transpose(1, 2)[..., None].expand(-1, -1, -1, 5)
    return steps(s, together(F.scaled_dot_product_attention(q, k, v, mask)))


@tokens({"q": 4, "b": 6}, q=nn.Linear(3, 48), b=nn.Linear(48, 6))
def queries_in_groups(s, x):
    """Two heads of queries share one of keys and values, and go with it."""
    q, k, v = heads(s.q(x)), heads(s.k(x)), heads(s.v(x))
    return steps(s, together(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))


@tokens({"q": 4, "b": 6}, q=nn.Linear(3, 48), b=nn.Linear(48, 6))
def queries_in_groups_by_repetition(s, x):
    q, k, v = heads(s.q(x)), heads(s.k(x)), heads(s.v(x))
    k, v = (h.repeat_interleave(2, 1) for h in (k, v))
    return steps(s, together(F.scaled_dot_product_attention(q, k, v)))


@tokens(
    {"v": 6, "b": 6},
    {"k": (6, ROOT)},
    {"latent": "attention runs over it"},
    latent=nn.Parameter(torch.rand(1, 2, 3) + 0.5),
)
def a_learnt_query_divided_by_the_root_of_its_width(s, x):
    """What the query's layer makes of parameters alone is a weight, which reads the keys."""
    q, k, v = (
        h.view(*h.shape[:2], 4, -1).transpose(1, 2)
        for h in (s.q(s.latent.expand(2, -1, -1)), s.k(x), s.v(x))
    )
    return steps(s, together(F.scaled_dot_product_attention(q, k, v)))


@tokens(
    {"k": 24, "v": 24, "b": 6}, q=nn.Identity(), latent=nn.Parameter(torch.rand(1, 1, 3, 24) + 0.5)
)
def a_learnt_query_with_a_scale_that_is_said(s, x):
    """Nothing changes with the width then: a channel of the keys goes with the query's."""
    q = s.latent.expand(2, -1, -1, -1)
    h = F.scaled_dot_product_attention(q, s.k(x)[:, None], s.v(x)[:, None], scale=0.2)
    return steps(s, h.squeeze(1))


@tokens(
    {"q": 2, "b": 6},
    k=nn.Linear(3, 12),
    v=nn.Linear(3, 12),
    many=4,
    few=2,
    patched={"many": 2, "few": 1},
)
def queries_in_groups_by_repetition_that_attributes_say(s, x):
    q = s.q(x).view(2, 5, s.many, 6).transpose(1, 2)
    k, v = (h.view(2, 5, s.few, 6).transpose(1, 2) for h in (s.k(x), s.v(x)))
    k, v = (h.repeat_interleave(s.many // s.few, 1) for h in (k, v))
    return steps(s, together(F.scaled_dot_product_attention(q, k, v)))


@tokens(
    {"k": 6, "v": 6, "b": 6},
    {},
    {"latent": "attention runs over it"},
    latent=nn.Parameter(torch.rand(1, 2, 3) + 0.5),
)
def a_query_with_a_bias_that_a_layer_makes_of_a_parameter(s, x):
    """Its weight and its bias are silenced."""
    q, k, v = (
        h.view(*h.shape[:2], 4, -1).transpose(1, 2)
        for h in (s.q(s.latent.expand(2, -1, -1)), s.k(x), s.v(x))
    )
    return steps(s, together(F.scaled_dot_product_attention(q, k, v, scale=0.3)))


@tokens(
    {"v": 24, "b": 6},
    {"k": (24, ROOT)},
    q=nn.Identity(),
    latent=nn.Parameter(torch.rand(1, 1, 3, 24) + 0.5),
)
def a_learnt_query_with_no_scale_said(s, x):
    q = s.latent.expand(2, -1, -1, -1)
    h = F.scaled_dot_product_attention(q, s.k(x)[:, None], s.v(x)[:, None])
    return steps(s, h.squeeze(1))


@tokens(
    {"q": 4, "b": 6},
    inputs=torch.randn(6, 5, 3),
    heads=4,
    patched={"heads": 2},
    mask=nn.Buffer(torch.rand(3, 5, 5)),
)
def a_mask_for_every_window(s, x):
    """Swin's: the windows, of which the model holds a mask each, merge with the heads."""
    q, k, v = (
        f(x).view(6, 5, s.heads, -1).transpose(1, 2).reshape(6 * s.heads, 5, 6)
        for f in (s.q, s.k, s.v)
    )
    scores = (q @ k.transpose(1, 2) * 0.4).view(-1, len(s.mask), s.heads, 5, 5)
    scores = (scores + s.mask[None, :, None]).view(-1, s.heads, 5, 5).softmax(-1)
    h = scores @ v.view(-1, s.heads, 5, 6)
    return steps(s, h.transpose(1, 2).reshape(6, 5, -1))


# --- others ---------------------------------------------------------------------------------------


@pattern(
    {"a": 4, "kernel": 8, "b": 6},
    refused={"offset": "it guides torchvision::deform_conv2d"},
    offset=conv(3, 2 * 2 * 9, 3),
    kernel=nn.Parameter(torch.randn(8, 8, 3, 3)),
)
def deformed_in_two_halves_of_the_channels(s, x):
    """Channels 0 to 3 are moved by other offsets than 4 to 7: both halves lose the same."""
    offset = s.offset(x) * 0.1
    return tail(s, deform_conv2d(s.a(x), offset, s.kernel, padding=1))


@pattern({"b": 6}, refused={"a": "a triangle is cut out of the channels"})
def two_above_the_diagonal(s, x):
    h = s.a(x).flatten(2)
    return s.head(s.b((h @ h.transpose(1, 2)).triu(2).unsqueeze(3)).mean((2, 3)))


@pattern({"b": 6}, {"a": (8, "random numbers are drawn")}, c=conv(3, 8))
def drawn_with_a_spread_of_their_own(s, x):
    torch.manual_seed(0)
    return tail(s, torch.normal(s.a(x), s.c(x).exp()))


@pattern(
    {"a": 8, "b": 6},
    refused={"table": "two channel dimensions merge"},
    table=nn.Embedding(4, 5),
    b=nn.Linear(40, 6),
)
def a_table_looked_up_for_every_channel(s, x):
    """Each channel is a number of a row (vector quantisation): its rows go with it."""
    numbers = s.a(x).mean((2, 3)).clamp(0, 3).long()
    return s.head(s.b(s.table(numbers).flatten(1)).relu())


@pattern({"b": 6}, refused={"a": "its bytes are read as other numbers"}, b=nn.Linear(32, 6))
def bytes_read_as_other_numbers(s, x):
    h = s.a(x).mean((2, 3)).float().view(torch.uint8)
    return s.head(s.b(h.to(x.dtype) / 255))


@pattern({"b": 6}, refused={"a": "netslim has no rule for as_strided"}, unsupported=("as_strided",))
def strides_that_turn_the_matrix(s, x):
    h = s.a(x).flatten(2)[..., :8].contiguous()
    return s.head(s.b(h.as_strided(h.shape, (64, 1, 8)).unsqueeze(3)).mean((2, 3)))


@pattern({"a": 8, "b": 6})
def the_largest_written_into_given_tensors(s, x):
    values, places = torch.empty(0), torch.empty(0, dtype=torch.long)
    h = s.a(x).flatten(2)
    values, places = values.to(h), places
    torch.max(h, 2, out=(values, places))
    return s.head(s.b(values[:, :, None, None]).mean((2, 3)))


@pattern({"a": 8, "b": 6})
def regions_of_maps(s, x):
    return s.head(s.b(roi_align(s.a(x), REGIONS.to(x), 3)).mean((2, 3)))


@pattern({"b": 6}, refused={"a": "takes regions of it"}, b=conv(3, 6))
def regions_over_the_channels(s, x):
    h = roi_align(s.a(x).transpose(1, 2)[:, :3], REGIONS.to(x), 3)
    return s.head(s.b(h).mean((2, 3)))


@pattern({"b": 6}, {"a": (8, "a distance over the channels")}, b=nn.Linear(5, 6))
def distances_for_every_picture(s, x):
    h = s.a(x).flatten(2).transpose(1, 2)
    return s.head(s.b(torch.cdist(h, h[:, :5])).relu().mean(1))


@pattern({"a": 8, "b": 6})
def distances_over_places_for_every_channel(s, x):
    """The channels stand in front: each has distances of its own."""
    h = s.a(x).flatten(2)[..., None]
    return tail(s, torch.cdist(h, h[:, :, :5]))
