"""A time by which training has stopped by itself, between two epochs.

::

    epoch 7 took 30 s, 25 s are left: stop here       what is finished is in last.ckpt
    the first epoch is not through, no time is left   stop within it; it begins anew next time
"""

from __future__ import annotations

import math
import time

_SLOWER = 1.1  # how much longer the next epoch may take than the one before


class TimeUpError(Exception):
    """There is no time left for another epoch; the finished ones are kept."""


class Deadline:
    """When to stop.

    Args:
        seconds: how long it may go on, from now.
        reserve: seconds of those that training leaves to what comes behind it.
    """

    def __init__(self, seconds: float = math.inf, reserve: float = 0.0) -> None:
        self._end = time.monotonic() + seconds - reserve
        self._epoch: float | None = None  # seconds of the last one, whatever the stage
        self._since = 0.0

    def left(self) -> float:
        """Seconds until training has to stop."""
        return self._end - time.monotonic()

    def begin(self) -> None:
        """A training stage begins.

        Raises:
            TimeUpError: an epoch would take longer than there is time.
        """
        self._since = time.monotonic()
        self._check(_SLOWER * (self._epoch or 0.0))

    def step(self) -> None:
        """A step is finished.

        Raises:
            TimeUpError: so is the time.
        """
        self._check(0.0)

    def epoch(self, more: int) -> None:
        """An epoch is finished, and `more` follow in its stage.

        Raises:
            TimeUpError: the next one would take longer than there is time.
        """
        now = time.monotonic()
        self._epoch, self._since = now - self._since, now
        if more:
            self._check(_SLOWER * self._epoch)

    def _check(self, needed: float) -> None:
        if self.left() <= needed:
            raise TimeUpError


__all__ = ["Deadline", "TimeUpError"]
