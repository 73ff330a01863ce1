"""`netslim train`, `finetune`, `prune`, `evaluate`: each does its one thing, and every mistake is
one line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim.cli import main
from netslim.data.sources import load as load_data
from netslim.data.splits import Data
from netslim.models import checkpoint
from netslim.training.commands import step as single
from netslim.training.stages import prune as cutting

VGG = ["zoo:vgg", "--model.layers", "[16, M, 32]", "--model.in_channels", "1"]
RESNET = ["zoo:resnet", "--model.depth", "8", "--model.in_channels", "1", "--model.width", "0.5"]
ONE = ["--trainer.threads", "1"]
DATA = ["--data", "digits", *ONE]
INPUT = ["--input", "1", "8", "8", *ONE]
QUICK = ["--trainer.limit_batches", "2", "--trainer.tensorboard", "false"]
QUICK_TRAIN = [*DATA, *QUICK, "--epochs", "1"]


def go(*arguments: object) -> None:
    assert main([str(item) for item in arguments]) == 0


def told(capsys, *arguments: object) -> str:
    """What a failing command says: one line on standard error, and exit code 1."""
    capsys.readouterr()
    assert main([str(item) for item in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("netslim: ")
    return line


def params(path: Path) -> int:
    return sum(p.numel() for p in netslim.models.build(path).parameters())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pixels_of(data: Data) -> Tensor:
    """The test images as a network sees them."""
    return (data.test.images.float() / 255 - data.mean[0]) / data.std[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """A VGG and a ResNet, hardly trained."""
    folder = tmp_path_factory.mktemp("trained")
    paths = {"vgg": folder / "vgg.safetensors", "resnet": folder / "resnet.safetensors"}
    go("train", *VGG, *QUICK_TRAIN, "--out", paths["vgg"])
    go("train", *RESNET, *QUICK_TRAIN, "--out", paths["resnet"])
    return paths


# ---------------------------------------------------------------- what each command does


def test_train_trains_once(tmp_path, capsys):
    out = tmp_path / "new" / "a.safetensors"
    go("train", *VGG, *DATA, *QUICK, "--epochs", 3, "--milestones", 0.5, "--lr", 0.02, "--out", out)
    rows = (tmp_path / "new" / "a.run" / "01-train" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]
    assert capsys.readouterr().out.startswith("trained for 3 epochs in ")
    assert params(out) == params(out.with_suffix(".run") / "01-train" / "model.safetensors") == 5178


def test_what_knows_nothing_is_said_to_be_chance(trained, tmp_path, capsys):
    known = netslim.models.build(trained["vgg"])
    nn.init.zeros_(known.classifier[-1].weight)  # one and the same answer to everything
    blind = tmp_path / "blind.safetensors"
    origin = checkpoint.read(trained["vgg"])[0]["constructor"]
    netslim.save(known, blind, constructor=origin)
    go("evaluate", blind, *DATA)
    assert "% may be chance: 10 classes, 359 pictures" in capsys.readouterr().out
    go("evaluate", blind, *DATA, "--json", "--trainer.limit_batches", 1)
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 128
    assert "may be chance: 10 classes, 128 pictures" in found["notes"][-1]
    still = ["--lr", 1e-12, "--out", tmp_path / "still.safetensors"]
    go("finetune", blind, *QUICK_TRAIN, *still)
    assert "validation: an accuracy of " in capsys.readouterr().err
    out = tmp_path / "out"
    go("sensitivity", blind, *DATA, "--layers", "features.0", "--ratios", 0.5, "--out", out)
    said = capsys.readouterr().out
    assert "may be chance: 10 classes, 144 pictures" in said
    assert "note: 144 validation images decide: one of them is 0.69 points" in said
    go(
        "sensitivity",
        blind,
        *DATA,
        "--layers",
        "features.0",
        "--ratios",
        0.5,
        "--out",
        out,
        "--max-drop",
        1,
    )
    assert "points, more than the drop allowed" in capsys.readouterr().out


def accuracies_in(said: str) -> tuple[float, float]:
    """Before and after a cut, of all 144 validation images."""
    found = re.search(r"^validation accuracy: (\S+) % -> (\S+) % \(.*, 144 images\)$", said, re.M)
    assert found is not None
    return float(found[1]) / 100, float(found[2]) / 100


def test_a_cut_says_that_what_is_left_knows_nothing(trained, tmp_path, capsys):
    """And looks at as many images as it is told; at none, where it is told so."""
    asked = ["prune", trained["vgg"], *DATA, "--criterion", "l1", "--cut-channels", 0.95]
    go(*asked, "--limit-images", 40, "--out", tmp_path / "a.safetensors")
    said = capsys.readouterr().out
    assert " points, 40 images)" in said
    assert "may be chance: 10 classes, 40 pictures" in said
    out = tmp_path / "b.safetensors"
    go(*asked, "--limit-images", 0, "--out", out, "--json")
    said = json.loads(capsys.readouterr().out)
    assert "accuracy" not in said["after"]
    assert (said["after"]["params"], said["network"]) == (params(out), str(out))
    assert [(row["before"], row["after"]) for row in said["widths"]] == [(16, 1), (32, 2)]
    assert said["deviation"] < 1e-5


def test_what_the_clock_said_of_a_cut_is_in_its_json(trained, tmp_path, capsys, monkeypatch):
    """As a budget of latency leaves it; that of a cut which nobody timed has no such key."""
    asked, cut = (
        ["prune", trained["vgg"], *INPUT, "--cut-channels", 0.5, "--json"],
        cutting.carry_out,
    )
    go(*asked, "--out", tmp_path / "a.safetensors")
    assert "latency" not in json.loads(capsys.readouterr().out)

    def timed(*given, **more):
        done = cut(*given, **more)
        why = replace(done.plan.why, latency={"asked": 0.6, "foretold": 0.5, "measured": 0.58})
        return replace(done, plan=replace(done.plan, why=why))

    monkeypatch.setattr(cutting, "carry_out", timed)
    go(*asked, "--out", tmp_path / "b.safetensors")
    said = json.loads(capsys.readouterr().out)
    assert said["latency"] == {"asked": 0.6, "foretold": 0.5, "measured": 0.58}


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_what_was_cut_is_trained_cut_and_looked_at_again(name, trained, tmp_path, capsys):
    files = [tmp_path / f"{step}.safetensors" for step in ("cut", "tuned", "again")]
    go("prune", trained[name], *INPUT, "--cut-channels", 0.5, "--out", files[0])
    said = capsys.readouterr().out
    assert f"params: {params(trained[name]):,} -> {params(files[0]):,} (-" in said
    assert "verified: the outputs deviate by no more than " in said
    tune = ["finetune", files[0], *QUICK_TRAIN, "--teacher", trained[name]]
    go(*tune, "--out", files[1], "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["network"], told["curves"]["epoch"]) == (str(files[1]), [1])
    go(
        "prune",
        files[1],
        *DATA,
        "--cut-channels",
        0.3,
        "--criterion",
        "taylor",
        "--batches",
        2,
        "--out",
        files[2],
    )
    before, after = accuracies_in(capsys.readouterr().out)
    for file, share in ((files[1], before), (files[2], after)):
        go("evaluate", file, *DATA, "--split", "validation", "--json")
        assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(share, abs=6e-5)
    sizes = [params(path) for path in (trained[name], *files)]
    assert sizes[0] > sizes[1] == sizes[2] > sizes[3]
    capsys.readouterr()
    go("evaluate", files[2], *DATA, "--json")
    assert json.loads(capsys.readouterr().out)["params"] == sizes[3]


def test_prune_takes_the_images_that_the_file_was_trained_on(trained, tmp_path):
    """As `inspect`, `export` and `bench` do; it cuts what it cuts where they are said."""
    files = [tmp_path / "told.safetensors", tmp_path / "said.safetensors"]
    for file, where in zip(files, (ONE, INPUT), strict=True):
        go("prune", trained["vgg"], *where, "--cut-macs", 0.5, "--out", file)
    told, said = (file.with_suffix(".plan.json").read_text() for file in files)
    assert told == said


class TwoReadings(nn.Module):
    """Both layers are as wide as `width`, which `forward` does not read, and lose different numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a, self.b, self.c = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())

    def other(self) -> int:
        return self.width


def test_what_stays_of_remembered_widths_is_told_once(tmp_path, capsys, caplog):
    amounts = ["--layers", "a", "b", "--counts", 2, 4]
    go("prune", f"{__name__}:TwoReadings", *INPUT, *amounts, "--out", tmp_path / "a.safetensors")
    told = "".join(capsys.readouterr()) + caplog.text
    assert told.count("width (8, now 4 or 6)") == 1


def test_evaluate_says_that_a_name_alone_has_fresh_weights(capsys):
    go("evaluate", "zoo:vgg", *DATA, "--model.layers", "[4]", "--model.in_channels", "1")
    assert "note: zoo:vgg has fresh weights" in capsys.readouterr().out


def test_evaluate_looks_and_writes_nothing(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained["vgg"].parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    go("evaluate", "vgg.safetensors", *DATA, "--json")
    found = json.loads(capsys.readouterr().out)
    go("evaluate", "vgg.safetensors", *DATA)
    assert contents(tmp_path) == before
    data = load_data("digits")
    with torch.inference_mode():
        logits = netslim.models.build("vgg.safetensors").eval()(pixels_of(data))
    top5 = (logits.topk(5).indices == data.test.labels[:, None]).any(1)
    assert found["images"] == 359
    assert found["top1"] == pytest.approx(
        (logits.argmax(1) == data.test.labels).float().mean().item(), abs=1e-6
    )
    assert found["top5"] == pytest.approx(top5.float().mean().item(), abs=1e-6)
    assert found["loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, data.test.labels).item(), abs=1e-5
    )
    assert f"top-1 {found['top1']:.2%}  top-5 {found['top5']:.2%}" in capsys.readouterr().out


def test_ten_crops_as_large_as_the_image_are_the_image_and_its_mirror(trained, capsys):
    go("evaluate", trained["vgg"], *DATA, "--ten-crop", 8, "--json")
    found = json.loads(capsys.readouterr().out)
    data, network = load_data("digits"), netslim.models.build(trained["vgg"]).eval()
    with torch.inference_mode():
        logits = (network(pixels_of(data)) + network(pixels_of(data).flip(3))) / 2
    assert found["loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, data.test.labels).item(), abs=1e-5
    )


def test_named_layers_in_any_order(trained, tmp_path):
    amounts = [("features.0", 4), ("features.4", 24)]
    for name, pairs in (("a", amounts), ("b", amounts[::-1])):
        layers, counts = zip(*pairs, strict=True)
        out = tmp_path / f"{name}.safetensors"
        go(
            "prune",
            trained["vgg"],
            *INPUT,
            "--by",
            "greedy",
            "--layers",
            *layers,
            "--counts",
            *counts,
            "--out",
            out,
        )
    plan = netslim.PruningPlan.from_json((tmp_path / "a.plan.json").read_text())
    assert {name: len(cut.kept) for name, cut in plan.groups.items()} == {
        "features.0": 12,
        "features.4": 8,
    }
    assert (tmp_path / "a.plan.json").read_text() == (tmp_path / "b.plan.json").read_text()
    network = netslim.models.build(trained["vgg"]).eval()
    graph = netslim.trace(network, torch.randn(2, 1, 8, 8))
    wanted = netslim.selection.greedy(graph, network, dict(amounts))
    assert (plan.groups, plan.tensors) == (wanted.groups, wanted.tensors)
    assert plan.why is not None
    assert (plan.why.criterion, plan.why.allocation) == ("l1", "greedy")
    assert plan.why.per_group == {"features.0": 4, "features.4": 24}


def test_soft_training_then_what_is_zero(trained, tmp_path):
    soft, small = tmp_path / "soft.safetensors", tmp_path / "small.safetensors"
    method = ["--sparsity.method", "soft_filter", "--sparsity.rate", 0.25]
    go("train", trained["vgg"], *QUICK_TRAIN, *method, "--out", soft)
    go("prune", soft, *INPUT, "--by", "zeros", "--out", small)
    network = netslim.models.build(small)
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == [12, 24]


def test_centripetal_training_then_merging(trained, tmp_path, capsys):
    drawn, merged = tmp_path / "drawn.safetensors", tmp_path / "merged.safetensors"
    method = [
        "--sparsity.method",
        "centripetal",
        "--sparsity.target",
        0.5,
        "--sparsity.strength",
        0.5,
    ]
    go("train", trained["vgg"], *QUICK_TRAIN, *method, "--out", drawn)
    go("prune", drawn, *INPUT, "--by", "clusters", "--out", merged)
    network = netslim.models.build(merged)
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == [8, 16]
    on = tmp_path / "on.safetensors"
    go("finetune", drawn, *QUICK_TRAIN, "--out", on)
    line = told(
        capsys, "prune", on, *INPUT, "--by", "clusters", "--out", tmp_path / "x.safetensors"
    )
    assert "does not say what was drawn together" in line


def test_a_mask_is_held_while_training_and_cut_later(trained, tmp_path, capsys):
    masked, tuned, small = (
        tmp_path / f"{name}.safetensors" for name in ("masked", "tuned", "small")
    )
    go("prune", trained["vgg"], *INPUT, "--cut-channels", 0.5, "--mask", "--out", masked)
    assert params(masked) == params(trained["vgg"])
    go("finetune", masked, *QUICK_TRAIN, "--lr", 0.1, "--out", tuned)
    plan = netslim.PruningPlan.from_json((tmp_path / "masked.plan.json").read_text())
    network = netslim.models.build(tuned)
    assert not network.get_parameter("features.1.weight")[
        list(plan.groups["features.0"].removed)
    ].any()
    assert not torch.equal(
        network.features[0].weight, netslim.models.build(masked).features[0].weight
    )
    go("prune", tuned, *INPUT, "--by", "mask", "--out", small)
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(netslim.models.build(small).eval()(images), network.eval()(images))
    assert params(small) < params(tuned)
    assert "--by mask" in told(
        capsys, "prune", tuned, *INPUT, "--cut-channels", 0.5, "--out", tmp_path / "x.safetensors"
    )
    line = told(
        capsys,
        "train",
        tuned,
        *QUICK_TRAIN,
        "--sparsity.strength",
        0.1,
        "--out",
        tmp_path / "x.safetensors",
    )
    assert "is masked" in line
    # Another command than the one that was typed.
    assert "with `netslim prune --by mask`" in told(
        capsys, "sensitivity", tuned, "--data", "digits", "--out", tmp_path / "explored"
    )
    assert "is not masked" in told(
        capsys, "prune", small, *INPUT, "--by", "mask", "--out", tmp_path / "x.safetensors"
    )


def test_scales_of_a_checkpoint_are_kept_and_those_of_a_fresh_network_start_at_one_half():
    def start(model: str, **overrides: str) -> float | None:
        chosen = {
            "sparsity.strength": "1e-3",
            **{f"sparsity.{key}": text for key, text in overrides.items()},
        }
        return (
            single.step("train", model, "digits", {"epochs": 1}, chosen)
            .stages[0]
            .sparsity.gamma_init
        )

    assert start("zoo:vgg16") == 0.5
    assert start("a.safetensors") is None
    assert start("a.safetensors", gamma_init="0.5") == 0.5


def test_nothing_cut_is_said(trained, tmp_path, capsys):
    go("prune", trained["vgg"], *INPUT, "--cut-channels", 0, "--out", tmp_path / "a.safetensors")
    captured = capsys.readouterr()
    assert "nothing was cut" in captured.err
    assert "verified" not in captured.out


# ---------------------------------------------------------------- kills


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_and_the_same_command_again(tmp_path, capsys):
    def train(name: str) -> list[str]:
        return [
            "train",
            *VGG,
            *DATA,
            *QUICK,
            "--epochs",
            "30",
            "--out",
            str(tmp_path / f"{name}.safetensors"),
        ]

    go(*train("whole"))
    row = tmp_path / "a.run" / "01-train" / "metrics.csv"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while not row.exists() and time.monotonic() < until:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main(train("a")) == 130
    thread.join()
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(
        f"netslim: interrupted; what is finished is kept in {tmp_path}/a.run; go on with: "
        "netslim train "
    )
    assert not (tmp_path / "a.safetensors").exists()
    done = len(row.read_text().splitlines()) - 1
    assert 1 <= done < 30
    line = told(capsys, *train("a"), "--lr", 0.3)
    assert "begun with other settings" in line
    go(*train("a"))
    assert f"epoch {done}/30" not in capsys.readouterr().err
    (_, whole), (_, resumed) = (
        checkpoint.read(tmp_path / f"{name}.safetensors") for name in ("whole", "a")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert "exists already" in told(capsys, *train("a"))


def test_a_cut_that_was_killed_before_its_network_was_there_is_made_again(trained, tmp_path):
    asked = ["prune", trained["vgg"], *INPUT, "--cut-macs", 0.3, "--out"]
    go(*asked, tmp_path / "whole.safetensors")
    go(*asked, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").unlink()  # the plan is written first
    left = tmp_path / ".a.0123456789ab.tmp.safetensors"
    left.write_bytes(b"half a network")
    go(*asked, tmp_path / "a.safetensors")
    for name in (".safetensors", ".plan.json"):
        made, whole = ((tmp_path / f"{stem}{name}").read_bytes() for stem in ("a", "whole"))
        assert made == whole
    assert not left.exists()


def test_of_two_cuts_into_one_file_the_second_is_refused(trained, tmp_path, monkeypatch, capsys):
    out = tmp_path / "a.safetensors"
    asked = ["prune", trained["vgg"], *INPUT, "--out", out, "--cut-macs"]
    cut = cutting.carry_out

    def meanwhile(*arguments, **more):
        found = cut(*arguments, **more)
        monkeypatch.setattr(cutting, "carry_out", cut)
        go(*asked, 0.5)
        capsys.readouterr()
        return found

    monkeypatch.setattr(cutting, "carry_out", meanwhile)
    assert "exists already" in told(capsys, *asked, 0.3)
    plan = json.loads((tmp_path / "a.plan.json").read_text())
    go("prune", trained["vgg"], *INPUT, "--out", tmp_path / "b.safetensors", "--cut-macs", 0.5)
    assert plan == json.loads((tmp_path / "b.plan.json").read_text())


def test_what_cuts_a_slimmed_network_unasked_is_told(tmp_path, capsys):
    """One line, with the flag that has the scales decide; nothing where a criterion is named."""
    path = tmp_path / "slim.safetensors"
    go("train", *VGG, *QUICK_TRAIN, "--sparsity.method", "network_slimming", "--out", path)
    asked = ["prune", path, *INPUT, "--cut-macs", 0.3, "--out"]
    capsys.readouterr()
    go(*asked, tmp_path / "a.safetensors")
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "Slimming" in text]
    assert line.startswith("note: trained by Network Slimming and cut by obs on noise,")
    assert "with --criterion bn_scale it is cut by its scales" in line
    go(*asked, tmp_path / "b.safetensors", "--criterion", "l1")
    assert "Slimming" not in capsys.readouterr().out


# ---------------------------------------------------------------- mistakes

CUT = ["prune", "resnet.safetensors", *INPUT, "--out", "x.safetensors"]
TRAIN = ["train", *VGG, *QUICK_TRAIN, "--out", "x.safetensors"]
TUNE = ["finetune", "resnet.safetensors", *QUICK_TRAIN, "--out", "x.safetensors"]
MISTAKES = [
    (CUT, "--cut-channels 0.5"),
    ([*CUT, "--cut-channels", "0.5", "--limit-images", "9"], "--limit-images is of --data, which is not given"),
    ([*CUT, "--by", "greedy", "--cut-channels", "0.5"], "name --layers"),
    ([*CUT, "--by", "greedy", "--layers", "conv1", "--counts", "3", "--allocation", "cost"], "--allocation means nothing"),
    ([*CUT, "--by", "zeros", "--layers", "conv1", "--counts", "3"], "finds out itself"),
    ([*CUT, "--cut-channels", "0.5", "--allocation", "isomorfic"], "did you mean 'isomorphic'"),
    ([*CUT, "--by", "clusters", "--cut-channels", "0.5"], "finds out itself"),
    ([*CUT, "--by", "clusters", "--max-cut", "0.5"], "--max-cut means nothing"),
    ([*CUT, "--by", "zeros"], "zero"),
    ([*CUT, "--layers", "layer1.0.con1", "--counts", "3"], "did you mean 'layer1.0.conv1'"),
    ([*CUT, "--layers", "layer1.0.conv1", "--counts", "30"], "has 8 channels and 30 should go"),
    ([*CUT, "--layers", "layer1.0.conv1", "--counts", "-3"], "--layers layer1.0.conv1: is -3"),
    ([*CUT, "--layers", "layer1.0.conv1", "--shares", "1.0"], "from 0 to below 1"),
    ([*CUT, "--layers", "layer1.0.conv1", "--counts", "3", "4"], "--layers names 1, --counts 2"),
    ([*CUT, "--layers", "conv1", "conv1", "--counts", "3", "4"], "'conv1' twice"),
    ([*CUT, "--cut-channels", "1.0"], "at least 0 and below 1"),
    ([*CUT, "--cut-channels", "0.5", "--criterion", "bnscale"], "did you mean 'bn_scale'"),
    ([*CUT, "--cut-channels", "0.5", "--criterion", "taylor"], "--data"),
    ([*CUT, "--cut-channels", "0.5", "--fold", "constant"], "--data"),
    ([*CUT, "--cut-channels", "0.5", "--data", "digits"], "--input 3 32 32"),
    ([*CUT, "--cut-channels", "0.5", "--budgt.max_macs", "9"], "did you mean 'budget'"),
    ([*CUT[:-1], "x.pth", "--cut-channels", "0.5"], "x.pth.safetensors"),
    ([*CUT[:-1], "vgg.safetensors", "--cut-channels", "0.5"], "exists already"),
    ([*CUT[:-1], "plan.safetensors", "--cut-channels", "0.5"], "plan.plan.json exists already"),
    (["prune", "resnet.safetensors", "--input", "3", "8", "8", "--cut-channels", "0.5", *CUT[-2:]], "does not run on"),
    (["prune", "resnet.safetensors", "--input", "0", "8", "8", "--cut-channels", "0.5", *CUT[-2:]], "1 or more"),
    (["prune", "none.safetensors", *INPUT, "--cut-channels", "0.5", *CUT[-2:]], "cannot read "
                                                                                "none.safetensors"),
    (["prune", "damaged.safetensors", *INPUT, "--cut-channels", "0.5", *CUT[-2:]], "not a whole netslim checkpoint"),
    (["evaluate", "damaged.safetensors", *DATA], "not a whole netslim checkpoint"),
    (["evaluate", "none.safetensors", *DATA], "cannot read none.safetensors"),
    (["evaluate", "zoo:vgg11", *DATA], "does not take the images of digits"),
    (["evaluate", "vgg.safetensors", *DATA, "--ten-crop", "9"], "ten crops of 9 pixels"),
    (["evaluate", "vgg.safetensors", *DATA, "--split", "validation", "--data.validation", "0"], "no validation images"),
    (["evaluate", "vgg.safetensors", "--data", "digitz"], "digits"),
    (["evaluate", "vgg.safetensors", *DATA, "--optimizer.lr", "1"], "optimizer: there is no "
                                                                    "such option"),
    (["train", "zoo:vg16", *QUICK_TRAIN, "--out", "x.safetensors"], "vgg16"),
    ([*TRAIN, "--lr-factor", "0.5"], "falls at --milestones"),
    ([*CUT[:-1], ".", "--cut-channels", "0.5"], "for instance small.safetensors"),
    (["train", "vgg.safetensors", "--model.width", "2", *QUICK_TRAIN, "--out", "x.safetensors"], "width"),
    (["train", *VGG, *DATA, *QUICK, "--epochs", "0", *TRAIN[-2:]], "--epochs: is 0"),
    ([*TRAIN, "--lr", "-1"], "--lr: is -1.0"),
    ([*TRAIN, "--seed", "-1"], "--seed: is -1"),
    ([*TRAIN, "--batch-size", "0"], "--batch-size: is 0"),
    ([*TRAIN, "--keep", "best", "--validation", "0"], "'best' needs validation images"),
    ([*TRAIN, "--sparsity.method", "soft_filtr"], "did you mean 'soft_filter'"),
    ([*TRAIN, "--sparsity.method", "soft_filter", "--sparsity.rate", "1.0"], "at least 0 and "
                                                                             "below 1"),
    ([*TRAIN, "--sparsty.method", "soft_filter"], "did you mean 'sparsity'"),
    ([*TUNE, "--teacher", "none.safetensors"], "cannot read none.safetensors"),
    ([*TUNE, "--teacher", "vgg"], "--teacher vgg"),
    ([*TUNE, "--teacher", "a.pth"], "--teacher zoo:vgg16 --teacher-weights a.pth"),
    ([*TUNE, "--teacher-weights", "a.pth"], "--teacher-weights a.pth: name the network that"),
    ([*TUNE, "--teacher", "zoo:vgg11"], "zoo:vgg11 does not take the images"),
    ([*TUNE[:-1], "folder.safetensors"], "folder.run is not empty"),
]  # fmt: skip


@pytest.fixture(scope="module")
def workshop(trained, tmp_path_factory) -> Path:
    """A folder with checkpoints, a damaged one, and things that are in the way."""
    folder = tmp_path_factory.mktemp("workshop")
    for path in trained.values():
        shutil.copy(path, folder)
    (folder / "damaged.safetensors").write_bytes(trained["vgg"].read_bytes()[:-9])
    (folder / "plan.plan.json").write_text("mine")
    (folder / "folder.run").mkdir()
    (folder / "folder.run" / "mine.txt").write_text("mine")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=[" ".join(given)[-60:] for given, _ in MISTAKES]
)
def test_mistakes_are_one_line_and_nothing_is_lost_or_left(
    arguments, message, workshop, monkeypatch, capsys
):
    monkeypatch.chdir(workshop)
    before = contents(workshop)
    assert message in told(capsys, *arguments)
    assert contents(workshop) == before


@pytest.mark.parametrize("command", ["train", "finetune", "prune", "evaluate"])
def test_help_fits_a_hundred_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "MODEL is a .safetensors file" in text
