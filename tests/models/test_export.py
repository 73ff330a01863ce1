"""Export: what the file computes, what it is called, and that nothing is left where it computes
something else.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netslim
from nets import Chain, DenseBlock, Residual
from netslim._support import packages
from netslim.errors import ArgumentError, ExportError, SurgeryError, TraceError
from netslim.graph.modules.call_sites import replaced_calls
from netslim.graph.modules.padded_calls import REDUCTIONS
from netslim.graph.modules.padded_norms import KINDS
from netslim.models import PaddedNorm, SeparateHeads, parity
from netslim.models import export as module
from netslim.models.export import Exported, export
from netslim.surgery.plan_of_units import plan_keeping
from new_forms import PICTURES, cut_in_half
from residual_nets import DenseStage, Images

SHAPES = {"Chain": (3, 8, 8), "Residual": (3, 6, 6), "DenseBlock": (3, 7, 7)}


@pytest.fixture
def onnxruntime():
    """ONNX Runtime, with what writes its files."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


class Masked(nn.Module):
    """Two inputs, one of them by keyword alone, a number, and a dictionary as the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor, scale: float = 1.0, *, mask: Tensor) -> dict[str, Tensor]:
        features = self.conv(x).relu().mean((2, 3)) * mask * scale
        return {"scores": self.head(features), "features": features}


class Fixed(nn.Module):
    """Takes batches of two and no other."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1) + 1


def random(model: nn.Module) -> nn.Module:
    """Parameters and statistics at random, so that every channel is felt; in training mode."""
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.copy_(
                torch.rand_like(tensor) + 0.5 if tensor.dim() < 2 else torch.randn_like(tensor) / 4
            )
    return model.train()


def cut(model: nn.Module, x: Tensor) -> nn.Module:
    small = netslim.slim(model, x, criterion="random", budget=netslim.Budget(cut_channels=0.4))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    return small


def selecting(x: Tensor) -> nn.Module:
    """A dense block whose norms select channels, cut: each selection hands on fewer than there are."""
    model = cut(netslim.models.add_selection(random(DenseBlock()), x), x)
    selects = [m for m in model.modules() if isinstance(m, netslim.models.ChannelSelect)]
    assert any(len(m.indices) < m.channels for m in selects)
    return model


def normalised(x: Tensor) -> nn.Module:
    """A chain without norms of its own, with those of `add_bn`, which hang on hooks, cut."""
    plain = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 3)
    )
    return cut(random(netslim.models.add_bn(plain, x)), x)


def shallower(model: nn.Module, x: Tensor) -> nn.Module:
    """Without its last block."""
    graph = netslim.trace(model.eval(), x, blocks=True)
    last = max(number for number, group in enumerate(graph.groups) if group.block)
    return netslim.prune(model, plan_keeping(graph, {last: np.zeros(1, dtype=bool)}))


NETWORKS: dict[str, Callable[[Tensor], nn.Module]] = {
    "Chain": lambda x: cut(random(Chain()), x),
    "Residual": lambda x: cut(random(Residual()), x),
    "selection": selecting,
    "add_bn": normalised,
    "dense layers without one": lambda x: shallower(
        random(Images(DenseStage(6, 3, 2), width=12)), x
    ),
}


def agree(model: nn.Module, found: list[Tensor], *args: Tensor, **kwargs: Tensor) -> None:
    with torch.no_grad():
        expected = model.eval()(*args, **kwargs)
    expected = list(expected.values()) if isinstance(expected, dict) else [expected]
    assert all(t.abs().max() > 0.1 for t in expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_export_takes_what_netslim_makes(name, tmp_path):
    x = torch.randn(2, *SHAPES.get(name, (3, 8, 8)))
    model = NETWORKS[name](x)
    told: list[tuple[int, int]] = []
    done = export(model, x, tmp_path / "net.pt2", progress=lambda _, n, of: told.append((n, of)))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert done.format == "torch.export"
    assert done.deviation < 1e-6
    assert done.batch_sizes == (1, 2, 4)
    assert done.opset is None
    other = torch.randn(7, *x.shape[1:])
    agree(model, [torch.export.load(done.path).module()(other)], other)


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_takes_what_netslim_makes(name, tmp_path, onnxruntime):
    x = torch.randn(1, *SHAPES.get(name, (3, 8, 8)))
    model = NETWORKS[name](x)
    done = export(model, x, tmp_path / "net.onnx")
    assert done.format == "onnx"
    assert done.deviation < 1e-4
    assert done.batch_sizes == (1, 3)
    assert done.size_bytes == done.path.stat().st_size
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.shape == ["batch", *x.shape[1:]]
    other = torch.randn(7, *x.shape[1:])
    agree(
        model,
        [torch.from_numpy(a) for a in session.run(["output"], {entry.name: other.numpy()})],
        other,
    )


def test_names_of_inputs_and_outputs_and_a_number_that_becomes_a_constant(tmp_path, onnxruntime):
    model = random(Masked())
    inputs = {"mask": torch.rand(2, 5), "scale": 3.0, "x": torch.randn(2, 3, 6, 6)}
    done = export(model, inputs, tmp_path / "net.onnx", dynamic_batch=False)
    assert (done.inputs, done.outputs) == (("x", "mask"), ("scores", "features"))
    assert done.batch_sizes == (2,)
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    feeds = {key: inputs[key].numpy() for key in ("x", "mask")}
    found = [torch.from_numpy(a) for a in session.run(["scores", "features"], feeds)]
    agree(model, found, **inputs)


def test_the_older_exporter_writes_the_same(tmp_path, monkeypatch, onnxruntime):
    """As with torch 2.6, whose newer one does not know today's onnxscript."""
    monkeypatch.setattr(module, "_translated", lambda *_: 1 / 0)
    model = random(Masked())
    inputs = {"mask": torch.rand(2, 5), "x": torch.randn(2, 3, 6, 6), "scale": 2.0}
    done = export(model, inputs, tmp_path / "net.onnx")
    assert (done.inputs, done.outputs) == (("x", "mask"), ("scores", "features"))
    session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    assert {entry.name: entry.shape[0] for entry in session.get_inputs()} == {
        "x": "batch",
        "mask": "batch",
    }


def test_the_opset_is_the_one_asked_for(tmp_path, onnxruntime):
    x = torch.randn(2, 3, 8, 8)
    assert export(random(Chain()), x, tmp_path / "net.onnx", opset=18).opset == 18


def test_the_model_is_left_as_it_was_and_nothing_is_said(tmp_path, capfd, onnxruntime):
    model, x = random(Residual()), torch.randn(2, 3, 6, 6)
    model.stem[1].eval()
    flags = [m.training for m in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(model, x, tmp_path / "net.onnx")
    assert capfd.readouterr() == ("", "")
    assert [m.training for m in model.modules()] == flags
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert logging.root.manager.disable == logging.NOTSET
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_file_that_computes_something_else_is_refused_and_not_left(tmp_path, monkeypatch):
    """The network changes between the writing and the comparison, as a wrong translation would
    change it.
    """
    model, x = random(Chain()), torch.randn(2, 3, 8, 8)
    written = module._as_program

    def spoil(*given: object) -> bytes:
        content = written(*given)
        with torch.no_grad():
            model.head.weight[1] *= 1.01
        return content

    monkeypatch.setattr(module, "_as_program", spoil)
    with pytest.raises(ExportError, match=r"'output' deviates by \d\.\de-0[23] of its largest"):
        export(model, x, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []
    assert export(model, x, tmp_path / "net.pt2", tolerance=0.1).deviation > 1e-4


@pytest.mark.parametrize(
    ("expected", "found", "off"),
    [
        ([torch.tensor([4.0, -2.0])], [torch.tensor([4.0, -1.0])], 0.25),
        ([torch.zeros(2)], [torch.tensor([0.0, 0.5])], 0.5),
        ([torch.tensor([1, 2, 3, 4])], [torch.tensor([1, 2, 3, 5])], 0.25),
        (
            [torch.tensor([torch.nan, torch.inf, 2.0])],
            [torch.tensor([torch.nan, torch.inf, 1.0])],
            0.5,
        ),
        ([torch.tensor([1.0, 2.0])], [torch.tensor([torch.nan, 2.0])], torch.inf),
        ([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, torch.inf])], torch.inf),
        ([torch.ones(2)], [torch.ones(1, 2)], torch.inf),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)], torch.inf),
        ([torch.ones(2), torch.full((1,), 8.0)], [torch.ones(2), torch.full((1,), 6.0)], 0.25),
        ([torch.ones(0)], [torch.ones(0)], 0.0),
    ],
)
def test_deviations_by_hand(expected, found, off):
    assert max(parity.deviations(expected, found), default=0.0) == off


def test_a_fixed_batch_size_is_refused_with_the_remedy_and_taken_with_it(tmp_path):
    x = torch.randn(2, 6)
    with pytest.raises(ExportError, match="dynamic_batch=False"):
        export(Fixed(), x, tmp_path / "net.pt2")
    done = export(Fixed(), x, tmp_path / "net.pt2", dynamic_batch=False)
    assert done == Exported(
        done.path, done.path.stat().st_size, "torch.export", 0.0, (2,), ("x",), ("output",)
    )


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "net.pt2"
    path.write_text("mine")
    with pytest.raises(ExportError, match="exists already"):
        export(Chain(), torch.randn(2, 3, 8, 8), path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.xyz", {}, r"ending names no format; write to a file that ends in .*\.onnx, .*\.pt2"),
        ("net.pt2", {"format": "tflite"}, "format='tflite'"),
        ("net.pt2", {"opset": 18}, "opset=18 belongs to ONNX"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path, name, options, message):
    with pytest.raises(ArgumentError, match=message):
        export(Chain(), torch.randn(2, 3, 8, 8), tmp_path / name, **options)


def test_inputs_that_do_not_fit(tmp_path):
    with pytest.raises(
        TraceError, match=r"does not run on these example inputs \(\(2, 4, 8, 8\)\)"
    ):
        export(Chain(), torch.randn(2, 4, 8, 8), tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_command_that_brings_them(tmp_path, monkeypatch):
    monkeypatch.setattr(
        packages, "find_spec", lambda name: None if name == "onnxscript" else object()
    )
    with pytest.raises(
        ExportError, match=r"needs onnxscript, not installed here: pip install 'netslim\[onnx\]'"
    ):
        export(Chain(), torch.randn(2, 3, 8, 8), tmp_path / "net.onnx")


def test_a_folder_that_cannot_be_written_to(tmp_path):
    Path(tmp_path, "file").write_text("")
    with pytest.raises(ExportError, match="cannot write"):
        export(Chain(), torch.randn(2, 3, 8, 8), tmp_path / "file" / "net.pt2")


def test_random_inputs_keep_what_integers_mean():
    tokens, flags = torch.tensor([[5, 6, 7], [8, 9, 5]]), torch.tensor([True, False])
    generator = torch.Generator().manual_seed(0)
    x, shuffled, flag, number = parity.randomised((torch.zeros(2, 3), tokens, flags, 7), generator)
    assert x.shape == (2, 3)
    assert x.std() > 0.3
    assert sorted(shuffled.flatten().tolist()) == [5, 5, 6, 7, 8, 9]
    assert sorted(flag.tolist()) == [False, True]
    assert number == 7


def test_another_batch_size_repeats_the_examples():
    x, other = torch.tensor([[1.0], [2.0]]), torch.tensor([7.0, 7.0, 7.0])
    longer, same = parity.batched((x, other), 5)
    assert longer.flatten().tolist() == [1, 2, 1, 2, 1]
    assert same.tolist() == [7, 7, 7]


# --- what a cut puts in the place of modules and of calls -----------------------------------------


@pytest.fixture(scope="module")
def new_forms():
    small, plan = cut_in_half()
    assert {norm.kind for norm in plan.norms} >= REDUCTIONS.keys() - {
        "std_mean()",
        "min()",
        "amax()",
    }
    found = {module.kind for module in small.modules() if isinstance(module, PaddedNorm)}
    assert found >= KINDS.keys() - {"whole", "flat mean", "maximum", "maximum and mean"}
    assert any(isinstance(module, SeparateHeads) for module in small.modules())
    assert all(map(replaced_calls, small))
    return small


def test_new_forms_are_written_as_onnx_by_way_of_torch_export(new_forms, tmp_path, onnxruntime):
    made = export(new_forms, PICTURES, tmp_path / "small.onnx", dynamic_batch=False)
    assert made.path.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_what_runs_other_code_than_is_written_is_not_scripted(new_forms):
    for part in (new_forms[0], new_forms[1], new_forms[1].heads):
        with pytest.raises(SurgeryError, match=r"torch\.jit\.script does not take"):
            torch.jit.script(part)
