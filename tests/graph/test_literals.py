"""Numbers in the code that hold channels: which line to change, and that the change helps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import netslim

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 12, 1), nn.Linear(12, 2)

    def forward(self, x):
        h = self.a(x).flatten(2).view(2, 16, 8, 8)
        return self.c(torch.cat([self.b(h)[:, :5], self.b(h)[:, 5:]], 1).mean((2, 3)))


class Rewritten(Written):
    def forward(self, x):
        h = self.a(x).flatten(2).view(2, -1, 8, 8)
        return self.c(self.b(h).mean((2, 3)))


class Computed(Written):
    def forward(self, x):
        return self.c(self.b(self.a(x).flatten(2).view(2, 4 * 4, 8, 8)).mean((2, 3)))


def test_the_line_that_holds_channels_is_told_with_what_to_write():
    graph = netslim.trace(Written().eval(), X)
    told = str(graph)
    (view, *slices) = graph.inventory.literals
    assert view.code == "h = self.a(x).flatten(2).view(2, 16, 8, 8)"
    assert (view.numbers, view.groups) == ((16,), ("a",))
    assert f"test_literals.py:{view.line}: {view.code}\n    for 16 write -1, a size" in told
    assert all(s.numbers == (5,) and "-1" not in s.remedy for s in slices)
    assert f"To change: test_literals.py:{view.line}" in graph.explain("a")
    assert graph.to_dict()["literals"][0] == {
        "file": __file__,
        "line": view.line,
        "code": view.code,
        "numbers": [16],
        "write": view.remedy,
        "groups": ["a"],
    }


@pytest.mark.parametrize(
    ("forward", "told", "mended"),
    [
        (
            lambda s, h: h.reshape(-1, 16, 8, 8),
            "for 16 write a size that is read there (x.shape[1]) or that the module keeps "
            "(self.width), or -1 with a size that is read in the place of the -1 there",
            lambda s, h: h.reshape(h.shape[0], -1, 8, 8),
        ),
        (
            lambda s, h: torch.cat(torch.split(h, [8, 8], 1)[::-1], 1),
            "for 8 write a part of the size that is read there (x.shape[1] // 2), or call chunk",
            lambda s, h: torch.cat(torch.split(h, [h.shape[1] // 2] * 2, 1)[::-1], 1),
        ),
    ],
)
def test_what_is_told_can_be_written_there(forward, told, mended):
    class Net(Written):
        def forward(self, x):
            return self.c(self.b(self.laid_out(self.a(x))).mean((2, 3)))

    Net.laid_out = forward
    assert told in str(netslim.trace(Net().eval(), X))
    Net.laid_out = mended
    assert [g.name for g in netslim.trace(Net().eval(), X).prunable] == ["a", "b"]


def test_after_the_change_they_may_go():
    graph = netslim.trace(Rewritten().eval(), X)
    assert [g.name for g in graph.prunable] == ["a", "b"]
    assert not graph.inventory.literals


def test_numbers_that_do_not_stand_there_are_no_line_to_change():
    graph = netslim.trace(Computed().eval(), X)
    assert "written into the code" in graph.frozen["a"]
    assert not graph.inventory.literals


ATEN = torch.ops.aten
BY_HAND = {
    "_unsafe_view": lambda h: ATEN._unsafe_view(h, [-1, 16, 8, 8]),
    "_reshape_alias": lambda h: ATEN._reshape_alias(h, [2, 16, 8, 8], [1024, 64, 8, 1]),
    "an overload": lambda h: ATEN.view.default(h, [-1, 16, 8, 8]),
    "unsafe_split": lambda h: torch.cat(ATEN.unsafe_split(h, 8, 1)[::-1], 1),
    "unsafe_split_with_sizes": lambda h: torch.cat(ATEN.unsafe_split_with_sizes(h, [4, 12], 1), 1),
    "slice": lambda h: torch.cat([ATEN.slice(h, 1, 8, 16), ATEN.slice(h, 1, 0, 8)], 1),
}


@pytest.mark.parametrize("way", BY_HAND)
def test_operators_that_are_called_by_hand_hold_as_functions_do(way):
    class Net(Written):
        def forward(self, x):
            return self.c(self.b(BY_HAND[way](self.a(x))).mean((2, 3)))

    graph = netslim.trace(Net().eval(), X)
    assert not graph["a"].prunable
    assert graph["b"].prunable
    (line,) = graph.inventory.literals
    assert "BY_HAND" in line.code or "ATEN" in line.code


def test_a_size_that_is_read_follows_an_operator_that_is_called_by_hand():
    class Net(Written):
        def forward(self, x):
            h = self.a(x)
            h = ATEN._unsafe_view(h, [h.shape[0], -1, 8, 8])
            h = ATEN.view.default(h, [-1, h.shape[1], 8, 8])
            return self.c(self.b(h).mean((2, 3)))

    assert [g.name for g in netslim.trace(Net().eval(), X).prunable] == ["a", "b"]
