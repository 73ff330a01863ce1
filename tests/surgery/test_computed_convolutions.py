"""Convolutions that normalise their weight keep the weight that they computed: exact."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import netslim
from netslim.errors import SurgeryError
from netslim.graph.modules.computed_convolutions import KIND, KeptConv2d
from netslim.graph.modules.padded_norms import NormWidth
from netslim.graph.modules.padding import pad
from netslim.surgery.history import history
from netslim.surgery.plan_of_units import plan_keeping

PICTURES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class ByBatchNorm(nn.Conv2d):
    """As in timm."""

    def forward(self, x):
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(weight, None, None, training=True, momentum=0.0, eps=1e-6)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)


class ByHand(nn.Conv2d):
    """As in Big Transfer's own code."""

    def forward(self, x):
        v, m = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        return self._conv_forward(x, (self.weight - m) / torch.sqrt(v + 1e-10), self.bias)


class Scaled(nn.Conv2d):
    """As in timm's networks without normalisation (Brock et al. 2021), with a gain."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.randn(self.out_channels, 1, 1, 1))
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x):
        gain = (self.gain * self.scale).view(-1)
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(weight, None, None, gain, training=True, momentum=0.0, eps=1e-6)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


class ScaledSame(Scaled):
    """Its padding is TensorFlow's."""

    def __init__(self, *args, padding, **kwargs):
        super().__init__(*args, **kwargs)

    def forward(self, x):
        around = []
        for size, kernel, stride in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True):
            lacking = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            around = [lacking // 2, lacking - lacking // 2, *around]
        return super().forward(F.pad(x, around))


class PadsBefore(ByHand):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


def network(kind):
    torch.manual_seed(0)
    first, second = kind(3, 8, 3, padding=1), kind(8, 6, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(first, nn.Sigmoid(), second, nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()


def cut(graph, kept):
    masks = {}
    for number, group in enumerate(graph.groups):
        if group.prunable:
            masks[number] = torch.randperm(group.size).numpy() < kept(group.size)
    return plan_keeping(graph, masks)


def outputs(model):
    with torch.no_grad():
        return model(PICTURES)


@pytest.mark.parametrize("kind", [ByBatchNorm, ByHand, Scaled, ScaledSame])
def test_cuts_are_exact_follow_each_other_and_are_saved(kind, tmp_path):
    model = network(kind)
    graph = netslim.trace(model, PICTURES)
    assert [group.name for group in graph.prunable] == ["0", "2"]
    plan = cut(graph, lambda size: size - 2)
    assert "2: keeps the weight that it computes for 8 channels" in plan.explain()
    small = netslim.prune(model, plan)
    for inputs in (PICTURES, torch.randn(1, 3, 9, 5), torch.randn(1, 3, 10, 8)):
        assert netslim.verify(model, small, plan, inputs, graph=graph).deviation < 1e-13
    assert type(small[2]) in (nn.Conv2d, KeptConv2d)
    # And the first, which reads all that it read, is as it was.
    assert type(small[0]) is kind
    again = cut(netslim.trace(small, PICTURES), lambda size: 1)
    smaller = netslim.prune(small, again)
    assert netslim.verify(small, smaller, again, PICTURES).deviation < 1e-13
    assert netslim.PruningPlan.from_json(history(smaller).to_json()) == history(smaller)
    path = netslim.save(smaller, tmp_path / "smaller.safetensors")
    assert torch.equal(outputs(netslim.load(network(kind), path)), outputs(smaller))
    both = netslim.prune(model, history(smaller))
    assert torch.allclose(outputs(both), outputs(smaller), atol=1e-6)


def test_in_place_with_companions_and_a_mask():
    model, mapping = network(ByHand), network(ByHand).state_dict()
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(2).add_(0.1)
    plan = cut(netslim.trace(model, PICTURES), lambda size: size // 2)
    small, other = netslim.prune(model, plan), netslim.prune(average.module, plan)
    masked = network(ByHand)
    masked[1] = nn.ReLU()  # of zeros it makes zeros
    mask = netslim.Mask(masked, plan).apply()
    converted = mask.convert()
    assert torch.allclose(outputs(masked), outputs(converted), atol=1e-6)
    netslim.prune_(model, plan, companions=[average, mapping])
    assert torch.equal(outputs(model), outputs(small))
    assert torch.equal(outputs(average.module), outputs(other))
    for name, value in small.state_dict().items():
        assert torch.equal(mapping[name], value)


def test_groups_lose_as_many_inputs_each():
    torch.manual_seed(0)
    grouped = Scaled(8, 8, 3, groups=2)
    parts = nn.Conv2d(3, 8, 1), nn.Sigmoid(), grouped, nn.Sigmoid(), nn.Conv2d(8, 2, 1)
    model = nn.Sequential(*parts).double()
    x = PICTURES.double()
    graph = netslim.trace(model, x)
    assert [group.name for group in graph.prunable] == ["0", "2"]
    plan = cut(graph, lambda size: size // 2)
    small = netslim.prune(model, plan)
    assert small[2].weight.shape == (4, 2, 3, 3)
    assert netslim.verify(model, small, plan, x, graph=graph).deviation < 1e-13
    mask = netslim.Mask(model, plan).apply()
    assert torch.allclose(model(x), mask.convert()(x), rtol=1e-12)


def test_a_gain_goes_on_to_be_trained_and_zeros_to_be_put_around():
    model = network(ScaledSame)
    model[3] = nn.Sigmoid()
    with torch.no_grad():
        model[2].gain.zero_()  # as a branch begins: nothing may be divided by it
    plan = cut(netslim.trace(model, PICTURES), lambda size: size // 2)
    assert {norm.kind for norm in plan.norms} == {"same convolution"}
    small = netslim.prune(model, plan)
    small(PICTURES).sum().backward()
    assert small[2].gain.grad.abs().min() > 0
    plain = netslim.models.plain(small)
    exported = torch.export.export(small, (PICTURES,)).module()
    for other in (plain, exported):
        assert torch.allclose(other(PICTURES), small(PICTURES), atol=1e-6)
    larger = torch.randn(1, 3, 7, 9)
    assert torch.equal(plain(larger), small(larger))


def test_what_is_no_plain_convolution_else_stays_inexact():
    graph = netslim.trace(network(PadsBefore), PICTURES)
    assert graph["0"].verdict == "inexact"
    with pytest.raises(SurgeryError, match="a ReLU cannot go on as a convolution"):
        pad(nn.ReLU(), NormWidth("a", KIND, 1, 8))
