"""The network of a finished run as a folder for the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import netslim
from netslim import models
from netslim.errors import RecipeError
from netslim.models import checkpoint
from netslim.models.file_constructors import Trust
from netslim.report import results_file
from netslim.report.card import model_card


def hub(
    run: Path,
    out: Path,
    *,
    license: str | None = None,
    title: str | None = None,
    trust: Trust = False,
) -> Path:
    """Write the network that a run ended with, with a model card of its results; returns `out`.

    Args:
        run: the folder of a finished run.
        out: a folder that does not exist yet, or is empty.
        license, title: as for `netslim.report.card.model_card`.
        trust: as for `netslim.models.build`.

    Raises:
        RecipeError: the run is not finished, or left no network.
        CheckpointError: as `netslim.save`.
    """
    name = results_file.read(run).get("network")
    file = run / str(name)
    if not isinstance(name, str) or not file.resolve().is_relative_to(run.resolve()):
        raise RecipeError(f"{run}: its results name no network that a stage has left")
    header, _ = checkpoint.read(file)
    network = models.build(file, trust=trust)
    return netslim.save(
        network,
        out,
        constructor=header["constructor"],
        metadata=header["metadata"],
        format="hub",
        card=model_card(run, license=license, title=title),
    )


__all__ = ["hub"]
