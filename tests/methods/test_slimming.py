"""Network Slimming: the exact gradient, wherever and however the optimizer steps."""

import copy
import math
import pickle
import warnings
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import nn

from nets import Chain
from netslim import score, select, trace
from netslim.errors import ArgumentError
from netslim.methods.slimming import (
    NetworkSlimming,
    add_slimming_gradient,
    slimming_penalty,
    soft_threshold_,
)

LR = 0.5


class Scales(nn.Module):
    """Two BN layers, 1-D and 2-D, and a loss whose gradient by each gamma is `slope`, whatever the
    input.
    """

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(3)
        self.second = nn.BatchNorm2d(2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([2.0, -1.0, 0.0]))
            self.second.weight.copy_(torch.tensor([-4.0, 8.0]))

    def loss(self, slope=1.0):
        return slope * (
            self.first.weight.sum() + self.second.weight.sum() + 0 * self.first.bias.sum()
        )


class NoRate(torch.optim.Optimizer):
    """An optimizer that finds its own step size."""

    def step(self, closure=None):
        raise AssertionError("must not be reached")


def sgd(model, **kwargs):
    return torch.optim.SGD(model.parameters(), lr=LR, **kwargs)


def gammas(model):
    return torch.cat([model.first.weight, model.second.weight]).detach()


START = torch.tensor([2.0, -1.0, 0.0, -4.0, 8.0])
SIGN = torch.tensor([1.0, -1.0, 0.0, -1.0, 1.0])


def after(slope, strength, start=START, lr=LR):
    """One step of SGD on `slope * gamma + strength * |gamma|`."""
    return start - lr * (slope + strength * start.sign())


def test_the_formula():
    gradients = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5])]
    scales = [torch.tensor([3.0, -2.0, 0.0]), torch.tensor([-1e-9])]
    add_slimming_gradient(gradients, scales, 0.25)
    torch.testing.assert_close(gradients, [torch.tensor([1.25, 0.75, 1.0]), torch.tensor([0.25])])


def test_the_formula_is_the_gradient_of_the_penalty():
    scales = [
        torch.tensor([3.0, -2.0, 0.0], requires_grad=True),
        torch.tensor([-0.5], requires_grad=True),
    ]
    penalty = slimming_penalty(scales, 0.1)
    assert penalty.item() == pytest.approx(0.55)
    expected = torch.autograd.grad(penalty, scales)
    gradients = [torch.zeros(3), torch.zeros(1)]
    add_slimming_gradient(gradients, [s.detach() for s in scales], 0.1)
    torch.testing.assert_close(gradients, list(expected))


def test_one_step_of_sgd():
    model = Scales()
    optimizer = sgd(model)
    NetworkSlimming(model, 0.25).attach(optimizer)
    model.loss().backward()
    optimizer.step()
    # By hand: 2 - 0.5 * 1.25, -1 - 0.5 * 0.75, 0 - 0.5, -4 - 0.5 * 0.75, 8 - 0.5 * 1.25.
    torch.testing.assert_close(gammas(model), torch.tensor([1.375, -1.375, -0.5, -4.375, 7.375]))
    assert torch.equal(model.first.bias, torch.zeros(3))


def warned_of(kind: type) -> AbstractContextManager:
    """A warning is expected of every optimizer but plain descent."""
    if kind is torch.optim.SGD:
        return nullcontext()
    return pytest.warns(UserWarning, match=f"{kind.__name__} divides gradients by their size")


class SGDW(torch.optim.Optimizer):
    """Plain descent from elsewhere."""

    def __init__(self, params) -> None:
        super().__init__(params, {"lr": 0.1})


class MuSGD(SGDW):
    """Of ultralytics, which is plain descent for scales."""


class Lamb(SGDW):
    """One that is not, by its name."""


@pytest.mark.parametrize("penalty", ["l1", "smooth_l1", "proximal"])
@pytest.mark.parametrize(
    "kind", [torch.optim.ASGD, SGDW, MuSGD, torch.optim.RMSprop, torch.optim.Adamax, Lamb]
)
def test_where_the_pull_is_divided_away_attach_says_so(kind, penalty):
    model = Scales()
    divides = kind not in (torch.optim.ASGD, SGDW, MuSGD) and penalty != "proximal"
    with warned_of(kind) if divides else nullcontext():
        NetworkSlimming(model, 0.25, penalty=penalty).attach(kind(model.parameters()))
    NetworkSlimming(model, 0.0, penalty=penalty).attach(kind(model.parameters()))


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
def test_every_kind_of_optimizer_sees_the_penalised_gradient(kind, options):
    penalised, by_hand = Scales(), Scales()
    optimizer = kind(penalised.parameters(), lr=0.1, weight_decay=0.01, **options)
    reference = kind(by_hand.parameters(), lr=0.1, weight_decay=0.01, **options)
    with warned_of(kind):
        NetworkSlimming(penalised, 0.25).attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        penalised.loss().backward()
        optimizer.step()
        reference.zero_grad()
        (
            by_hand.loss() + slimming_penalty([by_hand.first.weight, by_hand.second.weight], 0.25)
        ).backward()
        reference.step()
    torch.testing.assert_close(gammas(penalised), gammas(by_hand))


def test_accumulated_gradients_are_penalised_once():
    model = Scales()
    optimizer = sgd(model)
    NetworkSlimming(model, 0.25).attach(optimizer)
    for _ in range(4):
        model.loss(slope=0.25).backward()
    optimizer.step()
    torch.testing.assert_close(gammas(model), after(1.0, 0.25))


def test_clipping_before_the_step_leaves_the_penalty_whole():
    model = Scales()
    optimizer = sgd(model)
    NetworkSlimming(model, 0.25).attach(optimizer)
    model.loss(slope=100.0).backward()
    nn.utils.clip_grad_norm_(model.parameters(), math.sqrt(5))
    optimizer.step()
    # Five equal gradients clipped to norm sqrt(5) are ones.
    torch.testing.assert_close(gammas(model), after(1.0, 0.25), atol=1e-5, rtol=0)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_grad_scaler(options, unscale):
    model = Scales()
    optimizer = sgd(model, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    NetworkSlimming(model, 0.25).attach(optimizer)
    scaler.scale(model.loss()).backward()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(gammas(model), after(1.0, 0.25))


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_grad_scaler_skips_the_penalty_with_the_step(options):
    model = Scales()
    optimizer = sgd(model, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    NetworkSlimming(model, 0.25).attach(optimizer)
    scaler.scale(model.loss(slope=math.inf)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(gammas(model), START)
    assert scaler.get_scale() == 512.0
    optimizer.zero_grad()
    scaler.scale(model.loss()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(gammas(model), after(1.0, 0.25))


@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_closure_computes_its_gradients_inside_the_step(by_keyword):
    model = Scales()
    optimizer = sgd(model)
    NetworkSlimming(model, 0.25).attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
    torch.testing.assert_close(gammas(model), after(1.0, 0.25))
    assert loss.item() == 5.0
    assert not model.first.weight.grad.requires_grad


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_finds_the_minimum_of_the_penalised_loss(line_search):
    # (gamma - 3)^2 + 2 |gamma| has its minimum at 2, (gamma + 3)^2 + 2 |gamma| at -2.
    model = nn.BatchNorm1d(2)
    target = torch.tensor([3.0, -3.0])
    with torch.no_grad():
        model.weight.copy_(torch.tensor([7.0, -6.0]))
    optimizer = torch.optim.LBFGS([model.weight], lr=0.5, max_iter=40, line_search_fn=line_search)
    NetworkSlimming(model, 2.0).attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (model.weight - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([2.0, -2.0]), atol=1e-3, rtol=0)


def test_several_parameter_groups_each_with_its_rate():
    model = Scales()
    groups = [
        {"params": [model.first.weight, model.first.bias]},
        {"params": [model.second.weight], "lr": 1.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=LR)
    NetworkSlimming(model, 0.25).attach(optimizer)
    model.loss().backward()
    optimizer.step()
    expected = torch.cat([after(1.0, 0.25)[:3], after(1.0, 0.25, lr=1.0)[3:]])
    torch.testing.assert_close(gammas(model), expected)


def test_several_optimizers_each_penalise_their_own_scales():
    model = Scales()
    one, two = (torch.optim.SGD(part.parameters(), lr=LR) for part in (model.first, model.second))
    NetworkSlimming(model, 0.25).attach(one).attach(two)
    model.loss().backward()
    one.step()
    two.step()
    torch.testing.assert_close(gammas(model), after(1.0, 0.25))


def test_a_group_added_later_is_penalised():
    model = Scales()
    optimizer = torch.optim.SGD(model.first.parameters(), lr=LR)
    NetworkSlimming(model, 0.25).attach(optimizer)
    optimizer.add_param_group({"params": [model.second.weight]})
    model.loss().backward()
    optimizer.step()
    torch.testing.assert_close(gammas(model), after(1.0, 0.25))


def test_frozen_and_unused_scales_are_left_alone():
    model = Scales()
    model.first.weight.requires_grad_(False)
    optimizer = sgd(model)
    NetworkSlimming(model, 0.25).attach(optimizer)
    model.second.weight[0].backward()
    optimizer.step()
    torch.testing.assert_close(gammas(model)[:3], START[:3])
    # The used entry has gradient 1, its neighbour 0; both carry the penalty.
    torch.testing.assert_close(gammas(model)[3:], torch.tensor([-4 - LR * 0.75, 8 - LR * 0.25]))
    assert model.first.weight.grad is None
    optimizer.zero_grad()
    optimizer.step()
    assert model.second.weight.grad is None


def test_a_new_strength_acts_at_the_next_step_and_zero_switches_it_off():
    model = Scales()
    optimizer = sgd(model)
    method = NetworkSlimming(model, 0.25).attach(optimizer)
    expected = START
    for strength in (0.25, 0.5, 0.0, 0.125):
        method.strength = strength
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
        expected = after(1.0, strength, expected)
        torch.testing.assert_close(gammas(model), expected)


def test_detached_it_does_nothing():
    model = Scales()
    optimizer, other = sgd(model), sgd(model)
    method = NetworkSlimming(model, 0.25).attach(optimizer).attach(other)
    method.detach(optimizer)
    model.loss().backward()
    optimizer.step()
    torch.testing.assert_close(gammas(model), after(1.0, 0.0))
    method.detach()
    start = gammas(model)
    other.step()
    torch.testing.assert_close(gammas(model), after(1.0, 0.0, start))
    method.attach(optimizer)
    assert repr(method) == "NetworkSlimming(strength=0.25, optimizers=1)"


def test_follows_surgery_that_swaps_the_data():
    model = Scales()
    optimizer = sgd(model)
    NetworkSlimming(model, 0.25).attach(optimizer)
    for parameter in model.first.parameters():
        parameter.data = parameter.data[:2]
    model.loss().backward()
    optimizer.step()
    torch.testing.assert_close(model.first.weight.detach(), after(1.0, 0.25)[:2])


def test_follows_surgery_that_replaces_parameters_or_layers():
    model = Scales()
    optimizer = sgd(model)
    NetworkSlimming(model, 0.25).attach(optimizer)
    model.second.weight = nn.Parameter(torch.tensor([-4.0]))
    model.first = nn.BatchNorm1d(3)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    model.loss().backward()
    optimizer.step()
    torch.testing.assert_close(model.second.weight.detach(), after(1.0, 0.25)[3:4])
    torch.testing.assert_close(model.first.weight.detach(), torch.ones(3) - LR * 1.25)


def test_a_scale_shared_by_two_layers_counts_once():
    model = Scales()
    model.third = nn.BatchNorm1d(3)
    model.third.weight = model.first.weight
    optimizer = sgd(model)
    method = NetworkSlimming(model, 0.25).attach(optimizer)
    model.loss().backward()
    optimizer.step()
    torch.testing.assert_close(gammas(model), after(1.0, 0.25))
    assert method.scales().shape == (5,)


def test_mixed_precision_of_the_scales():
    model = Scales()
    model.second.double()
    optimizer = sgd(model)
    NetworkSlimming(model, 0.25).attach(optimizer)
    model.loss().backward()
    optimizer.step()
    torch.testing.assert_close(model.second.weight.detach(), after(1.0, 0.25)[3:].double())


def test_what_it_reports():
    model = Scales()
    method = NetworkSlimming(model, 0.5)
    assert method.penalty().item() == 7.5
    assert not method.penalty().requires_grad
    assert method.scales().tolist() == [2.0, 1.0, 0.0, 4.0, 8.0]
    assert method.share_near_zero() == pytest.approx(0.2)
    assert method.share_near_zero(threshold=2.0) == pytest.approx(0.4)
    assert method.histogram(bins=4) == ([2, 1, 1, 1], [0.0, 2.0, 4.0, 6.0, 8.0])
    assert method.histogram(bins=[0.0, 1.5, 3.0]) == ([2, 3], [0.0, 1.5, 3.0])


def test_the_penalty_is_the_one_that_acts():
    model = Scales()
    model.second.double()
    method = NetworkSlimming(model, 0.5).attach(torch.optim.SGD(model.first.parameters(), lr=LR))
    assert method.penalty().item() == 1.5
    method.attach(torch.optim.SGD(model.second.parameters(), lr=LR))
    assert method.penalty().item() == 7.5
    assert not method.penalty().requires_grad
    method.strength = 0.0
    assert method.penalty().item() == 0.0
    method.detach()
    method.strength = 1.0
    assert method.penalty().item() == 15.0


def test_the_histogram_of_all_zero_scales():
    model = Scales()
    for layer in (model.first, model.second):
        nn.init.zeros_(layer.weight)
    counts, _ = NetworkSlimming(model).histogram(bins=3)
    assert counts == [5, 0, 0]


def test_gamma_init_sets_every_scale_and_only_when_asked():
    model = Scales()
    NetworkSlimming(model)
    assert torch.equal(gammas(model), START)
    NetworkSlimming(model, gamma_init=0.5)
    assert torch.equal(gammas(model), torch.full((5,), 0.5))
    assert model.first.weight.requires_grad


def test_layers_without_scales_are_passed_over():
    passed_over = [
        nn.BatchNorm2d(4, affine=False),
        nn.GroupNorm(1, 8),
        nn.InstanceNorm2d(8, affine=True),
    ]
    model = nn.Sequential(nn.BatchNorm3d(2), *passed_over, nn.SyncBatchNorm(3))
    assert NetworkSlimming(model).scales().shape == (5,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: NetworkSlimming(m, -1e-4), r"strength .* must be 0 or more, not -0.0001"),
        (lambda m: NetworkSlimming(m, math.nan), r"strength .* not nan"),
        (lambda m: NetworkSlimming(m, "1e-4"), r"strength must be a number, got the str '1e-4'"),
        (lambda m: NetworkSlimming(m, gamma_init=0), r"gamma_init must be above 0, not 0"),
        (
            lambda m: NetworkSlimming(nn.Linear(2, 2)),
            r"Linear has no BN layer .* use affine BatchNorm .*netslim\.models\.add_bn",
        ),
        (
            lambda m: NetworkSlimming(m, penalty="smoothl1"),
            r"unknown penalty 'smoothl1'; did you mean 'smooth_l1'",
        ),
        (lambda m: NetworkSlimming(m, penalty=None), r"penalty must be a str, got None"),
        (
            lambda m: NetworkSlimming(m, penalty="smooth_l1", delta=0),
            r"delta, .*, must be above 0, not 0",
        ),
        (lambda m: NetworkSlimming(m, penalty="smooth_l1", delta=math.inf), r"above 0, not inf"),
        (
            lambda m: NetworkSlimming(m, delta=0.1),
            r"delta is the width of penalty='smooth_l1'; 'l1' has none",
        ),
        (
            lambda m: NetworkSlimming(m).threshold_(),
            r"ends the penalty 'smooth_l1'; 'l1' makes no threshold",
        ),
        (
            lambda m: NetworkSlimming(m, penalty="proximal").threshold_(),
            r"ends the penalty 'smooth_l1'; 'proximal' makes zeros as it goes",
        ),
        (
            lambda m: NetworkSlimming(m, penalty="proximal").attach(
                torch.optim.LBFGS(m.parameters())
            ),
            r"'proximal' goes with a gradient step, and LBFGS searches along a line",
        ),
        (
            lambda m: NetworkSlimming(m, penalty="proximal").attach(NoRate(m.parameters(), {})),
            r"'proximal' shrinks by the learning rate, and this NoRate has no 'lr'",
        ),
        (
            lambda m: NetworkSlimming(m).attach(m),
            r"attaches to a torch.optim.Optimizer, not to a Scales",
        ),
        (lambda m: setattr(NetworkSlimming(m), "strength", -1), r"not -1"),
        (
            lambda m: NetworkSlimming(m).attach(sgd(Scales())),
            r"SGD holds none of the BN scales of this",
        ),
        (lambda m: NetworkSlimming(m).detach(sgd(m)), r"not attached to this SGD"),
    ],
)
def test_refuses_what_would_do_nothing_or_harm(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(Scales())


def test_refuses_to_attach_twice():
    model = Scales()
    optimizer = sgd(model)
    method = NetworkSlimming(model).attach(optimizer)
    with pytest.raises(
        ArgumentError, match=r"attached to this SGD already; twice would double the penalty"
    ):
        method.attach(optimizer)


def test_it_makes_a_network_sparse():
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, 0] > 0).long()

    def trained(strength):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(8, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)
        )
        method = NetworkSlimming(model, strength, gamma_init=0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        method.attach(optimizer)
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return method.share_near_zero(0.02)

    assert trained(0.0) < 0.1
    assert trained(0.02) > 0.6


def soft(values, threshold):
    return values.sign() * (values.abs() - threshold).clamp_min(0)


def proximal_after(slope, strength, start=START, lr=LR):
    """One proximal step of SGD on `slope * gamma + strength * |gamma|`."""
    return soft(start - lr * slope, lr * strength)


def test_the_soft_threshold():
    scales = [torch.tensor([3.0, -2.0, 0.0, 0.25]), torch.tensor([-0.5, -0.125])]
    soft_threshold_(scales, 0.5)
    assert torch.equal(torch.cat(scales), torch.tensor([2.5, -1.5, 0.0, 0.0, 0.0, 0.0]))


def test_the_smooth_formula():
    # Width 2: slopes -1, -0.5, 0, 0.25, 1; penalties |-4| - 1, 1 / 4, 0, 0.25 / 4, 2 - 1.
    scales = [
        torch.tensor([-4.0, -1.0, 0.0], requires_grad=True),
        torch.tensor([0.5, 2.0], requires_grad=True),
    ]
    penalty = slimming_penalty(scales, 0.5, delta=2.0)
    assert penalty.item() == 0.5 * (3 + 0.25 + 0.0625 + 1)
    gradients = [torch.zeros(3), torch.ones(2)]
    add_slimming_gradient(gradients, [scale.detach() for scale in scales], 0.5, delta=2.0)
    torch.testing.assert_close(
        gradients, [torch.tensor([-0.5, -0.25, 0.0]), torch.tensor([1.125, 1.5])]
    )
    gradients[1] -= 1
    torch.testing.assert_close(gradients, list(torch.autograd.grad(penalty, scales)))


def test_one_smooth_step_of_sgd():
    model = Scales()
    NetworkSlimming(model, 0.25, penalty="smooth_l1", delta=4.0).attach(optimizer := sgd(model))
    model.loss().backward()
    optimizer.step()
    # By hand, slopes 0.5, -0.25, 0, -1, 1: 2 - 0.5 * 1.125, -1 - 0.5 * 0.9375, 0 - 0.5, -4 - 0.375,
    # 8 - 0.625.
    torch.testing.assert_close(gammas(model), torch.tensor([1.4375, -1.46875, -0.5, -4.375, 7.375]))


def test_one_proximal_step_of_sgd():
    model = Scales()
    NetworkSlimming(model, 0.25, penalty="proximal").attach(optimizer := sgd(model))
    model.loss().backward()
    optimizer.step()
    # By hand, 1.5, -1.5, -0.5, -4.5, 7.5 move by 0.125 towards zero.
    torch.testing.assert_close(gammas(model), torch.tensor([1.375, -1.375, -0.375, -4.375, 7.375]))
    assert torch.equal(model.first.bias, torch.zeros(3))


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_proximal_step_follows_every_kind_of_optimizer(kind, options):
    penalised, by_hand = Scales(), Scales()
    optimizer = kind(penalised.parameters(), lr=0.1, weight_decay=0.01, **options)
    reference = kind(by_hand.parameters(), lr=0.1, weight_decay=0.01, **options)
    NetworkSlimming(penalised, 0.25, penalty="proximal").attach(optimizer)
    for _ in range(5):
        for model, one in ((penalised, optimizer), (by_hand, reference)):
            one.zero_grad()
            model.loss().backward()
            one.step()
        with torch.no_grad():
            for layer in (by_hand.first, by_hand.second):
                layer.weight.copy_(soft(layer.weight, 0.025))
    torch.testing.assert_close(gammas(penalised), gammas(by_hand))


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("options", [{}, {"fused": True}])
@pytest.mark.parametrize("penalty", ["smooth_l1", "proximal"])
def test_grad_scaler_with_every_penalty(penalty, options, unscale):
    model = Scales()
    optimizer = sgd(model, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    NetworkSlimming(model, 0.25, penalty=penalty).attach(optimizer)
    for slope in (math.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale(model.loss(slope)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if slope == math.inf:
            assert torch.equal(gammas(model), START)
    expected = (
        proximal_after if penalty == "proximal" else after
    )  # all scales lie beyond delta, or at 0
    torch.testing.assert_close(gammas(model), expected(1.0, 0.25))


def test_the_proximal_step_follows_a_closure():
    model = Scales()
    NetworkSlimming(model, 0.25, penalty="proximal").attach(optimizer := sgd(model))

    def closure():
        optimizer.zero_grad()
        loss = model.loss()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 5.0
    torch.testing.assert_close(gammas(model), proximal_after(1.0, 0.25))


def test_the_proximal_step_takes_the_rate_of_each_group_at_each_step():
    model = Scales()
    groups = [
        {"params": [*model.first.parameters()]},
        {"params": [*model.second.parameters()], "lr": 1.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=LR)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    NetworkSlimming(model, 0.25, penalty="proximal").attach(optimizer)
    expected = START
    for factor in (1.0, 0.5):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
        schedule.step()
        parts = [(expected[:3], LR * factor), (expected[3:], factor)]
        expected = torch.cat([proximal_after(1.0, 0.25, part, rate) for part, rate in parts])
        torch.testing.assert_close(gammas(model), expected)


def test_the_proximal_step_follows_the_groups_of_a_loaded_state():
    model = Scales()
    optimizer = sgd(model)
    NetworkSlimming(model, 0.25, penalty="proximal").attach(optimizer)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.25
    optimizer.load_state_dict(state)
    model.loss().backward()
    optimizer.step()
    torch.testing.assert_close(gammas(model), proximal_after(1.0, 0.25, lr=0.25))


def test_the_proximal_step_leaves_unused_scales_alone():
    model = Scales()
    NetworkSlimming(model, 0.25, penalty="proximal").attach(optimizer := sgd(model))
    model.second.weight.sum().backward()
    optimizer.step()
    torch.testing.assert_close(gammas(model)[:3], START[:3])
    torch.testing.assert_close(gammas(model)[3:], proximal_after(1.0, 0.25)[3:])


def lasso(penalty, steps, **options):
    """Scales trained to minimise |gamma - target|^2 / 2 + 0.5 |gamma|, from 1."""
    model = nn.BatchNorm1d(4)
    target = torch.tensor([3.0, -2.0, 0.4, -0.1])
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    method = NetworkSlimming(model, 0.5, penalty=penalty, **options).attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model.weight - target).square().sum() / 2).backward()
        optimizer.step()
    return model.weight.detach(), method


def test_the_proximal_form_finds_exact_zeros_and_the_sub_gradient_does_not():
    minimum = torch.tensor([2.5, -1.5, 0.0, 0.0])
    proximal, method = lasso("proximal", 200)
    torch.testing.assert_close(proximal, minimum)
    assert method.share_zero() == 0.5
    sub_gradient, method = lasso("l1", 200)
    torch.testing.assert_close(sub_gradient, minimum, atol=0.1, rtol=0)
    assert method.share_zero() == 0.0


def test_the_smooth_form_settles_and_its_threshold_gives_exact_zeros():
    scales, method = lasso("smooth_l1", 400, delta=0.1)
    # Within delta: gamma - target + 5 gamma = 0.
    torch.testing.assert_close(scales, torch.tensor([2.5, -1.5, 0.4 / 6, -0.1 / 6]))
    assert method.share_zero() == 0.0
    assert method.share_near_zero(0.1) == 0.5
    assert method.threshold_() == 0.5
    torch.testing.assert_close(scales, torch.tensor([2.4, -1.4, 0.0, 0.0]))


def test_the_smooth_form_is_the_relaxed_proximal_one_with_a_copy_of_the_scales():
    strength, beta, lr = 0.5, 5.0, 0.1
    target = torch.tensor([3.0, -2.0, 0.4, -0.1])
    gamma, xi = torch.ones(4), soft(torch.ones(4), strength / beta)
    for _ in range(30):
        gamma = gamma - lr * ((gamma - target) + beta * (gamma - xi))
        xi = soft(gamma, strength / beta)
    scales, method = lasso("smooth_l1", 30, delta=strength / beta)
    torch.testing.assert_close(scales, gamma)
    method.threshold_()
    torch.testing.assert_close(scales, xi)


def test_lbfgs_finds_the_minimum_of_the_smooth_loss():
    # (gamma - 3)^2 + 2 |gamma| has its minimum at 2; (gamma - 0.22)^2 + 2 gamma^2 / 0.2 at 0.02.
    model = nn.BatchNorm1d(2)
    target = torch.tensor([3.0, 0.22])
    optimizer = torch.optim.LBFGS(
        [model.weight], lr=0.5, max_iter=60, line_search_fn="strong_wolfe"
    )
    NetworkSlimming(model, 2.0, penalty="smooth_l1", delta=0.1).attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (model.weight - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([2.0, 0.02]), atol=1e-3, rtol=0)


def test_each_form_reports_its_own_penalty():
    model = Scales()
    assert NetworkSlimming(model, 0.5, penalty="proximal").penalty().item() == 7.5
    # Width 4: 4 / 8, 1 / 8, 0, 4 - 2, 8 - 2.
    smooth = NetworkSlimming(model, 0.5, penalty="smooth_l1", delta=4.0)
    assert smooth.penalty().item() == 0.5 * 8.625
    assert repr(smooth) == "NetworkSlimming(strength=0.5, penalty='smooth_l1', optimizers=0)"
    assert smooth.share_zero() == pytest.approx(0.2)


def test_the_threshold_acts_where_the_penalty_does():
    model = Scales()
    model.second.double()
    method = NetworkSlimming(model, 0.5, penalty="smooth_l1", delta=1.0)
    method.attach(torch.optim.SGD(model.first.parameters(), lr=LR))
    assert method.threshold_() == pytest.approx(0.4)
    assert model.first.weight.tolist() == [1.0, 0.0, 0.0]
    assert model.second.weight.tolist() == [-4.0, 8.0]
    method.detach()
    assert method.threshold_() == pytest.approx(0.6)
    assert model.second.weight.tolist() == [-3.0, 7.0]


def test_exactly_the_zero_channels_can_be_cut():
    torch.manual_seed(0)
    model, x = Chain(), torch.randn(16, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = NetworkSlimming(model, 0.3, gamma_init=0.5, penalty="proximal").attach(optimizer)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(16) % 4).backward()
        optimizer.step()
    graph = trace(model, x)
    scores = score(graph, model, "bn_scale")
    zeros = {name: int((values == 0).sum()) for name, values in scores.items()}
    assert 0 < sum(zeros.values()) < 11
    assert method.share_zero() == pytest.approx(sum(zeros.values()) / 11)
    plan = select(graph, scores, per_group=zeros)
    for name, values in scores.items():
        kept = plan.groups[name].kept if name in plan.groups else range(len(values))
        assert list(kept) == torch.nonzero(values).flatten().tolist()


@pytest.mark.parametrize("clip", [None, math.sqrt(5)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning(tmp_path, accumulate, clip):
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Scales()

        def training_step(self, batch, _):
            return self.net.loss(slope=100.0 if clip else 1.0)

        def configure_optimizers(self):
            optimizer = sgd(self.net)
            NetworkSlimming(self.net, 0.25).attach(optimizer)
            return optimizer

    module = Module()
    loader = torch.utils.data.DataLoader(torch.zeros(2 * accumulate, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers and the like
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=1, accumulate_grad_batches=accumulate, gradient_clip_val=clip,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, loader)
    expected = after(1.0, 0.25, after(1.0, 0.25))
    torch.testing.assert_close(gammas(module.net), expected, atol=1e-5, rtol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_cuda_with_grad_scaler(options):
    model = Scales().cuda()
    if not options:
        model.second.cpu()
    optimizer = sgd(model, **options)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    NetworkSlimming(model, 0.25).attach(optimizer)
    loss = model.first.weight.sum() + model.second.weight.sum().to("cuda")
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    result = torch.cat([model.first.weight.cpu(), model.second.weight.cpu()]).detach()
    torch.testing.assert_close(result, after(1.0, 0.25))


def test_a_copy_is_attached_to_nothing_and_can_be():
    model = Scales()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    method = NetworkSlimming(model, 0.1).attach(optimizer)
    for twin, theirs in (
        copy.deepcopy((method, optimizer)),
        pickle.loads(pickle.dumps((method, optimizer))),
    ):
        assert "optimizers=0" in repr(twin)
        twin.attach(theirs)
    assert "optimizers=1" in repr(method)
