"""What a run says of disks, links, signals, memory and networks that learn nothing: the finished
work is kept, and the message says what to do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest
import torch
from torch import nn

from netslim.cli import main
from netslim.errors import RecipeError, TrainingError
from netslim.training import run
from netslim.training.loop.divergence import Watch, blind
from netslim.training.loop.room import check_room, needed_bytes
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import DistillOptions, OptimizerOptions, Train
from netslim.training.stages.folder import StageFolder, write_json

TRAIN = {"kind": "train", "epochs": 2, "optimizer": {"lr": 0.01}}


def recipe(stage=None, model=None, **data):
    return parse_recipe(
        {
            "name": "trouble",
            "title": "A test",
            "data": {"name": "digits", "batch_size": 64, "subset": 128, **data},
            "model": {"name": "zoo:vgg", "layers": [4, "M"], "in_channels": 1, **(model or {})},
            "trainer": {"threads": 1, "device": "cpu", "tensorboard": False},
            "stages": [{**TRAIN, **(stage or {})}, {"kind": "measure", "latency": False}],
        }
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "netslim.report.run_page.write", lambda path: (path / "report.html").write_text("")
        )
        run(recipe(), folder)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_a_finished_run_is_shown_from_where_nothing_can_be_written(copied):
    (copied / ".lock").unlink()
    (copied / ".lock").mkdir()  # as on a read-only disk, it cannot be opened, for root neither
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert run(recipe(), copied)["recipe"] == "trouble"
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_run_that_was_moved_and_copied_goes_on(copied, tmp_path):
    (copied / "results.json").unlink()
    (copied / "01-train/stage.json").unlink()
    moved = copied.rename(tmp_path / "elsewhere")
    shutil.copytree(moved, tmp_path / "copy")
    first, second = (run(recipe(), place)["rows"] for place in (moved, tmp_path / "copy"))
    assert first == second


@pytest.mark.parametrize("name", ["results.json", "01-train/metrics.csv"])
def test_a_folder_in_the_place_of_a_file_is_to_be_moved_away(copied, name):
    if name == "results.json":
        (copied / name).unlink()
    else:
        shutil.rmtree(copied / "01-train")
    (copied / name).mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="a folder is in its place: move that away"):
        run(recipe(), copied)
    (copied / name).rmdir()
    run(recipe(), copied)


def test_one_that_goes_on_with_other_arithmetic_says_so(copied, capsys):
    noted = json.loads((copied / "environment.json").read_text())
    assert noted["threads"] == 1
    del noted["digest"]
    write_json(copied / "environment.json", {**noted, "threads": 3, "processor": "another"})
    for name in ("results.json", "02-measure/stage.json"):
        (copied / name).unlink()
    run(recipe(), copied)
    said = capsys.readouterr().err
    assert "computing on cpu in float32, CPU threads: 1\n" in said
    assert "before another; threads 1, before 3)" in said
    noted = json.loads((copied / "environment.json").read_text())
    assert noted["threads"] == 3
    assert "threads 1, before 3" in noted["changed"][0]


@pytest.mark.parametrize("link", [".lock", "01-train", "tensorboard"])
def test_nothing_is_written_through_links(copied, tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    for name in ("results.json", "report.html"):
        (copied / name).unlink()
    shutil.rmtree(copied / "01-train")
    target = outside
    if link == ".lock":
        (copied / ".lock").unlink()
        target = outside / "mine"
    (copied / link).symlink_to(target)
    with pytest.raises(RecipeError, match=f"{link} is a link, and nothing is written through"):
        run(recipe(), copied)
    assert [path.name for path in outside.iterdir()] == ["mine"]
    assert (outside / "mine").read_text() == "mine"


def test_room_is_looked_at_before_training(tmp_path, monkeypatch):
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: used._replace(free=1000))
    with pytest.raises(
        TrainingError, match=r"01-train: .* need 4\.\d MB, and the disk has 0\.0 MB"
    ):
        run(recipe(), tmp_path / "run")
    assert not list((tmp_path / "run/01-train").iterdir())


def test_needed_room_counts_what_lies_side_by_side(tmp_path):
    network, megabytes = nn.Linear(1000, 1000, bias=False), 4
    besides = needed_bytes(nn.Identity(), Train("a", epochs=1)) / 1e6
    for name, keep, copies in (("sgd", "last", 5), ("adamw", "last", 7), ("sgd", "best", 6)):
        stage = Train("a", epochs=1, keep=keep, optimizer=OptimizerOptions(name))
        assert needed_bytes(network, stage) / 1e6 == pytest.approx(copies * megabytes + besides)
    folder = StageFolder(tmp_path, 0, Train("a", epochs=1))
    folder.path.mkdir()
    check_room(network, Train("a", epochs=1), folder)


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    """The last step of the last epoch, without validation images, shows in no loss."""
    stage = {"optimizer": {"lr": 0.01}, "schedule": {"name": "multistep", "milestones": [1]}}
    stage["schedule"]["factor"] = 1e38
    with pytest.raises(
        TrainingError, match=r"epoch 2.* not finite; .*epochs 1 to 1 are kept in .*last\.ckpt"
    ):
        run(recipe(stage, validation=0), tmp_path)
    content = torch.load(tmp_path / "01-train/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in content["state_dict"].values())


# A rate that is far too high behind the first epoch; clipped, or the loss would soon be infinite.
EXPLODING = {
    "clip": 1,
    "optimizer": {"lr": 1e-3, "momentum": 0, "nesterov": False, "weight_decay": 0},
}
EXPLODING["schedule"] = {"name": "multistep", "milestones": [1], "factor": 1e7}


def diverging(epochs, **data):
    """4 steps an epoch."""
    tree = recipe({**EXPLODING, "epochs": epochs}, subset=64, batch_size=16, **data).to_dict()
    return parse_recipe({**tree, "model": {"name": "zoo:mlp", "in_features": 64}})


def test_a_loss_that_explodes_and_stays_finite_stops_the_run(tmp_path):
    with pytest.raises(
        TrainingError,
        match=r"epoch 14, step 4 of 4: the loss of 51 steps in a row was more than 10 times that of "
        r"blind guessing \(2\.30\), so training has diverged; try a lower learning rate .*; epochs 1 "
        r"to 1 are kept in .*last\.ckpt",
    ):
        run(diverging(20, validation=0), tmp_path)
    content = torch.load(tmp_path / "01-train/last.ckpt", weights_only=True)
    assert content["epoch"] == 0


def test_what_is_too_short_to_be_stopped_ends_with_a_warning(tmp_path):
    found = run(diverging(3), tmp_path)
    assert any("training has diverged: the loss of the last" in text for text in found["warnings"])


def test_losses_that_are_far_off_count_while_they_last():
    watch = Watch(blind(10), steps=100)
    for losses, streak in (([25.0] * 40, 40), ([25.0] * 59, 99), ([1.0, 25, 25], 2), ([1.0], 0)):
        watch.see(torch.tensor(losses))
        assert (watch.streak, watch.exploded) == (streak, False)
    watch.see(torch.full((100,), 24.0))
    assert watch.exploded
    assert blind(10, DistillOptions(weight=0.5, temperature=2)) == pytest.approx(2.5 * blind(10))


def test_scales_that_are_all_dead_are_told(tmp_path):
    sparsity = {"method": "network_slimming", "strength": 50, "penalty": "proximal"}
    found = run(recipe({"sparsity": sparsity}), tmp_path)
    assert any(
        "all scales are near zero" in text and "--stages.train.sparsity.strength 5)" in text
        for text in found["warnings"]
    )


def test_a_batch_of_one_is_told(tmp_path):
    model = {"layers": [4, "M", 4, "M", 4, "M", 4]}
    with pytest.raises(TrainingError, match=r"single value of a channel.*--data\.batch_size 2"):
        run(recipe(model=model, batch_size=1), tmp_path)


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_memory_that_is_short_is_told(tmp_path, monkeypatch, error):
    def short(*arguments):
        raise error

    monkeypatch.setattr(nn.BatchNorm2d, "forward", short)
    monkeypatch.setattr("netslim.training.stages.networks.Networks.check_outputs", lambda *_: None)
    with pytest.raises(
        TrainingError, match=r"not enough memory .* 64 images.*--data\.batch_size 32"
    ):
        run(recipe(), tmp_path)


def test_a_full_disk_is_one_line_with_the_path(monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device", "runs/a/metrics.csv")

    monkeypatch.setattr("netslim.cli._dispatch", full)
    assert main(["run", "digits"]) == 1
    assert (
        "the disk is full: runs/a/metrics.csv cannot be written; make room"
        in capsys.readouterr().err
    )


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("where", ["loop.fit._run", "stages.runner.foresee"])
def test_sigterm_anywhere_is_told_with_advice(tmp_path, monkeypatch, capsys, where):
    def stopped(*arguments, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    monkeypatch.setattr(f"netslim.training.{where}", stopped)
    asked = ["run", "digits", "--out", str(tmp_path / "run"), "--trainer.device", "cpu"]
    assert main(asked) == 130
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(
            f"netslim: interrupted; what is finished is kept in {tmp_path}/run; go on with: netslim run"
        )
    )
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
