"""Convolutions of every kind, pooling, resampling, and attention made of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import deform_conv2d, roi_align

from nets import conv as conv_norm_relu
from pattern import Line, Patterns, conv, tail

pattern = Patterns()
ONE_D = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
THREE_D = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
BLUR = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16


@pytest.mark.parametrize("case", pattern, ids=str)
def test_convolutions(case):
    case.check()


# --- grouped and transposed -----------------------------------------------------------------------


@pattern({"a.0": 8, "b": 6}, a=conv_norm_relu(3, 8), c=conv(8, 8, 3, groups=8))
def depthwise(s, x):
    return tail(s, s.c(s.a(x)))


@pattern({"a": 8, "b": 6}, b=conv(16, 6), c=conv(8, 16, 3, groups=8))
def depthwise_with_a_multiplier(s, x):
    return tail(s, s.c(s.a(x)))


@pattern({"a": 8, "b": 6}, c=conv(8, 16, 3, groups=8), d=conv(16, 8, groups=8))
def multiplied_and_reduced(s, x):
    """Channel i becomes channels 2 i and 2 i + 1, which group i reads to give channel i again."""
    return tail(s, s.d(s.c(s.a(x)).relu()))


@pattern({"a": 4, "c": 4, "b": 6}, c=conv(8, 8, 3, groups=2))
def grouped(s, x):
    return tail(s, s.c(s.a(x)))


@pattern({"a": 4, "b": 6}, c=conv(8, 8, groups=2))
def grouped_with_a_shortcut(s, x):
    h = s.a(x)
    return tail(s, h + s.c(h.relu()))


@pattern({"a": 2, "c": 2, "b": 6}, c=conv(8, 8, 3, groups=4))
def grouped_and_shuffled(s, x):
    h = s.c(s.a(x)).relu()
    n, c, height, width = h.shape
    h = h.view(n, 4, c // 4, height, width).transpose(1, 2).reshape(n, c, height, width)
    return tail(s, h)


@pattern({"a": 4, "d": 4, "b": 6}, a=conv(3, 4), c=conv(3, 4), d=conv(8, 8, 3, groups=2))
def grouped_after_cat(s, x):
    """Channel i of ``a`` is entry i of the first group, channel i of ``c`` of the second."""
    return tail(s, s.d(torch.cat([s.a(x), s.c(x)], 1)))


@pattern({"a": 3, "c": 1, "d": 4, "b": 6}, a=conv(3, 3), c=conv(3, 5), d=conv(8, 8, 3, groups=2))
def grouped_after_cat_across_the_seam(s, x):
    """Groups a0 a1 a2 c0 and c1 c2 c3 c4: a_i goes with c_i+1, c0 with c4."""
    return tail(s, s.d(torch.cat([s.a(x), s.c(x)], 1)))


@pattern({"a": 8, "c": 8, "b": 6}, c=nn.ConvTranspose2d(8, 8, 3, 2, padding=1, output_padding=1))
def transposed(s, x):
    return tail(s, s.c(s.a(x)))


@pattern({"a": 4, "c": 4, "b": 6}, c=nn.ConvTranspose2d(8, 8, 2, 2, groups=2))
def grouped_transposed(s, x):
    return tail(s, s.c(s.a(x)))


@pattern({"a": 8, "b": 6}, c=nn.ConvTranspose2d(8, 8, 2, 2, groups=8))
def depthwise_transposed(s, x):
    return tail(s, s.c(s.a(x)))


@pattern({"a": 8, "b": 6}, b=conv(16, 6), c=nn.ConvTranspose2d(8, 16, 2, 2, groups=8))
def depthwise_transposed_with_a_multiplier(s, x):
    """Both outputs of a channel stay: their number is an axis that all channels share."""
    return tail(s, s.c(s.a(x)))


@pattern({"a": 8, "c": 8, "b": 6}, c=conv(8, 8, 3, dilation=2, bias=False, padding_mode="circular"))
def dilated_and_circular(s, x):
    return tail(s, s.c(s.a(x)))


@pattern({"a": 8, "b": 6}, c=conv(8, 8, 3, groups=8, padding_mode="reflect"))
def depthwise_and_reflected(s, x):
    return tail(s, s.c(s.a(x)))


@pattern(
    {"a": 8, "c": 5, "b": 6},
    b=conv(10, 6),
    c=nn.Conv2d(8, 5, (1, 7), padding="same"),
    d=nn.Conv2d(8, 5, (7, 1), padding="same"),
)
def strips(s, x):
    h = s.a(x).relu()
    p, q = s.c(h), s.d(h)
    return tail(s, torch.cat([p * q, p], 1))


@pattern({"a": 4, "c": 1, "b": 6}, b=conv(10, 6), c=conv(8, 2, 3, groups=2))
def grouped_to_one_channel_a_group(s, x):
    """The two outputs could only go together."""
    h = s.a(x)
    return tail(s, torch.cat([h, s.c(h)], 1))


@pattern(
    {"a": 8, "c.0.0": 12, "b": 6},
    c=nn.Sequential(conv_norm_relu(8, 12), conv_norm_relu(12, 12, groups=12), conv(12, 8)),
)
def inverted_residual(s, x):
    h = s.a(x)
    return tail(s, h + s.c(h))


@pattern(
    {"a": 8, "fc": 16, "b": 6},
    c=conv(8, 8, 7, groups=8),
    norm=nn.LayerNorm(8),
    fc=nn.Linear(8, 16),
    out=nn.Linear(16, 8),
    scale=nn.Parameter(torch.ones(8)),
)
def convnext_block(s, x):
    h = s.a(x)
    y = s.norm(s.c(h).permute(0, 2, 3, 1))
    y = s.scale * s.out(F.gelu(s.fc(y)))
    return tail(s, h + y.permute(0, 3, 1, 2))


# --- one and three dimensions ---------------------------------------------------------------------


@pattern(
    {"a": 8, "c": 5, "b": 6},
    inputs=ONE_D,
    a=nn.Conv1d(3, 8, 3),
    norm=nn.BatchNorm1d(8),
    c=nn.Conv1d(8, 5, 3, stride=2),
    b=nn.ConvTranspose1d(5, 6, 2),
)
def one_dimension(s, x):
    h = F.max_pool1d(s.norm(s.a(x)).relu(), 2)
    return s.head(s.b(s.c(h).relu()).mean(2))


@pattern(
    {"a": 8, "c": 4, "b": 6},
    inputs=THREE_D,
    a=nn.Conv3d(3, 8, 1),
    norm=nn.BatchNorm3d(8),
    c=nn.Conv3d(8, 4, 3, padding=1),
    d=nn.Conv3d(4, 4, 3, padding=1, groups=4),
    b=nn.ConvTranspose3d(4, 6, 2),
)
def three_dimensions(s, x):
    h = F.avg_pool3d(s.norm(s.a(x)).relu(), 2)
    return s.head(s.b(s.d(s.c(h)).relu()).mean((2, 3, 4)))


@pattern(
    {"a": 8, "c": 4, "b": 6},
    inputs=THREE_D,
    a=nn.Conv3d(3, 8, (1, 3, 3)),
    b=conv(4, 6),
    c=nn.Conv3d(8, 4, (3, 1, 1)),
)
def frames_as_pictures(s, x):
    h = s.c(s.a(x).relu())
    n, c, t, height, width = h.shape
    h = h.permute(0, 2, 1, 3, 4).reshape(n * t, c, height, width)
    return s.head(s.b(h).relu().mean((2, 3))).view(n, t, -1)


# --- pooling and resampling -----------------------------------------------------------------------


@pattern({"a": 8, "b": 6})
def pools(s, x):
    h = s.a(x)
    pooled = F.max_pool2d(h, 3, 1, 1) + F.avg_pool2d(h, 3, 1, 1) * F.adaptive_avg_pool2d(h, 1)
    return tail(s, pooled + F.lp_pool2d(h.abs() + 1, 2, 3, stride=1)[:, :, :1, :1])


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def unpooling(s, x):
    """Indices belong to the channels they were found in, so those of ``c`` go with them."""
    h, indices = F.max_pool2d(s.a(x), 2, return_indices=True)
    return tail(s, F.max_unpool2d(s.c(h), indices, 2))


@pattern({"a": 8, "b": 6}, up=nn.Upsample(scale_factor=2, mode="bilinear"))
def interpolation(s, x):
    h = F.interpolate(s.up(s.a(x)), size=(6, 7), mode="bicubic")
    return tail(s, F.interpolate(h, scale_factor=0.5, mode="area") + F.interpolate(h, size=3))


@pattern({"a": 8, "b": 6}, blur=nn.Buffer(BLUR[None, None]))
def blur_of_a_repeated_kernel(s, x):
    h = F.pad(s.a(x), (1, 1, 1, 1), mode="reflect")
    return tail(s, F.conv2d(h, s.blur.repeat(h.shape[1], 1, 1, 1), stride=2, groups=h.shape[1]))


@pattern({"a": 8, "b": 6}, blur=nn.Buffer(BLUR[None, None]), channels=8, patched={"channels": 4})
def blur_of_an_expanded_kernel(s, x):
    return tail(
        s, F.conv2d(s.a(x), s.blur.expand(s.channels, -1, -1, -1), stride=2, groups=s.channels)
    )


@pattern({"a": 8, "b": 6}, blur=nn.Buffer(BLUR.repeat(8, 1, 1, 1), persistent=False))
def blur_of_a_registered_kernel(s, x):
    return tail(s, F.conv2d(s.a(x), s.blur, padding=1, groups=s.blur.shape[0]))


@pattern(
    {"b": 6},
    refused={"a": Line("groups=8", "written into the code")},
    blur=nn.Buffer(BLUR.repeat(8, 1, 1, 1)),
)
def blur_by_a_number_of_groups(s, x):
    return tail(s, F.conv2d(s.a(x), s.blur, padding=1, groups=8))


@pattern(
    {"a": 8, "c": 5, "b": 6},
    refused={"fc": Line("view(-1, 2, 3)")},
    c=conv(3, 5),
    fc=nn.Linear(5, 6),
)
def spatial_transformer(s, x):
    h = s.a(x)
    theta = s.fc(s.c(x).relu().mean((2, 3))).view(-1, 2, 3)
    return tail(
        s,
        F.grid_sample(h, F.affine_grid(theta, h.size(), align_corners=False), align_corners=False),
    )


@pattern({"a": 8, "b": 6})
def regions_of_interest(s, x):
    boxes = torch.tensor([[0.0, 1, 1, 6, 5], [1, 2, 0, 7, 7]], dtype=x.dtype)
    return tail(s, roi_align(s.a(x), boxes, 3, sampling_ratio=2))


@pattern(
    {"a": 8, "c": 8, "b": 6}, refused={"offset": "deform"}, offset=conv(8, 18, 3), c=conv(8, 8, 3)
)
def deformable(s, x):
    h = s.a(x)
    return tail(s, deform_conv2d(h, s.offset(h), s.c.weight, s.c.bias, padding=1).relu())


# --- attention over channels and space ------------------------------------------------------------


@pattern({"a": 8, "down": 3, "b": 6}, down=conv(8, 3), up=conv(3, 8))
def squeeze_and_excite(s, x):
    h = s.a(x).relu()
    return tail(s, h * s.up(s.down(h.mean((2, 3), keepdim=True)).relu()).sigmoid())


@pattern(
    {"a": 8, "fc.0": 3, "b": 6},
    fc=nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 8), nn.Hardsigmoid()),
)
def squeeze_and_excite_by_linear_layers(s, x):
    h = s.a(x)
    n, c, _, _ = h.size()
    y = F.adaptive_avg_pool2d(h, 1).view(n, c)
    return tail(s, h * s.fc(y).view(n, c, 1, 1).expand_as(h))


@pattern(
    {"down": 3, "b": 6},
    refused={"a": Line("view(2, 8, 1, 1)")},
    down=nn.Linear(8, 3),
    up=nn.Linear(3, 8),
)
def squeeze_and_excite_by_numbers(s, x):
    h = s.a(x)
    return tail(s, h * s.up(s.down(h.mean((2, 3))).relu()).sigmoid().view(2, 8, 1, 1))


@pattern({"a": 8, "b": 6}, c=nn.Conv1d(1, 1, 3, padding=1, bias=False))
def efficient_channel_attention(s, x):
    """A convolution over the channels goes on over the places that they had."""
    h = s.a(x)
    y = F.adaptive_avg_pool2d(h, 1).squeeze(-1).transpose(-1, -2)
    return tail(s, h * s.c(y).transpose(-1, -2).unsqueeze(-1).sigmoid())


@pattern(
    {"fc.0": 3, "b": 6},
    {"a": (8, "over the channels")},
    c=conv(2, 1, 3),
    fc=nn.Sequential(conv(8, 3), nn.ReLU(), conv(3, 8)),
)
def channel_then_spatial_attention(s, x):
    """CBAM: the first half is exact; mean and maximum over channels where a method has them."""
    h = s.a(x)
    h = h * (s.fc(h.mean((2, 3), keepdim=True)) + s.fc(h.amax((2, 3), keepdim=True))).sigmoid()
    y = torch.cat([h.mean(1, keepdim=True), h.max(1, keepdim=True)[0]], 1)
    return tail(s, h * s.c(y).sigmoid())


@pattern({"a": 8, "c": 3, "b": 6}, c=conv(8, 3), rows=conv(3, 8), columns=conv(3, 8))
def coordinate_attention(s, x):
    h = s.a(x)
    height, width = h.shape[2:]
    y = torch.cat([h.mean(3, keepdim=True), h.mean(2, keepdim=True).permute(0, 1, 3, 2)], dim=2)
    y, z = torch.split(F.hardswish(s.c(y)), [height, width], dim=2)
    return tail(s, h * s.rows(y).sigmoid() * s.columns(z.permute(0, 1, 3, 2)).sigmoid())


@pattern(
    {"a": 8, "value": 4, "b": 6},
    {"query": (5, "product of activations")},
    query=conv(8, 5),
    key=conv(8, 5),
    value=conv(8, 4),
    out=conv(4, 8),
)
def non_local(s, x):
    h = s.a(x)
    n, _, height, width = h.shape
    query, key, value = (f(h).flatten(2) for f in (s.query, s.key, s.value))
    weights = torch.matmul(query.transpose(1, 2), key).softmax(-1)
    y = torch.matmul(weights, value.transpose(1, 2)).transpose(1, 2).contiguous()
    return tail(s, h + s.out(y.view(n, -1, height, width)))


@pattern({"a": 8, "c": 4, "b": 6}, mask=conv(8, 1), c=conv(8, 4), out=conv(4, 8))
def global_context(s, x):
    h = s.a(x)
    n, c, height, width = h.size()
    weights = s.mask(h).view(n, 1, height * width).softmax(2).unsqueeze(3)
    context = torch.matmul(h.view(n, c, height * width).unsqueeze(1), weights).view(n, c, 1, 1)
    return tail(s, h + s.out(s.c(context).relu()))


@pattern({"cond": 8, "b": 6}, cond=nn.Linear(3, 16))
def feature_wise_modulation(s, x):
    scale, shift = s.cond(x.mean((2, 3)))[:, :, None, None].chunk(2, 1)
    return tail(s, s.a(x) * (1 + scale) + shift)


class Mixed(nn.Module):
    """CondConv: the kernel of each example is a mixture of experts, all examples run as groups of
    one convolution.
    """

    def __init__(self, cin, cout, kernel, groups=1):
        super().__init__()
        self.cin, self.cout, self.kernel, self.groups = cin, cout, kernel, groups
        self.weight = nn.Parameter(torch.randn(4, cout * cin // groups * kernel**2) / 4)

    def forward(self, x, mixture):
        n, c, height, width = x.shape
        kernels = torch.matmul(mixture, self.weight)
        kernels = kernels.view((n * self.cout, self.cin // self.groups, self.kernel, self.kernel))
        y = x.reshape(1, n * c, height, width)
        y = F.conv2d(y, kernels, padding=self.kernel // 2, groups=self.groups * n)
        return y.permute([1, 0, 2, 3]).view(n, self.cout, *y.shape[2:])


@pattern(
    {"route": 4, "wide": 12, "b": 6},
    refused={"a": "fixed size in grouped convolution"},
    patched={"wide.cout": 6, "deep.cin": 6, "deep.cout": 6, "deep.groups": 6},
    route=nn.Linear(3, 4),
    wide=Mixed(8, 12, 1),
    deep=Mixed(12, 12, 3, groups=12),
    b=conv(12, 6),
)
def mixture_of_kernels(s, x):
    """Depthwise, one channel a group: its groups and its inputs follow each other."""
    mixture = s.route(x.mean((2, 3))).sigmoid()
    return tail(s, s.deep(s.wide(s.a(x), mixture).relu(), mixture))
