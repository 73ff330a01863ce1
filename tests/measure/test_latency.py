"""Latency: what is timed, what comes out, and that nothing about the models changes."""

from __future__ import annotations

import gc
import importlib
import shutil
import sys
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import netslim
from netslim._support import packages
from netslim.errors import ArgumentError, TraceError
from netslim.measure.backends import prepared
from netslim.measure.latency import Latency, latency, timed
from netslim.models.export import onnx_bytes
from netslim.models.onnx_session import Session

latency_module = importlib.import_module(
    "netslim.measure.latency"
)  # `netslim.latency` is the function


class Sleeper(nn.Module):
    """Takes a known time, and counts its calls."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        seen: list[bool] = []  # not an attribute, which would be put back
        self.note, self.calls = seen.append, lambda: seen

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.note(self.training or torch.is_grad_enabled())
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
    assert latency(Sleeper(), x, repeats=5, budget_seconds=1e9) == Latency(
        3000.0, 2000.0, 4000.0, 5, "cpu"
    )


def test_rounds_are_interleaved_and_alternate(monkeypatch, x):
    order: list[str] = []
    monkeypatch.setattr(
        latency_module._Run, "sample", lambda run: (order.append(run.name), run.samples.append(1.0))
    )
    latency({"a": Sleeper(), "b": Sleeper(), "c": Sleeper()}, x, repeats=5)
    assert "".join(order) == "abccbaabccbaabc"


def test_short_calls_are_batched_until_a_sample_lasts_a_millisecond(x):
    quick, slow = Sleeper(), Sleeper(0.002)
    latency({"quick": quick, "slow": slow}, x, repeats=5, warmup=1)
    assert len(slow.calls()) == 3 + 5  # one sample is one call
    assert len(quick.calls()) > 3 + 5  # how many more depends on the machine


def test_the_time_budget_ends_the_rounds_but_not_below_five(x):
    assert latency(Sleeper(0.005), x, repeats=1000, budget_seconds=1e-6).repeats == 5
    told: list[int] = []
    found = timed(
        {"sleep": lambda: time.sleep(0.005)},
        repeats=1000,
        budget_seconds=0.1,
        progress=lambda what, done, total: told.append(done),
    )
    assert 5 < found["sleep"].repeats < 30
    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] > 900  # of 1000 rounds, as far as the time went


def test_runs_in_evaluation_mode_without_gradients_and_restores_every_flag(x):
    model = nn.Sequential(Sleeper(), nn.BatchNorm1d(3), nn.Sequential(nn.Dropout()))
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    latency(model, x, repeats=5)
    assert not any(model[0].calls())
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


@pytest.mark.cuda
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
        ({"threads": 0}, "threads must be 1 to"),
    ],
)
def test_options_out_of_range(x, options, message):
    with pytest.raises(ArgumentError, match=message):
        latency(Sleeper(), x, **options)


def test_a_device_that_is_not_there(x):
    with pytest.raises(ArgumentError, match="device 'cuda:99' cannot be used here"):
        latency(Sleeper(), x, device="cuda:99")


def test_no_model(x):
    with pytest.raises(ArgumentError, match="no model given"):
        latency({}, x)


def test_plain_calls_are_timed_in_turn_too():
    order: list[str] = []

    def call(name: str) -> Callable[[], None]:
        return lambda: (order.append(name), time.sleep(0.002))[1]

    found = timed({"a": call("a"), "b": call("b")}, repeats=5, warmup=1)
    assert "".join(order) == "aabb" + "abba" * 2 + "ab"
    assert {(f.repeats, f.device, f.backend) for f in found.values()} == {(5, "cpu", "eager")}
    assert all(f.low_ms >= 2.0 for f in found.values())


def test_a_call_that_fails_is_named():
    with pytest.raises(TraceError, match="'b' failed: ZeroDivisionError"):
        timed({"a": lambda: None, "b": lambda: 1 / 0})
    with pytest.raises(ArgumentError, match="nothing to time"):
        timed({})


# ---------------------------------------------------------------- backends


@pytest.fixture
def net() -> nn.Module:
    """Two layers, in training mode."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def onnxruntime():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="looks for g++")
def test_compiled_it_computes_the_same_and_the_model_stays_as_it_was(net, x):
    attributes = [set(vars(m)) for m in net.modules()]
    with prepared(net, x, "compile") as ready, torch.no_grad():
        assert ready.call is not net
        assert ready.backend == "compile"
        torch.testing.assert_close(ready(), net(x))
        assert timed({"net": ready}, repeats=5)["net"].backend == "compile"
    assert [set(vars(m)) for m in net.modules()] == attributes
    assert net.training
    assert not hasattr(net, "_orig_mod")


def test_each_model_is_compiled_for_itself_and_for_fixed_shapes(net, x, monkeypatch):
    """All models of a class share the code of its forward, which keeps what was compiled: 8 and no
    more by default.
    """
    seen = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: (seen.append((f, options)), f)[1])
    found = latency({"a": net, "b": net}, x, backend="compile", repeats=5)
    assert [f.backend for f in found.values()] == ["compile"] * 2
    (a, options), (b, _) = seen
    assert a.__code__ is not b.__code__
    assert options == {"dynamic": False}


def test_what_cannot_be_compiled_is_said(net, x, monkeypatch):
    def compile(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found\nin a long report")

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(
        ArgumentError,
        match=r"failed on 'model': No working C\+\+ compiler found. It needs g\+\+ or clang;",
    ):
        latency(net, x, backend="compile")
    assert net.training


def test_onnxruntime_computes_the_same_with_inputs_that_are_bound(net, x, onnxruntime):
    with prepared(net, {"input": x}, "onnxruntime") as ready, torch.no_grad():
        binding = ready()[0]
        torch.testing.assert_close(torch.from_numpy(binding.copy_outputs_to_cpu()[0]), net(x))
        found = timed({"net": ready}, repeats=5)["net"]
    assert (found.device, found.backend) == ("cpu", "onnxruntime")
    assert str(found).endswith("on cpu, onnxruntime")
    assert net.training


def test_in_int8_it_computes_nearly_the_same_in_whole_numbers(net, x, onnxruntime):
    with prepared(net, x, "onnxruntime-int8") as ready, torch.no_grad():
        expected = net(x)
        (found,) = ready()[0].copy_outputs_to_cpu()
    assert (ready.device.type, ready.backend) == ("cpu", "onnxruntime-int8")
    off = torch.from_numpy(found) - expected
    assert 0 < off.abs().max() < 0.05 * expected.abs().max()


def test_onnxruntime_takes_as_many_threads_as_torch(net, x, onnxruntime):
    with latency_module.using_threads(3):
        options = Session(onnx_bytes(net, x), torch.device("cpu")).session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)


def test_a_missing_package_is_named(net, x, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install 'netslim\[onnx\]'"):
        latency({"net": net}, x, backend="onnxruntime")
    assert net.training


def test_onnxruntime_without_cuda_says_what_to_install(net, x, onnxruntime):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(netslim.errors.ExportError, match="pip install onnxruntime-gpu"):
        Session(onnx_bytes(net, x), torch.device("cuda"))


@pytest.mark.parametrize("backend", ["compile", "onnxruntime"])
def test_a_model_that_does_not_run_is_its_own_fault(backend, x):
    with pytest.raises(TraceError, match="'broken' did not run on the example inputs"):
        latency({"broken": nn.Linear(7, 1)}, x, backend=backend)


def test_an_unknown_backend(net, x):
    with pytest.raises(
        ArgumentError, match="no backend 'tensorrt'; choose one of eager, compile, onnxruntime"
    ):
        latency(net, x, backend="tensorrt")
