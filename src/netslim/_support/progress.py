"""What is told of work that takes long, while it goes on.

Who works calls a function with what is at work, how many parts are done and how many there are;
whether that is shown, and how, is for those who passed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Progress = Callable[[str, int, int], object]


def untold(what: str, done: int, total: int) -> None:
    """What is called where nobody asked to be told."""


def counted(batches: Iterable[Any], of: int, what: str, progress: Progress) -> Iterator[Any]:
    """The batches; each time that one was looked at, it is told how many of so many were."""
    for done, batch in enumerate(batches, 1):
        yield batch
        progress(what, min(done, of), of)


class Counted:
    """Batches that tell how many of them were looked at, each time that they are."""

    def __init__(self, batches: Sequence[Any], progress: Progress) -> None:
        self.batches, self.progress = batches, progress

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return counted(self.batches, len(self.batches), "scoring", self.progress)


__all__ = ["Counted", "Progress", "counted", "untold"]
