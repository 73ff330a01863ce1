"""Sizes in the code: read from a shape, kept in an attribute, computed, or written down."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netslim import prune, trace
from netslim.surgery.plan_of_units import plan_keeping
from pattern import TOKENS, Line, Patterns, conv, steps, tail

pattern = Patterns()
WIDTH = 8
WRITTEN = "written into the code"


@pytest.mark.parametrize("case", pattern, ids=str)
def test_sizes(case):
    case.check()


def flat(h):
    """Features of the channels alone."""
    return h.mean((2, 3))


VECTOR = {"head": nn.Linear(8, 2)}  # patterns that view the eight means of ``a``


# --- read from a shape ----------------------------------------------------------------------------


@pattern({"a": 8}, **VECTOR)
def shape_by_number(s, x):
    h = flat(s.a(x))
    return s.head(h.view(h.shape[0], h.shape[1]))


@pattern({"a": 8}, **VECTOR)
def size_by_name(s, x):
    h = s.a(x)
    return s.head(flat(h).reshape(-1, h.size(dim=1)))


@pattern({"a": 8}, head=nn.Linear(8 * 64, 2))
def shape_by_slices(s, x):
    h = s.a(x)
    return s.head(h.view(*h.shape[:2], -1).flatten(1).view((*h.shape[:1], -1)))


@pattern({"a": 8}, head=nn.Linear(8 * 64, 2))
def product_of_a_shape(s, x):
    h = s.a(x)
    return s.head(h.view(len(h), math.prod(h.shape[1:])))


@pattern({"a": 8}, head=nn.Linear(8 * 64, 2))
def number_of_elements(s, x):
    h = s.a(x)
    return s.head(h.reshape(h.size(0), h.numel() // h.size(0)))


@pattern({"a": 8}, head=nn.Linear(8 * 64, 2))
def number_of_elements_of_one_picture(s, x):
    h = s.a(x)
    return s.head(h.reshape(-1, h[0].numel()))


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def half_of_a_shape(s, x):
    h = s.a(x)
    return tail(s, h[:, : h.shape[1] // 2] + h[:, h.shape[1] // 2 :])


@pattern({"a": 8, "b": 6}, b=conv(16, 6))
def twice_a_shape(s, x):
    h = s.a(x)
    n, c, height, width = h.shape
    return tail(s, torch.stack([h, h.relu()], 1).view(n, c * 2, height, width))


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def shapes_by_divmod(s, x):
    h = s.a(x)
    n, c, height, width = h.shape
    half, rest = divmod(c, 2)
    return tail(s, h.view(n, 2, half + rest, height, width).amax(1))


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def shape_of_another_tensor(s, x):
    """``c`` is viewed by the width of ``a``, so they go together."""
    h = s.a(x)
    y = s.c(h).flatten(2)
    return tail(s, y.view(y.shape[0], h.shape[1], *h.shape[2:]).relu())


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def viewed_as_another_tensor(s, x):
    h = s.a(x)
    return tail(s, s.c(h).flatten(2).view_as(h).relu())


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def reshaped_as_another_tensor(s, x):
    h = s.a(x)
    return tail(s, s.c(h).flatten(2).reshape_as(other=h).relu())


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def expanded_as_another_tensor(s, x):
    h = s.a(x)
    return tail(s, s.c(h).mean((2, 3), keepdim=True).expand_as(h))


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def broadcast_with_another_tensor(s, x):
    h = s.a(x)
    means, maps = torch.broadcast_tensors(s.c(h).mean((2, 3), keepdim=True), h)
    return tail(s, torch.cat([means[:1], maps[1:]]))


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def summed_to_the_size_of_another_tensor(s, x):
    h = s.a(x)
    return tail(s, s.c(h).sum_to_size(h.shape[1], 1, 1) + h)


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def narrowed_to_the_size_of_another_tensor(s, x):
    h = s.a(x)
    return tail(s, s.c(h).narrow(1, 0, h.shape[1]))


@pattern({"b": 6}, refused={"a": WRITTEN}, a=conv(3, 3), b=conv(3, 6))
def viewed_as_the_input(s, x):
    return s.head(s.b(s.a(x).flatten(2).view_as(x)).relu().mean((2, 3)))


@pattern({"a": 8}, **VECTOR)
def shape_of_a_weight(s, x):
    return s.head(flat(s.a(x)).view(-1, s.head.weight.shape[1]))


@pattern({"a": 8}, **VECTOR)
def smaller_of_two_sizes(s, x):
    h = flat(s.a(x))
    return s.head(h.view(-1, min(h.shape[1], 1000)))


@pattern({"b": 6}, refused={"a": Line("int(h.shape[1] * 0.5)")})
def half_by_a_float(s, x):
    """A fraction of a size is a plain number by the time it is used."""
    h = s.a(x)
    p, q = h.split(int(h.shape[1] * 0.5), 1)
    return tail(s, torch.cat([q, p.relu()], 1))


@pattern({"b": 6}, refused={"a": Line("round")})
def boundary_that_is_rounded(s, x):
    """It would move if a channel behind it went."""
    h = s.a(x)
    return tail(
        s, torch.cat([h[:, round(h.shape[1] / 2) :], h[:, : round(h.shape[1] / 2)].relu()], 1)
    )


@pattern({"b": 6}, refused={"a": Line("int(", "int takes their number")})
def boundary_made_a_plain_number(s, x):
    h = s.a(x)
    p, q = h.tensor_split([int(h.shape[1]) // 2], 1)
    return tail(s, torch.cat([q, p.relu()], 1))


@pattern({"a": 8, "b": 6})
def plain_number_in_a_view(s, x):
    h = s.a(x)
    c = int(h.shape[1])
    return tail(s, h.view(-1, c, 64).view(-1, c, 4, 16))


@pattern({"b": 6}, refused={"a": Line("c = int(", "int takes their number")})
def plain_number_among_equal_ones(s, x):
    """Nobody knows which of them stands for the channels: here it is the one in digits."""
    h = s.a(x)
    c = int(h.shape[1])
    return tail(s, h.view(-1, 8, c, 8))


@pattern({"a": 8, "b": 8}, b=conv(8, 8), head=nn.Linear(8, 2))
def plain_numbers_of_two_layers_as_wide(s, x):
    h = s.a(x)
    c = int(h.shape[1])
    h = s.b(h.view(-1, c, 4, 16))
    return s.head(h.view(-1, int(h.shape[1]), 64).relu().mean(2))


@pattern(
    {}, refused={"a": Line("c = int("), "b": Line("d = int(")}, b=conv(8, 8), head=nn.Linear(8, 2)
)
def plain_number_in_the_place_of_another(s, x):
    h = s.a(x)
    c = int(h.shape[1])
    h = s.b(h)
    d = int(h.shape[1])
    return s.head(h.view(-1, c, 64).relu().mean(2) + d - d)


class NormalisedByAPlainNumber(nn.Module):
    """As SwinUNETR normalises."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.a(x)
        c = int(h.shape[1])
        h = F.layer_norm(h.permute(0, 2, 3, 1), [c]).permute(0, 3, 1, 2)
        return tail(self, F.group_norm(h, int(h.size(1))))


pattern({"a": 8, "b": 6})(NormalisedByAPlainNumber)


@pattern({"a": 8}, width=8, patched={"width": 4}, **VECTOR)
def attribute_made_a_plain_number(s, x):
    return s.head(flat(s.a(x)).view(-1, int(s.width)))


@pattern(
    {},
    refused={"a": Line("c, d = int("), "b": Line("c, d = int(")},
    b=conv(3, 8),
    head=nn.Linear(8, 2),
    other=nn.Linear(8, 2),
)
def plain_numbers_that_change_places(s, x):
    p, q = s.a(x), s.b(x)
    c, d = int(p.shape[1]), int(q.shape[1])
    h = (q.unsqueeze(2) * p.unsqueeze(1)).view(-1, c, d, 64)  # it is (n, d, c)
    h = (h * h.mean((2, 3), keepdim=True)).view(-1, d, c, 64).mean(3)
    return s.head(h.sum(1)) + s.other(h.sum(2))


class EachTheNumberOfAnother(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList([conv(3, 4) for _ in range(6)])
        self.then = nn.ModuleList([conv(4, 2) for _ in range(6)])

    def forward(self, x):
        found = [layer(x) for layer in self.first]
        numbers = [int(h.shape[1]) for h in found]
        return sum(
            layer(h.view(-1, numbers[(i + 3) % 6], 64).softmax(-1).view_as(h))
            for i, (layer, h) in enumerate(zip(self.then, found, strict=True))
        )


pattern({}, refused={f"first.{i}": Line("int(") for i in range(6)}, outputs=("then.0",))(
    EachTheNumberOfAnother
)


@pattern({"b": 6}, refused={"a": Line("split([8]", WRITTEN)})
def list_of_one_part(s, x):
    return tail(s, s.a(x).split([8], 1)[0])


@pattern({"a": 8, "b": 6})
def list_of_one_part_that_is_read(s, x):
    h = s.a(x)
    return tail(s, h.split(8, 1)[0] + h.split([h.shape[1]], 1)[0])


@pattern({"b": 6}, refused={"a": Line("view(8, -1)", WRITTEN)})
def number_within_a_mapped_function(s, x):
    h = s.a(x)
    return tail(s, torch.vmap(lambda t: t.view(8, -1).softmax(-1).view_as(t))(h))


@pattern({"b": 6}, refused={"a": Line("expand(8", WRITTEN)})
def number_of_copies_within_a_mapped_function(s, x):
    return tail(s, torch.vmap(lambda t: t.expand(8, 8, 8) * 2)(s.a(x)))


@pattern({"a": 8, "b": 6})
def sizes_of_places_within_mapped_functions(s, x):
    h = torch.vmap(lambda t: t.view(-1, 64).softmax(-1).view(-1, 8, 8))(s.a(x))
    return tail(s, torch.vmap(torch.vmap(lambda t: t.expand(8, 8) * 2))(h))


@pattern({"b": 6}, refused={"a": Line("as_strided(", "as_strided takes sizes and strides")})
def the_same_sizes_and_strides(s, x):
    return tail(s, s.a(x).as_strided((len(x), 8, 8, 8), (512, 64, 8, 1)))


@pattern({"b": 6}, refused={"a": Line("c = int(", "int takes their number")})
def plain_number_that_is_counted_to(s, x):
    h = s.a(x)
    c = int(h.shape[1])
    return tail(s, h.view(-1, c, 64).view(-1, c, 8, 8) * sum(0.1 for _ in range(c)))


@pattern({"b": 6}, refused={"a": Line("c = int(", "int takes their number")})
def plain_number_that_decides(s, x):
    h = s.a(x)
    c = int(h.shape[1])
    return tail(s, h * 2 if c > 5 else h)


@pattern({"b": 6}, refused={"a": Line("c = int(", "int takes their number")})
def plain_number_as_a_value(s, x):
    h = s.a(x)
    c = int(h.shape[1])
    return tail(s, h.view(-1, c, 8, 8) * c**-0.5)


@pattern({"b": 6}, refused={"a": Line("c = int(", "int takes their number")})
def plain_number_beside_one_in_digits(s, x):
    h = s.a(x)
    c = int(h.shape[1])
    return tail(s, h.view(-1, c, 64).view(-1, 8, 8, 8))


@pattern({}, refused={"a": Line("c = int(", "int takes their number")}, head=nn.Linear(8, 2))
def plain_number_of_what_is_not_exact(s, x):
    h = s.a(x)
    c = int(h.shape[1])
    return s.head(h.softmax(1).view(-1, c, 64).mean(2))


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def half_by_a_shift(s, x):
    """Channel i of the first half goes with channel i of the second, as for ``// 2``."""
    h = s.a(x)
    return tail(s, h[:, : h.shape[1] >> 1] * h[:, h.shape[1] >> 1 :])


@pattern({"b": 6}, refused={"a": Line("7.5", "comparison")})
def size_compared_with_a_float(s, x):
    h = s.a(x)
    return tail(s, h * 2 if h.shape[1] > 7.5 else h)


@pattern({"b": 6}, refused={"a": Line("3.5", "comparison")})
def fraction_of_a_size_compared(s, x):
    h = s.a(x)
    return tail(s, h * 2 if h.shape[1] / 2 > 3.5 else h)


@pattern({"b": 6}, refused={"a": Line("len(", "len takes their number")})
def length_of_channels(s, x):
    h = s.a(x).transpose(0, 1)
    return tail(s, (h * len(h)).transpose(0, 1))


@pattern({"b": 6}, {"a": (8, "used as a value")})
def shape_as_a_tensor(s, x):
    h = s.a(x)
    return tail(s, h / torch.tensor(h.shape).prod())


# --- kept in an attribute -------------------------------------------------------------------------


@pattern({"a": 8}, width=8, patched={"width": 4}, **VECTOR)
def attribute(s, x):
    return s.head(flat(s.a(x)).view(-1, s.width))


@pattern({"a": 8}, **VECTOR)
def attribute_of_a_layer(s, x):
    return s.head(flat(s.a(x)).view(-1, s.a.out_channels).reshape(-1, s.head.in_features))


@pattern({"a": 8, "b": 6}, sizes=(8, 6), patched={"sizes[0]": 4, "sizes[1]": 3})
def attribute_in_a_tuple(s, x):
    h = s.a(x).view(-1, s.sizes[0], 8, 8)
    return tail(s, h) + s.head(flat(s.b(h)).view(-1, s.sizes[1]))


@pattern({"a": 8}, sizes=[8, 4], patched={"sizes[0]": 4}, **VECTOR)
def attribute_in_a_list(s, x):
    return s.head(flat(s.a(x)).view(-1, s.sizes[0]))


@pattern({"a": 8}, config={"width": 8, "depth": 2}, patched={"config['width']": 4}, **VECTOR)
def attribute_in_a_dictionary(s, x):
    return s.head(flat(s.a(x)).view(-1, s.config["width"]))


@pattern({"a": 8}, config={"stages": [4, 8]}, patched={"config['stages'][1]": 4}, **VECTOR)
def attribute_in_a_list_in_a_dictionary(s, x):
    return s.head(flat(s.a(x)).view(-1, s.config["stages"][-1]))


@pattern({"a": 4, "b": 6}, width=8, patched={"width": 4}, b=conv(4, 6))
def half_of_an_attribute(s, x):
    p, q = s.a(x).split(s.width // 2, 1)
    return tail(s, p * q.sigmoid())


@pattern({"b": 6}, refused={"a": Line("2 * s.width", "cannot follow")}, width=4)
def twice_an_attribute(s, x):
    """Twice a whole number is even; channels go one by one."""
    return tail(s, s.a(x).view(-1, 2 * s.width, 8, 8))


@pattern(
    {"a": 2, "b": 6},
    inputs=TOKENS,
    heads=2,
    head_dim=4,
    patched={"heads": 1},
    a=nn.Linear(3, 8),
    b=nn.Linear(8, 6),
)
def product_of_attributes(s, x):
    h = s.a(x).view(2, 5, s.heads, s.head_dim).transpose(1, 2).relu()
    return steps(s, h.transpose(1, 2).reshape(2, 5, s.heads * s.head_dim))


@pattern({"a": 8}, b=conv(3, 8), head=nn.Linear(16, 2), width=8, patched={"width": 4})
def attribute_of_two_layers(s, x):
    """One number for both, so they go together."""
    p, q = flat(s.a(x)).view(-1, s.width), flat(s.b(x)).view(-1, s.width)
    return s.head(torch.cat([p, q], 1))


@pattern(refused={"a": Line("view(-1, s.width, s.width")}, width=8, head=nn.Linear(8, 2))
def attribute_of_channels_and_space(s, x):
    """One number for what may shrink and what may not."""
    return s.head(s.a(x).view(-1, s.width, s.width, 8).mean((2, 3)))


@pattern({"b": 6}, refused={"a": "width"}, width=8)
def attribute_of_channels_and_of_a_picture(s, x):
    """A smaller number would also make smaller pictures."""
    h = s.a(x).view(-1, s.width, 8, 8)
    return tail(s, F.interpolate(h, size=s.width, mode="bilinear"))


@pattern({}, {"a": (8, "as a value")}, width=8, **VECTOR)
def attribute_that_also_divides(s, x):
    """A smaller number would also change what comes out."""
    h = flat(s.a(x)).view(-1, s.width)
    return s.head(h / s.width)


@pattern({"a": 8}, patched={"width": 4})
class ClassAttribute(nn.Module):
    """The class keeps its number, the pruned network gets one of its own."""

    width = 8

    def __init__(self):
        super().__init__()
        self.a, self.head = conv(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.a(x).mean((2, 3)).view(-1, self.width))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.double = conv(3, 8), 16

    @property
    def width(self):
        return self.double // 2

    def forward(self, x):
        return self.a(x).mean((2, 3)).view(-1, self.width)


@pattern({"block.a": 8}, patched={"block.double": 8})
class ComputedProperty(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = Block(), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.block(x))


# --- written down ---------------------------------------------------------------------------------


@pattern(refused={"a": Line("view(-1, 8)", WRITTEN)}, **VECTOR)
def number(s, x):
    return s.head(flat(s.a(x)).view(-1, 8))


@pattern(refused={"a": Line("view(-1, WIDTH)", WRITTEN)}, **VECTOR)
def constant_of_a_file(s, x):
    return s.head(flat(s.a(x)).view(-1, WIDTH))


@pattern(refused={"a": Line("view(-1, width)", WRITTEN)}, **VECTOR)
def default_of_an_argument(s, x, width=8):
    return s.head(flat(s.a(x)).view(-1, width))


@pattern(
    refused={"a": Line("view(-1, len(s.scale))", WRITTEN)},
    scale=nn.Parameter(torch.ones(8)),
    **VECTOR,
)
def length_of_a_parameter(s, x):
    """Python's ``len`` gives a plain number."""
    return s.head(flat(s.a(x)).view(-1, len(s.scale)) * s.scale)


@pattern(refused={"a": Line("view(2, 512)", WRITTEN)}, head=nn.Linear(512, 2))
def channels_and_space_in_a_number(s, x):
    return s.head(s.a(x).view(2, 512))


@pattern({"b": 6}, refused={"a": Line("split(4", WRITTEN)})
def size_of_a_split(s, x):
    p, q = s.a(x).split(4, 1)
    return tail(s, torch.cat([p.relu(), q], 1))


# --- made to measure ------------------------------------------------------------------------------


@pattern({"a": 8, "b": 6})
def ones_of_its_shape(s, x):
    h = s.a(x)
    n, c, _, _ = h.shape
    return tail(s, h * torch.ones(n, c, 1, 1, dtype=h.dtype) + h.new_full((c, 1, 1), 0.5))


@pattern({"a": 8, "b": 6}, width=8, patched={"width": 4})
def ones_by_an_attribute(s, x):
    h = s.a(x)
    return tail(s, h + torch.ones(1, s.width, 1, 1, dtype=h.dtype))


@pattern({"b": 6}, refused={"a": Line("torch.ones(1, 8, 1, 1")})
def ones_by_a_number(s, x):
    return tail(s, s.a(x) + torch.ones(1, 8, 1, 1))


@pattern({"b": 6}, refused={"a": Line("s.a(x) + y", "fixed size")}, numbers=torch.tensor([3, 5]))
def one_hot_of_channels(s, x):
    y = F.one_hot(s.numbers, 8).to(x.dtype)
    return tail(s, s.a(x) + y[:, :, None, None])


@pattern({"b": 6}, refused={"a": Line("torch.arange")})
def numbers_of_the_channels(s, x):
    """Any number of channels can be counted, but the third would no longer be the third."""
    h = s.a(x)
    return tail(s, h * torch.arange(h.shape[1]).view(1, -1, 1, 1))


@pattern({"b": 6}, {"a": (8, "as a value")})
def scaled_by_the_number_of_channels(s, x):
    h = s.a(x)
    return tail(s, h * h.shape[1] ** -0.5)


@pattern({"b": 6}, {"a": (8, "sum over the channels")})
def mean_by_sum_and_size(s, x):
    h = s.a(x)
    return tail(s, h - h.sum(1, keepdim=True) / h.shape[1])


@pattern({"a": 8, "b": 6})
def scaled_by_the_number_of_places(s, x):
    h = s.a(x)
    return tail(s, h * (h.shape[2] * h.shape[3]) ** -0.5)


@pattern({"a": 8, "b": 6})
def norm_of_the_shape_of_space(s, x):
    h = s.a(x)
    return tail(s, F.layer_norm(h, h.shape[2:]))


@pattern({"a": 8, "b": 6})
def as_many_groups_as_channels(s, x):
    h = s.a(x)
    return tail(s, F.group_norm(h, h.shape[1]))


@pattern({"a": 8, "b": 6}, width=8, patched={"width": 4})
def pieces_of_one_channel_a_group(s, x):
    h = s.a(x)
    kernel = torch.ones(s.width, 1, 3, 3, dtype=h.dtype)
    return tail(s, F.conv2d(h, kernel, padding=1, groups=s.width))


@pattern({"b": 6}, refused={"a": Line("split(1, 1)")})
def channel_after_channel(s, x):
    h = s.a(x)
    return tail(s, torch.cat([c.relu() for c in h.split(1, 1)], 1))


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=conv(8, 5))
def padding_by_shapes(s, x):
    h = s.a(x)
    y = F.pad(h, (0, x.shape[3] - 4, 1, 1), value=0.5)
    return tail(s, s.c(y[:, :, 1 : 1 + h.shape[2]]).relu())


class Normalised(nn.Module):
    """More than a norm, that keeps its shape in an attribute as PyTorch's own does."""

    def __init__(self, function):
        super().__init__()
        self.normalized_shape, self.function = (8,), function
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x):
        return 2 * self.function(x, self.normalized_shape, self.weight)


@pytest.mark.parametrize("function", [F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm])
def test_the_shape_of_a_norm_follows(function):
    """RMS norm runs as a mean and other parts, which take no shape."""
    model = nn.Sequential(nn.Linear(3, 8), Normalised(function), nn.Linear(8, 2)).eval()
    graph = trace(model, TOKENS)
    assert graph["0"].verdict == "exact"
    small = prune(model, plan_keeping(graph, {graph.number("0"): np.arange(8) % 2 == 0}))
    assert small[1].normalized_shape == (4,)
    assert small(TOKENS).shape == (2, 5, 2)
