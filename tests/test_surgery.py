"""A cut is a transaction and changes nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nets import Chain, DenseBlock, Residual, cut_half
from netslim import Budget, NetslimError, PlanError, PruningPlan, SurgeryError, prune, prune_, score, select, trace
from netslim.surgery import history

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plan_for(model, share=0.5):
    graph = trace(model, X)
    return select(graph, score(graph, model, "l1"), Budget(cut_channels=share))


def test_prune_returns_a_smaller_copy_and_leaves_the_original():
    model = Chain()
    before = copy.deepcopy(model.state_dict())
    plan = cut_half(model, X)[1]
    small = prune(model, plan)
    assert small is not model
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    kept = list(plan.groups["first.0"].kept)
    assert torch.equal(small.first[0].weight, model.first[0].weight[kept])
    assert (small.first[0].out_channels, small.second[0].in_channels) == (3, 3)
    assert (small.first[1].num_features, small.head.in_features, small.head.out_features) == (3, 3 * 16, 4)
    assert small(X).shape == (4, 4)


def test_everything_else_stays():
    model = Chain().to(memory_format=torch.channels_last).train()
    model.first[1].eval()
    model.second[0].weight.requires_grad_(False)
    plan = cut_half(model, X)[1]
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    small = prune(model, plan)
    assert small.training
    assert not small.first[1].training
    assert not small.second[0].weight.requires_grad
    assert small.first[0].weight.requires_grad
    assert small.second[0].weight.is_contiguous(memory_format=torch.channels_last)
    small(X)
    assert calls == [1]


def test_dtype_and_int_buffers_stay():
    model = Chain().double()
    model.first[1].num_batches_tracked.fill_(7)
    small = prune(model, cut_half(model, X.double())[1])
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    assert small.first[1].num_batches_tracked.item() == 7
    assert small.first[1].num_batches_tracked.dtype == torch.int64


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode = nn.Linear(6, 4), nn.Linear(6, 4)
            self.decode.weight = self.encode.weight

        def forward(self, x):
            return self.decode.weight.t() @ self.encode(x).relu().t() + self.decode(x).sum()

    model = Tied()
    x = torch.randn(5, 6)
    graph = trace(model, x)
    assert not any(g.prunable for g in graph)
    small = prune(model, PruningPlan(graph.fingerprint, {}, ()))
    assert small.encode.weight is small.decode.weight


def test_in_place_keeps_parameters_and_slices_momentum():
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).square().mean().backward()
    optimizer.step()
    parameters = list(model.parameters())
    momentum = optimizer.state[model.stem[0].weight]["momentum_buffer"].clone()
    gradient = model.stem[0].weight.grad.clone()
    plan = plan_for(model)
    assert prune_(model, plan, optimizer=optimizer) is model
    kept = list(plan.groups["stem.0"].kept)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert torch.equal(optimizer.state[model.stem[0].weight]["momentum_buffer"], momentum[kept])
    assert torch.equal(model.stem[0].weight.grad, gradient[kept])
    before = model.stem[0].weight.clone()
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, model.stem[0].weight)


@pytest.mark.parametrize("kind", ["adam", "adamw", "rmsprop", "adagrad"])
def test_other_optimizers_go_on(kind):
    classes = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
        "adagrad": torch.optim.Adagrad,
    }
    model = Residual()
    optimizer = classes[kind](model.parameters(), lr=0.01)
    for cut in (False, True):
        if cut:
            prune_(model, plan_for(model), optimizer=optimizer)
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    for p in model.parameters():
        for value in optimizer.state[p].values():
            assert value.shape in (p.shape, torch.Size([]))


def test_state_that_cannot_be_cut_is_refused_and_nothing_changes():
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.stem[0].weight]["row"] = torch.zeros(5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=r"SGD keeps 'row' of shape \(5,\) for 'stem.0.weight'"):
        prune_(model, plan_for(model), optimizer=optimizer)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_plan_for_another_model_names_both_fingerprints():
    plan = plan_for(Chain())
    with pytest.raises(PlanError, match=plan.fingerprint):
        prune(Residual(), plan)


def test_a_changed_attribute_is_refused_before_anything_changes():
    from test_graph import OneForward, conv

    def forward(self, x):
        return self.head(self.a(x).mean((2, 3)).view(-1, self.width))

    model = OneForward(forward, conv(3, 8), head=nn.Linear(8, 2), width=8)
    plan = plan_for(model)
    model.width = 4
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=r"\.width is 4, the plan expects 8"):
        prune_(model, plan)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_pruned_twice_remembers_both_cuts():
    model = DenseBlock().eval()
    once = prune(model, plan_for(model, 0.3))
    twice = prune(once, plan_for(once, 0.3))
    composed = history(twice)
    again = prune(model, composed)
    assert composed.fingerprint == trace(model, X).fingerprint
    for a, b in zip(again.state_dict().values(), twice.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert history(model) is None


def test_errors_are_netslim_errors():
    assert issubclass(SurgeryError, NetslimError)
