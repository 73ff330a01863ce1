"""Pictures that cannot be read: left out, counted and named, and refused where they are many."""

from __future__ import annotations

from collections.abc import Sequence

from netslim._support import listed
from netslim.errors import DataError

_NAMED = 5


class PictureError(DataError):
    """One picture cannot be read; the message says which, and why."""


def picture_error(where: str, reason: object) -> PictureError:
    """The error about the picture at `where`."""
    return PictureError(f"{where}: the picture cannot be decoded ({reason})")


def named(what: Sequence[object], separator: str = ", ") -> str:
    """The first few, and how many more there are."""
    return listed(list(map(str, what)), separator, _NAMED)


def told(problems: Sequence[object]) -> str:
    """How many pictures are left out, and which come first."""
    return f"pictures that cannot be read, left out: {len(problems):,} ({named(problems, '; ')})"


def refuse_many(problems: Sequence[PictureError], count: int, allowed: float) -> None:
    """Stop where more than the share `allowed` of `count` pictures cannot be read.

    Raises:
        DataError: names the first of them.
    """
    if len(problems) > allowed * count:
        raise DataError(
            f"{named(problems, '; ')}; that is {len(problems):,} of {count:,} pictures: replace or "
            "remove them, or raise data.unreadable, the share that may be left out"
        )
