"""Sparse training within Lightning, by a callback."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from netslim._support import checks_calls
from netslim.integrations.in_training import InTraining, Make, SparseCallback


@checks_calls
class SparseTraining(SparseCallback, pl.Callback):
    """Has a Lightning trainer train sparsely: ``Trainer(callbacks=[SparseTraining(make)])``.

    Args:
        make: takes the Lightning module that is trained and gives a method of netslim's that hooks
            an optimizer, as ``lambda module: netslim.NetworkSlimming(module.network, 1e-3)``. It is
            attached to every optimizer, and its ``end_epoch()`` called, if it has one.
    """

    def __init__(self, make: Make) -> None:
        self._in_training = InTraining(make)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._in_training.start(pl_module, trainer.optimizers)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._in_training.end_epoch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._in_training.stop()


__all__ = ["SparseTraining"]
