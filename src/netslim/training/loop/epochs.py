"""The callback that keeps a stage's record and lets a killed run go on.

A run that was killed ends with the same numbers, bit for bit, as one that was not:

* Nothing random carries over from one epoch to the next. At the start of each, torch is seeded from
  (seed, epoch), and so is the order of the images. No random state has to be saved, and an epoch
  that is run again is the same again.
* Everything else is in last.ckpt: weights, optimizer, schedule, the method's own state, and the
  rows of this record.
* Files are written whole, and last.ckpt first. What a kill behind it has kept from being written
  is made from it when the stage goes on, also where no epoch is left to run: metrics.csv from its
  rows, best.safetensors from its weights if they were the best, and the events of its last row.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

import netslim.ranks as ranks
from netslim._support import read_bytes, refusing, write_atomic
from netslim.data.loader import Loader
from netslim.errors import CheckpointError, TrainingError
from netslim.training.loop.adapters import LOGGED
from netslim.training.loop.agreement import same_weights
from netslim.training.loop.classifier import Classifier
from netslim.training.loop.divergence import FAR
from netslim.training.loop.gammas import histogram, levels, scales_of, share_near_zero, widest
from netslim.training.loop.logbook import Logbook
from netslim.training.loop.sharded import whole
from netslim.training.stages.folder import StageFolder

COLUMNS = (
    *("epoch", "step", "lr", "train_loss", "penalty", "train_accuracy"),
    *("val_loss", "val_accuracy", "near_zero", *LOGGED, "seconds"),
)

_NOT = " is not finite"
_USUAL = {"sgd": 0.1, "adamw": 1e-3}  # learning rates that nothing is known to be too high for
_FLOOR = 1e-4  # of the loss scale, which is halved after each step that overflows, from 65536

Row = dict[str, Any]
RECORD = "Journal"  # as in version 0.1, of which a run may be under way


def derive(seed: int, *path: object) -> int:
    """An independent seed for a place in the run, below 2^63."""
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def made_up(seed: int, shape: Sequence[int]) -> Tensor:
    """Two made-up images of a run with this seed: (2, *shape), the same in every process."""
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(derive(seed, "example")))


class EpochLoader:
    """A loader that asks for its epoch when it is iterated, and may stop early (a dry run).

    Args:
        loader: gives the batches.
        epoch: tells the epoch.
        limit: most batches.
        picks: give what the batches are made of, instead of them.
    """

    def __init__(
        self,
        loader: Loader,
        epoch: Callable[[], int],
        limit: int | None = None,
        picks: bool = False,
    ) -> None:
        self.loader, self.epoch, self.limit = loader, epoch, limit
        self.batches = loader.picks if picks else loader.__iter__

    def __len__(self) -> int:
        return min(len(self.loader), self.limit or len(self.loader))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.loader.set_epoch(self.epoch())
        for _, batch in zip(range(len(self)), self.batches(), strict=False):
            yield batch


@dataclass(frozen=True)
class Noted:
    """What an `EpochRecord` has left in a checkpoint."""

    and_more: ClassVar[bool] = True
    rows: list[Mapping[str, float | None]]
    histograms: list[list[int]]
    best: Mapping[str, Any]
    unreadable: list[str] = field(default_factory=list)
    stands_on: Mapping[str, Any] | None = None
    layer: str = ""
    levels: list[str] = field(default_factory=list)


class EpochRecord(pl.Callback):
    """Keeps one row an epoch, and writes all that a resumed run needs after each.

    The rows live in the checkpoint, and metrics.csv is written whole from them: so whenever the
    process is killed, the next one finds the same epochs in both and writes none twice.

    Args:
        folder: the stage's folder.
        seed: every epoch's random numbers follow from it and the epoch.
        watch: called with each new row.
        progress: called after each step with (steps done in this epoch, steps of an epoch).
        book: the loggers that are told of each row.
        unreadable: tells what the loaders of this process have left out so far.

    Attributes:
        unreadable: every picture that was left out, and why.
        layer: a batch norm, if there is one, and
        levels: its scales before the first epoch and after each, as `gammas.levels`.
    """

    def __init__(
        self,
        folder: StageFolder,
        seed: int,
        watch: Callable[[Row], None] | None = None,
        progress: Callable[[Classifier, int, int], None] | None = None,
        book: Logbook | None = None,
        unreadable: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.unreadable: list[str] = []
        self._left_out = unreadable
        self.folder, self.seed, self.book = folder, seed, book
        self.watch, self.progress = watch, progress
        self.rows: list[Row] = []
        self.histograms: list[list[int]] = []
        self.layer, self.levels = "", list[str]()
        self.best: dict[str, Any] = {}
        self.saved = 0  # epochs in the checkpoint
        self.started = time.perf_counter()

    @property
    def state_key(self) -> str:
        """Its name in checkpoints."""
        return RECORD

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "histograms": self.histograms,
            "best": self.best,
            "unreadable": self.unreadable,
            "stands_on": self.folder.stands_on(),
            "layer": self.layer,
            "levels": self.levels,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.histograms = state_dict["rows"], state_dict["histograms"]
        self.saved = len(self.rows)
        self.best = state_dict["best"]
        self.unreadable = state_dict.get("unreadable", [])  # version 0.1 kept none
        self.layer, self.levels = state_dict.get("layer", ""), state_dict.get("levels", [])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if self.book is not None:
            self.book.open(self.rows)
        if not self.rows:
            return
        if self.best.get("epoch") == self.rows[-1]["epoch"]:
            self._write_best(weights_in_bytes(pl_module))
        self._write_metrics()
        self._log(self.rows[-1], scales_of(pl_module.network))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if not self.histograms:
            self.layer = widest(pl_module.network)
            self._look(pl_module, scales_of(pl_module.network))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        # Ranks have images of their own, and dropout of their own for them.
        path = (trainer.current_epoch, *filter(None, ranks.place()[:1]))
        torch.manual_seed(derive(self.seed, *path))
        pl_module.train_tally.reset()
        pl_module.validation_tally.reset()
        self.started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, Classifier)
        if (batch_idx + 1) % _look_every(pl_module) == 0:
            self._refuse_non_finite(trainer, pl_module, batch_idx + 1)
        if self.progress is not None:
            self.progress(pl_module, batch_idx + 1, pl_module.steps_per_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self._refuse_non_finite(trainer, pl_module, pl_module.steps_per_epoch)
        same_weights(f"the weights after epoch {trainer.current_epoch + 1}", pl_module.network)
        scales = scales_of(pl_module.network)
        row = self._row(trainer, pl_module, share_near_zero(scales))
        self._refuse_non_finite_weights(trainer, pl_module)
        self.rows.append(row)
        self._look(pl_module, scales)
        best = self._best(pl_module, row)
        left_out = ranks.gathered("the pictures that are left out", list(self._left_out()))
        self.unreadable = sorted({*self.unreadable, *chain.from_iterable(left_out)})
        # Of weights that are lost nobody goes on; the checkpoint before them stays.
        lost = ranks.gathered("the losses at the end of an epoch", pl_module.watch.exploding)
        if not any(lost):
            trainer.save_checkpoint(self.folder.checkpoint)
            self.saved = len(self.rows)
        if best is not None:
            self._write_best(best)
        self._write_metrics()
        self._log(row, scales)
        if self.watch is not None:
            self.watch(row)

    def _look(self, module: Classifier, scales: Tensor) -> None:
        """Keep what is looked at of the scales."""
        self.histograms.append(histogram(scales))
        if self.layer:
            self.levels.append(levels(module.network, self.layer))

    def _row(self, trainer: pl.Trainer, module: Classifier, near_zero: float | None) -> Row:
        trained = module.train_tally.of_all_ranks("the figures of the epoch")
        checked = module.validation_tally.of_all_ranks("the figures of the validation")
        row: Row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {"lr": self._last_rate(trainer)}
        row |= {"train_loss": trained.loss + trained.penalty, "penalty": trained.penalty}
        row |= {"train_accuracy": trained.accuracy, "val_loss": None, "val_accuracy": None}
        if checked.images:
            row |= {"val_loss": checked.loss, "val_accuracy": checked.accuracy}
        for key in ("train_loss", "val_loss"):
            if row[key] is not None and not math.isfinite(row[key]):
                raise TrainingError(
                    self._message(trainer, module.steps_per_epoch, f"the {key} of the epoch{_NOT}")
                )
        row |= {"near_zero": near_zero} | dict.fromkeys(LOGGED)
        if module.method is not None:
            row |= module.method.log()
        return row | {"seconds": round(time.perf_counter() - self.started, 3)}

    def _last_rate(self, trainer: pl.Trainer) -> float:
        """The rate of the epoch's last step; the schedule has already moved on to the next."""
        module = trainer.lightning_module
        assert isinstance(module, Classifier)
        return module.rate(trainer.global_step - 1)

    def _best(self, module: Classifier, row: Row) -> bytes | None:
        """The weights if they are the best; noted before the checkpoint tells so."""
        if module.stage.keep != "best":
            return None
        if row["val_accuracy"] <= self.best.get("val_accuracy", -1.0):
            return None
        if module.method is not None and not module.method.has_final_size:
            return None
        weights = weights_in_bytes(module)
        self.best = {
            "epoch": row["epoch"],
            "val_accuracy": row["val_accuracy"],
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
        return weights

    def _write_best(self, weights: bytes) -> None:
        if ranks.first():
            write_atomic(self.folder.best, weights)

    def best_weights(self) -> bytes:
        """What best.safetensors holds.

        Raises:
            CheckpointError: it is not as it was written.
        """
        remedy = f"move {self.folder.path} away to run this stage from its beginning"
        with refusing(CheckpointError, f"{self.folder.best} cannot be read", remedy):
            weights = read_bytes(self.folder.best)
        known = self.best.get("sha256")  # none in a checkpoint of version 0.1
        if known is not None and hashlib.sha256(weights).hexdigest() != known:
            raise CheckpointError(
                f"{self.folder.best} is damaged (its digest is another); {remedy}"
            )
        return weights

    def _refuse_non_finite(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        def look() -> None:
            ago = module.non_finite()
            if ago is not None:
                raise TrainingError(self._message(trainer, step - ago + 1, "the loss" + _NOT))
            if (scale := _loss_scale(trainer)) is not None and scale < _FLOOR:
                what = "gradients overflow float16 at every step, however small the loss is made "
                raise TrainingError(self._message(trainer, step, f"{what}(its scale is {scale:g})"))
            watch = module.watch
            if watch.exploded:
                what = f"the loss of {watch.streak} steps in a row was more than {FAR:g} times that"
                what += f" of blind guessing ({watch.blind:.2f}), so training has diverged"
                raise TrainingError(self._message(trainer, step, what))

        ranks.everywhere("a look at the losses", look)

    def _refuse_non_finite_weights(self, trainer: pl.Trainer, module: Classifier) -> None:
        """A checkpoint is good to go on from: the last step of an epoch shows in no loss of it."""
        state = {
            key: value
            for key, value in whole(module.network.state_dict()).items()
            if _learnt(key, value)
        }
        if not state:
            return
        finite = torch.stack([value.isfinite().all() for value in state.values()])
        if not bool(finite.all()):
            name = [*state][int((~finite).nonzero()[0])]
            raise TrainingError(self._message(trainer, module.steps_per_epoch, name + _NOT))

    def _message(self, trainer: pl.Trainer, step: int, what: str) -> str:
        module = trainer.lightning_module
        assert isinstance(module, Classifier)
        name, optimizer = module.stage.name, module.stage.optimizer
        lower = min(optimizer.lr / 10, _USUAL[optimizer.name])
        if _loss_scale(trainer) is not None:
            what += ", in numbers that end at 65504: try --trainer.precision bf16 or float32, or"
        else:
            what += "; try"
        return (
            f"stage {self.folder.label}, epoch {trainer.current_epoch + 1}, step {step} of "
            f"{module.steps_per_epoch}: {what} a lower learning rate "
            f"(--stages.{name}.optimizer.lr {lower:g}), a warm-up "
            f"(--stages.{name}.schedule.warmup 1) or clipped gradients (--stages.{name}.clip "
            f"1), with a new --out; {self.kept()}"
        )

    def _write_metrics(self) -> None:
        if ranks.first():
            write_metrics(self.folder.metrics, self.rows)

    def kept(self) -> str:
        """What there is to go on from, for messages."""
        if not self.saved:
            return "no epoch was finished"
        return f"epochs 1 to {self.saved} are kept in {self.folder.checkpoint}"

    def _log(self, row: Row, scales: Tensor) -> None:
        if self.book is not None:
            self.book.write(row, scales)


def _look_every(module: Classifier) -> int:
    """After how many steps the losses are looked at: that makes a GPU wait, and several ranks for
    each other, and costs as much as a layer of a small network.
    """
    if module.device.type == "cpu" and ranks.count() == 1:
        return 10
    return 50


def _loss_scale(trainer: pl.Trainer) -> float | None:
    """What the loss is multiplied with in float16; None in other precisions."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return None
    return float(scaler.get_scale())


def _learnt(name: str, value: Tensor) -> bool:
    """Whether training moves it: buffers other than statistics may hold infinity."""
    return value.is_floating_point() and name.endswith(("weight", "bias", "_mean", "_var"))


def weights_in_bytes(module: Classifier) -> bytes:
    """The network's weights as a safetensors file."""
    from safetensors.torch import save

    state = whole(module.network.state_dict())
    return save({key: value.detach().cpu().contiguous().clone() for key, value in state.items()})


def write_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """metrics.csv, one row an epoch; an empty cell where a figure does not exist."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomic(path, text.getvalue())
