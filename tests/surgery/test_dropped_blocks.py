"""Blocks go: nothing of them stays, the rest computes what it did without them, files keep it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import netslim
from netslim.graph.modules.placeholders import Replacement
from netslim.surgery.history import history
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise
from residual_nets import (
    IMAGES,
    DenseStage,
    Encoder,
    Images,
    Inverted,
    Next,
    OfPyTorch,
    Post,
    Pre,
    Tokens,
    Windows,
)

NETS: dict[str, Callable[[], nn.Module]] = {
    "post": lambda: Images(Post(6, 6), Post(6, 8, 2), Post(8, 8), width=8),
    "swish": lambda: Images(Post(6, 6, act=nn.SiLU), Post(6, 6, act=nn.SiLU)),
    "pre": lambda: Images(Pre(6), Pre(6)),
    "mobile": lambda: Images(Inverted(6, 6), Inverted(6, 8), Inverted(8, 8), width=8),
    "next": lambda: Images(Next(6), Next(6)),
    "vit": lambda: Tokens(Encoder(8), Encoder(8)),
    "windows": lambda: Tokens(Windows(8), Windows(8)),
    "encoder": lambda: Tokens(OfPyTorch(8, first=True)),
    "encoder, norms last": lambda: Tokens(OfPyTorch(8, first=False)),
    "dense": lambda: Images(DenseStage(6, 3, 2), width=12),
    "zoo": lambda: netslim.zoo.densenet(7, growth=4),
}


def planned(
    graph: netslim.ChannelGraph, blocks: Sequence[str], channels: bool = False
) -> netslim.PruningPlan:
    """These blocks go, and every other channel of the groups that can lose some."""
    masks = {graph.number(name): np.zeros(1, dtype=bool) for name in blocks}
    for number, group in enumerate(graph.groups):
        if channels and group.prunable and not group.block and group.size > 1:
            masks[number] = np.arange(group.size) % 2 == 0
    return plan_keeping(graph, masks)


def blocks_in(graph: netslim.ChannelGraph) -> list[str]:
    return [group.name for group in graph.groups if group.block]


@pytest.mark.parametrize("kind", NETS)
def test_the_cut_is_proved(kind, tmp_path):
    """The first block; and all, with channels. What is left is kept in a file."""
    torch.manual_seed(0)
    model = NETS[kind]().eval()
    graph = netslim.trace(model, IMAGES, blocks=True)
    every = blocks_in(graph)
    for chosen, channels in ((every[:1], False), (every, True)):
        plan = planned(graph, chosen, channels)
        small = netslim.prune(model, plan)
        proof = netslim.verify(model, small, plan, IMAGES, graph=graph)
        assert proof.deviation is not None
        assert proof.deviation < 1e-12
        assert proof.cut == plan.removed + sum(bool(block.sums) for block in plan.dropped.blocks)
        masks = {graph.number(name): np.zeros(1, dtype=bool) for name in chosen}
        for name, cut in plan.groups.items():
            masks[graph.number(name)] = np.isin(np.arange(cut.size), cut.kept)
        counted = netslim.cost(small, IMAGES)
        assert (counted.params, counted.macs) == (graph.params(masks), graph.macs(masks))
        left = {name for name, _ in small.named_parameters()}
        gone = set().union(*(graph.block(name).tensors for name in chosen))
        assert left == {name for name, _ in model.named_parameters()} - gone
        assert netslim.PruningPlan.from_json(plan.to_json()) == plan
    path = netslim.save(small, tmp_path / "small.safetensors")
    assert torch.equal(netslim.load(NETS[kind]().eval(), path)(IMAGES), small(IMAGES))


def test_a_wrong_cut_is_found():
    """A branch of which the plan says that it goes, and that runs still."""
    model = NETS["post"]().eval()
    graph = netslim.trace(model, IMAGES, blocks=True)
    plan = planned(graph, ["blocks.0"])
    other = planned(graph, ["blocks.2"])
    lied = replace(plan, dropped=replace(plan.dropped, blocks=other.dropped.blocks))
    with pytest.raises(netslim.NetslimError, match="differs"):
        netslim.verify(model, netslim.prune(model, lied), lied, IMAGES, graph=graph)


def test_what_a_cut_leaves_is_cut_again(tmp_path):
    """Channels, a block, another block and channels; one fresh network takes it all at once."""
    make = NETS["pre"]
    first = small = make().eval()
    for blocks in ([], ["blocks.1"], ["blocks.0"]):
        graph = netslim.trace(small, IMAGES, blocks=True)
        plan = planned(graph, blocks, channels=not blocks or blocks == ["blocks.0"])
        after = netslim.prune(small, plan)
        netslim.verify(small, after, plan, IMAGES, graph=graph)
        small = after
    assert not [name for name, _ in small.named_parameters() if name.startswith("blocks.")]
    path = netslim.save(small, tmp_path / "small.safetensors")
    loaded = netslim.load(make().eval(), path)
    assert torch.equal(loaded(IMAGES), small(IMAGES))
    past = history(small)
    assert past is not None
    assert past.fingerprint == netslim.trace(first, IMAGES).fingerprint
    assert [block.name for block in past.dropped.blocks] == ["blocks.1", "blocks.0"]


def test_in_place():
    """Optimizers let go of what is gone, and an error leaves everything as it was."""
    model = NETS["vit"]().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(IMAGES).sum().backward()
    optimizer.step()
    graph = netslim.trace(model, IMAGES, blocks=True)
    plan = planned(graph, ["blocks.1.mlp"], channels=True)
    average = torch.optim.swa_utils.AveragedModel(model)
    shadow = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = netslim.prune(model.eval(), plan)
    netslim.prune_(model, plan, optimizer=optimizer, companions=[average, shadow])
    assert torch.equal(model(IMAGES), small(IMAGES))
    left = {id(parameter) for parameter in model.parameters()}
    assert {id(one) for one in optimizer.param_groups[0]["params"]} == left
    assert {id(one) for one in optimizer.state} <= left
    assert shadow.keys() == model.state_dict().keys() == average.module.state_dict().keys()
    model.train()(IMAGES).sum().backward()
    optimizer.step()


def test_an_error_leaves_all_as_it_was(monkeypatch):
    model = NETS["pre"]().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = planned(netslim.trace(model, IMAGES, blocks=True), ["blocks.0"])
    before, wanted = [*optimizer.param_groups[0]["params"]], model(IMAGES)

    def broken(*args: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr("netslim.surgery.prune._finish", broken)
    with pytest.raises(RuntimeError, match="no room"):
        netslim.prune_(model, plan, optimizer=optimizer)
    assert torch.equal(model(IMAGES), wanted)
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], before, strict=True))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text.replace('"blocks.0"', '"blocks.9"'), "digest"),
        (lambda text: text.replace('"format":3', '"format":4'), "format"),
    ],
)
def test_damaged_plans(damage, told):
    graph = netslim.trace(NETS["pre"]().eval(), IMAGES, blocks=True)
    text = planned(graph, ["blocks.0"]).to_json()
    with pytest.raises(netslim.NetslimError, match=told):
        netslim.PruningPlan.from_json(damage(text))


def test_rows_that_cannot_be():
    graph = netslim.trace(NETS["pre"]().eval(), IMAGES, blocks=True)
    plan = planned(graph, ["blocks.0"])
    rows = plan.dropped
    twice = replace(rows, replaced=(*rows.replaced, *rows.replaced))
    silly = replace(rows, replaced=(replace(rows.replaced[0], answer="[1"),))
    lost = replace(rows, tensors=rows.tensors[1:])
    for wrong, said in ((twice, "twice"), (silly, "cannot be read"), (lost, "missing")):
        with pytest.raises(netslim.NetslimError, match=said):
            netslim.prune(NETS["pre"]().eval(), replace(plan, dropped=wrong))


def test_without_netslim():
    """Pickled without a class of ours."""
    torch.manual_seed(0)
    model = NETS["vit"]().eval()
    graph = netslim.trace(model, IMAGES, blocks=True)
    small = netslim.prune(model, planned(graph, blocks_in(graph)[:1]))
    plain = netslim.models.plain(small)
    kinds = {type(module).__module__.partition(".")[0] for module in plain.modules()}
    assert "netslim" not in kinds
    assert torch.equal(plain(IMAGES), small(IMAGES))


def test_said_in_words():
    model = NETS["post"]().eval()
    plan = planned(netslim.trace(model, IMAGES, blocks=True), ["blocks.0"])
    said = plan.explain()
    assert "0 channels and 1 block go" in said
    assert "blocks.0: the block goes" in said
    assert partial(netslim.prune, model)(plan) is not model


# ---------------------------------------------------------------- made up for, and in one call


@pytest.mark.parametrize("kind", ["post", "vit"])
def test_layers_behind_make_up_for_a_block(kind):
    """Their inputs are fitted by what is left of them, which a stream of few channels allows."""
    torch.manual_seed(0)
    model = randomise(NETS[kind]().eval())
    images = torch.randn(48, 3, 8, 8)
    graph = netslim.trace(model, images[:1], blocks=True)
    plan = planned(graph, blocks_in(graph)[:1], channels=False)
    folding = netslim.surgery.compensate(model, plan, [images[:32]], "linear")
    mended = netslim.prune(folding.model, folding.plan)
    netslim.verify(folding.model, mended, folding.plan, images[:2])
    right = model(images[32:])
    errors = [
        float((small(images[32:]) - right).square().sum().detach())
        for small in (netslim.prune(model, plan), mended)
    ]
    assert errors[1] < 0.05 * errors[0]
    assert "what has come of others" in str(folding)


def test_layers_of_a_densenet_in_one_call():
    torch.manual_seed(0)
    model = NETS["zoo"]().eval()
    batches = [(torch.randn(16, 3, 8, 8), None) for _ in range(4)]
    wanted, limits = {"dense1.0": 1}, netslim.Limits(blocks=True)
    small = netslim.slim(
        model, IMAGES[:1], per_group=wanted, batches=batches, criterion="obs", limits=limits,
        compensation=netslim.selection.Compensation("linear"),
    )  # fmt: skip
    assert isinstance(small.dense1[0], nn.Identity)
    assert small.transition1.bn.num_features == model.transition1.bn.num_features - 4


def test_in_one_call():
    """What is worth nothing goes first, and only if it is allowed to."""
    torch.manual_seed(0)
    model = NETS["post"]().eval()
    nn.init.zeros_(model.blocks[0].bn2.weight)
    batches = [(torch.randn(16, 3, 8, 8), None) for _ in range(4)]
    half = netslim.Budget(cut_macs=0.3)
    limits = netslim.Limits(blocks=True)
    small = netslim.slim(model, IMAGES[:1], budget=half, batches=batches, limits=limits)
    assert isinstance(small.blocks[0], nn.Identity)
    small = netslim.slim(model, IMAGES[:1], budget=half, batches=batches)
    assert isinstance(small.blocks[0], Post)


def test_what_does_not_verify_is_left_alone(caplog):
    """A forward that asks for a part of the block."""

    class Asks(Images):
        def forward(self, x):
            assert hasattr(self.blocks[0], "conv1"), "no convolution"
            return super().forward(x)

    torch.manual_seed(0)
    model = Asks(Pre(6), Pre(6)).eval()
    wanted = {"blocks.0": 1, "blocks.1": 1}
    limits = netslim.Limits(blocks=True)
    small = netslim.slim(model, IMAGES[:1], per_group=wanted, limits=limits)
    assert isinstance(small.blocks[0], Pre)
    assert isinstance(small.blocks[1], nn.Identity)
    assert "left alone, because the cut did not verify: blocks.0" in caplog.text


def test_the_activation_that_stays_is_a_copy_where_it_may_not_write():
    """In a cut in place that fails the model's own goes on as it was."""
    block = nn.Sequential(nn.Linear(2, 2), nn.SiLU(inplace=True))
    made = Replacement("block", child="1").made(block)
    assert isinstance(made, nn.SiLU)
    assert (made.inplace, block[1].inplace) == (False, True)
