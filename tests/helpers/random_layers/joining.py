"""Layers that join two tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from random_layers.layer import CHANNEL_AXIS, WIDTH, YES, Step, op, words


@op(
    "any any -> same",
    weight=8,
    when=lambda x, y: x == y,
    kind=words("add sub gate max lerp stack iadd"),
)
def joined(x, y, kind):
    def forward(s, v, w):
        if kind == "iadd":
            v = v.clone()
            v += w
            return v
        if kind == "gate":
            return v * w.sigmoid()
        if kind == "stack":
            return torch.stack([v, w]).sum(0)
        if kind == "lerp":
            return torch.lerp(v, w, 0.3)
        return {"add": torch.add, "sub": torch.sub, "max": torch.maximum}[kind](v, w)

    return Step(forward)


@op("map map -> map", weight=4, when=lambda x, y: x.c + y.c <= 24, twice=YES)
def joined_by_cat(x, y, twice):
    def forward(s, v, w):
        if w.shape[2:] != v.shape[2:]:
            w = F.interpolate(w, size=v.shape[2:])
        return torch.cat([v, w, v] if twice else (v, w), 1)

    return Step(forward)


@op(
    "map map -> map",
    weight=3,
    when=lambda x, y: x.space == y.space,
    kind=words("project pad first broadcast if if_attribute"),
)
def joined_with_care(x, y, kind):
    def forward(s, v, w):
        if kind == "project":
            return v + s.layer(w)
        if kind == "if":
            return v + (w if w.shape[1] == v.shape[1] else s.layer(w))
        if kind == "if_attribute":
            return v + (w if s.left == s.right else s.layer(w))
        if kind == "broadcast":
            return v * w[:, :1]
        if kind == "pad" and x.c >= y.c:
            return v + F.pad(w, (0, 0, 0, 0, 0, x.c - y.c))
        few = min(x.c, y.c)
        return v[:, :few] + w[:, :few]

    return Step(forward, layer=nn.Conv2d(y.c, x.c, 1), left=x.c, right=y.c)


@op(
    "map map -> map",
    when=lambda x, y: x.space == y.space,
    kind=words("outer affinity distance similarity"),
)
def correlated(x, y, kind):
    def forward(s, v, w):
        if kind == "outer":
            return torch.einsum("nchw,ndhw->ncdhw", v, w).amax(2)
        if kind == "affinity":
            return ((v.flatten(2) @ w.flatten(2).mT).softmax(2) @ w.flatten(2)).view(v.shape)
        if kind == "distance":
            return (
                v
                * torch.cdist(v.mean((2, 3))[:, :, None], w.mean((2, 3))[:, :, None]).mean((1, 2))[
                    :, None, None, None
                ]
            )
        return v * F.cosine_similarity(v, w[:, :1], dim=1).unsqueeze(1)

    return Step(forward)


@op(
    "map vector -> map", weight=12, when=lambda x, y: x.c == y.c, kind=words("gate add view einsum")
)
def joined_with_a_vector(x, y, kind):
    def forward(s, v, w):
        if kind == "gate":
            return v * w.sigmoid()[..., None, None]
        if kind == "view":
            return v + w.view(v.shape[0], v.shape[1], 1, 1)
        if kind == "einsum":
            return torch.einsum("nchw,nc->nchw", v, w.tanh())
        return v + w.unsqueeze(2).unsqueeze(3)

    return Step(forward)


@op("map vector -> map", weight=4, hidden=YES)
def modulated(x, y, hidden):
    def forward(s, v, w):
        shift, scale = s.layer(w).chunk(2, 1)
        return v * (1 + scale[:, :, None, None].tanh()) + shift[:, :, None, None]

    return Step(forward, layer=nn.Linear(y.c, 2 * x.c))


@op("any any -> vector", when=lambda x, y: x.kind == y.kind == "vector" and x.c * y.c <= 64)
def outer_product(x, y):
    return Step(lambda s, v, w: torch.einsum("ni,nj->nij", v, w).flatten(1))


@op("vector vector -> vector", weight=4, out=WIDTH)
def bilinear(x, y, out):
    return Step(lambda s, v, w: s.layer(v, w), layer=nn.Bilinear(x.c, y.c, out))


@op(
    "any any -> same",
    when=lambda x, y: x.kind == y.kind != "map" and x.space == y.space and x.c + y.c <= 24,
)
def joined_along_channels(x, y):
    axis = CHANNEL_AXIS[x.kind] + 1
    return Step(lambda s, v, w: torch.cat([v, w], axis))
