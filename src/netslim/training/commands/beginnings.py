"""Rows of a table that begin alike are trained once up to where they part.

VGG-19 cut by 70 and by 60 per cent has one sparse training; the four rows of ResNet-32 have one
network to cut. Runs of one basis end with the same bits (`changes.basis`), so a stage that another
run has finished on the same basis is copied, and what is copied is held against what it stands on
as if the run had made it itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import takewhile
from pathlib import Path

from netslim.errors import RecipeError
from netslim.training.commands.status import recipe_in
from netslim.training.recipe.schema import Recipe
from netslim.training.stages.changes import kept
from netslim.training.stages.environment import versions
from netslim.training.stages.folder import RunFolder, StageFolder
from netslim.training.stages.runner import claimed

_OF_WORK = ("last.ckpt", "best.safetensors", "strength*")  # what a finished stage can do without


def begin(recipe: Recipe, folder: RunFolder, others: Path) -> tuple[str, ...]:
    """Copy the stages that other runs have finished on the same basis into a run folder.

    Args:
        recipe: of the run.
        folder: of the run; it is made this recipe's own.
        others: the folder in which the folders of all runs lie, ROW/SEED.

    Returns:
        The labels of the stages that were copied, now or in an earlier call.

    Raises:
        RecipeError: the folder belongs to another recipe, or is in use.
    """
    with ExitStack() as held:
        claimed(folder, recipe, held)
        own = list(_stages(recipe, folder))
        for label, path in _finished_elsewhere(recipe, folder, others):
            stage = next(stage for stage in own if stage.label == label)
            if stage.begun:
                continue
            shutil.rmtree(stage.path, ignore_errors=True)
            partial = folder.path / f".{label}"  # a kill must not leave half a stage that counts
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(path, partial, ignore=shutil.ignore_patterns(*_OF_WORK))
            (partial / _COPIED).touch()
            partial.rename(stage.path)
    return tuple(stage.label for stage in own if (stage.path / _COPIED).exists())


_COPIED = "copied"


def _stages(recipe: Recipe, folder: RunFolder) -> Iterator[StageFolder]:
    return (folder.stage(index, stage) for index, stage in enumerate(recipe.stages))


def _finished_elsewhere(recipe: Recipe, folder: RunFolder, others: Path) -> list[tuple[str, Path]]:
    """Label and folder of every stage of the run that shares most with this one."""
    found: list[list[tuple[str, Path]]] = [[]]
    for config in sorted(others.glob("*/*/config.yaml")):
        if config.parent == folder.path:
            continue
        with suppress(RecipeError):  # of another version, or damaged: nothing to begin with
            other = recipe_in(RunFolder(config.parent))
            stages = list(_stages(other, RunFolder(config.parent)))
            count = len(list(takewhile(_of_these_versions, stages)))
            same = kept(other, recipe, count)
            found.append([(stage.label, stage.path) for stage in stages[:same]])
    return max(found, key=len)


def _of_these_versions(stage: StageFolder) -> bool:
    """Whether a stage is finished, and with the versions of packages that there are now: with
    others it would be refused.
    """
    done = stage.results()
    return done is not None and (done.get("stands_on") or {}).get("versions") == versions()


__all__ = ["begin"]
