"""What every reader hands to `load`: the splits a source has, and helpers that readers share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from netslim.data.splits import Split
from netslim.errors import DataError

_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, eq=False)
class Raw:
    """A source as it lies on disk: `train`, and `validation` and `test` where it has them."""

    splits: dict[str, Split]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()  # what was left out, and why


@dataclass(frozen=True)
class Wanted:
    """How a source of pictures is to be read.

    Attributes:
        channels: of the images, 1 or 3; None for as they are, grey only if all are.
        image_size: pixels of the side of the squares that all are brought to; None for as they are.
        resize_size: pixels of the shorter side before the middle square is cut out; None for
            `image_size`.
        memory_limit: bytes of decoded pixels up to which they are held in memory.
        unreadable: share of a split's pictures that may be left out because they cannot be read.
    """

    channels: int | None
    image_size: int | None
    resize_size: int | None
    memory_limit: int
    unreadable: float

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise DataError(f"image_size is {self.image_size}; give a positive number of pixels")
        if self.resize_size is not None and self.resize_size < (self.image_size or sys.maxsize):
            raise DataError(
                f"resize_size is {self.resize_size}; give at least image_size, here "
                f"{self.image_size}: the square of image_size is cut from the middle of it"
            )
        if not 0 <= self.unreadable < 1:
            raise DataError(
                f"unreadable is {self.unreadable}; give a share from 0 up to, not including, 1.0"
            )


def recoloured(found: int, wanted: Wanted) -> tuple[str, ...]:
    """A remark where pictures of `found` channels become others."""
    if wanted.channels in (None, found):
        return ()
    if wanted.channels == 1:
        return ("The pictures have colours; the network gets them in grey.",)
    return ("The pictures are grey; the network gets each as red, green and blue alike.",)


def roles(names: Iterable[str]) -> dict[str, str]:
    """Which of `names` is which split; with no test, validation serves as one."""
    present = set(names)
    found = {}
    for role, aliases in _ALIASES.items():
        here = [alias for alias in aliases if alias in present]
        if here:
            found[role] = here[0]
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return found


def standing_in(found: Mapping[str, str]) -> tuple[str, ...]:
    """A remark where validation images serve as the test images."""
    if found.get("test") not in _ALIASES["validation"]:
        return ()
    return (
        f"There is no test split: {found['test']!r} serves as one and is looked at once, at the "
        "end; what is chosen on the way is chosen by images set apart from the training images.",
    )
