"""What a recipe asks of its network, tried before anything is trained.

An impossible budget or a name that means no group does not depend on weights. So the stages ahead
are gone through on the network as it is, in seconds instead of the hours after which they would be
reached::

    for stage in the stages ahead:
        its names, groups, limits and budget are held against the network in hand
        cuts: the network in hand is cut to the budget, by whatever weights it has

After a cut the widths are a guess, for other weights would have other channels go. What fails on
them alone is told and tried later; only what fails on the uncut network, too, is refused. Nothing
is verified, measured or kept here, and random numbers are as if none of it had happened.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import netslim
from netslim._support import own_random_numbers
from netslim.errors import NetslimError, RecipeError
from netslim.graph.channel_graph import ChannelGraph
from netslim.models.export import onnx_bytes
from netslim.selection.budget.limits import caps, staying
from netslim.selection.criteria.registry import reads_data
from netslim.selection.defaults import chosen
from netslim.surgery.plan import PruningPlan
from netslim.training.loop.adapters import method_of
from netslim.training.recipe.checks import cuts, teacher
from netslim.training.recipe.schema import (
    Baseline,
    CentripetalOptions,
    GradualOptions,
    Prune,
    Quantize,
    Scratch,
    SlimmingOptions,
    SparsityOptions,
    Stage,
    Train,
)
from netslim.training.stages.networks import Networks

Amounts = TypeVar("Amounts", Prune, GradualOptions)


def foresee(networks: Networks, first: int) -> None:
    """Try the stages from number `first` (from 0) on, which is the first unfinished one.

    Raises:
        RecipeError: a stage behind a training stage asks for what this network cannot give,
            whatever its weights will be.
    """
    stages = networks.recipe.stages
    begin = next(
        (n for n, stage in enumerate(stages[first:], first) if _trains(stage)), len(stages)
    )
    if not any(map(_asks, stages[begin + 1 :])):
        return  # what is asked before any training is told at once as it is
    with _as_if_nothing_happened():
        uncut = _in_hand(networks, first).eval()
        _Walk(networks, uncut, uncut).over(stages[first:])


def foretold(networks: Networks) -> list[nn.Module]:
    """The network that a run begins with, then as each stage leaves it, by the weights as they are.

    They are fewer than that where a cut is foretold to fail that trained weights may allow, which
    is warned of.

    Raises:
        NetslimError: as of `foresee`, and whatever stages up to the first training would be
            refused for, in the words in which they would say it.
    """
    with _as_if_nothing_happened():
        uncut = _in_hand(networks, 0).eval()
        walk = _Walk(networks, uncut, uncut, all_here=True)
        walk.over(networks.recipe.stages)
    return [uncut, *walk.left]


def _in_hand(networks: Networks, first: int) -> nn.Module:
    """The network that stage `first` starts from; weights that are to be fetched are not needed."""
    if first > 0 or networks.from_file:
        return networks.network_before(first)
    network = networks.fresh()
    networks.check_outputs(network, networks.recipe.model.name)
    return network


def _trains(stage: Stage) -> bool:
    return isinstance(stage, Train | Baseline | Scratch)


def _asks(stage: Stage) -> bool:
    """Whether a stage asks something of its network."""
    if isinstance(stage, Quantize):
        return True
    return cuts(stage) or (isinstance(stage, Train) and bool(stage.sparsity or stage.distill))


@contextmanager
def _as_if_nothing_happened() -> Iterator[None]:
    """Random numbers go on afterwards as before."""
    plain, arrays = random.getstate(), np.random.get_state()
    try:
        with own_random_numbers():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)


@dataclass
class _Walk:
    """The way through the stages.

    Attributes:
        uncut: the network that it starts from.
        now: as far as it was cut.
        all_here: whether the first stages are refused here, too, for no run follows in which they
            say it themselves.
        trained: whether a training stage lies before.
        guessed: whether the widths of `now` depend on weights.
        left: what each stage that was tried has left.
    """

    networks: Networks
    uncut: nn.Module
    now: nn.Module
    all_here: bool = False
    trained: bool = False
    guessed: bool = False
    left: list[nn.Module] = field(default_factory=list)

    def over(self, stages: tuple[Stage, ...]) -> None:
        """Try one after the other."""
        for stage in stages:
            try:
                plan = self._tried(stage, self.now)
                if plan is not None:
                    self.now = netslim.prune(self.now, plan)
            except NetslimError as error:
                self._refused(stage, error)
                return
            self.guessed |= cuts(stage)
            self.trained |= _trains(stage)
            self.left.append(self.now)

    def _tried(self, stage: Stage, network: nn.Module) -> PruningPlan | None:
        """What `stage` would cut of `network`; None where it cuts nothing, or nobody can say."""
        if isinstance(stage, Prune):
            return _planned(stage, network, self._example, stage.by)
        if isinstance(stage, Quantize):
            onnx_bytes(network, self._example)
        if not isinstance(stage, Train):
            return None
        self._try_teacher(stage)
        if stage.sparsity is not None:
            bare = replace(stage, sparsity=_cheap(stage.sparsity))
            method_of(bare, network, self._example, seed=0)
        if stage.gradual is not None:
            return _planned(stage.gradual, network, self._example, "scores")
        return None

    def _try_teacher(self, stage: Train) -> None:
        if stage.distill is not None:
            name = teacher(self.networks.recipe, stage)
            if isinstance(name, str):
                self.networks.teacher(name, stage.distill)

    @property
    def _example(self) -> Tensor:
        return self.networks.example()[:1]

    def _refused(self, stage: Stage, error: NetslimError) -> None:
        """Tell of a stage that cannot do as it is asked; in a run the first tell it themselves."""
        if not (self.trained or self.all_here):
            return
        text = f"stages.{stage.name}: {error}"
        if self.guessed and self._possible(stage):
            self.networks.display.warn(
                f"{text} (foretold from the weights as they are now; after training other "
                "channels may go, and it is tried again)"
            )
            return
        if not self.trained:
            raise error
        raise RecipeError(text) from error

    def _possible(self, stage: Stage) -> bool:
        """Whether a stage may do on some widths what it cannot do on those that are guessed."""
        try:
            self._tried(_without_maxima(stage), self.uncut)
        except NetslimError:
            return False
        return True


def _cheap(options: SparsityOptions) -> SparsityOptions:
    """As much of a method's options as decides whether it can be had."""
    if isinstance(options, SlimmingOptions):
        return replace(options, strength=0.0, target=None)
    if isinstance(options, CentripetalOptions):
        return replace(options, clusters="even")  # k-means takes its time
    return options


def _without_maxima(stage: Stage) -> Stage:
    """With the relative part of its budget: what is to stay at most is less after every cut."""
    if isinstance(stage, Prune):
        return _relative(stage)
    if isinstance(stage, Train) and stage.gradual is not None:
        return replace(stage, gradual=_relative(stage.gradual))
    return stage


def _relative(amounts: Amounts) -> Amounts:
    maxima = [name for name in amounts.budget.given() if name.startswith("max_")]
    return replace(amounts, budget=replace(amounts.budget, **dict.fromkeys(maxima)))


def _planned(
    amounts: Prune | GradualOptions, network: nn.Module, example: Tensor, by: str
) -> PruningPlan | None:
    """What goes, by the weights as they are and in the same share everywhere; None where only
    trained weights tell.
    """
    free = getattr(amounts, "free_outputs", ())  # of a prune stage
    graph = netslim.trace(network, example, free_outputs=free, blocks=amounts.limits.blocks)
    if by == "zeros" and amounts.scoring.criterion == "bn_scale":
        netslim.score(graph, network, amounts.scoring)
    table, budget = None, amounts.budget
    timed = budget.timed()
    if timed and amounts.latency.table is not None:
        table = netslim.measure.LatencyTable.load(amounts.latency.table)
    elif timed:  # to measure a table takes minutes
        budget = replace(budget, **dict.fromkeys(timed))
    if by in ("zeros", "clusters") or not (budget.given() or amounts.per_group):
        staying(amounts.limits, graph)
        caps(amounts.limits, graph)
        return None
    return netslim.select(
        graph,
        _scores(amounts, network, graph),
        budget,
        per_group=amounts.per_group,
        allocation="uniform",
        limits=amounts.limits,
        latency=table,
    )


def _scores(
    amounts: Prune | GradualOptions, network: nn.Module, graph: ChannelGraph
) -> dict[str, Tensor]:
    """By the stage's criterion, or all alike where that looks at data."""
    choice = chosen(
        amounts.budget, amounts.per_group, data=True, criterion=amounts.scoring, graph=graph
    )
    if reads_data(choice.scoring.criterion):
        return {group.name: torch.ones(group.size) for group in graph.groups if not group.frozen}
    return netslim.score(graph, network, choice.scoring)


__all__ = ["foresee"]
