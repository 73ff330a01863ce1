"""A verification that cannot fail is worthless: every mutation must be caught."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from nets import Chain, Residual, as_if_traced, channels_in_memory, cut_half
from netslim import Budget, Limits, prune, slim, trace, verify
from netslim.errors import VerificationError
from netslim.surgery.plan import without_slices
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.silencing import randomise, silenced
from netslim.surgery.rows import TensorCut

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned(model):
    _, plan = cut_half(model, X)
    return model, prune(model, plan), plan


def test_a_plan_says_by_itself_what_reads_its_channels(monkeypatch):
    model, small, plan = pruned(Residual().eval())
    traced = verify(model, small, plan, X, graph=trace(model, X))
    monkeypatch.delattr("netslim.surgery.proof.verify.trace")
    assert verify(model, small, plan, X) == traced
    with pytest.raises(NameError, match="trace"):
        verify(model, small, without_slices(plan), X)


class Hinging(nn.Module):
    """What a fresh layer normalisation makes sums up to zero, and rounding has its sign."""

    signs = (1.0,) * 7 + (-1.0, 1.0)

    def __init__(self, blind: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)
        self.norm, self.last = nn.LayerNorm(5), nn.Linear(5, 4)
        self.blind = blind

    def forward(self, x):
        h = self.first(x)
        if self.blind:
            h = (h * self.signs[h.shape[-1]]).sigmoid()
        y = self.norm(self.second(h.relu()))
        return self.last(y * (y.mean(-1, keepdim=True) > 0))


@pytest.mark.parametrize("blind", [False, True])
def test_what_hinges_on_rounding_is_compared_close_by(blind, caplog):
    torch.manual_seed(0)
    model, inputs = Hinging(blind).eval(), torch.randn(64, 6)
    graph = trace(model, inputs)
    plan = plan_keeping(graph, {graph.number("first"): np.arange(8) < 7})
    small = prune(model, plan)
    if blind:
        with pytest.raises(VerificationError, match="differs from the silenced original"):
            verify(model, small, plan, inputs)
    else:
        found = verify(model, small, plan, inputs)
        assert (found.deviation < 1e-12, found.changed) == (True, 1)
    assert "hinge on rounding" in caplog.text
    caplog.clear()
    randomise(model)
    small = prune(model, plan)
    if not blind:
        assert verify(model, small, plan, inputs).deviation < 1e-12
        assert not caplog.text


class Reading(nn.Module):
    """Of seven channels it makes something else, and no trace can know."""

    signs = (1.0,) * 7 + (-1.0, 1.0)

    def __init__(self, put_out):
        super().__init__()
        self.first, self.last, self.put_out = nn.Linear(6, 8), nn.Linear(8, 5), put_out

    def forward(self, x):
        h = self.first(x)
        return self.put_out(self.last((h * self.signs[h.shape[-1]]).sigmoid()))


PUT_OUT = {
    "indices": lambda y: y.argmax(-1),
    "flags": lambda y: y > 0,
    "complex numbers": torch.fft.rfft,
    "what a mask hides": lambda y: torch.cat([y, torch.full_like(y, -3.4e38)], 1),
    "what is never chosen": lambda y: torch.cat([y, torch.full_like(y, -math.inf)], 1),
    "colours": lambda y: (y.sigmoid() * 255).round().to(torch.uint8),
}


@pytest.mark.parametrize("put_out", PUT_OUT)
def test_outputs_of_every_kind_are_compared(put_out):
    torch.manual_seed(0)
    model, x = Reading(PUT_OUT[put_out]).eval(), torch.randn(3, 6)
    graph = trace(model, x)
    for fewer in (1, 2):
        plan = plan_keeping(graph, {graph.number("first"): np.arange(8) >= fewer})
        small = prune(model, plan)
        if fewer == 2:
            assert verify(model, small, plan, x).deviation < 1e-12
            continue
        with pytest.raises(VerificationError, match="not seen by the trace"):
            verify(model, small, plan, x)


@pytest.mark.parametrize("nothing", [X[:0], None])
def test_nothing_is_no_proof(nothing):
    model, small, plan = pruned(Residual().eval())
    if nothing is None:
        model.register_forward_hook(lambda *_: {})
        small.register_forward_hook(lambda *_: {})
    with pytest.raises(VerificationError, match="nothing can be compared"):
        verify(model, small, plan, X if nothing is None else nothing)


def test_modules_hold_one_text_of_what_was_cut():
    _, small, _ = pruned(Residual().eval())
    held = [vars(module)["_netslim_cuts"] for module in (small.stem[0], small.head)]
    assert held[0][0] is held[1][0]
    assert [path for _, path in held] == ["stem.0", "head"]


def swap_channels(small):
    small.inner[0].weight.data = small.inner[0].weight.data.flip(0)


def one_weight(small):
    small.head.weight.data[0, 0] += 1e-6


def one_statistic(small):
    small.stem[1].running_var[1] *= 1.001


@pytest.mark.parametrize("mutate", [swap_channels, one_weight, one_statistic])
def test_mutations_of_the_pruned_model_are_caught(mutate):
    model, small, plan = pruned(Residual().eval())
    verify(model, small, plan, X)
    mutate(small)
    with pytest.raises(VerificationError, match="does not hold the planned slice"):
        verify(model, small, plan, X)


def test_a_wrong_index_in_the_plan_is_caught():
    model, _, plan = pruned(randomise(Residual()).eval())
    wrong = []
    for t in plan.tensors:
        if t.tensor == "inner.0.weight" and t.axis == 1:
            gone = t.removed[0]
            wrong.append(
                TensorCut(t.tensor, t.axis, t.size, tuple(sorted([*t.kept[1:], gone])), t.role)
            )
        else:
            wrong.append(t)
    bad = as_if_traced(plan, wrong)
    with pytest.raises(VerificationError, match="differs from the silenced original"):
        verify(model, prune(model, bad), bad, X)


def test_zero_initialised_branches_do_not_hide_a_mistake():
    model = Residual().eval()
    nn.init.zeros_(model.outer.weight)
    nn.init.zeros_(model.outer.bias)
    plan = cut_half(model, X)[1]
    tensors = tuple(
        TensorCut(t.tensor, t.axis, t.size, tuple(range(len(t.kept))), t.role)
        if t.tensor == "outer.weight" and t.axis == 1
        else t
        for t in plan.tensors
    )
    bad = as_if_traced(plan, tensors)
    if tensors == plan.tensors:
        pytest.fail("the plan keeps the first channels; choose another seed")
    with pytest.raises(VerificationError):
        verify(model, prune(model, bad), bad, X)


def test_what_was_cut_is_felt():
    model, small, plan = pruned(Chain().eval())
    check = verify(model, small, plan, X)
    assert check.cut == plan.removed == 5
    assert 3 <= check.changed <= 5
    assert check.deviation < 1e-12


def test_verify_leaves_both_models_alone():
    model, small, plan = pruned(Chain().train())
    before = [t.clone() for m in (model, small) for t in m.state_dict().values()]
    verify(model, small, plan, X)
    after = [t for m in (model, small) for t in m.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert model.training
    assert small.training


def test_silenced_restores():
    model, _, plan = pruned(Chain())
    before = model.second[0].weight.clone()
    with silenced(model, plan):
        gone = list(plan.groups["first.0"].removed)
        assert model.second[0].weight[:, gone].abs().sum() == 0
    assert torch.equal(model.second[0].weight, before)


def test_slim_is_the_five_in_one():
    model = randomise(Residual())
    small = slim(model, X, budget=Budget(cut_macs=0.5))
    assert trace(small, X).macs() <= trace(model, X).macs() / 2


def test_a_pruned_model_that_gives_nan_is_caught():
    class Fragile(nn.Module):
        """Not a number as soon as a channel is gone, in a way no trace can see."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.a(x)
            return self.b(x) * (1.0 if channels_in_memory(x) == 8 else float("nan"))

    model, small, plan = pruned(Fragile().eval())
    with pytest.raises(VerificationError, match="differs from the silenced original by inf"):
        verify(model, small, plan, X)


class Sneaky(nn.Module):
    """Bakes a width into Python where no trace can see it, beside an honest group."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.a(x)
        if channels_in_memory(x) != 8:
            raise ValueError("eight channels expected")
        return self.c(self.b(x).relu())


def test_a_group_that_does_not_verify_is_left_alone_and_named(caplog):
    torch.manual_seed(0)
    small = slim(Sneaky(), X, criterion="l1", budget=Budget(cut_channels=0.3))
    assert small.a.out_channels == 8
    assert small.b.out_channels == 5
    assert "left alone, because the cut did not verify: a" in caplog.text
    with pytest.raises(VerificationError, match="eight channels expected"):
        slim(
            Sneaky(),
            X,
            criterion="l1",
            budget=Budget(cut_channels=0.3),
            strict=True,
            allocation="uniform",
        )


def test_inexact_cuts_have_no_deviation():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Softmax(1), nn.Conv2d(8, 2, 1)).eval()
    graph = trace(model, X)
    assert graph.prunable == ()
    from netslim import score, select

    plan = select(
        graph,
        score(graph, model, "l1"),
        Budget(cut_channels=0.5),
        limits=Limits(allow_inexact=True),
    )
    small = prune(model, plan)
    assert verify(model, small, plan, X).deviation is None
    assert small[0].out_channels == 4


def test_a_model_that_casts_inside_is_verified_in_its_own_precision():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.b(self.a(x).bfloat16().float())

    model, small, plan = pruned(Casts().eval())
    check = verify(model, small, plan, X)
    assert not check.double
    assert check.deviation < 5e-3
    assert check.changed == 4
