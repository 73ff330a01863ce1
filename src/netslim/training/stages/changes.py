"""Which changes of a recipe leave what is finished of its run as it is.

What a stage finds depends on the data, the model, the seed, the trainer and the stages before it;
of some also on what stands behind them: a baseline imitates a stage, and ``strength: auto`` aims at
the share that the next prune stage cuts. All of this together is the basis of a stage. Runs of one
basis end with the same bits, so where only what is no part of it has changed, the work may stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from netslim._support import listed
from netslim.training.recipe.checks import imitated, wanted_share
from netslim.training.recipe.schema import (
    Baseline,
    Recipe,
    Scratch,
    SlimmingOptions,
    Stage,
    Train,
    plain,
)
from netslim.training.stages.environment import settled

_TOLD = 5  # differences that a message names
ONLY_TOLD = ("name", "title", "notes", "published")  # of a run, and no part of any result
# A run goes on on as many processes as there are now, which share the same batches, and is watched
# wherever one likes.
_ANY = ("devices", "num_nodes", "strategy", "timeout", "tensorboard", "loggers", "graph")


def basis(recipe: Recipe, count: int) -> dict[str, Any]:
    """All that the results of the first `count` stages depend on, as plain data."""
    found = {key: value for key, value in recipe.to_dict().items() if key not in ONLY_TOLD}
    found["trainer"] = {key: found["trainer"][key] for key in found["trainer"] if key not in _ANY}
    found["trainer"] |= settled(recipe.trainer)
    pairs = zip(recipe.stages[:count], found["stages"], strict=False)
    return {**found, "stages": [{**item, **_beside(recipe, stage)} for stage, item in pairs]}


def _beside(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """What a stage takes from others, in the place of the option that points there."""
    if isinstance(stage, Baseline | Scratch):
        index, settings = imitated(recipe, stage)
        return {"like": {"index": index, **plain(settings)}}
    if not isinstance(stage, Train) or not isinstance(stage.sparsity, SlimmingOptions):
        return {}
    options = plain(stage.sparsity)
    if stage.sparsity.strength == "auto":
        options["target"] = wanted_share(recipe, stage)
    return {"sparsity": options}


def kept(old: Recipe, new: Recipe, count: int) -> int:
    """How many of the first `count` stages have the same basis in both."""
    same = 0
    while same < min(count, len(new.stages)) and basis(old, same + 1) == basis(new, same + 1):
        same += 1
    return same


def in_short(found: Sequence[str]) -> str:
    """The first few differences."""
    return listed(found, "; ", _TOLD)


def differences(old: Any, new: Any) -> Iterator[str]:
    """What a person is told of every value that differs."""
    for where, theirs, ours in differing(old, new):
        yield f"{where}: {theirs!r} there, {ours!r} here"


def differing(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of all that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            path = f"{where}.{key}".lstrip(".")
            yield from differing(old.get(key), new.get(key), path)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            name = pair[0].get("name", index) if isinstance(pair[0], dict) else index
            yield from differing(*pair, f"{where}.{name}")
    elif old != new:
        yield where, old, new
