"""The criterion obs: what the layers behind lose, compared with least squares done at length."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import Chain, DenseBlock, Residual
from netslim import Budget, score, select, slim, trace, verify
from netslim.errors import ArgumentError
from netslim.models import zoo
from netslim.selection import Scoring
from netslim.surgery.proof.silencing import randomise


def ridged(ridge: float) -> Scoring:
    return Scoring("obs", arguments={"ridge": ridge})


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """4 hidden units behind a fixed layer, read by two outputs."""

    def __init__(self, made: Tensor, read: Tensor) -> None:
        super().__init__()
        self.make, self.read = (
            nn.Linear(made.shape[1], len(made)),
            nn.Linear(read.shape[1], len(read)),
        )
        with torch.no_grad():
            self.make.weight.copy_(made)
            self.read.weight.copy_(read)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.make(x))


def lost(x: Tensor, weight: Tensor, stays: list[int]) -> float:
    """Share of the variance of ``x @ weight.T`` that the best combination of the columns that stay
    leaves.
    """
    x = (x - x.mean(0)).double()
    wanted = x @ weight.double().T
    found = (
        torch.linalg.lstsq(x[:, stays], wanted).solution
        if stays
        else wanted.new_zeros(0, wanted.shape[1])
    )
    return float((wanted - x[:, stays] @ found).square().sum() / wanted.square().sum())


def test_independent_channels_by_hand():
    """Inputs of variance 1, 4, 9, 16 times weights: what goes is variance * |w|^2 of 30 in all."""
    x = torch.tensor(list(itertools.product([-1.0, 1], repeat=4))) * torch.tensor([1.0, 2, 3, 4])
    model = Linear(torch.eye(4), torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0]]))
    graph = trace(model, x)
    scores = score(graph, model, ridged(1e-12), batches=[x])
    torch.testing.assert_close(
        scores["make"], torch.tensor([1.0, 4, 9, 16], dtype=torch.float64) / 30
    )


def test_of_two_equal_channels_one_is_worth_nothing():
    made = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0], [0.5, 0.5]])
    model = Linear(made, torch.tensor([[5.0, 5, 1, 0], [5, 5, 0, 1]]))
    x = data(64, 2)
    scores = score(trace(model, x), model, "obs", batches=[x])["make"]
    order = scores.argsort()
    assert (
        scores[order[1]] < 1e-3 < 0.1 < scores[order[3]]
    )  # two of the four follow from the others
    assert not {0, 1} <= set(order[2:].tolist())


@pytest.mark.parametrize("seed", range(4))
def test_each_removal_costs_what_least_squares_leave(seed):
    """One after the other, the cheapest first, each time refitted; and the sum of the steps is the
    loss of all.
    """
    model = Linear(data(6, 8, seed=seed), data(3, 6, seed=seed + 10))
    x = data(200, 8, seed=seed + 20)
    hidden = model.make(x).detach()
    halves = [x[:100], x[100:]]
    scores = score(trace(model, x), model, ridged(1e-9), batches=halves)["make"]
    alive = list(range(6))
    least = before = 0.0
    while alive:
        after = {
            u: lost(hidden, model.read.weight.detach(), [k for k in alive if k != u]) for u in alive
        }
        unit = min(after, key=lambda u: after[u])
        least = max(least, after[unit] - before)
        assert float(scores[unit]) == pytest.approx(least, rel=1e-4)
        before = after[unit]
        alive.remove(unit)


def test_maps_read_by_kernels_by_grouped_kernels_and_flattened():
    """One tap, one map place, one group: the same scores as for a linear layer on the same numbers."""
    x, read = data(500, 6, seed=1), data(4, 6, seed=2)
    made = data(6, 6, seed=3)
    wanted = score(trace(Linear(made, read), x), Linear(made, read), "obs", batches=[x])["make"]

    def convolution(weight: Tensor) -> nn.Conv2d:
        layer = nn.Conv2d(weight.shape[1], len(weight), weight.shape[2:])
        with torch.no_grad():
            layer.weight.copy_(weight)
        return layer

    maps = x.t().reshape(6, 20, 25)[None]  # the examples are places of one picture
    plain = nn.Sequential(convolution(made[..., None, None]), convolution(read[..., None, None]))
    torch.testing.assert_close(
        score(trace(plain, maps), plain, "obs", batches=[maps])["0"], wanted, rtol=1e-3, atol=1e-6
    )
    wide = torch.zeros(4, 6, 3, 3)
    wide[:, :, 1, 1] = read
    kernel = nn.Sequential(convolution(made[..., None, None]), convolution(wide))
    torch.testing.assert_close(
        score(trace(kernel, maps), kernel, "obs", batches=[maps])["0"], wanted, rtol=1e-3, atol=1e-6
    )


def test_the_scale_of_a_channel_does_not_matter():
    model = randomise(Chain().eval())
    x = data(16, 3, 8, 8)
    graph = trace(model, x)
    before = score(graph, model, "obs", batches=[x])
    with torch.no_grad():
        model.first[1].weight.mul_(3)
        model.first[1].bias.mul_(3)
        model.second[0].weight.div_(3)
    after = score(graph, model, "obs", batches=[x])
    for name, values in before.items():
        torch.testing.assert_close(after[name], values, rtol=1e-3, atol=1e-7)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up, self.head = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.two(self.stem(x).relu()).relu()).relu()
        return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))


@pytest.mark.parametrize(
    "build", [Chain, Residual, DenseBlock, Grouped, lambda: zoo.resnet(14, width=0.25)]
)
def test_all_ways_of_reading_are_scored_and_rising_with_use(build):
    model = randomise(build().eval())
    x = data(32, 3, 8, 8)
    graph = trace(model, x[:1])
    scores = score(graph, model, "obs", batches=[x])
    assert scores.keys() == {g.name for g in graph.groups if not g.frozen}
    for values in scores.values():
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert values.max() > 0
    plan = select(graph, scores, Budget(cut_macs=0.4), allocation="cost")
    assert plan.removed


def test_a_silent_channel_goes_first():
    model = randomise(Chain().eval())
    with torch.no_grad():
        model.first[1].weight[2] = 0.0  # it still emits a constant, which a bias takes over
        model.first[1].bias[2] = 1.0
    x = data(16, 3, 8, 8)
    scores = score(trace(model, x), model, "obs", batches=[x])["first.0"]
    assert int(scores.argmin()) == 2
    assert scores[2] < 1e-3 * scores.max()  # the ridge


def test_wide_groups_go_several_at_a_time():
    model = Linear(data(300, 40), data(5, 300, seed=1))
    x = data(100, 40, seed=2)
    scores = score(trace(model, x), model, "obs", batches=[x])["make"]
    assert (scores < 1e-3).sum() >= 255  # 300 combinations of 40 numbers
    assert scores.unique().numel() > 20


def test_slim_with_batches_and_nothing_else_loses_little_of_redundant_channels():
    """Every channel is there twice: half of them can go without any change."""
    torch.manual_seed(0)
    single = randomise(Chain().eval())
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 10, 3, padding=1), nn.ReLU()
    )
    model = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4)).eval()
    with torch.no_grad():
        model[0].weight.copy_(single.first[0].weight.repeat(2, 1, 1, 1))
        model[0].bias.copy_(single.first[0].bias.repeat(2))
        model[2].weight.copy_(single.second[0].weight.repeat(2, 2, 1, 1) / 2)
        model[2].bias.copy_(single.second[0].bias.repeat(2))
    x = data(64, 3, 8, 8)
    small = slim(model, x[:1], budget=Budget(cut_channels=0.5), batches=[x])
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(
        p.numel() for p in model.parameters()
    )
    assert (small(x) - model(x)).abs().max() < 2e-3 * model(x).abs().max()
    graph = trace(model, x)
    plain = select(graph, score(graph, model, "l2"), Budget(cut_channels=0.5))
    assert plain.removed == 11
    assert verify(
        model, model, select(graph, score(graph, model, "l2"), per_group={"0": 0}), x
    ).deviation in (
        None,
        0.0,
    )


def test_obs_needs_batches():
    model = Chain()
    with pytest.raises(ArgumentError, match="obs looks at data"):
        score(trace(model, data(1, 3, 8, 8)), model, "obs")


def test_data_that_cannot_be_used_is_named():
    model = Chain().eval()
    graph = trace(model, data(1, 3, 8, 8))
    with pytest.raises(
        ArgumentError, match=r"what '.*weight' reads is not finite on these batches"
    ):
        score(graph, model, "obs", batches=[torch.full((4, 3, 8, 8), torch.nan)])
    batches = [(data(n, 3, 8, 8), torch.zeros(n, dtype=torch.long)) for n in (4, 0)]
    for criterion in ("obs", "taylor", "activation"):
        with pytest.raises(ArgumentError, match="batch 2 of batches= has no examples"):
            score(graph, model, criterion, batches=batches)
        for device in (("meta", "cpu"), ("cpu", "meta")):
            batch = tuple(t.to(where) for t, where in zip(batches[0], device, strict=True))
            with pytest.raises(ArgumentError, match="batch 1 of batches= has no values: it was"):
                score(graph, model, criterion, batches=[batch])
