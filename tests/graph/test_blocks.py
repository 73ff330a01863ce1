"""Which residual branches of a network can go as a whole, and what takes their place."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import netslim
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise
from residual_nets import (
    IMAGES,
    DenseStage,
    Encoder,
    Images,
    Inverted,
    Next,
    Post,
    Pre,
    Shared,
    Tokens,
    Windows,
)


def blocks_of(model: nn.Module) -> netslim.ChannelGraph:
    return netslim.trace(model.eval(), IMAGES, blocks=True)


def names(graph: netslim.ChannelGraph) -> list[str]:
    return [group.name for group in graph.groups if group.block]


def told(graph: netslim.ChannelGraph, name: str) -> list[str]:
    """What takes the place of a block's modules."""
    assert graph.blocks is not None
    rows = graph.blocks.replaced([graph.block(name)])
    assert rows is not None
    return [str(row) for row in rows]


def test_a_residual_network():
    """The first of a wider stage has a projection, without which nothing would be left."""
    graph = blocks_of(Images(Post(6, 6), Post(6, 8, 2), Post(8, 8), Post(8, 8), width=8))
    assert names(graph) == ["blocks.0", "blocks.2", "blocks.3"]
    assert told(graph, "blocks.0") == ["blocks.0: hands on what it is given"]
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    held = [f"conv{n}.weight" for n in (1, 2)] + [f"bn{n}.{name}" for n in (1, 2) for name in norm]
    assert graph.block("blocks.2").tensors == {f"blocks.2.{name}" for name in held}


def test_an_activation_stays_where_it_changes_the_stream():
    """SiLU of SiLU is no SiLU; a ReLU of a ReLU is one."""
    graph = blocks_of(Images(Post(6, 6, act=nn.SiLU), Post(6, 6)))
    assert told(graph, "blocks.0") == ["blocks.0: only its act stays"]
    assert told(graph, "blocks.1") == ["blocks.1: only its act stays"]


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Images(Pre(6), Pre(6)), ["blocks.0", "blocks.1"]),
        (Images(Inverted(6, 6), Inverted(6, 8), Inverted(8, 8), width=8), ["blocks.0", "blocks.2"]),
        (Images(Next(6), Next(6)), ["blocks.0", "blocks.1"]),
        (Tokens(Encoder(8)), ["blocks.0.attn#block", "blocks.0.mlp"]),
        (Tokens(Windows(8)), ["blocks.0"]),
        (Images(DenseStage(6, 3, 2), width=12), ["blocks.0.layers.0", "blocks.0.layers.1"]),
        (netslim.zoo.densenet(7, growth=4), ["dense1.0", "dense2.0", "dense3.0"]),
        (Images(Shared(6, "")), ["blocks.0"]),
        (Images(Shared(6, "weights")), []),
        (Images(Shared(6, "inner")), []),
        (Images(Shared(6, "projection")), []),
    ],
    ids=[
        *("pre", "mobile", "next", "vit", "windows", "dense", "zoo"),
        "plain",
        "weights",
        "inner",
        "projection",
    ],
)
def test_counted_by_hand(model, found):
    assert names(blocks_of(model)) == found


def test_branches_of_one_forward():
    """Its modules give zeros; of both branches nothing is left, and the whole block goes."""
    graph = blocks_of(Tokens(Encoder(8)))
    assert told(graph, "blocks.0.attn#block") == [
        "blocks.0.norm1: gives zeros in place of the branch",
        "blocks.0.attn: gives zeros in place of the branch",
        "blocks.0.drop: hands on what it is given",
    ]
    assert told(graph, "blocks.0.mlp") == [
        "blocks.0.norm2: gives zeros in place of the branch",
        "blocks.0.mlp: hands on what it is given",
        "blocks.0.depth: hands on what it is given",
    ]
    assert graph.blocks is not None
    both = graph.blocks.replaced(graph.blocks.found)
    assert both is not None
    assert [str(row) for row in both] == ["blocks.0: hands on what it is given"]


def test_layers_of_a_densenet():
    """Where nothing else is put beside the stream, the layer hands it on."""
    graph = blocks_of(Images(DenseStage(6, 3, 2), width=12))
    assert told(graph, "blocks.0.layers.0") == ["blocks.0.layers.0: makes no channels"]
    (number,) = graph.block("blocks.0.layers.0").channels
    assert graph.groups[number].name == "blocks.0.layers.0.conv2"
    graph = blocks_of(netslim.zoo.densenet(7, growth=4))
    assert told(graph, "dense1.0") == ["dense1.0: hands on what it is given"]


def test_what_it_holds_is_counted():
    graph = blocks_of(Images(Pre(6), Pre(6)))
    params, macs, activations = graph.shares()["blocks.0"]
    pixels, weights = 64, 2 * 9 * 6 * 6
    assert params * graph.params() == pytest.approx(weights + 4 * 6)
    assert macs * graph.macs() == pytest.approx(2 * pixels * weights)
    assert activations * graph.activations() == pytest.approx(2 * 2 * pixels * 6)
    assert graph["blocks.0"].stands_for == 6


def test_a_thread_that_runs_parts_meanwhile_is_not_listened_to():
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Around()

        def forward(self, x: Tensor) -> Tensor:
            beside = threading.Thread(target=self.net, args=(x,))
            beside.start()
            beside.join()
            return self.net(x)

    expected = [f"net.{name}" for name in names(blocks_of(Around()))]
    assert names(blocks_of(Watched())) == expected
    assert expected


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_beside_a_scripted_layer():
    class Scripted(Pre):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)
            self.ends = torch.jit.script(nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return x + self.ends(super().forward(x))

    graph = blocks_of(Images(Scripted(6), Pre(6)))
    assert "blocks.1" in names(graph)


def test_nobody_asked():
    """Then there is none, and all else is as it is with them."""
    model = Images(Pre(6), Pre(6)).eval()
    plain, asked = netslim.trace(model, IMAGES), blocks_of(model)
    assert plain.blocks is None
    assert [g.name for g in plain] == [g.name for g in asked if not g.block]
    assert plain.macs() == asked.macs()
    with pytest.raises(netslim.NetslimError, match="there is no block"):
        plain.block("blocks.0")


def test_said_in_words():
    graph = blocks_of(Images(Pre(6), Pre(6)))
    assert "Block blocks.0: a residual branch" in str(graph["blocks.0"])
    assert "2 blocks can go as a whole: blocks.0 and blocks.1" in str(graph)


class Around(nn.Module):
    """A long skip around two blocks, as networks for super-resolution have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
        self.blocks = nn.ModuleList([Pre(6), Pre(6)])

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x + first)


def test_a_branch_around_others_has_a_name_of_its_own():
    model = randomise(Around())
    graph = blocks_of(model)
    assert names(graph) == ["blocks.0", "blocks.1", "blocks.0#2"]
    whole = graph.macs()
    for number, name in enumerate(names(graph), len(graph.groups) - 3):
        masks = {number: np.zeros(1, dtype=bool)}
        plan = plan_keeping(graph, masks)
        small = netslim.prune(model, plan)
        netslim.verify(model, small, plan, IMAGES)
        assert graph.macs(masks) == netslim.cost(small, IMAGES).macs < whole
        assert [block.name for block in plan.dropped.blocks] == [name]
        assert isinstance(small.blocks[1], Pre) == (name == "blocks.0")


class Written(nn.Module):
    """Someone writes into what a block gives."""

    def __init__(self, writes) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 6, 1), Pre(6), nn.Conv2d(6, 2, 1)
        self.writes = writes

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x).sigmoid()
        return self.head(first * self.writes(self.block(first)))


@pytest.mark.parametrize(
    "writes",
    [nn.ReLU(inplace=True), nn.Dropout(inplace=True), lambda x: x.flatten(2).mul_(2).view_as(x)],
    ids=["activation", "dropout", "view"],
)
def test_what_is_written_into_is_no_other_s(writes):
    """A module that hands on what it is given hands on the very tensor: there the sum is run."""
    model = randomise(Written(writes))
    graph = blocks_of(model)
    assert names(graph) == ["block.bn1"]
    masks = {len(graph.groups) - 1: np.zeros(1, dtype=bool)}
    small = netslim.prune(model, plan_keeping(graph, masks)).train()
    small(IMAGES).sum().backward()


class Dropped(Pre):
    """Dropout on the stream, which does nothing in evaluation."""

    def __init__(self, by_module: bool) -> None:
        super().__init__(6)
        self.dropout = nn.Dropout(0.5) if by_module else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.dropout is not None:
            return self.dropout(x)
        return F.dropout(x, 0.5, self.training)


@pytest.mark.parametrize("by_module", [True, False])
def test_what_is_done_to_the_stream_in_training_stays(by_module):
    model = randomise(Images(Dropped(by_module), Pre(6)))
    graph = blocks_of(model)
    assert names(graph) == ["blocks.0.bn1", "blocks.1"]
    masks = {len(graph.groups) - 2: np.zeros(1, dtype=bool)}
    small = netslim.prune(model, plan_keeping(graph, masks))
    assert torch.equal(small(IMAGES), small(IMAGES))
    small.train()
    assert not torch.equal(small(IMAGES), small(IMAGES))


class DroppedBefore(Pre):
    """The same before the branch, right in the block or in a part of it."""

    def __init__(self, noise: nn.Module) -> None:
        super().__init__(6)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.noise(x))


class Within(nn.Module):
    """Hands on what a part makes of what it is given."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def noisy(module: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, module.training)


class DroppedBy(Pre):
    """The same by code that is not in the forward."""

    def __init__(self, way: str) -> None:
        super().__init__(6)
        self.way = way
        self.noise = nn.Dropout(0.5) if way == "found" else None
        self.held = noisy if way == "held" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "function":
            return super().forward(noisy(self, x))
        if self.way == "method":
            return super().forward(self.noised(x))
        if self.held is not None:
            return super().forward(self.held(self, x))
        if self.noise is not None:
            return super().forward(getattr(self, "no" + "ise")(x))
        drop = getattr(F, "dropout")  # noqa: B009
        return super().forward(drop(x, 0.5, getattr(self, "training")))  # noqa: B009

    def noised(self, x: Tensor) -> Tensor:
        return noisy(self, x)


BEFORE = {
    "by a function elsewhere": lambda: DroppedBy("function"),
    "by a method": lambda: DroppedBy("method"),
    "by a function that is held": lambda: DroppedBy("held"),
    "by a module that is found": lambda: DroppedBy("found"),
    "by names in strings": lambda: DroppedBy("strings"),
    "own": lambda: DroppedBefore(nn.Dropout(0.5)),
    "in a part": lambda: DroppedBefore(nn.Sequential(nn.Dropout(0.5))),
    "further within": lambda: Within(DroppedBefore(nn.Dropout(0.5))),
    "after it, by a function": lambda: Within(Dropped(by_module=False)),
}


@pytest.mark.parametrize("where", BEFORE)
def test_what_is_done_to_the_stream_before_a_branch_stays(where):
    model = randomise(Images(BEFORE[where](), Pre(6)))
    graph = blocks_of(model)
    assert names(graph)[-1] == "blocks.1"
    assert len(names(graph)) == 2
    plan = plan_keeping(graph, {len(graph.groups) - 2: np.zeros(1, dtype=bool)})
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, IMAGES, graph=graph).deviation < 1e-12
    small.train()
    assert not torch.equal(small(IMAGES), small(IMAGES))


class Query(nn.Module):
    """A learnt query, of one example, asks tokens of any number of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.stem = nn.Parameter(torch.randn(1, 1, 6)), nn.Conv2d(3, 6, 1)
        self.norm, self.keys, self.head = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens, query = self.stem(x).flatten(2).transpose(1, 2), self.norm(self.query)
        found = (query @ self.keys(tokens).transpose(1, 2)).softmax(-1) @ tokens
        return self.head(query + found)


def test_what_has_no_batch_is_no_stream():
    assert not names(netslim.trace(Query().eval(), IMAGES[:1], blocks=True))


class Into(nn.Module):
    """Writes a sum into its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(x).relu()
        y += x
        return self.head(y)


def test_zeros_that_broadcast_are_not_written_into():
    assert not names(blocks_of(Into()))
