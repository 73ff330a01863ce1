"""What can be known before any training is told before any training."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from netslim.cli import main
from netslim.errors import NetslimError, RecipeError
from netslim.training import run
from netslim.training.loop.progress import Display
from netslim.training.recipe.orders import wasted
from netslim.training.stages import runner
from netslim.training.stages.folder import RunFolder
from netslim.training.stages.foresight import foresee
from netslim.training.stages.rehearsal import rehearse
from netslim.training.stages.runner import Runner
from stage_runs import FIRST, HALF, TRAIN, carry_out, recipe

MLP = {"name": "zoo:mlp", "in_features": 64, "norm": False}
HALVES = {"cut_channels": 0.5}


def prune(**options: Any) -> dict[str, Any]:
    return {"kind": "prune", "budget": HALVES, **options}


def foreseen(*stages: dict[str, Any], first: int = 0, **changes: Any) -> str:
    """What is told of the stages; raises where they are refused."""
    told = io.StringIO()
    display = Display(Console(file=told, width=500))
    foresee(Runner(recipe(*stages, **changes), RunFolder(Path("none")), display, ""), first)
    return told.getvalue()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (prune(protect=["featurs.0"]), r"stages\.prune: protect names no group: 'featurs\.0'"),
        (prune(max_cut=0.25), r"stages\.prune: cut_channels=0\.5 asks for 12 of 24"),
        (prune(budget={"max_macs": 10}), r"stages\.prune: max_macs=10 leaves at most 10 MACs"),
        (prune(budget={}, per_group={"nowhere": 2}), "per_group names no group"),
        (prune(budget={}, per_group={FIRST: 9}), "has 8 channels and 9 should go"),
        (prune(budget={}, per_group={FIRST: 8}, by="greedy"), "has 8 channels and 8 should go"),
        (prune(max_cut={"nowhere": 0.5}), "max_cut names no group"),
        (prune(mode="mask", protect=["nowhere"]), r"stages\.prune: protect"),
        (
            {**TRAIN, "name": "two", "gradual": {"budget": HALVES, "steps": 1, "max_cut": 0.1,
                                                 "end": 1.0}},
            r"stages\.two: cut_channels=0\.5 asks for 12",
        ),
        (
            {**TRAIN, "name": "two", "sparsity": {"method": "soft_filter", "rate": {"no": 0.5}}},
            r"stages\.two: .*'no'",
        ),
        (
            {**TRAIN, "name": "two", "sparsity": {"method": "centripetal", "protect": ["no"]}},
            r"stages\.two: .*'no'",
        ),
        ({**TRAIN, "name": "two", "distill": {"teacher": "no.safetensors"}}, r"no\.safetensors"),
        (prune(budget={"cut_latency": 0.5}, latency={"table": "no.json"}), r"no\.json"),
    ],
)  # fmt: skip
def test_what_no_training_can_mend_is_refused_before_any(stage, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        run(recipe(TRAIN, stage), tmp_path)
    assert not list(tmp_path.glob("0*")), "something was trained"


@pytest.mark.parametrize(
    ("stage", "first"),
    [
        (prune(protect=[FIRST], criterion="l2"), {}),
        (prune(budget={"cut_latency": 0.5}), {}),  # measured when it is reached
        (prune(budget={}, by="clusters"), {"sparsity": {"method": "centripetal"}}),
        (prune(budget={}, by="zeros", criterion="l2"), {"sparsity": {"method": "soft_filter"}}),
        (prune(criterion="random"), {}),
    ],
)
def test_what_may_be_had_passes_without_a_word(stage, first):
    assert foreseen({**TRAIN, **first}, stage) == ""


def test_scales_are_asked_of_a_network_without_any():
    with pytest.raises(RecipeError, match="prune: bn_scale can score no group"):
        foreseen(TRAIN, prune(criterion="bn_scale"), model=MLP)


def test_a_second_cut_is_refused_only_where_no_widths_allow_it():
    """After a cut the widths are a guess, and what fails on a guess is tried again."""
    first, tune = prune(name="first"), {**TRAIN, "kind": "finetune"}
    second = {"name": "second", "min_channels": 4}
    told = foreseen(TRAIN, first, tune, prune(**second))
    assert "stages.second: cut_channels=0.5 asks for 6 of 12 channels" in told
    assert "foretold from the weights as they are now" in told
    with pytest.raises(RecipeError, match=r"stages\.second: .* asks for 10 of 12"):
        foreseen(TRAIN, first, tune, prune(**second, max_cut=0.5, budget={"cut_channels": 0.9}))
    assert foreseen(TRAIN, first, tune, prune(name="second", budget={"max_params": 1000})) == ""


def test_a_wish_before_any_training_is_left_to_its_stage():
    assert foreseen(prune(name="first", protect=["nowhere"]), TRAIN, HALF) == ""


def test_foresight_draws_nothing():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    drawn = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    foreseen(TRAIN, HALF, TRAIN | {"kind": "finetune"})
    assert drawn == (random.random(), np.random.rand(), torch.rand(1))


def test_a_run_is_the_same_without_foresight(tmp_path, monkeypatch):
    stages = (TRAIN, HALF, {**TRAIN, "kind": "finetune"})
    run(recipe(*stages), tmp_path / "with")
    monkeypatch.setattr(runner, "foresee", lambda *_: None)
    run(recipe(*stages), tmp_path / "without")
    for name in ("01-train", "02-prune", "03-finetune"):
        ours, theirs = (
            load_file(tmp_path / kind / name / "model.safetensors") for kind in ("with", "without")
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_that_goes_on_is_tried_from_where_it_is(tmp_path):
    """The misspelt option stands behind a finished stage, and another training."""
    tune = {**TRAIN, "kind": "finetune"}
    first = (TRAIN, HALF)
    run(recipe(*first), tmp_path)
    (tmp_path / "03-measure" / "stage.json").unlink()
    (tmp_path / "03-measure").rmdir()
    with pytest.raises(RecipeError, match=r"stages\.again: protect names no group"):
        run(recipe(*first, tune, prune(name="again", protect=["nowhere"])), tmp_path)
    assert not (tmp_path / "03-finetune").exists()


def test_a_rehearsal_tells_sizes_epochs_and_times_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.random.get_rng_state()
    stages = [TRAIN, HALF, {"kind": "finetune", "epochs": 3}]
    others = [{"kind": "baseline"}, {"kind": "scratch", "length": "B"}]
    rows = {row.stage: row for row in rehearse(recipe(*stages, *others))}
    names = ["before", "train", "prune", "finetune", "baseline", "scratch", "measure"]
    assert list(rows) == names
    whole, small = rows["before"], rows["prune"]
    assert small.params < whole.params
    assert small.macs < 0.6 * whole.macs
    for name in ("train", "baseline"):
        assert (rows[name].params, rows[name].macs) == (whole.params, whole.macs)
    for name in ("finetune", "scratch"):
        assert (rows[name].params, rows[name].macs) == (small.params, small.macs)
    trained = {row.stage: row.epochs for row in rows.values() if row.seconds is not None}
    longer = round(TRAIN["epochs"] * whole.macs / small.macs)
    assert trained == {
        "train": TRAIN["epochs"], "finetune": 3, "baseline": TRAIN["epochs"], "scratch": longer,
    }  # fmt: skip
    assert all(row.seconds > 0 for row in rows.values() if row.stage in trained)
    assert not [*tmp_path.iterdir()]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_rehearsal_refuses_what_the_run_would():
    with pytest.raises(RecipeError, match="protect names no group"):
        rehearse(recipe(TRAIN, prune(protect=["nowhere"])))


@pytest.mark.parametrize(
    "stages",
    [
        [{**TRAIN, "sparsity": {"strength": 1e-3}}, prune(criterion="bn_scale")],
        [prune(criterion="bn_scale"), TRAIN],
        [prune(protect=["nowhere"]), TRAIN],
    ],
)
def test_a_rehearsal_refuses_first_stages_in_the_words_of_the_run(stages, tmp_path):
    """A run leaves it to them, as they are reached at once; nothing follows a rehearsal."""
    asked = recipe(*stages, model=MLP)
    with pytest.raises(NetslimError) as by_the_run:
        run(asked, tmp_path)
    with pytest.raises(type(by_the_run.value)) as foretold:
        rehearse(asked)
    assert str(foretold.value) == str(by_the_run.value)


SPARSE = {**TRAIN, "name": "sparse", "sparsity": {"strength": 1e-3}}
LAST = {**TRAIN, "kind": "finetune"}
INT8 = {"kind": "quantize"}


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([SPARSE, HALF, LAST], None),
        ([TRAIN, HALF, SPARSE], "stages.sparse.sparsity: nothing is cut behind it"),
        ([SPARSE], None),  # to be looked at
        ([TRAIN, HALF, {**SPARSE, "sparsity": {"strength": 0.0}}], None),
        ([TRAIN, {**SPARSE, "gradual": {"budget": HALVES, "steps": 1, "end": 1.0}}], None),
        ([TRAIN, HALF, LAST, INT8], None),
        ([TRAIN, INT8, HALF], "stages.quantize: its files hold the network as it is before prune"),
        ([TRAIN, HALF, INT8, LAST], "stages.quantize: its files hold the network as it is before"),
        ([TRAIN, {**INT8, "name": "whole"}, HALF, INT8], None),
        ([TRAIN, INT8, {"kind": "baseline"}], None),
    ],
)
def test_an_order_that_wastes_work_is_told(stages, told):
    found = wasted(recipe(*stages))
    assert [text[: len(told or "")] for text in found] == [told] * (told is not None)


def test_wasted_work_is_told_before_it_is_done_and_noted(tmp_path):
    stages, few = [HALF, SPARSE], {"trainer": {"limit_batches": 1}}
    (text,) = wasted(recipe(*stages))
    told = io.StringIO()
    rehearse(recipe(*stages, **few), Display(Console(file=told, width=500)))
    assert told.getvalue().splitlines()[0] == f"note: {text}"
    assert text in carry_out(tmp_path, *stages, **few).results["notes"]


def test_the_command_shows_a_rehearsal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--data.subset", "64", "--model.layers", "[4,M,8]"]
    assert main(["run", "digits", "--dry-run", *short]) == 0
    out = capsys.readouterr().out
    assert "nothing was trained or written" in out
    assert "training takes about" in out
    assert main(["run", "digits", "--dry-run", "--json", *short]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["folder"] == "runs/digits"
    assert [row["stage"] for row in found["stages"]] == [
        *("before", "sparse", "prune", "finetune", "measure"),
    ]
    assert not [*tmp_path.iterdir()]
