"""What can be asked of images that are decoded when they are needed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from netslim.data.augment import RandomResizedCrop


class Images(Protocol):
    """Images by number, uint8 (C, H, W) each."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Tensor: ...


@runtime_checkable
class WholePictures(Protocol):
    """Images whose pictures hold more than is shown of them: parts are cut out of the whole."""

    def part(self, position: int, crop: RandomResizedCrop, seed: int) -> Tensor:
        """The part of picture `position` that `seed` chooses, uint8 (C, H, W)."""


def part_of(images: Images, position: int, crop: RandomResizedCrop, seed: int) -> Tensor:
    """A random part of image `position`, uint8 (C, H, W); of its whole picture if there is one."""
    if isinstance(images, WholePictures):
        return images.part(position, crop, seed)
    image = images[position]
    part: Tensor = crop.cut(image, (image.shape[1], image.shape[2]), seed)
    return part
