"""When a loss has exploded though it is finite.

A network that answers blindly, each class with the same probability, has a cross entropy of
ln(classes). Losses above that are usual at the beginning and after a bad batch, and pass. Ten times
as much, step after step without one that is better, is no noise: answers are then wrong with
certainty, for instance because weights are so large that rounding them moves more than a step does.

How long is long? A whole epoch, as its checkpoint must not take the place of the last good one; but
at least 50 steps, since epochs may be short and the first steps wild, and no more than 500, since
epochs may be long and hours dear. What is shorter than 50 steps in all ends with a warning.
"""

from __future__ import annotations

import math

from torch import Tensor

from netslim.training.recipe.schema import DistillOptions

FAR = 10.0  # times the loss of blind answers
_LEAST, _MOST = 50, 500  # steps
_SOME = 10  # steps after which a checkpoint is no good one to go on from


def blind(classes: int, distill: DistillOptions | None = None) -> float:
    """The loss of a network that gives each class the same probability; with a teacher at most."""
    loss = math.log(classes)
    if distill is None:
        return loss
    return loss * (1 - distill.weight + distill.weight * distill.temperature**2)


class Watch:
    """Counts the steps that the loss has been far off.

    Args:
        blind: the loss of blind answers.
        steps: of an epoch.

    Attributes:
        streak: for how many steps, up to the last one, each was far off.
    """

    def __init__(self, blind: float, steps: int) -> None:
        self.blind, self.streak = blind, 0
        self._patience = max(_LEAST, min(_MOST, steps))
        self._some = min(_SOME, (steps + 1) // 2)

    def see(self, losses: Tensor) -> None:
        """Take in the losses (N,) of further steps."""
        near = (losses <= FAR * self.blind).nonzero().flatten().tolist()
        if near:
            self.streak = 0
        self.streak += len(losses) - 1 - max(near, default=-1)

    @property
    def exploded(self) -> bool:
        """Whether it is time to stop."""
        return self.streak >= self._patience

    @property
    def exploding(self) -> bool:
        """Whether the weights as they are now are none to go on from."""
        return self.streak >= self._some
