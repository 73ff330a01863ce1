"""Half of every group cut at random equals the silenced original, on whole networks with random
weights.
"""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from nets import DenseBlock, prove
from netslim import cost
from netslim.models import zoo

PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

ZOO = {
    "vgg11": lambda: zoo.vgg11(width=0.25),
    "vgg13": lambda: zoo.vgg13(width=0.25),
    "vgg16": lambda: zoo.vgg16(width=0.25),
    "vgg19": lambda: zoo.vgg19(width=0.25),
    "resnet20 projection": lambda: zoo.resnet20(shortcut="B"),
    "resnet20 zero padding": lambda: zoo.resnet20(shortcut="A"),
    "resnet110 zero padding": lambda: zoo.resnet110(shortcut="A"),
    "preresnet164": lambda: zoo.preresnet164(width=0.5),
    "densenet40": lambda: zoo.densenet40(),
    "dense block": DenseBlock,
}


@pytest.mark.parametrize("name", ZOO, ids=lambda n: n.replace(" ", "-"))
def test_zoo(name):
    _, _, small, check = prove(ZOO[name]().eval(), PICTURES)
    with torch.no_grad():
        assert small(PICTURES).shape[0] == 2
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
    model = torchvision.models.get_model(name, **({"init_weights": False} if "vgg" in name else {}))
    if (
        "vgg" in name
    ):  # with layers of 16 in place of 4,096: what is flattened, 512 maps of 7x7, stays as it is
        model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 16), nn.Linear(16, 16)
        model.classifier[6] = nn.Linear(16, 10)
    graph, plan, small, _ = prove(model.eval(), PICTURES[:1])
    assert graph.unsupported == {}
    assert {g.name for g in graph.groups if not g.prunable} == {
        name for name, why in graph.frozen.items() if why == "it is an output of the network"
    }
    masks = {graph.number(n): _mask(cut) for n, cut in plan.groups.items()}
    assert graph.params(masks) == sum(p.numel() for p in small.parameters())
    assert graph.macs(masks) == cost(small, PICTURES[:1]).macs


def _mask(cut):
    import numpy as np

    mask = np.zeros(cut.size, dtype=bool)
    mask[list(cut.kept)] = True
    return mask
