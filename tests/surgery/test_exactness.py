"""Half of every group cut at random equals the silenced original, on whole networks with random
weights.
"""

from __future__ import annotations

import pytest
import torch
import torchvision

from nets import DenseBlock, prove
from netslim import cost
from netslim.models import zoo

SMALL = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LARGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))

ZOO = {
    "vgg11": lambda: zoo.vgg11(),
    "vgg13": lambda: zoo.vgg13(),
    "vgg16": lambda: zoo.vgg16(),
    "vgg19": lambda: zoo.vgg19(),
    "resnet20 projection": lambda: zoo.resnet20(shortcut="B"),
    "resnet20 zero padding": lambda: zoo.resnet20(shortcut="A"),
    "resnet110 zero padding": lambda: zoo.resnet110(shortcut="A"),
    "preresnet164": lambda: zoo.preresnet164(width=0.5),
    "densenet40": lambda: zoo.densenet40(),
    "dense block": DenseBlock,
}


@pytest.mark.parametrize("name", ZOO, ids=lambda n: n.replace(" ", "-"))
def test_zoo(name):
    _, _, small, check = prove(ZOO[name]().eval(), SMALL)
    with torch.no_grad():
        assert small(SMALL).shape[0] == 2
    assert check.cut > 0


def test_mlp():
    graph, plan, *_ = prove(zoo.mlp().eval(), torch.randn(3, 1, 28, 28))
    assert [g.size for g in graph.prunable] == [500, 300]
    assert plan.removed == 400


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "densenet121",
        "shufflenet_v2_x0_5",
        "vgg16_bn",
        "resnext50_32x4d",
    ],
)
def test_torchvision(name):
    size = {"num_classes": 10} if name == "vgg16_bn" else {}
    model = torchvision.models.get_model(name, **size).eval()
    graph, plan, small, _ = prove(model, LARGE)
    assert graph.unsupported == {}
    assert {g.name for g in graph.groups if not g.prunable} == {
        name for name, why in graph.frozen.items() if why == "it is an output of the network"
    }
    masks = {graph.number(n): _mask(cut) for n, cut in plan.groups.items()}
    assert graph.params(masks) == sum(p.numel() for p in small.parameters())
    assert graph.macs(masks) == cost(small, LARGE).macs


def _mask(cut):
    import numpy as np

    mask = np.zeros(cut.size, dtype=bool)
    mask[list(cut.kept)] = True
    return mask
