"""The dotted option meant by a flag that a command does not have: `--width` by `--model.width`.

Only a mistake asks for this, as it takes the classes that declare the options, which torch is
imported for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from netslim.errors import NetslimError


def dotted(name: str, model: str | None, whole: bool) -> str:
    """The dotted options that end on this name, in words; empty where there is none.

    Args:
        name: of the option, as ``image_size``.
        model: the network whose options may be meant; None where the command does not say.
        whole: whether the command takes options of data and training, too.
    """
    found = []
    if model is not None and name in _of_model(model):
        found.append(f"model.{name}")
    if whole:
        found += _sections(name)
    return " or ".join(f"'--{key}'" for key in found)


def _sections(name: str) -> Iterator[str]:
    """Dotted keys of a recipe that end on this name, or are the name of a section's own choice."""
    from netslim.training.recipe import schema

    if name == "model":
        yield "model.name"
    kinds = {
        "data": schema.DataOptions,
        "trainer": schema.TrainerOptions,
        "optimizer": schema.OptimizerOptions,
        "schedule": schema.ScheduleOptions,
        "distill": schema.DistillOptions,
    }
    for section, kind in kinds.items():
        if section == name:
            yield f"{section}.name"
        if any(item.name == name for item in fields(kind)):
            yield f"{section}.{name}"


def _of_model(model: str) -> list[str]:
    from netslim.models.building import arguments_of

    try:
        return arguments_of(model)
    except NetslimError:  # which is told once the options are right
        return []
