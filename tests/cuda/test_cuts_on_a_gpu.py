"""Traces, cuts, proofs and measures where the network is on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import netslim
from netslim import models
from netslim.models import zoo

pytestmark = pytest.mark.cuda

NETWORKS = {
    "vgg": lambda: zoo.vgg11(width=0.25),
    "resnet": lambda: zoo.resnet20(width=0.5),
    "densenet": lambda: models.build("zoo:densenet", depth=13),
}


@pytest.fixture
def images(gpu):
    return torch.randn(4, 3, 32, 32, device=gpu)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_cut_and_proved_where_it_is(gpu, images, name):
    torch.manual_seed(0)
    model = NETWORKS[name]().to(gpu)
    graph = netslim.trace(model, images)
    on_cpu = netslim.trace(NETWORKS[name](), images.cpu())
    assert graph.fingerprint == on_cpu.fingerprint
    plan = netslim.select(graph, netslim.score(graph, model, "l2"), netslim.Budget(cut_macs=0.5))
    small = netslim.prune(model, plan)
    assert {tensor.device.type for tensor in small.state_dict().values()} == {gpu.type}
    assert netslim.verify(model, small, plan, images).deviation < 1e-10
    assert netslim.cost(small, images).macs <= 0.5 * netslim.cost(model, images).macs


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_cut_in_place_leaves_what_fused_optimizers_need(gpu, images, layout):
    """One layout for a weight, its gradient and its momentum."""
    torch.manual_seed(0)
    model = zoo.resnet20(width=0.5).to(gpu, memory_format=layout)
    images = images.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.arange(4, device=gpu)).backward()
        optimizer.step()

    step()
    graph = netslim.trace(model, images)
    plan = netslim.select(graph, netslim.score(graph, model, "l2"), netslim.Budget(cut_macs=0.5))
    netslim.prune_(model, plan, optimizer=optimizer)
    step()
    for parameter in model.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].stride() == parameter.stride()


@pytest.mark.parametrize("criterion", ["taylor", "obs"])
def test_slim_with_data_of_a_gpu(gpu, images, criterion):
    torch.manual_seed(0)
    model = zoo.resnet20(width=0.5).to(gpu)
    batches = [(images, torch.arange(4, device=gpu))] * 2
    small = netslim.slim(
        model, images, budget=netslim.Budget(cut_macs=0.5), criterion=criterion, batches=batches
    )
    assert netslim.cost(small, images).macs <= 0.5 * netslim.cost(model, images).macs
    assert torch.isfinite(small(images)).all()


def test_a_file_goes_from_one_device_to_the_other(gpu, images, tmp_path):
    torch.manual_seed(0)
    model = zoo.vgg11(width=0.25).to(gpu).eval()
    small = netslim.slim(model, images, budget=netslim.Budget(cut_channels=0.5)).eval()
    netslim.save(small, tmp_path / "small.safetensors")
    on_cpu = netslim.load(zoo.vgg11(width=0.25), tmp_path / "small.safetensors").eval()
    there = netslim.load(zoo.vgg11(width=0.25).to(gpu), tmp_path / "small.safetensors").eval()
    with torch.no_grad():
        torch.testing.assert_close(on_cpu(images.cpu()), small(images).cpu(), rtol=1e-2, atol=1e-2)
        assert torch.equal(there(images), small(images))


def test_a_smaller_network_takes_less_time_and_memory(gpu):
    torch.manual_seed(0)
    batch, width = (512, 1.0) if gpu.type == "cuda" else (32, 0.25)
    images = torch.randn(batch, 3, 32, 32, device=gpu)
    model = zoo.vgg16(width=width).to(gpu)
    small = netslim.slim(model, images[:2], budget=netslim.Budget(cut_channels=0.7, cut_macs=0.7))
    times = netslim.latency({"before": model, "after": small}, images, repeats=5)
    assert times["after"].device.startswith(gpu.type)
    assert times["after"].median_ms < times["before"].median_ms
    if gpu.type == "cuda":
        assert peak(small, images, gpu) < peak(model, images, gpu)


def peak(model, images, gpu):
    """Bytes of a step beyond what lies there before."""
    before = torch.cuda.memory_allocated(gpu)
    torch.cuda.reset_peak_memory_stats(gpu)
    model.train()(images).sum().backward()
    most = torch.cuda.max_memory_allocated(gpu) - before
    model.zero_grad()
    return most


def test_layers_are_fitted_in_order_on_the_stream_of_the_caller(gpu, images):
    """The runs that wait for each other are threads, each with a current device and stream."""
    torch.manual_seed(0)
    model = NETWORKS["resnet"]().to(gpu).double().eval()
    images = images.double()
    graph = netslim.trace(model, images)
    plan = netslim.select(graph, netslim.score(graph, model, "l2"), netslim.Budget(cut_macs=0.5))
    batches = [images, images.flip(3), images.flip(2)]
    there = netslim.surgery.compensate(model, plan, batches, "sequential").model
    with torch.cuda.stream(torch.cuda.Stream()):
        aside = netslim.surgery.compensate(model, plan, batches, "sequential").model
    here = [batch.cpu() for batch in batches]
    on_cpu = netslim.surgery.compensate(model.cpu(), plan, here, "sequential").model
    for other in (aside, on_cpu):
        for one, two in zip(there.parameters(), other.parameters(), strict=True):
            assert torch.allclose(one.cpu(), two.cpu(), atol=1e-6)
