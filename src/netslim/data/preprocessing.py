"""What happens to a picture before a network sees it: part of the network as much as its weights.

A network that was trained on normalised images answers wrongly to others, without a word. So what
was done to its images travels with it: in checkpoints, in exported files, in results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from netslim._support import brief
from netslim.errors import DataError

LARGEST = 2048  # pixels of a side, to which a file may have pictures brought
KEY = "preprocessing"  # under which metadata of networks hold it
INSIDE = "normalised_inside"  # the name of the metadata of files that normalise by themselves
CHANNELS = {"grey": 1, "rgb": 3}  # what the channels of an image are called, and how many


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to the input of a network.

    A picture is decoded to grey or RGB, resized so that its shorter side has `resize_size` pixels,
    or else just fits, cropped in the middle, scaled to 0..1, and ``(x - mean) / std`` of each
    channel is what the network gets.

    Attributes:
        mean, std: per channel, on the scale 0..1; as many as the network's inputs have channels.
        size: height and width of an image in pixels.
        resize: whether pictures of other sizes were brought to this one in training; where not, all
            had it.
        classes: names, in the order of the network's outputs.
        resize_size: pixels of the shorter side before the middle is cropped; None for those of the
            smaller of `size`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    resize: bool
    classes: tuple[str, ...]
    resize_size: int | None = None

    def __post_init__(self) -> None:
        check_normalisation(self.mean, self.std)

    @property
    def channels(self) -> int:
        """Of an image: 1 (grey) or 3 (RGB)."""
        return len(self.mean)

    def normalise(self, images: Tensor) -> Tensor:
        """Images uint8 (N, C, H, W) -> inputs float32 (N, C, H, W)."""
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (self.mean, self.std))
        return (images.float() / 255 - mean) / std

    def denormalise(self, inputs: Tensor) -> Tensor:
        """Inputs (N, C, H, W) -> images on the scale 0..1."""
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (self.mean, self.std))
        return inputs * std + mean

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it."""
        return asdict(self)

    def for_files(self, inside: bool = False) -> dict[str, str]:
        """What an exported file says; `inside`: that it normalises by itself."""
        told = {KEY: self.to_json(), INSIDE: inside}
        return {name: json.dumps(value) for name, value in told.items()}

    @classmethod
    def noted(cls, metadata: Mapping[str, Any], where: str) -> Preprocessing | None:
        """What the metadata of the checkpoint `where` says; None where it does not say.

        Raises:
            DataError: as `from_json`.
        """
        said = metadata.get(KEY)
        return None if said is None else cls.from_json(said, where)

    @classmethod
    def from_json(cls, value: Any, where: str) -> Preprocessing:
        """What `to_json` gave, from the file `where`.

        Raises:
            DataError: a key is missing or unknown, or a value is of another kind or out of range.
        """
        names = [field.name for field in fields(cls)]
        # Version 0.1 wrote no resize_size.
        if not isinstance(value, Mapping) or set(value) | {"resize_size"} != set(names):
            raise DataError(f"{where}: its preprocessing must hold {', '.join(names)}")
        size, resize, classes = value["size"], value["resize"], value["classes"]
        shorter = value.get("resize_size")
        checks = {
            "size": _are(size, int) and len(size) == 2 and 1 <= min(size) <= max(size) <= LARGEST,
            "resize": isinstance(resize, bool),
            "classes": _are(classes, str),
            "resize_size": shorter is None or (_are([shorter], int) and 1 <= shorter <= LARGEST),
        }
        for name, right in checks.items():
            if not right:
                raise DataError(f"{where}: its preprocessing says {name}: {brief(value.get(name))}")
        try:
            check_normalisation(value["mean"], value["std"])
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        mean, std = (tuple(map(float, value[name])) for name in ("mean", "std"))
        return cls(mean, std, (size[0], size[1]), resize, tuple(classes), shorter)


def check_normalisation(mean: Any, std: Any, channels: Iterable[int] = (1, 3)) -> None:
    """`DataError` unless there is one finite mean and one positive deviation for each channel."""
    allowed = sorted(channels)
    if not _are(mean, Real) or not _are(std, Real) or not len(mean) == len(std):
        raise DataError(
            f"normalisation: mean is {brief(mean)} and std is {brief(std)}; give one number "
            "each for every channel, such as mean [0.5, 0.5, 0.5] and std [0.25, 0.25, 0.25]"
        )
    if len(mean) not in allowed:
        raise DataError(
            f"normalisation: {len(mean)} means and deviations for images of "
            f"{' or '.join(map(str, allowed))} channels; give the mean and std of the same images"
        )
    if not all(map(isfinite, [*mean, *std])) or min(std) <= 0:
        raise DataError(
            f"normalisation: mean is {tuple(mean)} and std is {tuple(std)}; every channel needs a "
            "finite mean and a positive deviation"
        )


def _are(values: Any, kind: type) -> bool:
    if not isinstance(values, list | tuple) or not values:
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


__all__ = ["CHANNELS", "INSIDE", "KEY", "Preprocessing", "check_normalisation"]
