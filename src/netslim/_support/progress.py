"""What is told of work that takes long, while it goes on.

Who works calls a function with what is at work, how many parts are done and how many there are;
whether that is shown, and how, is for those who passed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Progress = Callable[[str, int, int], object]


def untold(what: str, done: int, total: int) -> None:
    """What is called where nobody asked to be told."""


class Counted:
    """Batches that tell how many of them were looked at, each time that they are."""

    def __init__(self, batches: Sequence[Any], progress: Progress) -> None:
        self.batches, self.progress = batches, progress

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for done, batch in enumerate(self.batches, 1):
            yield batch
            self.progress("scoring", done, len(self.batches))


__all__ = ["Counted", "Progress", "untold"]
