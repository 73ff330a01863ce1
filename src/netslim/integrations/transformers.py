"""Sparse training within the Trainer of Hugging Face, by a callback."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from netslim._support import checks_calls
from netslim.integrations.in_training import InTraining, Make, SparseCallback


@checks_calls
class SparseTraining(SparseCallback, TrainerCallback):  # type: ignore[misc]
    """Has a ``Trainer`` train sparsely: ``Trainer(..., callbacks=[SparseTraining(make)])``.

    Args:
        make: takes the network that is trained and gives a method of netslim's that hooks an
            optimizer, as ``partial(netslim.NetworkSlimming, strength=0.1, penalty="proximal")``,
            which goes with the AdamW that their Trainer takes. Its ``end_epoch()`` is called, if it
            has one.
    """

    def __init__(self, make: Make) -> None:
        self._in_training = InTraining(make)

    def on_train_begin(self, args: Any, state: Any, control: Any, **there: Any) -> None:
        self._in_training.start(there["model"], [there["optimizer"]])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **there: Any) -> None:
        self._in_training.end_epoch()

    def on_train_end(self, args: Any, state: Any, control: Any, **there: Any) -> None:
        self._in_training.stop()


__all__ = ["SparseTraining"]
