"""What is done with normalisations that go on over their old width: cut again, run, masked."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import netslim
from netslim.errors import PlanError, SurgeryError
from netslim.surgery.norm_inputs import give_zeros, zeros_given


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


class Positions(nn.Module):
    """What a silent channel emits is what is added to it, from a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("positions", torch.randn(5, 8))

    def forward(self, x):
        return x + self.positions


class Standardised(nn.Conv1d):
    """A convolution that normalises its weight over its inputs, as in BiT."""

    def forward(self, x):
        w = self.weight
        mean, std = w.mean((1, 2), keepdim=True), w.std((1, 2), keepdim=True, unbiased=False)
        return nn.functional.conv1d(x, (w - mean) / (std + 1e-5), self.bias)


class RootMeanSquare(nn.Module):
    """Its eps is in its code, so that it becomes a padded one: scaled weights train otherwise."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def emitting(kind):
    torch.manual_seed(0)
    emits, reads = {
        "sigmoid": (nn.Sigmoid(), nn.LayerNorm(8)),
        "positions": (Positions(), nn.LayerNorm(8)),
        "rms": (nn.Softplus(), RootMeanSquare()),
        "groups": (nn.Sequential(nn.Sigmoid(), nn.Flatten(0, 1)), nn.GroupNorm(2, 8)),
    }[kind]
    return nn.Sequential(nn.Linear(6, 8), emits, reads, nn.Linear(8, 3)).double()


TOKENS = torch.randn(2, 5, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["sigmoid", "positions", "rms", "groups"])
def test_a_mask_gives_the_norm_what_the_cut_network_gives_it(kind):
    model = emitting(kind)
    plan = cut(model, TOKENS, "0", 2)
    whole = model(TOKENS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    mask = netslim.Mask(model, plan).attach(optimizer)
    small = mask.convert()
    assert not small[2]._forward_pre_hooks
    small_optimizer = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        torch.testing.assert_close(model(TOKENS), small(TOKENS), rtol=1e-12, atol=1e-12)
        for one, steps in ((model, optimizer), (small, small_optimizer)):
            steps.zero_grad()
            one(TOKENS).square().sum().backward()
            steps.step()
    assert torch.equal(copy.deepcopy(model)(TOKENS), model(TOKENS))
    assert torch.equal(pickle.loads(pickle.dumps(model))(TOKENS), model(TOKENS))
    assert not torch.equal(whole, model(TOKENS))
    assert cut(model, TOKENS, "0", 2) == plan  # a trace looks past the mask
    assert torch.equal(netslim.prune(model, plan)(TOKENS), mask.convert()(TOKENS))
    in_place = netslim.prune_(copy.deepcopy(model), plan)
    assert not in_place[2]._forward_pre_hooks
    mask.detach()
    assert not model[2]._forward_pre_hooks


def test_a_file_of_a_masked_network_holds_what_its_norms_are_given(tmp_path):
    model = emitting("sigmoid")
    netslim.Mask(model, cut(model, TOKENS, "0", 2)).apply()
    path = netslim.save(model, tmp_path / "masked.safetensors")
    loaded = netslim.load(emitting("sigmoid"), path)
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert not torch.equal(loaded(TOKENS), emitting("sigmoid")(TOKENS))
    with pytest.raises(SurgeryError, match="zeros are given to '2', which cannot take them"):
        give_zeros(nn.Sequential(*emitting("sigmoid")[:2]), zeros_given(model))


def test_a_mask_over_convolutions_that_normalise_their_weights():
    torch.manual_seed(0)
    layers = (
        nn.Conv1d(3, 8, 1),
        nn.Sigmoid(),
        Standardised(8, 4, 1),
        nn.ReLU(),
        nn.Conv1d(4, 2, 1),
    )
    model, x = nn.Sequential(*layers).double(), torch.randn(2, 3, 5, dtype=torch.double)
    plan = cut(model, x, "0", 4)
    assert [norm.kind for norm in plan.norms] == ["convolution"]
    mask = netslim.Mask(model, plan).apply()
    torch.testing.assert_close(model(x), mask.convert()(x), rtol=1e-12, atol=1e-12)


def test_the_plan_tells_a_mask_what_a_norm_without_weights_loses():
    bare = nn.LayerNorm(8, elementwise_affine=False)
    model = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), bare, nn.Linear(8, 3)).double()
    plan = cut(model, TOKENS, "0", 4)
    assert netslim.PruningPlan.from_json(plan.to_json()) == plan
    mask = netslim.Mask(model, plan).apply()
    torch.testing.assert_close(model(TOKENS), mask.convert()(TOKENS), rtol=1e-12, atol=1e-12)
    rows = tuple(norm.lasting for norm in plan.norms)
    with pytest.raises(PlanError, match="'2' normalises over channels, and has no weights"):
        netslim.Mask(model, replace(plan, norms=rows))
