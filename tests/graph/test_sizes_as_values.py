"""A number of channels that is used as a value, and not as a width, is never called exact.

Each forward below runs as before whatever goes of ``a``, and gives other numbers: no error would
tell. What takes widths and values alike, as ``new_full``, is asked for each argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim import ChannelGraph, prune, trace, verify
from netslim.errors import VerificationError
from netslim.surgery.plan_of_units import plan_keeping

PICTURES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Use = Callable[[Any, Tensor, Tensor], Tensor]  # of the network, ``a``'s channels, and others


class Net(nn.Module):
    """Sixteen channels, which ``b`` reads; ``use`` takes them and what ``b`` makes of them."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.use, self.width, self.kept = use, 16, torch.ones(64)
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 12, 1)
        self.head = nn.Conv2d(12, 4, 1)
        self.depthwise = nn.Conv2d(16, 16, 1, groups=16)

    def own(self, y: Tensor) -> Tensor:
        return self.head(self.b(self.depthwise(y)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.use(self, y, self.head(self.b(y).relu()))


def written(z: Tensor, index: Any, value: Any) -> Tensor:
    z = z.clone()
    z[index] = value
    return z


VALUES: dict[str, Use] = {
    "roll over places": lambda s, y, z: z.roll(y.shape[1], 2),
    "roll over two": lambda s, y, z: z.roll((1, y.shape[1] // 8), (2, 3)),
    "stride": lambda s, y, z: z * y.stride(0),
    "strides": lambda s, y, z: z * y.stride()[0],
    "bytes": lambda s, y, z: z * y.nbytes,
    "full": lambda s, y, z: z + torch.full((1,), y.shape[1]),
    "full of a width": lambda s, y, z: z + torch.full((y.shape[1],), y.shape[1]).amax(),
    "new_full": lambda s, y, z: z * z.new_full((1,), y.shape[1]),
    "new_full by name": lambda s, y, z: z * z.new_full(size=(1,), fill_value=y.shape[1]),
    "eye": lambda s, y, z: z * torch.eye(y.shape[1]).sum(),
    "arange": lambda s, y, z: z * torch.arange(y.shape[1]).sum(),
    "arange by steps": lambda s, y, z: z * torch.arange(0, 8 * y.shape[1], y.shape[1]),
    "linspace": lambda s, y, z: z * torch.linspace(0, y.shape[1], 8),
    "written value": lambda s, y, z: written(z, (0, 0, 0), y.shape[1]),
    "written place": lambda s, y, z: written(z, (0, 0, y.shape[1] // 4), 1.0),
    "written slice": lambda s, y, z: written(z, np.s_[:, :, :: y.shape[1] // 8], 1.0),
    "place": lambda s, y, z: z[:, :, y.shape[1] // 4],
    "places": lambda s, y, z: z[:, :, [0, y.shape[1] // 4]],
    "step of a slice": lambda s, y, z: z[:, :, :: max(y.shape[1] // 8, 1)],
    "select": lambda s, y, z: z.select(2, y.shape[1] // 4),
    "start of narrow": lambda s, y, z: z.narrow(2, y.shape[1] // 8, 2),
    "dimension": lambda s, y, z: z.softmax(y.shape[1] // 8),
    "padding of places": lambda s, y, z: F.pad(z, (y.shape[1] // 8, 0)),
    "value of padding": lambda s, y, z: F.pad(z, (1, 0), value=y.shape[1]),
    "repeated places": lambda s, y, z: z.repeat(1, 1, y.shape[1] // 8, 1),
    "number of parts": lambda s, y, z: z.chunk(y.shape[1] // 8, 2)[0],
    "shuffled groups": lambda s, y, z: F.channel_shuffle(z, y.shape[1] // 8),
    "normalised groups": lambda s, y, z: F.group_norm(z, y.shape[1] // 8),
    "groups": lambda s, y, z: F.conv2d(z, torch.ones(4, 2, 1, 1), groups=y.shape[1] // 8),
    "stride of a window": lambda s, y, z: F.conv2d(
        z, torch.ones(4, 4, 1, 1), None, y.shape[1] // 8
    ),
    "attribute of a layer": lambda s, y, z: z * s.a.out_channels,
    "attribute of a depthwise layer": lambda s, y, z: s.own(y) + z * s.depthwise.in_channels,
    "attribute of a reader": lambda s, y, z: z * s.b.in_channels,
    "list of numbers": lambda s, y, z: z * len(y.transpose(0, 1).tolist()),
    "array": lambda s, y, z: z + float(y.detach().numpy().mean()),
    "array of NumPy's": lambda s, y, z: z + float(np.asarray(y.detach()).mean()),
}


def graph_of(use: Use) -> tuple[Net, ChannelGraph]:
    torch.manual_seed(0)
    model = Net(use).eval()
    return model, trace(model, PICTURES)


@pytest.mark.parametrize("name", VALUES)
def test_a_number_of_channels_as_a_value_is_not_exact(name: str) -> None:
    _, graph = graph_of(VALUES[name])
    assert graph["a"].verdict != "exact"
    assert "test_sizes_as_values.py" in str(graph["a"].reason or graph["a"].effects)


@pytest.mark.parametrize("name", ["stride", "arange"])
def test_what_has_no_channels_is_nobody_s_number(name: str) -> None:
    _, graph = graph_of(lambda s, y, z: VALUES[name](s, z.new_ones(2, 3), z))
    assert graph["a"].verdict == "exact"


# --- widths still follow --------------------------------------------------------------------------

WIDTHS: dict[str, Use] = {
    "a slice of all": lambda s, y, z: s.head(s.b(y[:, : (y * 2).shape[1]])),
    "a slice of all of two": lambda s, y, z: s.head(
        F.conv2d(y, s.b.weight[: s.b.out_channels, : y.shape[1]])
    ),
    "a slice of all behind an ellipsis": lambda s, y, z: z + s.head(
        s.b(y.movedim(1, -1)[..., : y.shape[1]].movedim(-1, 1))
    ),
    "parts by their number": lambda s, y, z: s.head(
        s.b(
            torch.cat(
                [y[:, i * (y.shape[1] // 2) : (i + 1) * (y.shape[1] // 2)] for i in range(2)], 1
            )
        )
    ),
    "padded by nothing": lambda s, y, z: s.head(
        s.b(F.pad(y, (0, 0, 0, 0, 0, s.width - y.shape[1])))
    ),
    "contiguous in the last": lambda s, y, z: z * y.stride(-1),
    "zeros": lambda s, y, z: s.head(s.b(y + torch.zeros(y.shape[1], 1, 1))),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDTHS)
def test_widths_follow(name: str) -> None:
    model, graph = graph_of(WIDTHS[name])
    assert not graph["a"].frozen, graph["a"].reason
    kept = np.arange(graph["a"].size) % 8 < 5
    plan = plan_keeping(graph, {graph.number("a"): kept})
    verify(model, prune(model, plan), plan, PICTURES)


def test_a_table_of_one_width_that_it_lacks_is_found_by_the_proof() -> None:
    """Neither half of the channels nor one alone is in it: see test_unseen_sizes.py."""
    model, graph = graph_of(lambda s, y, z: z * {10: 3.0}.get(y.shape[1], 1.0))
    assert graph["a"].prunable  # which is wrong
    plan = plan_keeping(graph, {graph.number("a"): np.arange(16) < 10})
    with pytest.raises(VerificationError, match="a size or index in the model's forward"):
        verify(model, prune(model, plan), plan, PICTURES)


def test_a_roll_over_places_that_a_small_picture_hides() -> None:
    """By 16 or 8 over 8 places is nothing, so no proof at this size would find it."""
    _, graph = graph_of(VALUES["roll over places"])
    assert "roll takes their number" in str(graph["a"].reason)
    model, graph = graph_of(lambda s, y, z: z.roll(y.shape[2], 2))  # of places alone
    plan = plan_keeping(graph, {graph.number("a"): np.arange(16) < 8})
    verify(model, prune(model, plan), plan, torch.randn(2, 3, 12, 12))


def test_what_comes_back_from_numpy_is_no_weight() -> None:
    """The layer behind it makes channels as any other does, out of a fixed number."""
    _, graph = graph_of(lambda s, y, z: s.head(s.b(torch.from_numpy(y.detach().numpy()))))
    assert "numpy takes its numbers out" in str(graph["a"].reason)
    assert graph["b"].verdict == "exact"


@pytest.mark.parametrize("rounded", [int, round, math.floor])
def test_what_to_write_instead_of_a_rounded_size_is_said(rounded: Any) -> None:
    _, graph = graph_of(lambda s, y, z: z.view(z.shape[0], rounded(y.shape[1] / 4), -1, 8, 8)[:, 0])
    assert "// or a -1 in the view would be followed" in str(graph["a"].reason)
