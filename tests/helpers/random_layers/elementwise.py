"""Element-wise layers, normalisation, constants and learned scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from random_layers.layer import (
    CHANNEL_AXIS,
    YES,
    Step,
    divisors,
    even,
    normalised,
    one,
    op,
    parameter,
    several,
    words,
)


@op("map -> map", weight=4, affine=YES)
def batch_norm(x, affine):
    return one(normalised(nn.BatchNorm2d(x.c, affine=affine)))


@op("vector -> vector", weight=4)
def batch_norm_of_vectors(x):
    return one(normalised(nn.BatchNorm1d(x.c)))


@op("any -> same", weight=4, kind=words("relu silu gelu sigmoid tanh hardswish elu softplus"))
def activation(x, kind):
    return Step(lambda s, v: getattr(F, kind, getattr(torch, kind, None))(v))


@op(
    "any -> same",
    kind=words("dropout identity clone detach data to double contiguous checkpoint"),
)
def passed_on(x, kind):
    def forward(s, v):
        if kind == "dropout":
            return (
                F.dropout2d(v, 0.3, training=s.training)
                if v.dim() == 4
                else F.dropout(v, 0.3, s.training)
            )
        if kind == "data":
            return v + v.data
        if kind == "to":
            return v.to(v.dtype).to(v)
        if kind == "double":
            return v.transpose(0, 1).transpose(0, 1) + v.unsqueeze(1).squeeze(1)
        if kind == "checkpoint":
            return checkpoint(torch.tanh, v, use_reentrant=False)
        return s.layer(v) if kind == "identity" else getattr(v, kind)()

    return Step(forward, layer=nn.Identity())


@op("map -> map", shared=YES)
def prelu(x, shared):
    return one(nn.PReLU(1 if shared else x.c))


@op("map -> map", weight=3, when=even)
def glu(x):
    return one(nn.GLU(1))


@op("map -> map", when=lambda x: x.cells > 1, groups=lambda x: divisors(x.c), affine=YES)
def group_norm(x, groups, affine):
    return one(nn.GroupNorm(groups, x.c, affine=affine))


@op("map -> map", when=lambda x: x.cells > 2, affine=YES, tracked=YES)
def instance_norm(x, affine, tracked):
    norm = nn.InstanceNorm2d(x.c, affine=affine, track_running_stats=tracked)
    return one(normalised(norm) if tracked else norm)


@op("last -> last", weight=6, when=several)
def layer_norm_of_maps(x):
    return one(nn.LayerNorm(x.c))


@op("tokens -> tokens", weight=4, when=several, affine=YES)
def layer_norm(x, affine):
    return one(nn.LayerNorm(x.c, elementwise_affine=affine))


@op("map -> map")
def layer_norm_over_everything(x):
    return Step(lambda s, v: F.layer_norm(v, v.shape[1:]))


@op(
    "map -> map",
    kind=words(
        "mean softmax max sum normalize std logsumexp cumsum sort least topk average response "
        "pooled spread gathered"
    ),
)
def over_the_channels(x, kind):
    def forward(s, v):
        if kind == "mean":
            return v - v.mean(1, keepdim=True)
        if kind == "max":
            return v + v.max(dim=1, keepdim=True).values
        if kind == "std":
            return v / (1 + v.std(1, keepdim=True, unbiased=False))
        if kind == "logsumexp":
            return v - v.logsumexp(1, keepdim=True)
        if kind == "sum":
            return v + v.sum(1, keepdim=True)
        if kind == "average":
            return v + v.sum(1, keepdim=True) / v.shape[1]
        if kind == "response":
            return F.local_response_norm(v, 3)
        if kind == "pooled":
            return (
                F.avg_pool1d(v.flatten(2).transpose(1, 2), 3, 1, 1).transpose(1, 2).reshape(v.shape)
            )
        if kind == "spread":
            return v * v.norm(dim=1, keepdim=True).sigmoid()
        if kind == "gathered":
            return v.gather(1, v.argsort(dim=1))
        if kind == "sort":
            return v.sort(dim=1)[0]
        if kind == "least":
            return v - v.amin(1, keepdim=True)
        if kind == "topk":
            return v + v.topk(1, dim=1)[0]
        return {"softmax": F.softmax, "normalize": F.normalize, "cumsum": torch.cumsum}[kind](
            v, dim=1
        )

    return Step(forward)


@op("any -> same", weight=2, layout=words("broadcast view unsqueeze"), how=words("mul add"))
def learned_scale(x, layout, how):
    axis = CHANNEL_AXIS[x.kind]
    full = [x.c if d == axis else 1 for d in range(len(x.sizes))]

    def forward(s, v):
        gain = s.gain
        if layout == "view":
            gain = gain.view([-1 if d == axis else 1 for d in range(len(full))])
        elif layout == "unsqueeze":
            gain = gain[(slice(None), *([None] * (len(full) - axis - 1)))]
        return v * gain if how == "mul" else v + gain

    return Step(forward, gain=parameter(*full) if layout == "broadcast" else parameter(x.c))


@op("map -> map", kind=words("channels space both attribute shape arange linspace eye python"))
def constant(x, kind):
    def forward(s, v):
        if kind == "attribute":
            return v * s.mask.view(1, s.width, 1, 1)
        if kind == "shape":
            return v * torch.ones(1, v.shape[1], 1, 1, dtype=v.dtype) + torch.full_like(v, 0.5)
        if kind == "arange":
            return v + torch.arange(v.shape[1], dtype=v.dtype).view(1, -1, 1, 1) / 10
        if kind == "linspace":
            return v * torch.linspace(0, 1, v.shape[1], dtype=v.dtype)[:, None, None]
        if kind == "eye":
            return torch.einsum("nchw,dc->ndhw", v, torch.eye(v.shape[1], dtype=v.dtype))
        if kind == "python":
            return v * torch.tensor(numbers, dtype=v.dtype).view(1, -1, 1, 1)
        return v * s.mask

    numbers = [1.0 + i for i in range(x.c)]
    shapes = {"channels": (x.c, 1, 1), "space": x.space, "both": x.sizes}
    return Step(forward, mask=torch.rand(shapes.get(kind, (x.c,))), width=x.c)


@op("any -> same", kind=words("root divided attribute entries float"))
def scaled_by_a_size(x, kind):
    """A size that becomes a number in the result: it must not shrink."""
    axis = CHANNEL_AXIS[x.kind] + 1

    def forward(s, v):
        if kind == "root":
            return v * v.shape[axis] ** -0.5
        if kind == "divided":
            return v / v.size(axis)
        if kind == "attribute":
            return v.reshape(v.shape) * (1 / s.width)
        return v / v[0].numel() if kind == "entries" else v * float(v.shape[axis])

    return Step(forward, width=x.c)


@op("any any -> same", when=lambda x, y: x == y, kind=words("where below fill"))
def chosen(x, y, kind):
    def forward(s, v, w):
        if kind == "where":
            return torch.where(v > 0.1, v, w)
        if kind == "below":
            return torch.where(w > 0.1, v, torch.zeros_like(v))
        return v.masked_fill(w > 0.1, 0.5)

    return Step(forward)
