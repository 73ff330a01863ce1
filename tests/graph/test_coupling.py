"""Shortcuts, pacesetters and projections, found from the coupling alone."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from nets import Chain, DenseBlock, Residual
from netslim import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.coupling import pacesetter, projections
from netslim.models import zoo


def leaders(graph: ChannelGraph) -> dict[str, str]:
    return {
        g.name: pacesetter(graph, g).removesuffix(".weight") for g in graph.groups if g.shortcut
    }


def traced(model: nn.Module, size: int = 64) -> ChannelGraph:
    return trace(model, torch.zeros(1, 3, size, size))


@pytest.mark.parametrize("depth", [18, 34])
def test_basic_blocks_of_torchvision(depth):
    graph = traced(getattr(torchvision.models, f"resnet{depth}")())
    stages = {f"layer{s}.0.conv2": f"layer{s}.0.downsample.0" for s in (2, 3, 4)}
    assert leaders(graph) == {"conv1": "conv1"} | stages
    assert [projections(graph, g) for g in graph.groups if g.shortcut] == [
        [],
        *([f"{p}.weight"] for p in stages.values()),
    ]


@pytest.mark.parametrize("depth", [50, 101])
def test_bottlenecks_of_torchvision(depth):
    """C-SGD's table for ResNet-50: the convolutions number 1, 11, 24 and 43."""
    graph = traced(getattr(torchvision.models, f"resnet{depth}")())
    stages = {f"layer{s}.0.conv3": f"layer{s}.0.downsample.0" for s in (1, 2, 3, 4)}
    assert leaders(graph) == stages
    assert all(projections(graph, graph[name]) == [f"{p}.weight"] for name, p in stages.items())


def test_cifar_resnets_with_projections():
    graph = traced(zoo.resnet20(shortcut="B"), 32)
    assert leaders(graph) == {
        "conv1": "conv1",
        "layer2.0.conv2": "layer2.0.shortcut.0",
        "layer3.0.conv2": "layer3.0.shortcut.0",
    }


def test_cifar_resnets_with_padding():
    """Each group is led by the layer that first makes its channels; nothing projects."""
    for depth in (8, 20):
        graph = traced(zoo.resnet(depth), 32)
        assert leaders(graph) == {n: n for n in ("conv1", "layer2.0.conv2", "layer3.0.conv2")}
        assert not any(projections(graph, g) for g in graph.groups)


def test_pre_activation_resnets():
    graph = traced(zoo.preresnet(20), 32)
    assert leaders(graph) == {f"layer{s}.0.conv3": f"layer{s}.0.shortcut" for s in (1, 2, 3)}


def test_depthwise_layers_and_gates_are_no_shortcuts():
    graph = traced(torchvision.models.mobilenet_v2())
    assert leaders(graph) == {
        f"features.{i}.conv.2": f"features.{i}.conv.2" for i in (2, 4, 7, 11, 14)
    }
    graph = traced(torchvision.models.mobilenet_v3_small())
    gated = graph["features.4.block.0.0"]  # scaled by the second layer of a squeeze-and-excitation
    assert gated.producers == ("features.4.block.0.0.weight", "features.4.block.2.fc2.weight")
    assert not gated.shortcut
    assert not projections(graph, gated)
    assert graph["features.4.block.3.0"].shortcut


def test_chains_and_concatenations_have_none():
    for model, size in ((Chain(), 8), (DenseBlock(), 8), (zoo.densenet(13), 32)):
        graph = traced(model, size)
        assert not leaders(graph)
        assert all(pacesetter(graph, g) == g.producers[0] for g in graph.groups)


def test_the_stem_leads_where_nothing_projects():
    graph = traced(Residual(), 8)
    assert leaders(graph) == {"stem.0": "stem.0"}
    assert graph["stem.0"].producers == ("stem.0.weight", "outer.weight")


class Sums(nn.Module):
    """Adds the halves of one layer; then two parallel layers, of which neither runs beside a block."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.left, self.right = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Conv2d(4, 6, 1),
        )
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, dim=1)
        x = (a + b).relu()
        return self.head((self.left(x) + self.right(x)).relu())


def test_a_layer_added_to_itself_is_no_shortcut_and_parallel_layers_do_not_project():
    graph = traced(Sums(), 8)
    assert not graph["both"].shortcut
    assert graph["left"].shortcut
    assert pacesetter(graph, graph["left"]) == "left.weight"
    assert not projections(graph, graph["left"])
