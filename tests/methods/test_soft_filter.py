"""Soft Filter Pruning: which filters are zeroed and when, that they may come back, and that zeros
can be cut.
"""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from nets import Chain, DenseBlock, Residual
from netslim import Limits, prune, prune_, trace, verify
from netslim.errors import ArgumentError, PlanError, StaleGraphError
from netslim.methods.soft_filter import SoftFilterPruning, cifar_resnet_cut, plan_of_zeros, zeroed
from netslim.models.zoo._preresnet import preresnet
from netslim.models.zoo._resnet import resnet, resnet20, resnet32, resnet56
from netslim.models.zoo._vgg import vgg, vgg16_bn_4096
from netslim.surgery import compensate
from netslim.surgery.compensation.batch_norm import recalibrate
from netslim.surgery.proof.silencing import randomise

PICTURE = torch.zeros(1, 3, 8, 8)


class Filters(nn.Module):
    """Four filters of two weights each, with biases and a BN; a linear layer reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)
        weights = torch.tensor(
            [[3.0, 4.0], [0.0, 4.5], [2.5, -2.5], [9.0, 9.0]]
        )  # L2: 5, 4.5, 3.54, ..; L1: 7, 4.5, 5
        with torch.no_grad():
            self.conv.weight.copy_(weights[:, :, None, None])
            self.conv.bias.fill_(1.0)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def made(model=None, rate=0.5, inputs=PICTURE, **options):
    """(graph, model, method) for a model in training mode."""
    torch.manual_seed(0)
    model = awake(Chain()) if model is None else model
    graph = trace(model, inputs)
    return graph, model.train(), SoftFilterPruning(graph, model, rate, **options)


def zeros(graph, model):
    return {name: int(units.sum()) for name, units in zeroed(graph, model).items()}


def train(model, optimizer, steps, seed=0, size=8, method=None):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 3, size, size, generator=generator)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def awake(model):
    """With shifts above zero, so that ReLU passes gradients back to filters that are zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.5)
    return model


def sgd(model):
    return torch.optim.SGD(
        model.parameters(), lr=0.001, momentum=0.9, nesterov=True, weight_decay=5e-4
    )


# --- which filters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "expected"), [("l2", [1, 2]), ("l1", [1, 2]), ("first", [0, 1])]
)
def test_by_hand(criterion, expected):
    def first(group, tensors):
        return torch.arange(group.size)

    graph, model, method = made(
        Filters(),
        0.5,
        torch.zeros(1, 2, 3, 3),
        criterion=first if criterion == "first" else criterion,
    )
    norm = copy.deepcopy(model.norm.state_dict())
    method.zero()
    assert zeroed(graph, model)["conv"].nonzero().flatten().tolist() == expected
    assert model.conv.bias.tolist() == [0.0 if i in expected else 1.0 for i in range(4)]
    assert all(torch.equal(value, norm[name]) for name, value in model.norm.state_dict().items())
    assert model.conv.weight[3].flatten().tolist() == [9.0, 9.0]


@pytest.mark.parametrize(("criterion", "expected"), [("l2", 2), ("l1", 1)])
def test_the_norms_differ(criterion, expected):
    graph, model, method = made(Filters(), 0.25, torch.zeros(1, 2, 3, 3), criterion=criterion)
    method.zero()
    assert zeroed(graph, model)["conv"].nonzero().flatten().tolist() == [expected]


@pytest.mark.parametrize("criterion", ["l1", "l2", "geometric_median", "random"])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.4, 0.9])
def test_each_group_loses_its_whole_share_and_no_more(criterion, rate):
    graph, model, method = made(
        resnet(8, width=0.5), rate, shortcuts="include", criterion=criterion
    )
    optimizer = sgd(model)
    method.attach(optimizer)
    expected = {g.name: int(g.size * rate) if g.prunable else 0 for g in graph}
    assert zeros(graph, model) == expected
    for _ in range(2):
        train(model, optimizer, 1)
        method.end_epoch()
        method.zero()  # once more changes nothing: zero filters are chosen first
        assert zeros(graph, model) == expected
    assert method.share_zero() == pytest.approx(
        sum(expected.values()) / sum(g.size for g in graph.prunable)
    )


def test_a_share_of_29_percent_of_100_is_29():
    _, _, method = made(nn.Sequential(nn.Conv2d(3, 100, 1), nn.ReLU(), nn.Conv2d(100, 2, 1)), 0.29)
    assert method.counts == {"0": 29}


def test_at_least_one_filter_stays():
    _, _, method = made(rate=1 - 1e-12)
    assert method.counts == {"first.0": 5, "second.0": 4}


def test_shortcuts_are_avoided_or_zeroed_alike_in_all_layers():
    graph, model, method = made(resnet(8, width=0.5, shortcut="B"), 0.5)
    inner = ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]
    assert list(method.counts) == inner
    assert "shortcuts='avoid'" in method.left_alone["conv1"]
    assert "output" in method.left_alone["fc"]
    every = SoftFilterPruning(graph, model, 0.5, shortcuts="include")
    assert set(every.counts) == {*inner, "conv1", "layer2.0.conv2", "layer3.0.conv2"}
    every.zero()
    for a, b in [("conv1", "layer1.0.conv2"), ("layer2.0.conv2", "layer2.0.shortcut.0")]:
        dead = [model.get_submodule(name).weight.flatten(1).abs().sum(1) == 0 for name in (a, b)]
        assert torch.equal(*dead)
        assert int(dead[0].sum()) == len(dead[0]) // 2


def test_projections_are_left_out_on_demand():
    _, _, method = made(
        resnet(8, width=0.5, shortcut="B"), 0.5, shortcuts="include", projections=False
    )
    assert set(method.counts) == {"conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"}
    assert "projection" in method.left_alone["layer2.0.conv2"]
    padded = made(resnet(8, width=0.5, shortcut="A"), 0.5, shortcuts="include", projections=False)[
        2
    ]
    assert "layer2.0.conv2" in padded.counts


def test_a_rate_for_each_layer():
    rates = {"*": 0.25, "layer*": 0.5, "layer3.0.bn1": 0.0, "layer1.0.conv1.weight": 0.75}
    _, _, method = made(resnet(8, width=0.5), rates)
    assert method.counts == {"layer1.0.conv1": 6, "layer2.0.conv1": 8, "layer3.0.conv1": 0}
    _, _, method = made(resnet(8, width=0.5), {"layer2.0.conv1": 0.5})
    assert method.counts == {"layer2.0.conv1": 8}
    assert method.left_alone["layer1.0.conv1"] == "no rate names it"


def test_a_coupled_layer_stands_for_its_group():
    _, _, method = made(
        resnet(8, width=0.5, shortcut="B"), {"layer1.0.conv2": 0.5}, shortcuts="include"
    )
    assert method.counts == {"conv1": 4}


def test_weights_that_are_computed_from_others_are_left_alone():
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))
    model = nn.Sequential(normed, nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    _, _, method = made(model)
    assert list(method.counts) == ["2"]
    assert "computed from others" in method.left_alone["0"]


# --- when -----------------------------------------------------------------------------------------


def test_a_zero_filter_learns_and_may_come_back():
    graph, model, method = made(Filters(), 0.25, torch.zeros(1, 2, 3, 3), criterion="l1")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.attach(optimizer)
    assert zeroed(graph, model)["conv"].tolist() == [False, True, False, False]
    # The second filter learns past the first, which is the weakest at the end of the epoch.
    (
        8 - (model.conv.weight[1] - 6).square().sum() - model.conv.weight[0].abs().sum()
    ).neg().backward()
    assert model.conv.weight.grad[1].abs().min() > 0
    optimizer.step()
    assert not zeroed(graph, model)["conv"].any()
    with torch.no_grad():
        model.conv.weight[0] *= 0.1
    method.end_epoch()
    assert zeroed(graph, model)["conv"].tolist() == [True, False, False, False]
    assert method.returned == 1
    method.end_epoch()
    assert method.returned == 0


@pytest.mark.parametrize(
    "model", [Chain, lambda: randomise(Chain(), seed=3)], ids=["scratch", "trained"]
)
def test_training_brings_every_zero_filter_back_until_the_epoch_ends(model):
    graph, model, method = made(awake(model()))
    optimizer = sgd(model)
    method.attach(optimizer)
    assert zeros(graph, model) == {"first.0": 3, "second.0": 2, "head": 0}
    train(model, optimizer, 2)
    assert sum(zeros(graph, model).values()) == 0
    method.end_epoch()
    assert zeros(graph, model) == {"first.0": 3, "second.0": 2, "head": 0}


@pytest.mark.parametrize(("at_start", "stay"), [(True, True), (False, False)])
def test_from_scratch_filters_that_are_zeroed_before_training_stay_zero(at_start, stay):
    _, model, method = made(Chain())  # BN shifts of zero: nothing passes back through ReLU
    optimizer = sgd(model)
    method.attach(optimizer, at_start=at_start)
    assert bool(method.share_zero()) is at_start
    for _ in range(2):
        train(model, optimizer, 3)
        method.end_epoch()
    train(model, optimizer, 1)
    assert (method.share_zero() == pytest.approx(5 / 11)) is stay


def test_momentum_is_left_alone():
    _, model, method = made()
    optimizer = sgd(model)
    method.attach(optimizer)
    train(model, optimizer, 2)
    before = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    method.end_epoch()
    after = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(map(torch.equal, after, before))


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (9, [5])]
)
def test_every_few_epochs_and_at_the_last(every, expected):
    _, model, method = made(every=every)
    optimizer = sgd(model)
    method.attach(optimizer)
    acted = []
    for epoch in range(1, 6):
        train(model, optimizer, 1, seed=epoch)
        method.end_epoch(last=epoch == 5)
        acted += [epoch] if method.share_zero() else []
    assert acted == expected
    assert method.epoch == 5


def test_finish_zeroes_whatever_the_epoch_and_detaches():
    graph, model, method = made(every=10)
    optimizer = sgd(model)
    method.attach(optimizer, steps_per_epoch=1)
    train(model, optimizer, 3)
    assert method.share_zero() == 0
    assert method.finish() is method
    assert zeros(graph, model) == {"first.0": 3, "second.0": 2, "head": 0}
    train(model, optimizer, 8)
    assert method.epoch == 3


def test_by_itself_after_so_many_steps():
    _, model, method = made()
    optimizer = sgd(model)
    method.attach(optimizer, steps_per_epoch=3)
    seen = []
    for step in range(1, 8):
        train(model, optimizer, 1, seed=step)
        seen += [step] if method.share_zero() else []
    assert seen == [3, 6]
    assert method.epoch == 2
    with pytest.raises(ArgumentError, match=r"leave out end_epoch\(\)"):
        method.end_epoch()
    method.detach(optimizer)
    method.end_epoch()
    assert method.epoch == 3


def test_with_a_closure_and_within_another_optimizer():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    graph, model, method = made()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=2)
    method.attach(Wrapper(optimizer), steps_per_epoch=2)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(8, 3, 8, 8)).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        optimizer.step(closure)
    assert method.epoch == 2
    assert zeros(graph, model) == {"first.0": 3, "second.0": 2, "head": 0}


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_a_step_that_grad_scaler_skips_does_not_count(options):
    _, model, method = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    method.attach(optimizer, steps_per_epoch=1)
    for slope, epochs in [(1.0, 1), (math.inf, 1), (1.0, 2)]:
        optimizer.zero_grad()
        scaler.scale(slope * model(torch.ones(2, 3, 8, 8)).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert method.epoch == epochs


@pytest.mark.parametrize(
    "late", [False, True], ids=["state, then attach", "attach, then state and weights"]
)
def test_interrupted_and_resumed_it_ends_where_it_would_have(late):
    def run(model, optimizer, first, last):
        for step in range(first, last):
            train(model, optimizer, 1, seed=step)

    graph, whole, method = made()
    optimizer = sgd(whole)
    method.attach(optimizer, steps_per_epoch=4)
    run(whole, optimizer, 0, 6)
    saved = pickle.loads(
        pickle.dumps([copy.deepcopy(part.state_dict()) for part in (whole, optimizer, method)])
    )
    run(whole, optimizer, 6, 13)

    other = awake(Chain())
    if not late:
        other.load_state_dict(saved[0])
    again, resumed = sgd(other), SoftFilterPruning(graph, other, 0.5)
    if late:
        resumed.attach(again, steps_per_epoch=4)
    resumed.load_state_dict(saved[2])
    if late:
        other.load_state_dict(saved[0])
    else:
        resumed.attach(again, steps_per_epoch=4)
    again.load_state_dict(saved[1])
    run(other, again, 6, 13)
    assert (
        (resumed.epoch, resumed.returned) == (method.epoch, method.returned) == (3, method.returned)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_wrapped_models_and_copies():
    graph, model, _ = made()
    method = SoftFilterPruning(graph, nn.DataParallel(model), 0.5)
    method.attach(sgd(model), steps_per_epoch=1)
    assert zeros(graph, nn.DataParallel(model)) == {"first.0": 3, "second.0": 2, "head": 0}
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    train(twin, sgd(twin), 1)
    assert method.epoch == 0
    assert zeros(graph, twin)["first.0"] == 0


def test_lightning(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    graph, model, method = made()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def training_step(self, batch, _):
            return self.net(batch).square().mean()

        def configure_optimizers(self):
            optimizer = sgd(self.net)
            method.attach(optimizer, steps_per_epoch=2)
            return optimizer

    loader = torch.utils.data.DataLoader(torch.randn(8, 3, 8, 8), batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers and the like
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Module(), loader)
    assert method.epoch == 2
    assert zeros(graph, model) == {"first.0": 3, "second.0": 2, "head": 0}


# --- the cut --------------------------------------------------------------------------------------


def torchvision_resnet50():
    from torchvision.models import resnet50

    return resnet50(weights=None, num_classes=5, width_per_group=16)


NETWORKS = {
    "resnet20 A": (lambda: resnet20(width=0.25), 8),
    "resnet20 B": (lambda: resnet20(width=0.25, shortcut="B"), 8),
    "preresnet20": (lambda: preresnet(20, width=0.25), 8),
    "vgg": (lambda: vgg([8, 8, "M", 12], head=(9,), conv_bias=True), 8),
    "resnet50": (torchvision_resnet50, 32),
    "dense block": (DenseBlock, 8),
    "residual": (Residual, 8),
}


@pytest.mark.parametrize("shortcuts", ["avoid", "include"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_small_model_equals_the_big_one(name, shortcuts):
    build, size = NETWORKS[name]
    torch.manual_seed(0)
    model = randomise(build().double(), seed=1).eval()
    graph = trace(model, torch.zeros(1, 3, size, size, dtype=torch.double))
    method = SoftFilterPruning(graph, model, 0.5, shortcuts=shortcuts)
    x = torch.randn(2, 3, size, size, dtype=torch.double)
    with torch.no_grad():
        method.zero()
        big, plan = model(x), method.plan()
        lost = (prune(model, plan)(x) - big).abs().max() / big.abs().max()
        method.finish(constants="zero")
        big, small = model(x), prune(model, plan)
        gap = (small(x) - big).abs().max() / big.abs().max()
    assert {n: len(cut.removed) for n, cut in plan.groups.items()} == {
        n: c for n, c in method.counts.items() if c
    }
    assert gap < 1e-10
    assert lost > 1e-3  # what zero filters emit after their BN is not nothing
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_trained_small_model_is_proved_and_equals_the_big_one():
    graph, model, method = made(resnet(8, width=0.5), 0.4, shortcuts="include")
    optimizer = sgd(model)
    method.attach(optimizer, steps_per_epoch=3)
    train(model, optimizer, 7)
    small = prune(model, plan := method.finish(constants="zero").plan())
    assert verify(model, small, plan, PICTURE, graph=graph).deviation < 1e-10
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(small.eval()(x), model.eval()(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_folded_constants_make_the_small_model_equal_the_big_one(padding, settled):
    """Whether the running means are those of zero filters already or not."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=padding, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    _, model, method = made(randomise(model.double(), seed=1), inputs=PICTURE.double())
    batches = [torch.randn(8, 3, 8, 8, dtype=torch.double)]
    plan = method.finish().plan()
    if settled:
        recalibrate(model, batches)
    big = model.eval()(batches[0])
    folding = compensate(model, plan, batches, "constant")
    dropped, folded = prune(model, plan)(batches[0]), prune(folding.model, folding.plan)(batches[0])
    lost, gap = ((out - big).abs().max().item() for out in (dropped, folded))
    if padding:  # at the border less of the constant is read: told by the spread
        assert gap < lost
        assert folding.moved[0].spread > 0.1
    else:
        assert lost > 0.1
        assert gap < 1e-10


def test_a_bn_without_scale_and_shift_falls_silent_too():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.Conv2d(6, 2, 1)
    ).double()
    _, model, method = made(randomise(model), inputs=PICTURE.double())
    method.finish(constants="zero")
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    torch.testing.assert_close(prune(model, method.plan()).eval()(x), model.eval()(x))


def test_the_plan_holds_the_zero_filters_and_nothing_else():
    graph, model, method = made()
    method.zero()
    plan = method.plan()
    for name, units in zeroed(graph, model).items():
        removed = plan.groups[name].removed if name in plan.groups else ()
        assert units.nonzero().flatten().tolist() == list(removed)
    with torch.no_grad():
        model.first[0].weight[plan.groups["first.0"].removed[0]] = 1e-20
    assert len(method.plan().groups["first.0"].removed) == 2


def test_limits_of_the_plan():
    _, _, method = made(vgg([16, "M", 16]), 0.4)
    method.zero()
    assert [len(cut.kept) for cut in method.plan().groups.values()] == [10, 10]
    assert [len(cut.kept) for cut in method.plan(limits=Limits(round_to=8)).groups.values()] == [
        8,
        8,
    ]
    with pytest.raises(PlanError, match=r"6 should go; .*max_cut=0.25 allows at most 4"):
        method.plan(limits=Limits(max_cut=0.25))


def test_after_a_reload_the_graph_and_the_weights_are_enough():
    _, model, method = made(resnet(8, width=0.5), 0.3, shortcuts="include")
    method.zero()
    fresh = resnet(8, width=0.5)
    fresh.load_state_dict(model.state_dict())
    assert plan_of_zeros(trace(fresh, PICTURE), fresh).groups == method.plan().groups


def test_of_a_group_that_is_all_zero_one_channel_stays():
    graph, model, _ = made()
    nn.init.zeros_(model.first[0].weight)
    plan = plan_of_zeros(graph, model)
    assert {name: len(cut.kept) for name, cut in plan.groups.items()} == {"first.0": 1}
    prune(model, plan)(PICTURE.expand(2, 3, 8, 8))


def test_the_plan_says_why_other_groups_stay():
    _, _, method = made(resnet(8, width=0.5), {"layer1*": 0.5})
    method.zero()
    text = method.plan().explain()
    assert "layer2.0.conv1 stays: no rate names it" in text
    assert "conv1 stays: the outputs of several layers are added in it" in text


# --- the authors' figures -------------------------------------------------------------------------

STATED = {  # percent at rates 0.1, 0.2, 0.3, 0.4
    20: (15.2, 29.3, 42.2, 54.0),
    32: (14.9, 28.8, 41.5, 53.2),
    56: (14.7, 28.4, 41.1, 52.6),
    110: (14.6, 28.2, 40.8, 52.3),
}


@pytest.mark.parametrize("depth", STATED)
def test_the_stated_cut(depth):
    found = tuple(round(100 * cifar_resnet_cut(depth, rate), 1) for rate in (0.1, 0.2, 0.3, 0.4))
    assert found == STATED[depth]
    assert cifar_resnet_cut(depth, 0) == 0


@pytest.mark.parametrize(
    ("network", "shortcuts", "expected"),
    [
        (resnet20, "avoid", 27.2),
        (resnet20, "include", 45.7),
        (resnet32, "avoid", 27.4),
        (resnet32, "include", 45.9),
        (resnet56, "avoid", 27.5),
        (resnet56, "include", 46.0),
    ],
)
def test_what_can_be_cut_at_30_percent(network, shortcuts, expected):
    graph, _, method = made(network(), 0.3, torch.zeros(1, 3, 32, 32), shortcuts=shortcuts)
    method.zero()
    kept = {
        graph.number(n): np.isin(np.arange(c.size), c.kept) for n, c in method.plan().groups.items()
    }
    assert round(100 * (1 - graph.macs(kept) / graph.macs()), 1) == expected


def test_an_eighth_of_the_convolutions_of_vgg16():
    graph, model, method = made(vgg16_bn_4096(), {"features.*": 0.125}, torch.zeros(1, 3, 32, 32))
    method.zero()
    kept = {
        graph.number(n): np.isin(np.arange(c.size), c.kept) for n, c in method.plan().groups.items()
    }
    assert graph.params(kept) == 29_935_362
    assert model.classifier[0].weight.abs().sum(1).min() > 0


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "options", "message"),
    [
        (1.0, {}, r"rate must be at least 0 and below 1, not 1.0"),
        (-0.1, {}, r"not -0.1"),
        (True, {}, r"rate must be a number or a Mapping, got the bool True"),
        ("0.3", {}, r"got the str '0.3'"),
        (math.nan, {}, r"not nan"),
        ({"first.0": 2}, {}, r"the rate of 'first.0' must be .* not 2"),
        ({"frist.0": 0.5}, {}, r"'frist.0'; did you mean 'first.0'"),
        ({"x*": 0.5}, {}, r"finds nothing to act on: 'x\*'"),
        ({}, {}, r"the mapping of rates is empty"),
        (0.5, {"every": 0}, r"every must be a whole number of 1 or more, not 0"),
        (0.5, {"every": 1.5}, r"every must be a whole number, got the float 1.5"),
        (0.5, {"shortcuts": "skip"}, r"shortcuts must be 'include' or 'avoid', got 'skip'"),
        (0.5, {"criterion": "l3"}, r"unknown criterion 'l3'; did you mean"),
    ],
)
def test_bad_options(rate, options, message):
    with pytest.raises(ArgumentError, match=message):
        made(rate=rate, **options)


@pytest.mark.parametrize(
    ("rate", "options", "message"),
    [
        ({"head": 0.5}, {}, r"'head' stays: it is an output"),
        (0.1, {}, r"rate=0.1 zeroes no filter: "),
    ],
)
def test_rates_that_zero_nothing(rate, options, message):
    with pytest.raises(PlanError, match=message):
        made(rate=rate, **options)


def test_finding_nothing_to_act_on_is_an_error():
    with pytest.raises(ArgumentError, match=r"every group is frozen"):
        made(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(PlanError, match=r"SoftFilterPruning finds nothing to act on: '\*' stays: "):
        made(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 3, 1)))
    with pytest.raises(PlanError, match=r"'conv1' stays: .*shortcuts='avoid'"):
        made(resnet(8, width=0.5), {"conv1": 0.5})


def test_an_optimizer_of_another_model_and_attaching_twice():
    _, model, method = made()
    with pytest.raises(
        ArgumentError, match=r"SGD holds none of the filters that SoftFilterPruning zeroes"
    ):
        method.attach(sgd(Chain()))
    with pytest.raises(
        ArgumentError, match=r"steps_per_epoch must be a whole number of 1 or more, not 0"
    ):
        method.attach(sgd(model), steps_per_epoch=0)
    optimizer = sgd(model)
    method.attach(optimizer, steps_per_epoch=2)
    with pytest.raises(ArgumentError, match=r"attached to this SGD already"):
        method.attach(optimizer)
    with pytest.raises(ArgumentError, match=r"another optimizer counts the epochs"):
        method.attach(sgd(model), steps_per_epoch=2)
    with pytest.raises(ArgumentError, match=r"not attached to this SGD"):
        method.detach(sgd(model))
    assert repr(method) == "SoftFilterPruning(groups=2, filters=5, every=1, epoch=0)"


def test_a_plan_without_zeros_and_a_wrong_finish():
    graph, model, method = made()
    with pytest.raises(PlanError, match=r"no filter is zero, so there is nothing to remove"):
        method.plan()
    with pytest.raises(ArgumentError, match=r"constants must be 'keep' or 'zero', not 'fold'"):
        method.finish(constants="fold")
    assert sum(zeros(graph, model).values()) == 0


def test_a_model_that_changed_or_diverged():
    _, model, method = made()
    with torch.no_grad():
        model.first[0].weight[0] = math.nan
    with pytest.raises(
        ArgumentError, match=r"group 'first.0' are not finite; did training diverge"
    ):
        method.zero()
    _, model, method = made()
    method.zero()
    prune_(model, method.plan())
    with pytest.raises(StaleGraphError):
        method.zero()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("step"), r"not a state of SoftFilterPruning \(KeyError: 'step'"),
        (lambda s: s.update(epoch="x"), r"not a state of SoftFilterPruning \(ValueError"),
        (lambda s: s["chosen"].pop("first.0"), r"acts on other groups; they differ in first.0"),
        (
            lambda s: s["chosen"].update({"first.0": [99]}),
            r"not a state of SoftFilterPruning \(IndexError",
        ),
    ],
)
def test_a_damaged_state(change, message):
    _, _, method = made()
    method.zero()
    state = method.state_dict()
    change(state)
    with pytest.raises(ArgumentError, match=message):
        method.load_state_dict(state)


@pytest.mark.parametrize(("depth", "rate"), [(21, 0.3), (2, 0.3), (20, 1.0)])
def test_the_stated_cut_of_what_is_no_cifar_resnet(depth, rate):
    with pytest.raises(ArgumentError):
        cifar_resnet_cut(depth, rate)
