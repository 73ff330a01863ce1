"""Blocks of several layers, as published networks have them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from random_layers.layer import WIDTH, YES, Step, normalised, one_of, op, parameter, several, words


@op(
    "map -> map", weight=4, hidden=st.integers(1, 6), kind=words("conv linear attribute eca expand")
)
def squeeze_excite(x, hidden, kind):
    def forward(s, v):
        if kind == "conv":
            return v * s.up(s.down(v.mean((2, 3), keepdim=True)).relu()).sigmoid()
        if kind == "eca":
            gate = s.line(v.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
            return v * gate.sigmoid()
        gate = s.rise(s.fall(v.mean((2, 3))).relu()).sigmoid()
        if kind == "attribute":
            return v * gate.view(-1, s.width, 1, 1)
        return (
            v * gate[:, :, None, None].expand_as(v)
            if kind == "expand"
            else v * gate.view(*v.shape[:2], 1, 1)
        )

    if kind == "conv":
        return Step(forward, down=nn.Conv2d(x.c, hidden, 1), up=nn.Conv2d(hidden, x.c, 1))
    if kind == "eca":
        return Step(forward, line=nn.Conv1d(1, 1, 3, padding=1, bias=False))
    return Step(forward, fall=nn.Linear(x.c, hidden), rise=nn.Linear(hidden, x.c), width=x.c)


@op("map -> map", weight=4, hidden=WIDTH, inplace=YES)
def residual(x, hidden, inplace):
    def forward(s, v):
        h = s.second(s.norm(s.first(v)).relu())
        if inplace:
            h += v
            return h.relu_()
        return v + h

    norm = normalised(nn.BatchNorm2d(hidden))
    return Step(
        forward,
        first=nn.Conv2d(x.c, hidden, 1),
        norm=norm,
        second=nn.Conv2d(hidden, x.c, 3, padding=1),
    )


@op("map -> map", when=lambda x: x.c <= 6, hidden=WIDTH)
def dense(x, hidden):
    norm = normalised(nn.BatchNorm2d(x.c))
    return Step(
        lambda s, v: torch.cat([v, s.layer(s.norm(v).relu())], 1),
        norm=norm,
        layer=nn.Conv2d(x.c, hidden, 1),
    )


@op("map -> map", weight=3, when=lambda x: x.c <= 6, out=st.integers(1, 12), exact=YES)
def ghost(x, out, exact):
    def forward(s, v):
        v = s.first(v)
        return torch.cat([v, s.second(v)], 1)[:, : s.width]

    half = (out + 1) // 2
    width = 2 * half if exact else out
    return Step(
        forward,
        first=nn.Conv2d(x.c, half, 1),
        second=nn.Conv2d(half, half, 1, groups=half),
        width=width,
    )


@op("map -> map", layer_scale=YES, linear=YES, factor=one_of(1, 2))
def inverted_block(x, layer_scale, linear, factor):
    def forward(s, v):
        h = s.mix(v)
        if linear:
            h = h.permute(0, 2, 3, 1)
        h = s.shrink(F.gelu(s.grow(h)))
        h = s.gamma * h if layer_scale else h
        return v + (h.permute(0, 3, 1, 2) if linear else h)

    kind = nn.Linear if linear else (lambda a, b: nn.Conv2d(a, b, 1))
    gamma = parameter(x.c) if linear else parameter(1, x.c, 1, 1)
    mix = nn.Conv2d(x.c, x.c, 3, padding=1, groups=x.c)
    return Step(
        forward, mix=mix, grow=kind(x.c, factor * x.c), shrink=kind(factor * x.c, x.c), gamma=gamma
    )


@op(
    "map -> map",
    when=several,
    branches=one_of(2, 3),
    dim=one_of(1, 0, 2, -1),
    reduce=words("sum mean amax"),
)
def stacked(x, branches, dim, reduce):
    def forward(s, v):
        return getattr(torch.stack([layer(v) for layer in s.layers], dim), reduce)(dim)

    return Step(forward, layers=nn.ModuleList(nn.Conv2d(x.c, x.c, 1) for _ in range(branches)))


@op("map -> map", when=lambda x: x.c <= 8, hidden=st.integers(1, 6), view=YES)
def selective_kernel(x, hidden, view):
    def forward(s, v):
        h = torch.stack([s.left(v), s.right(v)], 1)
        gate = s.up(s.down(h.sum(1).mean((2, 3))).relu())
        gate = (
            gate.view(v.shape[0], 2, -1, 1, 1)
            if view
            else gate.unflatten(1, (2, s.width))[..., None, None]
        )
        return (h * gate.softmax(1)).sum(1)

    members = {
        "left": nn.Conv2d(x.c, x.c, 1),
        "right": nn.Conv2d(x.c, x.c, 3, padding=1),
        "width": x.c,
    }
    return Step(forward, down=nn.Linear(x.c, hidden), up=nn.Linear(hidden, 2 * x.c), **members)


@op("map -> map", out=WIDTH, kind=words("nonlocal channels gram"))
def attention_over_space(x, out, kind):
    def forward(s, v):
        q, k, u = s.q(v).flatten(2), s.k(v).flatten(2), s.v(v).flatten(2)
        if kind == "nonlocal":
            h = torch.bmm(u, torch.bmm(q.transpose(1, 2), k).softmax(-1).transpose(1, 2))
        elif kind == "channels":
            h = torch.bmm((q @ k.transpose(1, 2)).softmax(-1), u)
        else:
            h = torch.einsum("ncl,ndl,ndm->ncm", q, k, u) / v.shape[2]
        return h.view(v.shape[0], -1, *v.shape[2:])

    return Step(
        forward, q=nn.Conv2d(x.c, out, 1), k=nn.Conv2d(x.c, out, 1), v=nn.Conv2d(x.c, out, 1)
    )


@op("map -> map", kind=words("spatial both coordinates"))
def gated_by_space(x, kind):
    def forward(s, v):
        if kind == "coordinates":
            rows = torch.linspace(-1, 1, v.shape[2], dtype=v.dtype)[:, None].expand(
                v.shape[0], 1, *v.shape[2:]
            )
            return s.grid(torch.cat([v, rows], 1))
        gate = s.layer(torch.cat([v.mean(1, keepdim=True), v.amax(1, keepdim=True)], 1)).sigmoid()
        return v * gate if kind == "spatial" else v * gate * s.gate(v).sigmoid()

    return Step(
        forward,
        layer=nn.Conv2d(2, 1, 3, padding=1),
        gate=nn.Conv2d(x.c, 1, 1),
        grid=nn.Conv2d(x.c + 1, x.c, 1),
    )
