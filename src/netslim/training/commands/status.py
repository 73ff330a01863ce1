"""`status`: how far a run is, from its folder alone, while another process works in it or none.

Nothing is written and nothing is waited for. What is told is as of the last finished epoch. A file
that is older than what vouches for it is believed without being read: a run that goes on reads it.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from netslim._support import read_text, try_lock
from netslim.errors import NetslimError, RecipeError
from netslim.training.recipe.checks import imitated
from netslim.training.recipe.files import read_settings
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import Baseline, Measure, Recipe, Scratch, Stage, Train
from netslim.training.stages.folder import RunFolder, StageFolder

State = Literal["finished", "damaged", "running", "begun", "waiting"]


@dataclass(frozen=True)
class StageStatus:
    """How far a stage is.

    Attributes:
        stage: its folder.
        kind: as in the recipe.
        state: `running` and `begun` differ in whether a process works in the run folder; `damaged`
            is one that was finished, and that a run would not go on from.
        epochs, done: how many a training stage has, and how many are finished; None of others.
        seconds_left: of a training stage that has finished an epoch, by the mean of its epochs.
        damage: what is the matter with a damaged stage, and what to do.
    """

    stage: str
    kind: str
    state: State
    epochs: int | None = None
    done: int | None = None
    seconds_left: float | None = None
    damage: str | None = None


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        folder: of the run.
        recipe: its name.
        state: `finished`, `running`, or `stopped`, which goes on with its command.
        process: what works in it, such as ``process 12 on host``; None where nothing does.
        stages: one after the other.
        seconds_left: of all training, where the epochs so far tell; None where they do not.
        damage: what is the matter with the results of a run that has stopped though every stage is
            finished, and what to do.
    """

    folder: str
    recipe: str
    state: Literal["finished", "running", "stopped"]
    process: str | None
    stages: tuple[StageStatus, ...]
    seconds_left: float | None
    damage: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def status(path: str | os.PathLike[str]) -> Status:
    """Look at a run folder, or at the `.run` folder of `netslim train`.

    Raises:
        RecipeError: it is none, or its config.yaml is damaged.
    """
    folder = RunFolder(Path(path))
    recipe, process = recipe_in(folder), _worker(folder.path / ".lock")
    stages: list[StageStatus] = []
    for index, stage in enumerate(recipe.stages):
        first = all(done.state == "finished" for done in stages)
        stages.append(_of_stage(recipe, stage, folder.stage(index, stage), first and bool(process)))
    damage = None
    if all(stage.state == "finished" for stage in stages):
        damage = _damage(folder, recipe)
    return Status(
        str(folder.path),
        recipe.name,
        _state(stages, process, damage),
        process,
        tuple(stages),
        _left(stages),
        damage if process is None else None,  # whoever works there makes them
    )


def runs_in(path: str | os.PathLike[str]) -> list[Path]:
    """The run folders in a folder that is none itself: those of several runs, or of the rows and
    seeds of `netslim bench paper`; empty where it is one, or holds none.
    """
    folder = Path(path)
    if (folder / "config.yaml").exists():
        return []
    found = [*folder.glob("*/config.yaml"), *folder.glob("*/*/config.yaml")]
    return sorted(config.parent for config in found)


def recipe_in(folder: RunFolder) -> Recipe:
    """What a run folder was begun with.

    Raises:
        RecipeError: it is none, or its config.yaml is damaged.
    """
    if not folder.config.is_file():
        raise RecipeError(_nothing(folder.path))
    tree = read_settings(folder.config, "give the --out of another run")
    try:
        return parse_recipe(tree, whole=False)
    except NetslimError as error:
        raise RecipeError(f"{folder.config} is no recipe of this version ({error})") from None


def _nothing(folder: Path) -> str:
    """Why there is no config.yaml in a folder."""
    if not folder.exists():
        return f"{folder} is not there; a run makes it some seconds after it was started"
    if (process := _worker(folder / ".lock")) is not None:
        return f"a run begins in {folder} ({process}), and has written nothing yet: ask again"
    return (
        f"{folder} is no run folder, for it has no config.yaml, and none is in it: give the --out "
        "of a run, or of several"
    )


def _worker(lock: Path) -> str | None:
    """Who holds the lock of a run folder."""
    try:
        handle = os.open(lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        if try_lock(handle):
            return None
        return os.read(handle, 200).decode(errors="replace").strip() or "another process"
    finally:
        os.close(handle)


def _of_stage(recipe: Recipe, stage: Stage, folder: StageFolder, working: bool) -> StageStatus:
    epochs = _epochs(recipe, stage)
    state: State = "waiting"
    damage = None
    if folder.marker.exists():
        state = "finished"
        try:
            folder.results(all_read=False)  # weights may be large, and whoever asks asks often
        except RecipeError as error:
            state, damage = "damaged", str(error)
    elif working:
        state = "running"
    elif folder.begun:
        state = "begun"
    if epochs is None:
        return StageStatus(folder.label, stage.kind, state, damage=damage)
    seconds = _seconds(folder.metrics)
    left = None
    if state in ("finished", "damaged"):
        left = 0.0
    elif seconds:
        left = round((epochs - len(seconds)) * sum(seconds) / len(seconds), 1)
    return StageStatus(folder.label, stage.kind, state, epochs, len(seconds), left, damage)


def _damage(folder: RunFolder, recipe: Recipe) -> str | None:
    """What is the matter with the results; `netslim train` leaves none, and measures nothing."""
    if not isinstance(recipe.stages[-1], Measure):
        return None
    try:
        folder.read_results()
    except RecipeError as error:
        return str(error)
    return None


def _epochs(recipe: Recipe, stage: Stage) -> int | None:
    if isinstance(stage, Baseline | Scratch):
        return imitated(recipe, stage)[1].epochs
    if isinstance(stage, Train):
        return stage.epochs
    return None


def _seconds(metrics: Path) -> list[float]:
    """Of each finished epoch."""
    try:
        lines = csv.DictReader(read_text(metrics).splitlines())
        found = [float(row["seconds"]) for row in lines]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []
    if not all(map(math.isfinite, found)):
        return []
    return found


def _state(
    stages: Sequence[StageStatus], process: str | None, damage: str | None
) -> Literal["finished", "running", "stopped"]:
    if damage is None and all(stage.state == "finished" for stage in stages):
        return "finished"
    if process is not None:
        return "running"
    return "stopped"


def _left(stages: Sequence[StageStatus]) -> float | None:
    """Stages that wait are taken to need as much an epoch as the last that was trained."""
    left, pace = 0.0, None
    for stage in stages:
        if stage.epochs is None:
            continue
        if stage.seconds_left is not None:
            left += stage.seconds_left
            pace = _pace(stage) or pace
        elif pace is None:
            return None
        else:
            left += stage.epochs * pace
    return round(left, 1)


def _pace(stage: StageStatus) -> float | None:
    """Seconds an epoch, of a stage that is at work."""
    if not stage.seconds_left or not stage.epochs or stage.done == stage.epochs:
        return None
    return stage.seconds_left / (stage.epochs - (stage.done or 0))


__all__ = ["StageStatus", "Status", "runs_in", "status"]
