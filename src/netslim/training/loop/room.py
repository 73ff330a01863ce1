"""Whether the disk has room for what a training stage writes: looked at before it is trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from torch import Tensor, nn

from netslim.errors import TrainingError
from netslim.training.recipe.schema import Train
from netslim.training.stages.folder import StageFolder

_STATES = {"sgd": 1, "adamw": 2}  # numbers that an optimizer keeps of each weight
_BESIDES = 4 << 20  # metrics, events, headers


def check_room(network: nn.Module, stage: Train, folder: StageFolder) -> None:
    """See to it that the stage's files fit on the disk.

    Raises:
        TrainingError: they do not; says how much is needed, and where.
    """
    needed, free = needed_bytes(network, stage), shutil.disk_usage(folder.path).free
    for path in (folder.checkpoint, folder.best):  # what they hold is there to be replaced
        if path.exists():
            needed -= path.stat().st_size
    if needed > free:
        raise TrainingError(
            f"{folder.path}: the checkpoints of this stage need {_told(needed)}, and the disk has "
            f"{_told(free)} left: make room, or choose another --out"
        )


def needed_bytes(network: nn.Module, stage: Train) -> int:
    """Of all files of the stage, while each is replaced by a new one, which lie side by side."""
    weights = _bytes(network.state_dict().values())
    checkpoint = weights + _STATES[stage.optimizer.name] * _bytes(network.parameters())
    largest = checkpoint
    whole = checkpoint + weights  # and the network
    if stage.keep == "best":
        whole += weights
    return whole + largest + _BESIDES


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _told(count: int) -> str:
    return f"{max(0, count) / 1e6:,.1f} MB"


__all__ = ["check_room", "needed_bytes"]
