"""Convolutions along the channels slide over as many as before: efficient channel attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import netslim
from netslim.errors import SurgeryError
from netslim.graph.modules.padded_norms import NormWidth
from netslim.graph.modules.padding import pad
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise

PICTURES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Eca(nn.Module):
    def __init__(self, width=12, kernel=5, **options):
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, width, 1), nn.Conv2d(width, 2, 1)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, **options)

    def forward(self, x):
        x = self.stem(x)
        weights = self.conv(x.mean((2, 3))[:, None]).sigmoid()
        return self.tail(x * weights.movedim(1, 2)[..., None])


class Mixed(nn.Module):
    """Positions are the channels of this convolution, and channels its positions, one by one."""

    def __init__(self):
        super().__init__()
        self.stem, self.over = nn.Linear(3, 8), nn.Conv1d(5, 1, 1)
        self.tail = nn.Linear(8, 2)

    def forward(self, x):
        return self.tail(self.over(self.stem(x)))


def network(make=Eca, **options):
    torch.manual_seed(0)
    return randomise(make(**options)).eval()


def keeping(graph, kept):
    group = graph["stem"]
    return plan_keeping(graph, {graph.number("stem"): np.isin(np.arange(group.size), kept)})


def outputs(model, x=PICTURES):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("options", [{}, {"bias": False, "kernel": 3}])
def test_channels_keep_the_places_that_they_slid_over(options, tmp_path):
    model = network(**options)
    graph = netslim.trace(model, PICTURES)
    held = 2 + sum(p.numel() for p in model.conv.parameters())
    assert graph.prunable_share() == pytest.approx(1 - held / graph.params())
    plan = keeping(graph, [0, 1, 4, 7, 8, 11])
    small = netslim.prune(model, netslim.PruningPlan.from_json(plan.to_json()))
    assert netslim.verify(model, small, plan, PICTURES, graph=graph).deviation < 1e-13
    mask = netslim.Mask(network(**options), plan).apply()
    assert torch.allclose(outputs(mask.model), outputs(small), atol=1e-6)
    assert outputs(netslim.models.plain(small)).equal(outputs(small))
    again = keeping(netslim.trace(small, PICTURES), [0, 2, 5])
    smaller = netslim.prune(small, again)
    assert netslim.verify(small, smaller, again, PICTURES).deviation < 1e-13
    assert smaller.conv.padded_places == (0, 4, 11)
    path = netslim.save(smaller, tmp_path / "smaller.safetensors")
    assert outputs(netslim.load(network(**options), path)).equal(outputs(smaller))
    assert netslim.prune_(small, again) is small
    assert outputs(small).equal(outputs(smaller))


def test_a_window_of_one_mixes_no_channels():
    model, x = network(Mixed), torch.randn(2, 5, 3)
    graph = netslim.trace(model, x)
    plan = keeping(graph, [1, 2, 6])
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, x, graph=graph).deviation < 1e-13
    assert not plan.norms


def test_a_file_cannot_ask_for_any_width():
    with pytest.raises(SurgeryError, match="does not slide"):
        pad(nn.Conv1d(1, 1, 3), NormWidth("", "sliding", -1, 1 << 40))
