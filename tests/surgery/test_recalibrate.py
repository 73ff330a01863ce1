"""Statistics of batch normalisation are those of the batches, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netslim.errors import ArgumentError
from netslim.surgery.compensation.batch_norm import recalibrate


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64) * 2 + 1
        for _ in range(count)
    ]


def network(**kwargs):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3, **kwargs), nn.Dropout(0.5), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
    ).double()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_the_average_over_the_batches(momentum):
    model, data = network(momentum=momentum), batches()
    model[0].running_mean.fill_(100)
    assert recalibrate(model, [(x, torch.zeros(8)) for x in data]) is model
    means = torch.stack([x.mean((0, 2, 3)) for x in data]).mean(0)
    variances = torch.stack([x.var((0, 2, 3)) for x in data]).mean(0)
    assert torch.allclose(model[0].running_mean, means)
    assert torch.allclose(model[0].running_var, variances)
    assert model[0].num_batches_tracked == 3
    assert model[0].momentum == momentum
    inner = [
        model[2](nn.functional.batch_norm(x, None, None, training=True)) for x in data
    ]  # dropout is off
    assert torch.allclose(
        model[3].running_mean, torch.stack([y.mean((0, 2, 3)) for y in inner]).mean(0)
    )


def test_modes_weights_and_gradients_stay():
    model = network()
    model[0].eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    recalibrate(model, batches())
    assert [m.training for m in model] == [False, True, True, True]
    assert all(
        torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters()
    )


def test_a_layer_no_batch_reaches_keeps_its_statistics():
    model = network()
    model.idle = nn.BatchNorm1d(5)
    model.idle.running_mean.fill_(7)
    model.forward = nn.Sequential(*list(model)[:4]).forward
    recalibrate(model, batches())
    assert model.idle.running_mean.eq(7).all()
    assert model[0].running_mean.ne(0).all()


def test_an_error_leaves_everything_as_it_was():
    model = network()
    model[0].running_mean.fill_(7)
    with pytest.raises(ArgumentError, match="does not run on batch 2"):
        recalibrate(model, [batches(1)[0], torch.zeros(1, 9, 4, 4)])
    assert model[0].running_mean.eq(7).all()
    assert model[0].momentum == 0.1
    assert model[0].num_batches_tracked == 0
    assert model[1].training


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.optim.swa_utils.AveragedModel(m)]
)
def test_wrapped_models(wrap):
    wrapped, data = wrap(network()), batches()
    assert recalibrate(wrapped, data) is wrapped
    assert torch.equal(wrapped.module[0].running_mean, recalibrate(network(), data)[0].running_mean)


def test_nothing_to_recalibrate():
    with pytest.raises(ArgumentError, match="no batch normalisation with running statistics"):
        recalibrate(
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)),
            [torch.zeros(2, 2)],
        )
    with pytest.raises(ArgumentError, match="gives no batch"):
        recalibrate(network(), [])


def test_statistics_that_are_not_finite_are_refused_and_the_old_ones_stay():
    model = network()
    before = {name: b.clone() for name, b in model.named_buffers()}
    with pytest.raises(ArgumentError, match="are not finite"):
        recalibrate(model, [*batches(1), torch.full((8, 3, 4, 4), torch.nan, dtype=torch.float64)])
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
