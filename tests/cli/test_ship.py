"""`netslim export` and `netslim bench`: what they write and print, and that every mistake is one
line.
"""

from __future__ import annotations

import json

import pytest
import torch

import netslim
from netslim._support import many
from netslim.cli import main
from netslim.cli.export import _tolerance
from netslim.errors import RecipeError

NET = [
    "zoo:vgg",
    "--model.layers",
    "[4, M, 6]",
    "--model.in_channels",
    "1",
    "--model.num_classes",
    "3",
]
INPUT = ["--input", "1", "8", "8"]


def told(capsys, *arguments: object) -> str:
    """What a failing command says: one line on standard error, and exit code 1."""
    assert main([str(item) for item in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line


@pytest.fixture
def checkpoint(tmp_path):
    kwargs = {"layers": [4, "M", 6], "in_channels": 1, "num_classes": 3}
    torch.manual_seed(0)
    model = netslim.models.build("zoo:vgg", **kwargs)
    small = netslim.slim(model, torch.randn(1, 1, 8, 8), budget=netslim.Budget(cut_channels=0.5))
    return netslim.save(
        small,
        tmp_path / "small.safetensors",
        constructor=netslim.models.constructor("zoo:vgg", kwargs),
    )


# ---------------------------------------------------------------- export


def test_export_of_a_cut_checkpoint(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal, where its steps are shown
    out = tmp_path / "new" / "net.pt2"
    assert main(["export", str(checkpoint), *INPUT, "--out", str(out), "--batch", "4"]) == 0
    shown, steps = capsys.readouterr()
    assert "export  comparing" in steps
    said = shown.splitlines()
    assert said[0] == f"torch.export, {out.stat().st_size / 1000:,.1f} kB: x -> output"
    assert said[1].startswith(
        "verified: the outputs deviate by no more than 0.0e+00 of the largest, in batches of 4"
    )
    assert said[2] == f"file: {out}"
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        expected = netslim.models.build(checkpoint).eval()(images)
    torch.testing.assert_close(torch.export.load(out).module()(images), expected)


def test_export_to_onnx(tmp_path, capsys):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    out = tmp_path / "net.onnx"
    assert main(["export", *NET, *INPUT, "--out", str(out), "--opset", "18"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("ONNX, opset 18, ")
    assert said.splitlines()[1].endswith("in batches of 1 and 3")
    assert "exists already" in told(capsys, "export", *NET, *INPUT, "--out", out)


def test_export_for_programs(checkpoint, tmp_path, capsys):
    out = tmp_path / "net.pt2"
    typed = [str(checkpoint), *INPUT, "--out", str(out), "--batch", "1", "--json"]
    assert main(["export", *typed]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["size_bytes"]) == (str(out), out.stat().st_size)
    assert (found["format"], found["inputs"], found["outputs"]) == (
        "torch.export",
        ["x"],
        ["output"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "net.tflite"], "write to a file that ends in .aoti.pt2, .onnx"),
        (
            ["--out", "net.pt2", "--batch", "0"],
            "--batch 0: give a number of examples, 1 or more, or dynamic",
        ),
        (["--out", "net.pt2", "--batch", "many"], "--batch many: give a number of examples"),
        (["--out", "net.pt2", "--opset", "18"], "--opset 18 belongs to ONNX"),
        (["--out", "net.pt2", "--input", "8"], "--dtype: 3 for 2 inputs"),
        (
            ["--out", "net.pt2", "--data.root", "x"],
            "--data.root: export takes options of the model only",
        ),
    ],
)
def test_mistakes_in_export(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    types = ["--dtype", "float32"] * 3 if "--input" in arguments else []
    assert message in told(capsys, "export", *NET, *INPUT, *arguments, *types)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- bench


def test_bench_counts_by_hand_and_compares_with_the_first(checkpoint, capsys):
    arguments = [
        NET[0],
        str(checkpoint),
        NET[0],
        *NET[1:],
        *INPUT,
        "--batch-size",
        "2",
        "--repeats",
        "5",
    ]
    assert main(["bench", *arguments, "--threads", "2", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["threads"], found["batch_size"]) == ("cpu", 2, 2)
    first, small, again = found["rows"]
    assert [row["model"] for row in found["rows"]] == ["zoo:vgg", str(checkpoint), "zoo:vgg (2)"]
    # Convolutions without bias, norms, a linear layer with bias; 8 x 8 pixels, then 4 x 4.
    assert first["params"] == 4 * 9 + 8 + 6 * 4 * 9 + 12 + 6 * 3 + 3
    assert first["macs"] == 64 * 4 * 9 + 16 * 6 * 4 * 9 + 6 * 3
    assert first["activations"] == 64 * 4 + 16 * 6 + 3
    # Two vectors of statistics and a 64-bit count for each norm come on top of the parameters.
    assert first["size_bytes"] == 4 * (first["params"] + 8 + 12) + 2 * 8
    assert small["size_bytes"] == checkpoint.stat().st_size
    assert small["params"] < first["params"] == again["params"]
    assert first["of_first"] == 1.0
    assert small["of_first"] == pytest.approx(small["median_ms"] / first["median_ms"])
    assert first["examples_per_second"] == pytest.approx(2000 / first["median_ms"])
    assert {row["repeats"] for row in found["rows"]} == {5}


def test_bench_as_a_table_with_a_row_for_each_backend(capsys):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    arguments = [*INPUT, "--repeats", "5", "--device", "cpu", "--backend", "eager", "onnxruntime"]
    before = torch.get_num_threads()
    assert main(["bench", *NET, *arguments]) == 0
    shown, steps = capsys.readouterr()
    assert not steps  # its rounds are counted on a terminal alone
    head, eager, other, last = shown.splitlines()
    assert head.split()[:5] == ["model", "backend", "params", "MACs", "activations"]
    assert [row.split()[:2] for row in (eager, other)] == [
        ["zoo:vgg", "eager"],
        ["zoo:vgg", "onnxruntime"],
    ]
    assert eager.split()[2] == "293"
    assert eager.endswith(" 1.00")
    assert other.endswith(" 1.00")
    assert f", {many(before, 'thread')}, torch " in last
    assert len({len(line) for line in (head, eager, other)}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0: give 1 or more"),
        (["--repeats", "2"], "--repeats 2; at least 5"),
        (["--threads", "0"], "--threads must be 1 to 65,536"),
        (["--seconds", "0"], "--seconds 0.0; give a positive number"),
        (["--trainer.threads", "1"], "bench takes options of the model only"),
    ],
)
def test_mistakes_in_bench(arguments, message, capsys):
    assert message in told(capsys, "bench", *NET, *INPUT, "--device", "cpu", *arguments)


def test_bench_says_when_a_network_does_not_take_the_input(capsys):
    line = told(capsys, "bench", *NET, "--input", "2", "8", "8", "--device", "cpu")
    assert "does not run on these example inputs ((1, 2, 8, 8))" in line


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        (None, None),
        (["1e-3"], 1e-3),
        (["boxes=1e-3", "logits=0.1"], {"boxes": 1e-3, "logits": 0.1}),
    ],
)
def test_tolerances(words: list[str] | None, tolerance: object) -> None:
    assert _tolerance(words) == tolerance


@pytest.mark.parametrize("words", [["a"], ["boxes="], ["1", "2"], ["1", "boxes=2"]])
def test_impossible_tolerances(words: list[str]) -> None:
    with pytest.raises(RecipeError, match="give one number, or outputs as boxes=1e-3"):
        _tolerance(words)
