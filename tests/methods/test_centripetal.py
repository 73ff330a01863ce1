"""Centripetal SGD: the exact step, the entries it acts on, and a merge that changes nothing."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nets import Chain, DenseBlock, Residual
from netslim import prune, prune_, trace, verify
from netslim.errors import ArgumentError, PlanError, StaleGraphError
from netslim.methods.centripetal import (
    CentripetalSGD,
    centripetal_gradient,
    cluster_means,
    members_of,
)
from netslim.models import zoo
from netslim.surgery.proof.silencing import randomise

IMAGE = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
FIRST = {"first.0": [0, 0, 1, 1, 2, 3]}  # of the six channels of Chain
MADE = ("first.0.weight", "first.0.bias", "first.1.weight", "first.1.bias")


def chain(seed=0):
    torch.manual_seed(seed)
    return randomise(Chain().double(), seed)


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def method_for(model, clusters=FIRST, **options):
    return CentripetalSGD(trace(model, IMAGE), model, clusters=clusters, **options)


def step(model, optimizer, seed, scale=1.0):
    """One step on a loss of its own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (4,), generator=generator)
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y)
    (scale * loss).backward()
    optimizer.step()


def value(model, name) -> Tensor:
    return dict(model.named_parameters())[name].detach().clone()


def differences(model, names=MADE):
    """Of the members 0 and 1, and 2 and 3."""
    return {
        n: torch.stack(
            [value(model, n)[0] - value(model, n)[1], value(model, n)[2] - value(model, n)[3]]
        )
        for n in names
    }


# --- the step -------------------------------------------------------------------------------------


def test_the_formula_by_hand():
    kernels = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]])
    gradient = torch.tensor([[1.0, 0.0], [3.0, 4.0], [7.0, 8.0]])
    found = centripetal_gradient(
        gradient, kernels, torch.tensor([0, 0, 1]), torch.tensor([[0.5], [1.0]]), strength=0.25
    )
    # Mean gradient (2, 2), mean kernel (2, 4); the third kernel is alone.
    torch.testing.assert_close(
        found, torch.tensor([[2 - 0.25, 2 - 0.5], [2 + 0.25, 2 + 0.5], [7.0, 8.0]])
    )


def test_one_step_is_the_papers_equation():
    model, rest = chain(), chain()
    optimizer, reference = sgd(model, weight_decay=0.01), sgd(rest)
    method_for(model, strength=0.5, vector_strength=0.2).attach(optimizer)
    step(model, optimizer, 1)
    step(rest, reference, 1)
    for name in MADE:
        before, gradient = value(chain(), name), dict(rest.named_parameters())[name].grad
        eps = 0.5 * (0.2 if before.dim() == 1 else 1.0)
        expected = before.clone()
        for members in ([0, 1], [2, 3], [4], [5]):
            mean = before[members].mean(0)
            for j in members:
                expected[j] += 0.1 * (
                    -gradient[members].mean(0) - 0.01 * before[j] + eps * (mean - before[j])
                )
        torch.testing.assert_close(value(model, name), expected, rtol=1e-12, atol=1e-12)


def test_what_reads_the_channels_and_other_groups_train_as_without():
    model, rest = chain(), chain()
    optimizer, reference = sgd(model, momentum=0.9), sgd(rest, momentum=0.9)
    method_for(model, strength=0.5).attach(optimizer)
    step(model, optimizer, 1)
    step(rest, reference, 1)
    for name, parameter in rest.named_parameters():
        same = torch.equal(value(model, name), parameter.detach())
        assert same == (name not in MADE), name


@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_the_difference_of_members_decays_whatever_the_loss(decay):
    model = chain()
    lr, eps, steps = 0.1, 0.5, 25
    optimizer = sgd(model, lr=lr, weight_decay=decay)
    method_for(model, strength=eps).attach(optimizer)
    first = differences(model)
    for t in range(steps):
        step(model, optimizer, t, scale=1 + t % 3)
    for name, found in differences(model).items():
        pull = eps * (0.1 if found.dim() == 1 else 1.0)
        factor = (1 - lr * (decay + pull)) ** steps
        torch.testing.assert_close(found, factor * first[name], rtol=1e-9, atol=1e-13)


KINDS = [
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
    {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02},
    {"momentum": 0.9, "weight_decay": 0.02, "foreach": True},
    {"momentum": 0.9, "weight_decay": 0.02, "foreach": False},
    {"momentum": 0.9, "nesterov": True, "fused": True},
    {"momentum": 0.9, "weight_decay": 0.02, "maximize": True},
]


@pytest.mark.parametrize("options", KINDS)
def test_with_momentum_the_difference_follows_the_recursion_of_sgd(options):
    model = chain()
    lr, eps, steps = 0.05, 0.5, 12
    optimizer = sgd(model, lr=lr, **options)
    method_for(model, strength=eps, vector_strength=1.0).attach(optimizer)
    expected = differences(model)
    for name, f in expected.items():
        v = None
        for _ in range(steps):
            g = (eps + options.get("weight_decay", 0)) * f
            v = g if v is None else options["momentum"] * v + (1 - options.get("dampening", 0)) * g
            f = f - lr * (g + options["momentum"] * v if options.get("nesterov") else v)
        expected[name] = f
    for t in range(steps):
        step(model, optimizer, t)
    found = differences(model)
    for name, f in expected.items():
        torch.testing.assert_close(found[name], f, rtol=1e-9, atol=1e-12)


def test_each_parameter_group_has_its_own_rate_and_decay():
    model = chain()
    vectors = [p for p in model.parameters() if p.dim() == 1]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    method_for(model, strength=0.5, vector_strength=1.0).attach(optimizer)
    first = differences(model)
    for t in range(5):
        step(model, optimizer, t)
    for name, found in differences(model).items():
        factor = 1 - 0.1 * (0.1 + 0.5) if found.dim() > 1 else 1 - 0.02 * 0.5
        torch.testing.assert_close(found, factor**5 * first[name], rtol=1e-9, atol=1e-13)


def test_momentum_gathered_before_is_averaged_once():
    model = chain()
    optimizer = sgd(model, momentum=0.9)
    step(model, optimizer, 1)
    buffer = optimizer.state[model.first[0].weight]["momentum_buffer"]
    before = buffer.clone()
    method_for(model, strength=0.5).attach(optimizer)
    torch.testing.assert_close(buffer[0], before[:2].mean(0), rtol=0, atol=1e-15)
    assert torch.equal(buffer[0], buffer[1])
    assert torch.equal(buffer[4:], before[4:])


def test_a_closure_computes_its_gradients_inside_the_step():
    plain, closed = chain(), chain()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for model in (plain, closed):
        optimizer = sgd(model, momentum=0.9)
        method_for(model, strength=0.5).attach(optimizer)

        def loss(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            result = model(x).square().sum()
            result.backward()
            return result

        for _ in range(2):
            if model is plain:
                loss()
                optimizer.step()
            else:
                optimizer.step(loss)
    for name in MADE:
        assert torch.equal(value(plain, name), value(closed, name))


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler(fused):
    model = chain()
    optimizer = sgd(model, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    method_for(model, strength=0.5, vector_strength=1.0).attach(optimizer)
    first = differences(model)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(4, 3, 8, 8, dtype=torch.float64)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    for name, found in differences(model).items():
        torch.testing.assert_close(found, 0.95**3 * first[name], rtol=1e-9, atol=1e-12)


def test_a_parameter_without_a_gradient_is_left_alone_and_joins_when_it_has_one():
    model = chain()
    optimizer = sgd(model)
    method_for(model, strength=0.5).attach(optimizer)
    first = differences(model)
    model.first[0].weight.requires_grad_(False)
    step(model, optimizer, 0)
    assert torch.equal(differences(model)["first.0.weight"], first["first.0.weight"])
    model.first[0].weight.requires_grad_(True)
    step(model, optimizer, 1)
    torch.testing.assert_close(differences(model)["first.0.weight"], 0.95 * first["first.0.weight"])
    torch.testing.assert_close(
        differences(model)["first.1.weight"], 0.995**2 * first["first.1.weight"]
    )


def test_a_new_strength_acts_at_the_next_step_and_a_detached_method_no_more():
    model = chain()
    optimizer = sgd(model)
    method = method_for(model, strength=0.5).attach(optimizer)
    first = differences(model)["first.0.weight"]
    step(model, optimizer, 0)
    method.strength = 2.0
    step(model, optimizer, 1)
    torch.testing.assert_close(differences(model)["first.0.weight"], 0.95 * 0.8 * first)
    method.detach()
    step(model, optimizer, 2)
    assert not torch.allclose(differences(model)["first.0.weight"], 0.95 * 0.8 * first)
    assert repr(method) == "CentripetalSGD(strength=2, groups=1, optimizers=0)"


def test_several_optimizers_and_layouts():
    model = chain().to(memory_format=torch.channels_last)
    optimizers = [
        torch.optim.SGD(part.parameters(), lr=0.1)
        for part in (model.first, model.second, model.head)
    ]
    method = method_for(model, strength=0.5, vector_strength=1.0).attach(optimizers[0])
    with pytest.raises(
        ArgumentError, match=r"SGD holds none of the parameters that shall become equal"
    ):
        method.attach(optimizers[2])
    first = differences(model)
    model(torch.randn(4, 3, 8, 8, dtype=torch.float64)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    for name, found in differences(model).items():
        torch.testing.assert_close(found, 0.95 * first[name])


def test_members_get_the_same_mean_bit_for_bit():
    model = chain().float()
    optimizer = sgd(model, lr=0.25)
    CentripetalSGD(
        trace(model, IMAGE.float()), model, clusters=FIRST, strength=4.0, vector_strength=1.0
    ).attach(optimizer)
    with torch.no_grad():
        model(torch.randn(4, 3, 8, 8))
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()  # lr * strength is 1: the whole difference in one step, but for rounding
    for found in differences(model).values():
        assert found.abs().max() < 1e-6


@pytest.mark.cuda
@pytest.mark.parametrize("fused", [False, True])
def test_cuda_with_grad_scaler(fused):
    model = chain().cuda()
    optimizer = sgd(model, fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    graph = trace(model, IMAGE.cuda())
    CentripetalSGD(graph, model, clusters=FIRST, strength=0.5, vector_strength=1.0).attach(
        optimizer
    )
    first = differences(model)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(
            model(torch.randn(4, 3, 8, 8, dtype=torch.float64, device="cuda")).square().mean()
        ).backward()
        scaler.step(optimizer)
        scaler.update()
    for name, found in differences(model).items():
        torch.testing.assert_close(found, 0.95**3 * first[name], rtol=1e-9, atol=1e-12)


def test_members_that_are_added_up_in_order_have_the_same_means():
    labels = np.array([0, 0, 1, 0, 2])
    members = members_of(labels)
    assert members.tolist() == [[0, 1, 3], [2, 5, 5], [4, 5, 5]]
    rows, shares = torch.randn(5, 7), torch.tensor([[1 / 3], [1.0], [1.0]])
    found = cluster_means(rows, torch.from_numpy(labels), shares, torch.from_numpy(members))
    torch.testing.assert_close(found, cluster_means(rows, torch.from_numpy(labels), shares))
    assert torch.equal(found[0], found[3])


# --- which entries --------------------------------------------------------------------------------


def constrained(model, clusters, image=IMAGE):
    """(tensor, axis) -> the entries that are tied to others, as sets."""
    method = CentripetalSGD(trace(model, image), model, clusters=clusters)
    result = {}
    for tie in method._ties:
        sets = [
            frozenset(np.flatnonzero(tie.labels == k).tolist()) for k in range(tie.labels.max() + 1)
        ]
        result[tie.tensor, tie.axis] = {s for s in sets if len(s) > 1}
    return result


def test_followers_in_a_residual_stage_share_the_clusters():
    found = constrained(Residual().double(), {"stem.0": [0, 1, 0, 1, 2, 3]})
    pairs = {frozenset({0, 2}), frozenset({1, 3})}
    makers = {("stem.0.weight", 0), ("stem.0.bias", 0), ("outer.weight", 0), ("outer.bias", 0)}
    norms = {(f"stem.1.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")}
    assert found == dict.fromkeys(makers | norms, pairs)


def test_later_norms_of_a_concatenation():
    found = constrained(DenseBlock().double(), {"conv1": [0, 0, 1, 2], "stem": [0, 1, 2, 3, 4, 4]})
    assert found["conv1.weight", 0] == found["conv1.bias", 0] == {frozenset({0, 1})}
    assert found["norm1.weight", 0] == {frozenset({4, 5})}
    assert (
        found["norm2.weight", 0] == found["norm3.bias", 0] == {frozenset({4, 5}), frozenset({6, 7})}
    )
    assert ("conv2.weight", 0) not in found


def test_depthwise_kernels():
    layers = (
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(8, 2, 1),
        nn.Flatten(),
    )
    model = nn.Sequential(*layers, nn.Linear(2 * 64, 2)).double()
    found = constrained(model, {"0": [0, 1, 1, 2]})
    assert found["0.weight", 0] == {frozenset({1, 2})}
    assert found["1.weight", 0] == found["1.bias", 0] == {frozenset({2, 4}), frozenset({3, 5})}
    assert ("2.weight", 1) not in found


def test_a_unit_with_several_entries_is_averaged_entry_by_entry():
    layers = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(4 * 64, 2)).double()
    found = constrained(model, {"0": [0, 0, 1]})
    assert found["0.weight", 0] == {frozenset({0, 1}), frozenset({3, 4})}


def test_every_tied_entry_decays_and_the_merge_is_exact_on_a_mobile_network():
    """Expansion, depthwise kernels and residual stages; without a loss, so that all depends on the
    method.
    """
    torch.manual_seed(0)
    model = randomise(torchvision.models.mobilenet_v2(width_mult=0.1).double()).eval()
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    method = CentripetalSGD(
        trace(model, image), model, 0.5, clusters="even", strength=1.0, vector_strength=1.0
    )
    optimizer = sgd(model, lr=0.9)
    method.attach(optimizer)
    assert method.deviation().largest > 0.5
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(10):
        optimizer.step()
    assert method.deviation().largest < 1e-8  # 0.1 ** 10, relative to means that shrink as well
    method.collapse()
    small = prune(model, method.plan())
    torch.testing.assert_close(small(image), model(image), rtol=1e-10, atol=1e-12)


def test_the_plan_is_verified():
    torch.manual_seed(0)
    model, image = (
        randomise(zoo.densenet(10, stem=6, growth=4).double()),
        torch.randn(2, 3, 8, 8, dtype=torch.float64),
    )
    plan = CentripetalSGD(trace(model, image), model, 0.5, clusters="even").plan()
    assert verify(model, prune(model, plan), plan, image).deviation < 1e-10


# --- deviation, collapse, merge -------------------------------------------------------------------


def test_deviation_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 64, 2)
    ).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4, 0], [3, 0, 0]])[:, :, None, None])
        model[1].weight.copy_(torch.tensor([1.0, 3.0]))
        model[1].running_var.copy_(torch.tensor([2.0, 2.0]))
        model[1].running_mean.copy_(torch.tensor([1.0, -1.0]))
    method = CentripetalSGD(trace(model, IMAGE), model, 0.5)
    found = method.deviation()
    # Kernels: 2 from their mean, norms 5 and 3. Scales: 1 from their mean, and rms sqrt(5). Shifts
    # are all zero.
    assert found.groups == {"0": pytest.approx(max(2 / np.sqrt(17), 1 / np.sqrt(5)))}
    assert found.largest == found.groups["0"]
    assert found.statistics == pytest.approx(1.0)
    assert str(found) == "0.485 at most (0), running statistics 1"
    method.collapse()
    assert method.deviation().largest == 0
    assert method.deviation().statistics == 0
    assert model[0].weight.detach().flatten(1).tolist() == [[3, 2, 0], [3, 2, 0]]
    assert model[1].running_mean.tolist() == [0, 0]


def test_collapse_averages_the_momentum_too_and_touches_nothing_else():
    model = chain()
    optimizer = sgd(model, momentum=0.9)
    method = method_for(model).attach(optimizer)
    step(model, optimizer, 0)
    before = copy.deepcopy(model.state_dict())
    method.collapse()
    buffer = optimizer.state[model.first[0].weight]["momentum_buffer"]
    assert torch.equal(buffer[0], buffer[1])
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {*MADE, "first.1.running_mean", "first.1.running_var"}
    assert torch.equal(model.first[0].weight[4:], before["first.0.weight"][4:])


class Quick(nn.Module):
    """A residual network whose running statistics follow soon."""

    def __init__(self):
        super().__init__()
        self.net = Residual()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.5

    def forward(self, x):
        return self.net(x)


def outputs_change(model, method, x):
    small = prune(model, method.plan()).eval()
    model.eval()
    with torch.no_grad():
        change = (small(x) - model(x)).abs().max() / model(x).abs().max()
    model.train()
    return float(change)


def test_the_merge_changes_the_outputs_in_proportion_to_the_deviation_and_not_at_all_after_collapse():
    torch.manual_seed(0)
    model, x, y = (
        Quick().double(),
        torch.randn(8, 3, 8, 8, dtype=torch.float64),
        torch.arange(8) % 4,
    )
    method = CentripetalSGD(trace(model, IMAGE), model, 0.5, strength=4.0, vector_strength=1.0)
    optimizer = sgd(model, lr=0.05, momentum=0.5)
    method.attach(optimizer)
    changes, deviations = [], []
    for t in range(45):
        if t % 15 == 0:
            changes.append(outputs_change(model, method, x))
            deviations.append(max(method.deviation().largest, method.deviation().statistics))
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    changes.append(outputs_change(model, method, x))
    deviations.append(max(method.deviation().largest, method.deviation().statistics))
    assert deviations[0] > 0.5
    assert deviations[-1] < 1e-4 * deviations[0]
    for change, deviation in zip(changes, deviations, strict=True):
        assert 0.02 * deviation < change < 2 * deviation
    method.collapse()
    assert outputs_change(model, method, x) < 1e-10


@pytest.mark.parametrize("clusters", ["kmeans", "even", "imbalanced"])
def test_plan_keeps_the_first_member_of_each_cluster(clusters):
    model = chain()
    method = CentripetalSGD(
        trace(model, IMAGE), model, {"first.0": 4, "second.0": 0.4}, clusters=clusters
    )
    plan = method.plan()
    assert list(plan.groups) == ["first.0", "second.0"]
    for name, width in (("first.0", 4), ("second.0", 2)):
        labels = method.clusters[name]
        assert len(set(labels)) == width
        assert plan.groups[name].kept == tuple(labels.index(k) for k in range(width))


def test_kmeans_groups_near_kernels_of_the_pacesetter():
    model = chain()
    with torch.no_grad():
        kernels = model.first[0].weight
        kernels[[3, 5]] = kernels[[0, 1]] + 0.01
    assert method_for(model, "kmeans", target={"first.0": 4}).clusters == {
        "first.0": [0, 1, 2, 0, 3, 1]
    }


# --- the life of a method -------------------------------------------------------------------------


def test_a_run_goes_on_where_it_stopped():
    whole = chain()
    optimizer = sgd(whole, momentum=0.9)
    method = CentripetalSGD(trace(whole, IMAGE), whole, 0.5, strength=0.5).attach(optimizer)
    for t in range(6):
        if t == 3:
            saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), method.state_dict()))
        step(whole, optimizer, t)

    again = chain(seed=5)
    again.load_state_dict(saved[0])
    resumed = sgd(again, momentum=0.9)
    resumed.load_state_dict(saved[1])
    other = CentripetalSGD(trace(again, IMAGE), again, 0.5, clusters="even", strength=1.0)
    other.load_state_dict(json.loads(json.dumps(saved[2])))
    other.attach(resumed)
    assert other.clusters == method.clusters
    for t in range(3, 6):
        step(again, resumed, t)
    for a, b in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_that_does_not_fit():
    method, other = (
        method_for(chain()),
        CentripetalSGD(trace(Residual(), IMAGE.float()), Residual(), 0.5),
    )
    with pytest.raises(
        ArgumentError, match=r"is of a CentripetalSGD on the architecture \w+, this one is on \w+"
    ):
        method.load_state_dict(other.state_dict())
    with pytest.raises(
        ArgumentError, match=r"no state of a CentripetalSGD: it lacks clusters, fingerprint"
    ):
        method.load_state_dict({"strength": 1, "vector_strength": 1})


def test_widths_in_steps_and_a_method_that_is_over():
    torch.manual_seed(0)
    model = randomise(zoo.resnet(8, width=1.0).double())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    optimizer = sgd(model, lr=0.01, momentum=0.9)
    first = None
    for width, kept in ((13 / 16, 13), ({"conv1": 11, "layer1.*": 11}, 11), ({"layer1.*": 10}, 10)):
        method = CentripetalSGD(trace(model, x), model, width, clusters="even", strength=1.0)
        method.attach(optimizer)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        method.collapse()
        model.eval()
        before = model(x).detach()
        prune_(model, method.plan(), optimizer=optimizer)
        torch.testing.assert_close(model(x).detach(), before, rtol=1e-9, atol=1e-12)
        model.train()
        assert model.layer1[0].conv1.out_channels == kept
        first = first or method
        for call in (method.plan, method.deviation, method.collapse, optimizer.step):
            with pytest.raises(
                StaleGraphError, match=r"was cut since this CentripetalSGD was made"
            ):
                call()
        method.detach()
    with pytest.raises(StaleGraphError, match=r"was cut since"):
        first.attach(optimizer)


def test_the_model_can_be_copied_and_pickled_and_need_not_be_bare():
    model = nn.DataParallel(chain())
    optimizer = sgd(model)
    method = CentripetalSGD(trace(model, IMAGE), model, clusters=FIRST, strength=0.5).attach(
        optimizer
    )
    first = differences(model.module)["first.0.weight"]
    step(model.module, optimizer, 0)
    torch.testing.assert_close(differences(model.module)["first.0.weight"], 0.95 * first)
    assert method.plan().removed == 2
    assert (
        copy.deepcopy(model.module)(IMAGE).shape
        == pickle.loads(pickle.dumps(model.module))(IMAGE).shape
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: method_for(m).attach(torch.optim.Adam(m.parameters())),
            r"needs torch.optim.SGD: Adam scales",
        ),
        (
            lambda m: method_for(m).attach(torch.optim.LBFGS(m.parameters())),
            r"needs torch.optim.SGD: LBFGS",
        ),
        (lambda m: method_for(m).attach(sgd(Chain())), r"SGD holds none of the parameters"),
        (
            lambda m: method_for(m).attach(None),
            r"attaches to a torch.optim.Optimizer, not to a NoneType",
        ),
        (lambda m: method_for(m).detach(sgd(m)), r"not attached to this SGD"),
        (
            lambda m: method_for(m, strength=-1),
            r"the strength of CentripetalSGD must be a number of at least 0, not -1",
        ),
        (lambda m: method_for(m, strength="1"), r"strength must be a number, got the str '1'"),
        (
            lambda m: method_for(m, vector_strength=float("inf")),
            r"the vector_strength of CentripetalSGD .* not inf",
        ),
        (lambda m: setattr(method_for(m), "strength", None), r"not None"),
        (
            lambda m: method_for(m, target=0.5),
            r"the clusters that were given say the widths: leave target out",
        ),
        (lambda m: method_for(m, "kmeans"), r"target says what stays"),
        (
            lambda m: method_for(m, "kmean", target=0.5),
            r"no clustering 'kmean'; did you mean 'kmeans'",
        ),
        (
            lambda m: method_for(m, "even", target={"first.0": 7}),
            r"first.0 has 6 channels, .* not 7",
        ),
        (lambda m: method_for(m, {"first.0": [0] * 5}), r"as many whole numbers"),
    ],
)
def test_refuses_what_would_do_nothing_or_harm(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(chain())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: method_for(m, "even", target=1.0), r"nothing to make equal"),
        (lambda m: CentripetalSGD(trace(m, IMAGE), Residual(), 0.5), r"the graph was traced from"),
        (
            lambda m: CentripetalSGD(trace(m, IMAGE), m, 0.5, protect="*"),
            r"can become narrower: .* stays: protected",
        ),
    ],
)
def test_refuses_what_makes_nothing_equal(call, message):
    with pytest.raises(PlanError, match=message):
        call(chain())


def test_refuses_to_attach_twice_and_what_does_not_train():
    model = chain()
    optimizer = sgd(model)
    method = method_for(model).attach(optimizer)
    with pytest.raises(
        ArgumentError, match=r"attached to this SGD already; twice would double its pull"
    ):
        method.attach(optimizer)
    method.detach()
    model.first[1].bias.requires_grad_(False)
    with pytest.raises(ArgumentError, match=r"'first.1.bias' does not train .* protect its group"):
        method.attach(optimizer)


# --- the counts of the paper ----------------------------------------------------------------------


def cut(model, target, graph):
    """The share of the MACs that goes, in percent; clusters need no training to be counted."""
    plan = CentripetalSGD(graph, model, target, clusters="even").plan()
    masks = {graph.number(n): np.isin(np.arange(g.size), g.kept) for n, g in plan.groups.items()}
    return 100 * (1 - graph.macs(masks) / graph.macs())


@pytest.mark.parametrize(
    ("build", "targets"),
    [
        (zoo.resnet56, {13 / 16: 33.93, 11 / 16: 52.66, 5 / 8: 60.85}),
        (zoo.resnet110, {5 / 8: 60.90}),
    ],
)
def test_cifar_resnets_with_projections(build, targets):
    model = build(shortcut="B")
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    for target, expected in targets.items():
        assert cut(model, target, graph) == pytest.approx(expected, abs=0.006)


def test_densenet40():
    model = zoo.densenet40()
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    assert graph.macs() == 264_812_928
    for widths, expected in (((3, 3, 3), 78.7), ((5, 8, 10), 52.1), ((6, 6, 6), 57.9)):
        target = {f"dense{i}.*.conv": width for i, width in enumerate(widths, 1)}
        assert cut(model, target, graph) == pytest.approx(expected, abs=0.05)
    # The transitions may shrink to what then comes in.
    target = {"dense?.*.conv": 3, "transition1.conv": 16 + 12 * 3, "transition2.conv": 16 + 24 * 3}
    assert cut(model, target, graph) == pytest.approx(91.0, abs=0.05)


def test_resnet50_whose_inner_layers_shrink():
    model = torchvision.models.resnet50()
    graph = trace(model, torch.zeros(1, 3, 224, 224))
    assert graph.macs() == 4_089_184_256
    for share, expected in ((0.7, 35.7), (0.5, 55.4)):
        target = {"layer?.?.conv1": share, "layer?.?.conv2": share}
        assert cut(model, target, graph) == pytest.approx(expected, abs=0.05)
