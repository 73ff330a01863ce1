"""OpenVINO, ExecuTorch and AOTInductor: files that their own readers open, times, and what is said
where they are missing.

The first two are extras, tried where they are installed. The last compiles for half a minute, and
is tried where NETSLIM_TRY_AOT=1 asks for it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim._support import packages
from netslim.errors import ArgumentError, ExportError
from netslim.models import export as module
from netslim.models.other_files import format_of

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TOLD = {"made by": "a test"}
ENDINGS = {"openvino": "net.xml", "executorch": "net.pte", "aotinductor": "net.aoti.pt2"}
FIXED = {"executorch": {"dynamic_batch": False}}


def network() -> nn.Module:
    torch.manual_seed(0)
    model = netslim.zoo.vgg(layers=[8, "M", 16], in_channels=1, num_classes=3)
    return netslim.slim(model, X, criterion="l1", budget=netslim.Budget(cut_channels=0.5)).eval()


def uncut() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()


def there(runtime: str) -> None:
    """Skip the test where a runtime cannot be tried."""
    if runtime != "aotinductor":
        pytest.importorskip(runtime)
    elif os.environ.get("NETSLIM_TRY_AOT") != "1":
        pytest.skip("compiles for half a minute: NETSLIM_TRY_AOT=1")


def opened(runtime: str, path: Path) -> tuple[Any, str]:
    """What the runtime's own reader makes of the file, as a function of images, and its metadata."""
    if runtime == "openvino":
        import openvino

        model = openvino.Core().read_model(path)
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        told = model.get_rt_info(["netslim", "made by"]).astype(str)
        return lambda x: torch.from_numpy(compiled([x.numpy()])[0]), told
    if runtime == "executorch":
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        method, (told,) = program.load_method("forward"), program.load_method("made by").execute([])
        return lambda x: method.execute([x])[0].clone(), told
    package = torch._inductor.aoti_load_package(str(path))
    return package, package.get_metadata()["made by"]


@pytest.mark.parametrize("runtime", ENDINGS)
@pytest.mark.filterwarnings("ignore")  # of the runtimes themselves
def test_the_file_opens_in_its_runtime_and_computes_the_same(runtime, tmp_path):
    there(runtime)
    model, path = network(), tmp_path / ENDINGS[runtime]
    done = netslim.export(model, X, path, metadata=TOLD, **FIXED.get(runtime, {}))
    assert (done.path, done.format) == (path, runtime)
    assert done.size_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert done.deviation < 1e-5
    assert done.batch_sizes == ((2,) if runtime == "executorch" else (1, 2, 4))
    other = torch.randn(2, 1, 8, 8)
    run, told = opened(runtime, path)
    assert told == "a test"
    with torch.no_grad():
        torch.testing.assert_close(run(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", ENDINGS)
@pytest.mark.filterwarnings("ignore")
def test_networks_are_timed_in_it(runtime):
    there(runtime)
    found = netslim.latency(network(), X, backend=runtime, repeats=5)
    assert (found.backend, found.device) == (runtime, "cpu")
    assert 0 < found.median_ms < 100


@pytest.mark.filterwarnings("ignore")
def test_of_two_files_neither_is_left_where_they_compute_something_else(tmp_path, monkeypatch):
    there("openvino")
    model, written = network(), module._openvino_files

    def spoil(*given: Any) -> Any:
        content = written(*given)
        with torch.no_grad():
            next(model.parameters()).mul_(1.1)
        return content

    monkeypatch.setitem(module._WRITERS, "openvino", spoil)
    with pytest.raises(ExportError, match="deviates by"):
        netslim.export(model, X, tmp_path / "net.xml")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "net.bin").touch()
    with pytest.raises(ExportError, match=r"net\.bin exists already"):
        netslim.export(model, X, tmp_path / "net.xml")


def test_endings_name_formats():
    assert {format_of(name): name for name in ENDINGS.values()} == ENDINGS
    assert [format_of(name) for name in ("a.pt2", "a.onnx", "a.bin")] == [
        "torch.export",
        "onnx",
        None,
    ]


@pytest.mark.parametrize("runtime", ["openvino", "executorch"])
def test_what_is_missing_is_named_with_the_command_that_brings_it(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == runtime else object())
    told = rf"needs {runtime}, not installed here: pip install 'netslim\[{runtime}\]'"
    path, options = tmp_path / ENDINGS[runtime], FIXED.get(runtime, {})
    with pytest.raises(ExportError, match=told):
        netslim.export(uncut(), X, path, **options)
    with pytest.raises(ArgumentError, match=told):
        netslim.latency(uncut(), X, backend=runtime)
    assert list(tmp_path.iterdir()) == []


def test_one_batch_size_is_asked_for_where_memory_is_planned(tmp_path):
    with pytest.raises(ArgumentError, match="one batch size: say dynamic_batch=False"):
        netslim.export(uncut(), X, tmp_path / "net.pte")


def test_layers_are_not_timed_one_by_one_in_them():
    model = uncut()
    graph = netslim.trace(model, X)
    with pytest.raises(ArgumentError, match="no backend 'openvino'; choose one of eager, compile"):
        netslim.latency_table(model, graph, X, backend="openvino", cache=False)


class Refused(nn.Module):
    """Takes a turn by what its input holds, which no exporter can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_what_cannot_be_exported_is_told_of_the_runtime_too():
    with pytest.raises(ArgumentError, match=r"'model' cannot be compiled ahead: torch\.export"):
        netslim.latency(Refused(), X, backend="aotinductor")
