"""What is wrong first is told first: the network, then the options, then what it is to run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from netslim.cli import main

OUT = ["--out", "x.safetensors"]
DATA = ["--data", "digits"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with files that are no networks, and the folder of a run."""
    monkeypatch.chdir(tmp_path)
    for name in ("net.onnx", "net.pt2", "mine.pth", "named.safetensors", "notes.txt", "nets.py"):
        Path(name).write_bytes(b"")
    Path("run/01-train").mkdir(parents=True)
    Path("run/01-train/model.safetensors").write_bytes(b"")
    Path("empty").mkdir()
    Path("empty/results.json").write_bytes(b"")
    Path("made_here.py").write_text("def small(width): return 1 + width\n")


def told(capsys, *arguments: str) -> str:
    """The one line that a failing command prints."""
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert not captured.out
    return line


EXPORT = "is an export, finished for other runtimes"
FIRST = [
    (["prune", "gone.safetensors", *OUT], "cannot read gone.safetensors: No such file"),
    (["prune", "gone.safetensors", *OUT, "--counts", "1"], "cannot read gone.safetensors"),
    (["prune", "zoo:vgg99", *OUT], "there is no model 'zoo:vgg99'"),
    (["inspect", "zoo:nonet"], "netslim models zoo: lists the zoo models."),
    (["run", "nope"], "no file and no recipe is called 'nope'; netslim recipes lists those there are"),
    (["inspect", "zoo:vgg11", "--model.num_classes", "9" * 9999], "999... is too large a number"),
    (["inspect", "made_here:small", "--model.width", "wide"], "(it was given width='wide')"),
    (["report", "empty"], "the results are damaged: it is empty."),
    (["status", "run/02-prune"], "is not there; a run makes it some seconds after it was started"),
    (["prune", "zoo:vgg11", "--weights", "gone.pth", *OUT], "cannot read gone.pth: No such file"),
    (["inspect", "torchvision:resnet19"], "netslim models torchvision: lists the torchvision models"),
    (["prune", "zoo:vgg11", "--input", "3", "32", "--cut-macs", "0.5", *OUT],
     "; give all sizes of one example, of a picture its channels, height and width, such as --input"),
    (["inspect", "zoo:vgg11", "--input", "3", "32"], "such as --input 3 32 32 (--input is the shape"),
    (["prune", "zoo:vgg11", *OUT], "say how much goes"),
    (["prune", "zoo:vgg11", *OUT, "--cut-macs", "0.5"], "say what the network takes"),
    (["train", "zoo:vgg11", *DATA, *OUT, "--teacher", "gone.safetensors"], "cannot read gone"),
    (["train", "zoo:vgg11", *DATA, *OUT, "--teacher", "net.onnx"], f"--teacher: net.onnx {EXPORT}"),
    (["predict", "gone.safetensors", "gone.png"], "cannot read gone.safetensors"),
    (["evaluate", "net.onnx", *DATA], "net.onnx: ONNX Runtime cannot load it: "),
    (["bench", "net.onnx"], f"net.onnx {EXPORT}"),
    (["inspect", "net.pt2"], f"net.pt2 {EXPORT}"),
    (["predict", "net.pt2", "gone.png"], f"net.pt2 {EXPORT}"),
    (["export", "zoo:vgg11", "--weights", "net.onnx", "--out", "y.onnx"], f"net.onnx {EXPORT}"),
    (["inspect", "mine.pth"], "name the network, with --weights mine.pth beside it"),
    (["inspect", "run"], "name one in it, such as run/01-train/model.safetensors"),
    (["inspect", "run/01-train"], "name one in it, such as run/01-train/model.safetensors"),
    (["inspect", "named"], "did you mean 'named.safetensors'?"),
    (["inspect", "nets.small"], "did you mean 'nets:small'?"),
    (["inspect", "nets.py:small"], "which nets.py:small names (did you mean nets:small?): it must"),
    (["inspect", "sub/nets.py:small"], "(did you mean sub.nets:small?)"),
    (["inspect", "nobody_here:small"], "current directory ("),
    (["inspect", "nets.py"], "did you mean 'nets:FACTORY'?"),
    (["prune", "zoo:vgg11", "--input", "3", "32", "32", "--cut-macs", "0.5", "--out", "notes.txt/x.safetensors"],
     "notes.txt is a file, and no folder can be made in it"),
    (["train", "zoo:vgg11", *DATA, *OUT, "--augment", "-3"], "--augment: augmentation: pad is -3"),
    (["evaluate", "zoo:vgg11", "--data", "run"], "did you mean 'folder:run'"),
    (["inspect", "notes.txt"], "and is no .safetensors file"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "line"), FIRST, ids=[" ".join(one)[:80] for one, _ in FIRST])
def test_what_is_wrong_first_is_told_first(arguments, line, capsys):
    assert line in told(capsys, *arguments)
