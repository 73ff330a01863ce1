"""What the callbacks of every trainer share: a method that is made, attached, told, detached."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch
from torch import nn

import netslim
from netslim.errors import TrainingError
from netslim.integrations.in_training import InTraining

X = torch.rand(4, 3, 8, 8)


def soft(network: nn.Module) -> netslim.SoftFilterPruning:
    return netslim.SoftFilterPruning(netslim.trace(network, X), network, rate=0.5)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))


def test_a_method_lives_as_long_as_the_training():
    network = layers()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    training = InTraining(soft)
    with pytest.raises(TrainingError, match="no sparse training has begun"):
        _ = training.method
    training.start(nn.DataParallel(network), [optimizer])
    assert training.method.model is network
    training.end_epoch()
    assert (network[0].weight.flatten(1).abs().sum(1) == 0).sum() == 4
    training.stop()
    assert isinstance(training.method, netslim.SoftFilterPruning)


def test_methods_that_know_no_epochs_are_told_of_none():
    network = layers()
    training = InTraining(partial(netslim.NetworkSlimming, strength=1e-3))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    training.start(network, [optimizer])
    assert optimizer._optimizer_step_pre_hooks
    training.end_epoch()
    training.stop()
    assert not optimizer._optimizer_step_pre_hooks


def test_other_processes_make_methods_of_their_own():
    network = layers()
    training = InTraining(soft)
    training.start(network, [torch.optim.SGD(network.parameters(), lr=0.1)])
    again = pickle.loads(pickle.dumps(training))
    with pytest.raises(TrainingError):
        _ = again.method
