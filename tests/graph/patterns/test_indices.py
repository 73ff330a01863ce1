"""Picking and writing by numbers and by masks: places are touched, channels are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netslim import trace
from pattern import TOKENS, Patterns, conv, steps, tail

pattern = Patterns()
YS, XS = torch.tensor([1, 2, 3]), torch.tensor([0, 4, 5])
MASK = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
COARSE = torch.arange(64) % 8
PICKED = "channels are picked by their numbers"
WRITTEN = "channels are written to by their numbers"


@pytest.mark.filterwarnings("ignore:index_reduce.. is in beta")
@pytest.mark.parametrize("case", pattern, ids=str)
def test_indices(case):
    case.check()


def points(exact=None, inexact=None, refused=None, **parts):
    """A pattern whose forward makes (batch, points, channels) of maps; ``b`` reads these."""

    def add(source):
        def forward(s, x):
            return steps(s, source(s, s.a(x).relu()))

        forward.__name__ = source.__name__
        b = nn.Linear(8, 6)
        pattern(exact or {"a": 8, "b": 6}, inexact, refused, **{"b": b, **parts})(forward)
        return source

    return add


# --- picking --------------------------------------------------------------------------------------


@points()
def points_of_maps(s, h):
    return h[:, :, YS, XS].transpose(1, 2)


@points()
def points_with_a_picture_each(s, h):
    return h.permute(0, 2, 3, 1)[torch.tensor([0, 1, 1]), YS, XS][None]


@points()
def points_with_one_dimension_between(s, h):
    """The index is of dimensions 1 and 3, so its points stand in front."""
    return h.permute(0, 2, 1, 3)[:, YS, :, XS].transpose(0, 1)


@points()
def points_of_pairs(s, h):
    return h[:, :, YS[:, None], XS].flatten(2).transpose(1, 2)


@points()
def places_by_a_mask(s, h):
    return h[:, :, MASK].transpose(1, 2)


@points()
def places_of_the_first_picture_by_a_mask(s, h):
    return h.permute(0, 2, 3, 1)[0][MASK][None]


@points()
def a_mask_and_numbers(s, h):
    return h.permute(2, 3, 0, 1)[MASK][torch.tensor([3, 1])].transpose(0, 1)


@points()
def selected_by_a_mask(s, h):
    return h.permute(0, 2, 3, 1).masked_select(MASK[None, :, :, None]).view(2, -1, h.shape[1])


@points()
def selected_by_an_expanded_mask(s, h):
    h = h.permute(0, 2, 3, 1)
    return h.masked_select(MASK[None, :, :, None].expand_as(h)).view(2, -1, h.shape[-1])


@points()
def mean_of_segments(s, h):
    tokens = h.flatten(2)[0].t()
    return torch.stack([tokens[i == COARSE].mean(0) for i in range(8)])[None]


@pattern({"a": 8, "score": 4, "b": 6}, score=conv(3, 4), out=conv(4, 1), b=nn.Linear(8, 6))
def tokens_by_a_score_of_their_own(s, x):
    best = s.out(s.score(x).relu()).flatten(1).topk(4).indices
    return steps(s, s.a(x).flatten(2).transpose(1, 2)[torch.arange(2)[:, None], best])


@pattern({"b": 6}, refused={"a": PICKED}, b=conv(3, 6))
def channels_and_places_by_numbers(s, x):
    return tail(s, s.a(x)[:, torch.tensor([0, 3, 5])[:, None], YS])


@pattern({"a#2": 5, "b": 6}, refused={"a": PICKED})
def channels_by_a_list_in_the_code(s, x):
    """What stands before the last of them stays; the others may go."""
    h = s.a(x)
    return tail(s, h * h[:, [2, 0]].mean(1, keepdim=True))


@pattern({"a": 6, "b": 6}, refused={"a#2": PICKED})
def channels_by_a_list_from_the_end(s, x):
    h = s.a(x)
    return tail(s, h * h[:, [-2]] + h[..., [-1], :, :])


@pattern({"a#2": 4, "b": 6}, refused={"a": PICKED})
def channels_by_a_list_from_both_ends(s, x):
    h = s.a(x)
    return tail(s, h * h[:, [-1, 2, -1]].sum(1, keepdim=True))


IN_A_BUFFER = "a list that is a buffer of the module"


@pattern({"b": 6}, refused={"a": IN_A_BUFFER})
def gathered_by_one_list(s, x):
    """Python or the network holds the numbers: the same at all places."""
    h = s.a(x)
    numbers = torch.tensor([3, 1, 2, 0, 7, 5, 6, 4])[:, None, None]
    return tail(s, torch.take_along_dim(h, numbers.expand_as(h), dim=1))


@pattern({"b": 6}, refused={"a": PICKED}, b=conv(6, 6))
def gathered_by_what_was_ranked(s, x):
    h = s.a(x)
    return tail(s, h.gather(1, x.argsort(1).repeat(1, 2, 1, 1)[:, :6] * 2))


@pattern({"b": 6}, refused={"a": PICKED})
def all_channels_by_a_list(s, x):
    return tail(s, s.a(x)[:, [*range(7, -1, -1)]])


@pattern({"b": 6}, refused={"a": PICKED})
def channels_by_a_list_made_of_their_number(s, x):
    h = s.a(x)
    return tail(s, h * h[:, [h.shape[1] - 6]])


@pattern({"b": 6}, refused={"a": PICKED})
def channels_by_a_list_made_of_a_plain_number(s, x):
    h = s.a(x)
    return tail(s, h * h[:, [int(h.shape[1]) - 6]])


@pattern({"b": 6}, refused={"a": PICKED}, b=nn.Linear(30, 6))
def channels_by_a_mask(s, x):
    mask = torch.arange(8 * 64).view(8, 8, 8) % 17 == 0
    return s.head(s.b(s.a(x)[:, mask[:, :, :]][:, :30]).relu())


@pattern({"b": 6}, refused={"a": "it meets a fixed size in masked_select"}, b=nn.Linear(100, 6))
def elements_by_a_mask(s, x):
    h = s.a(x)
    return s.head(s.b(h.masked_select(torch.arange(8)[:, None, None] < 5)[None, :100]))


# --- writing --------------------------------------------------------------------------------------


def tokens(exact=None, inexact=None, refused=None, **parts):
    made = {"inputs": TOKENS, "a": nn.Linear(3, 8), "b": nn.Linear(8, 6)}
    return pattern(exact or {"a": 8, "b": 6}, inexact, refused, **{**made, **parts})


@tokens(token=nn.Parameter(torch.rand(8) + 0.5))
def masked_tokens(s, x):
    """wav2vec's and BEiT's: a learnt token in the place of some."""
    h = s.a(x).clone()
    h[torch.arange(10).view(2, 5) % 3 == 0] = s.token
    return steps(s, h)


@tokens({"b": 6}, refused={"a": "it meets a fixed size"})
def masked_with_a_constant_of_fixed_width(s, x):
    h = s.a(x).clone()
    h[torch.arange(10).view(2, 5) % 3 == 0] = torch.rand(8).to(x.dtype)
    return steps(s, h)


@points()
def a_number_by_a_mask_over_channels(s, h):
    """What ``h[h > 1] = 1`` is up to torch 2.6."""
    return h.index_put((h > 1,), h.new_ones(())).flatten(2).transpose(1, 2)


@points()
def a_number_by_a_mask_over_places(s, h):
    h = h.clone()
    h[:, :, MASK[0]] = h.new_ones(1)
    return h.flatten(2).transpose(1, 2)


@points({"b": 6}, refused={"a": "it meets a fixed size in a mask"})
def a_number_by_a_fixed_mask_over_channels(s, h):
    h = h.clone()
    h[:, torch.arange(8) < 5] = h.new_ones(1)
    return h.flatten(2).transpose(1, 2)


@tokens()
def a_number_by_index(s, x):
    h = s.a(x).clone()
    h[:, torch.tensor([1, 2])] = 0
    return steps(s, h)


@tokens({"b": 6}, refused={"a": WRITTEN})
def a_number_into_some_channels(s, x):
    h = s.a(x).clone()
    h[..., torch.tensor([1, 2])] = 0
    return steps(s, h)


@tokens({"b": 6}, refused={"a": WRITTEN})
def numbers_into_some_channels(s, x):
    h = s.a(x).clone()
    h[:, torch.tensor([0, 1]), torch.tensor([1, 2])] = torch.ones(2).to(x.dtype)
    return steps(s, h)


@pattern({"a": 8, "b": 6}, inputs=torch.randn(2, 10, 3), a=nn.Linear(3, 8))
def pillars_on_a_canvas(s, x):
    h = s.a(x).relu()
    canvas = h.new_zeros(2, h.shape[2], 64)
    canvas[:, :, torch.arange(10) * 5] = h.transpose(1, 2)
    return tail(s, canvas.view(2, -1, 8, 8))


@tokens({"other": 8, "b": 6}, other=nn.Linear(3, 8))
def points_over_those_of_another_layer(s, x):
    """What is written and what it is written into go together."""
    h = s.other(x).clone()
    h[:, YS] = s.a(x)[:, 2:]
    return steps(s, h)


@points()
def added_by_index(s, h):
    h = h.flatten(2)[0].t()
    return h.new_zeros(8, h.shape[1]).index_add(0, COARSE, h)[None]


@points()
def copied_by_index(s, h):
    h = h.flatten(2)[0].t()
    return h.new_zeros(64, h.shape[1]).index_copy(0, torch.arange(64).flip(0), h)[None]


@points()
def reduced_by_index(s, h):
    h = h.flatten(2)[0].t()
    return h.new_zeros(8, h.shape[1]).index_reduce(0, COARSE, h, "amax")[None]


@points({"b": 6}, refused={"a": WRITTEN})
def added_to_channels_by_index(s, h):
    h = h.flatten(2)
    return h.new_zeros(2, 8, 64).index_add(1, COARSE[:8].flip(0), h).transpose(1, 2)


@points()
def scattered(s, h):
    h = h.flatten(2)
    index = torch.arange(64).expand(2, h.shape[1], 64)
    return h.new_zeros(2, h.shape[1], 70).scatter(2, index, h).transpose(1, 2)


@points()
def scattered_and_added(s, h):
    h = h.flatten(2)
    index = COARSE.expand(2, h.shape[1], 64)
    return h.new_zeros(2, h.shape[1], 8).scatter_add(2, index, h).transpose(1, 2)


@points()
def scattered_and_reduced(s, h):
    h = h.flatten(2)[0].t()
    index = COARSE[:, None].expand(64, h.shape[1])
    return h.new_zeros(8, h.shape[1]).scatter_reduce(0, index, h, "amax")[None]


@points({"b": 6}, refused={"a": WRITTEN})
def scattered_over_the_channels(s, h):
    h = h.flatten(2)
    index = torch.arange(8).flip(0)[:, None].expand(2, 8, 64)
    return torch.zeros_like(h).scatter(1, index, h).transpose(1, 2)


@points({"b": 6}, refused={"a": "it meets a fixed size in scatter"})
def scattered_by_an_index_of_fixed_width(s, h):
    h = h.flatten(2)
    index = torch.arange(64).repeat(2, 8, 1)
    return torch.zeros_like(h).scatter(2, index, h).transpose(1, 2)


@points({"b": 6}, refused={"a": "the first of them are met by scatter_add"})
def scattered_from_the_first_channels(s, h):
    h = h.flatten(2)
    return h.scatter_add(2, COARSE.expand(2, 5, 64), h * 2).transpose(1, 2)


@tokens({"a": 8, "b": 6}, inputs=torch.randn(2, 5, 3), other=nn.Linear(3, 8))
def features_in_the_place_of_tokens(s, x):
    """As pictures are put among words: the mask is alike along the channels."""
    h, features = s.a(x), s.other(x)[:, :2]
    mask = torch.tensor([0, 1, 0, 1, 0], dtype=torch.bool)[None, :, None].expand_as(h)
    return steps(s, h.masked_scatter(mask, features))


@points({"b": 6}, refused={"a": "masked_scatter fills the channels in order"})
def filled_in_order(s, h):
    return h.masked_scatter(MASK.expand_as(h), h.new_ones(1024)).flatten(2).transpose(1, 2)


@points()
def a_slice_written_in_a_copy(s, h):
    return h.slice_scatter(h[..., :2] * 2, 3, 4, 6).flatten(2).transpose(1, 2)


@points({"b": 6}, refused={"a": WRITTEN})
def a_channel_written_in_a_copy(s, h):
    return h.select_scatter(h.new_ones(2, 8, 8), 1, 3).flatten(2).transpose(1, 2)


# --- numbers that are kept ------------------------------------------------------------------------


class Biased(nn.Module):
    """It makes numbers at its first run, in steps, and keeps them, as BEiT does."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.rand(5, 6))
        self.first, self.last, self.numbers = nn.Linear(3, 6), nn.Linear(6, 2), None

    def forward(self, x):
        if self.numbers is None:
            numbers = torch.zeros(4, dtype=torch.long)
            numbers[1:] = torch.arange(3) + 2
            self.numbers = numbers
        return self.last(self.first(x) + self.table[self.numbers])


def test_a_group_is_the_same_before_and_after_they_are_kept():
    model, x = Biased(), torch.rand(2, 4, 3)
    for _ in range(2):
        group = trace(model, x)["first"]
        roles = {(s.tensor, s.axis): s.role for s in group.slices}
        assert roles["table", 1] == "channel"
        assert group.exact


# --- losses ---------------------------------------------------------------------------------------


@pattern({"b": 6}, {"a": (8, "mse_loss over the channels")})
def a_loss_inside(s, x):
    h = s.a(x)
    return tail(s, h + nn.functional.mse_loss(h, h.relu()))


@pattern({"a": 8, "b": 6}, c=conv(3, 8))
def a_loss_element_by_element(s, x):
    return tail(s, nn.functional.smooth_l1_loss(s.a(x), s.c(x), reduction="none"))
