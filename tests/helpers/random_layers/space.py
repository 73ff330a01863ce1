"""Layers that change the space and leave the channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from random_layers.layer import YES, Step, large, one, one_of, op, parameter, small, words


@op("map -> map", when=large, kind=words("max avg adaptive adaptive_max"))
def pool(x, kind):
    return one(
        {
            "max": nn.MaxPool2d(2),
            "avg": nn.AvgPool2d(2),
            "adaptive": nn.AdaptiveAvgPool2d((3, 2)),
            "adaptive_max": nn.AdaptiveMaxPool2d(2),
        }[kind]
    )


@op("map -> map", when=small, kind=words("nearest bilinear size context"))
def interpolated(x, kind):
    if kind == "size":
        return Step(lambda s, v: F.interpolate(v, size=(5, 6)))
    if kind == "context":
        return Step(lambda s, v: v + F.interpolate(v.mean((2, 3), keepdim=True), size=v.shape[2:]))
    return Step(lambda s, v: F.interpolate(v, scale_factor=2, mode=kind))


@op(
    "map -> map",
    when=lambda x: small(x) and large(x),
    kind=words("constant reflect replicate circular crop"),
)
def padded(x, kind):
    if kind == "constant":
        return Step(lambda s, v: F.pad(v, (1, 0, 0, 1), value=0.5))
    if kind == "crop":
        return Step(lambda s, v: F.pad(v, (-1, 0, 0, -1)))
    return Step(lambda s, v: F.pad(v, (1, 1, 0, 1), mode=kind))


@op("map -> map", how=words("flip roll both"), dim=one_of(2, 3, 1, -3))
def turned(x, how, dim):
    if how == "flip":
        return Step(lambda s, v: v.flip(dim))
    if how == "roll":
        return Step(lambda s, v: torch.roll(v, 1, dim))
    return Step(
        lambda s, v: torch.roll(
            v.flip(dim, 2 if dim != 2 else 3), (1, -1), (dim, 2 if dim != 2 else 3)
        )
    )


@op("map -> map", weight=6, when=lambda x: x.c % 4 == 0 and small(x), by_hand=YES)
def pixel_shuffle(x, by_hand):
    def forward(s, v):
        n, c, h, w = v.shape
        v = v.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return v.reshape(n, c // 4, h * 2, w * 2)

    return Step(forward) if by_hand else one(nn.PixelShuffle(2))


@op(
    "map -> map",
    weight=8,
    when=lambda x: x.c <= 6 and large(x) and x.sizes[1] % 2 == x.sizes[2] % 2 == 0,
    kind=words("module focus view"),
)
def pixel_unshuffle(x, kind):
    def forward(s, v):
        if kind == "focus":
            return torch.cat(
                [v[..., ::2, ::2], v[..., 1::2, ::2], v[..., ::2, 1::2], v[..., 1::2, 1::2]], 1
            )
        n, c, h, w = v.shape
        return (
            v.reshape(n, c, h // 2, 2, w // 2, 2)
            .permute(0, 3, 5, 1, 2, 4)
            .reshape(n, 4 * c, h // 2, w // 2)
        )

    return one(nn.PixelUnshuffle(2)) if kind == "module" else Step(forward)


@op("map -> map", kind=words("gains phases"))
def filtered(x, kind):
    """A filter in the frequency domain."""

    def forward(s, v):
        waves = torch.fft.rfft2(v)
        waves = waves * s.gains if kind == "gains" else torch.complex(waves.real, -waves.imag)
        return torch.fft.irfft2(waves, s=v.shape[2:])

    return Step(forward, gains=parameter(x.c, 1, 1))


@op("map -> map", when=large)
def unpooled(x):
    """The tilt keeps rounding from choosing among equal entries."""

    def forward(s, v):
        pooled, places = F.max_pool2d(v + s.tilt, 2, return_indices=True)
        return F.max_unpool2d(pooled.tanh(), places, 2, output_size=v.shape)

    return Step(forward, tilt=torch.rand(x.space))


@op("map -> map", when=large)
def warped(x):
    def forward(s, v):
        theta = s.layer(v.mean((2, 3))).tanh().view(-1, 2, 3)
        return F.grid_sample(
            v, F.affine_grid(theta, v.shape, align_corners=False), align_corners=False
        )

    return Step(forward, layer=nn.Linear(x.c, 6))
