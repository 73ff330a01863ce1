"""Convolutions of every kind, with weights of their own, computed, shared and tied."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from random_layers.layer import (
    MODE,
    WIDTH,
    YES,
    Step,
    divisors,
    large,
    normalised,
    one,
    one_of,
    op,
    parameter,
    several,
    size,
    slim,
    small,
    words,
)


@op("map -> map", weight=6, out=WIDTH, kernel=one_of(1, 3), bias=YES)
def conv(x, out, kernel, bias):
    return one(nn.Conv2d(x.c, out, kernel, padding=kernel // 2, bias=bias))


@op("map -> map", weight=6, out=WIDTH)
def conv_bn_relu(x, out):
    return one(
        nn.Sequential(
            nn.Conv2d(x.c, out, 1, bias=False), normalised(nn.BatchNorm2d(out)), nn.ReLU(True)
        )
    )


@op("map -> map", weight=2, when=large, out=WIDTH)
def conv_strided(x, out):
    return one(nn.Conv2d(x.c, out, 3, stride=2, padding=1))


@op("map -> map", weight=3, when=slim, groups=lambda x: divisors(x.c), multiple=st.integers(1, 3))
def conv_grouped(x, groups, multiple):
    return one(nn.Conv2d(x.c, groups * multiple, 1, groups=groups))


@op("map -> map", weight=3, when=slim, multiplier=one_of(1, 2))
def depthwise(x, multiplier):
    return one(nn.Conv2d(x.c, x.c * multiplier, 3, padding=1, groups=x.c))


@op(
    "map -> map",
    weight=2,
    when=small,
    groups=lambda x: divisors(x.c),
    multiple=st.integers(1, 2),
    stride=one_of(1, 2),
)
def conv_transposed(x, groups, multiple, stride):
    return one(nn.ConvTranspose2d(x.c, groups * multiple, 2, stride=stride, groups=groups))


@op("map -> map", mode=MODE)
def depthwise_by_hand(x, mode):
    def forward(s, v):
        return F.conv2d(v, s.weight, padding=1, groups=size(s, v, 1, mode, x.c))

    return Step(forward, weight=parameter(x.c, 1, 3, 3), width=x.c)


@op("map -> map", out=WIDTH, kind=words("bare scaled standardised masked doubled"))
def conv_of_computed_weight(x, out, kind):
    def forward(s, v):
        w = s.weight
        if kind == "scaled":
            w = w * s.gain[:, None, None, None]
        elif kind == "standardised":
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (
                w.std((1, 2, 3), keepdim=True, unbiased=False) + 1e-5
            )
        elif kind == "masked":
            w = w * s.mask
        elif kind == "doubled":
            return F.conv2d(torch.cat([v, v.relu()], 1), torch.cat([w, -w], 1), s.bias)
        return F.conv2d(v, w, s.bias)

    weight, mask = parameter(out, x.c, 1, 1), (torch.rand(out, x.c, 1, 1) > 0.3).float()
    return Step(forward, weight=weight, bias=parameter(out), gain=parameter(out), mask=mask)


@op("map -> map", when=several, out=WIDTH, kind=words("weight spectral orthogonal"))
def conv_parametrized(x, out, kind):
    layer = nn.Conv2d(x.c, out, 1)
    return one(
        {
            "weight": parametrizations.weight_norm,
            "spectral": parametrizations.spectral_norm,
            "orthogonal": parametrizations.orthogonal,
        }[kind](layer)
    )


@op("map -> map", kind=words("twice tied transposed"))
def conv_tied(x, kind):
    first, second = nn.Conv2d(x.c, x.c, 1), nn.Conv2d(x.c, x.c, 1)
    second.weight = first.weight
    if kind == "twice":
        return Step(lambda s, v: s.first(s.first(v).relu()), first=first)
    if kind == "tied":
        return Step(lambda s, v: s.second(s.first(v).relu()), first=first, second=second)
    return Step(lambda s, v: F.conv_transpose2d(s.first(v).relu(), s.first.weight), first=first)


@op("map -> map", out=WIDTH)
def conv_of_autoencoder(x, out):
    return Step(
        lambda s, v: F.conv_transpose2d(s.layer(v).relu(), s.layer.weight),
        layer=nn.Conv2d(x.c, out, 1),
    )


@op("map map -> map map", when=lambda x, y: x.c == y.c, out=WIDTH)
def conv_shared(x, y, out):
    return Step(lambda s, v, w: (s.layer(v), s.layer(w)), layer=nn.Conv2d(x.c, out, 1))


@op("map -> map", weight=3, kernels=words("depthwise experts groups"), out=WIDTH)
def conv_of_computed_kernels(x, kernels, out):
    """Kernels for each example: made from the features, or mixed from experts."""

    def forward(s, v):
        n, c, h, w = v.shape
        if kernels == "depthwise":
            made = s.maker(v.mean((2, 3))).reshape(n * c, 1, 3, 3)
            return F.conv2d(v.reshape(1, n * c, h, w), made, padding=1, groups=n * c).view(
                n, c, h, w
            )
        if kernels == "groups":
            made = (s.router(v.mean((2, 3))).softmax(1) @ s.filters).view(
                n * s.width, s.width // s.groups, 3, 3
            )
            h = F.conv2d(v.reshape(1, n * c, h, w), made, padding=1, groups=s.groups * n)
            return h.view(n, s.width, *h.shape[2:])
        made = (s.router(v.mean((2, 3))).softmax(1) @ s.experts).view(n * out, c, 1, 1)
        return F.conv2d(v.reshape(1, -1, h, w), made, groups=n).view(n, -1, h, w)

    experts = {"experts": parameter(3, out * x.c), "filters": parameter(3, x.c * 9)}
    return Step(
        forward,
        maker=nn.Linear(x.c, x.c * 9),
        router=nn.Linear(x.c, 3),
        width=x.c,
        groups=x.c,
        **experts,
    )


@op("map -> map", out=WIDTH)
def conv_of_volumes(x, out):
    return Step(
        lambda s, v: s.layer(v.unsqueeze(2)).squeeze(2),
        layer=nn.Conv3d(x.c, out, (1, 3, 1), padding=(0, 1, 0)),
    )


@op(
    "series -> series",
    weight=6,
    when=slim,
    groups=lambda x: divisors(x.c),
    multiple=st.integers(1, 3),
)
def conv_of_series(x, groups, multiple):
    return one(nn.Conv1d(x.c, groups * multiple, 3, padding=1, groups=groups))


@op("map -> map", when=lambda x: large(x) and x.c <= 6, out=WIDTH, back=YES)
def unfolded(x, out, back):
    def forward(s, v):
        if back:
            return F.fold(F.unfold(v, 3, padding=1), v.shape[2:], 3, padding=1)
        return s.layer(F.unfold(v, 3, padding=1)).unflatten(2, v.shape[2:])

    return Step(forward, layer=nn.Conv1d(x.c * 9, out, 1))


@op("map -> map", out=WIDTH, kind=words("einsum matmul linear tensordot"))
def mixed_by_a_matrix(x, out, kind):
    def forward(s, v):
        if kind == "einsum":
            return torch.einsum("nchw,oc->nohw", v, s.weight)
        if kind == "matmul":
            return (s.weight @ v.flatten(2)).unflatten(2, v.shape[2:])
        if kind == "linear":
            return F.linear(v.permute(0, 2, 3, 1), s.weight, s.bias).permute(0, 3, 1, 2)
        return torch.tensordot(v, s.weight, dims=([1], [1])).permute(0, 3, 1, 2)

    return Step(forward, weight=parameter(out, x.c), bias=parameter(out))
