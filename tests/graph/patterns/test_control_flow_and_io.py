"""Ways in and out, control flow, in-place operations, and code around the layers."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from nets import conv as conv_norm_relu
from pattern import PICTURES, TOKENS, Line, Patterns, conv, tail

pattern = Patterns()


@pytest.mark.parametrize("case", pattern, ids=str)
def test_control_flow_and_io(case):
    case.check()


# --- inputs ---------------------------------------------------------------------------------------


@pattern({"a": 8, "b": 6}, inputs=(PICTURES, PICTURES.flip(0)), c=conv(3, 8))
def two_inputs(s, left, right):
    return tail(s, s.a(left) * s.c(right))


@pattern(
    {"a": 8, "b": 6},
    inputs={"left": PICTURES, "right": PICTURES.flip(0), "scale": 2.0},
    c=conv(3, 8),
)
def keyword_inputs(s, *, left, right=None, scale=1.0):
    return tail(s, s.a(left) + scale * s.c(right))


@pattern(
    {"a": 8, "c": 5, "b": 6},
    b=conv(13, 6),
    inputs=([PICTURES, {"side": (PICTURES,)}],),
    c=conv(3, 5),
)
def nested_inputs(s, batch):
    return tail(s, torch.cat([s.a(batch[0]), s.c(batch[1]["side"][0])], 1))


@pattern(
    {"a": 8, "c": 5, "b": 6}, b=conv(13, 6), inputs=(PICTURES, TOKENS[:, 0]), c=nn.Linear(3, 5)
)
def pictures_and_numbers(s, x, numbers):
    h = s.a(x)
    side = s.c(numbers)[:, :, None, None].expand(-1, -1, *h.shape[2:])
    return tail(s, torch.cat([h, side], 1))


@pattern({"a": 8, "b": 6}, inputs=(PICTURES, None))
def input_that_is_missing(s, x, extra):
    return tail(s, s.a(x) if extra is None else s.a(x) + extra)


# --- outputs --------------------------------------------------------------------------------------


@pattern({"a": 8, "b": 6}, outputs=("head", "other"), other=nn.Linear(6, 3))
def dictionary_of_outputs(s, x):
    h = s.b(s.a(x)).relu().mean((2, 3))
    return OrderedDict(logits=s.head(h), extra={"other": s.other(h)})


@dataclass
class Answer:
    logits: Tensor
    note: str
    box: Tensor | None = None


@pattern({"a": 8, "b": 6}, outputs=("head", "other"), other=nn.Linear(6, 4))
def dataclass_of_outputs(s, x):
    h = s.b(s.a(x)).relu().mean((2, 3))
    return Answer(s.head(h), "two", s.other(h).sigmoid())


Pair = namedtuple("Pair", "logits box")


@pattern({"a": 8, "b": 6}, outputs=("head", "other"), other=nn.Linear(6, 4))
def named_tuple_of_outputs(s, x):
    h = s.b(s.a(x)).relu().mean((2, 3))
    return Pair(box=s.other(h), logits=s.head(h))


@pattern({"b": 6}, outputs=("a", "head"))
def features_as_an_output(s, x):
    """What the network returns is somebody's input."""
    h = s.a(x)
    return tail(s, h), [h.relu()]


@pattern({"a.0": 8, "c": 5}, outputs=("b",), a=conv_norm_relu(3, 8), b=conv(5, 4), c=conv(8, 5))
def dense_prediction(s, x):
    return F.interpolate(
        s.b(s.c(F.max_pool2d(s.a(x), 2)).relu()), size=x.shape[-2:], mode="bilinear"
    )


@pattern({"a": 8}, {"b": (6, "mean over the channels")})
def score_and_mean_feature(s, x):
    h = s.b(s.a(x)).relu().mean((2, 3))
    return s.head(h), h.mean(1)


# --- control flow ---------------------------------------------------------------------------------


@pattern({"a": 8, "b": 6}, c=conv(8, 8, 3, stride=2))
def loop_until_a_shape(s, x):
    """A layer that is called twice reads what it makes."""
    h = s.a(x)
    while h.shape[-1] > 3:
        h = s.c(h).relu()
    return tail(s, h)


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def shortcut_if_the_channels_fit(s, x):
    """The code compares two sizes, and these stay equal."""
    h = s.a(x)
    y = s.c(h)
    if y.shape == h.shape:
        y = y + h
    return tail(s, y)


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=conv(8, 5), same=False)
def shortcut_by_a_flag(s, x):
    h = s.a(x)
    y = s.c(h)
    return tail(s, y + h if s.same else y)


@pattern({"b": 6}, refused={"a": Line("!= 8", "expects the size 8")})
def assertion_on_the_channels(s, x):
    h = s.a(x)
    if h.shape[1] != 8:
        raise ValueError("eight channels, please")
    return tail(s, h)


@pattern({"b": 6}, refused={"a": Line(">= 8")})
def branch_on_many_channels(s, x):
    """With fewer channels the code would take another way."""
    h = s.a(x)
    return tail(s, 2 * h.relu() if h.shape[1] >= 8 else h)


@pattern({"a": 4, "b": 6}, b=conv(4, 6))
def assertion_that_halves_are_whole(s, x):
    h = s.a(x)
    assert h.shape[1] % 2 == 0
    p, q = h.chunk(2, 1)
    return tail(s, p * q)


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def branch_on_a_value(s, x):
    h = s.a(x)
    if x.abs().max() > 0:
        h = h + s.c(h).relu()
    return tail(s, h)


@pattern({"b": 6}, {"a": (8, "mean over the channels")})
def branch_on_a_feature(s, x):
    """Which way it goes depends on all channels together."""
    h = s.a(x)
    if h.mean() > 1e6:
        h = -h
    return tail(s, h)


@pattern(
    {"a": 8, "layers.0": 5, "layers.1": 4, "b": 6},
    b=conv(17, 6),
    layers=nn.ModuleList([conv(8, 5), conv(13, 4)]),
)
def dense_loop(s, x):
    features = [s.a(x)]
    for layer in s.layers:
        features.append(layer(torch.cat(features, 1)).relu())
    return tail(s, torch.cat(features, 1))


@pattern({"a": 8, "b": 6}, unused=conv(8, 8), absent=None)
def layers_that_are_never_called(s, x):
    return tail(s, s.a(x))


@pattern({"a": 8, "b": 6}, c=conv(8, 8))
def checkpointed_block(s, x):
    h = s.a(x)
    return tail(
        s, h + torch.utils.checkpoint.checkpoint(lambda y: s.c(y).relu(), h, use_reentrant=False)
    )


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        y = x.sigmoid()
        return grad * y * (1 + x * (1 - y))


@pattern({"a": 8, "b": 6})
def custom_function(s, x):
    return tail(s, Swish.apply(s.a(x)))


def hooked(layer):
    layer.register_forward_hook(lambda module, args, out: out * 2 + 1)
    layer.register_forward_pre_hook(lambda module, args: (args[0].relu(),))
    return layer


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=hooked(conv(8, 5)))
def hooks_that_change_values(s, x):
    return tail(s, s.c(s.a(x)))


@pattern({"a": 8, "c": 5, "b": 6}, b=conv(5, 6), c=conv(8, 5))
def mixed_precision(s, x):
    with torch.autocast("cpu", torch.bfloat16):
        h = s.c(s.a(x).relu())
    return tail(s, h.to(x.dtype))


@pattern({"a": 8, "b": 6})
def vectorised_over_the_batch(s, x):
    return tail(s, torch.vmap(lambda picture: s.a(picture).relu())(x))


@pattern({"a": 8, "b": 6})
def constants_made_by_vmap(s, x):
    """As libraries make masks of attention."""
    h = s.a(x)
    places = torch.arange(h.shape[2])
    mask = torch.vmap(lambda i: (i >= places).to(h.dtype))(places)
    return tail(s, h.view(*h.shape) @ mask)


@pattern({"a": 8, "b": 6})
def switched_off_gradients(s, x):
    with torch.no_grad():
        h = s.a(x).detach().clone()
    return tail(s, h.data.requires_grad_(False) + h.contiguous(memory_format=torch.channels_last))


# --- in place -------------------------------------------------------------------------------------


@pattern({"a": 8, "b": 6}, c=conv(3, 8))
def in_place_arithmetic(s, x):
    h = s.a(x)
    h.mul_(2).add_(s.c(x)).clamp_(-1, 3)
    h += 1
    h -= h.sigmoid()
    h /= 2
    return tail(s, F.relu_(h))


@pattern(
    {"a": 8, "b": 6}, c=conv(3, 8), act=nn.SiLU(inplace=True), drop=nn.Dropout(0.5, inplace=True)
)
def in_place_modules(s, x):
    h = s.act(s.a(x))
    h.copy_(h + s.c(x))
    return tail(s, s.drop(h))


@pattern({"a": 8, "b": 6}, b=conv(16, 6), c=conv(3, 8))
def results_written_out(s, x):
    p, q = s.a(x), s.c(x)
    torch.mul(p, 2, out=p)
    return tail(s, torch.cat([p, q.addcmul_(p, p, value=0.5)], 1))


@pattern({"a": 4, "b": 6}, c=conv(4, 4))
def half_changed_in_place(s, x):
    h = s.a(x)
    half = h.shape[1] // 2
    h[:, half:] += s.c(h[:, :half].clone()).relu()
    return tail(s, h)


@pattern({"a": 4, "b": 6}, c=conv(4, 4))
def half_overwritten(s, x):
    """A network for inference alone: what its gradients need is gone."""
    h = s.a(x)
    half = h.shape[1] // 2
    h[:, half:] += s.c(h[:, :half]).relu()
    return tail(s, h)


@pattern({"a": 4, "b": 6}, c=conv(4, 4))
def chunk_changed_in_place(s, x):
    """Another one: views of a split cannot be changed where gradients are recorded."""
    h = s.a(x)
    p, q = h.chunk(2, 1)
    q += s.c(p).relu()
    return tail(s, h)


@pattern({"a": 8, "b": 6})
@torch.no_grad()
def forward_without_gradients(s, x):
    return tail(s, s.a(x))


# --- choices element by element -------------------------------------------------------------------


@pattern({"a": 8, "b": 6}, c=conv(3, 8))
def where(s, x):
    p, q = s.a(x), s.c(x)
    return tail(s, torch.where(p > q, p, 0.1 * q))


@pattern({"a": 8, "b": 6})
def masked_fill(s, x):
    h = s.a(x)
    h = h.masked_fill(h < 0, 0.1)
    h[h > 1] = 1.0
    return tail(s, h)


@pattern({"a": 8, "b": 6})
def many_activations(s, x):
    h = s.a(x)
    h = (
        F.hardswish(h)
        + F.mish(h)
        + F.gelu(h)
        + F.elu(h)
        + F.softplus(h)
        + F.leaky_relu(h)
        + F.hardtanh(h)
    )
    h = (
        h
        + F.selu(h)
        + F.celu(h)
        + F.relu6(h)
        + F.hardsigmoid(h)
        + F.logsigmoid(h)
        + F.softshrink(h)
    )
    return tail(s, torch.lerp(h, h.tanh(), 0.5) + h.abs().sqrt().nan_to_num())


@pattern({"a": 8, "b": 6}, {})
def comparison_and_cast(s, x):
    h = s.a(x)
    return tail(s, h * (h > h.mean((2, 3), keepdim=True)).to(h.dtype) + h.type_as(x).round())


@pattern({"b": 6}, {"a": (8, "random")})
def noise_of_the_shape_of_the_channels(s, x):
    """Each size draws other numbers, so nothing can be compared."""
    h = s.a(x)
    return tail(s, h + torch.randn_like(h))


@pattern({"b": 6}, {"a": (8, "random")})
def dropout_that_is_always_on(s, x):
    return tail(s, F.dropout(s.a(x)))


@pattern({"a": 8, "b": 6})
def noise_of_the_shape_of_the_input(s, x):
    return tail(s, s.a(x) + torch.rand(x[:, :1].shape, dtype=x.dtype))


# --- transforms over space ------------------------------------------------------------------------


@pattern({"a": 8, "b": 6})
def spectrum_over_space(s, x):
    h = s.a(x)
    y = torch.fft.rfft2(h, norm="ortho")
    return tail(s, torch.fft.irfft2(y * y.abs(), s=h.shape[-2:], norm="ortho"))


@pattern(
    {"a": 8, "b": 6},
    refused={"wave": ""},
    wave=nn.Buffer(torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2),
)
def wavelet(s, x):
    """A constant matrix over space on both sides; it is no layer whose rows could be pruned."""
    h = F.avg_pool2d(s.a(x), 4)
    return tail(s, (s.wave @ h @ s.wave.T).relu())


@pattern({"a": 8, "b": 6})
def places_by_their_numbers(s, x):
    h = s.a(x)
    corners = h[:, :, [0, 7]][..., torch.tensor([0, 3, 7])]
    return tail(
        s,
        corners + h[:, :, 2:3, -1:] + h.index_select(2, torch.tensor([1, 2])).amax(3, keepdim=True),
    )


@pattern({"a": 8, "b": 6})
def picked_places_of_each_channel(s, x):
    h = s.a(x).flatten(2)
    best = h.argmax(2, keepdim=True)
    return s.head(s.b(h.gather(2, best).unsqueeze(-1)).relu().mean((2, 3)))


@pattern({"a": 8, "b": 6}, inputs=(PICTURES, torch.tensor([1, 0])))
def batch_in_another_order(s, x, order):
    h = s.a(x)
    return tail(s, h + h[order] + h.flip(0).index_select(0, order))
