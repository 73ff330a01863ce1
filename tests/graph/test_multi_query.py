"""Multi-query attention: heads of queries that all read one key and value, in the ways of code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
import netslim
from netslim.surgery.plan_of_units import plan_keeping

HEADS, WIDTH, STREAM = 4, 6, 8
X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def copied(shared, times):
    """As transformers have it: (batch, 1, tokens, width) -> (batch, heads, tokens, width)."""
    b, h, n, w = shared.shape
    return shared[:, :, None].expand(b, h, times, n, w).reshape(b, h * times, n, w)


def mixed(q, k, v, scale=0.4):
    return (q @ k.transpose(-1, -2) * scale).softmax(-1) @ v


def merged(s, q, k, v):
    """All heads of queries in one dimension with the tokens, in front of the one key."""
    b, n = q.shape[0], q.shape[2]
    y = mixed(q.transpose(1, 2).reshape(b, n * s.heads, s.head_dim), k[:, 0], v[:, 0])
    return y.view(b, n, s.heads, s.head_dim).transpose(1, 2)


def by_einsum(s, q, k, v):
    scores = torch.einsum("bhid,bjd->bhij", q, k[:, 0]) * s.scale
    return torch.einsum("bhij,bjd->bhid", scores.softmax(-1), v[:, 0])


# Each is given queries (batch, heads, tokens, width), and a key and value with one head.
WAYS = {
    "broadcast": lambda s, q, k, v: mixed(q, k, v),
    "einsum": by_einsum,
    "merged": merged,
    "expand": lambda s, q, k, v: mixed(
        q, k.expand(-1, s.heads, -1, -1), v.expand(-1, s.heads, -1, -1)
    ),
    "expand_as": lambda s, q, k, v: mixed(q, k.expand_as(q), v.expand_as(q)),
    "broadcast_to": lambda s, q, k, v: mixed(q, *(torch.broadcast_to(t, q.shape) for t in (k, v))),
    "repeat": lambda s, q, k, v: mixed(q, k.repeat(1, s.heads, 1, 1), v.repeat(1, s.heads, 1, 1)),
    "repeat_interleave": lambda s, q, k, v: mixed(
        q, *(t.repeat_interleave(s.heads, 1) for t in (k, v))
    ),
    "as_often_as_needed": lambda s, q, k, v: mixed(
        q, *(t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    ),
    "copied": lambda s, q, k, v: mixed(q, copied(k, s.heads), copied(v, s.heads)),
    "sdpa": lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.4),
    "gqa": lambda s, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.4, enable_gqa=True),
    "linear": lambda s, q, k, v: q @ (k.transpose(-1, -2).softmax(-1) @ v),
}


def apart(s, h):
    shape = *h.shape[:2], -1, s.head_dim
    q = s.q(h).view(*h.shape[:2], s.heads, s.head_dim)
    return q, s.k(h).view(shape), s.v(h).view(shape)


def sliced(s, h):
    both = s.qkv(h).view(*h.shape[:2], s.heads + 2, s.head_dim)
    return both[:, :, :-2], both[:, :, -2:-1], both[:, :, -1:]


def listed(s, h):
    """As Falcon has it."""
    both = s.qkv(h).view(*h.shape[:2], s.heads + 2, s.head_dim)
    return both[..., :-2, :], both[..., [-2], :], both[..., [-1], :]


def split(s, h):
    """As StarCoder has it."""
    q, k, v = s.qkv(h).split((s.all_head_size, s.head_dim, s.head_dim), dim=-1)
    return q.view(*h.shape[:2], -1, s.head_dim), k[:, :, None], v[:, :, None]


class Block(nn.Module):
    def __init__(self, way="sdpa", source=apart):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.source = way, source
        self.heads, self.head_dim, self.all_head_size = HEADS, WIDTH, HEADS * WIDTH
        self.scale = 0.4
        self.a, self.norm = nn.Linear(3, STREAM), nn.LayerNorm(STREAM)
        if source is apart:
            self.q, self.k, self.v = (nn.Linear(STREAM, n) for n in (24, WIDTH, WIDTH))
        else:
            self.qkv = nn.Linear(STREAM, 24 + 2 * WIDTH)
        self.out, self.head = nn.Linear(24, STREAM), nn.Linear(STREAM, 2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x):
        h = self.a(x)
        q, k, v = (t.transpose(1, 2) for t in self.source(self, self.norm(h)))
        if self.way == "by_the_root":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            y = WAYS[self.way](self, q, k, v)
        return self.head(h + self.out(y.transpose(1, 2).reshape(*h.shape[:2], self.all_head_size)))


def block(way="sdpa", source=apart):
    return Block(way, source).double().eval()


BLOCKS = [
    *((way, apart) for way in [*WAYS, "by_the_root"]),
    ("sdpa", sliced),
    ("expand", listed),
    ("gqa", split),
]


@pytest.mark.parametrize(
    ("way", "source"), BLOCKS, ids=lambda value: getattr(value, "__name__", value)
)
def test_heads_of_queries_go_and_the_width_of_all(way, source, tmp_path):
    model = block(way, source)
    graph = netslim.trace(model, X)
    nets.counted_alike(model, X, graph)
    (heads,) = (g for g in graph.prunable if g.size == HEADS)
    (width,) = (g for g in graph.prunable if g.of_heads)
    assert {g.name: g.size for g in graph.prunable} == {
        "a": STREAM, heads.name: HEADS, width.name: WIDTH,
    }  # fmt: skip
    for cut in ([heads], [width], [heads, width]):
        masks = {graph.number(g.name): np.arange(g.size) % 2 == 1 for g in cut}
        plan = plan_keeping(graph, masks)
        small = netslim.prune(model, plan)
        check = netslim.verify(model, small, plan, X, graph=graph)
        assert check.deviation < 1e-10
        assert check.changed == plan.removed
        left, wide = HEADS // (1 + (heads in cut)), WIDTH // (1 + (width in cut))
        assert small.out.in_features == left * wide
        makers = ("qkv",) if source is not apart else ("q", "k", "v")
        made = sum(getattr(small, name).out_features for name in makers)
        assert made == (left + 2) * wide
        cost = netslim.cost(small, X)
        assert (cost.macs, cost.params) == (graph.macs(masks), graph.params(masks))
        small(X[:1, :3])
    loaded = netslim.load(block(way, source), netslim.save(small, tmp_path / "small.safetensors"))
    torch.testing.assert_close(loaded(X), small(X))
    nets.prove(model, X)


def test_what_all_heads_share_says_that_it_goes_with_their_width():
    graph = netslim.trace(block(), X)
    assert set(graph.frozen) == {"k", "v", "head"}
    assert graph.frozen["k"] == graph.frozen["v"]
    assert graph.frozen["k"] == "as heads; as the width of all heads they go in q#2"
    told = graph.explain("k")
    assert "makes channels of 2 groups: k (6) and q#2 (6)" in told


def test_a_budget_is_met_by_heads_and_width():
    model = block("copied")
    graph = netslim.trace(model, X)
    scores = {g.name: torch.arange(1.0, g.size + 1) for g in graph.prunable}
    limits = netslim.Limits(protect=["a"], max_cut=0.5)
    plan = netslim.select(graph, scores, netslim.Budget(cut_macs=0.5), limits=limits)
    assert set(plan.groups) == {"q", "q#2"}
    small = netslim.prune(model, plan)
    assert netslim.cost(small, X).macs <= 0.5 * graph.macs()
    assert netslim.verify(model, small, plan, X, graph=graph).deviation < 1e-10


def test_a_number_of_heads_in_digits_holds_them():
    class Written(Block):
        def forward(self, x):
            h = self.a(x)
            q, k, v = self.q(h).view(2, 5, 4, -1), self.k(h)[:, :, None], self.v(h)[:, :, None]
            y = mixed(*(t.transpose(1, 2) for t in (q, k, v)))
            return self.head(h + self.out(y.transpose(1, 2).flatten(2)))

    graph, *_ = nets.prove(Written().double().eval(), X)
    assert not any(g.size == HEADS for g in graph.prunable)
