"""Where there is no data, noise that has the statistics of batch normalisation takes its place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim import Budget, GradualPruning
from netslim.methods.noise import _examples, _noise, stand_in
from netslim.surgery import recalibrate
from netslim.surgery.history import history
from netslim.training.recipe.schema import Prune
from netslim.training.stages.prune import carry_out

X = torch.zeros(1, 2, 6, 6)
HALF = Budget(cut_macs=0.5)


def images(seed: int) -> Tensor:
    """Smooth, and far from mean 0 and variance 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(64, 2, 3, 3, generator=generator)
    return 20 + 5 * nn.functional.interpolate(coarse, (6, 6), mode="bilinear")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Filters are mixtures of a few, so that others can stand in for each."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for cin, cout in ((2, 12), (12, 12)):
        layers += [nn.Conv2d(cin, cout, 3), nn.BatchNorm2d(cout), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    with torch.no_grad():
        for layer in (network[0], network[3]):
            layer.weight.copy_(torch.einsum("of,f...->o...", torch.randn(12, 4), layer.weight[:4]))
        for norm in (network[1], network[4]):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0.5)
    return recalibrate(network, [images(seed) for seed in range(4)]).eval()


def error(small: nn.Module, network: nn.Module) -> float:
    """On images that nothing has seen, relative to what the outputs vary."""
    probe = images(9)
    with torch.no_grad():
        wanted, found = network(probe), small(probe)
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def test_it_is_nearer_than_the_same_share_of_every_layer(network):
    blind = netslim.slim(network, X, budget=HALF, criterion="l2", allocation="uniform")
    told: list[tuple[str, int, int]] = []
    small = netslim.slim(network, X, budget=HALF, progress=lambda *so_far: told.append(so_far))
    assert [done for what, done, _ in told if what == "scoring"] == [*range(1, 1 + told[-1][2])]
    assert netslim.cost(small, X).macs <= netslim.cost(network, X).macs / 2
    assert error(small, network) < error(blind, network) / 4


def test_what_is_not_cut_keeps_its_statistics(network):
    before = copy.deepcopy(network.state_dict())
    nothing = netslim.slim(network, X, budget=Budget(cut_macs=0.001), limits=netslim.Limits())
    kept = history(nothing).tensors
    rows = {row.tensor: list(row.kept) for row in kept if row.axis == 0}
    for name in ("1.running_mean", "1.running_var"):
        ours = nothing.state_dict()[name]
        torch.testing.assert_close(ours, before[name][rows.get(name, slice(None))])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_same_each_time_and_no_random_numbers_are_drawn(network):
    state = torch.get_rng_state()
    one, two = (netslim.slim(network, X, budget=HALF).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_it_is_said(network, caplog):
    caplog.set_level("INFO", "netslim")
    small = netslim.slim(network, X, budget=HALF)
    assert "there was no data" in caplog.text
    told = "chosen: criterion obs on noise, allocation cost, compensation "
    assert history(small).notes[0].startswith(told)


def test_a_mask_keeps_the_statistics(network):
    stage = Prune("prune", budget=HALF, mode="mask")
    done = carry_out(stage, network, X, lambda count: [], data=False)
    for name, buffer in done.network.named_buffers():
        torch.testing.assert_close(buffer, network.get_buffer(name))
    widths = {name: len(group.kept) for name, group in done.plan.groups.items()}
    gradual = GradualPruning(copy.deepcopy(network), X, HALF, steps=1)
    assert widths == {name: len(group.kept) for name, group in gradual.step().groups.items()}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(5, 4), nn.Linear(4, 8)
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.hidden(self.embedding(x).mean(1))).relu())


class OneOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise ValueError("one at a time")
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


PLAIN = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))


@pytest.mark.parametrize(
    ("model", "example"), [(PLAIN, X), (OneOnly(), X), (Tokens(), torch.zeros(2, 3, dtype=int))]
)
def test_where_it_does_not_help_the_same_share_of_every_layer_goes(model, example):
    assert stand_in(model.eval(), example) is None
    small = netslim.slim(model, example, budget=HALF)
    assert history(small).notes[0].startswith("chosen: criterion l2, allocation uniform")


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 7), (1, 3, 5, 8), (1, 2, 3, 4, 5)])
def test_noise_has_the_shape_of_the_inputs(shape):
    made = _noise(torch.zeros(shape), 32, torch.Generator().manual_seed(0))
    assert made.shape == (32, *shape[1:])
    assert abs(float(made.mean())) < 1e-6
    assert float(made.std()) == pytest.approx(1)


@pytest.mark.parametrize(("side", "size"), [(32, 32), (224, 10), (2000, 4)])
def test_of_large_inputs_there_are_fewer(side, size):
    assert _examples([torch.zeros(1, 3), torch.zeros(1).expand(1, 3, side, side)]) == size
