"""A stage that cuts on its way: to the same end as one cut, and killed, it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import netslim
from nets import stays
from netslim.cli import main
from netslim.errors import RecipeError
from netslim.surgery.history import history
from netslim.training.loop.epochs import EpochRecord
from netslim.training.loop.fit import fit
from netslim.training.recipe.schedule import cut_epochs
from netslim.training.recipe.schema import GradualOptions
from stage_runs import FIRST, HALF, SECOND, STILL, TRAIN, Done, outputs, recipe
from stage_runs import carry_out as stages_of

LOOKS_AT_FIGURES = True

SIZES = {FIRST: 8, SECOND: 16}
SHORT = {"threads": 1, "device": "cpu", "tensorboard": False, "limit_batches": 5}


def carry_out(folder: Path, *stages: dict[str, Any]) -> Done:
    """Epochs of five batches."""
    return stages_of(folder, *stages, trainer=SHORT)


def shrinking(**options: Any) -> dict[str, Any]:
    gradual = {"budget": {"cut_macs": 0.5}, "steps": 2, "end": 1.0, **options}
    return {
        "kind": "train",
        "name": "sparse",
        "epochs": 3,
        "optimizer": {"lr": 0.05},
        "gradual": gradual,
    }


def test_the_steps_fall_at_the_ends_of_epochs_by_hand():
    assert cut_epochs(GradualOptions(), 15) == (1, 3, 5, 7, 9)
    assert cut_epochs(GradualOptions(steps=2, begin=0.5, end=1.0), 4) == (3, 4)
    assert cut_epochs(GradualOptions(steps=1, end=0.5), 3) == (1,)


def test_a_stage_cuts_on_its_way_and_leaves_what_a_cut_leaves(tmp_path):
    tune = {**TRAIN, "kind": "finetune"}
    done = carry_out(tmp_path / "run", {**TRAIN, "name": "first"}, shrinking(), tune)
    left = done.column("02-sparse", "macs_left")
    assert 1 > left[0] == left[1] > left[2]
    assert left[2] <= 0.5
    rows = done.rows
    assert list(rows) == ["before", "pruned", "fine-tuned"]
    assert (
        rows["pruned"]["macs"]
        == rows["fine-tuned"]["macs"]
        == pytest.approx(left[2] * rows["before"]["macs"])
    )
    assert rows["before"]["macs"] * 0.5 >= rows["pruned"]["macs"]
    plan, network = done.plan("02-sparse"), done.network("02-sparse")
    assert history(network).groups == plan.groups  # type: ignore[union-attr]
    assert done.widths == [
        len(plan.groups[name].kept) if name in plan.groups else size for name, size in SIZES.items()
    ]
    (check,) = done.results["verification"]
    assert check["stage"] == "02-sparse"
    assert check["deviation"] < 1e-10
    assert done.results["curves"][1]["macs_left"] == left
    fresh = netslim.models.build("zoo:vgg", layers=[8, "M", 16], in_channels=1)
    again = netslim.load(fresh, done.folder / "02-sparse" / "model.safetensors").eval()
    assert torch.equal(outputs(again), outputs(network))
    assert "multiply-accumulates left" in (done.folder / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_the_last_cut_at_the_very_end_and_nothing_learnt_is_one_cut(tmp_path):
    """With weights that stand still, one step is the prune stage of the same options."""
    options = {
        "budget": {"cut_channels": 0.5},
        "criterion": "l1",
        "max_cut": 0.6,
        "min_channels": 2,
    }
    still = {"optimizer": STILL, "epochs": 1}
    gradual = carry_out(tmp_path / "a", {**shrinking(**options, steps=1), **still})
    once = carry_out(tmp_path / "b", {**TRAIN, **still}, {"kind": "prune", **options})
    assert stays(gradual.plan("01-sparse")) == stays(once.plan("02-prune"))
    assert gradual.widths == once.widths
    assert gradual.rows["pruned"]["accuracy"] == pytest.approx(
        once.rows["pruned"]["accuracy"], abs=0.01
    )


KINDS = {
    "weights": lambda: shrinking(),
    "sparse": lambda: {**shrinking(criterion="bn_scale"), "sparsity": {"strength": 1e-3}},
    "data": lambda: shrinking(criterion="taylor", batches=1, schedule="linear"),
    "best": lambda: {**shrinking(end=0.7), "keep": "best"},
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("kind", "last"), [*((kind, 1) for kind in KINDS), ("weights", 2)])
def test_killed_and_begun_again_it_ends_with_the_same_bits(tmp_path, monkeypatch, kind, last):
    stages = [
        HALF,
        KINDS[kind](),
    ]  # cut once already, so that the history is longer than the stage's own
    whole = carry_out(tmp_path / "whole", *stages)
    begin = EpochRecord.on_train_epoch_start

    def interrupting(self: EpochRecord, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == last:
            raise KeyboardInterrupt
        begin(self, trainer, module)

    monkeypatch.setattr(EpochRecord, "on_train_epoch_start", interrupting)
    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path / "again", *stages)
    monkeypatch.undo()
    again = carry_out(tmp_path / "again", *stages)
    for name in ("train_loss", "val_accuracy", "macs_left"):
        assert again.column("02-sparse", name) == whole.column("02-sparse", name)
    one, two = (
        load_file(done.folder / "02-sparse" / "model.safetensors") for done in (whole, again)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    for file in ("model.safetensors", "plan.json"):
        assert (again.folder / "02-sparse" / file).read_bytes() == (
            whole.folder / "02-sparse" / file
        ).read_bytes()
    assert again.results["rows"] == whole.results["rows"]
    assert again.stage("02-sparse")["verification"] == whole.stage("02-sparse")["verification"]


@pytest.mark.usefixtures("undrawn")
def test_interrupted_after_the_last_epoch_the_plan_is_there(tmp_path, monkeypatch):
    from netslim.training.loop import fit as room

    def interrupting(*arguments: Any, **options: Any) -> Any:
        fit(*arguments, **options)
        raise KeyboardInterrupt

    whole = carry_out(tmp_path / "whole", shrinking())
    monkeypatch.setattr(room, "fit", interrupting)
    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path / "again", shrinking())
    monkeypatch.undo()
    again = carry_out(tmp_path / "again", shrinking())
    assert again.plan("01-sparse") == whole.plan("01-sparse")
    assert again.stage("01-sparse")["verification"] == whole.stage("01-sparse")["verification"]
    assert again.results["rows"] == whole.results["rows"]


@pytest.mark.usefixtures("undrawn")
def test_the_best_weights_are_of_the_final_size(tmp_path):
    """The uncut epochs are better ones; what is kept is the best of those after the last cut."""
    stage = {
        **shrinking(budget={"cut_channels": 0.8}, end=0.75, steps=1),
        "epochs": 4,
        "keep": "best",
    }
    done = carry_out(tmp_path / "run", stage)
    accuracy = done.column("01-sparse", "val_accuracy")
    assert done.stage("01-sparse")["best"]["epoch"] == 3 + int(accuracy[3] > accuracy[2])
    assert done.rows["pruned"]["params"] < done.rows["before"]["params"]


@pytest.mark.usefixtures("undrawn")
def test_a_baseline_of_a_gradual_stage_keeps_its_size_and_scratch_takes_its_network(tmp_path):
    done = carry_out(tmp_path / "run", shrinking(), {"kind": "baseline"}, {"kind": "scratch"})
    rows = done.rows
    assert rows["baseline"]["params"] == rows["before"]["params"] > rows["pruned"]["params"]
    assert rows["scratch-e"]["params"] == rows["pruned"]["params"]
    assert done.column("03-scratch", "epoch") == [1, 2, 3]


def test_several_passes_are_counted_together(tmp_path):
    done = carry_out(
        tmp_path / "run", {**TRAIN, "name": "first"}, HALF, shrinking(steps=1, end=0.5)
    )
    assert list(done.rows) == ["before", "pruned-1", "pruned-2"]
    assert [row["label"] for row in done.results["rows"]][1:] == [
        "pruned, pass 1",
        "pruned while training, pass 2",
    ]


MASKED = {**HALF, "mode": "mask"}
WRONG: list[tuple[list[dict[str, Any]], str]] = [
    ([shrinking(budget={})], r"stages\.sparse\.gradual\.budget: say how much to cut in the end"),
    ([shrinking(steps=0)], r"gradual\.steps: is 0, must be 1 or more"),
    (
        [shrinking(steps=4)],
        r"gradual\.steps: 4 steps, each at an epoch's end, do not fit between 0 and 1 of 3 epochs",
    ),
    ([shrinking(end=0.5)], r"gradual\.steps: 2 steps, .* between 0 and 0\.5 of 3 epochs"),
    ([shrinking(begin=1.0)], r"gradual\.begin: is 1\.0, must be a share from 0 to below 1"),
    ([shrinking(blocks=True)], r"gradual\.blocks: channels go step by step, and no block does"),
    ([shrinking(begin=0.5, end=0.4)], r"gradual\.end: is 0\.4, must be above begin, at most 1"),
    (
        [shrinking(schedule="cosine")],
        r"gradual\.schedule: expected one of linear, exponential, cubic",
    ),
    ([shrinking(criterion="l3")], r"gradual\.criterion: there is no criterion 'l3'"),
    (
        [shrinking(criterion="bn_scale", lead="pacesetter")],
        r"gradual\.lead: bn_scale does not look at the layers",
    ),
    (
        [shrinking(budget={"cut_macs": 1.5})],
        r"gradual\.budget\.cut_macs must be a number at least 0 and below 1",
    ),
    ([shrinking(per_group={FIRST: 1.5})], r"gradual\.per_group\.features\.0: is 1\.5, must be"),
    ([shrinking(min_channels=0)], r"gradual\.min_channels must be a whole number at least 1"),
    (
        [{**shrinking(), "sparsity": {"method": "soft_filter"}}],
        r"gradual: soft_filter works on the groups of a netw",
    ),
    (
        [MASKED, shrinking()],
        r"stages\.sparse\.gradual: the network is masked by prune; convert it first",
    ),
    ([{**shrinking(), "distill": {}}], r"no training stage before the first cut could teach"),
]


@pytest.mark.parametrize(("stages", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_a_wrong_recipe_is_refused_before_anything_runs(stages, message):
    with pytest.raises(RecipeError, match=message):
        recipe(*stages)


def test_the_command_line_takes_dotted_options(tmp_path: Path, capsys):
    out = tmp_path / "small.safetensors"
    command = [
        "zoo:vgg",
        "--model.layers",
        "[8, M, 16]",
        "--model.in_channels",
        "1",
        "--data",
        "digits",
    ]
    command += [
        "--trainer.threads",
        "1",
        "--trainer.limit_batches",
        "2",
        "--trainer.tensorboard",
        "false",
    ]
    gradual = ["--gradual.budget.cut_macs", "0.5", "--gradual.steps", "2"]
    assert main(["train", *command, "--epochs", "4", *gradual, "--out", str(out)]) == 0
    fresh = netslim.models.build("zoo:vgg", layers=[8, "M", 16], in_channels=1)
    example = torch.zeros(1, 1, 8, 8)
    whole, small = (
        netslim.cost(fresh, example).macs,
        netslim.cost(netslim.load(fresh, out), example).macs,
    )
    assert small <= 0.5 * whole
    capsys.readouterr()
    again = [
        str(out),
        "--data",
        "digits",
        *command[7:],
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "again.safetensors"),
    ]
    assert main(["finetune", *again, *gradual]) == 1
    assert "2 steps, each at an epoch's end, do not fit" in capsys.readouterr().err
