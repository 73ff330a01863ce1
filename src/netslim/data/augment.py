"""Random crops and mirror images: of a whole batch at once, or of pictures as they are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from netslim._support import checks_calls
from netslim.errors import DataError


def _drawn(count: int, columns: int, most: int, flip: bool, generator: torch.Generator) -> Tensor:
    """For each image so many numbers below `most`, and whether it is mirrored."""
    if count < 0:
        raise DataError(f"augmentation: count is {count}; give the number of images, 0 or more")
    numbers = torch.randint(0, most, (count, columns), generator=generator)
    mirrored = torch.randint(0, 1 + bool(flip), (count, 1), generator=generator)
    return torch.cat([numbers, mirrored], dim=1)


@checks_calls
@dataclass(frozen=True)
class Augment:
    """Zero-pad by `pad` pixels, crop to the old size at a random place, mirror half of the images.

    The usual CIFAR augmentation (He et al. 2016, section 4.2). Padding is black, that is zero
    before normalisation, as in `torchvision.transforms.RandomCrop`.

    Raises:
        DataError: `pad` is negative.

    Example:
        >>> augment = netslim.data.Augment(pad=1)
        >>> choices = augment.draw(len(images), torch.Generator().manual_seed(0))
        >>> augment(images, choices).shape == images.shape
        True
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise DataError(
                f"augmentation: pad is {self.pad}; give 0 (no crop) or a positive number of pixels"
            )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random choices, int64 (count, 3): row offset, column offset, mirrored (0 or 1).

        Raises:
            DataError: a negative count.
        """
        return _drawn(count, 2, 2 * self.pad + 1, self.flip, generator)

    def __call__(self, images: Tensor, choices: Tensor) -> Tensor:
        """Crop and mirror a batch: one gather of whole pixels, no loop over images.

        Args:
            images: (B, C, H, W) of any dtype, on any device; fastest in channels_last memory.
            choices: int64 (B, 3) from `draw`, on the same device; offset `pad` leaves an image
                where it is.

        Returns:
            A new (B, C, H, W) tensor in channels_last memory.
        """
        batch, channels, height, width = images.shape
        padded = pad(images.permute(0, 2, 3, 1), (0, 0, self.pad, self.pad, self.pad, self.pad))
        row, column, mirrored = torch.split(choices, 1, dim=1)
        rows = row + torch.arange(height, device=images.device)
        columns = column + torch.arange(width, device=images.device)
        columns = torch.where(mirrored.bool(), columns.flip(1), columns)
        # Numbers of pixels in the padded batch, (B, H, W): image, row and column, as they lie.
        first = torch.arange(batch, device=images.device) * padded.shape[1] * padded.shape[2]
        index = first[:, None, None] + rows[:, :, None] * padded.shape[2] + columns[:, None, :]
        pixels = padded.reshape(-1, channels).index_select(0, index.view(-1))
        return pixels.view(batch, height, width, channels).permute(0, 3, 1, 2)


@checks_calls
@dataclass(frozen=True)
class RandomResizedCrop:
    """Cut out a random part of every picture, bring it to the size of an image, mirror half.

    The usual ImageNet augmentation (Szegedy et al. 2015, section 6), by
    `torchvision.transforms.v2.RandomResizedCrop`. `Loader` cuts what a stream decodes out of the
    whole picture, before it loses pixels or its margins; of images in memory the part is cut out of
    what is held there.

    Args:
        scale: least and largest share of the area of a picture that is cut out.
        ratio: least and largest width / height of the part.
        flip: mirror half of the images.

    Raises:
        DataError: `scale` or `ratio` is no range of positive numbers, or `scale` goes beyond 1.

    Example:
        >>> augment = netslim.data.RandomResizedCrop(scale=(0.25, 1.0))
        >>> choices = augment.draw(len(images), torch.Generator().manual_seed(0))
        >>> augment(images, choices).shape == images.shape
        True
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        for name, (least, largest), most in (
            ("scale", self.scale, 1.0),
            ("ratio", self.ratio, float("inf")),
        ):
            if not 0 < least <= largest <= most:
                raise DataError(
                    f"augmentation: {name} is {least:g} to {largest:g}; give two positive numbers "
                    f"in rising order, at most {most:g}"
                )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random choices, int64 (count, 2): the seed of the part, mirrored (0 or 1).

        Raises:
            DataError: a negative count.
        """
        return _drawn(count, 1, 2**62, self.flip, generator)

    def cut(self, picture: Any, size: tuple[int, int], seed: int) -> Any:
        """The part that `seed` chooses, brought to height and width `size`.

        Args:
            picture: of PIL, or uint8 (C, H, W).

        Returns:
            What it was given, of that size.
        """
        transform = _transform(size, self.scale, self.ratio)
        # torchvision draws from torch's own generator: its state is put back. Seeded without
        # `torch.manual_seed`, which would seed those of the GPUs, too.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            return transform(picture)

    def mirror(self, images: Tensor, choices: Tensor) -> Tensor:
        """Images (B, C, H, W) whose parts are cut out already, half of them mirrored.

        Args:
            images: of any dtype, on any device.
            choices: int64 (B, 2) from `draw`, on the same device.
        """
        return torch.where(choices[:, 1].bool().view(-1, 1, 1, 1), images.flip(3), images)

    def __call__(self, images: Tensor, choices: Tensor) -> Tensor:
        """Cut and mirror a batch, image by image.

        Args:
            images: uint8 (B, C, H, W), on any device.
            choices: int64 (B, 2) from `draw`, on the same device.

        Returns:
            A new (B, C, H, W) tensor.
        """
        height, width = images.shape[2:]
        parts = [images[:0]]
        for image, seed in zip(images, choices[:, 0].tolist(), strict=True):
            parts.append(self.cut(image, (height, width), seed)[None])
        return self.mirror(torch.cat(parts), choices)


@lru_cache(maxsize=8)
def _transform(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> Any:
    from torchvision.transforms import v2

    return v2.RandomResizedCrop(size, scale=scale, ratio=ratio, antialias=True)


Augmentation = Augment | RandomResizedCrop
