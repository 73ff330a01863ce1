"""The command line: each mistake is one clear line, a non-zero exit and no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import fresh
import netslim
from netslim import models
from netslim.cli import main
from netslim.training.recipe.files import shipped

LOOKS_AT_FIGURES = True

QUICK = ["--trainer.limit_batches", "2", "--trainer.threads", "1", "--trainer.tensorboard", "false"]


def told(capsys, *arguments: str, code: int = 1) -> str:
    """What a failing command prints on standard error: one line, no traceback."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    assert lines
    return lines[-1]


def test_help_and_version(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out
    for arguments in (
        ["--help"],
        ["run", "--help"],
        ["inspect", "--help"],
        ["recipes", "--help"],
        ["report", "--help"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert "netslim" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"netslim {netslim.__version__}"


def test_help_is_light():
    code = (
        "import sys\n"
        "from netslim.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torchvision', 'pytorch_lightning', 'matplotlib', 'sklearn'} & "
        "set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_recipes(capsys):
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert "vgg19-cifar10" in out
    assert "error 6.34" in out
    *lines, last = out.splitlines()
    assert [line.split()[0] for line in lines] == shipped()  # a line each
    assert last.startswith("netslim recipes NAME shows")
    assert main(["recipes", "digits"]) == 0
    assert "cut_channels: 0.7" in capsys.readouterr().out
    assert main(["recipes", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(found) == shipped()
    assert found["vgg19-cifar10"]["published"][0]["error"] == 6.34
    assert main(["recipes", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "digits"


def test_a_run_and_its_report(tmp_path, capsys):
    folder = tmp_path / "run"
    assert (
        main(
            [
                "run",
                "digits",
                "--out",
                str(folder),
                "--stages.sparse.epochs",
                "1",
                "--stages.finetune.epochs",
                "1",
                *QUICK,
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "fine-tuned" in out
    assert f"report: {folder}/report.html" in out.replace("\n", "")
    results = json.loads((folder / "results.json").read_text())
    assert [row["key"] for row in results["rows"]] == ["before", "pruned", "fine-tuned"]
    run = ["run", "digits", "--stages.sparse.epochs", "1", "--stages.finetune.epochs", "1", *QUICK]
    assert main([*run, "--out", str(folder), "--json"]) == 0  # a finished run is only shown
    assert json.loads(capsys.readouterr().out)["rows"] == results["rows"]
    (folder / "report.html").unlink()
    assert main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(folder / "report.html")}
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digit"], "digits"),
        (["run", "nowhere/x.yaml"], "nowhere/x.yaml"),
        (["run", "digits", "--model.widht", "0.5"], "width"),
        (["run", "digits", "--stages.prune.budget.cut_channels", "1.0"], "below 1"),
        (["run", "digits", "--stages.prune.budget.cut_channels", "-0.1"], "at least 0 and below 1"),
        (["run", "digits", "--stages.sparse.epochs", "many"], "epochs"),
        (["run", "digits", "--stages.spares.epochs", "2"], "sparse"),
        (["run", "digits", "--seed", "x"], "seed"),
        (["run", "digits", "--data.name", "digitz"], "digits"),
        (["run", "digits", "--model.name", "zoo:vg19"], "vgg19"),
        (["inspect", "zoo:vgg", "--input", "3", "32", "32"], "layers"),
        (["inspect", "zoo:vgg99", "--input", "3", "32", "32"], "vgg"),
        (["inspect", "torchvision:resnet1", "--input", "3", "32", "32"], "resnet18"),
        (["inspect", "zoo:vgg11", "--input", "5", "32", "32"], "does not run on these example "
                                                               "inputs"),
        (["inspect", "zoo:vgg11", "--input", "0", "32", "32"], "1 or more"),
        (["report", "nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in told(capsys, *arguments)


def test_a_folder_of_another_recipe(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("name: other\n")
    assert "belongs to the recipe 'other'" in told(capsys, "run", "digits", "--out", str(tmp_path))
    assert (tmp_path / "config.yaml").read_text() == "name: other\n"


def test_debug_shows_the_traceback():
    with pytest.raises(netslim.errors.RecipeError):
        main(["run", "digit", "--debug"])


def test_inspect_prints_groups_and_json(capsys):
    assert (
        main(["inspect", "zoo:resnet20", "--input", "3", "32", "32", "--model.width", "0.5"]) == 0
    )
    out = capsys.readouterr().out
    assert "groups can be cut exactly" in out
    assert "10,248,512 multiply-accumulates" in out  # of one image
    assert "stays: it is an output of the network" in out
    assert "which hold 99" in out
    assert main(["inspect", "zoo:vgg11", "--input", "3", "32", "32", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["groups"][0] == data["groups"][0] | {
        "channels": 64,
        "prunable": True,
        "reason": None,
    }


def test_inspect_draws_the_graph(capsys, tmp_path):
    file = tmp_path / "vgg.svg"
    shape = ["--input", "3", "32", "32", "--model.width", "0.1"]
    assert main(["inspect", "zoo:vgg11", *shape, "--draw", str(file), "--json"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["groups"]
    assert streams.err == f"note: the graph is drawn in {file}\n"
    assert file.read_text().count("<title>") == len(json.loads(streams.out)["groups"])


def test_inspect_explains_names(capsys):
    shape = ["inspect", "zoo:resnet20", "--input", "3", "32", "32"]
    assert main([*shape, "--explain", "layer1.0.conv1.weight", "--explain", "fc"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith("layer1.0.conv1.weight: 16 x 16 x 3 x 3\n")
    assert "They can be cut exactly" in first
    assert "They stay: it is an output of the network." in second
    assert main([*shape, "--explain", "fc", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["explain"] == {"fc": second.rstrip("\n")}
    second_axis = data["axes"][1]
    assert (second_axis["tensor"], second_axis["axis"], second_axis["size"]) == (
        "conv1.weight",
        1,
        3,
    )
    assert "meets a fixed size" in second_axis["parts"][0]["reason"]
    assert "did you mean 'conv1'" in told(capsys, *shape, "--explain", "conv11")


def test_inspect_takes_outputs_that_may_shrink(capsys):
    shape = ["inspect", "zoo:vgg11", "--input", "3", "32", "32", "--model.width", "0.1"]
    assert main([*shape, "--free-output", "0"]) == 0
    assert "Free to shrink: output." in capsys.readouterr().out
    assert "there are output (1, 10)" in told(capsys, *shape, "--free-output", "state")


TAGGER = """
from torch import nn

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, tokens, mask):
        return self.head(self.inner(self.embed(tokens) * mask[..., None]).relu().mean(1))

def tagger():
    return Tagger()
"""


def test_inspect_takes_several_inputs_and_their_types(tmp_path, capsys, monkeypatch):
    (tmp_path / "taggers.py").write_text(TAGGER)
    monkeypatch.chdir(tmp_path)
    command = ["inspect", "taggers:tagger", "--input", "5"]
    for types in (["int64"], ["int64", "float32"], ["int32", "bool"]):
        given = [item for name in types for item in ("--dtype", name)]
        assert main([*command, "--input", "5", *given, "--json"]) == 0
        groups = json.loads(capsys.readouterr().out)["groups"]
        assert [(g["name"], g["channels"]) for g in groups] == [
            ("embed", 6),
            ("inner", 8),
            ("head", 3),
        ]
    message = told(capsys, *command, "--dtype", "int64")
    assert "missing 1 required positional argument: 'mask'" in message
    assert "once for each input" in message
    assert "tokens need --dtype int64" in told(capsys, *command, "--input", "5")
    assert "--dtype int65: choose one of float32" in told(
        capsys, *command, "--input", "5", "--dtype", "int65"
    )
    three = [item for _ in range(3) for item in ("--dtype", "bool")]
    assert "--dtype: 3 for 2 inputs" in told(capsys, *command, "--input", "5", *three)


def test_inspect_a_checkpoint(tmp_path, capsys):
    model = models.build("zoo:vgg11", width=0.25)
    small = netslim.slim(
        model, torch.randn(1, 3, 32, 32), criterion="l1", budget=netslim.Budget(cut_channels=0.5)
    )
    path = netslim.save(
        small,
        tmp_path / "s.safetensors",
        constructor=models.constructor("zoo:vgg11", {"width": 0.25}),
    )
    assert main(["inspect", str(path), "--input", "3", "32", "32", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["params"] == sum(p.numel() for p in small.parameters())
    path.write_bytes(path.read_bytes()[:-10])
    assert "not a whole netslim checkpoint" in told(
        capsys, "inspect", str(path), "--input", "3", "32", "32"
    )


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_is_one_line_and_says_how_to_go_on(tmp_path):
    told, marker = tmp_path / "told.txt", tmp_path / "run" / "01-sparse" / "metrics.csv"
    command = ["run", "digits", "--out", str(tmp_path / "run"), "--trainer.threads", "1"]
    process = fresh.start(main, [*command, "--stages.sparse.epochs", "500"], told=told)
    until = time.monotonic() + 120
    while not marker.exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    assert fresh.ended(process) == 130
    err = told.read_text()
    assert "Traceback" not in err
    assert (
        err.strip().splitlines()[-1].startswith("netslim: interrupted; what is finished is kept in")
    )
    assert marker.exists()
