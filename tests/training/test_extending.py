"""A method of sparse training that netslim does not know, added from outside: three registrations,
no edit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from netslim.cli import main
from netslim.errors import RecipeError
from netslim.selection.options import option
from netslim.training.loop.adapters import ADAPTERS, Method, adapter
from netslim.training.recipe.schema import METHODS, SparsityOptions, sparsity_method
from stage_runs import FIRST, TRAIN, carry_out, recipe


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
    """The method's options and adapter, registered while a test runs; the methods that were made."""
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
