"""What netslim does not know, added from outside by registration alone: a criterion, a way of
allocation, a method of sparse training. And where the options of a cut appear, once declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim import PruningPlan
from netslim.cli import main
from netslim.errors import RecipeError
from netslim.graph.groups import ChannelGroup
from netslim.selection.budget.allocation import ALLOCATIONS, allocation
from netslim.selection.budget.ladder import Goal, Ladder
from netslim.selection.criteria.registry import CRITERIA
from netslim.selection.options import (
    Budget,
    Compensation,
    Limits,
    Scoring,
    declared,
    option,
)
from netslim.training.loop.adapters import ADAPTERS, Method, adapter
from netslim.training.recipe.schema import (
    METHODS,
    GradualOptions,
    Prune,
    SparsityOptions,
    option_types,
    sparsity_method,
)
from stage_runs import FIRST, HALF, SECOND, TRAIN, carry_out, kept, recipe


class Fading:
    """Multiplies the first filters of every convolution before each step of an optimizer."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        self.network, self.factor, self.steps = network, factor, 0

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(self.fade)

    def fade(self, *_: Any) -> None:
        self.steps += 1
        with torch.no_grad():
            for layer in self.network.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.weight[0] *= self.factor


@pytest.fixture
def fading() -> Iterator[list[Fading]]:
    """The method's options and adapter, registered while a test runs; gives what was made of it."""
    made: list[Fading] = []

    @sparsity_method
    @dataclass(frozen=True)
    class FadingOptions(SparsityOptions):
        told: ClassVar[str] = "factor"
        method: Literal["fading"] = "fading"
        factor: float = option(
            0.5, "what the first filters are multiplied with at each step", above=0, below=1
        )

    @adapter(FadingOptions)
    def _fading(options: FadingOptions, network: nn.Module, example: Tensor, seed: int) -> Method:
        made.append(Fading(network, options.factor))
        return Method(made[-1])

    yield made
    METHODS.pop("fading")
    ADAPTERS.pop(FadingOptions)


def test_a_recipe_trains_by_a_method_from_outside(fading, tmp_path):
    stage = {**TRAIN, "sparsity": {"method": "fading", "factor": 0.01}}
    done = carry_out(
        tmp_path / "run", stage, trainer={"threads": 1, "limit_batches": 2, "tensorboard": False}
    )
    norms = done.network("01-train").get_submodule(FIRST).weight.flatten(1).norm(dim=1)
    assert fading[0].steps == 2
    assert norms[0] < 0.2 * norms[1:].min()


def test_its_options_are_checked_and_misspelt_names_answered(fading):
    with pytest.raises(
        RecipeError, match=r"train\.sparsity\.factor must be a number above 0 and below 1, got 1\.0"
    ):
        recipe({**TRAIN, "sparsity": {"method": "fading", "factor": 1}})
    with pytest.raises(
        RecipeError, match=r"sparsity\.facter: there is no such option; did you mean 'factor'\?"
    ):
        recipe({**TRAIN, "sparsity": {"method": "fading", "facter": 0.5}})
    with pytest.raises(RecipeError, match=r"no method 'fadin'; did you mean 'fading'\?"):
        recipe({**TRAIN, "sparsity": {"method": "fadin"}})
    with pytest.raises(
        RecipeError, match="fading works on the groups of a network that keeps its size"
    ):
        recipe(
            {
                **TRAIN,
                "epochs": 9,
                "sparsity": {"method": "fading"},
                "gradual": {"budget": {"cut_macs": 0.5}},
            }
        )


def test_the_command_takes_it(fading, tmp_path, capsys):
    words = [
        "train",
        "zoo:vgg",
        "--model.layers",
        "[8, M, 16]",
        "--model.in_channels",
        "1",
        "--data",
        "digits",
    ]
    words += ["--epochs", "1", "--trainer.limit_batches", "2", "--sparsity.method", "fading"]
    assert main([*words, "--sparsity.factor", "0.1", "--out", str(tmp_path / "a.safetensors")]) == 0
    assert fading[0].steps == 2
    assert main([*words, "--sparsity.factor", "2", "--out", str(tmp_path / "b.safetensors")]) == 1
    assert "sparsity.factor must be a number above 0 and below 1, got 2" in capsys.readouterr().err


# ---------------------------------------------------------------- criteria and allocations


@pytest.fixture
def mine() -> Iterator[None]:
    """The criterion `later` and the allocation `in_turn`, registered while a test runs."""

    @netslim.criterion
    def later(group: ChannelGroup, tensors: Mapping[Any, Tensor]) -> Tensor:
        return torch.arange(group.size, dtype=torch.float64)

    @allocation
    def in_turn(ladder: Ladder, goals: Sequence[Goal]) -> np.ndarray:
        """All that may go of the first group, then of the second."""
        order = np.arange(len(ladder.group))
        states = (ladder.removed(order[:count]) for count in range(len(order) + 1))
        return next(state for state in states if ladder.met(goals, state))

    yield
    CRITERIA.pop("later")
    ALLOCATIONS.pop("in_turn")


WANTED = {
    FIRST: (7,),
    SECOND: tuple(range(5, 16)),
}  # 12 of 24 channels go, of the first all but one


@pytest.mark.usefixtures("mine")
def test_a_recipe_takes_a_criterion_and_an_allocation_from_outside(tmp_path):
    cut = {"kind": "prune", "criterion": "later", "allocation": "in_turn"}
    done = carry_out(tmp_path / "run", {**cut, "budget": {"cut_channels": 0.5}})
    assert kept(done.plan("01-prune")) == WANTED
    with pytest.raises(RecipeError, match=r"no allocation 'in_tern'; did you mean 'in_turn'\?"):
        recipe({**cut, "allocation": "in_tern", "budget": {"cut_channels": 0.5}})


@pytest.mark.usefixtures("mine")
def test_the_command_takes_them_too_and_its_help_names_them(tmp_path, capsys):
    words = ["prune", "zoo:vgg", "--model.layers", "[8, M, 16]", "--model.in_channels", "1"]
    words += ["--input", "1", "8", "8", "--cut-channels", "0.5", "--criterion", "later"]
    out = tmp_path / "a.safetensors"
    assert main([*words, "--allocation", "in_turn", "--out", str(out)]) == 0
    plan = PruningPlan.from_json(out.with_suffix(".plan.json").read_text())
    assert kept(plan) == WANTED
    told = " ".join(help_of("prune", capsys).split())
    assert "random, later; by --data too" in told
    assert "in_turn: all that may go of the first group, then of the second" in told


# ---------------------------------------------------------------- options of a cut


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("prune", (Budget, Limits, Scoring, Compensation)),
        ("search", (Limits, Scoring, Compensation)),
        ("sensitivity", (Limits, Scoring)),
    ],
)
def test_what_is_declared_is_a_flag_with_its_help(command, kinds, capsys):
    told = " ".join(help_of(command, capsys).split())
    for kind in kinds:
        for name, item in declared(kind).items():
            assert f"--{name.replace('_', '-')} " in told
            assert item.metadata["help"] in told


def test_what_is_declared_is_an_option_of_the_stages_that_cut():
    for kind in (Limits, Scoring, Compensation):
        assert {*declared(kind)} <= {*option_types(Prune)}
    for kind in (Limits, Scoring):
        assert {*declared(kind)} <= {*option_types(GradualOptions)}
    stage = recipe({**HALF, "round_to": 4, "over": "all", "fold": "linear"}).stages[0]
    assert stage.limits == Limits(round_to=4)
    assert stage.scoring == Scoring("l1", over="all")
    assert stage.compensation == Compensation("linear")
    assert recipe(HALF).stages[0].compensation == "auto"
