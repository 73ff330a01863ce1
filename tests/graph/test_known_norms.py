"""What a module is, told by what it computes: at every width, whatever was found at another one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim.graph.modules.computed_convolutions import KIND, computes
from netslim.graph.modules.known_norms import known


class Last(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Wide(nn.LayerNorm):
    """Another thing from 32 channels on."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return out * 2 if x.shape[-1] >= 32 else out


def kind_of(module: nn.Module, channels: int) -> tuple[str, int] | None:
    found = known(module.eval(), torch.randn(2, 5, channels), {})
    return found and (found.kind, found.row.width)


def test_what_is_known_at_one_width_is_tried_at_another():
    assert [kind_of(Last(c), c) for c in (8, 40, 16)] == [("layer", c) for c in (8, 40, 16)]
    assert [kind_of(Wide(c), c) for c in (8, 40, 16)] == [("layer", 8), None, ("layer", 16)]


def test_what_hardly_computes_anything_says_nothing_of_others():
    for channels in (2, 8):
        group = nn.GroupNorm(1, channels, affine=False)
        found = known(group, torch.randn(3, channels), {})
    assert found is not None
    assert found.kind == "group"


def test_pytorchs_own_is_what_its_code_says_as_long_as_that_is_its_code(monkeypatch):
    assert kind_of(nn.LayerNorm(24), 24) == ("layer", 24)
    written = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", lambda *args: written(*args) * 2)
    assert kind_of(nn.LayerNorm(24), 24) is None


def test_pytorchs_own_with_a_part_of_somebodys_is_not():
    norm = nn.LayerNorm(8)
    norm.after = nn.ReLU()  # nobody calls it
    assert kind_of(norm, 8) is None


class Called(nn.LayerNorm):
    """What it is called for is more than its forward."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * x.mean()


def test_what_overrides_the_call_is_not_known_by_its_forward():
    assert kind_of(Called(8), 8) is None


class Convolution(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 6, 3)
        self.gain = nn.Parameter(torch.ones(6, 1, 1, 1))

    def computed(self) -> Tensor:
        return self.weight - self.weight.mean((1, 2, 3), keepdim=True)

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        more = self.stride, self.padding, self.dilation, self.groups
        return F.conv2d(x, weight, self.bias, *more)


def _plain(own, x):
    return own.convolved(x, own.computed() * own.gain)


def _added(own, x):
    return own.convolved(x, own.computed() + own.gain)


def _squared(own, x):
    return own.convolved(x, own.computed() * own.gain**2)


def _drawn(own, x):
    return own.convolved(x, own.computed() * own.gain * torch.randn(()))


def _of_the_input(own, x):
    return own.convolved(x, own.computed() * own.gain * x.mean())


def _more(own, x):
    return own.convolved(x, own.computed() * own.gain).add_(1)


def _rounded(own, x):
    return own.convolved(x, own.computed() * own.gain.half().float())


def _to_powers_of_two(own, x):
    return own.convolved(x, own.computed() * own.gain.abs().log2().round().exp2())


def _of_the_batch(own, x):
    return own.convolved(x, own.computed() * own.gain * len(x))


def _of_the_size(own, x):
    return own.convolved(x, own.computed() * own.gain * x.shape[-1])


def _writes(own, x):
    return own.convolved(x.relu_(), own.computed() * own.gain)


OTHERS = [
    *(_added, _squared, _drawn, _of_the_input, _more, _writes),
    *(_rounded, _to_powers_of_two, _of_the_batch, _of_the_size),
]


@pytest.mark.parametrize("forward", [_plain, *OTHERS], ids=lambda forward: forward.__name__)
def test_a_convolution_is_a_plain_one_of_its_weight_or_none(forward):
    kind = type("Own", (Convolution,), {"forward": forward})
    assert computes(kind()) == (KIND if forward is _plain else None)
