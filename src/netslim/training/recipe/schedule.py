"""When what happens in a stage, as pure functions of step and epoch, so that a resumed run cannot
lose its place.
"""

from __future__ import annotations

import math
from dataclasses import replace

from netslim.training.recipe.schema import GradualOptions, ScheduleOptions, Train


def factor(schedule: ScheduleOptions, step: int, epochs: int, steps_per_epoch: int) -> float:
    """What the base learning rate is multiplied with at a step (from 0).

    `multistep` milestones below 1 are shares of all epochs: with 0.5 and 0.75 of 160 epochs the
    rate falls when epochs 80 and 120 (counted from 0) begin, also where the share is not a whole
    epoch; a third may be written 0.333333.
    """
    if schedule.name == "onecycle":
        return _onecycle(schedule, step / max(1, epochs * steps_per_epoch))
    done = step / steps_per_epoch
    if done < schedule.warmup:
        return (step + 1) / (schedule.warmup * steps_per_epoch + 1)
    if schedule.name == "multistep":
        reached = [m * epochs if m < 1 else m for m in schedule.milestones]
        return schedule.factor ** sum(done >= milestone - 1e-4 for milestone in reached)
    if schedule.name == "cosine":
        return _cosine((done - schedule.warmup) / (epochs - schedule.warmup), 1.0, 0.0)
    return 1.0


def lengthened(stage: Train, ratio: float) -> Train:
    """The stage with `ratio` times its epochs, rounded, at least 1; milestones given in epochs move
    along.
    """
    epochs = max(1, round(stage.epochs * ratio))
    moved = [m * epochs / stage.epochs if m >= 1 else m for m in stage.schedule.milestones]
    return replace(stage, epochs=epochs, schedule=replace(stage.schedule, milestones=moved))


def cut_epochs(options: GradualOptions, epochs: int) -> tuple[int, ...]:
    """The epochs, counted from 1, at whose ends the steps of a gradual cut fall; all different
    where there is room.

    Step i of k falls after `begin + (end - begin) * i / k` of all epochs, rounded down to a whole
    one: 1, 3, 5, 7 and 9 of 15 epochs for 5 steps from 0 to 0.6.
    """
    spread = (
        options.begin + (options.end - options.begin) * i / options.steps
        for i in range(1, options.steps + 1)
    )
    return tuple(math.floor(share * epochs + 1e-9) for share in spread)


def _onecycle(schedule: ScheduleOptions, done: float) -> float:
    """Rise from `start` to 1, fall to 0, both along half a cosine (Smith and Topin 2018)."""
    if done < schedule.rise:
        return _cosine(done / schedule.rise, schedule.start, 1.0)
    return _cosine((done - schedule.rise) / (1 - schedule.rise), 1.0, 0.0)


def _cosine(share: float, first: float, last: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, share))) / 2
