"""What every reader hands to `load`: the splits a source has, and helpers that readers share."""

from __future__ import annotations

from collections.abc import Iterable
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


def check_size(image_size: int | None) -> None:
    """`DataError` unless `image_size` is None or positive."""
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size}; give a positive number of pixels")
