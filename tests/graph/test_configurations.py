"""Sizes that a forward reads from a configuration follow a cut, each module's in a copy of its own."""

from __future__ import annotations

import threading
from argparse import Namespace
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import netslim
from netslim.errors import SurgeryError
from netslim.graph.modules.configurations import with_entries
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise
from netslim.surgery.rows import SizePatch

X = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Config:
    n_head: int = 4
    n_embd: int = 12
    sizes: tuple[int, ...] = (12, 3)


class PlainConfig:
    """As of Hugging Face: told by its name."""

    def __init__(self):
        self.n_head, self.n_embd, self.sizes = 4, 12, [12, 3]


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.n_embd
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, _ = x.shape
        shape = b, n, self.config.n_head, self.config.sizes[-1]
        q, k, v = (t.view(shape).transpose(1, 2) for t in self.qkv(x).split(self.config.n_embd, -1))
        y = (q @ k.mT / 3).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.first = nn.Linear(5, config.n_embd)
        self.blocks = nn.ModuleList([Block(config), Block(config)])
        self.last = nn.Linear(config.n_embd, 2)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x.reshape(x.shape[0], -1, self.config.n_embd))


def made(config):
    torch.manual_seed(0)
    return randomise(Net(config)).eval()


SETTINGS = {"n_head": 4, "n_embd": 12, "sizes": [12, 3]}
KINDS = {
    "frozen": Config,
    "plain": PlainConfig,
    "namespace": lambda: SimpleNamespace(**SETTINGS),
    "arguments": lambda: Namespace(**SETTINGS),
}


class SlottedConfig(PlainConfig):
    __slots__ = ("drop",)


def test_a_copy_has_what_slots_hold():
    config = SlottedConfig()
    config.drop = 0.5
    small = with_entries(with_entries(config, {"n_head": 1}), {"n_embd": 3})
    assert (small.drop, small.n_head, small.n_embd) == (0.5, 1, 3)
    assert (type(small), config.n_head) == (SlottedConfig, 4)


class MadeAnewConfig(PlainConfig):
    """A copy is made as the class makes one, without what was set since."""

    def __reduce__(self):
        return MadeAnewConfig, ()


class ForgettingConfig(PlainConfig):
    """What cannot be pickled is left out, and more than that."""

    def __getstate__(self):
        return {"n_head": self.n_head, "n_embd": self.n_embd}


@pytest.mark.parametrize("kind", [MadeAnewConfig, ForgettingConfig])
def test_a_copy_has_what_its_class_leaves_out_of_copies(kind):
    config, inner = kind(), kind()
    config.n_head, config.drop, config.text, inner.rate = 3, {"rate": 0.5}, inner, 0.1
    config.sizes, config.lock = [12, 4], threading.Lock()
    model = made(config)
    graph = netslim.trace(model, X)
    heads = graph["blocks.0.qkv"]
    assert (heads.size, heads.prunable) == (3, True)
    plan = plan_keeping(graph, {graph.number("blocks.0.qkv"): np.arange(3) < 1})
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, X, graph=graph).deviation < 1e-12
    assert (small.blocks[0].config.n_head, small.config.n_head) == (1, 3)
    for copied in (small.config, small.blocks[0].config):
        assert type(copied) is kind
        assert (copied.drop, copied.text.rate, copied.sizes) == ({"rate": 0.5}, 0.1, [12, 4])
        assert copied.drop is not config.drop
        assert copied.text is not inner
    assert (config.n_head, model.config) == (3, config)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_width_and_stream_go_and_the_configuration_stays_as_it_was(kind, tmp_path):
    config = KINDS[kind]()
    model = made(config)
    graph = netslim.trace(model, X)
    assert graph.prunable_share() == pytest.approx(1 - 2 / graph.params())
    sizes = {g.name: g.size for g in graph if g.prunable}
    heads = {f"blocks.{i}.qkv": 4 for i in range(2)} | {f"blocks.{i}.qkv#2": 3 for i in range(2)}
    assert sizes == {"first": 12, **heads}
    kept = {graph.number(name): np.arange(size) < size - 1 for name, size in sizes.items()}
    kept[graph.number("blocks.0.qkv")] = np.arange(4) < 1
    plan = plan_keeping(graph, kept)
    small = netslim.prune(model, netslim.PruningPlan.from_json(plan.to_json()))
    assert netslim.verify(model, small, plan, X, graph=graph).deviation < 1e-12
    assert (small.config.n_embd, small.blocks[0].config.n_head) == (11, 1)
    assert (small.blocks[1].config.n_head, small.blocks[1].config.sizes[1]) == (3, 2)
    assert (config.n_head, config.n_embd, list(config.sizes)) == (4, 12, [12, 3])
    assert model.config is config
    path = netslim.save(small, tmp_path / "small.safetensors")
    with torch.no_grad():
        assert torch.equal(netslim.load(made(KINDS[kind]()), path)(X), small(X))
    assert netslim.prune_(model, plan) is model
    assert model.blocks[0].config.n_head == 1
    assert (config.n_head, config.n_embd) == (4, 12)


class OneConfig(PlainConfig):
    """All of its objects are the same one."""

    one = None

    def __new__(cls):
        cls.one = cls.one or super().__new__(cls)
        return cls.one


class AskingConfig(PlainConfig):
    def __new__(cls, wanted):
        return super().__new__(cls)

    def __init__(self, wanted):
        super().__init__()


@pytest.mark.parametrize("config", [OneConfig(), AskingConfig(1)], ids=["one", "arguments"])
def test_what_cannot_be_copied_keeps_the_sizes_that_it_says(config):
    first = netslim.trace(made(config), X)["first"]
    assert first.frozen
    assert "the size 12 is written into the code" in first.reason


def test_what_is_no_configuration_is_not_looked_into():
    class Counter:
        """It counts its calls, and a copy would count for nobody."""

        def __init__(self):
            self.n_head, self.n_embd, self.sizes = 4, 12, [12, 3]

    graph = netslim.trace(made(Counter()), X)
    assert not graph["blocks.0.qkv"].prunable


def test_a_plan_for_another_configuration_is_refused():
    model = made(Config())
    graph = netslim.trace(model, X)
    plan = plan_keeping(graph, {graph.number("first"): np.arange(12) < 6})
    for attribute in ("config.width", "first.weight", "config.n_embd[0]"):
        patch = SizePatch("", attribute, 12, 6)
        other = plan.__class__(**{**vars(plan), "patches": (patch,), "counts": None})
        with pytest.raises((SurgeryError, netslim.errors.PlanError)):
            netslim.prune(model, other)
