"""Networks that load where netslim is not installed, whatever netslim has put into them."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

import netslim
from elsewhere import Without
from netslim import models
from netslim.errors import ArgumentError
from netslim.models import ChannelSelect, plain
from netslim.surgery.proof.silencing import randomise

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "selections": ("zoo:preresnet", {"depth": 11, "width": 0.25, "add_selection": True}),
    "norms": ("torchvision:squeezenet1_1", {"num_classes": 4, "add_bn": True}),
    "vgg": ("zoo:vgg", {"layers": [8, "M", 8]}),
    "resnet": ("zoo:resnet", {"depth": 8, "width": 0.5}),
    "densenet": ("zoo:densenet", {"depth": 7, "width": 0.5}),
    "imagenet": ("zoo:resnet18", {"width": 0.1}),
    "mlp": ("zoo:mlp", {"in_features": 3 * 32 * 32, "hidden": [8]}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_cut_and_made_plain_loads_without_netslim(name):
    network, kwargs = NETWORKS[name]
    model = randomise(models.build(network, **kwargs)).eval()
    small = netslim.slim(model, X, budget=netslim.Budget(cut_channels=0.3), criterion="l1")
    written = pickle.dumps(plain(small))
    again = Without.loads(written)
    assert torch.equal(again(X), small(X))
    assert not again.training
    assert (
        sum(p.numel() for p in again.parameters())
        == sum(p.numel() for p in small.parameters())
        < sum(p.numel() for p in model.parameters())
    )
    training, taught = again.train()(X), small.train()(X)
    if "squeezenet" not in network:  # whose dropout draws
        assert torch.equal(training, taught)


def test_the_model_itself_stays_as_it_is():
    model = models.build("zoo:preresnet", depth=11, width=0.25, add_selection=True).eval()
    before, names = model(X), list(model.state_dict())
    plain(model)
    assert list(model.state_dict()) == names
    assert torch.equal(model(X), before)


def test_a_plain_module_is_copied():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    assert type(plain(model)) is nn.Sequential
    assert torch.equal(plain(model)(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_a_selection_of_ones_own_held_twice_stays_one():
    select = ChannelSelect(3)
    again = Without.loads(pickle.dumps(plain(nn.ModuleList([select, nn.Sequential(select)]))))
    assert again[0] is again[1][0]
    assert torch.equal(again[0](X), X)


def test_what_cannot_be_followed_is_said(monkeypatch):
    model = ChannelSelect(3)
    monkeypatch.setattr(ChannelSelect, "forward", lambda self, x: x if x.sum() > 0 else -x)
    with pytest.raises(ArgumentError, match=r"ChannelSelect cannot .* netslim.export writes"):
        plain(model)
