"""Rows of the published tables: what is finished stays, what is alike is done once, time is kept."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from netslim.errors import RecipeError
from netslim.training import load_recipe
from netslim.training.commands import carried
from netslim.training.commands.bites import bites
from netslim.training.commands.paper import ORDER, Outcome, carry_out, default_rows, recipes
from netslim.training.loop import deadline as deadlines
from netslim.training.loop.deadline import Deadline, TimeUpError
from netslim.training.loop.progress import Display
from netslim.training.recipe.files import shipped
from netslim.training.recipe.schema import Recipe
from stage_runs import HALF, TRAIN
from stage_runs import recipe as small

SHORT = {
    "data.subset": "64",
    "model": "{name: zoo:vgg, layers: [4, M, 8], in_channels: 1}",
    "trainer.tensorboard": "false",
    "trainer.device": "cpu",
    "trainer.threads": "1",
    "stages.sparse.epochs": "2",
    "stages.finetune.epochs": "1",
    "stages.measure.latency": "false",
}


def row(name: str = "digits", **changes: str) -> Recipe:
    return replace(load_recipe("digits", {**SHORT, **changes}), name=name)


class AfterEpochs(Deadline):
    """A time that is up after so many epochs."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def epoch(self, more: int) -> None:
        self.count -= 1
        if not self.count:
            raise TimeUpError


def within(place: Path, *asked: Recipe, runs: str = "runs", epochs: int = 0) -> Outcome:
    limit = AfterEpochs(epochs) if epochs else Deadline()
    shown = Display(Console(file=io.StringIO(), width=200), limit)
    return carry_out(asked, place / "out", place / runs, deadline=limit, display=shown)


def rows_of(place: Path) -> dict[str, dict]:
    content = json.loads((place / "out" / "paper.json").read_text())
    return {found["recipe"]: found for found in content["rows"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A row that was run without a stop."""
    place = tmp_path_factory.mktemp("whole")
    assert within(place, row()) == Outcome(asked=1, finished=1)
    return place


def test_what_is_stopped_goes_on_elsewhere_from_few_files(tmp_path, whole):
    assert within(tmp_path, row(), epochs=2) == Outcome(asked=1, stopped=True)
    left = list((tmp_path / "out").iterdir())
    assert sorted(path.name for path in left) == ["carried-1.part", "paper.json", "results.md"]
    assert within(tmp_path, row(), runs="elsewhere") == Outcome(asked=1, finished=1)
    went_on = tmp_path / "elsewhere" / "digits" / "0" / "environment.json"
    assert json.loads(went_on.read_text())["resumed"]  # it did not begin anew
    assert rows_of(tmp_path)["digits"]["rows"] == rows_of(whole)["digits"]["rows"]
    assert not list((tmp_path / "out").glob("carried*"))


def test_a_finished_stage_is_carried_without_its_optimizer(tmp_path, whole):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    own = tmp_path / "runs" / "digits" / "0"
    (own / "03-finetune" / "stage.json").unlink()
    assert carried.pack(tmp_path / "runs", [own], tmp_path) == ([own], [])
    assert carried.unpack(tmp_path, tmp_path / "new") == (["digits/0"], ["digits/0"])
    new = tmp_path / "new" / "digits" / "0"
    names = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
    assert {"config.yaml", "01-sparse/model.safetensors", "03-finetune/last.ckpt"} <= names
    assert not {"01-sparse/last.ckpt", "03-finetune/model.safetensors", "report.html"} & names
    # What is there stays as it is.
    assert carried.unpack(tmp_path, tmp_path / "new") == (["digits/0"], [])


def test_what_is_too_large_is_not_carried(tmp_path, monkeypatch):
    for name, size in (("large", 3000), ("fits", 100)):
        folder = tmp_path / "runs" / name / "0" / "01-train"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").write_bytes(bytes(size))
    (tmp_path / "runs/not_begun/0").mkdir(parents=True)
    (tmp_path / "runs/not_begun/0/config.yaml").touch()  # and nothing to go on from
    rows = [tmp_path / "runs" / name / "0" for name in ("large", "fits", "not_begun")]
    monkeypatch.setattr(carried, "PART", 100)
    taken, left = carried.pack(tmp_path / "runs", rows, tmp_path)
    assert ([path.parent.name for path in taken], left) == (["fits"], rows[:1])
    assert all(path.stat().st_size <= 100 for path in tmp_path.glob("*.part"))


def test_damaged_parts_are_refused(tmp_path):
    (tmp_path / "carried-1.part").write_bytes(b"half of it")
    with pytest.raises(RecipeError, match=r"carried-\*\.part cannot be put together"):
        carried.unpack(tmp_path, tmp_path / "runs")


def test_rows_that_begin_alike_are_trained_once_up_to_where_they_part(tmp_path, whole):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    other = row("other", **{"stages.prune.budget.cut_channels": "0.5"})
    within(tmp_path, other)
    found = rows_of(tmp_path)["other"]
    assert found["copied"] == ["01-sparse"]
    ours, theirs = (place["rows"][0] for place in (found, rows_of(whole)["digits"]))
    assert ours == theirs  # the network before the cut
    assert found["rows"][-1]["params"] > rows_of(whole)["digits"]["rows"][-1]["params"]
    assert not (tmp_path / "runs/other/0/01-sparse/last.ckpt").exists()


def test_what_paper_json_has_is_not_run_again(tmp_path, whole):
    shutil.copytree(whole / "out", tmp_path / "out")
    assert within(tmp_path, row(), epochs=1) == Outcome(asked=1, finished=1)
    assert not (tmp_path / "runs").exists()
    assert within(tmp_path, row(seed="1"), epochs=1).stopped


def test_a_row_that_fails_keeps_no_other_from_being_run(tmp_path, whole):
    lost = row("lost", **{"data.name": "folder:nowhere"})
    shutil.copytree(whole / "out", tmp_path / "out")
    done = within(tmp_path, lost, row())
    assert (done.finished, done.stopped) == (1, False)
    assert "nowhere" in done.failed["lost (seed 0)"]
    page = tmp_path / "out" / "results.md"
    assert "## Failed\n\n- `lost (seed 0)`: " in page.read_text()
    within(tmp_path, row())  # which says nothing of the other
    assert "- `lost (seed 0)`: " in page.read_text()


def test_what_came_in_parts_stays_in_them_until_it_is_finished(tmp_path, whole):
    within(tmp_path, row(), epochs=1)
    parts, out = list((tmp_path / "out").glob("carried*")), tmp_path / "out"
    within(tmp_path, row("lost", **{"data.name": "folder:nowhere"}))
    assert list(out.glob("carried*")) == parts
    shutil.copytree(whole / "out", out, dirs_exist_ok=True)
    within(tmp_path, row())
    assert not list(out.glob("carried*"))


def test_the_row_says_its_settings_conditions_and_curves(whole):
    found = rows_of(whole)["digits"]
    assert found["config"]["stages"][0]["epochs"] == 2
    assert "stages.sparse.epochs: 2 in the place of 40" in found["conditions"]
    assert len(found["curves"][0]["train_loss"]) == 2
    assert found["environment"]["versions"]["torch"]
    assert found["seconds"] > 0
    assert "`digits`" in (whole / "out" / "results.md").read_text()


SLIM = {"method": "network_slimming", "strength": 1e-3}
SOFT = {"method": "soft_filter", "rate": 0.3}
DRAWN = {"method": "centripetal", "target": 0.5}


@pytest.mark.parametrize(
    ("sparsity", "last", "good", "figure"),
    [
        (SLIM, {"near_zero": 0.5}, True, "50.0 % near zero, 50.0 % cut"),
        (SLIM, {"near_zero": 0.499}, False, "49.9 % near zero, 50.0 % cut"),
        (SOFT, {"zero": 0.3, "returned": 0}, True, "30.0 % zero, 0 came back in the last epoch"),
        (SOFT, {"zero": 0.3, "returned": 2}, False, "30.0 % zero, 2 came back in the last epoch"),
        (DRAWN, {"deviation": 9e-5}, True, "deviation 9.0e-05"),
        (DRAWN, {"deviation": 1e-4}, False, "deviation 1.0e-04"),
    ],
)
def test_a_method_bites_where_its_last_epoch_is_what_the_cut_relies_on(
    sparsity, last, good, figure
):
    recipe = small({**TRAIN, "name": "sparse", "sparsity": sparsity}, HALF)
    curves = {"epoch": [1, 2], **{key: [0.7, value] for key, value in last.items()}}
    widths = [{"layer": "a", "before": 8, "after": 2}, {"layer": "b", "before": 8, "after": 6}]
    done = [{"stage": "01-sparse", "curves": curves}, {"stage": "02-prune", "widths": widths}, {}]
    (found,) = bites(recipe, done)
    assert (found["bites"], found["figure"]) == (good, figure)
    done[0]["best"] = {"epoch": 1}  # whose weights were kept
    assert bites(recipe, done)[0]["figure"] != figure


def test_what_was_run_says_whether_its_method_bites(whole):
    (found,) = rows_of(whole)["digits"]["bites"]
    assert (found["stage"], found["method"]) == ("01-sparse", "network_slimming")
    assert found["figure"].endswith("near zero, 66.7 % cut")


def test_rows_with_one_seed_stand_before_any_with_the_next():
    found = recipes(["digits", "mnist-mlp-small"], [3, 4], {"trainer.threads": "1"})
    assert [(recipe.name, recipe.seed) for recipe in found] == [
        *(("digits", 3), ("mnist-mlp-small", 3), ("digits", 4), ("mnist-mlp-small", 4)),
    ]
    assert {recipe.trainer.threads for recipe in found} == {1}
    assert [recipe.name for recipe in recipes(["mnist-mlp"], [0], {}, small=True)] == [
        "mnist-mlp-small"
    ]


def test_the_rows_that_are_run_first_are_shipped_and_every_twin_comes_once():
    assert set(ORDER) <= set(shipped())
    twins = default_rows(small=True)
    assert sorted(twins) == [name for name in shipped() if name.endswith("-small")]
    assert twins[0] == "vgg19-cifar10-small"


# ---------------------------------------------------------------- time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(deadlines.time, "monotonic", lambda: now[0])
    return now


def test_no_epoch_begins_that_would_not_end_in_time(clock):
    limit = Deadline(seconds=60, reserve=5)
    limit.begin()
    clock[0] += 25
    limit.epoch(more=1)  # 30 s are left for one of 25
    clock[0] += 25
    with pytest.raises(TimeUpError):
        limit.epoch(more=1)
    limit.epoch(more=0)  # what follows the last one is in the reserve


def test_a_stage_does_not_begin_where_its_first_epoch_would_not_end(clock):
    limit = Deadline(seconds=60)
    limit.begin()
    clock[0] += 40
    limit.epoch(more=0)
    with pytest.raises(TimeUpError):
        limit.begin()


def test_an_epoch_that_takes_too_long_is_given_up(clock):
    limit = Deadline(seconds=60)
    limit.begin()
    clock[0] += 59
    limit.step()
    clock[0] += 1
    with pytest.raises(TimeUpError):
        limit.step()
    Deadline().step()
