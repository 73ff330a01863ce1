"""Channels picked by number: with a list that the model holds in a buffer, and with others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netslim.models.channel_select import ChannelSelect
from pattern import Patterns, conv, tail

pattern = Patterns()


@pytest.mark.parametrize("case", pattern, ids=str)
def test_selection(case):
    case.check()


class Numbers(nn.Module):
    """A network's own list of channels, in a buffer or a parameter."""

    def __init__(self, *numbers: int, parameter: bool = False) -> None:
        super().__init__()
        index = torch.tensor(numbers)
        if parameter:
            self.index = nn.Parameter(index, requires_grad=False)
        else:
            self.register_buffer("index", index)


PICKED = "picks from them by their numbers"


@pattern({"pick": 8, "b": 6}, refused={"a": f"pick.indices {PICKED}"}, pick=ChannelSelect(8))
def selection_of_all(s, x):
    return tail(s, s.pick(s.a(x).relu()))


@pattern({"pick": 8, "b": 6}, refused={"a": PICKED}, pick=ChannelSelect(8), norm=nn.BatchNorm2d(8))
def selection_before_a_norm(s, x):
    return tail(s, s.norm(s.pick(s.a(x))).relu())


@pattern({"pick": 5, "b": 6}, refused={"a": PICKED}, b=conv(5, 6), pick=Numbers(6, 1, 0, 4, 2))
def a_list_of_ones_own_in_another_order(s, x):
    return tail(s, torch.index_select(s.a(x).relu(), dim=1, index=s.pick.index))


@pattern({"pick": 5, "b": 6}, refused={"a": PICKED}, b=conv(5, 6), pick=Numbers(6, 1, 1, 4, 1))
def a_list_that_repeats_channels(s, x):
    return tail(s, s.a(x).relu().index_select(-3, s.pick.index))


@pattern({"pick": 8, "b": 6}, refused={"a": PICKED}, c=conv(8, 6), pick=ChannelSelect(8))
def residual_beside_a_selection(s, x):
    h = s.a(x)
    return s.head((s.b(s.pick(h).relu()) + s.c(h)).relu().mean((2, 3)))


# What the selection hands out is added to a convolution's channels, so these go together.
@pattern({"pick": 8, "b": 6}, refused={"a": PICKED}, c=conv(3, 8), pick=ChannelSelect(8))
def selection_joined_with_a_layer(s, x):
    return tail(s, s.pick(s.a(x)) + s.c(x))


@pattern(
    {"pick": 4, "b": 6},
    refused={"a": PICKED, "c": PICKED},
    c=conv(3, 8),
    b=conv(8, 6),
    pick=Numbers(0, 2, 4, 7),
)
def two_tensors_by_one_selection(s, x):
    h, g = s.a(x).relu(), s.c(x).relu()
    return tail(s, torch.cat([h.index_select(1, s.pick.index), g.index_select(1, s.pick.index)], 1))


@pattern(
    {"pick": 8, "again": 8, "b": 6},
    refused={"a": f"pick.indices {PICKED}"},
    pick=ChannelSelect(8),
    again=ChannelSelect(8),
    c=conv(8, 6),
)
def two_selections_from_one_layer(s, x):
    h = s.a(x)
    return s.head((s.b(s.pick(h).relu()) + s.c(s.again(h).sigmoid())).relu().mean((2, 3)))


@pattern(
    {"again": 8, "b": 6},
    refused={"a": f"pick.indices {PICKED}", "pick": f"again.indices {PICKED}"},
    pick=ChannelSelect(8),
    again=ChannelSelect(8),
)
def selection_of_a_selection(s, x):
    return tail(s, s.again(s.pick(s.a(x)).relu()))


# --- lists that hand out nothing ------------------------------------------------------------------


@pattern(
    {"b": 6},
    refused={"a": "channels are picked by index_select"},
    unsupported=("index_select",),
    pick=Numbers(*range(8), parameter=True),
)
def a_parameter_is_no_selection(s, x):
    return tail(s, s.a(x).index_select(1, s.pick.index))


@pattern(
    {"b": 6}, refused={"a": "channels are picked by index_select"}, unsupported=("index_select",)
)
def a_list_made_on_the_way(s, x):
    return tail(s, s.a(x).index_select(1, torch.arange(8)))


@pattern(
    {"b": 6},
    refused={"a": "channels are picked by index_select"},
    unsupported=("index_select",),
    b=conv(1, 6),
    pick=Numbers(3),
)
def a_selection_of_one(s, x):
    return tail(s, s.a(x).index_select(1, s.pick.index))


@pattern({"a": 8, "b": 6}, pick=Numbers(0, 2, 4, 6))
def rows_are_picked_not_channels(s, x):
    return tail(s, s.a(x).relu().index_select(2, s.pick.index))


# The list also picks rows, so it must keep its length.
@pattern(
    {"b": 6},
    refused={"a": PICKED, "pick": "its numbers pick what they are no channels of"},
    pick=Numbers(0, 2, 4, 6, 7),
    b=conv(5, 6),
)
def a_list_for_channels_and_rows(s, x):
    h = s.a(x).relu().index_select(1, s.pick.index)
    return tail(s, h.index_select(2, s.pick.index))
