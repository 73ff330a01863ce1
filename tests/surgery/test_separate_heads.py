"""PyTorch's own attention after heads, or channels of what it reads, were cut."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import netslim
from elsewhere import Without
from netslim.errors import ArgumentError
from netslim.models import SeparateHeads
from netslim.surgery.plan_of_units import plan_keeping

FLAGS = (False, True)


def attention(**kwargs):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 4, **kwargs).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def masks(module, queries, keys, batched):
    """Every kind of mask: (of places, of tokens)."""
    n = 3 if batched else 1
    places = torch.randn(queries, keys).double()
    tokens = torch.randn(n, keys).double()
    heads = torch.randn(n * module.num_heads, queries, keys).double()
    for mask in (None, places, (places > 1), heads):
        for padding in (None, tokens, (tokens > 1)):
            yield mask, padding if padding is None or batched else padding[0]


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"batch_first": True, "bias": False},
        {"add_bias_kv": True, "batch_first": True},
        {"add_zero_attn": True, "kdim": 5, "vdim": 6},
        {"add_zero_attn": True, "add_bias_kv": True},
    ],
    ids=str,
)
def test_it_computes_what_pytorchs_own_does(kwargs):
    module = attention(**kwargs)
    other = copy.deepcopy(module)
    other.__class__ = SeparateHeads
    # A batch without its shares, with their mean, and one sequence with those of each head.
    for batched, shares, mean in ((True, False, True), (True, True, True), (False, True, False)):
        x = [torch.randn(3, n, w).double() for n, w in ((5, 8), (4, module.kdim), (4, module.vdim))]
        if not batched:
            x = [t[0] for t in x]
        elif not module.batch_first:
            x = [t.transpose(0, 1) for t in x]
        for inputs in (x, [x[0]] * 3)[: 2 - ("kdim" in kwargs)]:
            keys = 4 if inputs is x else 5
            for mask, padding in masks(module, 5, keys, batched):
                asked = {"need_weights": shares, "average_attn_weights": mean}
                given = {"attn_mask": mask, "key_padding_mask": padding, **asked}
                wanted, found = (one(*inputs, **given) for one in (module, other))
                for a, b in zip(wanted, found, strict=True):
                    torch.testing.assert_close(b, a)


@pytest.mark.parametrize("padded", FLAGS)
def test_a_causal_mask_is_a_hint_or_a_mask(padded):
    module = attention(batch_first=True)
    other = copy.deepcopy(module)
    other.__class__ = SeparateHeads
    x, mask = torch.randn(2, 5, 8).double(), nn.Transformer.generate_square_subsequent_mask(5)
    padding = torch.zeros(2, 5).double() if padded else None
    given = {"attn_mask": mask.double(), "is_causal": True, "key_padding_mask": padding}
    wanted, found = (one(x, x, x, need_weights=False, **given)[0] for one in (module, other))
    torch.testing.assert_close(found, wanted)
    with pytest.raises(RuntimeError, match="there is none"):
        other(x, x, x, is_causal=True)


class Tokens(nn.Module):
    """A transformer of 8 channels and 4 heads a layer, and what it reads and makes."""

    def __init__(self, layers=2):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True)
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoder(layer, layers)

    def forward(self, x, ignored=None):
        return self.head(self.encoder(self.stem(x), src_key_padding_mask=ignored))


X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
IGNORED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


def keeping(model, inputs=X, **kept):
    """The plan that keeps these units of groups whose names end so."""
    graph = netslim.trace(model, inputs)
    masks = {}
    for name, units in kept.items():
        for group in graph:
            if group.name.endswith(name):
                masks[graph.number(group.name)] = np.isin(np.arange(group.size), units)
    return plan_keeping(graph, masks)


def test_whole_heads_go_and_everything_goes_on(tmp_path):
    model = Tokens().eval()
    plan = keeping(model, self_attn=[1, 3])
    small = netslim.prune(model, plan)
    layer = small.encoder.layers[0].self_attn
    assert type(layer) is SeparateHeads
    assert (layer.num_heads, layer.head_dim, layer.embed_dim) == (2, 2, 8)
    assert layer.in_proj_weight.shape == (12, 8)
    assert netslim.verify(model, small, plan, X).deviation < 1e-10
    # Without gradients PyTorch's encoder calls fused operators, and makes nested tensors for them.
    path = netslim.save(small, tmp_path / "small.safetensors")
    ways = {
        "loaded": netslim.load(Tokens().eval(), path),
        "in place": netslim.prune_(Tokens().eval(), plan),
        "pickled": pickle.loads(pickle.dumps(small)),
        "copied": copy.deepcopy(small),
    }
    for one in (small, *ways.values()):
        for inputs in ((X,), (X, IGNORED), (X[:1],), (torch.cat([X, X], 1),)):
            wanted = small(*inputs).detach()
            with torch.no_grad():
                found = one(*inputs)
            real = ~IGNORED if len(inputs) > 1 else ...
            torch.testing.assert_close(found[real], wanted[real])
    assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention
    assert model.encoder.use_nested_tensor
    sum(small(X).flatten()).backward()
    assert all(p.grad is not None for p in small.parameters())


def test_what_was_cut_is_cut_again(tmp_path):
    model = Tokens(1).eval()
    small = netslim.prune(model, keeping(model, self_attn=[0, 2, 3], stem=[0, 1, 2, 4, 6, 7]))
    plan = keeping(small, self_attn=[0, 2], stem=[1, 2, 3, 5])
    again = netslim.prune(small, plan)
    assert netslim.verify(small, again, plan, X).deviation < 1e-10
    layer = again.encoder.layers[0].self_attn
    # Two heads of two read four channels: nothing is in PyTorch's way any more.
    assert type(layer) is nn.MultiheadAttention
    assert (layer.num_heads, layer.head_dim, layer.embed_dim) == (2, 2, 4)
    loaded = netslim.load(Tokens(1).eval(), netslim.save(again, tmp_path / "again.safetensors"))
    torch.testing.assert_close(loaded(X), again(X))


def test_heads_and_their_width_go_and_the_scale_stays(tmp_path):
    """Two of four heads, and one of two channels of each: products are still divided by root 2."""
    model = Tokens(1).eval()
    plan = keeping(model, **{"self_attn": [1, 2], "self_attn#2": [1], "stem": [0, 3]})
    small = netslim.prune(model, plan)
    layer = small.encoder.layers[0].self_attn
    assert type(layer) is SeparateHeads  # though 2 heads of 1 are as wide as the 2 channels
    assert (layer.num_heads, layer.head_dim, layer.head_scale) == (2, 1, 2**-0.5)
    assert netslim.verify(model, small, plan, X).deviation < 1e-10
    loaded = netslim.load(Tokens(1).eval(), netslim.save(small, tmp_path / "small.safetensors"))
    torch.testing.assert_close(loaded(X), small(X))
    assert netslim.prune_(Tokens(1).eval(), plan).encoder.layers[0].self_attn.head_scale == 2**-0.5


def test_a_cut_that_fits_leaves_pytorchs_own():
    model = Tokens(1).eval()
    plan = keeping(model, self_attn=[0, 1], stem=[0, 1, 2, 3])
    small = netslim.prune(model, plan)
    assert type(small.encoder.layers[0].self_attn) is nn.MultiheadAttention
    assert netslim.verify(model, small, plan, X).deviation < 1e-10


def test_a_cut_in_place_that_is_refused_leaves_the_class(monkeypatch):
    model = Tokens(1).eval()
    plan = keeping(model, self_attn=[0, 1])
    monkeypatch.setattr("netslim.surgery.prune.remember", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        netslim.prune_(model, plan)
    assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention
    model(X)


class Asked(nn.Module):
    """Attention whose shares are outputs, too."""

    def __init__(self, **kwargs):
        super().__init__()
        self.attention = attention(batch_first=True, **kwargs)

    def forward(self, x, mask=None):
        keys = x[..., : self.attention.kdim], x[..., : self.attention.vdim]
        return self.attention(x, *keys, attn_mask=mask)


@pytest.mark.parametrize(
    "kwargs", [{}, {"add_bias_kv": True, "bias": False}, {"kdim": 5, "vdim": 6}], ids=str
)
def test_it_becomes_pytorchs_own_where_its_heads_fit(kwargs):
    """2 heads of 1 or 2 channels in 8: heads of 4, with zeros, and shares of both as they were."""
    model, x = Asked(**kwargs).eval(), torch.randn(2, 5, 8).double()
    for kept in ({"attention": [0, 2]}, {"attention": [0, 2], "attention#2": [1]}):
        small = netslim.prune(model, keeping(model, (x,), **kept))
        assert type(small.attention) is SeparateHeads
        again = Without.loads(pickle.dumps(netslim.models.plain(small)))
        assert type(again.attention) is nn.MultiheadAttention
        assert (again.attention.num_heads, again.attention.head_dim) == (2, 4)
        for mask in (None, torch.randn(4, 5, 5).double()):
            for found, wanted in zip(again(x, mask), small(x, mask), strict=True):
                torch.testing.assert_close(found, wanted)
        assert type(small.attention) is SeparateHeads


def test_a_plain_encoder_gives_the_same_by_pytorchs_fused_operators():
    model = Tokens().eval()
    small = netslim.prune(model, keeping(model, **{"self_attn": [0, 3], "self_attn#2": [0]}))
    again = Without.loads(pickle.dumps(netslim.models.plain(small)))
    with torch.no_grad():
        torch.testing.assert_close(again(X), small(X))
        torch.testing.assert_close(again(X, IGNORED)[~IGNORED], small(X, IGNORED)[~IGNORED])


@pytest.mark.parametrize("kept", [{"self_attn": [0, 1, 2]}, {"stem": [0, 1, 2, 3]}])
def test_other_heads_cannot_be_pytorchs(kept):
    """3 in 8 channels; 4 that are 8 channels wide in all, in 4."""
    model = Tokens(1).eval()
    small = netslim.prune(model, keeping(model, **kept))
    with pytest.raises(ArgumentError, match=r"heads, 2 wide each, .* netslim\.export writes it"):
        netslim.models.plain(small)


def test_it_is_exported():
    model = Tokens(1).eval()
    small = netslim.prune(model, keeping(model, self_attn=[0, 1, 3]))
    program = torch.export.export(small, (X,))
    torch.testing.assert_close(program.module()(X), small(X))
