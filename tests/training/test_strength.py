"""`strength: auto`: bisection on log10(strength), and short runs that stand for the whole training."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from torch import nn

import netslim
from netslim.cli import main
from netslim.errors import RecipeError
from netslim.methods import NetworkSlimming
from netslim.training.commands import step as single
from netslim.training.loop.adapters import separate_scales
from netslim.training.loop.auto_strength import (
    StrengthChoice,
    carried,
    choose,
    first_guess,
    short_epochs,
    shortened,
)
from netslim.training.loop.gammas import scales_of, share_near_zero
from netslim.training.recipe.checks import wanted_share
from netslim.training.recipe.reading import override, parse_recipe
from netslim.training.recipe.schema import OptimizerOptions, ScheduleOptions, SlimmingOptions, Train
from netslim.training.stages.folder import RunFolder
from netslim.training.stages.runner import Runner

VGG = ["zoo:vgg", "--model.layers", "[16, M, 32]", "--model.in_channels", "1"]
QUICK = [
    "--data",
    "digits",
    "--trainer.threads",
    "1",
    "--trainer.limit_batches",
    "2",
    "--trainer.tensorboard",
    "false",
]


def curve(strength: float) -> float:
    """A share that rises by 1 in a decade: 0 at 1e-3, 1 at 1e-2."""
    return min(1.0, max(0.0, math.log10(strength) + 3))


# ---------------------------------------------------------------- the choice


def test_bisection_by_hand():
    found = choose(curve, 1e-3, 0.7)
    # 0.0 at -3; 0.5 at -2.5; 1.0 at -2; then halves of [-2.5, -2]: 0.75, [-2.5, -2.25]: 0.625
    assert [trial.share for trial in found.trials] == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.625])
    assert [math.log10(trial.strength) for trial in found.trials] == pytest.approx(
        [-3, -2.5, -2, -2.25, -2.375]
    )
    assert found.bracketed
    assert math.log10(found.strength) == pytest.approx(-2.3)  # where the line crosses 0.7
    assert (found.share, found.slope) == (0.7, pytest.approx(1.0))


def test_from_above_and_near_is_near_enough():
    found = choose(curve, 1e-2, 0.48)
    assert [trial.share for trial in found.trials] == pytest.approx([1.0, 0.5])
    assert math.log10(found.strength) == pytest.approx(
        -2.52
    )  # from 0.5, by the slope between the two


def test_one_trial_takes_the_measured_slope():
    found = choose(lambda _: 0.69, 1e-2, 0.7)
    assert len(found.trials) == 1
    assert math.log10(found.strength) == pytest.approx(-2 + 0.01 / 0.9)


def test_a_target_out_of_reach_is_not_bracketed():
    found = choose(lambda _: 0.1, 1e-3, 0.7)
    assert not found.bracketed
    assert [math.log10(trial.strength) for trial in found.trials] == pytest.approx(
        [-3, -2.5, -2, -1.5, -1]
    )
    assert (found.strength, found.share) == (pytest.approx(0.1), 0.1)


def test_noise_does_not_send_it_astray():
    shares = iter([0.2, 0.9, 0.95, 0.1, 0.6])  # the third, between the first two, is above both
    found = choose(lambda _: next(shares), 1e-3, 0.7)
    assert found.bracketed
    assert -3 <= math.log10(found.strength) <= -2.5


@pytest.mark.parametrize(("longer", "power"), [(0.7, 0.0), (0.64, 0.2), (0.1, 0.5)])
def test_what_a_longer_run_leaves_is_carried_on(longer, power):
    """Short runs: 1e-2, slope 0.06 / (0.2 log10 2); twice as long, 10 times that is the whole: 20
    in all.
    """
    found = StrengthChoice(1e-2, 0.7, 0.06 / (0.2 * math.log10(2)), (), True)
    assert carried(found, longer, 0.7, 10) == pytest.approx(1e-2 * 20**power)


# ---------------------------------------------------------------- short runs


def stage(**options) -> Train:
    return Train(
        "sparse", 40, OptimizerOptions(lr=0.1), sparsity=SlimmingOptions(strength="auto"), **options
    )


@pytest.mark.parametrize(
    ("epochs", "steps", "short"), [(40, 23, 9), (160, 352, 16), (15, 71, 3), (2, 5, 2), (1, 500, 1)]
)
def test_a_tenth_of_the_epochs_and_two_hundred_steps(epochs, steps, short):
    assert short_epochs(epochs, steps) == short


def test_a_short_run_keeps_the_shape_and_the_way_of_the_scales():
    schedule = ScheduleOptions("multistep", milestones=[20, 0.75], warmup=2)
    short = shortened(stage(schedule=schedule, keep="last"), 10, 3e-3)
    assert (short.epochs, short.sparsity.strength, short.sparsity.pace) == (10, 3e-3, 4)
    assert (short.schedule.milestones, short.schedule.warmup) == ([5, 0.75], 0.5)


@pytest.mark.parametrize(
    ("penalty", "momentum", "expected"),
    [("l1", 0.9, 2.5e-3), ("proximal", 0.9, 2.5e-2), ("l1", 0, 2.5e-2)],
)
def test_the_first_guess_pushes_twice_the_way(penalty, momentum, expected):
    """40 epochs of 10 steps at 0.1: the scales may move by 40 * strength, times 10 with momentum
    0.9; 0.5 is to go.
    """
    options = SlimmingOptions(strength="auto", gamma_init=0.5, penalty=penalty)
    given = Train("a", 40, OptimizerOptions(lr=0.1, momentum=momentum), sparsity=options)
    assert first_guess(given, nn.BatchNorm1d(3), 10) == pytest.approx(expected)


def test_without_gamma_init_the_median_scale_has_to_go():
    norm = nn.BatchNorm1d(3)
    norm.weight.data = torch.tensor([0.1, -0.25, 3.0])
    given = Train(
        "a",
        40,
        OptimizerOptions(lr=0.1),
        sparsity=SlimmingOptions(strength="auto", gamma_init=None),
    )
    assert first_guess(given, norm, 10) == pytest.approx(2 * 0.25 / 400)


def test_pace_is_of_the_scales_alone():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD([{"params": [*network.parameters()], "weight_decay": 0.25}], lr=0.1)
    separate_scales(optimizer, network, 4)
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [
        (0.1, 0.25, 3), (0.4, 0.25, 1)
    ]  # fmt: skip
    assert optimizer.param_groups[1]["params"][0] is network[1].weight


# ---------------------------------------------------------------- in a recipe


def tree(**sparsity) -> dict:
    return {
        "name": "a",
        "title": "a",
        "data": {"name": "digits"},
        "model": {"name": "zoo:vgg", "layers": [16, "M", 32], "in_channels": 1},
        "trainer": {"threads": 1, "limit_batches": 2, "tensorboard": False},
        "stages": [
            {
                "kind": "train",
                "name": "sparse",
                "epochs": 2,
                "sparsity": {"strength": "auto", **sparsity},
            },
            {"kind": "prune", "budget": {"cut_channels": 0.3}},
            {"kind": "measure", "latency": False},
        ],
    }


def test_the_target_is_given_or_that_of_the_next_cut():
    for plain, share in ((tree(), 0.3), (tree(target=0.6), 0.6)):
        recipe = parse_recipe(plain)
        assert wanted_share(recipe, recipe.stages[0]) == share


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "stages.sparse.sparsity.target",
            "1.5",
            r"sparsity\.target must be a number above 0 and below 1, got 1\.5",
        ),
        (
            "stages.sparse.sparsity.strength",
            "often",
            r"strength: expected a number or one of auto, got 'often'",
        ),
        (
            "stages.sparse.sparsity.strength",
            "-1",
            r"strength must be a number at least 0 or 'auto', got -1\.0",
        ),
        ("stages.sparse.sparsity.pace", "0", r"pace must be a number above 0, got 0\.0"),
        (
            "stages.prune.budget",
            "{cut_macs: 0.5}",
            r"strength auto needs the share of scales .* target: 0\.7",
        ),
    ],
)
def test_mistakes_are_refused(key, value, said):
    plain = tree()
    override(plain, key, value)
    with pytest.raises(RecipeError, match=said):
        parse_recipe(plain)


def test_a_target_without_auto_is_refused():
    with pytest.raises(RecipeError, match="no share is aimed at where the strength is given"):
        parse_recipe(tree(strength=1e-4, target=0.5))


# ---------------------------------------------------------------- as a command


def go(*arguments: object) -> int:
    return main([str(item) for item in arguments])


def test_train_finds_a_strength_says_so_and_keeps_it(tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    auto = ["--sparsity.strength", "auto", "--sparsity.target", "0.5"]
    assert go("train", *VGG, *QUICK, *auto, "--epochs", 3, "--lr", 0.05, "--out", out) == 0
    folder = tmp_path / "a.run" / "01-train"
    kept, found = (
        json.loads((folder / name).read_text()) for name in ("strength.json", "stage.json")
    )
    assert found["strength"] == {
        key: value for key, value in kept.items() if key not in ("format", "digest")
    }
    runs = sorted((folder / "strength").glob("*/stage.json"))
    assert len(runs) == len(kept["trials"]) + ("longer" in kept)
    assert len(kept["histograms"]) == len(runs)
    assert {sum(one["counts"]) for one in kept["histograms"]} == {48}
    assert (
        next(json.loads(path.read_text())["near_zero"] for path in runs)
        == kept["trials"][0]["share"]
    )
    assert f"strength {kept['strength']:.3g} should leave" in capsys.readouterr().err


def test_what_is_on_disk_is_not_run_again(tmp_path, monkeypatch):
    """Killed in the real training, and begun again: the same choice, and no short run."""
    settings = {"trainer": {"threads": 1, "limit_batches": 2, "tensorboard": False}}
    options = {
        "epochs": 2,
        "optimizer": {"lr": 0.05},
        "sparsity": {"strength": "auto", "target": 0.5},
    }
    model = {"model.layers": "[16, M, 32]", "model.in_channels": "1"}
    recipe = single.step("train", "zoo:vgg", "digits", options, model, settings=settings)
    calls = []
    real = Runner._fit
    monkeypatch.setattr(Runner, "_fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        single.carry_out(recipe, tmp_path / "a.safetensors")
    kept = (tmp_path / "a.run" / "01-train" / "strength.json").read_bytes()

    def noted(self, stage, *rest, **more):
        calls.append(stage.sparsity.strength)
        return real(self, stage, *rest, **more)

    monkeypatch.setattr(Runner, "_fit", noted)
    monkeypatch.setattr(
        "netslim.training.loop.auto_strength.choose",
        lambda *_, **__: pytest.fail("short runs again"),
    )
    single.carry_out(recipe, tmp_path / "a.safetensors")
    assert (tmp_path / "a.run" / "01-train" / "strength.json").read_bytes() == kept
    assert calls == [json.loads(kept)["strength"]]


def test_results_tell_what_was_found(tmp_path):
    plain = tree()
    results = netslim.training.run(parse_recipe(plain), tmp_path / "run")
    assert any("should leave" in note and "it left" in note for note in results["notes"])
    assert RunFolder(tmp_path / "run").results.exists()


def adamw(penalty: str, **more) -> dict:
    plain = tree(penalty=penalty, target=0.5, pace=5, **more)
    plain["trainer"]["limit_batches"] = 6
    stage = plain["stages"][0]
    stage |= {"epochs": 10, "optimizer": {"name": "adamw", "lr": 0.01}}
    plain["stages"] = [stage, plain["stages"][-1]]
    return plain


def needed_by_half(strength: float, penalty: str) -> tuple[float, float]:
    """The share near zero, and the loss, of 8 scaled channels of which 4 are of use, after 300
    steps of AdamW.
    """
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8)
    optimizer = torch.optim.AdamW([norm.weight], lr=0.01, weight_decay=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        NetworkSlimming(norm, strength, gamma_init=0.5, penalty=penalty).attach(optimizer)
    for _ in range(300):
        images = torch.randn(64, 8)
        loss = (norm(images) - images)[:, :4].sum(1).pow(2).mean()
        loss = loss + 0.2 * (norm.weight[4:] * torch.randn(4)).sum()  # noise and nothing else
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return share_near_zero(scales_of(norm)), loss.item()


def test_the_strength_of_adamw_is_found_and_that_of_sgd_does_nothing_there():
    found = choose(lambda strength: needed_by_half(strength, "proximal")[0], 0.03, 0.5)
    assert found.bracketed
    share, loss = needed_by_half(found.strength, "proximal")
    assert share == 0.5
    assert loss < 0.5
    assert needed_by_half(1e-4, "l1")[0] == needed_by_half(1e-4, "proximal")[0] == 0


def test_a_recipe_finds_a_strength_for_adamw(tmp_path):
    """By a proximal step, whatever penalty would be divided away, and says so."""
    plain = adamw("l1")
    plain["trainer"]["limit_batches"], plain["stages"][0]["epochs"] = 2, 2
    results = netslim.training.run(parse_recipe(plain), tmp_path / "run")
    assert any("01-sparse: strength " in note for note in results["notes"])
    assert not any("AdamW divides" in warning for warning in results["warnings"])
    assert any("strength auto takes penalty proximal with AdamW" in n for n in results["notes"])


def test_what_adamw_divides_away_is_told(tmp_path):
    plain = adamw("l1", strength=1e-3)
    del plain["stages"][0]["sparsity"]["target"]
    results = netslim.training.run(parse_recipe(plain), tmp_path / "run")
    _, said = results["warnings"]  # the first is that it is a dry run
    assert said.startswith("01-sparse: AdamW divides gradients by their size, and the pull of the")
    assert results["scales"]["share_near_zero_after"] == 0


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stages.sparse.optimizer.lr", "0.1", r"lr: is 0\.1, must be given for adamw: of the size"),
        (
            "stages.sparse.sparsity",
            "{method: centripetal}",
            r"optimizer\.name: centripetal goes with sgd alone: adamw gives each",
        ),
    ],
)
def test_what_goes_with_sgd_alone_is_refused(key, value, said):
    plain = adamw("proximal")
    override(plain, key, value)
    with pytest.raises(RecipeError, match=said):
        parse_recipe(plain)
