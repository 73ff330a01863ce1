"""Layers that move channels about: repeat, shuffle, fold, slice, split, assign."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from random_layers.layer import (
    MODE,
    YES,
    Step,
    divisors,
    has_divisor,
    inner,
    one,
    one_of,
    op,
    several,
    size,
    slim,
    words,
)


@op("map -> map", when=slim, how=words("repeat interleave expand cat"), times=one_of(2, 3))
def repeated(x, how, times):
    def forward(s, v):
        if how == "repeat":
            return v.repeat(1, times, 1, 1)
        if how == "interleave":
            return v.repeat_interleave(times, dim=1)
        if how == "expand":
            return v.unsqueeze(2).expand(-1, -1, times, -1, -1).flatten(1, 2)
        return torch.cat([v] * times, 1)

    return Step(forward)


@op(
    "map -> map",
    weight=5,
    when=lambda x: has_divisor(x.c),
    groups=lambda x: divisors(x.c, 2, x.c - 1),
    kind=words("rest shape attribute width literal module unflatten"),
)
def channel_shuffle(x, groups, kind):
    def forward(s, v):
        n, c, h, w = v.shape
        if kind == "rest":
            return v.view(n, groups, -1, h, w).transpose(1, 2).reshape(n, -1, h, w)
        if kind == "shape":
            return (
                v.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
            )
        if kind == "attribute":
            return v.view(n, s.groups, c // s.groups, h, w).transpose(1, 2).flatten(1, 2)
        if kind == "width":
            return (
                v.reshape(n, groups, s.width // groups, h, w)
                .transpose(1, 2)
                .reshape(n, s.width, h, w)
            )
        if kind == "literal":
            return (
                v.reshape(-1, groups, each, h, w).transpose(1, 2).reshape(-1, groups * each, h, w)
            )
        return v.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)

    each = x.c // groups
    return (
        one(nn.ChannelShuffle(groups))
        if kind == "module"
        else Step(forward, groups=groups, width=x.c)
    )


@op(
    "map -> map",
    weight=4,
    when=lambda x: has_divisor(x.c),
    each=lambda x: divisors(x.c, 2, x.c - 1),
    reduce=words("amax sum mean softmax"),
    outer=YES,
    mode=MODE,
)
def reduced_groups(x, each, reduce, outer, mode):
    def forward(s, v):
        width = size(s, v, 1, mode, x.c)
        sizes, dim = ((width // each, each), 2) if outer else ((each, width // each), 1)
        v = v.view(v.shape[0], *sizes, *v.shape[2:])
        return (v.softmax(dim) * v).sum(dim) if reduce == "softmax" else getattr(v, reduce)(dim)

    return Step(forward, width=x.c)


@op("map -> map", kind=words("batch rows columns"))
def folded(x, kind):
    def forward(s, v):
        n, c, h, w = v.shape
        if kind == "batch":
            return s.layer(v.reshape(n * c, 1, h, w)).reshape(n, c, h, w)
        if kind == "rows":
            return (
                s.layer(v.transpose(1, 2).reshape(n * h, 1, c, w))
                .reshape(n, h, c, w)
                .transpose(1, 2)
            )
        return F.avg_pool1d(v.reshape(n, c * h, w), 3, 1, 1).reshape(n, c, h, w)

    return Step(forward, layer=nn.Conv2d(1, 1, (1, 3), padding=(0, 1)))


@op(
    "map -> map",
    weight=2,
    when=several,
    at=inner,
    kind=words("to from narrow step picked selected negative float least"),
    mode=MODE,
)
def sliced(x, at, kind, mode):
    def forward(s, v):
        if kind == "step":
            return v[:, ::2]
        if kind == "float":
            return v[:, : int(v.shape[1] * 0.5 + 0.5)]
        if kind == "least":
            return (
                v[:, : min(at, v.shape[1])]
                if mode == "literal"
                else v[:, : max(v.shape[1] // 2, 1)]
            )
        if kind == "selected":
            return v.index_select(1, s.order)
        if kind == "picked":
            return v[:, s.order]
        place = v.shape[1] * at // x.c if mode == "shape" else size(s, v, 1, mode, at)
        if kind == "to":
            return v[:, :place]
        if kind == "from":
            return v[:, place:]
        return v.narrow(1, 0, place) if kind == "narrow" else v[:, -place:]

    return Step(forward, width=at, order=torch.randperm(x.c))


@op(
    "map -> map map",
    weight=3,
    when=several,
    at=inner,
    kind=words("chunk literal attribute tuple list dict rest shape tensor_split"),
)
def split(x, at, kind):
    def forward(s, v):
        if kind == "chunk":
            return v.chunk(2, 1)
        if kind == "literal":
            return v.split([at, x.c - at], 1)
        if kind == "attribute":
            return torch.split(v, (s.left, s.right), dim=1)
        if kind == "tuple":
            return v.split(s.both, 1)
        if kind == "list":
            return torch.split(v, s.sizes, dim=1)
        if kind == "dict":
            return v[:, : s.config["left"]], v[:, s.config["left"] :]
        if kind == "rest":
            return v.split((s.left, v.shape[1] - s.left), 1)
        if kind == "shape":
            return v.split([v.shape[1] // 2, v.shape[1] - v.shape[1] // 2], dim=1)
        return torch.tensor_split(v, 2, 1)

    several = {"both": (at, x.c - at), "sizes": [at, x.c - at], "config": {"left": at}}
    return Step(forward, left=at, right=x.c - at, **several)


@op("map -> map", kind=words("loop unbind groups appended"))
def taken_apart(x, kind):
    """Loops over channels in Python."""

    def forward(s, v):
        if kind == "loop":
            return torch.stack([v[:, i] * (1 + i) for i in range(v.shape[1])], 1)
        if kind == "unbind":
            return torch.stack([part.tanh() for part in v.unbind(1)], dim=1)
        if kind == "groups":
            return torch.cat([v[:, i : i + 1].relu() for i in range(x.c)], 1)
        parts = [v]
        for layer in s.layers:
            parts.append(layer(parts[-1]))
        return torch.cat(parts, 1)

    return Step(forward, layers=nn.ModuleList([nn.Conv2d(x.c, 3, 1), nn.Conv2d(3, 2, 1)]))


@op("map -> map", kind=words("space split twice"))
def attribute_of_two_minds(x, kind):
    """One attribute that describes the channels and something else."""

    def forward(s, v):
        v = v.reshape(-1, s.width, *v.shape[2:])
        if kind == "space":
            return F.adaptive_avg_pool2d(v, (s.width, 2))
        return (
            v[:, : s.width // 2].sum(1, keepdim=True) + v
            if kind == "split"
            else s.layer(v)[:, : s.width]
        )

    return Step(forward, width=x.c, layer=nn.Conv2d(x.c, x.c + 1, 1))


@op(
    "map -> map map map",
    weight=5,
    when=lambda x: x.c % 3 == 0 and x.c > 3,
    kind=words("chunk size unbind"),
)
def split_in_three(x, kind):
    def forward(s, v):
        if kind == "chunk":
            return v.chunk(3, dim=1)
        if kind == "size":
            return v.split(v.shape[1] // 3, dim=1)
        return v.unflatten(1, (3, -1)).unbind(1)

    return Step(forward)


@op("map -> map", when=several, at=inner, order=YES)
def partly_convolved(x, at, order):
    def forward(s, v):
        a, b = torch.split(v, [s.left, s.right], dim=1)
        return torch.cat([b, s.layer(a)] if order else [s.layer(a), b], 1)

    return Step(forward, layer=nn.Conv2d(at, at, 1), left=at, right=x.c - at)


@op("map -> map", weight=1, when=slim, before=st.integers(0, 2), after=st.integers(1, 2))
def widened(x, before, after):
    return Step(lambda s, v: F.pad(v, (0, 0, 0, 0, before, after)))


@op(
    "map -> map",
    weight=2,
    when=slim,
    at=st.integers(0, 2),
    kind=words("zeros new like double buffer"),
)
def assigned(x, at, kind):
    def forward(s, v):
        n, c, h, w = v.shape
        if kind == "zeros":
            out = torch.zeros(n, c + at, h, w, dtype=v.dtype)
            out[:, at:] = v
        elif kind == "new":
            out = v.new_zeros(n, s.width, h, w)
            out[:, : v.shape[1]] = v
        elif kind == "like":
            out = torch.zeros_like(v)
            out[:, :, at:] = v[:, :, at:]
        elif kind == "buffer":
            out = s.base.expand(n, -1, h, w).clone()
            out[:, at:] += v
        else:
            out = torch.zeros((n, 2 * c, h, w), dtype=v.dtype)
            out[:, :c], out[:, c:] = v, v.relu()
        return out

    return Step(forward, width=x.c + at, base=torch.rand(1, x.c + at, 1, 1))


@op(
    "map -> map",
    weight=3,
    when=several,
    at=inner,
    kind=words("part view zero ops step index narrow set"),
)
def changed_in_place(x, at, kind):
    def forward(s, v):
        v = v * 1.5
        if kind == "part":
            v[:, :at] *= 2
        elif kind == "view":
            v[:, at:].relu_()
        elif kind == "zero":
            v[:, at] = 0
        elif kind == "ops":
            v.clamp_(-3, 3).mul_(2).add_(v.relu()).sub_(0.5)
        elif kind == "step":
            v[:, ::2] = v[:, ::2] * 0.5
        elif kind == "index":
            v[v > 0.5] = 0.25
        elif kind == "narrow":
            v.narrow(1, at, x.c - at).tanh_()
        else:
            v[:, :at] = torch.sigmoid(v[:, :at])
        return v

    return Step(forward)
