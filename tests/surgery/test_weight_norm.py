"""Weight norm along any dimension: what is left of a weight stays as it is, and nothing is 0 / 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import netslim
from netslim.graph.modules.weight_norms import weight_norms
from netslim.selection import merge
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise

NORMS = {"hook": nn.utils.weight_norm, "parametrised": parametrizations.weight_norm}
LAYERS = {
    "conv": (nn.Conv1d, {"kernel_size": 3}),
    "transposed": (nn.ConvTranspose1d, {"kernel_size": 3}),
    "linear": (nn.Linear, {}),
}
# -1 is None, and -2 the last but one.
CASES = [(kind, dim) for kind in LAYERS for dim in (None, 0, 1, 2, -1, -2, -3)]
CASES = [(kind, dim) for kind, dim in CASES if kind != "linear" or dim not in (2, -3)]

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


def network(kind: str, norm: str, dim: int | None) -> tuple[nn.Sequential, torch.Tensor]:
    """The normed layer reads six channels and makes four, in float64."""
    build, options = LAYERS[kind]
    torch.manual_seed(0)
    if kind == "linear":
        first, last, x = nn.Linear(3, 6), nn.Linear(4, 2), torch.randn(2, 3)
    else:
        first, last, x = nn.Conv1d(3, 6, 1), nn.Conv1d(4, 2, 1), torch.randn(2, 3, 9)
    normed = NORMS[norm](build(6, 4, **options), dim=dim)
    model = nn.Sequential(first, nn.ELU(), normed, nn.ELU(), last)
    return randomise(model).double().eval(), x.double()


def weight(model: nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
    """That of the normed layer, outputs first."""
    with torch.no_grad():
        model(x)
    found = model[2].weight.detach()
    if kind == "transposed":
        return found.transpose(0, 1)
    return found


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_what_is_left_of_a_weight_is_as_it_was(kind: str, dim: int | None, norm: str) -> None:
    model, x = network(kind, norm, dim)
    graph = netslim.trace(model, x)
    assert {name: graph[name].reason for name in ("0", "2")} == {"0": None, "2": None}
    made, read = [0, 3], [1, 2, 5]
    masks = {"0": np.isin(range(6), read), "2": np.isin(range(4), made)}
    plan = plan_keeping(graph, {graph.number(name): mask for name, mask in masks.items()})
    small = netslim.prune(model, plan)
    kept = weight(model, x, kind)[made][:, read]
    assert torch.allclose(weight(small, x, kind), kept, rtol=0, atol=1e-14)
    proof = netslim.verify(model, small, plan, x, graph=graph)
    assert proof.deviation < 1e-12
    assert proof.changed == proof.cut == 5


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_equal_channels_merge_whatever_their_gains(kind: str, dim: int | None) -> None:
    """Of what reads them the weights are summed: each has a gain of its own."""
    model, x = network(kind, "parametrised", dim)
    with torch.no_grad():
        model[0].weight[3:], model[0].bias[3:] = model[0].weight[:3], model[0].bias[:3]
    graph = netslim.trace(model, x)
    plan = merge(graph, {"0": [0, 1, 2, 0, 1, 2]})
    small = netslim.prune(model, plan)
    assert torch.allclose(small(x), model(x), rtol=0, atol=1e-12)
    assert netslim.verify(model, small, plan, x, graph=graph).deviation < 1e-12


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_normed_layers_that_make_merged_channels(kind: str, dim: int | None) -> None:
    model, x = network(kind, "parametrised", dim)
    graph = netslim.trace(model, x)
    plan = merge(graph, {"2": [0, 1, 0, 2]})
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, x, graph=graph).deviation < 1e-12


@pytest.mark.parametrize(
    ("kind", "dim"), [("conv", 0), ("transposed", 1), ("conv", 2), ("linear", 0)]
)
def test_a_weight_of_which_zeros_are_left_is_zero(kind: str, dim: int) -> None:
    """All that some directions hold is of channels that go."""
    model, x = network(kind, "parametrised", dim)
    (norm,) = weight_norms(model)
    direction = model.get_parameter(norm.direction).detach()
    if kind == "transposed":
        direction = direction.transpose(0, 1)
    if dim == 2:
        direction[:, :3, 0] = 0
    else:
        direction[1, :3] = 0
    graph = netslim.trace(model, x)
    plan = plan_keeping(graph, {graph.number("0"): np.arange(6) < 3})
    small = netslim.prune(model, plan)
    assert torch.allclose(weight(small, x, kind), weight(model, x, kind)[:, :3], atol=1e-14)
    assert netslim.verify(model, small, plan, x, graph=graph).deviation < 1e-12
