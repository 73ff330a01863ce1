"""Attention whose code has the number of heads as a literal, or beside other numbers, as those who
write with einops have it.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
import netslim

X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Four heads of eight between layers of 16 and 2; ``split`` lays out queries, keys and values."""

    def __init__(self, split, product="matmul"):
        super().__init__()
        self.split, self.product, self.heads, self.parts = split, product, 4, 3
        self.a, self.qkv = nn.Linear(3, 16), nn.Linear(16, 96)
        self.out, self.head = nn.Linear(32, 16), nn.Linear(16, 2)
        self.scale = 8**-0.5

    def forward(self, x):
        h = self.a(x)
        q, k, v = self.split(self, self.qkv(h))
        if self.product == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v
        return self.head((h + self.out(y.transpose(1, 2).flatten(2))).mean(1))


def by_minus_one(s, y):
    return y.reshape(*y.shape[:2], 3, 4, -1).permute(2, 0, 3, 1, 4)


def by_division(s, y):
    b, n, c = y.shape
    return y.view(b, n, 3, 4, c // 12).permute(2, 0, 3, 1, 4)


def one_head(s, y):
    return (part.unflatten(-1, (1, -1)).transpose(1, 2) for part in y.chunk(3, -1))


@pytest.mark.parametrize("product", ["matmul", "sdpa"])
@pytest.mark.parametrize("split", [by_minus_one, by_division])
def test_of_heads_in_digits_their_width_goes(split, product):
    graph, _, small, _ = nets.prove(Block(split, product).eval(), X)
    assert {g.name: g.size for g in graph.prunable} == {"a": 16, "qkv": 8}
    assert not any(group.of_heads for group in graph)
    assert small.qkv.out_features == 48
    nets.counted_alike(small, X)


@pytest.mark.parametrize("product", ["matmul", "sdpa"])
def test_of_a_single_head_the_width_goes(product):
    graph, _, small, _ = nets.prove(Block(one_head, product).eval(), X)
    assert {g.name: g.size for g in graph.prunable} == {"a": 16, "qkv": 32}
    assert small.qkv.out_features == 48


def told_apart(s, y):
    """The first attribute is no number of heads, as its first use tells."""
    y = y.view(*y.shape[:2], s.parts, s.heads, y.shape[2] // (s.parts * s.heads))
    y = y.permute(2, 0, 3, 1, 4)
    return y[0], y[1], y[2]


def test_an_attribute_of_what_is_told_apart_is_no_number_of_heads():
    graph, _, small, _ = nets.prove(Block(told_apart).eval(), X)
    assert {g.name: g.size for g in graph.prunable} == {"a": 16, "qkv": 4, "qkv#2": 8}
    assert (small.parts, small.heads, small.qkv.out_features) == (3, 2, 24)


def test_a_model_that_runs_once_is_traced_as_far_as_that_goes():
    class Once(Block):
        runs = 0

        def forward(self, x):
            Once.runs += 1
            if Once.runs > 1:
                raise RuntimeError("used up")
            return super().forward(x)

    graph = netslim.trace(Once(told_apart).eval(), X)
    assert {g.name for g in graph.prunable} == {"a"}
    assert "picked by its number" in graph["qkv"].reason


def test_the_root_of_a_width_holds_what_a_class_of_its_own_multiplies():
    """`F.multi_head_attention_forward` divides by it where nobody sees it."""

    class Own(nn.MultiheadAttention):
        pass

    model = nn.ModuleDict({"a": nn.Linear(3, 8), "mha": Own(8, 2, batch_first=True)})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            h = self.parts["a"](x)
            return self.parts["mha"](h, h, h)[0].sum(-1)

    graph = netslim.trace(Net(), X)
    assert "root of their number" in graph["parts.a"].reason
    assert not graph.prunable


# ---------------------------------------------------------------- written with einops


def by_layer(s, y):
    parts = s.rearrange(y)
    return parts[0], parts[1], parts[2]


def by_chunks(s, y):
    einops = pytest.importorskip("einops")
    return (einops.rearrange(t, "b n (h d) -> b h n d", h=s.heads) for t in y.chunk(3, -1))


def by_function(s, y):
    einops = pytest.importorskip("einops")
    return einops.rearrange(y, "b n (k h d) -> k b h n d", k=3, h=s.heads)


@pytest.mark.parametrize("ran", [False, True], ids=["new", "ran"])
@pytest.mark.parametrize("split", [by_layer, by_chunks, by_function])
def test_what_einops_lays_out_goes_by_heads_and_width(split, ran, tmp_path):
    """Whether or not it has seen these shapes before, and again, in copies and from a file."""
    layers = pytest.importorskip("einops.layers.torch", reason="needs einops: pip install einops")

    def made():
        block = Block(split).eval()
        block.rearrange = layers.Rearrange("b n (k h d) -> k b h n d", k=3, h=4)
        return block

    model = made()
    if ran:
        model(X)
    wanted = {"a": 16, "qkv": 4, "qkv#2": 8}
    graph, _, small, _ = nets.prove(model, X)
    assert {g.name: g.size for g in graph.prunable} == wanted
    netslim.save(small, tmp_path / "small.safetensors")
    loaded = netslim.load(made(), tmp_path / "small.safetensors")
    assert torch.equal(loaded(X), small(X))
    again = copy.deepcopy(small)
    assert torch.equal(again(X), small(X))
    graph, _, smaller, _ = nets.prove(again, X)
    assert {g.name: g.size for g in graph.prunable} == {"a": 8, "qkv": 2, "qkv#2": 4}
    assert smaller.qkv.out_features == 6
    netslim.trace(model, X)
    assert torch.equal(model(X), made_alike(model, made())(X))


def made_alike(model, other):
    other.load_state_dict(model.state_dict())
    return other
