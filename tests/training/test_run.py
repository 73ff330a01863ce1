"""A run: its folder, its figures, and that it survives being killed anywhere."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import time
from bisect import bisect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pyarrow import parquet
from safetensors.torch import load_file
from torch import nn

import fresh
import netslim
from killed_runs import kill
from netslim._support import write_atomic
from netslim.errors import CheckpointError, NetslimError, RecipeError, TrainingError
from netslim.training import run
from netslim.training.loop.epochs import derive
from netslim.training.loop.gammas import (
    EDGES,
    histogram,
    share_near_zero,
    trimmed,
)
from netslim.training.loop.progress import Display
from netslim.training.recipe.reading import load_recipe, parse_recipe
from netslim.training.recipe.schema import Recipe
from netslim.training.stages import runner
from netslim.training.stages.folder import RunFolder, digest, read_json
from netslim.training.stages.measure import entries

# Small, but with all that a resumed run could lose: momentum, a schedule, dropout, augmentation,
# the best epoch.
SMALL: dict[str, Any] = {
    "name": "small",
    "title": "A test",
    "data": {
        "name": "digits",
        "batch_size": 64,
        "subset": 256,  # four steps an epoch
        "augment": {"pad": 1, "flip": False},
    },
    "model": {
        "name": "zoo:vgg",
        "layers": [16, "M", 16],
        "in_channels": 1,
        "head": [16],
        "dropout": 0.5,
    },
    "trainer": {"threads": 1, "device": "cpu", "tensorboard": False},
    "stages": [
        {
            "kind": "train",
            "name": "sparse",
            "epochs": 3,
            "optimizer": {"lr": 0.1},
            "schedule": {"name": "onecycle"},
            "sparsity": {"strength": 0.01},
        },
        {"kind": "prune", "budget": {"cut_channels": 0.5}},
        {
            "kind": "finetune",
            "epochs": 2,
            "keep": "best",
            "optimizer": {"lr": 0.05},
            "schedule": {"name": "cosine"},
        },
        {"kind": "measure"},
    ],
}
NETWORKS = ("01-sparse", "02-prune", "03-finetune")


def small(**changes: Any) -> Recipe:
    return parse_recipe({**SMALL, **changes})


def stages(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return [*items, {"kind": "measure", "latency": False}]


def metrics(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in csv.DictReader(file)
        ]


def figures(folder: Path) -> dict[str, Any]:
    """All numbers of a finished run that must not depend on when it was killed."""
    results = json.loads((folder / "results.json").read_text())
    rows = [
        {key: value for key, value in row.items() if key != "latency_ms"} for row in results["rows"]
    ]
    same = {key: results[key] for key in ("widths", "scales", "curves", "verification", "warnings")}
    tables = [metrics(folder / stage / "metrics.csv") for stage in ("01-sparse", "03-finetune")]
    weights = {name: weights_of(folder / name) for name in NETWORKS}
    return {
        "rows": rows,
        **same,
        "tables": tables,
        "weights": weights,
        "plan": (folder / "02-prune/plan.json").read_text(),
    }


CLOCKS = ("seconds", "latency_ms", "resumed", "date", "command", "digest")


def everything(folder: Path) -> dict[str, Any]:
    """What is in every file of a run, but for times, and for what is made from other files."""
    readers = {
        ".json": lambda path: without_times(json.loads(path.read_text()), path.parent),
        ".csv": metrics,
        ".ckpt": lambda path: without_times(torch.load(path, weights_only=True), path.parent),
        ".safetensors": Path.read_bytes,
        ".yaml": Path.read_text,
    }
    made = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): readers.get(path.suffix, lambda path: None)(path)
        for path in made
    }


def without_times(found: Any, folder: Path) -> Any:
    """Plain data with tensors as lists; of a digest of metrics.csv, whether it is right."""
    if isinstance(found, dict):
        kept = {
            key: without_times(value, folder) for key, value in found.items() if key not in CLOCKS
        }
        if "metrics.csv" in kept:
            assert kept.pop("metrics.csv") == digest(folder / "metrics.csv")
        return kept
    if isinstance(found, (list, tuple)):
        return [without_times(value, folder) for value in found]
    if isinstance(found, torch.Tensor):
        return found.tolist()
    return found


def weights_of(folder: Path) -> dict[str, bytes]:
    """Bytes by name; the file itself may list them in another order."""
    return {
        key: value.numpy().tobytes()
        for key, value in load_file(folder / "model.safetensors").items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(small(), folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_checkpoint_names_its_record_as_version_0_1_did(finished):
    """Under another name a run that was begun then would go on without its first rows."""
    content = torch.load(finished / "01-sparse" / "last.ckpt", weights_only=True)
    assert [len(state["rows"]) for state in content["callbacks"].values()] == [3]
    assert list(content["callbacks"]) == ["Journal"]


def unfinished(folder: Path, *lost: str) -> Path:
    """The run as if it had been killed before it wrote `lost`."""
    for name in ("results.json", "report.html", "04-measure/stage.json", *lost):
        (folder / name).unlink()
    return folder


# ---------------------------------------------------------------- what a run leaves


def test_a_run_leaves_everything(finished):
    for stage in ("01-sparse", "03-finetune"):
        assert {"last.ckpt", "metrics.csv", "model.safetensors", "stage.json"} <= {
            p.name for p in (finished / stage).iterdir()
        }
    assert {"plan.json", "model.safetensors", "stage.json"} == {
        p.name for p in (finished / "02-prune").iterdir()
    }
    assert {"config.yaml", "environment.json", "results.json", "report.html"} <= {
        p.name for p in finished.iterdir()
    }
    assert not list(finished.rglob(".*.tmp*"))


def test_metrics_hold_every_epoch_once(finished):
    rows = metrics(finished / "01-sparse" / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["4", "8", "12"]  # 256 images in batches of 64
    assert all(float(row["penalty"]) > 0 and row["val_accuracy"] for row in rows)


def test_the_results_are_what_the_report_reads(finished):
    from netslim.report import results_file

    results = results_file.read(finished)
    assert [row["key"] for row in results["rows"]] == ["before", "pruned", "fine-tuned"]
    before, pruned, tuned = results["rows"]
    assert before["params"] > pruned["params"] == tuned["params"]
    assert before["macs"] > pruned["macs"] == tuned["macs"]
    assert before["size_bytes"] == (finished / "01-sparse" / "model.safetensors").stat().st_size
    assert all(
        0 < row["latency_ms"]["low"] <= row["latency_ms"]["median"] for row in results["rows"]
    )
    assert results["environment"]["threads"] == 1
    assert results["environment"]["versions"]["torch"] == torch.__version__
    assert "<html" in (finished / "report.html").read_text()


def test_the_cut_is_the_budget_and_is_proved(finished):
    results = json.loads((finished / "results.json").read_text())
    (proof,) = results["verification"]
    assert proof["cut"] == 24  # half of 16 + 16 + 16
    assert proof["deviation"] < 1e-10
    assert sum(layer["before"] - layer["after"] for layer in results["widths"]) == 24
    assert sum(layer["before"] for layer in results["widths"]) == 48


def test_the_histograms_are_of_all_scales(finished):
    scales = json.loads((finished / "results.json").read_text())["scales"]
    assert sum(scales["before"]) == sum(scales["after"]) == 48
    assert len(scales["edges"]) == len(scales["before"]) + 1
    started = [
        edge for edge, count in zip(scales["edges"], scales["before"], strict=False) if count
    ]
    assert len(started) == 1
    assert started[0] < 0.5 < scales["edges"][scales["edges"].index(started[0]) + 1]


def test_the_scales_of_one_layer_are_known_for_every_epoch(finished):
    """Of three batch norms with 16 scales each, the one in the middle."""
    scales = json.loads((finished / "results.json").read_text())["scales"]
    trained = len(metrics(finished / "01-sparse" / "metrics.csv"))
    network = netslim.models.build(finished / "01-sparse" / "model.safetensors")
    norms = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    name, norm = norms[1]
    assert scales["layer"] == name
    assert len(scales["levels"]) == 1 + trained
    ends = [[*bytes.fromhex(text)] for text in (scales["levels"][0], scales["levels"][-1])]
    assert ends[0] == [bisect(scales["bins"], 0.5) - 1] * 16
    assert ends[1] == [bisect(scales["bins"], abs(scale)) - 1 for scale in norm.weight.tolist()]


def test_where_the_channels_went_and_by_which_scores(finished):
    results = json.loads((finished / "results.json").read_text())
    lines = {line["name"]: line for line in results["picture"]["lines"]}
    assert {row["layer"]: row["before"] for row in results["widths"]}.items() <= {
        name: line["size"] for name, line in lines.items()
    }.items()
    (scored,) = results["scores"]
    assert (scored["stage"], scored["criterion"]) == ("02-prune", "obs")
    assert len(scored["layers"]) == len(results["widths"])
    for row in scored["layers"]:  # a threshold lies between
        assert max(row["gone"], default=0.0) <= row["kept"][0] <= row["kept"][-1]
    before, pruned, _ = results["rows"]
    assert before["peak_bytes"] > pruned["peak_bytes"] > 4 * 64  # of an image of 8 x 8


def test_the_networks_load_without_the_recipe(finished):
    small_network = netslim.models.build(finished / "03-finetune" / "model.safetensors").eval()
    widths = [m.out_channels for m in small_network.modules() if isinstance(m, nn.Conv2d)]
    after = [
        layer["after"] for layer in json.loads((finished / "results.json").read_text())["widths"]
    ]
    assert widths == after[:2]
    assert small_network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_the_test_accuracy_is_right(finished):
    data = netslim.data.load("digits", validation=0.1, subset=256, seed=0)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
    network = netslim.models.build(finished / "03-finetune" / "model.safetensors").eval()
    with torch.no_grad():
        right = (
            (network((data.test.images / 255 - mean) / std).argmax(1) == data.test.labels)
            .double()
            .mean()
        )
    row = json.loads((finished / "results.json").read_text())["rows"][-1]
    assert row["accuracy"] == pytest.approx(float(right), abs=1e-6)


def test_the_logged_loss_holds_the_penalty(tmp_path):
    """With a learning rate too small to move anything the penalty is strength * 0.5 * 8 scales,
    exactly.
    """
    train = {"kind": "train", "epochs": 1, "optimizer": {"lr": 1e-12}}
    model = {"name": "zoo:vgg", "layers": [8], "in_channels": 1}
    with_penalty = small(model=model, stages=stages({**train, "sparsity": {"strength": 0.25}}))
    without = small(model=model, stages=stages({**train, "sparsity": {"strength": 0.0}}))
    first = run(with_penalty, tmp_path / "a")["curves"][0]
    second = run(without, tmp_path / "b")["curves"][0]
    assert first["penalty"] == [pytest.approx(0.25 * 0.5 * 8)]
    assert second["penalty"] == [0]
    assert first["train_loss"][0] - second["train_loss"][0] == pytest.approx(1.0)
    assert first["val_loss"] == second["val_loss"]
    assert first["near_zero"] == [0]


def test_a_baseline_sees_what_its_model_sees(tmp_path):
    """Without a penalty to leave out, it ends in the very same weights; and the network in flow is
    not its own.
    """
    train = {"kind": "train", "epochs": 1, "sparsity": {"strength": 0.0}}
    run(
        small(
            stages=stages(
                {**train, "name": "sparse"}, {"kind": "baseline"}, {"kind": "finetune", "epochs": 1}
            )
        ),
        tmp_path / "a",
    )
    sparse, baseline, tuned = (
        netslim.models.build(tmp_path / "a" / name / "model.safetensors").state_dict()
        for name in ("01-sparse", "02-baseline", "03-finetune")
    )
    assert all(torch.equal(sparse[key], baseline[key]) for key in sparse)
    assert tuned["features.1.num_batches_tracked"] == 2 * sparse["features.1.num_batches_tracked"]
    rows = json.loads((tmp_path / "a" / "results.json").read_text())["rows"]
    assert [row["key"] for row in rows] == ["baseline", "before"]


def test_without_validation_images_those_cells_are_empty(tmp_path):
    recipe = small(
        data={"name": "digits", "validation": 0}, stages=stages({"kind": "train", "epochs": 1})
    )
    run(recipe, tmp_path / "a")
    (row,) = metrics(tmp_path / "a" / "01-train" / "metrics.csv")
    assert row["val_loss"] == row["val_accuracy"] == ""


def test_the_best_epoch_is_kept(tmp_path):
    """The second epoch's learning rate wrecks the network; the first one's weights must come out."""
    wrecking = {"name": "multistep", "milestones": [1], "factor": 40.0}
    train = {
        "kind": "train",
        "epochs": 2,
        "keep": "best",
        "optimizer": {"lr": 0.05},
        "schedule": wrecking,
    }
    # It takes all images for the first epoch to be better than chance.
    recipe = small(data={**SMALL["data"], "subset": None}, stages=stages(train))
    run(recipe, tmp_path / "a")
    curve = json.loads((tmp_path / "a" / "01-train" / "stage.json").read_text())
    first, second = curve["curves"]["val_accuracy"]
    assert first > second
    assert curve["best"] == {"epoch": 1, "val_accuracy": first}
    # A flipped bit in it is noticed when the stage goes on.
    place = tmp_path / "a" / "01-train"
    for path in (tmp_path / "a/results.json", place / "stage.json"):
        path.unlink()
    damaged = bytearray((place / "best.safetensors").read_bytes())
    damaged[-9] ^= 4
    (place / "best.safetensors").write_bytes(damaged)
    with pytest.raises(
        CheckpointError, match=r"best\.safetensors is damaged .*move .*01-train away"
    ):
        run(recipe, tmp_path / "a")
    kept = netslim.models.build(tmp_path / "a" / "01-train" / "model.safetensors")
    assert kept.state_dict()["features.1.num_batches_tracked"] == 21


def test_multi_pass_cuts_twice(tmp_path):
    inner = [{"kind": "prune", "budget": {"cut_channels": 0.25}}, {"kind": "finetune", "epochs": 1}]
    recipe = small(
        stages=[{"repeat": {"times": 2, "stages": inner}}, {"kind": "measure", "latency": False}]
    )
    results = run(recipe, tmp_path / "a")
    keys = ["before", "pruned-1", "fine-tuned-1", "pruned-2", "fine-tuned-2"]
    assert [row["key"] for row in results["rows"]] == keys
    assert [proof["cut"] for proof in results["verification"]] == [12, 9]
    assert sum(layer["before"] for layer in results["widths"]) == 48
    assert sum(layer["after"] for layer in results["widths"]) == 27
    again = netslim.models.build(tmp_path / "a" / "04-finetune-2" / "model.safetensors")
    assert (
        sum(
            m.num_features
            for m in again.modules()
            if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)
        )
        == 27
    )


def test_tensorboard_events_are_written(tmp_path):
    recipe = small(
        stages=stages({"kind": "train", "epochs": 1}),
        trainer={**SMALL["trainer"], "tensorboard": True},
    )
    run(recipe, tmp_path / "a")
    assert list((tmp_path / "a" / "tensorboard" / "01-train").glob("events.out.tfevents.*"))


def test_bf16_and_channels_last_run(tmp_path):
    recipe = small(
        stages=stages({"kind": "train", "epochs": 1}),
        trainer={
            **SMALL["trainer"],
            "precision": "bf16",
            "channels_last": True,
            "threads": 2,
            "limit_batches": 2,
        },
    )
    results = run(recipe, tmp_path / "a")
    assert results["environment"]["precision"] == "bf16"
    assert results["environment"]["threads"] == 2
    assert torch.get_num_threads() == 1
    assert (
        netslim.models.build(tmp_path / "a" / "01-train" / "model.safetensors")
        .state_dict()["features.0.weight"]
        .is_contiguous()
    )


# ---------------------------------------------------------------- rows


def keys(*kinds: str) -> list[tuple[str, int]]:
    made = {
        "train": {"epochs": 1},
        "finetune": {"epochs": 1},
        "prune": {"budget": {"cut_channels": 0.5}},
    }
    listed = [
        {"kind": kind, "name": f"{kind}-{n}", **made.get(kind, {})} for n, kind in enumerate(kinds)
    ]
    return [
        (entry.key, entry.index) for entry in entries(small(stages=[*listed, {"kind": "measure"}]))
    ]


def test_rows_of_every_order_of_stages():
    assert keys("train") == [("before", 0)]
    assert keys("train", "prune", "finetune") == [("before", 0), ("pruned", 1), ("fine-tuned", 2)]
    assert keys("train", "prune") == [("before", 0), ("pruned", 1)]
    assert keys("train", "baseline", "prune", "finetune") == [
        ("baseline", 1), ("before", 0), ("pruned", 2), ("fine-tuned", 3),
    ]  # fmt: skip
    assert keys("train", "prune", "finetune", "train", "prune", "finetune") == [
        ("before", 0), ("pruned-1", 1), ("fine-tuned-1", 2), ("before-2", 3), ("pruned-2", 4), ("fine-tuned-2", 5),
    ]  # fmt: skip
    assert keys("train", "prune", "train", "prune") == [
        ("before", 0), ("pruned-1", 1), ("fine-tuned-1", 2), ("pruned-2", 3),
    ]  # fmt: skip
    assert keys("train", "prune", "finetune", "train") == [
        ("before", 0),
        ("pruned", 1),
        ("fine-tuned", 3),
    ]


# ---------------------------------------------------------------- scales


def test_share_and_histogram_by_hand():
    scales = torch.tensor([0.0, 0.0099, 0.01, 0.5, 20.0])
    assert share_near_zero(scales) == pytest.approx(0.4)
    assert share_near_zero(torch.empty(0)) is None
    counts = histogram(scales)
    assert len(counts) == len(EDGES) - 1
    assert counts[0] == counts[-1] == 1
    assert counts[EDGES.index(0.01) - 1] == counts[EDGES.index(0.01)] == 1


def test_histograms_end_at_the_largest_scale_of_all():
    edges, found = trimmed([[0, 2, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]])
    assert edges == list(EDGES[:4])
    assert found == [[0, 2, 0], [1, 0, 1], [1, 0, 0]]


# ---------------------------------------------------------------- killed and resumed

POINTS = [
    ("step", "01-sparse", (0, 2)),  # in the first epoch
    ("before", "01-sparse/last.ckpt", 1),  # while the first checkpoint is written
    ("step", "01-sparse", (1, 1)),
    ("after", "01-sparse/last.ckpt", 1),  # the checkpoint is there, metrics.csv is one epoch behind
    ("after", "01-sparse/last.ckpt", 1),  # all epochs are done, the last is not in metrics.csv
    ("before", "01-sparse/model.safetensors", 1),  # all epochs are done, the stage is not
    ("before", "01-sparse/stage.json", 1),
    ("before", "02-prune/model.safetensors", 1),
    ("before", "03-finetune/best.safetensors", 1),  # the best weights are in the checkpoint alone
    ("step", "03-finetune", (1, 3)),
    ("after", "03-finetune/last.ckpt", 1),
    ("before", "results.json", 1),
]


def test_killed_anywhere_it_ends_with_the_same_bits(finished, tmp_path):
    kill(small(), tmp_path / "killed", POINTS)
    assert everything(tmp_path / "killed") == everything(finished)
    environment = json.loads((tmp_path / "killed" / "environment.json").read_text())
    assert len(environment["resumed"]) == len(POINTS)


@pytest.mark.skipif("NETSLIM_KILLS" not in os.environ, reason="NETSLIM_KILLS says how many kills")
def test_killed_at_random_it_ends_with_the_same_files(finished, tmp_path):
    """`NETSLIM_KILLS=20 make test ARGS="-k killed_at_random"`: 20 before or after a file is put in
    its place.
    """
    draw = random.Random(int(os.environ.get("NETSLIM_SEED", "0")))
    kills = int(os.environ["NETSLIM_KILLS"])
    moments = [["before", "after"][draw.randint(0, 1)] for _ in range(kills)]
    points = [(moment, "", draw.randint(1, 8)) for moment in moments]
    kill(small(), tmp_path / "killed", points)
    assert everything(tmp_path / "killed") == everything(finished)


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(finished, tmp_path):
    short = stages({"kind": "train", "name": "sparse", "epochs": 1})
    first = run(small(stages=short), tmp_path / "a")["rows"]
    assert run(small(stages=short), tmp_path / "b")["rows"] == first
    assert run(small(stages=short, seed=1), tmp_path / "c")["rows"] != first
    assert derive(0, "stage", 1) != derive(0, "stage", 0) != derive(1, "stage", 0)


def test_a_finished_run_is_left_alone(copied, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    monkeypatch.setattr(runner.Runner, "go", lambda self: pytest.fail("it ran again"))
    time.sleep(0.01)
    assert run(small(), copied) == read_json(copied / "results.json", "")
    del before[copied / ".lock"]
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_missing_report_is_made_again(copied):
    (copied / "report.html").unlink()
    run(small(), copied)
    assert (copied / "report.html").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}'])
def test_damaged_results_are_made_again_from_the_stages(copied, finished, content):
    (copied / "results.json").write_text(content)
    run(small(), copied)
    assert figures(copied) == figures(finished)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("content", ["", '{"format": 1, "stage": "01-sp', "[1]", '{"format": 2}'])
def test_a_damaged_marker_is_named(copied, content):
    (unfinished(copied) / "01-sparse" / "stage.json").write_text(content)
    with pytest.raises(
        RecipeError, match=r"01-sparse/stage\.json .*move .*01-sparse away to run this stage again"
    ):
        run(small(), copied)


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.csv"])
def test_a_finished_file_that_was_changed_is_named(copied, name):
    path = unfinished(copied) / "01-sparse" / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=f"{name} was changed after the stage finished"):
        run(small(), copied)
    path.unlink()
    with pytest.raises(RecipeError, match=f"{name} is missing though the stage is finished"):
        run(small(), copied)


@pytest.mark.parametrize("name", ["model.safetensors", "stage.json"])
def test_a_finished_run_is_not_shown_as_if_nothing_had_happened_to_it(copied, name):
    path = copied / "03-finetune" / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=f"{name} .*move .*03-finetune away"):
        run(small(), copied)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "other"])
def test_a_damaged_checkpoint_is_named(copied, damage):
    path = unfinished(copied, "03-finetune/stage.json") / "03-finetune" / "last.ckpt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "other":
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(b"" if damage == "empty" else b"not a checkpoint")
    with pytest.raises(
        CheckpointError, match=r"03-finetune/last\.ckpt is damaged .*move .*03-finetune away"
    ):
        run(small(), copied)


def test_a_stage_that_was_moved_away_is_run_again(copied, finished):
    shutil.rmtree(unfinished(copied) / "03-finetune")
    run(small(), copied)
    assert figures(copied) == figures(finished)


@pytest.mark.parametrize("name", ["02-prune", "04-measure"])
def test_a_stage_of_a_finished_run_that_was_moved_away_is_run_again(
    copied, finished, tmp_path, name, capsys
):
    (copied / name).rename(tmp_path / "away")
    others = [path for path in copied.glob("*/*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in others}
    (copied / "results.json").write_text("of before")
    run(small(), copied)
    assert f"were made with a {name} that is no longer there" in capsys.readouterr().err
    assert everything(copied) == everything(finished)
    assert before == {path: path.stat().st_mtime_ns for path in others}


def flipped(path: Path) -> bytes:
    """The content of a file with another bit near its end."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    return bytes(content)


def test_results_of_before_do_not_outlive_a_stage_that_was_moved_away(copied, monkeypatch):
    """Though what is made in its place does not fit to what builds on it."""
    finetuned = contents(copied / "03-finetune")
    shutil.rmtree(copied / "02-prune")
    as_it_is = runner.Runner._prune

    def another(self, index, stage, folder):
        found = as_it_is(self, index, stage, folder)
        folder.model.write_bytes(flipped(folder.model))
        return found

    monkeypatch.setattr(runner.Runner, "_prune", another)
    with pytest.raises(RecipeError, match=r"03-finetune/stage\.json builds on another network"):
        run(small(), copied)
    assert not (copied / "results.json").exists()
    assert not (copied / "report.html").exists()
    assert contents(copied / "03-finetune") == finetuned


def test_what_is_damaged_is_told_before_a_stage_that_is_missing_is_run(copied):
    shutil.rmtree(copied / "02-prune")
    path = copied / "03-finetune" / "model.safetensors"
    path.write_bytes(flipped(path))
    with pytest.raises(RecipeError, match=r"model\.safetensors was changed after"):
        run(small(), copied)
    assert not (copied / "02-prune").exists()
    assert (copied / "results.json").exists()


def test_a_folder_in_the_place_of_a_finished_file_is_named(copied):
    path = copied / "03-finetune" / "model.safetensors"
    path.unlink()
    path.mkdir()
    with pytest.raises(
        RecipeError, match=r"model\.safetensors is damaged .*move .*03-finetune away"
    ):
        run(small(), copied)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


# ---------------------------------------------------------------- whose folder


def test_the_folder_of_another_recipe_is_refused(copied):
    with pytest.raises(
        RecipeError, match="belongs to the recipe 'small', not 'other'; choose another --out"
    ):
        run(small(name="other"), copied)


def test_other_settings_are_refused_with_what_differs(copied):
    recipe = small(seed=3, trainer={**SMALL["trainer"], "threads": 2})
    with pytest.raises(
        RecipeError, match=r"seed: 0 there, 3 here; trainer\.threads: 1 there, 2 here"
    ):
        run(recipe, copied)
    changed = json.loads(json.dumps(SMALL))
    changed["stages"][0]["epochs"] = 9
    with pytest.raises(RecipeError, match=r"stages\.sparse\.epochs: 3 there, 9 here"):
        run(parse_recipe(changed), copied)


def changed(where: int, **options: Any) -> Recipe:
    """The small recipe with other options of one stage."""
    tree = json.loads(json.dumps(SMALL))
    tree["stages"][where] |= options
    return parse_recipe(tree)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_changed_later_stage_keeps_what_is_finished_before_it(copied, tmp_path):
    other = changed(1, budget={"cut_channels": 0.25})
    for name in ("02-prune", "03-finetune", "04-measure"):
        shutil.rmtree(copied / name)
    before = contents(copied / "01-sparse")
    run(other, copied)  # results.json of the old recipe is there still
    assert contents(copied / "01-sparse") == before
    run(other, tmp_path / "fresh")
    assert figures(copied) == figures(tmp_path / "fresh")


def test_a_change_of_what_is_finished_says_what_can_be_kept(copied):
    other = changed(1, budget={"cut_channels": 0.25})
    with pytest.raises(RecipeError, match=r"stages\.prune\.budget\.cut_channels: 0\.5") as refused:
        run(other, copied)
    away = ", ".join(str(copied / name) for name in ("02-prune", "03-finetune", "04-measure"))
    assert f"or move {away} away to keep what is finished before" in str(refused.value)
    with pytest.raises(RecipeError, match="start from what is there") as refused:
        run(small(seed=1), copied)
    assert str(copied / "03-finetune" / "model.safetensors") in str(refused.value)


def test_other_words_make_the_report_anew_and_nothing_else(copied):
    before = contents(copied / "03-finetune")
    assert run(small(title="Another title"), copied)["title"] == "Another title"
    assert contents(copied / "03-finetune") == before


def held_with(folder: Path, recipe: Recipe, *finished: str) -> RunFolder:
    held = RunFolder(folder)
    held.claim(recipe)
    for name in finished:
        (folder / name).mkdir()
        (folder / name / "stage.json").write_text("{}")
    return held


def test_a_strength_that_was_found_for_a_later_cut_is_not_kept_for_another(tmp_path):
    def recipe(share: float, **target: float) -> Recipe:
        sparsity = {"strength": "auto", **target}
        first = {"kind": "train", "name": "sparse", "epochs": 1, "sparsity": sparsity}
        cut = {"kind": "prune", "budget": {"cut_channels": share}}
        return small(stages=stages(first, cut))

    held = held_with(tmp_path, recipe(0.5), "01-sparse")
    with pytest.raises(RecipeError, match=r"sparse\.sparsity\.target: 0\.5 there, 0\.7 here"):
        held.claim(recipe(0.7))
    assert "budget.cut_channels: 0.5 there, 0.7" in str(held.claim(recipe(0.7, target=0.5)))


def test_a_baseline_is_kept_where_what_it_imitates_trains_as_long(tmp_path):
    def recipe(epochs: int, strength: float) -> Recipe:
        item = {"kind": "train", "epochs": epochs, "sparsity": {"strength": strength}}
        return small(stages=stages({"kind": "baseline"}, item))

    held = held_with(tmp_path, recipe(2, 0.1), "01-baseline")
    with pytest.raises(RecipeError, match=r"baseline\.like\.epochs: 2 there, 3 here"):
        held.claim(recipe(3, 0.1))
    assert "strength: 0.1 there, 0.2 here" in str(held.claim(recipe(2, 0.2)))


def test_a_run_that_finished_nothing_may_begin_anew_with_other_settings(tmp_path):
    lost = small(data={**SMALL["data"], "name": f"folder:{tmp_path / 'nowhere'}"})
    with pytest.raises(NetslimError, match="nowhere"):
        run(lost, tmp_path / "run")
    run(small(trainer={**SMALL["trainer"], "limit_batches": 2}), tmp_path / "run")
    assert (tmp_path / "run" / "results.json").exists()


def test_a_damaged_config_is_refused(copied):
    (copied / "config.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match=r"config\.yaml is damaged"):
        run(small(), copied)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(
        RecipeError, match=r"is not empty and not a run folder \(it holds thesis\.tex\)"
    ):
        run(small(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written"):
        run(small(), tmp_path / "file")


def test_two_runs_in_one_folder_are_refused_and_a_dead_ones_lock_is_not(copied):
    (copied / ".lock").write_text("process 1 on nowhere\n")  # left by a process that is gone
    with RunFolder(copied).lock():
        told = copied.with_suffix(".txt")
        assert fresh.ended(fresh.start(run, small(title="Other"), copied, told=told)) == 1
    assert "is in use by another netslim run (process " in told.read_text()
    with RunFolder(copied).lock():
        pass


# ---------------------------------------------------------------- training that goes wrong


def test_a_loss_that_is_not_finite_is_told_and_finished_epochs_stay(tmp_path):
    exploding = {"name": "multistep", "milestones": [1], "factor": 1e30}
    train = {
        "kind": "train",
        "name": "wild",
        "epochs": 3,
        "optimizer": {"lr": 0.05},
        "schedule": exploding,
    }
    with pytest.raises(TrainingError) as caught:
        run(small(stages=stages(train)), tmp_path / "a")
    text = str(caught.value)
    assert text.startswith("stage 01-wild, epoch 2, step ")
    assert "not finite; try a lower learning rate (--stages.wild.optimizer.lr 0.005)" in text
    assert "epochs 1 to 1 are kept" in text
    assert [row["epoch"] for row in metrics(tmp_path / "a" / "01-wild" / "metrics.csv")] == ["1"]
    assert (tmp_path / "a" / "01-wild" / "last.ckpt").exists()
    assert not (tmp_path / "a" / "01-wild" / "stage.json").exists()


def test_an_absurd_learning_rate_is_told_in_the_first_epoch(tmp_path):
    train = {"kind": "train", "epochs": 1, "optimizer": {"lr": 1e9}}
    with pytest.raises(
        TrainingError, match=r"stage 01-train, epoch 1, .* is not finite.*no epoch was finished"
    ):
        run(small(stages=stages(train)), tmp_path / "a")


def test_a_network_without_batch_norm_cannot_be_penalised(tmp_path):
    train = {"kind": "train", "epochs": 1, "sparsity": {"strength": 1e-3}}
    model = {"name": "zoo:mlp", "in_features": 64, "hidden": [8], "norm": False}
    with pytest.raises(NetslimError, match="no BN layer with scales"):
        run(small(model=model, stages=stages(train)), tmp_path / "a")


def test_a_model_that_does_not_fit_the_data_is_refused_before_training(tmp_path):
    train = stages({"kind": "train", "epochs": 1})
    with pytest.raises(
        RecipeError, match=r"zoo:vgg11 does not take the images of digits \(3 x 8 x 8\)"
    ):
        run(small(model={"name": "zoo:vgg11"}, stages=train), tmp_path / "a")
    wrong = {**SMALL["model"], "num_classes": 7}
    with pytest.raises(
        RecipeError, match=r"gives \(2, 7\) for 2 images, but digits has 10 classes"
    ):
        run(small(model=wrong, stages=train), tmp_path / "b")
    with pytest.raises(RecipeError, match=r"has no argument 'witdh'.*did you mean 'width'"):
        run(small(model={**SMALL["model"], "witdh": 1}, stages=train), tmp_path / "c")


def test_an_own_model_by_its_factory(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def tiny(width=8):\n"
        "    norm = nn.BatchNorm1d(width)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), norm, nn.ReLU(), "
        "nn.Linear(width, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    inner = [{"kind": "train", "epochs": 1}, {"kind": "prune", "budget": {"cut_channels": 0.5}}]
    results = run(
        small(model={"name": "my_networks:tiny", "width": 12}, stages=stages(*inner)),
        tmp_path / "a",
    )
    assert results["verification"][0]["cut"] == 6


def test_ctrl_c_leaves_finished_epochs_and_the_signal_as_it_was(tmp_path, monkeypatch):
    from netslim.training.loop.epochs import EpochRecord

    handler = signal.getsignal(signal.SIGINT)
    ordinary = EpochRecord.on_train_batch_end

    def interrupting(self, trainer, *args):
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)
        ordinary(self, trainer, *args)

    monkeypatch.setattr(EpochRecord, "on_train_batch_end", interrupting)
    recipe = small(stages=stages({"kind": "train", "epochs": 3}))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "a")
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(metrics(tmp_path / "a" / "01-train" / "metrics.csv")) == 1
    monkeypatch.undo()
    run(recipe, tmp_path / "a")
    assert len(metrics(tmp_path / "a" / "01-train" / "metrics.csv")) == 3


# ---------------------------------------------------------------- what is shown


def test_plain_output_has_a_line_an_epoch(tmp_path):
    from io import StringIO

    from rich.console import Console

    text = StringIO()
    run(
        small(stages=stages({"kind": "train", "epochs": 2})),
        tmp_path / "a",
        display=Display(Console(file=text)),
    )
    lines = [line for line in text.getvalue().splitlines() if "epoch " in line]
    assert len(lines) == 2
    assert lines[0].startswith("01-train  epoch 1/2  loss ")
    assert "near zero 0.0%" in lines[0]
    assert "\x1b" not in text.getvalue()


def test_a_terminal_gets_a_bar_and_one_line_a_stage(tmp_path):
    from io import StringIO

    from rich.console import Console

    text = StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    run(
        small(stages=stages({"kind": "train", "epochs": 2})),
        tmp_path / "a",
        display=Display(console),
    )
    assert "accuracy" in text.getvalue()
    assert "01-train  epoch 2/2  loss " in text.getvalue()


# ---------------------------------------------------------------- shipped recipes on their own data, two steps a stage


@pytest.fixture(scope="module")
def some_of_cifar10(netslim_data, tmp_path_factory) -> Path:
    """A data folder with the first rows of cifar10, as they are stored: most of a dry run would go
    into decoding 60,000 pictures, which test_data does.
    """
    folder = tmp_path_factory.mktemp("data") / "cifar10"
    folder.mkdir()
    for split, count in (("train", 2000), ("test", 400)):
        table = parquet.read_table(netslim_data / "cifar10" / f"{split}.parquet")
        parquet.write_table(table.slice(0, count), folder / f"{split}.parquet")
    return folder.parent


@pytest.mark.parametrize("name", ["digits", "mnist-mlp", "vgg19-cifar10"])
def test_a_shipped_recipe_runs(name, tmp_path, request):
    overrides = {
        "trainer.limit_batches": "2",
        "trainer.tensorboard": "false",
        "trainer.device": "cpu",
    }
    overrides["trainer.threads"] = "1"
    overrides |= {f"stages.{stage}.epochs": "1" for stage in ("sparse", "finetune")}
    if name != "digits":
        there = "some_of_cifar10" if "cifar10" in name else "netslim_data"
        overrides["data.root"] = str(request.getfixturevalue(there))
    if name == "vgg19-cifar10":
        overrides |= {"data.name": "hf:cifar10", "model.width": "0.125"}
    results = run(load_recipe(name, overrides), tmp_path / name)
    assert [row["key"] for row in results["rows"]][-3:] == ["before", "pruned", "fine-tuned"]
    assert results["verification"][0]["deviation"] < 1e-10
    assert results["warnings"][0].startswith("a dry run")
    if "cifar10" in name:
        assert any("JPEG" in note for note in results["notes"])


# ---------------------------------------------------------------- begun by another version


def begun(folder: Path, **prune: object) -> tuple[RunFolder, Recipe]:
    """A folder whose first stage is finished, begun with these options of its prune stage."""
    recipe, held = load_recipe("digits"), RunFolder(folder)
    held.claim(recipe)
    written = yaml.safe_load(held.config.read_text())
    written["stages"][1] |= prune
    del written["data"]["subset"]  # an option that the other version did not have
    held.config.write_text(yaml.safe_dump(written, sort_keys=False))
    (folder / "01-sparse").mkdir()
    (folder / "01-sparse" / "stage.json").write_text("{}")
    return held, recipe


def test_a_folder_without_a_later_option_is_the_recipe_s_own(tmp_path):
    held, recipe = begun(tmp_path)
    held.claim(recipe)


def test_a_folder_with_other_defaults_goes_on_by_its_own_recipe(tmp_path):
    """As the message says: what version 0.1 took by default stands in its config.yaml."""
    held, recipe = begun(tmp_path, criterion="bn_scale", allocation="global", fold=None)
    (tmp_path / "02-prune").mkdir()
    (tmp_path / "02-prune" / "stage.json").write_text("{}")
    with pytest.raises(RecipeError, match="begun with other settings") as refused:
        held.claim(recipe)
    _, _, command = str(refused.value).partition("go on as it was begun: ")
    assert command == f"netslim run {held.config} --out {tmp_path}"
    held.claim(load_recipe(str(held.config)))


def test_a_renamed_option_is_told_by_its_new_name():
    with pytest.raises(
        RecipeError, match=r"scratch\.budget: since .* this option is called length"
    ):
        parse_recipe({"name": "old", "stages": [{"kind": "scratch", "budget": "B"}]})
