"""The options of a cut: what is misspelt or out of range fails at once, with the nearest name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import netslim
from netslim import Budget, GradualPruning, Limits, SoftFilterPruning
from netslim.errors import ArgumentError
from netslim.selection import Compensation, Scoring
from netslim.selection.defaults import Choice, chosen

X = torch.zeros(1, 3, 8, 8)


class Untouched(nn.Module):
    """Must not be run."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model was run before its options were looked at")


PUBLIC: dict[str, Callable[..., Any]] = {
    "slim": lambda **options: netslim.slim(Untouched(), X, **options),
    "GradualPruning": lambda **options: GradualPruning(Untouched(), X, **options),
    "sensitivity": lambda **options: netslim.sensitivity(Untouched(), X, float, **options),
    "select": lambda **options: netslim.select(None, {}, **options),
    "score": lambda **options: netslim.score(None, Untouched(), **options),
    "greedy": lambda **options: netslim.selection.greedy(None, Untouched(), {"a": 1}, **options),
    "SoftFilterPruning.plan": lambda **options: SoftFilterPruning.plan(None, **options),
}


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (
            "slim",
            {"min_chanels": 3},
            "slim takes no 'min_chanels'; did you mean 'min_channels' of "
            "limits=netslim.Limits(min_channels=...)?",
        ),
        ("slim", {"budgt": 1}, "slim takes no 'budgt'; did you mean 'budget'?"),
        (
            "slim",
            {"fold": "linear"},
            "did you mean 'fold' of compensation=netslim.selection.Compensation(fold=...)?",
        ),
        ("slim", {"recalibrated": True}, "did you mean 'recalibrate' of compensation="),
        (
            "slim",
            {"cut_macs": 0.5},
            "did you mean 'cut_macs' of budget=netslim.Budget(cut_macs=...)?",
        ),
        (
            "select",
            {"round_to": 8},
            "select takes no 'round_to'; did you mean 'round_to' of limits=",
        ),
        (
            "score",
            {"lead": "mean"},
            "did you mean 'lead' of criterion=netslim.selection.Scoring(lead=...)?",
        ),
        (
            "score",
            {"seed": 3},
            "goes into criterion=netslim.selection.Scoring(..., arguments={...})",
        ),
        (
            "greedy",
            {"protekt": "a"},
            "greedy takes no 'protekt'; did you mean 'protect' of limits=",
        ),
        (
            "GradualPruning",
            {"max_cut": 0.5},
            "GradualPruning takes no 'max_cut'; did you mean 'max_cut' of limits=",
        ),
        ("sensitivity", {"shortcuts": "avoid"}, "did you mean 'shortcuts' of limits="),
        ("SoftFilterPruning.plan", {"max_cut": 0.5}, "did you mean 'max_cut' of limits="),
        (
            "slim",
            {"limits": {"round_to": 8}},
            "limits must be a netslim.Limits, such as Limits(min_channels=4), got",
        ),
        (
            "select",
            {"budget": 0.5},
            "budget must be a netslim.Budget, such as Budget(cut_channels=0.5), got 0.5",
        ),
        ("slim", {"criterion": 3}, "criterion must be a netslim.selection.Scoring or a name"),
        (
            "slim",
            {"compensation": "linear"},
            "compensation must be a netslim.selection.Compensation, None or 'auto'",
        ),
        ("slim", {"allocation": "globl"}, "did you mean 'global'?"),
        ("GradualPruning", {"allocation": "globl"}, "did you mean 'global'?"),
        (
            "slim",
            {"criterion": Scoring("l1", arguments={"sed": 1})},
            "the criterion l1 cannot take these arguments",
        ),
    ],
)
def test_what_is_misspelt_fails_before_anything_runs(function, options, message):
    with pytest.raises(ArgumentError) as caught:
        PUBLIC[function](**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Limits(round_too=8),
            "Limits takes no 'round_too'; did you mean 'round_to'",
        ),
        (lambda: Budget(cut_mac=0.5), "Budget takes no 'cut_mac'; did you mean 'cut_macs'"),
        (lambda: Scoring("l1", led="mean"), "Scoring takes no 'led'; did you mean 'lead'"),
        (lambda: Compensation("linear", recalibrated=3), "did you mean 'recalibrate'"),
        (
            lambda: Compensation(recalibrate=-1),
            "recalibrate must be a whole number at least 0, got -1",
        ),
        (
            lambda: Compensation("affine"),
            "fold must be 'constant' or 'linear' or 'sequential' or 'nearest', got 'affine'",
        ),
        (lambda: Limits(allow_inexact="yes"), "allow_inexact must be True or False, got 'yes'"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert message in str(caught.value)


def test_the_decorator_leaves_names_and_docstrings():
    for function in (
        netslim.slim,
        netslim.select,
        netslim.score,
        netslim.selection.greedy,
        netslim.sensitivity,
    ):
        assert "Args:" in (function.__doc__ or "")
        assert function.__module__.startswith("netslim.")


# ---------------------------------------------------------------- what is taken by default

NOTHING = Compensation()
MENDED = Compensation("nearest", recalibrate=True)
MACS, CHANNELS = Budget(cut_macs=0.5), Budget(cut_channels=0.5)


@pytest.mark.parametrize(
    ("budget", "per_group", "data", "expected"),
    [
        (MACS, None, False, ("l2", "uniform", NOTHING)),
        (MACS, None, True, ("obs", "cost", MENDED)),
        (CHANNELS, None, False, ("bn_scale", "global", NOTHING)),
        (CHANNELS, None, True, ("obs", "cost", MENDED)),
        (Budget(cut_channels=0.5, cut_macs=0.5), None, False, ("l2", "uniform", NOTHING)),
        (None, {"a": 1}, False, ("l1", "global", NOTHING)),
        (None, {"a": 1}, True, ("l1", "global", NOTHING)),
        (MACS, {"a": 1}, False, ("l2", "uniform", NOTHING)),
    ],
)
def test_the_table_of_defaults(budget, per_group, data, expected):
    criterion, allocation, compensation = expected
    found = chosen(budget, per_group, data=data)
    assert found == Choice(Scoring(criterion), allocation, compensation)
    given = chosen(budget, per_group, data=data, criterion="taylor")
    assert given == Choice(Scoring("taylor"), "global", NOTHING)
    ways = chosen(budget, per_group, data=data, criterion=Scoring("auto", normalize="mean"))
    assert ways == Choice(Scoring(criterion, normalize="mean"), allocation, compensation)
    said = chosen(budget, per_group, data=data, allocation="isomorphic", compensation=None)
    assert said == Choice(Scoring(criterion), "isomorphic", NOTHING)


def test_who_says_nothing_and_gives_no_data_is_told_what_would_be_better():
    better = "; better, with training data (--data, batches=): criterion obs, allocation cost, "
    for budget in (MACS, CHANNELS):
        assert chosen(budget, None, data=False).advice.startswith(better)
        assert not chosen(budget, None, data=True).advice
        assert not chosen(budget, None, data=False, criterion="l1").advice
    assert not chosen(None, {"a": 1}, data=False).advice


def test_without_any_scale_a_share_of_the_channels_is_cut_as_everything_else():
    bare = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    graph = netslim.trace(bare, X)
    assert chosen(CHANNELS, None, data=False, graph=graph) == Choice(
        Scoring("l2"), "uniform", NOTHING
    )
    assert netslim.slim(bare, X, budget=CHANNELS)[0].out_channels == 4
    gradual = GradualPruning(bare, X, CHANNELS, steps=1)
    gradual.step()
    assert bare[0].out_channels == 4


def test_a_whole_number_may_be_written_as_a_power_of_ten():
    assert Budget(max_macs=1e6) == Budget(max_macs=1_000_000)
    with pytest.raises(ArgumentError, match=r"max_macs must be a whole number above 0, got 1000.5"):
        Budget(max_macs=1000.5)


@pytest.mark.parametrize("function", ["slim", "GradualPruning", "sensitivity", "select", "greedy"])
def test_no_limits_are_not_none(function):
    with pytest.raises(
        ArgumentError, match=r"limits must be a netslim\.Limits, such as .*got None"
    ):
        PUBLIC[function](limits=None)


def test_a_loss_of_ones_own_goes_along_with_the_criterion():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 6)).eval()
    seen = []

    def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(output.shape))
        return (output.flatten(1) - targets).square().sum()

    batches = [(torch.randn(2, 3, 8, 8), torch.zeros(2, 4))]
    scoring, half = Scoring("taylor", loss=loss), Budget(cut_channels=0.5)
    graph = netslim.trace(model, X)
    alone = netslim.score(graph, model, "taylor", batches=batches, loss=loss)
    assert torch.equal(netslim.score(graph, model, scoring, batches=batches)["0"], alone["0"])
    netslim.slim(model, X, budget=half, criterion=scoring, batches=batches)
    GradualPruning(model, X, half, steps=1, criterion=scoring, batches=batches)
    assert seen == [(2, 4, 1, 1)] * 4
