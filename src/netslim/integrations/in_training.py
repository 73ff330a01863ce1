"""A sparsity method that is made when a training starts and lives as long: what the callbacks of
every trainer share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from netslim.errors import TrainingError
from netslim.graph.modules.unwrapping import inside

Make = Callable[[nn.Module], Any]


class InTraining:
    """Makes a method at each start of a training, and attaches it to the optimizers there.

    Args:
        make: takes the network, bare and on its device, and gives a method that hooks an optimizer.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._method: Any = None

    @property
    def method(self) -> Any:
        """What was made for the last training.

        Raises:
            TrainingError: none has begun in this process.
        """
        if self._method is None:
            raise TrainingError(
                "no sparse training has begun in this process: hand this to the trainer and train; "
                "where the trainer starts processes of its own, methods are made there"
            )
        return self._method

    def start(self, network: Any, optimizers: Iterable[Optimizer]) -> None:
        self._method = self._make(inside(network))
        for optimizer in optimizers:
            self._method.attach(optimizer)

    def end_epoch(self) -> None:
        if hasattr(self._method, "end_epoch"):
            self._method.end_epoch()

    def stop(self) -> None:
        self._method.detach()

    def __getstate__(self) -> dict[str, Any]:
        """For processes that a trainer starts, which make methods of their own."""
        return {**vars(self), "_method": None}


class SparseCallback:
    """The part that the callbacks for every trainer share.

    Each is made by an ``__init__`` of its own, so that a wrong call is told by its name.
    """

    _in_training: InTraining

    @property
    def method(self) -> Any:
        """What `make` made for the last training.

        Raises:
            TrainingError: none has begun in this process.
        """
        return self._in_training.method


__all__ = ["InTraining", "Make", "SparseCallback"]
