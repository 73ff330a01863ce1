"""Runs that are killed, in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fresh
from netslim.surgery import prune
from netslim.training import run
from netslim.training.loop.epochs import EpochRecord
from netslim.training.recipe.schema import Recipe

Point = tuple[str, str, Any]


def kill(recipe: Recipe, out: Path, points: Iterable[Point]) -> None:
    """One process after another goes on with a run and dies; the last one is left alone.

    Args:
        points: ``("step", stage, (epoch, step))``, or ``("before", end, n)`` and
            ``("after", end, n)``: as the n-th file of which the path ends so is put in its place.
            There may be fewer files than n where any will do (the end is empty).
    """
    told = out.with_suffix(".txt")
    for point in points:
        end = fresh.ended(fresh.start(_dying, point, recipe, out, told=told))
        expected = [-signal.SIGKILL] if point[1] else [-signal.SIGKILL, 0]
        assert end in expected, f"{point}: {told.read_text()}"
    assert fresh.ended(fresh.start(run, recipe, out, told=told)) == 0, told.read_text()


def _dying(point: Point, recipe: Recipe, out: Path) -> None:
    kind, where, when = point
    if kind == "step":
        _die_in_step(where, when)
    else:
        _die_at_file(kind, where, when)
    run(recipe, out)


def _die_in_step(label: str, place: tuple[int, int]) -> None:
    ordinary = EpochRecord.on_train_batch_end

    def patched(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if self.folder.label == label and (trainer.current_epoch, index) == place:
            _die()
        ordinary(self, trainer, module, outputs, batch, index)

    EpochRecord.on_train_batch_end = patched  # type: ignore[method-assign]


def _die_at_file(kind: str, where: str, count: int) -> None:
    ordinary, found = os.replace, list[str]()

    def patched(source: Any, target: Any) -> None:
        meant = os.fspath(target).endswith(where)
        if meant:
            found.append(target)
        last = meant and len(found) == count
        if last and kind == "before":
            _die()
        ordinary(source, target)
        if last:
            _die()

    os.replace = patched  # type: ignore[assignment]


def kill_rank_in_cut(recipe: Recipe, folder: Path) -> None:
    """Carry out a recipe; rank 1 dies with the third tensor that is cut in place."""
    if os.environ["RANK"] == "1":
        put, done = prune._put, []

        def dying(*arguments: Any) -> None:
            done.append(arguments)
            if len(done) == 3:
                _die()
            put(*arguments)

        prune._put = dying
    run(recipe, folder)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
