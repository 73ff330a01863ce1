"""Network Slimming: the exact gradient, wherever and however the optimizer steps."""

import math
import warnings

import pytest
import torch
from torch import nn

from netslim.errors import PlanError
from netslim.sparsity import NetworkSlimming, add_slimming_gradient, slimming_penalty

LR = 0.5


class Scales(nn.Module):
    """Two BN layers, 1-D and 2-D, and a loss whose gradient by each gamma is `slope`, whatever the input."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm1d(3)
        self.second = nn.BatchNorm2d(2)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([2.0, -1.0, 0.0]))
            self.second.weight.copy_(torch.tensor([-4.0, 8.0]))

    def loss(self, slope=1.0):
        return slope * (self.first.weight.sum() + self.second.weight.sum() + 0 * self.first.bias.sum())


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
    scales = [torch.tensor([3.0, -2.0, 0.0], requires_grad=True), torch.tensor([-0.5], requires_grad=True)]
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


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
def test_every_kind_of_optimizer_sees_the_penalised_gradient(kind, options):
    penalised, by_hand = Scales(), Scales()
    optimizer = kind(penalised.parameters(), lr=0.1, weight_decay=0.01, **options)
    reference = kind(by_hand.parameters(), lr=0.1, weight_decay=0.01, **options)
    NetworkSlimming(penalised, 0.25).attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        penalised.loss().backward()
        optimizer.step()
        reference.zero_grad()
        (by_hand.loss() + slimming_penalty([by_hand.first.weight, by_hand.second.weight], 0.25)).backward()
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
    passed_over = [nn.BatchNorm2d(4, affine=False), nn.GroupNorm(1, 8), nn.InstanceNorm2d(8, affine=True)]
    model = nn.Sequential(nn.BatchNorm3d(2), *passed_over, nn.SyncBatchNorm(3))
    assert NetworkSlimming(model).scales().shape == (5,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: NetworkSlimming(m, -1e-4), r"strength .* must be 0 or more, not -0.0001"),
        (lambda m: NetworkSlimming(m, math.nan), r"strength .* not nan"),
        (lambda m: NetworkSlimming(m, "1e-4"), r"strength .* not '1e-4'"),
        (lambda m: NetworkSlimming(m, gamma_init=0), r"gamma_init must be above 0, not 0"),
        (
            lambda m: NetworkSlimming(nn.Linear(2, 2)),
            r"Linear has no BN layer .* use affine BatchNorm",
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
    with pytest.raises(PlanError, match=message):
        call(Scales())


def test_refuses_to_attach_twice():
    model = Scales()
    optimizer = sgd(model)
    method = NetworkSlimming(model).attach(optimizer)
    with pytest.raises(PlanError, match=r"attached to this SGD already; twice would double the penalty"):
        method.attach(optimizer)


def test_it_makes_a_network_sparse():
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, 0] > 0).long()

    def trained(strength):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
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
