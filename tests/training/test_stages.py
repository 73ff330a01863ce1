"""Every kind of stage and every option of one, through the runner, on small networks and the
digits.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

import netslim
from netslim.data.preprocessing import Preprocessing
from netslim.errors import PlanError, RecipeError
from netslim.graph.modules.batches import held_out
from netslim.report.run_page import summary
from netslim.selection.budget.resources import Products, Widths
from netslim.selection.options import Compensation, Scoring
from netslim.surgery.proof.silencing import randomise
from netslim.training import run
from netslim.training.loop.classifier import distilled
from netslim.training.loop.epochs import EpochRecord
from netslim.training.loop.progress import Display
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import DistillOptions, LatencyOptions, Prune
from netslim.training.stages import prune as cutting
from netslim.training.stages.folder import RunFolder
from netslim.training.stages.results import _remarks
from netslim.training.stages.runner import Runner
from netslim.training.stages.teachers import as_trained
from stage_runs import (
    DIGITS,
    FEW,
    FIRST,
    HALF,
    RESNET,
    SECOND,
    STILL,
    TRAIN,
    VGG,
    batches_of,
    carry_out,
    images,
    kept,
    outputs,
    recipe,
    scales,
    sparse,
)

# ---------------------------------------------------------------- Network Slimming


@pytest.mark.parametrize(("penalty", "smaller"), [("l1", 1.0), ("smooth_l1", 0.999)])
def test_the_penalties_are_logged_as_they_are(tmp_path, penalty, smaller):
    """With weights that stand still: 24 scales of 0.5 and strength 0.25 make 3, rounded off by
    delta / 2 each.
    """
    stage = {**TRAIN, "optimizer": STILL, "sparsity": {"strength": 0.25, "penalty": penalty}}
    if penalty == "smooth_l1":
        stage["sparsity"]["delta"] = 0.001
    (value,) = carry_out(tmp_path / "run", stage).column("01-train", "penalty")
    assert value == pytest.approx(3.0 * smaller)


def test_proximal_training_leaves_zeros_and_exactly_these_go(tmp_path):
    stage = {**sparse(penalty="proximal", strength=0.065), "optimizer": {"lr": 0.2}}
    cut = {"kind": "prune", "by": "zeros"}
    done = carry_out(tmp_path / "run", stage, cut, data=DIGITS)
    trained, small = done.network("01-sparse"), done.network("02-prune")
    zeros = [int((m.weight == 0).sum()) for m in trained.modules() if isinstance(m, nn.BatchNorm2d)]
    assert 0 < sum(zeros) < 24
    assert done.widths == [max(8 - zeros[0], 1), max(16 - zeros[1], 1)]
    assert (scales(small) != 0).all()
    assert done.results["curves"][0]["near_zero"][-1] >= sum(zeros) / 24 - 1e-6


def test_zero_scales_with_folding_change_nothing_but_the_border(tmp_path):
    """What is read by the linear layer, with no padding, goes exactly; no statistics are taken anew
    for that.
    """
    stages = (
        sparse(penalty="proximal", strength=0.25),
        {"kind": "prune", "by": "zeros", "fold": "constant", "protect": [FIRST]},
    )
    done = carry_out(tmp_path / "run", *stages, data=DIGITS)
    assert done.widths[1] < 16
    torch.testing.assert_close(
        outputs(done.network("02-prune")), outputs(done.network("01-sparse"))
    )
    assert done.rows["pruned"]["accuracy"] == pytest.approx(
        done.rows["before"]["accuracy"], abs=0.003
    )
    assert any(
        n == "02-prune: what removed channels still emit moved into the layers behind them: "
        "classifier.0.weight"
        for n in done.results["notes"]
    )


def test_no_zero_scale_is_told(tmp_path):
    with pytest.raises(
        PlanError, match="no batch-norm scale is exactly zero, so 'by: zeros' finds nothing to cut"
    ):
        carry_out(
            tmp_path / "run",
            sparse(penalty="proximal", strength=0.0),
            {"kind": "prune", "by": "zeros"},
        )


# ---------------------------------------------------------------- Soft Filter Pruning


def test_soft_filters_are_zero_and_exactly_these_go(tmp_path):
    done = carry_out(
        tmp_path / "run",
        sparse(method="soft_filter", rate=0.3),
        {"kind": "prune", "by": "zeros", "criterion": "l2", "recalibrate": 3},
    )
    assert done.widths == [8 - int(8 * 0.3), 16 - int(16 * 0.3)]
    assert done.column("01-sparse", "zero") == pytest.approx([6 / 24, 6 / 24])
    assert done.column("01-sparse", "returned")[0] <= 6
    weights = [m.weight for m in done.network("01-sparse").modules() if isinstance(m, nn.Conv2d)]
    zero = [set((w.flatten(1).abs().sum(1) == 0).nonzero().flatten().tolist()) for w in weights]
    assert [set(cut.removed) for cut in done.plan("02-prune").groups.values()] == zero


def test_soft_filters_at_a_rate_of_their_own_every_other_epoch(tmp_path):
    stage = sparse(method="soft_filter", rate={SECOND: 0.5}, every=3, criterion="geometric_median")
    grown = {
        **TRAIN,
        "epochs": 2,
    }  # before that, what is zero stays so: its BN emits 0, and a ReLU passes nothing back
    done = carry_out(
        tmp_path / "run", grown, stage, {"kind": "prune", "by": "zeros", "criterion": "l1"}
    )
    assert done.widths == [8, 8]
    first, last = done.column("02-sparse", "zero")
    assert first < last == 0.5  # the first epoch ends without a zeroing, the last always with one


def test_the_best_weights_are_zeroed_too(tmp_path):
    """The second epoch wrecks the network; the first one, which is kept, ended without a zeroing."""
    wrecking = {"name": "multistep", "milestones": [1], "factor": 40.0}
    stage = {
        **sparse(method="soft_filter", rate={SECOND: 0.5}, every=5),
        "keep": "best",
        "schedule": wrecking,
    }
    grown = {**TRAIN, "epochs": 2}
    done = carry_out(
        tmp_path / "run", grown, stage, {"kind": "prune", "by": "zeros", "criterion": "l2"}
    )
    assert done.stage("02-sparse")["best"]["epoch"] == 1
    assert done.column("02-sparse", "zero")[0] < 0.5
    assert done.widths == [8, 8]


def softly(
    layers: list[Any], *zeroed: str
) -> tuple[nn.Module, nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network with zero filters whose statistics are not theirs, a copy whose statistics are, and
    batches.
    """
    network = netslim.models.build("zoo:vgg", layers=layers, in_channels=1)
    randomise(network, 0)
    with torch.no_grad():
        for name in zeroed:
            network.get_submodule(name).weight[::2] = 0
    data = torch.randn(4, 32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    batches = [(batch, torch.zeros(32, dtype=torch.long)) for batch in data]
    seen, _ = held_out(batches)
    return network.eval(), netslim.surgery.recalibrate(copy.deepcopy(network), seen), batches


def cut_zeros(network: nn.Module, batches: list[Any], **options: Any) -> nn.Module:
    stage = Prune(
        "prune", by="zeros", scoring=Scoring("l2"), batches=4, compensation=Compensation(**options)
    )
    return cutting.carry_out(stage, network, images(2), lambda count: batches[:count]).network


def test_folding_after_soft_filters_is_exact_without_padding():
    """Folded, the smaller network is that with zero filters whose statistics are theirs."""
    network, settled, batches = softly([8, "M", 16], SECOND)
    folded = cut_zeros(network, batches, fold="constant")
    torch.testing.assert_close(outputs(folded), outputs(settled), rtol=1e-4, atol=1e-4)
    assert (outputs(cut_zeros(settled, batches)) - outputs(settled)).abs().max() > 0.01


def test_folding_after_soft_filters_helps_where_padded():
    network, settled, batches = softly([8, 16, 16], "features.3", "features.6")
    wanted = outputs(settled)
    far = [(outputs(cut_zeros(network, batches, fold="constant")) - wanted).norm()]
    far.append((outputs(cut_zeros(settled, batches)) - wanted).norm())
    assert 0 < far[0] < far[1] / 2


# ---------------------------------------------------------------- Centripetal SGD


def test_clusters_come_together_and_merging_them_changes_nothing(tmp_path):
    stage = sparse(method="centripetal", target=0.5, strength=0.5)
    again = {
        **stage,
        "name": "again",
        "sparsity": {**stage["sparsity"], "target": {SECOND: 3, FIRST: 0.5}},
    }
    merge = {"kind": "prune", "by": "clusters"}
    stages = (stage, {**merge, "name": "one"}, again, {**merge, "name": "two"})
    done = carry_out(tmp_path / "run", *stages, data=DIGITS)
    assert done.stage("02-one")["widths"] == [
        {"layer": FIRST, "before": 8, "after": 4},
        {"layer": SECOND, "before": 16, "after": 8},
    ]
    assert done.widths == [2, 3]
    for label in ("01-sparse", "03-again"):
        first, last = done.column(label, "deviation")
        assert 0 < last < 0.7 * first
    rows = done.rows
    assert rows["pruned-1"]["accuracy"] == pytest.approx(rows["before"]["accuracy"], abs=0.003)
    assert rows["pruned-2"]["accuracy"] == pytest.approx(
        rows["fine-tuned-1"]["accuracy"], abs=0.003
    )
    torch.testing.assert_close(outputs(done.network("02-one")), outputs(done.network("01-sparse")))
    torch.testing.assert_close(outputs(done.network("04-two")), outputs(done.network("03-again")))
    assert all(check["deviation"] < 1e-10 for check in done.results["verification"])
    assert "02-one: channels merged into those that they had become equal to: 12" in " ".join(
        done.results["notes"]
    )


@pytest.mark.parametrize("clusters", ["even", "imbalanced"])
def test_clusters_of_another_kind(tmp_path, clusters):
    stage = {
        **TRAIN,
        "sparsity": {
            "method": "centripetal",
            "target": 0.25,
            "clusters": clusters,
            "protect": [FIRST],
        },
    }
    done = carry_out(tmp_path / "run", stage)
    (labels,) = done.stage("01-train")["clusters"].values()
    sizes = sorted(labels.count(number) for number in set(labels))
    assert sizes == ([4, 4, 4, 4] if clusters == "even" else [1, 1, 1, 13])


# ---------------------------------------------------------------- choosing what goes


def test_greedy_takes_named_layers_in_any_order(tmp_path):
    amounts = {SECOND: 5, FIRST: 0.25}
    stage = {"kind": "prune", "by": "greedy", "criterion": "l1", "per_group": amounts}
    turned = {**stage, "per_group": dict(reversed(amounts.items()))}
    one, two = carry_out(tmp_path / "a", stage), carry_out(tmp_path / "b", turned)
    assert one.widths == two.widths == [6, 11]
    assert kept(one.plan("01-prune")) == kept(two.plan("01-prune"))
    network = Runner(recipe(stage), RunFolder(tmp_path), Display(), "").build()
    plan = netslim.selection.greedy(netslim.trace(network, images(2)), network, amounts)
    assert kept(one.plan("01-prune")) == kept(plan)


def test_independent_scores_of_named_layers_in_any_order(tmp_path):
    stage = {"kind": "prune", "criterion": "largest", "per_group": {SECOND: 0.5, FIRST: 2}}
    turned = {**stage, "per_group": {FIRST: 2, SECOND: 0.5}}
    one, two = carry_out(tmp_path / "a", stage), carry_out(tmp_path / "b", turned)
    assert one.widths == [6, 8]
    assert kept(one.plan("01-prune")) == kept(two.plan("01-prune"))


def test_the_same_share_of_every_layer(tmp_path):
    assert carry_out(tmp_path / "a", {**HALF, "allocation": "uniform"}).widths == [4, 8]
    assert carry_out(tmp_path / "b", HALF).widths != [4, 8]


@pytest.mark.parametrize("criterion", ["taylor", "mean_std"])
def test_criteria_that_look_at_data(tmp_path, criterion):
    stage = {"kind": "prune", "criterion": criterion, "batches": 2, "budget": {"cut_channels": 0.5}}
    done = carry_out(tmp_path / "run", stage)
    network = Runner(recipe(stage), RunFolder(tmp_path), Display(), "").build().eval()
    graph = netslim.trace(network, images(2))
    scores = netslim.score(graph, network, criterion, batches=batches_of(tmp_path, 2, stage))
    assert kept(done.plan("01-prune")) == kept(
        netslim.select(graph, scores, netslim.Budget(cut_channels=0.5))
    )


def test_shortcuts_are_left_alone_or_led_by_their_projection(tmp_path):
    model = {**RESNET, "shortcut": "B"}
    stage = {
        "kind": "prune",
        "criterion": "l1",
        "budget": {"cut_channels": 0.5},
        "allocation": "uniform",
    }
    network = Runner(recipe(stage, model=model), RunFolder(tmp_path), Display(), "").build()
    graph = netslim.trace(network, images(2))
    joined = {group.name for group in graph.prunable if group.shortcut}
    avoid = carry_out(tmp_path / "a", {**stage, "shortcuts": "avoid"}, model=model)
    include = carry_out(tmp_path / "b", {**stage, "lead": "pacesetter"}, model=model)
    mean = carry_out(tmp_path / "c", stage, model=model)
    whole = {
        layer["layer"] for layer in avoid.results["widths"] if layer["after"] == layer["before"]
    }
    assert whole == joined
    assert len(joined) == 3
    assert all(layer["after"] == layer["before"] // 2 for layer in include.results["widths"])
    stays = kept(include.plan("01-prune"))
    assert stays != kept(mean.plan("01-prune"))
    for name in joined:
        leader = netslim.graph.pacesetter(graph, graph[name])
        weight = dict(network.named_parameters())[leader].detach()
        order = weight.flatten(1).abs().sum(1).argsort()
        assert set(stays[name]) == set(order[len(order) // 2 :].tolist())


# ---------------------------------------------------------------- folding, statistics


def test_folding_is_chosen_by_the_recipe_and_told(tmp_path):
    stages = (TRAIN, {**HALF, "per_group": {SECOND: 0.5}, "budget": {}, "fold": "constant"})
    plain = {**stages[1], "fold": None}
    folded, cut = carry_out(tmp_path / "a", *stages), carry_out(tmp_path / "b", TRAIN, plain)
    assert folded.widths == cut.widths == [8, 8]
    bias = [done.network("02-prune").state_dict()["classifier.0.bias"] for done in (folded, cut)]
    assert not torch.equal(*bias)
    assert torch.equal(bias[1], cut.network("01-train").state_dict()["classifier.0.bias"])
    assert any(
        "moved into the layers behind them: classifier.0.weight" in n
        for n in folded.results["notes"]
    )
    assert folded.results["verification"][0]["deviation"] < 1e-10


def test_statistics_are_taken_anew_from_so_many_batches(tmp_path):
    done = carry_out(tmp_path / "a", TRAIN, {**HALF, "recalibrate": 2}, data=DIGITS)
    plain = carry_out(tmp_path / "b", TRAIN, HALF, data=DIGITS).network("02-prune")
    netslim.surgery.recalibrate(plain, batches_of(tmp_path, 2, TRAIN, HALF, data=DIGITS))
    for name, buffer in done.network("02-prune").named_buffers():
        torch.testing.assert_close(buffer, plain.get_buffer(name))
    assert "02-prune: batch-norm statistics were taken anew from 2 batches" in done.results["notes"]


# ---------------------------------------------------------------- masks


def test_a_mask_holds_through_fine_tuning_and_converts_exactly(tmp_path):
    tune = {**TRAIN, "kind": "finetune", "optimizer": {"lr": 0.05, "weight_decay": 0.01}}
    done = carry_out(tmp_path / "run", TRAIN, {**HALF, "mode": "mask"}, tune, {"kind": "convert"})
    plan, tuned = done.plan("02-prune"), done.network("03-finetune")
    tensors = dict(tuned.named_parameters())
    for cut in plan.tensors:
        if cut.tensor in tensors:
            assert not tensors[cut.tensor].index_select(cut.axis, torch.tensor(cut.removed)).any()
    rows = done.rows
    assert list(rows) == ["before", "masked", "fine-tuned-masked", "converted"]
    assert rows["masked"]["params"] == rows["before"]["params"] > rows["converted"]["params"]
    assert (
        rows["fine-tuned-masked"]["accuracy"]
        == rows["converted"]["accuracy"]
        != rows["masked"]["accuracy"]
    )
    torch.testing.assert_close(outputs(done.network("04-convert")), outputs(tuned))
    assert [check["stage"] for check in done.results["verification"]] == ["04-convert"]
    assert "widths" in done.results
    assert sum(done.widths) == 12


def test_a_mask_that_is_never_converted_says_so(tmp_path):
    done = carry_out(tmp_path / "run", {**HALF, "mode": "mask"})
    assert done.results["widths"] == []
    assert "01-prune: channels silenced and held at zero: 12; a stage of kind convert" in " ".join(
        done.results["notes"]
    )
    assert "Nothing was cut" in (done.folder / "report.html").read_text()


# ---------------------------------------------------------------- from scratch


def test_scratch_trains_the_small_architecture_for_as_long_or_by_its_cost(tmp_path):
    train = {**TRAIN, "optimizer": STILL}
    done = carry_out(
        tmp_path / "run",
        train,
        HALF,
        {"kind": "scratch", "name": "E"},
        {"kind": "scratch", "name": "B", "length": "B"},
    )
    ratio = done.rows["before"]["macs"] / done.rows["pruned"]["macs"]
    assert done.stage("04-B")["macs_ratio"] == pytest.approx(ratio, rel=1e-4)
    assert len(done.column("03-E", "epoch")) == 1
    assert len(done.column("04-B", "epoch")) == round(ratio) > 1
    assert list(done.rows) == ["scratch-e", "scratch-b", "before", "pruned"]
    assert done.rows["scratch-e"]["params"] == done.rows["pruned"]["params"]
    fresh, cut = (dict(done.network(label).named_parameters()) for label in ("03-E", "02-prune"))
    assert all(fresh[name].shape == cut[name].shape for name in cut)
    assert not torch.isclose(fresh["features.0.weight"], cut["features.0.weight"]).any()
    torch.testing.assert_close(
        fresh["features.0.weight"], done.network("04-B").state_dict()["features.0.weight"]
    )


def test_scratch_after_a_merge_starts_with_single_weights(tmp_path):
    """Not with sums over clusters: all but one of 8 inputs merged, the sums would be some 2.6 times
    as large.
    """
    sparsity = {"method": "centripetal", "target": {FIRST: 1}}
    train = {**TRAIN, "optimizer": {**STILL, "momentum": 0.0}, "sparsity": sparsity}
    done = carry_out(
        tmp_path / "run", train, {"kind": "prune", "by": "clusters"}, {"kind": "scratch"}
    )
    assert done.widths == [1, 16]
    fresh = done.network("03-scratch").state_dict()[f"{SECOND}.weight"]
    whole = (
        Runner(recipe(train), RunFolder(tmp_path), Display(), "")
        .build()
        .state_dict()[f"{SECOND}.weight"]
    )
    assert fresh.std() == pytest.approx(whole.std(), rel=0.25)


# ---------------------------------------------------------------- distillation


def test_the_loss_beside_a_teacher_by_hand():
    """Logits (0, 2 ln 3) and (0, 2 ln 1) at T = 2: teacher (1/4, 3/4), student (1/2, 1/2)."""
    student, teacher = (
        torch.tensor([[0.0, 0.0]]),
        torch.tensor([[0.0, 2.0]]) * torch.tensor(3.0).log(),
    )
    divergence = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    found = distilled(
        torch.tensor(10.0), student, teacher, DistillOptions(temperature=2.0, weight=0.25)
    )
    assert found == pytest.approx(0.75 * 10 + 0.25 * 4 * float(divergence))


def test_a_teacher_by_default_by_stage_and_by_file(tmp_path):
    """Without normalisation a network is its own perfect teacher: only the labels' share of the
    loss is left.
    """
    model = {"name": "zoo:mlp", "in_features": 64, "hidden": [8], "norm": False}
    still = {"epochs": 1, "optimizer": STILL}
    train = {**TRAIN, "name": "first"}
    how = {"model": model, "data": DIGITS}
    plain = carry_out(tmp_path / "a", train, {"kind": "train", **still}, **how)
    (whole,) = plain.column("02-train", "train_loss")
    taught: list[float] = []
    for number, teacher in enumerate(
        (None, "first", str(tmp_path / "a" / "01-first" / "model.safetensors"))
    ):
        stage = {"kind": "finetune", **still, "distill": {"teacher": teacher, "weight": 0.75}}
        stages = (
            (train, {**TRAIN, "name": "other"}, stage) if teacher == "first" else (train, stage)
        )
        done = carry_out(tmp_path / f"taught-{number}", *stages, **how)
        taught += done.column(f"0{len(stages)}-finetune", "train_loss")
    assert taught[0] == taught[2] == pytest.approx(0.25 * whole, rel=1e-2)
    assert taught[1] != pytest.approx(taught[0], rel=1e-3)  # another student, the same teacher


def test_a_teacher_that_does_not_fit_is_refused(tmp_path):
    first = carry_out(tmp_path / "a", HALF, model={**VGG, "in_channels": 1})
    teacher = {"teacher": "zoo:vgg11"}
    with pytest.raises(RecipeError, match="zoo:vgg11 does not take the images of digits"):
        carry_out(tmp_path / "b", {**TRAIN, "distill": teacher})
    assert first.rows["pruned"]["top5"] is not None


MLP = {"name": "zoo:mlp", "in_features": 64, "hidden": [8], "norm": False}


def test_a_teacher_sees_images_as_it_was_trained_on_them(tmp_path):
    """Its own student, in other units: the teacher's part of the loss is that of an equal."""
    given = {"name": "digits", "batch_size": 64, "mean": [0.2], "std": [0.5]}
    first = carry_out(tmp_path / "a", TRAIN, model=MLP, data=given)
    file = str(first.folder / "01-train" / "model.safetensors")
    runner = runner_of(tmp_path / "b", {**given, "mean": [0.4], "std": [0.25]})
    pixels = runner.data.test.images[:8]
    inputs, theirs = (
        Preprocessing(mean, std, (8, 8), False, ("a",)).normalise(pixels)
        for mean, std in (((0.4,), (0.25,)), ((0.2,), (0.5,)))
    )
    alone = netslim.models.build(file).eval()
    torch.testing.assert_close(runner.teacher(file, DistillOptions()).eval()(inputs), alone(theirs))
    assert type(runner_of(tmp_path / "c", given).teacher(file, DistillOptions())) is type(alone)


def runner_of(folder: Path, data: dict[str, Any]) -> Runner:
    quiet = Display(Console(file=io.StringIO()))
    return Runner(recipe(TRAIN, model=MLP, data=data), RunFolder(folder), quiet, "")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"size": (16, 16)},
            "trained on images of 16x16 pixels, and those of the student have 8x8",
        ),
        ({"mean": (0.1,) * 3, "std": (0.2,) * 3}, "of 3 channels, and those of the student have 1"),
        ({"classes": tuple("9876543210")}, "trained on these classes in another order"),
    ],
)
def test_a_teacher_of_other_pictures_is_refused(changed, said):
    images = Preprocessing((0.4,), (0.25,), (8, 8), False, tuple("0123456789"))
    with pytest.raises(RecipeError, match=said):
        as_trained(nn.Identity(), "x.safetensors", replace(images, **changed), images)


def test_the_weights_of_a_teacher_may_lie_in_a_file(tmp_path):
    network = netslim.models.build("zoo:vgg11", num_classes=10)
    file, rgb = str(tmp_path / "mine.pth"), {"name": "digits", "batch_size": 64, "channels": "rgb"}
    torch.save({"state_dict": network.state_dict()}, file)
    options = {"data": rgb | {"image_size": 32}, "model": {**VGG, "in_channels": 3}}
    small = recipe(TRAIN, **options)
    runner = Runner(small, RunFolder(tmp_path / "run"), Display(Console(file=io.StringIO())), "")
    images = torch.randn(2, 3, 32, 32)
    theirs = DistillOptions(teacher_weights=file)
    found = runner.teacher("zoo:vgg11", theirs).eval()(images)
    torch.testing.assert_close(found, network.eval()(images))
    # Trained on pixels of 0..1 as they are, which the student's images are brought to.
    theirs = DistillOptions(None, file, teacher_mean=[0.0] * 3, teacher_std=[1.0] * 3)
    pixels = runner.data.preprocessing.denormalise(images)
    found = runner.teacher("zoo:vgg11", theirs).eval()(images)
    torch.testing.assert_close(found, network(pixels))
    with pytest.raises(RecipeError, match="has fresh weights, and these teach nothing"):
        runner.teacher("zoo:vgg11", DistillOptions())
    for distill, said in (
        ({"teacher": file}, "holds weights, and does not say of which network"),
        ({"teacher_mean": [0.5]}, "teacher_mean and teacher_std belong together"),
        ({"teacher_mean": [0.5], "teacher_std": [0.0]}, "teacher_mean: normalisation: .* positive"),
        ({"teacher_weights": file}, "name the network that they belong to as teacher"),
    ):
        with pytest.raises(RecipeError, match=said):
            recipe({**TRAIN, "distill": distill}, **options)


# ---------------------------------------------------------------- optimizer, data, rows


def test_weight_decay_of_scales_alone(tmp_path):
    """One step of plain descent at rate 0.1: a decay of 2 takes 0.2 of every scale, which starts at
    1.
    """
    found = []
    for decay in (0.0, 2.0):
        optimizer = {**STILL, "lr": 0.1, "norm_decay": decay}
        stage = {**TRAIN, "optimizer": optimizer}
        trainer = {"threads": 1, "device": "cpu", "tensorboard": False, "limit_batches": 1}
        found.append(carry_out(tmp_path / f"{decay:g}", stage, trainer=trainer).network("01-train"))
    torch.testing.assert_close(
        scales(found[0]) - scales(found[1]), torch.full((24,), 0.2), rtol=0, atol=1e-6
    )
    first, second = (network.state_dict()["features.0.weight"] for network in found)
    torch.testing.assert_close(first, second)


def test_a_subset_of_the_images(tmp_path):
    data = {"name": "digits", "batch_size": 64, "subset": 128}
    done = carry_out(tmp_path / "run", TRAIN, data=data)
    assert done.column("01-train", "step") == [2]


def test_the_first_five_of_ten_classes(tmp_path):
    done = carry_out(tmp_path / "run", TRAIN)
    data = netslim.data.load("digits", validation=0.1, subset=FEW["subset"], seed=0)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
    with torch.no_grad():
        five = done.network("01-train")((data.test.images / 255 - mean) / std).topk(5).indices
    right = (five == data.test.labels[:, None]).any(1).double().mean()
    assert done.rows["before"]["top5"] == pytest.approx(float(right), abs=1e-6)
    assert done.rows["before"]["top5"] > done.rows["before"]["accuracy"]
    assert "top-5" in (done.folder / "report.html").read_text()


# ---------------------------------------------------------------- where a network comes from


@pytest.mark.parametrize("label", ["01-train", "02-prune"])
def test_a_recipe_may_start_from_a_checkpoint(tmp_path, label):
    first = carry_out(tmp_path / "a", TRAIN, HALF)
    path = tmp_path / "a" / label / "model.safetensors"
    done = carry_out(
        tmp_path / "b", {**HALF, "budget": {"cut_channels": 0.25}}, TRAIN, model={"name": str(path)}
    )
    row = done.rows["before"]
    given = first.rows["before" if label == "01-train" else "pruned"]
    assert {key: row[key] for key in ("accuracy", "params", "macs", "loss")} == {
        key: given[key] for key in ("accuracy", "params", "macs", "loss")
    }
    again, mine = done.network("03-measure").state_dict(), first.network(label).state_dict()
    assert all(torch.equal(again[key], mine[key]) for key in mine)
    assert outputs(done.network("02-train")).shape == (32, 10)
    assert done.rows["fine-tuned"]["params"] == done.rows["pruned"]["params"] < row["params"]


def test_a_checkpoint_takes_no_options(tmp_path):
    carry_out(tmp_path / "a", HALF)
    path = str(tmp_path / "a" / "01-prune" / "model.safetensors")
    with pytest.raises(RecipeError, match="already says how its model is built: leave out width"):
        carry_out(tmp_path / "b", HALF, model={"name": path, "width": 0.5})


def test_a_merge_of_a_checkpoint_that_knows_its_clusters(tmp_path):
    carry_out(tmp_path / "a", sparse(method="centripetal", target=0.5, strength=0.5))
    path = str(tmp_path / "a" / "01-sparse" / "model.safetensors")
    done = carry_out(tmp_path / "b", {"kind": "prune", "by": "clusters"}, model={"name": path})
    assert done.widths == [4, 8]
    assert done.rows["pruned"]["accuracy"] == pytest.approx(
        done.rows["before"]["accuracy"], abs=0.003
    )


def test_clusters_that_are_not_equal_are_said_to_differ():
    network = netslim.models.build("zoo:vgg", layers=[8, "M", 16], in_channels=1).eval()
    clusters = {FIRST: [0, 0, 1, 1, 2, 2, 3, 3]}
    stage = Prune("merge", by="clusters", compensation=Compensation())
    done = cutting.carry_out(stage, network, images(2), lambda _: [], clusters)
    assert "channels merged: 4, though the members of a cluster differ by" in done.warnings[0]
    assert not done.notes


class Milliseconds:
    """Stands in for a latency table."""

    def resource(self, graph: netslim.ChannelGraph, widths: Widths) -> Products:
        return Products(widths, [cost.factors for cost in graph.costs])


@pytest.mark.parametrize("check", [True, False])
def test_a_stage_times_its_cuts_unless_told_not_to(monkeypatch, check):
    seen = []

    def timed_here(table: Any, network: nn.Module, example: Tensor, progress: Any) -> Any:
        seen.append(tuple(example.shape))
        return table

    monkeypatch.setattr(netslim, "latency_table", lambda *_, **__: Milliseconds())
    monkeypatch.setattr(cutting, "timed_here", timed_here)
    stage = Prune(
        "prune",
        budget=netslim.Budget(cut_latency=0.3),
        scoring=Scoring("l2"),
        compensation=Compensation(),
        latency=LatencyOptions(batch=3, check=check),
    )
    network = netslim.models.build("zoo:vgg", layers=[8, "M", 16], in_channels=1).eval()
    done = cutting.carry_out(stage, network, images(2), lambda _: [])
    assert done.plan.groups
    assert seen == [(3, *images(1).shape[1:])] * check


FACTORIES = """
from torch import nn

def bare(width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )
"""


def test_normalisation_is_added_where_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "networks_without_norm.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    model = {"name": "networks_without_norm:bare", "width": 6}
    slimming = {**TRAIN, "sparsity": {"strength": 1e-3}}
    cut = {"kind": "prune", "budget": {"cut_channels": 0.5}}
    with pytest.raises(netslim.NetslimError, match="no BN layer with scales"):
        carry_out(tmp_path / "a", slimming, cut, model=model)
    done = carry_out(tmp_path / "b", slimming, cut, model={**model, "add_bn": True})
    assert sum(done.widths) == 9
    assert sum(isinstance(m, nn.BatchNorm2d) for m in done.network("02-prune").modules()) == 2


def test_selections_are_added_where_normalisation_comes_first(tmp_path):
    model = {"name": "zoo:densenet", "depth": 7, "growth": 4, "in_channels": 1}
    cut = {"kind": "prune", "budget": {"cut_channels": 0.4}}
    done = carry_out(tmp_path / "run", cut, model={**model, "add_selection": True})
    chosen = [
        m for m in done.network("01-prune").modules() if isinstance(m, netslim.models.ChannelSelect)
    ]
    assert len(chosen) == 6
    assert any(len(m.indices) < m.channels for m in chosen)


# ---------------------------------------------------------------- interrupted and begun again


INTERRUPTED: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "soft_filter": lambda: [sparse(method="soft_filter", rate=0.3)],
    "centripetal": lambda: [sparse(method="centripetal", target=0.5)],
    "masked": lambda: [{**HALF, "mode": "mask"}, {**TRAIN, "name": "sparse", "epochs": 2}],
    "taught": lambda: [TRAIN, {**TRAIN, "name": "sparse", "epochs": 2, "distill": {}}],
    "scratch": lambda: [TRAIN, HALF, {"kind": "scratch", "name": "sparse", "length": "B"}],
}


@pytest.mark.parametrize("kind", INTERRUPTED)
def test_interrupted_it_ends_with_the_same_bits(tmp_path, monkeypatch, kind):
    stages = INTERRUPTED[kind]()
    label = f"{len(stages):02d}-sparse"
    whole = carry_out(tmp_path / "whole", *stages)
    begin = EpochRecord.on_train_epoch_start

    def interrupting(self, trainer, module):
        if self.folder.label == label and trainer.current_epoch == 1:
            raise KeyboardInterrupt
        begin(self, trainer, module)

    monkeypatch.setattr(EpochRecord, "on_train_epoch_start", interrupting)
    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path / "again", *stages)
    monkeypatch.undo()
    again = carry_out(tmp_path / "again", *stages)
    assert len(again.column(label, "epoch")) >= 2
    for name in ("train_loss", "val_accuracy"):
        assert again.column(label, name) == whole.column(label, name)
    one, two = (load_file(done.folder / label / "model.safetensors") for done in (whole, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert again.results["rows"] == whole.results["rows"]


def test_interrupted_after_the_last_epoch_the_clusters_still_meet(tmp_path, monkeypatch):
    stage = sparse(method="centripetal", target=0.5)
    whole = carry_out(tmp_path / "whole", stage)

    def interrupting(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "save", interrupting)
    with pytest.raises(KeyboardInterrupt):
        carry_out(tmp_path / "again", stage)
    monkeypatch.undo()
    again = carry_out(tmp_path / "again", stage)
    assert again.stage("01-sparse")["clusters"] == whole.stage("01-sparse")["clusters"]
    one, two = (
        load_file(done.folder / "01-sparse" / "model.safetensors") for done in (whole, again)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


# ---------------------------------------------------------------- refused before anything runs

SOFT = sparse(method="soft_filter")
DRAWN = sparse(method="centripetal")


def test_a_block_goes_and_the_file_is_built_without_it(tmp_path):
    stage = {"kind": "prune", "criterion": "l1", "per_group": {"layer1.0": 1}, "blocks": True}
    done = carry_out(tmp_path, stage, model=RESNET)
    assert isinstance(done.network("01-prune").layer1[0], nn.Identity)
    assert [block.name for block in done.plan("01-prune").dropped.blocks] == ["layer1.0"]
    assert "1 block gone as a whole: layer1.0" in done.stage("01-prune")["remarks"]
    gone = [one for one in done.results["widths"] if not one["after"]]
    assert [one["layer"] for one in gone] == ["layer1.0.conv1"]


MASKED = {**HALF, "mode": "mask"}
ZEROS = {"kind": "prune", "by": "zeros", "criterion": "l2"}
MERGE = {"kind": "prune", "by": "clusters"}
TUNE = {**TRAIN, "kind": "finetune"}
WRONG: list[tuple[list[dict[str, Any]], str]] = [
    ([{"kind": "convert"}], r"stages\.convert: no prune stage with 'mode: mask' comes before it"),
    ([HALF, {"kind": "convert"}], r"stages\.convert: no prune stage with 'mode: mask'"),
    ([MASKED, {**HALF, "name": "more"}], r"stages\.more: put a 'convert' stage before it"),
    ([MASKED, SOFT], r"stages\.sparse\.sparsity: the network is masked by prune; convert it first"),
    ([MASKED, TRAIN, {"kind": "scratch"}], r"stages\.scratch: put a 'convert' stage before it"),
    ([TRAIN, {**TUNE, "distill": {"teacher": "trian"}}], r"distill\.teacher: .* called "
                                                         r"'trian'; did you mean 'train'"),
    ([{**TRAIN, "distill": {}}], r"stages\.train\.distill\.teacher: no training stage before "
                                 r"the first cut could"),
    ([HALF, {**TUNE, "distill": {}}], r"distill\.teacher: no training stage before the first "
                                      r"cut could teach; name"),
    ([MERGE], r"stages\.prune\.by: 'clusters' cuts what the stage right before it has "
              r"prepared: .* method centripetal"),
    ([SOFT, MERGE], r"has method centripetal"),
    ([DRAWN, TUNE, MERGE], r"has method centripetal"),
    ([DRAWN, MERGE, {**MERGE, "name": "twice"}], r"stages\.twice\.by: 'clusters' cuts what the "
                                                 r"stage right before it"),
    ([ZEROS], r"stages\.prune\.by: 'zeros' cuts what the stage right before it has prepared: "
              r".* method soft_filter"),
    ([SOFT, {**ZEROS, "criterion": "bn_scale"}], r"proximal, or method soft_filter where "
                                                 r"another criterion"),
    ([sparse(strength=1e-4), {"kind": "prune", "by": "zeros"}], r"sparsity has penalty proximal"),
    ([sparse(penalty="proximal"), ZEROS], r"or method soft_filter"),
    ([SOFT, {**ZEROS, "criterion": "taylor"}], r"'by: zeros' looks at weights alone, but "
                                               r"taylor at data; use l1, l2"),
    ([SOFT, {**ZEROS, "per_group": {FIRST: 1}}], r"'by: zeros' finds out itself what goes"),
    ([{**HALF, "by": "greedy"}], r"'by: greedy' takes counts or shares by name, and no budget"),
    ([{"kind": "prune", "by": "greedy", "criterion": "taylor", "per_group": {FIRST: 1}}], r"'by: greedy' looks at we"),
    ([{**HALF, "criterion": "tailor"}], r"stages\.prune\.criterion: there is no criterion "
                                        r"'tailor'; did you mean 't"),
    ([{**HALF, "criterion": "bn_scale", "lead": "pacesetter"}], r"stages\.prune\.lead: "
                                                                r"bn_scale does not look at"),
    ([{**MASKED, "fold": "constant"}], r"stages\.prune\.fold: a mask cuts nothing"),
    ([{**MASKED, "blocks": True}], r"stages\.prune\.blocks: a mask silences channels"),
    ([SOFT, {**ZEROS, "blocks": True}], r"stages\.prune\.blocks: 'by: zeros' chooses channels"),
    ([DRAWN, {**MERGE, "mode": "mask"}], r"stages\.prune\.mode: merging cannot be done by a mask"),
    ([sparse(method="soft_filter", rate=1.0)], r"stages\.sparse\.sparsity\.rate must be a "
                                               r"number .* below 1"),
    ([sparse(method="soft_filter", rate={"a": 1.5})], r"sparsity\.rate\.a must be a share from "
                                                      r"0 to below 1, got 1\.5"),
    ([sparse(method="centripetal", target=0)], r"sparsity\.target must be a number above 0, "
                                               r"got 0\.0"),
    ([sparse(method="centripetal", target={"a": 0})], r"sparsity\.target\.a must be .* or a "
                                                      r"number of channels"),
    ([sparse(method="soft_filer")], r"sparsity\.method: there is no method 'soft_filer'; did "
                                    r"you mean 'soft_filter'"),
    ([sparse(method="soft_filter", strength=1)], r"sparsity\.strength: there is no such option"),
    ([sparse(method="soft_filter", criterion="l3")], r"sparsity\.criterion: expected one of "
                                                     r"l1, l2, geometric_median"),
    ([HALF, {"kind": "scratch"}, TUNE], r"stages\.scratch\.like: no training stage comes "
                                        r"before it"),
    ([TRAIN, {"kind": "scratch"}], r"stages\.scratch: nothing is cut before it; .* or use a "
                                   r"`baseline` stage"),
    ([TRAIN, HALF, {"kind": "scratch", "like": "tran"}], r"no training stage is called 'tran'; "
                                                         r"did you mean 'train'"),
]  # fmt: skip


@pytest.mark.parametrize(("stages", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_a_wrong_recipe_is_refused_before_anything_runs(stages, message):
    with pytest.raises(RecipeError, match=message):
        recipe(*stages)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"kind": "prune", "criterion": "l1", "per_group": {"featurs.0": 2}},
            r"'featurs\.0'.*features\.0",
        ),
        ({"kind": "prune", "criterion": "l1", "per_group": {FIRST: 9}}, r"features\.0.*(8|7)"),
        (sparse(method="centripetal", target={"featurs.0": 2}), r"featurs\.0.*features\.0"),
        (sparse(method="centripetal", target={FIRST: 20}), r"20"),
        (sparse(method="soft_filter", rate={"featurs.0": 0.5}), r"featurs\.0"),
        (sparse(method="soft_filter", rate=0.01), r"zeroes no filter"),
    ],
)
def test_what_the_network_cannot_give_is_told(tmp_path, stage, message):
    with pytest.raises(netslim.NetslimError, match=message):
        carry_out(tmp_path / "run", stage)


def test_weights_learnt_elsewhere_are_where_training_begins_and_nowhere_else(tmp_path, monkeypatch):
    import netslim.models

    asked = []
    ordinary = netslim.models.build

    def build(name, **kwargs):
        asked.append(kwargs.pop("weights", None))
        return (
            ordinary("zoo:vgg", **kwargs) if name == "torchvision:vgg" else ordinary(name, **kwargs)
        )

    monkeypatch.setattr(netslim.models, "build", build)
    tree = {
        "name": "weighted", "title": "weights", "data": {"name": "digits"},
        "model": {"name": "torchvision:vgg", "layers": [8, "M", 16], "in_channels": 3, "weights": "DEFAULT"},
        "trainer": {"limit_batches": 2, "tensorboard": False, "threads": 1},
        "stages": [
            {"kind": "train", "epochs": 1},
            {"kind": "prune", "budget": {"cut_channels": 0.25}},
            {"kind": "scratch"},
            {"kind": "measure", "latency": False},
        ],
    }  # fmt: skip
    run(parse_recipe(tree), tmp_path / "run")
    assert [weights for weights in asked if weights] == ["DEFAULT"]
    header = netslim.models.checkpoint.read(tmp_path / "run" / "01-train" / "model.safetensors")[0]
    assert "weights" not in header["constructor"]["kwargs"]


# ---------------------------------------------------------------- which criterion was taken

SLIMMING = {**TRAIN, "name": "sparse", "sparsity": {"method": "network_slimming"}}
QUICK = {"trainer": {"threads": 1, "device": "cpu", "tensorboard": False, "limit_batches": 1}}
WISH = {"budget": {"cut_channels": 0.5}}


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([SLIMMING, {"kind": "prune", **WISH}], "02-prune"),
        ([SLIMMING, {**TRAIN, "name": "more"}, {"kind": "prune", **WISH}], "03-prune"),
        ([{**SLIMMING, "gradual": {**WISH, "steps": 1, "end": 1.0}}], "01-sparse"),
        ([SLIMMING, {"kind": "prune", **WISH, "criterion": "bn_scale"}], None),
        ([SLIMMING, {"kind": "prune", **WISH, "criterion": "l1"}], None),
        ([TRAIN, {"kind": "prune", **WISH}], None),
        ([{**SLIMMING, "sparsity": {"strength": 0.0}}, {"kind": "prune", **WISH}], None),
    ],
)
def test_what_cuts_a_slimmed_network_unasked_is_told(stages, told, tmp_path):
    """Also how to have the scales decide, which it was trained for."""
    notes = carry_out(tmp_path, *stages, **QUICK).results["notes"]
    found = [note for note in notes if "trained by Network Slimming and cut by obs" in note]
    assert [note.partition(":")[0] for note in found] == [told] * bool(told)
    assert all("criterion: bn_scale" in note for note in found)


# ---------------------------------------------------------------- what was chosen


def test_what_was_chosen_is_in_the_results_and_the_reasons_in_the_plan(tmp_path):
    done = carry_out(tmp_path, {"kind": "prune", "budget": {"cut_channels": 0.5}})
    notes = done.results["notes"]
    assert "01-prune: chosen: criterion obs, allocation cost, compensation sequential" in notes
    assert any(note.startswith("01-prune: compensation kept: sequential; on ") for note in notes)
    left = "01-prune: compensation left out: batch-norm statistics taken anew; "
    assert sum(note.startswith(left) for note in notes) == 1
    assert not done.results["warnings"]
    mended = done.stage("01-prune")["mended"]
    assert [(one["step"], one["kept"]) for one in mended] == [
        ("sequential", True),
        ("linear", False),
        ("batch-norm statistics taken anew", False),  # of a network that was never trained
    ]
    why = done.plan("01-prune").why
    assert why is not None
    assert why.budget == {"cut_channels": 0.5}
    assert {name: len(values) for name, values in why.scores.items()} == {FIRST: 8, SECOND: 16}


def test_scales_that_are_set_although_they_were_trained_are_told(tmp_path):
    sparse = {**TRAIN, "sparsity": {"strength": 1e-3, "gamma_init": 0.5}}
    done = carry_out(tmp_path, sparse, {**sparse, "name": "again"}, **QUICK)
    (said,) = (text for text in done.results["warnings"] if "gamma_init" in text)
    assert said.startswith("02-again: gamma_init sets every scale to 0.5, and those that were trai")


def test_rows_and_stages_at_chance_are_said_to_be(tmp_path):
    gradual = {"steps": 1, "end": 1.0, "budget": {"cut_channels": 0.5}, "criterion": "l1"}
    done = carry_out(tmp_path, {**TRAIN, "optimizer": STILL, "gradual": gradual, "epochs": 2})
    (said,) = (note for note in done.results["notes"] if "may be chance" in note)
    assert said.startswith("before pruning, pruned while training: a")
    assert done.results["by_chance"] == ["before pruning", "pruned while training"]
    assert "points), and both may be chance." in summary(done.results)
    (own,) = (text for text in done.stage("01-train")["remarks"] if "may be chance" in text)
    assert own.startswith("validation: an accuracy of ")
    assert "may be chance: 10 classes, 144 pictures" in own


def test_that_nothing_was_learnt_is_said_once_while_a_run_goes_on(tmp_path):
    still, said = {**TRAIN, "optimizer": STILL}, io.StringIO()
    asked = recipe(still, HALF, {**still, "kind": "finetune"})
    run(asked, tmp_path, display=Display(Console(file=said, width=500)))
    assert said.getvalue().count("may be chance") == 1


def test_stages_that_remark_the_same_share_a_note():
    done = [
        {"stage": "01-a", "remarks": ["all", "learnt"], "learnt_nothing": "learnt"},
        {"stage": "02-b", "remarks": ["learnt", "all"], "learnt_nothing": "learnt"},
        {"stage": "03-measure"},
    ]
    assert list(_remarks(done)) == ["01-a, 02-b: all", "01-a, 02-b: learnt"]
    done[-1] = {"stage": "03-measure", "by_chance": ["pruned"]}
    assert list(_remarks(done)) == ["01-a, 02-b: all"]


def test_a_training_stage_that_cuts_says_by_what(tmp_path):
    gradual = {"steps": 1, "end": 1.0, "budget": {"cut_channels": 0.5}, "criterion": "l1"}
    done = carry_out(tmp_path, {**TRAIN, "epochs": 2, "gradual": gradual})
    told = "chosen: criterion l1, allocation global, compensation none"
    assert f"01-train: {told}" in done.results["notes"]
    why = done.plan("01-train").why
    assert why is not None
    assert (why.criterion, why.budget) == ("l1", {"cut_channels": 0.5})
