"""Classes that are a normalisation over channels on what they were seen with, and not everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import netslim
from netslim.errors import VerificationError
from netslim.surgery.proof.silencing import randomise


class Rms(nn.Module):
    """As of Llama: it computes in single precision."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def forward(self, x):
        return self._norm(x.float()).type_as(x) * self.weight


class Clamped(Rms):
    def _clamped(self, x):
        return super()._norm(x.float()).clamp(-2.5, 2.5).type_as(x)

    def forward(self, x):
        return self._clamped(x) * self.weight


class OfLength(Rms):
    def forward(self, x):
        y = super().forward(x)
        return y if x.shape[1] <= 8 else y * 0.5


class OfNine(Rms):
    def forward(self, x):
        y = super().forward(x)
        return y * 0.5 if x.shape[1] == 9 else y


class OfBatch(Rms):
    def forward(self, x):
        y = super().forward(x)
        return y if x.shape[0] <= 8 else y * 0.5


class Gated(Rms):
    def forward(self, x, gate=None):
        if gate is not None:
            x = x * torch.sigmoid(gate)
        return super().forward(x)


class Centring:
    """A forward that is no function."""

    def __call__(self, x):
        return x - x.mean(-1, keepdim=True)


class NoFunction(nn.Module):
    forward = Centring()

    def __init__(self, channels):
        super().__init__()


class Asking(nn.Module):
    """Others than its own class are no layers to it."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 12), kind(12), nn.Linear(12, 3)
        self.kind = kind

    def forward(self, x):
        x = self.first(x)
        if isinstance(self.norm, self.kind):
            x = self.norm(x)
        return self.last(x)


def traced(kind, *sizes):
    model = randomise(Asking(kind)).eval()
    x = torch.randn(*sizes, 6, generator=torch.Generator().manual_seed(0))
    return model, x, netslim.trace(model, x)


def test_a_forward_that_is_no_function_is_none():
    *_, graph = traced(NoFunction, 2, 5)
    assert not graph["first"].prunable


@pytest.mark.parametrize("kind", [Clamped, OfLength, OfBatch, Gated])
def test_what_is_one_for_some_inputs_alone_is_none(kind):
    *_, graph = traced(kind, 2, 5)
    assert not graph["first"].prunable


@pytest.mark.parametrize(("kind", "sizes"), [(OfNine, (2, 9)), (Rms, (2, 5))])
def test_the_proof_looks_at_what_the_module_itself_computes(kind, sizes):
    """`OfNine` differs on what it is given alone; `Rms` is not what the network then asks for."""
    model, x, graph = traced(kind, *sizes)
    scores = {"first": torch.arange(12.0)}
    plan = netslim.select(graph, scores, per_group={"first": 4})
    with pytest.raises(VerificationError):
        netslim.verify(model, netslim.prune(model, plan), plan, x)


def test_a_norm_in_single_precision_is_proved_in_double():
    model, x, _ = traced(Rms, 2, 5)
    model.kind = nn.Module
    graph = netslim.trace(model, x)
    plan = netslim.select(graph, {"first": torch.arange(12.0)}, per_group={"first": 4})
    assert netslim.verify(model, netslim.prune(model, plan), plan, x).deviation < 1e-12


def test_an_encoder_that_makes_nested_tensors_of_padded_tokens_is_cut():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.encoder = nn.Linear(5, 8), nn.TransformerEncoder(layer, 1)
            self.head = nn.Linear(8, 3)

        def forward(self, x, padding):
            return self.head(self.encoder(self.emb(x), src_key_padding_mask=padding)[:, 0])

    padding = torch.tensor([[False, False, True, True], [False, False, False, True]])
    model, inputs = Tokens().eval(), (torch.randn(2, 4, 5), padding)
    graph = netslim.trace(model, inputs)
    inner = next(g.name for g in graph if "linear1" in g.name)
    scores = {inner: torch.arange(16.0)}
    plan = netslim.select(graph, scores, per_group={inner: 8})
    small = netslim.prune(model, plan)
    assert netslim.verify(model, small, plan, inputs).deviation < 1e-10
    assert small.encoder.use_nested_tensor


def test_a_depthwise_convolution_that_is_not_called_can_be_cut_twice():
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv1d(8, 8, 3, groups=8), nn.Linear(8, 6)
            self.first = nn.Linear(6, 8)

        def forward(self, x, state):
            state = torch.cat([state[:, :, 1:], self.first(x)[:, :, None]], -1)
            x = (state * self.conv.weight[:, 0]).sum(-1) + self.conv.bias
            return self.last(x.relu()), state

    model, inputs = Step().eval(), (torch.randn(2, 6), torch.randn(2, 8, 3))
    for left in (5, 3):
        free = {"free_outputs": [1], "free_inputs": ["state"]}
        graph = netslim.trace(model, inputs, **free)
        scores = {"first": torch.arange(float(graph["first"].size))}
        plan = netslim.select(graph, scores, per_group={"first": graph["first"].size - left})
        model, inputs = netslim.prune(model, plan), netslim.surgery.cut_inputs(model, inputs, plan)
        assert model.first.out_features == left
