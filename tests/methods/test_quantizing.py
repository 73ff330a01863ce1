"""Int8: what the file computes, how it says what int8 costs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim._support import packages
from netslim.errors import ArgumentError, ExportError
from netslim.methods import Quantization
from netslim.methods.quantizing import examples_of, to_int8
from netslim.models.runtimes import onnx_int8
from netslim.training.stages import quantize as quantize_stage

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


FILTERS = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(0))
HEAD = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
BATCHES = [
    torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)
]


class Net(nn.Module):
    """What `exact` computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6, eps=0.0)
        self.head = nn.Linear(6, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(FILTERS)
            self.head.weight.copy_(HEAD)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def expected(x: Tensor) -> Tensor:
    return Net().eval()(x).detach()


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network in float as an ONNX file, put together by hand, which takes no time."""
    from onnx import helper

    ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
    held = {"f": FILTERS.numpy(), "h": HEAD.numpy(), "s": ones, "b": zeros, "m": zeros, "v": ones}
    nodes = [
        helper.make_node("Conv", ["x", "f"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], epsilon=0.0),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["l"]),
        helper.make_node("Gemm", ["l", "h"], ["output"], transB=1),
    ]
    return written(tmp_path_factory.mktemp("exact") / "net.onnx", nodes, held, (1, 8, 8), (3,))


def written(
    path: Path,
    nodes: list[Any],
    held: dict[str, Any],
    takes: tuple[int, ...],
    gives: tuple[int, ...],
) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("x", takes), ("output", gives))
    ]
    kept = [numpy_helper.from_array(value, name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], kept)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(made, {"made by": "a test"})
    save(made, path)
    return path


def answers(path: Path, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    return torch.from_numpy(found)


def weights(path: Path) -> list[Any]:
    """The arrays of a file that have several dimensions."""
    import onnx

    held = map(onnx.numpy_helper.to_array, onnx.load(path).graph.initializer)
    return [one for one in held if one.ndim > 1]


def kinds(path: Path) -> set[str]:
    """The types of whole numbers in a file."""
    import onnx

    held = map(onnx.numpy_helper.to_array, onnx.load(path).graph.initializer)
    return {str(one.dtype) for one in held if one.dtype.kind in "iu"} - {"int64"}


def scales(path: Path) -> set[int]:
    """How many step sizes the tensors of a file have."""
    import onnx

    graph = onnx.load(path).graph
    held = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    found = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    return {held[node.input[1]].size for node in found}


def test_the_file_computes_nearly_the_same_in_whole_numbers(exact, tmp_path):
    import onnx

    path = tmp_path / "new" / "net.int8.onnx"
    seen = examples_of([(x, "labels") for x in BATCHES])
    done = to_int8(exact, seen, path, Quantization())
    assert (done.path, done.size_bytes) == (path, path.stat().st_size)
    assert (done.layers, done.of, done.batches) == (2, 2, 3)
    assert (done.inputs, done.outputs) == (("x",), ("output",))
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(path).graph.node}
    assert {one.dtype for one in weights(path)} == {np.dtype("int8")}
    found, right = answers(path, BATCHES[0]), expected(BATCHES[0])
    assert done.noise == pytest.approx(float((found - right).norm() / right.norm()), rel=1e-3)
    assert 0 < done.noise < 0.02
    assert answers(path, BATCHES[1][:5]).shape == (5, 3)


def test_the_options_are_obeyed_and_metadata_kept(exact, tmp_path):
    import onnx

    def made(name: str, **options: Any) -> Path:
        done = to_int8(exact, BATCHES, tmp_path / name, Quantization(**options))
        assert done.float_bytes == exact.stat().st_size
        assert done.noise < 0.05
        return done.path

    usual = made("usual.onnx")
    assert scales(usual) == {1, 3, 6}
    assert scales(made("tensor.onnx", scales="tensor")) == {1}
    assert kinds(usual) == {"uint8", "int8", "int32"}
    assert kinds(made("int8.onnx", activations="int8")) == {"int8", "int32"}
    assert (
        max(abs(one.astype(int)).max() for one in weights(made("7.onnx", weight_type="int7"))) == 64
    )
    props = onnx.load(usual).metadata_props
    assert {item.key: item.value for item in props} == {"made by": "a test"}


@pytest.mark.parametrize("cut_off", [False, True])
def test_weights_have_seven_bits_where_the_processor_cuts_off_sums(
    exact, tmp_path, monkeypatch, cut_off
):
    monkeypatch.setattr(onnx_int8, "cuts_off", lambda: cut_off)
    done = to_int8(exact, BATCHES, tmp_path / "net.onnx", Quantization())
    largest = max(abs(one.astype(int)).max() for one in weights(done.path))
    assert (done.weight_bits, largest) == ((7, 64) if cut_off else (8, 127))
    told = quantize_stage.told(done)
    assert ("weights have 7 bits" in told) == cut_off


def test_whether_a_processor_cuts_off_sums_is_what_its_files_compute(exact, tmp_path):
    """With eight bits outputs are far off just where it does."""
    done = to_int8(exact, BATCHES, tmp_path / "net.onnx", Quantization(weight_type="int8"))
    assert (done.noise > 0.1) == onnx_int8.cuts_off()


def test_a_percentile_leaves_one_wild_value_out_of_the_range(exact, tmp_path):
    wild = BATCHES[0].clone()
    wild[0, 0, 3, 3] = 100.0
    off = {}
    for percentile in (None, 99.9):
        path = tmp_path / f"{percentile}.onnx"
        to_int8(exact, [*BATCHES, wild], path, Quantization(percentile=percentile))
        off[percentile] = float((answers(path, BATCHES[0]) - expected(BATCHES[0])).norm())
    assert off[99.9] < 0.7 * off[None]


def test_ranges_come_from_the_batches(exact, tmp_path):
    """From inputs a hundredth as large, everything larger is cut off."""
    small = [x / 100 for x in BATCHES]
    to_int8(exact, small, tmp_path / "small.onnx", Quantization())
    found, right = answers(tmp_path / "small.onnx", BATCHES[0]), expected(BATCHES[0])
    assert (found - right).norm() > 0.9 * right.norm()


def test_what_cannot_be_done_is_said_before_anything_is_written(exact, tmp_path):
    with pytest.raises(ArgumentError, match=r"written to a \.onnx or \.pt2 file"):
        netslim.quantize(Net(), BATCHES, tmp_path / "net.pt")
    with pytest.raises(ArgumentError, match="batches= gives no batch"):
        netslim.quantize(Net(), [], tmp_path / "net.onnx")
    with pytest.raises(ArgumentError, match="batches must be a data loader or a list"):
        netslim.quantize(Net(), BATCHES[0], tmp_path / "net.onnx")
    with pytest.raises(ArgumentError, match="percentile must be a number above 50 and below 100"):
        Quantization(percentile=0.9999)
    (tmp_path / "there.onnx").touch()
    with pytest.raises(ExportError, match="exists already"):
        netslim.quantize(Net(), BATCHES, tmp_path / "there.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


def test_a_network_without_such_layers_is_refused(tmp_path):
    from onnx import helper

    plain = [helper.make_node("Relu", ["x"], ["output"])]
    file = written(tmp_path / "relu.onnx", plain, {}, (3,), (3,))
    with pytest.raises(ExportError, match="no layer of the network can be brought to int8"):
        to_int8(file, [torch.randn(2, 3)], tmp_path / "x.onnx", Quantization())
    assert not (tmp_path / "x.onnx").exists()


# ---------------------------------------------------------------- PT2E


@pytest.mark.filterwarnings("ignore")  # of torchao
def test_a_program_in_int8(tmp_path):
    pytest.importorskip("torchao.quantization.pt2e")
    path = tmp_path / "net.int8.pt2"
    done = netslim.quantize(Net(), BATCHES, path, metadata={"made by": "a test"})
    assert (done.size_bytes, done.layers, done.of) == (path.stat().st_size, 2, 2)
    assert (done.batches, done.inputs, done.outputs) == (3, ("x",), ("output",))
    told = {"made by": ""}
    program = torch.export.load(path, extra_files=told)
    assert told == {"made by": "a test"}
    assert {t.dtype for t in program.state_dict.values() if t.dim() > 1} == {torch.int8}
    found = program.module()(BATCHES[1][:5])
    assert (found - expected(BATCHES[1][:5])).norm() < 0.05 * found.norm()
    assert 0 < done.noise < 0.02


def test_what_pt2e_cannot_do_is_said(tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match=r"are for \.onnx files"):
        netslim.quantize(Net(), BATCHES, tmp_path / "net.pt2", Quantization(scales="tensor"))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"needs torchao, .*: pip install 'netslim\[pt2e\]'"):
        netslim.quantize(Net(), BATCHES, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []
