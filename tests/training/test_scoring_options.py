"""How scores are made, as recipes and commands say it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import netslim
from nets import Residual
from netslim import score, select, trace
from netslim.cli import main
from netslim.errors import RecipeError
from netslim.selection import options
from netslim.selection.criteria.registry import CRITERIA
from netslim.surgery.proof.silencing import randomise
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import Prune, Recipe
from netslim.training.stages.prune import carry_out

X = torch.zeros(1, 3, 8, 8)
WAYS: dict[str, Any] = {"reduction": "max", "over": "all", "normalize": "mean"}
RESNET = [
    "zoo:resnet",
    "--model.depth",
    "8",
    "--model.in_channels",
    "1",
    "--model.width",
    "0.5",
    "--input",
    "1",
    "8",
    "8",
]
OWN = """
import netslim

@netslim.criterion
def last_go_first(group, tensors):
    import torch
    return -torch.arange(group.size)
"""


def no_batches(count: int) -> list[tuple[Tensor, Tensor]]:
    raise AssertionError("nothing here looks at data")


def recipe(**prune: Any) -> Recipe:
    stages = [{"kind": "prune", "budget": {"cut_channels": 0.5}, **prune}, {"kind": "measure"}]
    data = {"name": "digits", "batch_size": 64}
    return parse_recipe(
        {
            "name": "small",
            "title": "A test",
            "data": data,
            "model": {"name": "zoo:resnet20"},
            "stages": stages,
        }
    )


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "criteria_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield "criteria_of_mine:last_go_first"
    sys.modules.pop("criteria_of_mine", None)
    CRITERIA.pop("last_go_first", None)


def test_a_prune_stage_scores_as_it_says():
    model = randomise(Residual(), seed=13).eval()
    graph = trace(model, X)
    stage = Prune(
        "cut", budget=options.Budget(cut_channels=0.4), scoring=options.Scoring("l1", **WAYS)
    )
    done = carry_out(stage, model, X, no_batches)
    expected = select(
        graph, score(graph, model, options.Scoring("l1", **WAYS)), netslim.Budget(cut_channels=0.4)
    )
    plain = select(graph, score(graph, model, "l1"), netslim.Budget(cut_channels=0.4))
    assert done.plan.groups == expected.groups != plain.groups
    stage = Prune(
        "cut",
        by="greedy",
        per_group={"stem.0": 3, "inner.0": 2},
        scoring=options.Scoring("l1", **WAYS),
    )
    done = carry_out(stage, model, X, no_batches)
    ordered = score(graph, model, options.Scoring("l1", **WAYS))["stem.0"].argsort()
    assert done.plan.groups["stem.0"].kept == tuple(sorted(ordered[3:].tolist()))


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"reduction": "middle"}, r"reduction: expected one of mean, sum, max, product, first"),
        ({"over": "none"}, r"over: expected one of producers, all"),
        (
            {"normalize": "average"},
            r"normalize: .*mean, sum, max, l2, standardization, gaussian, rank",
        ),
        (
            {"criterion": "bn_scale", "over": "all"},
            r"stages\.prune\.criterion: over='all' does nothing with bn_scale",
        ),
        ({"criterion": "random", "reduction": "max"}, r"reduction='max' does nothing with random"),
        (
            {"criterion": "activation", "lead": "pacesetter"},
            r"stages\.prune\.lead: activation does not look at",
        ),
        (
            {"criterion": "no_such_module_here:f"},
            r"stages\.prune\.criterion: there is no module 'no_such_module_here'",
        ),
        (
            {"criterion": "criteria_of_mine:last_go_frist"},
            r"has no function 'last_go_frist'; did you mean 'last_go_first",
        ),
        (
            {"by": "clusters", "budget": {}, "normalize": "max"},
            r"stages\.prune\.normalize: 'by: clusters' compares no",
        ),
    ],
)
@pytest.mark.usefixtures("own")
def test_recipes_refuse_what_means_nothing(prune, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**prune)


def test_recipes_take_the_options_and_criteria_of_ones_own(own):
    stage = recipe(criterion="lamp", **WAYS).stages[0]
    assert {key: getattr(stage.scoring, key) for key in WAYS} == WAYS
    assert recipe(criterion=own, reduction="mean").stages[0].scoring.criterion == own


def test_the_command_takes_them_too(own, tmp_path, capsys):
    def kept(out: str, *arguments: str) -> dict[str, tuple[int, ...]]:
        assert main(["prune", *RESNET, "--cut-channels", "0.25", "--out", out, *arguments]) == 0
        plan = netslim.PruningPlan.from_json(Path(out).with_suffix(".plan.json").read_text())
        return {name: group.kept for name, group in plan.groups.items()}

    mine = kept("own.safetensors", "--criterion", own, "--allocation", "uniform")
    assert all(stay == tuple(range(len(stay))) for stay in mine.values())
    plain, other = (
        kept(f"{name}.safetensors", "--criterion", "l2", *ways)
        for name, ways in (
            ("plain", []),
            ("other", ["--reduction", "max", "--over", "all", "--normalize", "gaussian"]),
        )
    )
    assert plain != other
    capsys.readouterr()
    assert (
        main(["prune", *RESNET, "--by", "zeros", "--over", "all", "--out", "zeros.safetensors"])
        == 1
    )
    assert "--over means nothing with --by zeros" in capsys.readouterr().err
    assert (
        main(
            [
                "prune",
                *RESNET,
                "--cut-channels",
                "0.5",
                "--criterion",
                "nobody:has",
                "--out",
                "x.safetensors",
            ]
        )
        == 1
    )
    assert "there is no module 'nobody'" in capsys.readouterr().err


def test_the_help_names_every_criterion(capsys):
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    words = capsys.readouterr().out.replace(",", " ").replace(";", " ").split()
    assert set(CRITERIA) <= set(words)


TWO = """
import torch

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 3)

    def forward(self, x):
        features = self.first(x)
        return self.last(features.relu()).mean((2, 3)), features
"""


def test_a_stage_and_a_command_let_an_output_shrink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = recipe(free_outputs=["1"]).stages[0]
    assert isinstance(parsed, Prune)
    assert list(parsed.free_outputs) == ["1"]
    (tmp_path / "two_outputs.py").write_text(TWO)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--trust", "--input", "3", "8", "8", "--cut-channels", "0.5", "--criterion", "l1"]
    out = ["--out", str(tmp_path / "small.safetensors")]
    assert main(["prune", "two_outputs:Two", *flags, "--free-output", "1", *out]) == 0
    assert "output[1]: 8 -> 4 along dimension 1" in capsys.readouterr().out
