"""Parameter groups with weight decay on or off normalisation layers."""

import math

import pytest
import torch
from torch import nn

from netslim.errors import ArgumentError
from netslim.methods.decay import parameter_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.norms = nn.ModuleList(
            [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True)]
        )
        self.rms, self.head = nn.RMSNorm(4), nn.Linear(4, 2)


def names(model, group):
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for parameter in group["params"]]


def test_one_group_with_everything():
    model = Net()
    (group,) = parameter_groups(model, 1e-4)
    assert group["weight_decay"] == 1e-4
    assert names(model, group) == [name for name, _ in model.named_parameters()]


def test_scales_and_shifts_apart():
    model = Net()
    weights, norms = parameter_groups(model, 1e-4, norm_decay=0)
    assert names(model, weights) == ["conv.weight", "conv.bias", "head.weight", "head.bias"]
    assert names(model, norms)[:2] == ["bn.weight", "bn.bias"]
    assert len(norms["params"]) == 2 + 3 * 2 + 1
    assert (weights["weight_decay"], norms["weight_decay"]) == (1e-4, 0)


def test_it_is_what_the_optimizer_does():
    model = Net()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(parameter_groups(model, 0.5, norm_decay=0.25), lr=0.5).step()
    for name, parameter in model.named_parameters():
        factor = 0.75 if name.startswith(("conv", "head")) else 0.875
        torch.testing.assert_close(parameter.detach(), factor * before[name])


def test_frozen_parameters_are_left_out():
    model = Net()
    model.conv.requires_grad_(False)
    model.bn.bias.requires_grad_(False)
    weights, norms = parameter_groups(model, 1e-4, norm_decay=0)
    assert names(model, weights) == ["head.weight", "head.bias"]
    assert names(model, norms)[0] == "bn.weight"
    assert "bn.bias" not in names(model, norms)


def test_shared_parameters_are_there_once():
    model = Net()
    model.second = nn.Linear(4, 2)
    model.second.weight = model.head.weight
    model.again = nn.BatchNorm2d(4)
    model.again.weight = model.bn.weight
    for norm_decay in (None, 0):
        found = [
            id(p) for group in parameter_groups(model, 1e-4, norm_decay) for p in group["params"]
        ]
        assert sorted(found) == sorted({id(parameter) for parameter in model.parameters()})


def test_only_normalisation_layers():
    (group,) = parameter_groups(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()), 1e-4, norm_decay=0.0)
    assert group["weight_decay"] == 0.0
    assert len(group["params"]) == 2


def test_a_wrapped_model():
    model = Net()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert names(model, parameter_groups(wrapped, 1e-4, 0)[1])[:2] == ["bn.weight", "bn.bias"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parameter_groups(Net(), -1), r"weight_decay must be 0 or more, not -1"),
        (
            lambda: parameter_groups(Net(), "1e-4"),
            r"weight_decay must be a number, got the str '1e-4'",
        ),
        (lambda: parameter_groups(Net(), 0.1, math.nan), r"norm_decay must be 0 or more, not nan"),
        (
            lambda: parameter_groups(Net().requires_grad_(False), 0.1),
            r"Net has no parameter that requires a gradient",
        ),
        (
            lambda: parameter_groups(nn.Linear(2, 2), 0.1, 0),
            r"norm_decay has nothing to act on: Linear has no normal",
        ),
        (lambda: parameter_groups([torch.ones(2)], 0.1), r"needs a torch.nn.Module, got list"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
