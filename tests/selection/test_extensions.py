"""A criterion, an allocation, a resource of a budget: each is added from outside, in one place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import netslim
import wished
from netslim import Budget, GradualPruning
from netslim.cli import main
from netslim.selection.budget import (
    ALLOCATIONS,
    RESOURCES,
    Asked,
    Goal,
    Ladder,
    Products,
    resource,
)
from netslim.selection.budget.allocation import allocation
from netslim.selection.criteria import CRITERIA
from netslim.selection.options import option

X = torch.zeros(1, 1, 8, 8)

MODULE = """
import netslim
import torch
from netslim.selection.budget.allocation import fewest


def by_number(group, tensors):
    return torch.arange(group.size).double()


def last_group_first(ladder, goals):
    return fewest(ladder, goals, (-ladder.group).argsort(kind="stable"))
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A module of a user's own, in the folder where the commands are typed."""
    (tmp_path / "outside_own.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept(plan: netslim.PruningPlan) -> dict[str, tuple[int, ...]]:
    return {name: cut.kept for name, cut in plan.groups.items()}


def plan_of(out) -> netslim.PruningPlan:
    return netslim.PruningPlan.from_json(out.with_suffix(".plan.json").read_text())


def test_a_criterion(outside):
    @netslim.criterion
    def from_the_back(group, tensors):
        return -torch.arange(group.size).double()

    try:
        small = netslim.slim(
            wished.sound(),
            X,
            criterion="from_the_back",
            budget=Budget(cut_channels=0.5),
            allocation="uniform",
        )
        assert torch.equal(small.first.weight, wished.sound().first.weight[:4])
    finally:
        del CRITERIA["from_the_back"]
    common = [
        "prune",
        "wished:sound",
        "--input",
        "1",
        "8",
        "8",
        "--cut-channels",
        "0.5",
        "--allocation",
        "uniform",
    ]
    out = outside / "small.safetensors"
    assert main([*common, "--criterion", "outside_own:by_number", "--out", str(out)]) == 0
    assert kept(plan_of(out))["first"] == (4, 5, 6, 7)


def test_a_way_of_allocation(outside):
    @allocation
    def first_group_first(ladder: Ladder, goals: list[Goal]) -> np.ndarray:
        removed = ladder.start.copy()
        for step in np.argsort(ladder.group, kind="stable"):
            if ladder.met(goals, removed):
                break
            removed[ladder.group[step]] += ladder.units[step]
        return removed

    try:
        graph = netslim.trace(wished.sound(), X)
        scores = netslim.score(graph, wished.sound(), "l1")
        plan = netslim.select(
            graph, scores, Budget(cut_channels=0.25), allocation="first_group_first"
        )
        assert {name: len(left) for name, left in kept(plan).items()} == {"first": 1}
        small = netslim.slim(
            wished.sound(),
            X,
            budget=Budget(cut_channels=0.25),
            criterion="l1",
            allocation="first_group_first",
        )
        assert small.first.out_channels == 1
    finally:
        del ALLOCATIONS["first_group_first"]
    named = netslim.select(
        graph, scores, Budget(cut_channels=0.25), allocation="outside_own:last_group_first"
    )
    assert {name: len(left) for name, left in kept(named).items()} == {"third": 5}
    out, cut = outside / "small.safetensors", ["--cut-channels", "0.25", "--criterion", "l1"]
    common = ["prune", "wished:sound", "--input", "1", "8", "8", *cut, "--out", str(out)]
    assert main([*common, "--allocation", "outside_own:last_group_first"]) == 0
    assert kept(plan_of(out)) == kept(named)


def test_a_resource_of_a_budget():
    @resource("weights that are read")
    def traffic(asked: Asked) -> Products:
        return Products(asked.widths, [cost.factors for cost in asked.graph.parameters.values()])

    @dataclass(frozen=True)
    class Mine(Budget):
        cut_traffic: float | None = option(
            None, "share of the weights that are read", least=0, below=1
        )
        max_traffic: int | None = option(None, "most weights that are read", above=0)

    try:
        network = wished.sound()
        graph = netslim.trace(network, X)
        scores = netslim.score(graph, network, "l2")
        for mine, known in (
            (Mine(cut_traffic=0.5), Budget(cut_params=0.5)),
            (Mine(max_traffic=900), Budget(max_params=900)),
        ):
            assert kept(netslim.select(graph, scores, mine)) == kept(
                netslim.select(graph, scores, known)
            )
            small, other = (
                netslim.slim(wished.sound(), X, budget=budget) for budget in (mine, known)
            )
            assert small.third.out_channels == other.third.out_channels < 12
            gradual = GradualPruning(wished.sound(), X, mine, steps=2)
            gradual.step()
            gradual.step()
            assert gradual.model.third.out_channels < 12
        with pytest.raises(netslim.errors.PlanError, match="weights that are read, and no fewer"):
            netslim.select(graph, scores, Mine(max_traffic=1))
        with pytest.raises(
            netslim.errors.ArgumentError,
            match="cut_traffic must be a number at least 0 and below 1",
        ):
            Mine(cut_traffic=2)
    finally:
        del RESOURCES["traffic"]
    with pytest.raises(
        netslim.errors.ArgumentError,
        match="cut_traffic limits no resource that is known; there is 'channels'",
    ):
        netslim.select(graph, scores, Mine(cut_traffic=0.5))
