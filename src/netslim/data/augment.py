"""Random crop and mirror image for a whole batch at once, on whatever device holds it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from netslim._support import checks_calls
from netslim.errors import DataError


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
        if count < 0:
            raise DataError(f"augmentation: count is {count}; give the number of images, 0 or more")
        offsets = torch.randint(0, 2 * self.pad + 1, (count, 2), generator=generator)
        mirrored = torch.randint(0, 1 + bool(self.flip), (count, 1), generator=generator)
        return torch.cat([offsets, mirrored], dim=1)

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
