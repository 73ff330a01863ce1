"""Whole heads and the width of all heads in one graph: groups by hand, cuts of both, and costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
import netslim
from netslim.graph.counts import Count
from netslim.surgery.plan_of_units import plan_keeping

X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Block(nn.Module):
    """Four heads of six, in ways that transformers have them; ``a`` makes eight channels."""

    def __init__(self, kind="sdpa", keys=4):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.heads, self.keys, self.head_dim = kind, 4, keys, 6
        self.all_head_size, self.grouped = 24, keys < 4
        self.a, self.q = nn.Linear(3, 8), nn.Linear(8, 24)
        self.k, self.v = nn.Linear(8, 6 * keys), nn.Linear(8, 6 * keys)
        self.out, self.head = nn.Linear(24, 8), nn.Linear(8, 2)
        self.table = nn.Parameter(torch.randn(9, 4))  # relative places of five tokens -> heads
        self.slopes = nn.Buffer(2.0 ** -torch.arange(4.0))
        self.norm = nn.LayerNorm(6)
        if kind == "rms":
            self.q_norm, self.k_norm = nn.RMSNorm(6, eps=1e-6), nn.RMSNorm(6, eps=1e-3)
            for norm in (self.q_norm, self.k_norm):
                nn.init.uniform_(norm.weight)

    def bias(self, n):
        """What is added to the scores of each head, by how far tokens are from each other."""
        places = torch.arange(n)
        far = places[:, None] - places
        if self.kind == "table":
            return self.table[far + 4].permute(2, 0, 1)
        if self.kind == "alibi":
            return self.slopes[:, None, None] * -far.abs()
        if self.kind == "literal":
            return torch.linspace(0, 1, 4 * n * n, dtype=self.a.weight.dtype).view(4, n, n)
        return None

    def forward(self, x):
        h = self.a(x)
        b, n, _ = h.shape
        q = self.q(h).view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k, v = (f(h).view(b, n, self.keys, self.head_dim).transpose(1, 2) for f in (self.k, self.v))
        if self.kind == "normed":
            q, k = self.norm(q), self.norm(k)
        if self.kind == "rms":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.kind == "shifted":
            q, k = q + 1, k + 1
        if self.kind == "root":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.kind == "deep":  # in five dimensions it runs as products, which show no root
            y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        elif self.kind == "unfound":
            y = (lambda *given: F.scaled_dot_product_attention(*given))(
                *(t[None] for t in (q, k, v))
            )[0]
        elif self.kind in ("sdpa", "grouped", "rms"):
            y = F.scaled_dot_product_attention(q, k, v, scale=0.4, enable_gqa=self.grouped)
        else:
            if self.grouped:
                k, v = (t.repeat_interleave(self.heads // self.keys, 1) for t in (k, v))
            scores, bias = q @ k.transpose(2, 3) * 0.4, self.bias(n)
            y = (scores if bias is None else scores + bias).softmax(-1) @ v
        return self.head(
            (h + self.out(y.transpose(1, 2).reshape(b, n, self.all_head_size))).mean(1)
        )


def block(kind="sdpa", keys=4):
    return Block(kind, keys).double().eval()


BOTH = {
    "table": (block("table"), 4),
    "alibi": (block("alibi"), 4),
    "root": (block("root"), 4),
    "deep": (block("deep"), 4),
    "grouped": (block("grouped", keys=2), 2),
    "repeated": (block("repeated", keys=2), 2),
    "rms": (block("rms"), 4),
}


@pytest.mark.parametrize("kind", BOTH)
def test_heads_and_their_width_go_together_and_alone(kind, tmp_path):
    model, heads = BOTH[kind]
    graph = netslim.trace(model, X)
    nets.counted_alike(model, X, graph)
    sizes = {g.name: (g.size, g.verdict) for g in graph if not g.frozen}
    assert sizes == {"a": (8, "exact"), "q": (heads, "exact"), "q#2": (6, "exact")}
    assert [g.name for g in graph if g.of_heads] == ["q#2"]
    for cut in (["q#2"], ["a", "q", "q#2"]):
        masks = {graph.number(n): np.arange(graph[n].size) % 2 == 0 for n in cut}
        plan = plan_keeping(graph, masks)
        small = netslim.prune(model, plan)
        check = netslim.verify(model, small, plan, X, graph=graph)
        assert check.deviation < 1e-10
        assert check.changed == plan.removed
        left, width = 4 // (1 + ("q" in cut)), 6 // (1 + ("q#2" in cut))
        assert (small.heads, small.head_dim, small.all_head_size) == (left, width, left * width)
        assert small.q.out_features == small.out.in_features == left * width
        cost = netslim.cost(small, X)
        assert (cost.macs, cost.params) == (graph.macs(masks), graph.params(masks))
        small(X[:1, :3])
    fresh = Block(kind, model.keys).double().eval()
    loaded = netslim.load(fresh, netslim.save(small, tmp_path / "small.safetensors"))
    torch.testing.assert_close(loaded(X), small(X))


def test_what_was_cut_by_both_is_cut_again():
    for kind in ("table", "root", "rms"):
        cut_again(block(kind))


def cut_again(model):
    for left, width in ((3, 5), (2, 2)):
        graph = netslim.trace(model, X)
        masks = {
            graph.number(n): np.arange(graph[n].size) < k for n, k in (("q", left), ("q#2", width))
        }
        plan = plan_keeping(graph, masks)
        small = netslim.prune(model, plan)
        assert netslim.verify(model, small, plan, X, graph=graph).deviation < 1e-10
        assert (small.heads, small.head_dim, small.all_head_size) == (left, width, left * width)
        model = small


def test_a_budget_is_met_by_both():
    model = block()
    graph = netslim.trace(model, X)
    scores = {g.name: torch.arange(1.0, g.size + 1) for g in graph.prunable}
    limits = netslim.Limits(protect=["a"], max_cut=0.5)
    for allocation in ("cost", "knapsack", "global"):
        budget = netslim.Budget(cut_macs=0.6)  # more than either can give
        plan = netslim.select(graph, scores, budget, allocation=allocation, limits=limits)
        assert set(plan.groups) == {"q", "q#2"}
        small = netslim.prune(model, plan)
        assert netslim.cost(small, X).macs <= 0.4 * graph.macs()
        assert netslim.PruningPlan.from_json(plan.to_json()) == plan
    assert netslim.verify(model, small, plan, X, graph=graph).deviation < 1e-10


def test_what_cannot_be_exact_is_left_to_heads():
    """A root of the width in code that cannot be read, numbers added to queries and keys, a
    normalisation over the width that adds some, too.
    """
    for kind in ("unfound", "shifted", "normed"):
        graph = netslim.trace(block(kind), X)
        assert {g.name: g.size for g in graph.prunable if g.name != "a"} == {"q": 4}


def test_a_model_that_runs_once_alone_is_traced_as_far_as_it_goes(capsys):
    runs = []

    class Once(Block):
        def forward(self, x):
            runs.append(1)
            print("runs")
            if len(runs) > 1:
                raise RuntimeError("used up")
            return super().forward(x)

    graph = netslim.trace(Once("eager").double().eval(), X)
    assert {g.name for g in graph.prunable} == {"a", "q"}
    assert capsys.readouterr().out == "runs\n"


def test_where_heads_stay_their_width_may_go():
    model = block("literal")
    graph, _, small, _ = nets.prove(model, X)
    assert "fixed size" in graph.frozen["q"]
    assert {g.name: g.size for g in graph.prunable} == {"a": 8, "q#2": 6}
    assert (small.heads, small.head_dim) == (4, 3)
    assert "of every head" in graph.explain("q#2")
    assert "A product of queries and keys reads them" in graph.explain("q#2")


def test_merging_is_refused_where_a_product_reads():
    graph = netslim.trace(block(), X)
    with pytest.raises(netslim.errors.PlanError, match="a product of queries and keys has no"):
        netslim.selection.merge(graph, {"q#2": [0, 0, 1, 1, 2, 2]})


@pytest.mark.parametrize("kind", ["sdpa", "rms"])
def test_silent_widths_are_masked(kind):
    """A mask makes queries and keys zero there, so the masked network is the cut one."""
    model = block(kind)
    graph = netslim.trace(model, X)
    masks = {graph.number("q#2"): np.arange(6) > 1, graph.number("q"): np.arange(4) != 2}
    plan = plan_keeping(graph, masks)
    small = netslim.prune(model, plan)
    netslim.Mask(model, plan).apply()
    torch.testing.assert_close(model(X), small(X))


def test_a_product_of_counts_is_counted_under_masks():
    heads, width = np.array([2, 2, 2]), np.array([1, 1, 1, 1])
    count = Count(0, ((0, heads),), Count(1, ((1, width),)))
    some, none = np.array([True, False, True]), np.zeros(4, dtype=bool)
    assert count.groups == (0, 1)
    assert (count.kept({}), count.kept({0: some}), count.kept({0: some, 1: none})) == (30, 20, 4)


def test_frequencies_that_all_layers_share_go_with_the_width_of_all():
    """Rotary, as in LLaMA: a unit is a pair of channels of every head, and its frequency."""

    class Rotary(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.heads, self.head_dim, self.head = 4, 6, nn.Linear(24, 2)
            self.layers = nn.ModuleList(nn.Linear(i, 72) for i in (3, 24))
            self.frequencies = nn.Buffer(1 / 10 ** torch.linspace(0, 1, 3))

        def turned(self, x):
            angle = torch.arange(x.shape[2])[:, None] * self.frequencies
            one, other = x.chunk(2, -1)
            cos, sin = angle.cos(), angle.sin()
            return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)

        def forward(self, h):
            for layer in self.layers:
                shape = (*h.shape[:2], self.heads, self.head_dim)
                q, k, v = (part.view(shape).transpose(1, 2) for part in layer(h).chunk(3, -1))
                h = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, scale=0.4)
                h = h.transpose(1, 2).flatten(2)
            return self.head(h.mean(1))

    model = Rotary().double().eval()
    graph = netslim.trace(model, X)
    sizes = {g.name: g.size for g in graph.prunable}
    assert sizes == {"layers.0": 4, "layers.0#2": 3}
    nets.prove(model, X)
