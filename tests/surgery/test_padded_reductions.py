"""Sums, means and maxima over channels, in modules of their own, are of as many as before: exact."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netslim
from netslim.surgery.plan_of_units import plan_keeping
from new_forms import Over

WIDE = 8
PICTURES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class ScaledLength(nn.Module):
    """RMS norm as it is written in codes of diffusion: the width is a number."""

    def __init__(self):
        super().__init__()
        self.scale, self.gamma = WIDE**0.5, nn.Parameter(torch.ones(WIDE, 1, 1))

    def forward(self, x):
        return F.normalize(x, dim=1) * self.scale * self.gamma


class Weighed(nn.Module):
    """Spatial attention: channels are weighed by what is made of all of them, as in CBAM."""

    def __init__(self, over):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDE, 1), nn.Sigmoid())
        self.over, self.tail = over, nn.Conv2d(WIDE, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        made = self.over(x)
        if made.dim() < 4:
            made = made[:, None]
        return self.tail(x) * made.sum(1, keepdim=True).tanh()


class Alone(Weighed):
    def forward(self, x):
        return self.tail(self.over(self.stem(x)))


def pooled(x):
    return torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)


def turned(x):
    return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)


EXACT = {
    "mean": lambda: Weighed(Over(lambda x: x.mean(1, keepdim=True))),
    "mean without its dimension": lambda: Weighed(Over(lambda x: x.mean(1))),
    "maximum": lambda: Weighed(Over(lambda x: -(-x).amin(1, keepdim=True))),
    "maximum without its dimension": lambda: Weighed(Over(lambda x: x.amax(1))),
    "maximum and mean": lambda: Weighed(Over(pooled)),
    "mean and maximum": lambda: Weighed(Over(turned)),
    "sum": lambda: Weighed(Over(lambda x: x.sum(1))),
    "length": lambda: Weighed(Over(lambda x: x.norm(dim=1))),
    "maximum above zero": lambda: Weighed(Over(lambda x: x.relu().amax(1))),
    "directions": lambda: Alone(Over(lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-10))),
    "directions with weights": lambda: Alone(ScaledLength()),
}


def network(kind):
    torch.manual_seed(0)
    return EXACT[kind]().eval()


def cut(graph, kept):
    mask = np.random.default_rng(0).permutation(graph["stem.0"].size) < kept
    return plan_keeping(graph, {graph.number("stem.0"): mask})


def outputs(model, x=PICTURES):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("kind", EXACT)
def test_cuts_are_exact_follow_each_other_and_are_saved(kind, tmp_path):
    model = network(kind)
    graph = netslim.trace(model, PICTURES)
    plan = cut(graph, 5)
    small = netslim.prune(model, plan)
    larger = torch.randn(1, 3, 5, 2)
    assert netslim.verify(model, small, plan, larger, graph=graph).deviation < 1e-13
    mask = netslim.Mask(network(kind), plan).apply()
    assert torch.allclose(outputs(mask.model), outputs(small), atol=1e-6)
    again = cut(netslim.trace(small, PICTURES), 1)
    smaller = netslim.prune(small, again)
    assert netslim.verify(small, smaller, again, PICTURES).deviation < 1e-13
    path = netslim.save(smaller, tmp_path / "smaller.safetensors")
    assert torch.equal(outputs(netslim.load(network(kind), path)), outputs(smaller))


@pytest.mark.parametrize("kind", ["mean without its dimension", "maximum and mean"])
def test_it_is_exported_and_written_without_netslim(kind):
    model = network(kind)
    small = netslim.prune(model, cut(netslim.trace(model, PICTURES), 3))
    for other in (torch.export.export(small, (PICTURES,)).module(), netslim.models.plain(small)):
        assert torch.allclose(outputs(other), outputs(small), atol=1e-6)


def test_in_code_that_does_more_and_cannot_be_read_a_module_of_its_own_is_advised():
    class Within(Weighed):
        def forward(self, x):
            x = self.stem(x)
            return self.tail(x) * (lambda x: x.mean(1, keepdim=True))(x)

    graph = netslim.trace(Within(nn.Identity()).eval(), PICTURES)
    assert graph["stem.0"].verdict == "inexact"
    assert "where a module of its own computes it" in graph.explain("stem.0")
    graph = netslim.trace(Weighed(Over(lambda x: x.logsumexp(1))).eval(), PICTURES)
    assert "forward" not in graph.explain("stem.0")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.amin(1),
        lambda x: x.var(1),
        lambda x: x.logsumexp(1),
        lambda x: (x + 1).sum(1),
        lambda x: x.softmax(1),
        lambda x: x.sum(1) / x.shape[1],
        lambda x: x.mean((1, 2), keepdim=True),
    ],
)
def test_others_stay_whole(function):
    graph = netslim.trace(Weighed(Over(function)).eval(), PICTURES)
    assert not graph["stem.0"].prunable
