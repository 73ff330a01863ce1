"""Attention: by hand in the ways people write it, and PyTorch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from random_layers.layer import WIDTH, YES, Step, divisors, one, one_of, op, parameter, words


@op(
    "tokens -> tokens",
    weight=5,
    heads=one_of(1, 2, 3),
    each=st.integers(1, 4),
    kind=words("split packed fused attribute relative"),
)
def attention(x, heads, each, kind):
    width = heads * each

    def forward(s, v):
        n, length, _ = v.shape
        if kind == "packed":
            q, k, u = s.qkv(v).reshape(n, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        else:
            inner = (
                s.width // s.heads if kind == "attribute" else each if kind == "relative" else -1
            )
            q, k, u = (
                part.view(n, length, heads, inner).transpose(1, 2) for part in s.qkv(v).chunk(3, -1)
            )
        if kind == "fused":
            h = F.scaled_dot_product_attention(q, k, u)
        else:
            h = (q @ k.transpose(-2, -1) / 2 + (s.bias if kind == "relative" else 0)).softmax(
                -1
            ) @ u
        return s.out(h.transpose(1, 2).reshape(n, length, -1))

    bias = parameter(heads, x.cells, x.cells)
    members = {"qkv": nn.Linear(x.c, 3 * width), "out": nn.Linear(width, x.c), "bias": bias}
    return Step(forward, width=width, heads=heads, **members)


@op(
    "tokens -> tokens",
    weight=3,
    heads=one_of(1, 2, 4),
    key=st.integers(1, 4),
    value=st.integers(1, 4),
    kind=words("split view parts channels shared scaled"),
)
def attention_of_unequal_widths(x, heads, key, value, kind):
    """Keys narrower than values, as LeViT and EfficientFormer have them; over the channels, as XCiT
    does.
    """

    def forward(s, v):
        n, length, _ = v.shape
        h = s.qkv(v)
        if kind == "view":
            q, k, u = h.view(n, length, heads, -1).split([s.key, s.key, s.value], dim=3)
        elif kind == "parts":
            q, k, u = h.view(n, length, heads, 2 * key + value).split([key, key, value], dim=-1)
        elif kind == "shared":
            parts = h.split([heads * s.key, s.key, s.value], -1)
            q, k, u = (
                parts[0].unflatten(-1, (heads, -1)),
                parts[1].unsqueeze(2),
                parts[2].unsqueeze(2),
            )
        else:
            parts = h.split([heads * s.key, heads * s.key, heads * s.value], -1)
            q, k, u = (part.reshape(n, length, heads, -1) for part in parts)
        q, k, u = (part.transpose(1, 2) for part in (q, k, u))
        if kind == "channels":
            h = ((F.normalize(q, dim=2).mT @ F.normalize(k, dim=2) * s.heat).softmax(-1) @ q.mT).mT
            return s.back(h.transpose(1, 2).flatten(2))
        scale = q.shape[-1] ** -0.5 if kind == "scaled" else 0.5
        h = (q * scale @ k.transpose(2, 3)).softmax(dim=-1) @ u
        return s.out(h.transpose(1, 2).reshape(n, length, heads * s.value))

    width = 2 * key + value + (heads - 1) * (key if kind == "shared" else 2 * key + value)
    members = {
        "qkv": nn.Linear(x.c, width),
        "out": nn.Linear(heads * value, x.c),
        "back": nn.Linear(heads * key, x.c),
    }
    return Step(forward, key=key, value=value, heat=parameter(heads, 1, 1), **members)


@op(
    "tokens -> tokens",
    weight=3,
    heads=one_of(2, 4),
    each=st.integers(1, 3),
    kind=words("interleave expand rotary merged gated"),
)
def attention_of_groups(x, heads, each, kind):
    """Several heads share their keys; rotated queries; heads merged into the batch; a gate on the
    result.
    """

    def forward(s, v):
        n, length, _ = v.shape
        q = s.q(v).view(n, length, heads, -1).transpose(1, 2)
        k, u = (layer(v).view(n, length, 2, -1).transpose(1, 2) for layer in (s.k, s.v))
        if kind == "expand":
            k, u = (
                part[:, :, None].expand(-1, -1, heads // 2, -1, -1).flatten(1, 2) for part in (k, u)
            )
        else:
            k, u = (part.repeat_interleave(heads // 2, dim=1) for part in (k, u))
        if kind == "rotary":
            q, k = (
                part * s.cos + torch.cat([-part[..., each:], part[..., :each]], -1) * s.sin
                for part in (q, k)
            )
        if kind == "merged":
            q, k, u = (part.reshape(n * heads, length, -1) for part in (q, k, u))
            h = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), u).view(n, heads, length, -1)
        else:
            h = F.scaled_dot_product_attention(q, k, u)
        h = h.transpose(1, 2).reshape(n, length, -1)
        return s.out(h * s.gate(v).sigmoid() if kind == "gated" else h)

    width, few = heads * 2 * each, 4 * each
    tables = {"cos": torch.rand(x.cells, 2 * each), "sin": torch.rand(x.cells, 2 * each)}
    members = {"q": nn.Linear(x.c, width), "k": nn.Linear(x.c, few), "v": nn.Linear(x.c, few)}
    return Step(forward, out=nn.Linear(width, x.c), gate=nn.Linear(x.c, width), **members, **tables)


@op(
    "tokens -> tokens",
    weight=6,
    when=lambda x: x.c > 1,
    heads=lambda x: divisors(x.c),
    kind=words("self cross wide weights each bias mask causal steps"),
)
def multihead(x, heads, kind):
    def forward(s, v):
        if kind == "steps":
            return s.layer(v.transpose(0, 1), v.transpose(0, 1), v.transpose(0, 1))[0].transpose(
                0, 1
            )
        k = s.keys(v) if kind in ("cross", "wide") else v
        mask = s.mask if kind == "mask" else s.mask.triu(1) > 0 if kind == "causal" else None
        given = {"attn_mask": mask, "need_weights": kind in ("weights", "each", "bias")}
        h, weights = s.layer(v, k, k, average_attn_weights=kind != "each", **given)
        return h if weights is None else h * weights.amax().sigmoid()

    wide = {"kdim": x.c + 1, "vdim": x.c + 1} if kind == "wide" else {}
    layer = nn.MultiheadAttention(
        x.c, heads, batch_first=kind != "steps", add_bias_kv=kind == "bias", **wide
    )
    keys = nn.Linear(x.c, x.c + 1 if wide else x.c)
    return Step(forward, layer=layer, keys=keys, mask=torch.rand(x.cells, x.cells))


@op(
    "tokens -> tokens",
    weight=2,
    when=lambda x: x.c > 1,
    heads=lambda x: divisors(x.c),
    out=WIDTH,
    own=YES,
)
def attention_pooled(x, heads, out, own):
    """CLIP's pooling: PyTorch's function with layers of one's own."""

    def forward(s, v):
        h = torch.cat([v.mean(1, keepdim=True), v], 1).transpose(0, 1)
        weights = {f"{name}_proj_weight": getattr(s, name).weight for name in "qkv"}
        h, _ = F.multi_head_attention_forward(
            query=h[:1],
            key=h,
            value=h,
            embed_dim_to_check=s.width if own else h.shape[-1],
            num_heads=heads,
            in_proj_weight=None if own else torch.cat(list(weights.values())),
            in_proj_bias=torch.cat([s.q.bias, s.k.bias, s.v.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=s.out.weight,
            out_proj_bias=s.out.bias,
            training=s.training,
            need_weights=False,
            use_separate_proj_weight=own,
            **(weights if own else {}),
        )
        return h.transpose(0, 1)

    layers = {name: nn.Linear(x.c, x.c) for name in "qkv"}
    return Step(forward, width=x.c, out=nn.Linear(x.c, out), **layers)


@op("tokens -> tokens", weight=5, when=lambda x: x.c % 2 == 0, hidden=WIDTH)
def encoder_layer(x, hidden):
    return one(nn.TransformerEncoderLayer(x.c, 2, hidden, dropout=0.0, batch_first=True))


@op(
    "last -> last",
    weight=6,
    when=lambda x: all(n % 2 == 0 for n in x.space) and x.c > 1,
    shifted=YES,
)
def window_attention(x, shifted):
    """Swin: windows of 2x2, rolled or not, with a table of biases looked up by relative place."""

    def forward(s, v):
        n, h, w, c = v.shape
        v = torch.roll(v, (-1, -1), (1, 2)) if shifted else v
        v = v.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, u = s.qkv(v).reshape(v.shape[0], 4, 3, 2, -1).permute(2, 0, 3, 1, 4)
        bias = s.table[s.index.view(-1)].view(4, 4, -1).permute(2, 0, 1).contiguous()
        v = ((q @ k.mT + bias.unsqueeze(0)).softmax(-1) @ u).transpose(1, 2).reshape(-1, 4, s.width)
        v = s.out(v).view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(v, (1, 1), (1, 2)) if shifted else v

    members = {
        "qkv": nn.Linear(x.c, 12),
        "out": nn.Linear(4, x.c),
        "index": torch.randint(9, (4, 4)),
    }
    return Step(forward, table=parameter(9, 2), width=4, **members)


@op(
    "last -> last",
    weight=6,
    when=lambda x: all(n % 2 == 0 for n in x.space) and x.c <= 8,
    out=WIDTH,
    view=YES,
)
def patches_merged(x, out, view):
    """Swin: four neighbours become one of four times the width."""

    def forward(s, v):
        n, h, w, c = v.shape
        if view:
            v = v.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        else:
            v = torch.cat(
                [v[:, 0::2, 0::2], v[:, 1::2, 0::2], v[:, 0::2, 1::2], v[:, 1::2, 1::2]], -1
            )
        return s.layer(v)

    return Step(forward, layer=nn.Linear(4 * x.c, out, bias=False))
