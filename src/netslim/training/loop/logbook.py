"""Where the figures of a stage can be watched, beside metrics.csv: TensorBoard, and what else a
recipe names, through Lightning's loggers.

A logger is told of an epoch after the checkpoint is written. So a kill in between may lose one, and
a stage that goes on tells its last epoch again; TensorBoard is told to forget the first telling.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

import netslim.ranks as ranks
from netslim.errors import RecipeError
from netslim.training.recipe.schema import TrainerOptions

_TOLD_ANYWAY = ("epoch", "step")


@dataclass(frozen=True)
class Place:
    """What is logged, and where.

    Attributes:
        folder: of the run; files of loggers lie in it, in a folder of the logger's name.
        label: of the stage.
        epochs: how many are finished.
    """

    folder: Path
    label: str
    epochs: int


def _tensorboard(place: Place) -> Logger:
    again: dict[str, Any] = {}
    if place.epochs:
        again["purge_step"] = place.epochs
    return TensorBoardLogger(place.folder / "tensorboard", name="", version=place.label, **again)


def _wandb(place: Place) -> Logger:
    return WandbLogger(
        name=f"{place.folder.name}/{place.label}",
        save_dir=place.folder,
        project="netslim",
        id=_identity(place),
        resume="allow",
    )


def _mlflow(place: Place) -> Logger:
    where = os.environ.get("MLFLOW_TRACKING_URI")
    if where is None:
        where = f"sqlite:///{(place.folder / 'mlflow.db').resolve()}"
    return MLFlowLogger(place.folder.name, run_name=place.label, tracking_uri=where)


def _trackio(place: Place) -> Logger:
    trackio = import_module("trackio")

    class TrackioLogger(Logger):
        """Lightning has none of its own."""

        name, version = place.folder.name, place.label

        def __init__(self) -> None:
            super().__init__()
            self.run = trackio.init(project=self.name, name=self.version, resume="allow")

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            self.run.log(dict(metrics), step=step)

        def log_hyperparams(self, params: Any, *arguments: Any, **more: Any) -> None:
            pass

        def finalize(self, status: str) -> None:
            self.run.finish()

    return TrackioLogger()


def _identity(place: Place) -> str:
    """The same for a stage that goes on, in the same folder, and no other one's."""
    text = f"{place.folder.resolve()}/{place.label}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_LOGGERS: dict[str, Callable[[Place], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    found = {key: value for key, value in row.items() if key not in _TOLD_ANYWAY}
    return {key: float(value) for key, value in found.items() if value is not None}


class Logbook:
    """The loggers of a stage; on the first rank alone, as its files are.

    Args:
        options: which are wanted.
        folder: of the run.
        label: of the stage.
    """

    def __init__(self, options: TrainerOptions, folder: Path, label: str) -> None:
        self.folder, self.label = folder, label
        self.names: list[str] = []
        if ranks.first():
            self.names = ["tensorboard"] * options.tensorboard
            self.names += dict.fromkeys(options.loggers)
        self.loggers: list[Logger] = []

    def open(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin, or go on after the epochs in `rows`, of which the last is told again.

        Raises:
            RecipeError: a logger's package is not installed, or it cannot begin.
        """
        place = Place(self.folder, self.label, len(rows))
        self.loggers = [self._opened(name, place) for name in self.names]
        for logger in self.loggers:
            if isinstance(logger, MLFlowLogger):  # which begins a new run
                for row in rows[:-1]:
                    logger.log_metrics(_figures(row), step=row["epoch"])

    def _opened(self, name: str, place: Place) -> Logger:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what the folder of a resumed stage holds
                return _LOGGERS[name](place)
        except ImportError as error:
            raise RecipeError(
                f"trainer.loggers: {name} needs a package that is not installed ({error}); "
                f"install it (pip install {name}), or leave it out"
            ) from None

    def write(self, row: Mapping[str, Any], scales: Tensor) -> None:
        """Tell the figures of an epoch."""
        for logger in self.loggers:
            logger.log_metrics(_figures(row), step=row["epoch"])
            if len(scales) and isinstance(logger, TensorBoardLogger):
                logger.experiment.add_histogram("scales", scales, row["epoch"])
            logger.save()

    def close(self) -> None:
        """Have everything written."""
        for logger in self.loggers:
            logger.finalize("success")
            if isinstance(logger, WandbLogger):  # or the next stage would go on in this one's run
                logger.experiment.finish()
        self.loggers = []
