"""Buffers that pick channels by their numbers are numbered anew when some of these go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import netslim
from netslim.surgery.plan_of_units import plan_keeping

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
ORDER = (3, 0, 5, 1, 7, 2, 6, 4)


class Net(nn.Module):
    """``pick(self, maps, numbers)`` stands between two convolutions."""

    def __init__(self, pick, numbers=ORDER, read=8):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(read, 5, 1), nn.Conv2d(3, 8, 1)
        self.pick = pick
        self.register_buffer("order", torch.tensor(numbers))

    def forward(self, x):
        return self.b(self.pick(self, self.a(x).relu(), x)).mean((2, 3))


def in_order(s, h, x):
    return h[:, s.order]


def selected_in_order(s, h, x):
    return h.index_select(1, s.order)


def in_order_and_selected(s, h, x):
    return h[:, s.order] + torch.cat([s.c(x), h], 1).index_select(1, s.order)


def in_order_twice(s, h, x):
    return h[:, s.order][:, s.order]


def both_in_order(s, h, x):
    return h[:, s.order] * s.c(x)[:, s.order]


def beside_the_rest(s, h, x):
    return torch.cat([h[:, s.order], h], 1)


def also_ranked(s, h, x):
    return h[:, s.order] + h[:, s.order.argsort()]


def also_a_factor(s, h, x):
    return h[:, s.order] * s.order[:, None, None]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def halved(model, x=X):
    graph = netslim.trace(model, x)
    masks = {n: np.arange(g.size) % 2 > 0 for n, g in enumerate(graph) if g.prunable}
    plan = plan_keeping(graph, masks)
    small = netslim.prune(model, plan)
    return small, plan, netslim.verify(model, small, plan, x)


@pytest.mark.parametrize(
    ("pick", "numbers", "read", "groups"),
    [
        (in_order, ORDER, 8, [8]),
        (selected_in_order, ORDER, 8, [8]),
        (in_order_twice, (1, 0, 3, 2, 5, 4, 7, 6), 8, [4]),
        (both_in_order, ORDER, 8, [8]),
        (beside_the_rest, ORDER, 16, [8]),
        (beside_the_rest, (6, 1, 4), 11, [5, 3]),  # those that are picked, and those that are not
        (in_order, (-5, 0, -3, 1, -1, 2, -2, 4), 8, [8]),
        (beside_the_rest, (2, 2, 5, 5), 12, [6, 2]),
    ],
)
def test_what_is_picked_goes_with_what_it_is_picked_from(pick, numbers, read, groups):
    model = Net(pick, numbers, read).eval()
    graph = netslim.trace(model, X)
    assert sorted((g.size for g in graph.prunable), reverse=True) == groups
    small, plan, check = halved(model)
    assert check.deviation < 1e-10
    assert check.changed >= check.cut - 1
    assert small.order.max() < small.a.out_channels
    assert netslim.PruningPlan.from_json(plan.to_json()) == plan
    assert "order: its numbers are made anew" in plan.explain()


def test_the_numbers_of_what_is_left_keep_their_order():
    small, *_ = halved(Net(in_order).eval())
    left = [n for n in ORDER if n % 2]  # 3 5 1 7
    assert small.order.tolist() == [sorted(left).index(n) for n in left]


@pytest.mark.parametrize(
    "pick", [also_ranked, also_a_factor, in_order_and_selected], ids=lambda f: f.__name__
)
def test_numbers_that_are_read_for_something_else_hold_their_channels(pick):
    graph = netslim.trace(Net(pick).eval(), X)
    assert "a" in graph.frozen


def test_numbers_in_the_code_hold_channels_and_say_what_to_write():
    graph = netslim.trace(Net(lambda s, h, x: h[:, list(ORDER)]).eval(), X)
    assert "a list that is a buffer of the module" in graph.frozen["a"]


def test_cuts_follow_each_other_in_place_and_in_files(tmp_path):
    model = Net(in_order).eval()
    small, _, _ = halved(model)
    smaller, _, check = halved(small)
    assert check.deviation < 1e-10
    netslim.save(smaller, tmp_path / "smaller.safetensors")
    again = netslim.load(Net(in_order), tmp_path / "smaller.safetensors").eval()
    torch.testing.assert_close(again(X), smaller(X))
    assert again.order.tolist() == smaller.order.tolist()
    in_place = Net(in_order).eval()
    in_place.load_state_dict(model.state_dict())
    graph = netslim.trace(in_place, X)
    masks = {n: np.arange(g.size) % 2 > 0 for n, g in enumerate(graph) if g.prunable}
    netslim.prune_(in_place, plan_keeping(graph, masks))
    torch.testing.assert_close(in_place(X), small(X))
