"""A run as it is foreseen: what each stage does, leaves and takes. Nothing is trained or written.

Widths follow from the weights as they are (`foresight`). Times follow from a few plain steps of the
network in hand, on the recipe's own batches and device, in single precision: without a teacher and
without what a method adds, which is little beside a step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import netslim
from netslim._support import own_random_numbers, using_threads
from netslim.training.loop.fit import Bench
from netslim.training.loop.progress import Display
from netslim.training.recipe.checks import imitated
from netslim.training.recipe.orders import wasted
from netslim.training.recipe.schedule import lengthened
from netslim.training.recipe.schema import Baseline, Recipe, Scratch, Stage, Train
from netslim.training.stages.folder import RunFolder
from netslim.training.stages.foresight import foretold
from netslim.training.stages.headlines import headline
from netslim.training.stages.networks import Networks

_STEPS = 3  # that are timed, after a first one that prepares much


@dataclass(frozen=True)
class Foreseen:
    """One stage of a run that has not begun.

    Attributes:
        stage, kind, does: its name, its kind, and what it does in words.
        params: parameters of the network that it leaves; None where nobody can say.
        macs: likewise multiply-accumulates of one image.
        epochs: passes over the training images; 0 of a stage that trains nothing.
        seconds: what these are expected to take here; None of a stage that trains nothing, and
            where nobody can say.
    """

    stage: str
    kind: str
    does: str
    params: int | None
    macs: int | None
    epochs: int
    seconds: float | None


def rehearse(recipe: Recipe, display: Display | None = None) -> list[Foreseen]:
    """The network as it is, under the name `before`, and each stage of a run of this recipe.

    Args:
        recipe: from `load_recipe`.
        display: where notes and warnings are shown; standard error when not given.

    Raises:
        NetslimError: whatever the run would be refused for.
    """
    networks = Networks(recipe, RunFolder(Path("runs") / recipe.name), display or Display())
    for text in wasted(recipe):
        networks.display.say_once(text)
    with using_threads(recipe.trainer.threads), own_random_numbers():
        left = foretold(networks)
        return [_before(networks, left[0]), *_stages(networks, left)]


def _before(networks: Networks, network: nn.Module) -> Foreseen:
    return Foreseen("before", "", "the network as it is", *_size(networks, network), 0, None)


def _stages(networks: Networks, left: list[nn.Module]) -> Iterator[Foreseen]:
    stages = networks.recipe.stages
    known: list[nn.Module | None] = [*left, *[None] * (len(stages) + 1 - len(left))]
    for number, stage in enumerate(stages):
        here, after = known[number], known[number + 1]
        if isinstance(stage, Baseline):
            here = after = left[0]
        epochs, seconds = _epochs(networks, stage, left[0], here), None
        if epochs and here is not None:
            seconds = epochs * _epoch(networks.bench, here)
        size = _size(networks, after)
        yield Foreseen(stage.name, stage.kind, headline(stage), *size, epochs, seconds)


def _size(networks: Networks, network: nn.Module | None) -> tuple[int | None, int | None]:
    """Parameters, and multiply-accumulates of one image."""
    if network is None:
        return None, None
    found = netslim.cost(network, networks.example()[:1])
    return found.params, found.macs


def _epochs(networks: Networks, stage: Stage, uncut: nn.Module, here: nn.Module | None) -> int:
    if isinstance(stage, Train):
        return stage.epochs
    if not isinstance(stage, Baseline | Scratch):
        return 0
    _, settings = imitated(networks.recipe, stage)
    if isinstance(stage, Scratch) and stage.length == "B" and here is not None:
        example = networks.example()[:1]
        ratio = netslim.cost(uncut, example).macs / netslim.cost(here, example).macs
        settings = lengthened(settings, ratio)
    return settings.epochs


def _epoch(bench: Bench, network: nn.Module) -> float:
    """Seconds of an epoch: all training steps, and a look at the validation images."""
    network, batches = deepcopy(network).to(bench.device), len(bench.loader("train"))
    seconds = _step(bench, network.train(), learns=True) * _limited(bench, batches)
    if len(bench.data.validation):
        batches = len(bench.loader("validation"))
        seconds += _step(bench, network.eval(), learns=False) * _limited(bench, batches)
    return seconds


def _limited(bench: Bench, batches: int) -> int:
    return min(batches, bench.recipe.trainer.limit_batches or batches)


def _step(bench: Bench, network: nn.Module, learns: bool) -> float:
    """Seconds of one step of a few, that of making its batch included."""
    optimizer, times = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9), []
    begin = time.perf_counter()
    for images, labels in islice(bench.loader("train"), _STEPS + 1):
        with torch.set_grad_enabled(learns):
            loss = cross_entropy(network(images), labels)
        if learns:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        loss.item()  # waits for a GPU
        begin, before = time.perf_counter(), begin
        times.append(begin - before)
    return median(times[1:] or times)


__all__ = ["Foreseen", "rehearse"]
