"""Latency: what is timed, what comes out, and that nothing about the models changes."""

from __future__ import annotations

import gc
import importlib
import time

import pytest
import torch
from torch import nn

from netslim.errors import PlanError, TraceError
from netslim.latency import Latency, latency

latency_module = importlib.import_module("netslim.latency")  # `netslim.latency` is the function


class Sleeper(nn.Module):
    """Takes a known time, and counts its calls."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.calls: list[bool] = []

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.calls.append(self.training or torch.is_grad_enabled())
        time.sleep(self.seconds)
        return x * scale


@pytest.fixture
def x() -> torch.Tensor:
    return torch.ones(2, 3)


def test_one_model_gives_one_result_and_a_dict_gives_a_dict(x):
    one = latency(Sleeper(), x, repeats=5)
    several = latency({"a": Sleeper(), "b": Sleeper()}, x, repeats=5)
    assert isinstance(one, Latency)
    assert list(several) == ["a", "b"]
    assert one.repeats == several["a"].repeats == several["b"].repeats == 5
    assert one.device == "cpu"


def test_a_known_time_is_measured_in_milliseconds(x):
    found = latency({"2 ms": Sleeper(0.002), "6 ms": Sleeper(0.006)}, x, repeats=7)
    assert found["2 ms"].low_ms >= 2.0
    assert found["6 ms"].low_ms >= 6.0
    assert found["2 ms"].median_ms < found["6 ms"].median_ms < 60.0


def test_quartiles_of_known_samples(monkeypatch, x):
    clock = iter([9.0, *range(1, 6)])  # one discarded warm-up of 9 s, then 1, 2, 3, 4 and 5 s
    monkeypatch.setattr(latency_module._Run, "warm_up", lambda run, calls: run._time())
    monkeypatch.setattr(latency_module._Run, "_time", lambda run: float(next(clock)))
    assert latency(Sleeper(), x, repeats=5, budget_seconds=1e9) == Latency(3000.0, 2000.0, 4000.0, 5, "cpu")


def test_rounds_are_interleaved_and_alternate(monkeypatch, x):
    order: list[str] = []
    monkeypatch.setattr(latency_module._Run, "sample", lambda run: (order.append(run.name), run.samples.append(1.0)))
    latency({"a": Sleeper(), "b": Sleeper(), "c": Sleeper()}, x, repeats=5)
    assert "".join(order) == "abccbaabccbaabc"


def test_short_calls_are_batched_until_a_sample_lasts_a_millisecond(x):
    quick, slow = Sleeper(), Sleeper(0.002)
    latency({"quick": quick, "slow": slow}, x, repeats=5, warmup=1)
    assert len(slow.calls) == 2 + 5  # one sample is one call
    assert len(quick.calls) > 2 + 5  # how many more depends on the machine


def test_the_time_budget_ends_the_rounds_but_not_below_five(x):
    assert latency(Sleeper(0.005), x, repeats=1000, budget_seconds=1e-6).repeats == 5
    assert 5 < latency(Sleeper(0.005), x, repeats=1000, budget_seconds=0.1).repeats < 30


def test_runs_in_evaluation_mode_without_gradients_and_restores_every_flag(x):
    model = nn.Sequential(Sleeper(), nn.BatchNorm1d(3), nn.Sequential(nn.Dropout()))
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    latency(model, x, repeats=5)
    assert not any(model[0].calls)
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.is_grad_enabled()


def test_positional_and_keyword_inputs(x):
    assert latency(Sleeper(), (x, 2.0), repeats=5).repeats == 5
    assert latency(Sleeper(), {"x": x, "scale": 2.0}, repeats=5).repeats == 5


def test_threads_and_garbage_collection_are_put_back(x):
    before = torch.get_num_threads()
    seen: list[tuple[int, bool]] = []
    model = nn.Identity()
    model.register_forward_hook(lambda *_: seen.append((torch.get_num_threads(), gc.isenabled())))
    latency(model, x, repeats=5, threads=before + 1)
    assert {threads for threads, _ in seen} == {before + 1}
    assert seen[-1][1] is False
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_flags_are_restored_when_a_model_fails(x):
    model = nn.Sequential(nn.Linear(7, 1))
    with pytest.raises(TraceError, match="'broken' did not run on the example inputs"):
        latency({"broken": model}, x, repeats=5)
    assert model.training
    assert model[0].training
    assert gc.isenabled()


def test_another_device_times_a_copy(x):
    model = nn.Linear(3, 1)
    assert latency(model, x, repeats=5, device="meta").device == "meta"
    assert model.weight.device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_waits_for_the_kernels():
    model, x = nn.Linear(4096, 4096, bias=False).cuda(), torch.ones(4096, 4096, device="cuda")
    found = latency(model, x, repeats=5)
    assert found.device.startswith("cuda")
    assert found.median_ms > 0.1  # 137 GFLOP; launching alone takes microseconds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 4}, "repeats=4; at least 5"),
        ({"budget_seconds": 0}, "budget_seconds=0; give a positive number"),
        ({"warmup": 0}, "warmup=0; at least 1"),
        ({"threads": 0}, "threads=0; give 1 or more"),
    ],
)
def test_options_out_of_range(x, options, message):
    with pytest.raises(PlanError, match=message):
        latency(Sleeper(), x, **options)


def test_a_device_that_is_not_there(x):
    with pytest.raises(PlanError, match="device 'cuda:99' cannot be used here"):
        latency(Sleeper(), x, device="cuda:99")


def test_no_model(x):
    with pytest.raises(PlanError, match="no model given"):
        latency({}, x)
