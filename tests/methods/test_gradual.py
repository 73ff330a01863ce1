"""Gradual pruning: in parts, each chosen anew and proved, to the same end as one cut; and killed,
it goes on.
"""

from __future__ import annotations

import copy
import json
from math import floor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

import netslim
from nets import Chain, DenseBlock, Residual, channels_in_memory, conv, stays
from netslim import Budget, GradualPruning, Limits
from netslim.errors import ArgumentError, PlanError, SurgeryError, VerificationError
from netslim.graph.counts import Count
from netslim.graph.modules.walk import named_tensors
from netslim.methods.gradual import Schedule, shares
from netslim.models import zoo
from netslim.selection.budget.resources import Products
from netslim.surgery.history import history
from netslim.surgery.proof.silencing import randomise

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def random(model: nn.Module, seed: int = 0) -> nn.Module:
    """With random parameters and statistics, in training mode."""
    randomise(model, seed)
    return model.train()


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2, seed: int = 0
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()


def kept(gradual: GradualPruning, name: str) -> tuple[int, ...]:
    cut = gradual.plan.groups.get(name)
    return tuple(range(gradual.original[name].size)) if cut is None else cut.kept


def widths(gradual: GradualPruning, *names: str) -> list[int]:
    return [len(kept(gradual, name)) for name in names]


# ---------------------------------------------------------------- schedules


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert shares(np.int64(2), "linear") == (0.5, 1.0)


def test_the_schedules_by_hand():
    assert shares(4, "linear") == (0.25, 0.5, 0.75, 1.0)
    assert shares(4, "cubic") == (1 - 27 / 64, 1 - 8 / 64, 1 - 1 / 64, 1.0)
    # A quarter is left in the end: half after the first of two steps, so two thirds of the cut of
    # 0.75.
    assert shares(2, "exponential", 0.75) == (pytest.approx(2 / 3), 1.0)
    left = [1 - 0.784 * share for share in shares(3, "exponential", 0.784)]  # 0.216 is 0.6 cubed
    assert left == pytest.approx([0.6, 0.36, 0.216])
    assert shares(2, "exponential", 0.0) == (0.5, 1.0)
    assert shares(1, "cubic") == shares(1, "exponential", 0.3) == (1.0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "cubic"), "steps must be a whole number from 1 to 100,000, got the int 0"),
        ((True, "cubic"), "got the bool True"),
        ((2, "cosine"), "schedule must be one of 'linear', 'exponential', 'cubic', got 'cosine'"),
        ((2, "exponential"), "depends on the final cut, a share from 0 to below 1, got None"),
    ],
)
def test_wrong_schedules(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        shares(*arguments)


# ---------------------------------------------------------------- each step


@pytest.mark.parametrize("schedule", ["linear", "exponential", "cubic"])
def test_each_step_meets_its_part_of_the_budget_of_the_original(schedule: Schedule):
    model = random(zoo.resnet(depth=8, width=0.5))
    whole = netslim.cost(model, X).macs
    gradual = GradualPruning(model, X, Budget(cut_macs=0.6), steps=4, schedule=schedule)
    optimizer = SGD(model.parameters(), lr=0.01)
    for share in shares(4, schedule, 0.6):
        train(model, optimizer)
        gradual.step()
        found = netslim.cost(model, X).macs
        assert found == pytest.approx(gradual.macs_left * whole)
        assert whole * (1 - 0.6 * share) >= found > whole * (1 - 0.6 * share - 0.12)
    assert gradual.done
    assert gradual.step() is None
    assert "4 of 4 steps" in repr(gradual)


@pytest.mark.parametrize(
    "make",
    [lambda: zoo.resnet(depth=8, width=0.5), DenseBlock, lambda: zoo.densenet(depth=7, growth=4)],
)
def test_each_cut_is_exact_and_follows_from_the_one_before(make):
    model = random(make())
    original = copy.deepcopy(model)
    gradual = GradualPruning(model, X, Budget(cut_channels=0.6), steps=3, schedule="linear")
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    past: dict[tuple[str, int], tuple[int, ...]] = {}
    for _ in range(3):
        train(model, optimizer)
        gradual.optimizers = [optimizer]
        before = copy.deepcopy(model)
        plan = gradual.step()
        assert plan is not None
        check = netslim.verify(before, model, plan, X)
        assert check == gradual.verification
        assert check.deviation is not None
        assert check.deviation < 1e-10
        assert check.changed > 0
        now = stays(gradual.plan)
        assert all(set(now[key]) <= set(past[key]) for key in past)
        past = now
    small = netslim.prune(original, gradual.plan)
    shapes = {name: tensor.shape for name, tensor in named_tensors(small)}
    assert shapes == {name: tensor.shape for name, tensor in named_tensors(model)}
    remembered = history(model)
    assert remembered is not None
    assert stays(remembered) == stays(gradual.plan)
    assert remembered.groups == gradual.plan.groups
    assert model.training


def test_selections_are_cut_with_what_they_pick():
    model = netslim.models.add_selection(random(zoo.preresnet(depth=11, width=0.25)), X)
    randomise(model, 1)
    gradual = GradualPruning(model, X, Budget(cut_channels=0.5), steps=2, criterion="bn_scale")
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    gradual.optimizers = [optimizer]
    while not gradual.done:
        train(model.train(), optimizer)
        gradual.step()
    chosen = [m for m in model.modules() if isinstance(m, netslim.models.ChannelSelect)]
    assert any(len(m.indices) < m.channels for m in chosen)
    total = sum(g.size for g in gradual.original.prunable)
    assert gradual.plan.removed == floor(total / 2)


def test_channels_are_scored_anew():
    """Filter norms 1 to 6: the first two go; then the sixth becomes the smallest of all, and goes
    next.
    """
    model = Chain()
    weight = model.first[0].weight
    with torch.no_grad():
        weight.copy_(torch.arange(1.0, 7.0)[:, None, None, None].expand_as(weight))
    gradual = GradualPruning(
        model, X, steps=2, schedule="linear", criterion="l1", per_group={"first.0": 4}
    )
    gradual.step()
    assert kept(gradual, "first.0") == (2, 3, 4, 5)
    with torch.no_grad():
        weight[3] = 0.5
    gradual.step()
    assert kept(gradual, "first.0") == (3, 4)
    assert weight[0].mean() == 4


def test_what_went_is_not_mistaken_for_what_is_zero():
    """Two channels that stay so far score exactly zero, as what went does: two more go, none of
    them twice.
    """
    model = random(Chain())
    gradual = GradualPruning(model, X, steps=2, schedule="linear", per_group={"first.0": 4})
    gradual.step()
    with torch.no_grad():
        model.first[0].weight[:2] = 0
    zero = kept(gradual, "first.0")[:2]
    gradual.step()
    assert widths(gradual, "first.0") == [2]
    assert not set(zero) & set(kept(gradual, "first.0"))


def test_a_share_too_small_for_a_channel_cuts_nothing():
    model = random(Chain())
    gradual = GradualPruning(model, X, Budget(cut_channels=0.2), steps=4, schedule="linear")
    plan = gradual.step()
    assert plan is not None
    assert not plan.groups
    assert (gradual.taken, gradual.verification) == (1, None)
    removed = [gradual.step().removed for _ in range(3)]  # type: ignore[union-attr]
    assert np.cumsum(removed).tolist() == [1, 1, 2]  # of 11 channels 1.1, 1.65 and 2.2


# ---------------------------------------------------------------- limits are those of the original


def test_limits_refer_to_the_original():
    """Groups of 6 and 5: half of each, 3 + 2, may go in all, however often; 5 of 11 should."""
    model = random(Chain())
    gradual = GradualPruning(
        model, X, Budget(cut_channels=0.46), steps=4, schedule="linear", limits=Limits(max_cut=0.5)
    )
    while not gradual.done:
        gradual.step()
    assert widths(gradual, "first.0", "second.0") == [3, 3]


def test_amounts_by_name_refer_to_the_original():
    amounts = {"first.*": 0.5, "second.0": 4}
    gradual = GradualPruning(random(Chain()), X, steps=2, schedule="linear", per_group=amounts)
    gradual.step()
    assert widths(gradual, "first.0", "second.0") == [5, 3]  # 6 / 4 = 1.5 and 4 / 2 went
    gradual.step()
    assert widths(gradual, "first.0", "second.0") == [3, 1]


def test_counts_fall_exponentially():
    """A quarter of 6 and 1 of 5 stay: after one of two steps 3 of 6 went, and 5 * (1 - sqrt(1 / 5))
    = 2.76 of 5.
    """
    amounts = {"first.0": 0.75, "second.0": 4}
    gradual = GradualPruning(random(Chain()), X, steps=2, schedule="exponential", per_group=amounts)
    gradual.step()
    assert widths(gradual, "first.0", "second.0") == [3, 3]
    gradual.step()
    assert widths(gradual, "first.0", "second.0") == [2, 1]


def test_what_stays_is_a_multiple_at_every_step():
    model = random(nn.Sequential(conv(3, 24), conv(24, 32), nn.Conv2d(32, 4, 1)))
    gradual = GradualPruning(
        model, X, Budget(cut_macs=0.7), steps=5, schedule="linear", limits=Limits(round_to=8)
    )
    whole, seen = netslim.cost(model, X).macs, []
    for share in shares(5, "linear"):
        gradual.step()
        seen.append(widths(gradual, "0.0", "1.0"))
        assert netslim.cost(model, X).macs <= whole * (1 - 0.7 * share)
    assert all(width % 8 == 0 for row in seen for width in row)
    assert len({tuple(row) for row in seen}) > 2


def test_the_last_channel_of_a_layer_stays_and_the_count_is_exact():
    """With one channel left, a layer is no group of the graph any more."""
    model = random(Chain())
    gradual = GradualPruning(
        model, X, Budget(cut_channels=0.8), criterion="l2", steps=5, schedule="linear"
    )
    for step in range(1, 6):
        with torch.no_grad():
            model.second[0].weight *= 1e-3  # the smallest of all
        gradual.step()
        assert gradual.plan.removed == floor(11 * 0.16 * step + 1e-9)
    assert widths(gradual, "first.0", "second.0") == [2, 1]


@pytest.mark.parametrize(("name", "limit"), [("max_params", 7_000), ("max_macs", 200_000)])
def test_absolute_budgets_fall_from_the_originals_value(name, limit):
    model = random(zoo.resnet(depth=8, width=0.5))
    gradual = GradualPruning(model, X, Budget(**{name: limit}), steps=3, schedule="linear")
    whole = getattr(gradual.original, name[4:])()
    for share in (1 / 3, 2 / 3, 1):
        gradual.step()
        found = getattr(netslim.cost(model, X), name[4:])
        part = whole - (whole - limit) * share
        assert part >= found > part - 0.12 * whole


class Widest:
    """A latency of one millisecond a channel of the first two groups."""

    def resource(self, graph: Any, widths: Any) -> Products:
        sizes = [graph[name].size for name in ("first.0", "second.0")]
        return Products(
            widths, [(Count(0, ((n, np.ones(size, dtype=int)),)),) for n, size in enumerate(sizes)]
        )


@pytest.mark.parametrize("budget", [Budget(max_latency_ms=5), Budget(cut_latency=6 / 11)])
def test_a_latency_table_of_the_original_serves_every_step(budget):
    """11 ms at first: 8 after the first of two steps, then 5."""
    gradual = GradualPruning(
        random(Chain()), X, budget, steps=2, schedule="linear", latency=Widest()
    )
    gradual.step()
    assert gradual.plan.removed == 3
    gradual.step()
    assert gradual.plan.removed == 6


@pytest.mark.parametrize("allocation", ["global", "uniform", "isomorphic", "cost"])
def test_every_allocation_meets_the_budget(allocation):
    model = random(zoo.resnet(depth=8, width=0.5))
    whole = netslim.cost(model, X).macs
    gradual = GradualPruning(model, X, Budget(cut_macs=0.5), steps=3, allocation=allocation)
    optimizer = SGD(model.parameters(), lr=0.01)
    while not gradual.done:
        gradual.step()
        train(model, optimizer)
    assert 0.5 * whole >= netslim.cost(model, X).macs > 0.4 * whole


# ---------------------------------------------------------------- optimizers


MAKERS = {
    "sgd": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda parameters: Adam(parameters, lr=0.01),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_one_step_is_one_cut(make):
    one, two = random(Residual()), random(Residual())
    first, second = make(one.parameters()), make(two.parameters())
    train(one, first)
    train(two, second)
    by = {"criterion": "l2", "allocation": "uniform"}
    GradualPruning(one, X, Budget(cut_macs=0.4), steps=1, optimizer=first, **by).step()
    graph = netslim.trace(two, X)
    scores = netslim.score(graph, two, "l2")
    plan = netslim.select(graph, scores, Budget(cut_macs=0.4), allocation="uniform")
    netslim.prune_(two, plan, optimizer=second)
    for _ in range(2):
        assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
        for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
            assert first.state[mine].keys() == second.state[theirs].keys()
            for key, value in first.state[mine].items():
                torch.testing.assert_close(value, second.state[theirs][key], rtol=0, atol=0)
        train(one, first, seed=1)
        train(two, second, seed=1)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_training_goes_on_in_the_same_loop(make):
    """The parameters stay the same objects, their momentum is what it was, and the schedule moves
    on.
    """
    model = random(Residual())
    optimizer = make(model.parameters())
    schedule = StepLR(optimizer, step_size=1, gamma=0.5)
    rate = optimizer.param_groups[0]["lr"]
    gradual = GradualPruning(
        model, X, Budget(cut_channels=0.5), steps=3, schedule="linear", optimizer=optimizer
    )
    parameters = list(model.parameters())
    for number in range(1, 4):
        train(model, optimizer)
        schedule.step()
        names = {name: copy.deepcopy(optimizer.state[p]) for name, p in model.named_parameters()}
        plan = gradual.step()
        assert plan is not None
        assert plan.removed
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state[parameter].items():
                wanted = names[name][key]
                for cut in plan.tensors:
                    if cut.tensor == name and wanted.dim():
                        wanted = wanted.index_select(cut.axis, torch.tensor(cut.kept))
                assert torch.equal(value, wanted), (name, key)
        assert optimizer.param_groups[0]["lr"] == rate * 0.5**number
    weight = parameters[0].detach().clone()
    train(model, optimizer)
    assert not torch.equal(parameters[0], weight)


def test_an_optimizer_of_another_model_is_refused_at_once():
    other = SGD(Chain().parameters(), lr=0.1)
    with pytest.raises(SurgeryError, match="this SGD holds none of the model's parameters"):
        GradualPruning(Chain(), X, Budget(cut_macs=0.5), optimizer=other)
    gradual = GradualPruning(Chain(), X, Budget(cut_macs=0.5))
    with pytest.raises(SurgeryError, match="this SGD holds none of the model's parameters"):
        gradual.attach(other, every=1)


@pytest.mark.parametrize("closed", [False, True])
def test_attached_it_cuts_after_every_so_many_steps(closed):
    """With a closure too, as Lightning steps; and where the criterion needs gradients, which a hook
    has not.
    """
    model = random(Residual())
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = [(X, torch.tensor([0, 1]))]
    budget = Budget(cut_channels=0.5)
    gradual = GradualPruning(model, X, budget, steps=2, criterion="taylor", batches=iter(batches))
    assert gradual.attach(optimizer, every=3) is gradual
    taken = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    for _ in range(8):
        if not closed:
            closure()
        optimizer.step(closure if closed else None)
        taken.append(gradual.taken)
    assert taken == [0, 0, 1, 1, 1, 2, 2, 2]
    assert gradual.plan.removed == 5
    assert all(optimizer.state[p]["momentum_buffer"].shape == p.shape for p in model.parameters())
    with pytest.raises(ArgumentError, match="attached to this SGD already"):
        gradual.attach(optimizer, every=3)
    with pytest.raises(ArgumentError, match="another optimizer counts already"):
        gradual.attach(SGD(model.parameters(), lr=0.1), every=3)
    with pytest.raises(ArgumentError, match="every must be a whole number of 1 or more, got 0"):
        gradual.attach(optimizer, every=0)
    gradual.detach()


def test_companions_are_cut_alike():
    model = random(Chain())
    average = copy.deepcopy(model)
    GradualPruning(model, X, Budget(cut_channels=0.5), steps=1, companions=average).step()
    assert average.first[0].out_channels == model.first[0].out_channels < 6
    average(X)


# ---------------------------------------------------------------- what cannot be done


def test_what_is_out_of_reach_is_refused_before_training():
    with pytest.raises(PlanError, match=r"cut_macs=0\.9"):
        GradualPruning(random(Chain()), X, Budget(cut_macs=0.9), limits=Limits(max_cut=0.5))
    with pytest.raises(ArgumentError, match="steps must be"):
        GradualPruning(Chain(), X, Budget(cut_macs=0.5), steps=0)


def test_a_model_that_something_else_cut_is_refused():
    model = random(Chain())
    gradual = GradualPruning(model, X, Budget(cut_channels=0.5), steps=2)
    graph = netslim.trace(model, X)
    netslim.prune_(
        model, netslim.select(graph, netslim.score(graph, model, "l1"), per_group={"first.0": 1})
    )
    with pytest.raises(PlanError, match="was cut or changed by something else since"):
        gradual.step()
    assert gradual.taken == 0


class Sneaky(nn.Module):
    """Bakes a width into Python where no trace can see it, beside an honest group."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if channels_in_memory(x) != 8:
            raise ValueError("eight channels expected")
        return self.c(self.b(x).relu())


def test_a_group_that_does_not_verify_is_left_as_it_is(caplog):
    gradual = GradualPruning(
        random(Sneaky()), X, Budget(cut_channels=0.5), steps=2, allocation="uniform"
    )
    gradual.step()
    gradual.step()
    assert widths(gradual, "a", "b") == [8, 3]
    assert caplog.text.count("left alone, because the cut did not verify: a") == 1


def test_a_step_that_fails_changes_nothing():
    model = random(Sneaky())
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    train(model, optimizer)
    gradual = GradualPruning(
        model,
        X,
        Budget(cut_channels=0.5),
        steps=2,
        allocation="uniform",
        strict=True,
        optimizer=optimizer,
    )
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(VerificationError, match="eight channels expected"):
        gradual.step()
    assert all(map(torch.equal, weights.values(), model.state_dict().values()))
    for number, entry in optimizer.state_dict()["state"].items():
        assert torch.equal(entry["momentum_buffer"], state["state"][number]["momentum_buffer"])
    assert gradual.taken == 0


# ---------------------------------------------------------------- going on


def begun(seed: int = 0) -> tuple[nn.Module, SGD, StepLR, GradualPruning]:
    model = random(zoo.resnet(depth=8, width=0.25), seed)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = StepLR(optimizer, step_size=1, gamma=0.7)
    gradual = GradualPruning(model, X, Budget(cut_macs=0.5), steps=3, optimizer=optimizer)
    return model, optimizer, schedule, gradual


def epoch(parts: tuple[nn.Module, SGD, StepLR, GradualPruning], number: int) -> None:
    model, optimizer, schedule, gradual = parts
    train(model, optimizer, seed=number)
    gradual.step()
    schedule.step()


@pytest.mark.parametrize("cut_by_hand", [False, True])
def test_a_killed_loop_goes_on_to_the_same_bits(cut_by_hand):
    whole = begun()
    for number in range(2):
        epoch(whole, number)
    names = ("model", "optimizer", "schedule", "gradual")
    stored = {
        name: copy.deepcopy(part.state_dict()) for name, part in zip(names, whole, strict=True)
    }
    stored["gradual"] = json.loads(json.dumps(stored["gradual"]))
    again = begun(seed=5)
    if cut_by_hand:
        netslim.prune_(
            again[0], netslim.PruningPlan.from_json(stored["gradual"]["plan"]), optimizer=again[1]
        )
    again[3].load_state_dict(stored["gradual"])
    for name, part in list(zip(names, again, strict=True))[:3]:
        part.load_state_dict(stored[name])
    for parts in (whole, again):
        for number in range(2, 5):
            epoch(parts, number)
    assert all(map(torch.equal, whole[0].state_dict().values(), again[0].state_dict().values()))
    one, two = history(whole[0]), history(again[0])
    assert one is not None
    assert two is not None
    assert (one.groups, one.tensors, one.patches) == (two.groups, two.tensors, two.patches)
    assert whole[3].plan == again[3].plan
    assert whole[3].verification == again[3].verification
    assert whole[3].state_dict() == again[3].state_dict()


def test_the_count_of_attached_steps_goes_on():
    model = random(Chain())
    optimizer = SGD(model.parameters(), lr=0.01)
    gradual = GradualPruning(model, X, Budget(cut_channels=0.5), steps=2).attach(optimizer, every=3)
    train(model, optimizer, steps=2)
    other = random(Chain())
    again = GradualPruning(other, X, Budget(cut_channels=0.5), steps=2)
    again.load_state_dict(gradual.state_dict())
    optimizer = SGD(other.parameters(), lr=0.01)
    again.attach(optimizer, every=3)
    train(other, optimizer, steps=1)
    assert again.taken == 1


def test_a_state_that_does_not_fit_is_refused():
    gradual = begun()[3]
    gradual.step()
    state = gradual.state_dict()
    with pytest.raises(ArgumentError, match="load a state before the first step"):
        gradual.load_state_dict(state)
    with pytest.raises(ArgumentError, match="the state is of 3 steps, this GradualPruning of 2"):
        GradualPruning(random(Chain()), X, Budget(cut_macs=0.5), steps=2).load_state_dict(state)
    with pytest.raises(PlanError, match="the plan was made for the architecture"):
        GradualPruning(random(Chain()), X, Budget(cut_macs=0.5), steps=3).load_state_dict(state)
    with pytest.raises(ArgumentError, match="this is no state of GradualPruning"):
        begun()[3].load_state_dict({})
