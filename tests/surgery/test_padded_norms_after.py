"""What is done with normalisations that go on over their old width: cut again, run, masked."""

import numpy as np
import pytest
import torch
from torch import nn

import netslim


class Unread(nn.LayerNorm):
    """As in timm's RmsNorm2d: it computes without the width that it has written down."""

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        x = (x - mean) / (variance + self.eps).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class UnreadNumber(nn.Module):
    """Its width is a number, not a tuple."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.normalized_shape, self.eps = width, 1e-6

    forward = Unread.forward


def cut(model, x, group, units, allow_inexact=False):
    """The plan that removes so many units of a group, chosen by chance."""
    graph = netslim.trace(model, x)
    scores = {group: torch.rand(graph[group].size, generator=torch.Generator().manual_seed(1))}
    limits = netslim.Limits(allow_inexact=allow_inexact)
    return netslim.select(graph, scores, per_group={group: units}, limits=limits)


@pytest.mark.parametrize("norm", [Unread, UnreadNumber])
def test_a_width_that_nobody_reads_is_cut_alike_both_times(norm, tmp_path):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), norm(8), nn.Conv2d(8, 2, 1)).eval()

    model, x, widths = network(), torch.randn(1, 3, 4, 4), []
    for _ in range(2):
        model = netslim.prune(model, cut(model, x, "0", 2))
        widths.append(np.ravel(model[2].normalized_shape).tolist())
    assert widths == [[6], [4]]
    loaded = netslim.load(network(), netslim.save(model, tmp_path / "small.safetensors"))
    assert torch.equal(loaded(x), model(x))


def encoder(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    return Tokens(nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)).eval()


class Tokens(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.stem, self.encoder, self.head = nn.Linear(6, 8), encoder, nn.Linear(8, 3)

    def forward(self, x, ignored=None):
        return self.head(self.encoder(self.stem(x), src_key_padding_mask=ignored))


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layers_call_their_normalisations_without_gradients_too(norm_first, tmp_path):
    model, x = encoder(norm_first), torch.randn(2, 5, 6)
    ignored = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    plan = cut(model, x, "stem", 1, allow_inexact=True)
    assert {"encoder.layers.0.norm1", "encoder.layers.1.norm2"} <= {n.module for n in plan.norms}
    small = netslim.prune(model, plan)
    path = netslim.save(small, tmp_path / "small.safetensors")
    loaded = netslim.load(encoder(norm_first), path)
    for one in (small, loaded, netslim.prune_(encoder(norm_first), plan)):
        for inputs in ((x,), (x, ignored)):
            wanted = one(*inputs).detach()
            with torch.no_grad():
                found = one(*inputs)
            real = ~ignored  # what the fused operator makes of ignored tokens is another thing
            torch.testing.assert_close(found[real], wanted[real])
    assert model.encoder.layers[0].activation_relu_or_gelu == 1  # the original is as it was
