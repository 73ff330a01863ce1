"""Sequences: recurrent layers and cells, attention of PyTorch's own and by hand, transformers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nets
import netslim
from pattern import TOKENS, Line, Patterns, conv, steps, tail

pattern = Patterns()
PRODUCT = "product of activations"
ROOT = "attention divides by the root of their number"
MEMORY = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Attention of 4 heads of 8, with the split of queries, and of keys and values, said by code."""

    def __init__(self, query: str, key: str) -> None:
        super().__init__()
        self.heads, self.head_dim, self.embed = 4, 8, 32
        self.query, self.key = query, key
        self.conv, self.out = nn.Conv1d(3, 32, 1), nn.Linear(32, 5)
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    def split(self, h: torch.Tensor, way: str) -> torch.Tensor:
        b, n, width = h.shape
        sizes = {
            "n, -1, d": lambda: (b, n, -1, self.head_dim),
            "-1, h, d": lambda: (b, -1, self.heads, self.head_dim),
            "n, h, d": lambda: (b, n, self.heads, self.head_dim),
            "n, h, -1": lambda: (b, n, self.heads, -1),
            "n, h, e // h": lambda: (b, n, self.heads, self.embed // self.heads),
            "n, h, w // h": lambda: (b, n, self.heads, width // self.heads),
            "n, w // d, d": lambda: (b, n, width // self.head_dim, self.head_dim),
        }
        return h.view(*sizes[way]()).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(x).transpose(1, 2)
        q, k = self.split(self.q(h), self.query), self.split(self.k(h), self.key)
        h = F.scaled_dot_product_attention(q, k, self.split(self.v(h), self.key))
        return self.out(h.transpose(1, 2).flatten(2))


WAYS = (
    "n, -1, d",
    "-1, h, d",
    "n, h, d",
    "n, h, -1",
    "n, h, e // h",
    "n, h, w // h",
    "n, w // d, d",
)


@pytest.mark.parametrize("query", WAYS)
@pytest.mark.parametrize("key", ["same", "n, -1, d", "n, h, -1"])
def test_however_heads_are_split_whole_heads_go(query, key):
    """Whisper, BART, CvT and others say it differently for queries and for keys."""
    ways = query, query if key == "same" else key
    model = Heads(*ways).eval()
    graph, _, small, _ = nets.prove(model, torch.randn(1, 3, 6))
    wanted = {"conv": (32, "exact"), "q": (4, "exact")}
    if ways[-1].endswith("-1"):
        wanted["v"] = (8, "exact")  # nothing says that values are as wide as queries
    found = {g.name: (g.size, g.verdict) for g in graph if not (g.frozen or g.of_heads)}
    assert {**wanted, **found} == wanted
    assert {"conv", "q"} <= found.keys()
    assert set(graph["q"].producers) == {"q.weight", "k.weight", "v.weight"}
    narrower = 1 + any(g.of_heads and "q.weight" in g.producers for g in graph)
    assert small.q.out_features == 16 // narrower


class Stream(nn.Module):
    """A block of a transformer, as in many of timm: 4 heads, of a width that the stream tells."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm, self.heads, self.way = nn.Linear(3, 24), nn.LayerNorm(24), 4, way
        self.qkv, self.out, self.head = nn.Linear(24, 72), nn.Linear(24, 24), nn.Linear(24, 3)
        self.head_dim = 6

    def forward(self, x):
        x = self.conv(x)
        b, n, c = x.shape
        heads = 4 if self.way == "written" else self.heads
        width = self.head_dim if self.way == "attribute" else c // heads
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, heads, width).permute(2, 0, 3, 1, 4)
        if self.way == "channels":  # attend to each other, as in XCiT
            h = (F.normalize(q, dim=-2).transpose(2, 3) @ F.normalize(k, dim=-2)).softmax(-1)
            h = v @ h
        else:
            h = (q * width**-0.5 @ k.transpose(2, 3)).softmax(-1) @ v
        return self.head(x + self.out(h.transpose(1, 2).reshape(b, n, -1)))


@pytest.mark.parametrize("way", ["stream", "channels"])
def test_channels_that_tell_the_width_of_heads_go_with_them(way):
    """A unit is a head and its quarter of the stream: the width of the others stays 6."""
    x = torch.randn(2, 5, 3)
    graph, _, small, _ = nets.prove(Stream(way).eval(), x)
    assert {g.name: (g.size, g.verdict) for g in graph if not g.frozen} == {"conv": (4, "exact")}
    assert (small.heads, small.qkv.out_features, small.conv.out_features) == (2, 36, 12)
    small(x[:1, :3])
    again = nets.prove(small, x)[0]
    assert again["conv"].size == 2


def test_heads_whose_number_is_written_stay_and_the_graph_says_what_would_let_channels_go():
    """Channel i of every head goes with channel i of each quarter of the stream, inexactly."""
    graph = netslim.trace(Stream("written"), torch.randn(2, 5, 3))
    assert (graph["conv"].size, graph["conv"].verdict) == (6, "inexact")
    assert "such as head_dim" in " ".join(graph["conv"].reasons)


def test_heads_whose_width_is_an_attribute_go_by_themselves():
    graph, _, small, _ = nets.prove(Stream("attribute").eval(), torch.randn(2, 5, 3))
    sizes = {g.name: (g.size, g.verdict) for g in graph if not g.frozen}
    assert sizes == {"conv": (24, "exact"), "qkv": (4, "exact")}
    assert (small.heads, small.qkv.out_features, small.conv.out_features) == (2, 36, 12)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", pattern, ids=str)
def test_attention_and_recurrence(case):
    case.check()


def tokens(exact=None, inexact=None, refused=None, **parts):
    """A pattern over five tokens of three features, ``a`` makes eight of them."""
    return pattern(
        exact,
        inexact,
        refused,
        **{"inputs": TOKENS, "a": nn.Linear(3, 8), "b": nn.Linear(8, 6), **parts},
    )


# --- recurrent layers -----------------------------------------------------------------------------


@tokens({"a": 8, "rnn": 5, "b": 6}, rnn=nn.LSTM(8, 5, batch_first=True), b=nn.Linear(5, 6))
def lstm(s, x):
    """A hidden unit goes with its four gates and with what the layer reads of its own past."""
    return steps(s, s.rnn(s.a(x))[0])


@tokens({"a": 8, "rnn": 5, "b": 6}, rnn=nn.LSTM(8, 5), b=nn.Linear(5, 6))
def lstm_with_steps_first(s, x):
    return steps(s, s.rnn(s.a(x).transpose(0, 1))[0].transpose(0, 1))


@tokens(
    {"a": 8, "rnn": 5, "b": 6},
    rnn=nn.LSTM(8, 5, bidirectional=True, batch_first=True),
    b=nn.Linear(10, 6),
)
def bidirectional_lstm(s, x):
    """One size for both directions: unit i of each."""
    return steps(s, s.rnn(s.a(x))[0])


@tokens(
    {"a": 8, "rnn": 5, "b": 6}, rnn=nn.LSTM(8, 5, num_layers=2, batch_first=True), b=nn.Linear(5, 6)
)
def lstm_of_two_layers(s, x):
    """One size for all layers: unit i of each."""
    return steps(s, s.rnn(s.a(x))[0])


@tokens(
    {"a": 8, "rnn": 4, "b": 6},
    refused={"rnn#2": "projection"},
    rnn=nn.LSTM(8, 5, proj_size=4, batch_first=True),
    b=nn.Linear(4, 6),
)
def lstm_with_a_projection(s, x):
    """PyTorch wants the hidden units to be more than what they are projected to, so they stay."""
    return steps(s, s.rnn(s.a(x))[0])


@tokens(
    {"a": 8, "rnn": 5, "b": 6}, rnn=nn.LSTM(8, 5, batch_first=True, bias=False), b=nn.Linear(10, 6)
)
def last_state_of_an_lstm(s, x):
    _, (h, c) = s.rnn(s.a(x))
    return s.head(s.b(torch.cat([h[-1], c[-1]], 1)).relu())


@tokens(
    {"a": 8, "start": 5, "b": 6},
    rnn=nn.LSTM(8, 5, batch_first=True),
    b=nn.Linear(5, 6),
    start=nn.Linear(3, 5),
)
def lstm_with_a_computed_state(s, x):
    h = s.start(x[:, 0]).unsqueeze(0)
    return steps(s, s.rnn(s.a(x), (h, torch.zeros_like(h)))[0])


@tokens(
    {"a": 8, "rnn": 5, "b": 6},
    rnn=nn.GRU(8, 5, batch_first=True),
    b=nn.Linear(5, 6),
    hidden=5,
    patched={"hidden": 3},
)
def gru_with_zeros_by_an_attribute(s, x):
    h = torch.zeros(1, len(x), s.hidden, dtype=x.dtype)
    return steps(s, s.rnn(s.a(x), h)[0])


@tokens(
    {"a": 8, "b": 6},
    refused={"rnn": Line("torch.zeros(1, 2, 5")},
    rnn=nn.GRU(8, 5, batch_first=True),
    b=nn.Linear(5, 6),
)
def gru_with_zeros_by_a_number(s, x):
    return steps(s, s.rnn(s.a(x), torch.zeros(1, 2, 5, dtype=x.dtype))[0])


@tokens(
    {"a": 8, "rnn": 5, "b": 6},
    rnn=nn.GRU(8, 5, 2, bidirectional=True, batch_first=True),
    b=nn.Linear(10, 6),
)
def bidirectional_gru_of_two_layers(s, x):
    return steps(s, s.rnn(s.a(x))[0])


@tokens(
    {"a": 8, "rnn": 5, "b": 6},
    rnn=nn.RNN(8, 5, batch_first=True, nonlinearity="relu"),
    b=nn.Linear(5, 6),
)
def plain_recurrent_layer(s, x):
    return steps(s, s.rnn(s.a(x))[0])


@pattern({"a": 8, "rnn": 5, "b": 6}, rnn=nn.LSTM(8, 5, bidirectional=True), b=nn.Linear(10, 6))
def convolutions_then_lstm(s, x):
    h = s.a(x).mean(2).permute(2, 0, 1)
    return s.head(s.b(s.rnn(h)[0]).relu().mean(0))


@tokens({"a": 8, "cell": 5, "b": 6}, cell=nn.LSTMCell(8, 5), b=nn.Linear(5, 6))
def lstm_cell(s, x):
    state = None
    for step in s.a(x).unbind(1):
        state = s.cell(step, state)
    return s.head(s.b(state[0]).relu())


@tokens({"a": 8, "cell": 5, "b": 6}, cell=nn.GRUCell(8, 5), b=nn.Linear(5, 6))
def gru_cell(s, x):
    h = x.new_zeros(len(x), s.cell.hidden_size)
    for step in s.a(x).unbind(1):
        h = s.cell(step, h)
    return s.head(s.b(h).relu())


@tokens({"a": 5, "b": 6}, a=nn.Linear(3, 5), cell=nn.RNNCell(3, 5), b=nn.Linear(5, 6))
def recurrent_cell_from_a_state(s, x):
    h = s.a(x[:, 0])
    for step in x.unbind(1):
        h = s.cell(step, h)
    return s.head(s.b(h).relu())


@pattern(
    {"a": 8, "gates": 5, "b": 6},
    gates=conv(13, 20, 3),
    b=conv(5, 6),
    hidden=5,
    patched={"hidden": 3},
)
def convolutional_lstm(s, x):
    n, _, height, width = x.shape
    h = c = torch.zeros(n, s.hidden, height, width, dtype=x.dtype)
    for _ in range(2):
        i, f, o, g = s.gates(torch.cat([s.a(x), h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return tail(s, h)


# --- attention of PyTorch's own -------------------------------------------------------------------


@tokens(
    {"a": 8, "mha": 2, "mha#2": 4, "mha.out_proj": 8, "b": 6},
    mha=nn.MultiheadAttention(8, 2, batch_first=True),
)
def multi_head_attention(s, x):
    """What it reads, whole heads, channel i of every head, and what it makes go by themselves; its
    shares of values are returned, and nobody looks at their mean over the heads.
    """
    h = s.a(x)
    return steps(s, s.mha(h, h, h)[0])


@tokens({"a": 8, "mha": 2, "mha#2": 4, "b": 6}, mha=nn.MultiheadAttention(8, 2))
def residual_attention_without_weights(s, x):
    h = s.a(x).transpose(0, 1)
    h = h + s.mha(h, h, h, need_weights=False)[0]
    return steps(s, h.transpose(0, 1))


@tokens(
    {"a": 8, "mha": 4, "mha#2": 2, "mha.out_proj": 8, "b": 6},
    mha=nn.MultiheadAttention(8, 4, batch_first=True),
)
def attention_with_more_heads_than_width(s, x):
    """Four heads of two channels in a batch of two."""
    h = s.a(x)
    return steps(s, s.mha(h, h, h, need_weights=False)[0])


@tokens(
    {"a": 8, "mha": 8, "b": 6},
    mha=nn.MultiheadAttention(8, 8, batch_first=True, bias=False, add_bias_kv=True),
)
def attention_with_heads_of_one_channel(s, x):
    """With a learnt key and value behind those of the tokens."""
    h = s.a(x)
    return steps(s, h + s.mha(h, h, h, need_weights=False)[0])


@tokens(
    {"a": 8, "mha#2": 2, "mha.out_proj": 8, "b": 6},
    {"mha": (4, "mean over the channels")},
    mha=nn.MultiheadAttention(8, 4, batch_first=True, add_zero_attn=True),
)
def attention_whose_mean_is_used(s, x):
    """Without a head the mean of the others is another one."""
    h = s.a(x)
    y, weights = s.mha(h, h, h)
    return steps(s, y * weights.amax(-1, keepdim=True))


@tokens(
    {"a": 8, "mha#2": 2, "mha.out_proj": 8, "b": 6},
    outputs=("head", "mha"),
    mha=nn.MultiheadAttention(8, 4, batch_first=True),
)
def attention_whose_weights_are_returned(s, x):
    h = s.a(x)
    y, weights = s.mha(h, h, h, average_attn_weights=False)
    return steps(s, y), weights


def pooled(s, h, width):
    """Attention from the first token to all, by PyTorch's function and layers of one's own, as
    CLIP's ResNets do.
    """
    h = h.transpose(0, 1)
    return F.multi_head_attention_forward(
        query=h[:1],
        key=h,
        value=h,
        embed_dim_to_check=width,
        num_heads=s.heads,
        q_proj_weight=s.q.weight,
        k_proj_weight=s.k.weight,
        v_proj_weight=s.v.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([s.q.bias, s.k.bias, s.v.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=s.out.weight,
        out_proj_bias=s.out.bias,
        use_separate_proj_weight=True,
        training=s.training,
        need_weights=False,
    )[0].squeeze(0)


def pooling(exact, inexact=None, refused=None, heads=2, **more):
    layers = {name: nn.Linear(8, 8) for name in "qkv"}
    return tokens(
        exact,
        inexact,
        refused,
        heads=heads,
        out=nn.Linear(8, 5),
        head=nn.Linear(5, 2),
        **layers,
        **more,
    )


@pooling({"out": 5}, {"a": (4, ROOT)})
def attention_pooling(s, x):
    """Its projections are as wide as what they read; what it makes is free."""
    h = s.a(x)
    return s.head(pooled(s, h, h.shape[-1]))


@pooling({"out": 5}, {"a": (2, ROOT)}, heads=4, width=8, patched={})
def attention_pooling_by_attribute(s, x):
    return s.head(pooled(s, s.a(x), s.width))


@pooling({"out": 5}, refused={"a": "the size 8 is written into the code"})
def attention_pooling_by_literal(s, x):
    return s.head(pooled(s, s.a(x), 8))


@pooling({"out": 5}, refused={"a": "one channel a head"}, heads=8)
def attention_pooling_with_narrow_heads(s, x):
    h = s.a(x)
    return s.head(pooled(s, h, h.shape[-1]))


@tokens(
    {"a": 8, "mha": 2, "mha#2": 4, "mha.out_proj": 8, "b": 6},
    mha=nn.MultiheadAttention(8, 2, batch_first=True),
)
def attention_under_two_masks(s, x):
    """One of places, one of tokens that are none."""
    h, n = s.a(x), x.shape[1]
    mask, padding = torch.ones(n, n).tril() < 1, torch.arange(n).expand(len(x), n) > 3
    return steps(s, s.mha(h, h, h, attn_mask=mask, key_padding_mask=padding)[0])


@tokens(
    {"a": 8, "mha#2": 2, "mha.out_proj": 8, "b": 6},
    refused={"mha": "fixed size"},
    mha=nn.MultiheadAttention(8, 4, batch_first=True),
)
def attention_under_a_mask_for_each_head(s, x):
    h, n = s.a(x), x.shape[1]
    mask = torch.linspace(0, 1, 8 * n * n, dtype=x.dtype).view(8, n, n)
    return steps(s, s.mha(h, h, h, attn_mask=mask)[0])


class Own(nn.MultiheadAttention):
    """Others may do anything in a class of their own."""


@tokens({"b": 6}, {"a": (4, ROOT)}, mha=Own(8, 2, batch_first=True))
def attention_of_a_class_of_its_own(s, x):
    """It stays what it is, as wide as its query: channel i of each of two heads."""
    h = s.a(x)
    return steps(s, s.mha(h, h, h)[0])


@tokens(
    {"a": 8, "c": 6, "d": 7, "mha": 2, "mha#2": 4, "mha.out_proj": 8, "b": 6},
    c=nn.Linear(3, 6),
    d=nn.Linear(3, 7),
    mha=nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=7),
)
def cross_attention(s, x):
    return steps(s, s.mha(s.a(x), s.c(x).relu(), s.d(x).relu())[0])


@tokens(
    {"a": 8, "layer.self_attn": 2, "layer.self_attn#2": 4, "layer.linear1": 12, "b": 6},
    layer=nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
)
def transformer_layer(s, x):
    return steps(s, s.layer(s.a(x)))


@tokens(
    {
        "a": 8,
        **{f"layers.{i}.self_attn": 2 for i in (0, 1)},
        **{f"layers.{i}.self_attn#2": 4 for i in (0, 1)},
        **{f"layers.{i}.linear1": 12 for i in (0, 1)},
        "b": 6,
    },
    layers=nn.ModuleList(
        nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True, activation="gelu")
        for _ in range(2)
    ),
)
def transformer_with_a_causal_mask(s, x):
    h = s.a(x)
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
    for layer in s.layers:
        h = layer(h, src_mask=mask)
    return steps(s, h)


@tokens(
    {
        "a": 8,
        **{f"layer.{kind}": 2 for kind in ("self_attn", "multihead_attn")},
        **{f"layer.{kind}#2": 4 for kind in ("self_attn", "multihead_attn")},
        "layer.linear1": 12,
        "b": 6,
    },
    c=nn.Linear(3, 8),
    layer=nn.TransformerDecoderLayer(8, 2, 12, batch_first=True),
)
def transformer_decoder_layer(s, x):
    """One weight projects the query and what it looks at, so ``c`` goes with ``a``."""
    return steps(s, s.layer(s.a(x), s.c(x)))


@tokens(
    {"v": 4, "b": 6},
    {"q": (4, PRODUCT)},
    inputs=MEMORY,
    q=nn.Linear(8, 8),
    k=nn.Linear(8, 8),
    v=nn.Linear(8, 8),
)
def attention_by_a_written_number_of_heads(s, x):
    """The heads stay, so channel i of every head goes; queries and keys meet in a product, values
    do not.
    """
    n, steps_, _ = x.shape
    q, k, v = (f(x).view(n, steps_, 2, -1).transpose(1, 2) for f in (s.q, s.k, s.v))
    h = F.scaled_dot_product_attention(q, k, v)
    return steps(s, h.transpose(1, 2).reshape(n, steps_, -1))


@tokens(
    {"q": 2, "v": 4, "b": 6},
    inputs=MEMORY,
    heads=2,
    patched={"heads": 1},
    q=nn.Linear(8, 8),
    k=nn.Linear(8, 8),
    v=nn.Linear(8, 8),
)
def attention_by_the_number_of_heads(s, x):
    """Whole heads go, of queries, keys and values together; and channel i of every head's values.

    Queries and keys keep theirs, as attention divides by the root of their number.
    """
    n, steps_, _ = x.shape
    q, k, v = (f(x).view(n, steps_, s.heads, -1).transpose(1, 2) for f in (s.q, s.k, s.v))
    h = F.scaled_dot_product_attention(q, k, v)
    return steps(s, h.transpose(1, 2).reshape(n, steps_, -1))


# --- attention by hand ----------------------------------------------------------------------------


@tokens(
    {"a": 8, "q": 2, "q#2": 4, "v": 4, "b": 6},
    heads=2,
    patched={"heads": 1},
    q=nn.Linear(8, 8),
    k=nn.Linear(8, 8),
    v=nn.Linear(8, 8),
)
def attention_with_a_scale_of_its_own(s, x):
    h = s.a(x)
    q, k, v = (f(h).unflatten(-1, (s.heads, -1)).transpose(1, 2) for f in (s.q, s.k, s.v))
    weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
    return steps(s, (weights @ v).transpose(1, 2).flatten(2))


@tokens(
    {"a": 2, "out": 8, "b": 6},
    patched={"heads": 1},
    heads=2,
    scale=0.5,
    qkv=nn.Linear(8, 24),
    out=nn.Linear(8, 8),
)
def attention_with_fused_projections(s, x):
    """The heads are as wide as what comes in lets them be, so it goes with them."""
    h = s.a(x)
    n, t, c = h.shape
    q, k, v = s.qkv(h).reshape(n, t, 3, s.heads, c // s.heads).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q * s.scale @ k.transpose(-2, -1)).softmax(-1)
    return steps(s, s.out((weights @ v).transpose(1, 2).reshape(n, t, c)))


@tokens(
    {"a": 8, "qkv": 2, "b": 6},
    qkv=nn.Linear(8, 24),
    heads=2,
    head_dim=4,
    patched={"heads": 1},
)
def attention_by_a_head_dimension(s, x):
    h = s.a(x)
    n, t, _ = h.shape
    q, k, v = s.qkv(h).view(n, t, 3, s.heads, s.head_dim).permute(2, 0, 3, 1, 4)
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return steps(s, h.reshape(n, t, s.heads * s.head_dim))


@tokens(
    {"values.0": 4, "values.1": 4, "b": 6},
    {"a": (8, PRODUCT)},
    values=nn.ModuleList(nn.Linear(8, 4) for _ in range(2)),
)
def values_of_heads_as_layers(s, x):
    """What is its own query and key is coupled; the values of each head are free."""
    h = s.a(x)
    return steps(s, torch.cat([F.scaled_dot_product_attention(h, h, f(h)) for f in s.values], -1))


@tokens(
    {"a": 8, "q": 8, "v": 4, "b": 6},
    b=nn.Linear(4, 6),
    q=nn.Linear(8, 8),
    k=nn.Linear(8, 8),
    v=nn.Linear(8, 4),
    bias=nn.Parameter(torch.zeros(5, 5)),
)
def attention_with_positions_and_a_mask(s, x):
    h = s.a(x)
    weights = torch.bmm(s.q(h), s.k(h).mT) + s.bias
    weights = weights.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -1e9).softmax(-1)
    return steps(s, torch.bmm(weights, s.v(h)))


@tokens(
    {"a": 8, "v": 4, "b": 6},
    {"q": (8, "softmax over the channels")},
    b=nn.Linear(4, 6),
    q=nn.Linear(8, 8),
    k=nn.Linear(8, 8),
    v=nn.Linear(8, 4),
)
def linear_attention(s, x):
    h = s.a(x)
    q, k = s.q(h).softmax(-1), s.k(h).softmax(1)
    return steps(s, q @ (k.transpose(1, 2) @ s.v(h)))


@tokens(
    {"v": 4, "b": 6},
    {"q": (4, PRODUCT)},
    inputs=MEMORY,
    b=nn.Linear(4, 6),
    q=nn.Linear(8, 8),
    k=nn.Linear(8, 8),
    v=nn.Linear(8, 4),
    cos=nn.Buffer(torch.linspace(0, 1, 20).view(5, 4).cos()),
    sin=nn.Buffer(torch.linspace(0, 1, 20).view(5, 4).sin()),
)
def attention_with_turned_pairs(s, x):
    """Entry i of a query turns with entry i + 4, and their angle goes with them."""

    def turned(h):
        p, q = h.chunk(2, -1)
        return torch.cat([p * s.cos - q * s.sin, q * s.cos + p * s.sin], -1)

    return steps(s, F.scaled_dot_product_attention(turned(s.q(x)), turned(s.k(x)), s.v(x)))


@pattern({"b": 6}, {"a": (8, "softmax over the channels")}, qkv=conv(8, 24))
def attention_of_channels_to_channels(s, x):
    h = s.a(x)
    n, c, height, width = h.shape
    q, k, v = s.qkv(h).flatten(2).chunk(3, 1)
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)).softmax(-1)
    return tail(s, h + (weights @ v).view(n, c, height, width))


@pattern(
    {"embed": 8, "b": 6},
    b=nn.Linear(8, 6),
    embed=nn.Conv2d(3, 8, 4, 4),
    pool=nn.Parameter(torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))),
)
def pooling_by_a_learnt_query(s, x):
    """The product with a learnt query is a layer that reads the channels."""
    h = s.embed(x).flatten(2).transpose(1, 2)
    weights = (s.pool @ h.transpose(1, 2)).softmax(-1)
    return steps(s, weights @ h)


@pattern(
    {"embed": 8, "b": 6}, b=nn.Linear(8, 6), embed=nn.Conv2d(3, 8, 4, 4), score=nn.Linear(8, 1)
)
def pooling_by_scores(s, x):
    h = s.embed(x).flatten(2).transpose(1, 2)
    return s.head(s.b((h * s.score(h).softmax(1)).sum(1)).relu())


@pattern(
    {"embed": 8, "b": 6},
    b=nn.Linear(8, 6),
    embed=nn.Conv2d(3, 8, 4, 4),
    norm=nn.LayerNorm(8),
    token=nn.Parameter(torch.ones(1, 1, 8)),
    place=nn.Parameter(torch.ones(1, 5, 8)),
)
def class_token_of_normalised_tokens(s, x):
    h = s.embed(x).flatten(2).transpose(1, 2)
    h = torch.cat([s.token.expand(x.shape[0], -1, -1), h], 1) + s.place
    return s.head(s.b(s.norm(h)[:, 0]))
