"""A cut is a transaction and changes nothing else."""

from __future__ import annotations

import copy
import importlib
import pickle
import types
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nets import Chain, DenseBlock, OneForward, Residual, conv, cut_half
from netslim import (
    Budget,
    NetslimError,
    PruningPlan,
    prune,
    prune_,
    score,
    select,
    trace,
    verify,
)
from netslim.errors import ArgumentError, PlanError, SurgeryError
from netslim.graph.modules.spectral_norms import spectral_norms
from netslim.graph.modules.walk import fingerprint
from netslim.graph.modules.weight_norms import weight_norms
from netslim.surgery.history import history
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.rows import SizeLoss, SizePatch, TensorCut

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
    assert (small.first[1].num_features, small.head.in_features, small.head.out_features) == (
        3,
        3 * 16,
        4,
    )
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
    (group,) = (g for g in graph if g.prunable)
    plan = plan_keeping(graph, {graph.number(group.name): np.arange(4) < 3})
    small = prune(model, plan)
    assert small.encode.weight is small.decode.weight
    assert verify(model, small, plan, x).deviation < 1e-12


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


def test_a_loss_that_is_still_referred_to_does_not_keep_the_old_shapes():
    model = Residual()
    seen = []
    model.head.weight.register_hook(lambda gradient: seen.append(gradient.shape[1]))
    loss = model(X).square().mean()
    loss.backward()
    plan = plan_for(model)
    prune_(model, plan)
    model.zero_grad()
    again = model(X).square().mean()
    again.backward()
    assert loss.grad_fn is not None
    assert seen == [6, len(plan.groups["stem.0"].kept)]
    assert all(p.grad.shape == p.shape for p in model.parameters())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, foreach=True),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_go_on_with_their_state(kind):
    model = Residual()
    names = {p: n for n, p in model.named_parameters()}
    convolutions = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = OPTIMIZERS[kind](
        [{"params": convolutions, "weight_decay": 0.1}, {"params": others, "lr": 0.001}]
    )
    model(X).square().mean().backward()
    optimizer.step()
    before = {names[p]: copy.deepcopy(dict(state)) for p, state in optimizer.state.items()}
    plan = plan_for(model)
    prune_(model, plan, optimizer=optimizer)
    for name, state in before.items():
        wanted = {
            k: sliced(v, name, plan) if torch.is_tensor(v) and v.numel() > 1 else v
            for k, v in state.items()
        }
        for key, value in optimizer.state[model.get_parameter(name)].items():
            assert torch.is_tensor(value) == torch.is_tensor(wanted[key])
            assert (
                torch.equal(value, wanted[key]) if torch.is_tensor(value) else value == wanted[key]
            )
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def sliced(tensor, name, plan):
    """The planned entries, along the axes where the tensor has more than one."""
    for cut in plan.tensors:
        if cut.tensor == name and tensor.shape[cut.axis] == cut.size:
            tensor = tensor[(slice(None),) * cut.axis + (list(cut.kept),)]
    return tensor


def test_gradient_scaling_goes_on():
    model = Residual()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for cut in (False, True):
        if cut:
            prune_(model, plan_for(model), optimizer=optimizer)
        optimizer.zero_grad()
        scaler.scale(model(X).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 8.0


def test_state_that_cannot_be_cut_is_refused_and_nothing_changes():
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.stem[0].weight]["row"] = torch.zeros(5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=r"SGD keeps 'row' of shape \(5,\) for 'stem.0.weight'"):
        prune_(model, plan_for(model), optimizer=optimizer)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def refused_optimizers(model):
    lbfgs = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=1)
    model(X).sum().backward()
    lbfgs.step(lambda: model(X).square().mean())
    listed = torch.optim.SGD(model.parameters(), lr=0.1)
    listed.state[model.stem[0].weight]["past"] = [torch.zeros(6)]
    factored = torch.optim.SGD(model.parameters(), lr=0.1)
    factored.state[model.outer.weight]["row"] = torch.zeros(6, 5)
    stranger = torch.optim.Adam(Residual().parameters())
    return {
        "LBFGS keeps its history in one vector over all parameters; make a new optimizer after "
        "prune_": lbfgs,
        "SGD keeps 'past', a list of tensors, for 'stem.0.weight'": listed,
        r"SGD keeps 'row' of shape \(6, 5\) for 'outer.weight' of shape": factored,
        "this Adam holds none of the model's parameters: pass the optimizer that trains this "
        "very model": stranger,
        "optimizer takes torch.optim.Optimizer objects, not a GradScaler": torch.amp.GradScaler(
            "cpu", enabled=False
        ),
        "optimizer takes torch.optim.Optimizer objects, not a str": [listed, "adam"],
    }


def test_optimizers_that_cannot_follow_are_refused_and_nothing_changes():
    model = Residual()
    cases = refused_optimizers(model)
    before, plan = copy.deepcopy(model.state_dict()), plan_for(model)
    good = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    good.step()
    momentum = {p: dict(state) for p, state in good.state.items()}
    for message, optimizer in cases.items():
        with pytest.raises((SurgeryError, ArgumentError), match=message):
            prune_(model, plan, optimizer=optimizer)
    with pytest.raises(SurgeryError, match="LBFGS"):
        prune_(model, plan, optimizer=[good, next(iter(cases.values()))])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.stem[0].out_channels == 6
    assert all(
        value is good.state[p][key] for p, state in momentum.items() for key, value in state.items()
    )


def test_sharded_optimizer_state_is_refused(tmp_path):
    distributed = pytest.importorskip("torch.distributed")
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this PyTorch has no gloo")
    from torch.distributed.optim import ZeroRedundancyOptimizer

    distributed.init_process_group(
        "gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1
    )
    try:
        model = Residual()
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.1)
        with pytest.raises(
            SurgeryError, match=r"ZeroRedundancyOptimizer shards its state.*make a new optimizer"
        ):
            prune_(model, plan_for(model), optimizer=optimizer)
    finally:
        distributed.destroy_process_group()


def test_a_wrapped_optimizer_is_the_one_inside():
    model = Residual()
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).sum().backward()
    inner.step()
    prune_(model, plan_for(model), optimizer=types.SimpleNamespace(optimizer=inner))
    assert all(inner.state[p]["momentum_buffer"].shape == p.shape for p in model.parameters())


def test_an_optimizer_within_an_optimizer_is_cut_too():
    class Outer(torch.optim.Optimizer):
        def __init__(self, base):
            super().__init__(base.param_groups, {})
            self.base = base

        def step(self, closure=None):
            self.base.step()
            for group in self.param_groups:
                for p in group["params"]:
                    slow = self.state[p].setdefault("slow", p.detach().clone())
                    slow.lerp_(p.detach(), 0.5)

    model = Residual()
    outer = Outer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for cut in (False, True):
        if cut:
            prune_(model, plan_for(model), optimizer=outer)
        outer.zero_grad()
        model(X).sum().backward()
        outer.step()
    assert all(outer.state[p]["slow"].shape == p.shape for p in model.parameters())
    assert all(outer.base.state[p]["momentum_buffer"].shape == p.shape for p in model.parameters())


# --- companions -----------------------------------------------------------------------------------


def averaged(model):
    """What trains beside a model, by kind, each with values of its own, and how to look at its
    network.
    """
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    swa = AveragedModel(model, use_buffers=True)
    twin = copy.deepcopy(model).double()
    timm_utils = pytest.importorskip("timm.utils")
    v1, v2, v3 = (
        timm_utils.ModelEma(model),
        timm_utils.ModelEmaV2(model),
        timm_utils.ModelEmaV3(model),
    )
    return {
        "ema": (ema, ema.module),
        "swa": (swa, swa.module),
        "copy": (twin, twin),
        "compiled": (torch.compile(model := copy.deepcopy(model), backend="eager"), model),
        "timm": (v1, v1.ema),
        "timm v2": (v2, v2.module),
        "timm v3": (v3, v3.module),
    }


def test_companions_are_cut_alike_and_go_on():
    model = Residual()
    kinds = averaged(model)
    with torch.no_grad():
        for number, (_, network) in enumerate(kinds.values()):
            for tensor in network.parameters():
                tensor.add_(number)
    plan = plan_for(model)
    expected = {kind: prune(network, plan) for kind, (_, network) in kinds.items()}
    assert prune_(model, plan, companions=[companion for companion, _ in kinds.values()]) is model
    for kind, (_, network) in kinds.items():
        wanted = expected[kind].state_dict()
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, wanted[name]), (kind, name)
        assert network.stem[0].out_channels == model.stem[0].out_channels < 6
        assert history(network) == plan
    for kind in ("ema", "swa"):
        companion = kinds[kind][0]
        companion.update_parameters(model)
        assert companion.n_averaged == 1
        assert torch.equal(companion.module.head.weight, model.head.weight)
    for kind in ("timm", "timm v2", "timm v3"):
        kinds[kind][0].update(model)


def test_shadow_tensors_are_cut_under_their_names():
    class Tied(Residual):
        def __init__(self):
            super().__init__()
            self.twin = nn.Conv2d(5, 6, 1)
            self.twin.weight = self.outer.weight

    model = Tied()
    plan = plan_for(model)
    state = {n: t.clone() + 1 for n, t in model.state_dict().items()}
    partial = {n: p.detach() + 2 for n, p in model.named_parameters() if n != "head.bias"} | {
        "updates": 7
    }
    prune_(model, plan, companions=(state, partial))
    for name, tensor in model.state_dict().items():
        assert state[name].shape == tensor.shape
        if tensor.is_floating_point():
            assert torch.equal(state[name], tensor + 1)
    assert state["twin.weight"].shape == model.outer.weight.shape
    assert torch.equal(partial["stem.0.weight"], model.stem[0].weight + 2)
    assert partial["updates"] == 7


def test_a_companion_that_is_the_model_or_given_twice_is_cut_once():
    model = Residual()
    plan, twin = plan_for(model), copy.deepcopy(model)
    prune_(model, plan, companions=(model, twin, twin, model.state_dict()))
    assert fingerprint(model) == fingerprint(twin)
    assert torch.equal(model.stem[0].weight, twin.stem[0].weight)


def test_a_single_companion_needs_no_tuple():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1))
    twin = copy.deepcopy(model)
    prune_(model, plan_for(model), companions=twin)
    assert twin[0].out_channels == model[0].out_channels
    assert torch.equal(twin[0].weight, model[0].weight)


def test_companions_of_another_architecture_are_refused_by_name_and_nothing_changes():
    model = Residual()
    plan, optimizer = plan_for(model), torch.optim.SGD(model.parameters(), lr=0.1)
    twin, other = copy.deepcopy(model), Residual()
    other.inner[0] = nn.Conv2d(6, 9, 3, padding=1)
    other.extra = nn.Linear(2, 2)
    del other.head
    prefixed, wrong = AveragedModel(model).state_dict(), torch.ones(1, 6)
    cases = {
        r"companion 2 \(Residual\) has another architecture than the model: it lacks "
        r"'head.weight', it lacks "
        r"'head.bias', it has 'extra.weight', it has 'extra.bias' and 2 more": other,
        r"companion 2 \(AveragedModel\) has another architecture": AveragedModel(Chain()),
        r"companion 2 \(OrderedDict\) does not hold .* it has 'module.stem.0.weight'.* strip a "
        r"prefix": prefixed,
        r"companion 2 \(dict\) .* 'head.weight' has shape \(1, 6\) instead of \(4, 6\)": {
            "head.weight": wrong
        },
        r"companion 2 \(dict\) does not hold tensors of the model under their names: it is "
        r"empty": {},
        r"companion 2 \(list\) is no companion: pass a copy": [
            p.clone() for p in model.parameters()
        ],
        r"companion 2 \(SGD\) is no companion": optimizer,
        r"companion 2 \(\w+\): the model is a RecursiveScriptModule": scripted(model),
    }
    before = [copy.deepcopy(m.state_dict()) for m in (model, twin)]
    for message, companion in cases.items():
        with pytest.raises(SurgeryError, match=message):
            prune_(model, plan, optimizer, companions=(twin, companion))
    for one, state in zip((model, twin), before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in one.state_dict().items())
        assert one.stem[0].out_channels == 6


def scripted(model):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is deprecated")
        return torch.jit.script(copy.deepcopy(model))


class Locked(nn.Conv2d):
    """A part of which nothing can be set any more."""

    def __setattr__(self, name, value):
        if self.__dict__.get("locked"):
            raise AttributeError(f"{name} is locked")
        super().__setattr__(name, value)


class Widths(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.conv(x).relu().view(len(x), self.width, *x.shape[2:])


@pytest.mark.parametrize("locked", ["0", "1.conv", "3"])
def test_a_part_that_cannot_be_set_keeps_no_other_from_being_as_it_was(locked):
    model = nn.Sequential(Locked(3, 8, 1), Widths(8), nn.GroupNorm(1, 8), Locked(8, 4, 1)).eval()
    model[1].conv = Locked(8, 8, 1)
    before, graph = model(X), trace(model, X)
    halves = {n: np.arange(g.size) % 2 == 0 for n, g in enumerate(graph.groups) if g.prunable}
    vars(model.get_submodule(locked))["locked"] = True
    with pytest.raises(AttributeError, match="is locked"):
        prune_(model, plan_keeping(graph, halves))
    assert model[1].width == 8
    assert type(model[2]) is nn.GroupNorm
    assert torch.equal(model(X), before)


def test_a_change_that_fails_half_way_is_taken_back():
    class Stubborn(Residual):
        @property
        def width(self):
            return 6

        @width.setter
        def width(self, value):
            raise ValueError(f"no {value}")

    model = Stubborn()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()
    momentum = {p: state["momentum_buffer"] for p, state in optimizer.state.items()}
    plan = plan_for(model)
    model.depth = twin.depth = 4
    sizes = (SizePatch("", "depth", 4, 2), SizePatch("", "width", 6, 3))
    losses = tuple(SizeLoss("", patch.attribute, patch.old - patch.new) for patch in sizes)
    groups = {name: replace(cut, sizes=losses) for name, cut in plan.groups.items()}
    assert len(groups) == 1
    plan = PruningPlan(plan.fingerprint, groups, plan.tensors, sizes)
    before = [copy.deepcopy(m.state_dict()) for m in (model, twin)]
    gradients = [p.grad for p in model.parameters()]
    with pytest.raises(
        SurgeryError, match=r"Stubborn.width cannot be set to 3 \(ValueError: no 3\)"
    ):
        prune_(model, plan, optimizer, companions=twin)
    for one, state in zip((model, twin), before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in one.state_dict().items())
        assert history(one) is None
        assert (one.stem[0].out_channels, one.depth) == (6, 4)
    assert all(optimizer.state[p]["momentum_buffer"] is value for p, value in momentum.items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    model(X).sum().backward()


def test_tensors_that_share_memory_go_on_to_share_it():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(3, 6, 1)
            self.b.weight.data, self.head = self.a.weight.data, nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.head(self.a(x) + self.b(x))

    model = Twins()
    plan = plan_for(model)
    small = prune(model, plan)
    with torch.no_grad():
        small.a.weight.zero_()
        assert small.b.weight.abs().sum() == 0
        prune_(model, plan).a.weight.zero_()
        assert model.b.weight.abs().sum() == 0
    apart = Twins()
    uneven = PruningPlan(fingerprint(apart), {}, (TensorCut("a.weight", 0, 6, (0, 1), "producer"),))
    with pytest.raises(
        SurgeryError, match=r"'a.weight' and 'b.weight' share their memory.*make them one parameter"
    ):
        prune(apart, uneven)


# --- weights that are computed before each call ---------------------------------------------------


def masked(layer):
    return importlib.import_module("torch.nn.utils.prune").random_unstructured(
        layer, "weight", amount=0.3
    )


COMPUTED = {
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "mask": masked,
    "parametrised weight_norm": nn.utils.parametrizations.weight_norm,
    "parametrised spectral_norm": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_computed_from_others_are_cut_with_them(kind):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), COMPUTED[kind](nn.Conv2d(6, 4, 3)))
    model(X)  # leaves a weight with a history behind
    state = {n: t.clone() for n, t in model.state_dict().items()}
    kept = (0, 1, 4)
    columns = tuple(
        9 * channel + k for channel in kept for k in range(9)
    )  # the singular vector of spectral norm
    cuts = [TensorCut(n, 0, 6, kept, "producer") for n in ("0.weight", "0.bias")]
    cuts += [TensorCut(n, 1, 6, kept, "consumer") for n, t in state.items() if t.shape[1:2] == (6,)]
    cuts += [TensorCut(n, 0, 54, columns, "channel") for n, t in state.items() if t.shape == (54,)]
    plan = PruningPlan(fingerprint(model), {}, tuple(cuts))
    small = prune(model, plan)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    gains = {norm.gain for norm in weight_norms(model)}
    gains |= {norm.left for norm in spectral_norms(model)}
    assert bool(gains) == ("_norm" in kind)
    for name, tensor in small.state_dict().items():
        if name not in gains:  # these follow, so that the weight that is left stays as it is
            assert torch.equal(tensor, sliced(state[name], name, plan))
    if gains:
        small.eval()(X)
        model.eval()(X)
        assert torch.allclose(small[2].weight, model[2].weight[:, list(kept)], atol=1e-6)
    assert (small[2].in_channels, small[2].out_channels, small[2].weight.shape[:2]) == (
        3,
        4,
        (4, 3),
    )
    assert small(X).shape == model(X).shape
    prune_(model, plan)
    assert (model[2].in_channels, model[2].weight.shape[:2]) == (3, (4, 3))
    assert model(X).shape == small(X).shape


def test_parametrizations_of_the_copy_are_its_own():
    """PyTorch keeps computed weights as properties of a class, and removes them from that class."""
    norm, parametrize = nn.utils.parametrizations.weight_norm, nn.utils.parametrize
    model = nn.Sequential(nn.Conv2d(3, 6, 3), norm(nn.Conv2d(6, 4, 3), dim=1), nn.Conv2d(4, 2, 1))
    wanted = model(X)
    small = prune(model, cut_half(model, X)[1])
    made, own = type(model[1]), type(small[1])
    assert (own.__name__, own.__bases__, own.__module__) == (
        made.__name__,
        made.__bases__,
        made.__module__,
    )
    assert type(copy.deepcopy(small)[1]) is own
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(small)
    found = small(X)
    parametrize.remove_parametrizations(small[1], "weight")
    assert type(small[1]) is nn.Conv2d
    assert torch.allclose(small(X), found, atol=1e-6)
    assert torch.equal(model(X), wanted)
    parametrize.remove_parametrizations(model[1], "weight")
    assert torch.allclose(model(X), wanted, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize("transposed", [False, True])
def test_gains_of_weight_norm_follow_a_cut(norm, transposed):
    """In place, with momentum and an average beside it, each by the lengths of its own directions;
    a second cut follows the first, and one cut of both gives the same.
    """
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(nn.Conv2d(3, 6, 1), norm(kind(6, 4, 3)), nn.Conv2d(4, 2, 1)).double()
    inputs = X.double()

    def run(*models):  # without gradients, so that the old norm can be copied
        with torch.no_grad():
            return [one(inputs) for one in models]

    run(model)
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(inputs).sum().backward()
    optimizer.step()
    run(model, average)
    old = copy.deepcopy(average)
    for _ in range(2):
        graph = trace(model, inputs)
        masks = {graph.number(n): np.arange(graph[n].size) != 1 for n in ("0", "1")}
        plan = plan_keeping(graph, masks)
        run(model, average)
        whole, averaged = copy.deepcopy(model), copy.deepcopy(average)
        prune_(model, plan, optimizer=optimizer, companions=average)
        for before, after in ((whole, model), (averaged.module, average.module)):
            assert verify(before, after, plan, inputs).deviation < 1e-10
            run(before, after)
            axes = [list(plan.groups[n].kept) for n in ("1", "0")]
            first, second = reversed(axes) if transposed else axes
            kept = before[1].weight[first][:, second]
            assert torch.allclose(after[1].weight, kept, atol=1e-12)
    assert model[1].out_channels == 2
    model(inputs).sum().backward()
    optimizer.step()
    once = prune(old.module, history(average.module))
    assert torch.allclose(once(inputs), average.module(inputs), atol=1e-12)


# --- sizes that Python remembers ------------------------------------------------------------------

Split = namedtuple("Split", "left right")


class Sizes(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.inner = nn.Module()
        self.inner.splits = shared
        self.width, self.pair, self.split = 6, (6, [2, 4]), Split(2, 4)
        self.table = OrderedDict(stem=(6, 7), other={3: 9})
        self.shape, self.flag = torch.Size([6, 4]), True


def sizes(module):
    return module.inner.splits, module.width, module.pair, module.split, module.table, module.shape


def patches(*rows):
    return tuple(SizePatch(module, attribute, old, new) for module, attribute, old, new in rows)


def test_patches_reach_into_containers_which_are_never_shared():
    shared = [2, 4]
    model, before = Sizes(shared), copy.deepcopy(sizes(Sizes(shared)))
    rows = [
        ("inner", "splits[0]", 2, 1),
        ("inner", "splits[1]", 4, 3),
        ("", "width", 6, 4),
        ("", "pair[0]", 6, 5),
    ]
    rows += [
        ("", "pair[1][1]", 4, 2),
        ("", "split[1]", 4, 3),
        ("", "table[stem][0]", 6, 5),
        ("", "table[other][3]", 9, 8),
    ]
    rows += [("", "shape[0]", 6, 4)]
    plan = PruningPlan(fingerprint(model), {}, (), patches(*rows))
    assert PruningPlan.from_json(plan.to_json()) == plan
    expected = (
        [1, 3],
        4,
        (5, [2, 2]),
        Split(2, 3),
        OrderedDict(stem=(5, 7), other={3: 8}),
        torch.Size([4, 4]),
    )
    small = prune(model, plan)
    assert sizes(small) == expected
    assert sizes(model) == before
    assert prune_(model, plan) is model
    assert sizes(model) == expected
    assert [type(value) for value in sizes(model)] == [type(value) for value in expected]
    assert shared == [2, 4]


BAD_PATCHES = {
    r"inner.splits\[1\] is 4, the plan expects 5": ("inner", "splits[1]", 5, 3),
    r"inner.splits\[2\] is not there: \[2, 4\] has no entry 2": ("inner", "splits[2]", 5, 3),
    r"table\[none\]\[0\] is not there": ("", "table[none][0]", 5, 3),
    r"width\[0\] is not there: 6 has no entry 0": ("", "width[0]", 5, 3),
    r"flag is True, the plan expects 1": ("", "flag", 1, 3),
    r"\.gone is not there, the plan sets it to 3; the model has changed": ("", "gone", 5, 3),
    r"the plan names the module 'outer', which": ("outer", "width", 5, 3),
    r"the plan patches 'a.b.c', which is no attribute": ("", "a.b.c", 5, 3),
    r"\.a\.b is not there, the plan sets it to 3": ("", "a.b", 5, 3),
    r"fixed is a property that cannot be set, and has to become 3: give it a setter": (
        "",
        "fixed",
        6,
        3,
    ),
}


@pytest.mark.parametrize("message", BAD_PATCHES)
def test_patches_that_do_not_fit_are_refused_before_anything_changes(message):
    class Fixed(Sizes):
        @property
        def fixed(self):
            return self.width

    model = Fixed([2, 4])
    before = copy.deepcopy(sizes(model))
    plan = PruningPlan(
        fingerprint(model), {}, (), patches(("", "pair[0]", 6, 4), BAD_PATCHES[message])
    )
    for verb in (prune, prune_):
        with pytest.raises(SurgeryError, match=message):
            verb(model, plan)
    assert sizes(model) == before


def cut_axes(model, sizes, rows=()):
    """The model and its copy, cut to entries of the named axes that lie as evenly as can be.

    So all gates of a recurrent layer, one after the other on an axis, keep the same.
    """
    tensors = model.state_dict()

    def kept(whole, size):
        return tuple(i for i in range(whole) if i * size // whole < (i + 1) * size // whole)

    shapes = {(n, axis): tensors[n].shape[axis] for n, axis in sizes}
    cuts = tuple(
        TensorCut(n, axis, shapes[n, axis], kept(shapes[n, axis], size), "producer")
        for (n, axis), size in sizes.items()
    )
    plan = PruningPlan(fingerprint(model), {}, cuts, patches(*rows))
    small = prune(model, plan)
    return small, prune_(model, plan)


MIRRORED = {
    "bilinear": (nn.Bilinear(5, 4, 3), {("weight", 0): 2, ("bias", 0): 2, ("weight", 1): 4, ("weight", 2): 1},
                 {"out_features": 2, "in1_features": 4, "in2_features": 1}),
    "embedding": (nn.Embedding(7, 5), {("weight", 1): 3}, {"num_embeddings": 7, "embedding_dim": 3}),
    "bag": (nn.EmbeddingBag(7, 5), {("weight", 1): 3}, {"num_embeddings": 7, "embedding_dim": 3}),
    "rms": (nn.RMSNorm(5), {("weight", 0): 3}, {"normalized_shape": (3,)}),
    "layer": (nn.LayerNorm((2, 5)), {("weight", 1): 3, ("bias", 1): 3}, {"normalized_shape": (2, 3)}),
    "group": (nn.GroupNorm(2, 6), {("weight", 0): 4, ("bias", 0): 4}, {"num_channels": 4, "num_groups": 2}),
    "statistics": (nn.BatchNorm1d(5, affine=False), {("running_mean", 0): 3, ("running_var", 0): 3},
                   {"num_features": 3}),
    "prelu": (nn.PReLU(5), {("weight", 0): 3}, {"num_parameters": 3}),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), {("weight", 1): 2, ("bias", 0): 4},
                   {"in_channels": 4, "out_channels": 4, "groups": 2}),
    "cell": (nn.GRUCell(5, 4), {("weight_ih", 0): 9, ("weight_hh", 0): 9, ("bias_ih", 0): 9, ("bias_hh", 0): 9,
             ("weight_hh", 1): 3, ("weight_ih", 1): 2}, {"input_size": 2, "hidden_size": 3}),
    "attention": (nn.MultiheadAttention(8, 2), {("in_proj_weight", 0): 12, ("in_proj_weight", 1): 4,
                  ("in_proj_bias", 0): 12, ("out_proj.weight", 0): 4, ("out_proj.weight", 1): 4,
                  ("out_proj.bias", 0): 4}, {"embed_dim": 4, "kdim": 4, "vdim": 4, "head_dim": 2}),
    "cross": (nn.MultiheadAttention(8, 2, kdim=5, vdim=3), {("k_proj_weight", 1): 2, ("v_proj_weight", 1): 1},
              {"embed_dim": 8, "kdim": 2, "vdim": 1, "head_dim": 4}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MIRRORED)
def test_modules_that_repeat_their_shapes_say_the_new_ones(kind):
    module, cuts, wanted = MIRRORED[kind]
    for model in cut_axes(copy.deepcopy(module), cuts):
        assert {name: getattr(model, name) for name in wanted} == wanted


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_shrink_and_run(kind, monkeypatch):
    flattened, flatten = [], nn.RNNBase.flatten_parameters
    monkeypatch.setattr(
        nn.RNNBase, "flatten_parameters", lambda self: flattened.append(self) or flatten(self)
    )
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind.__name__]
    model = kind(5, 4, num_layers=2, bidirectional=True, batch_first=True)
    cuts = {("weight_ih_l0", 1): 2, ("weight_ih_l0_reverse", 1): 2}
    small, same = cut_axes(model, cuts)
    x = torch.randn(2, 3, 2)
    for one in (small, same):
        assert (one.input_size, one.hidden_size) == (2, 4)
        assert one(x)[0].shape == (2, 3, 8)
        assert any(layer is one for layer in flattened)
    assert torch.equal(small(x)[0], same(x)[0])
    alone = kind(5, 4)
    cuts = {
        (f"{name}_{part}_l0", 0): 3 * gates for name in ("weight", "bias") for part in ("ih", "hh")
    }
    for one in cut_axes(alone, cuts | {("weight_hh_l0", 1): 3}, [("", "hidden_size", 4, 3)]):
        assert (one.input_size, one.hidden_size) == (5, 3)
        assert one(torch.randn(2, 2, 5))[0].shape == (2, 2, 3)
        assert all(a is b for a, b in zip(one._flat_weights, one.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projected_lstm_shrinks_its_projection():
    cuts = {("weight_hr_l0", 0): 2, ("weight_hh_l0", 1): 2}
    for one in cut_axes(nn.LSTM(5, 4, proj_size=3), cuts):
        assert (one.hidden_size, one.proj_size) == (4, 2)
        assert one(torch.randn(2, 2, 5))[0].shape == (2, 2, 2)


def test_a_plan_for_another_model_names_both_fingerprints():
    plan = plan_for(Chain())
    with pytest.raises(PlanError, match=plan.fingerprint):
        prune(Residual(), plan)


def test_a_changed_attribute_is_refused_before_anything_changes():
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
