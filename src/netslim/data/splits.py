"""What a loaded data set is: three splits, class names, and the statistics that normalise it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from netslim._support import checks_calls, is_number, is_whole
from netslim.data.augment import RandomResizedCrop
from netslim.data.images import Images, part_of
from netslim.data.preprocessing import Preprocessing
from netslim.data.sequence import ImageSequence, sampled
from netslim.data.unreadable import PictureError, refuse_many
from netslim.errors import DataError

_SAMPLE = 2000


@checks_calls
@dataclass(frozen=True, eq=False)
class ImageTensors:
    """Images held in memory.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).

    Example:
        >>> pixels = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
        >>> split = netslim.data.ImageTensors(pixels, labels=torch.arange(10) % 2)
        >>> len(split.take(torch.tensor([1, 3]))), split.shape
        (2, (3, 8, 8))
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """A random order of the images, int64 (N,)."""
        return torch.randperm(len(self), generator=generator)

    def take(self, index: Tensor) -> ImageTensors:
        """The images at `index`, in that order."""
        pixels = self.images.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
        return ImageTensors(pixels, self.labels[index])


@checks_calls
@dataclass(frozen=True, eq=False)
class ImageStream:
    """Images decoded when they are needed; `Loader` reads them in worker processes.

    Attributes:
        images: `images[i]` is image i, uint8 (C, H, W); it must survive pickling.
        labels: int64 (N,).
        shape: channels, height, width of every image.
        unreadable: share of the images that `Loader` may leave out because they cannot be read.

    Example:
        >>> pixels = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)  # or what decodes one when asked
        >>> split = netslim.data.ImageStream(pixels, torch.arange(10) % 2, shape=(3, 8, 8))
        >>> len(split.take(torch.tensor([1, 3])))
        2
    """

    images: Images
    labels: Tensor
    shape: tuple[int, int, int]
    unreadable: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """A random order of the images, int64 (N,)."""
        return torch.randperm(len(self), generator=generator)

    def take(self, index: Tensor) -> ImageStream:
        """The images at `index`, in that order, still undecoded."""
        return replace(self, images=_Chosen(self.images, index), labels=self.labels[index])

    def unwrapped(self) -> tuple[Images, Tensor]:
        """The images that all of these were taken from, and the positions of these among them."""
        images: Any = self.images
        positions = torch.arange(len(self))
        while isinstance(images, _Chosen):
            images, positions = images.images, images.positions[positions]
        return images, positions


class _Chosen:
    """Some of the images, in another order."""

    def __init__(self, images: Images, index: Tensor) -> None:
        self.images, self.positions = images, index

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, position: int, /) -> Tensor:
        return self.images[int(self.positions[position])]

    def part(self, position: int, crop: RandomResizedCrop, seed: int) -> Tensor:
        return part_of(self.images, int(self.positions[position]), crop, seed)


Split = ImageTensors | ImageStream | ImageSequence


@checks_calls
@dataclass(frozen=True, eq=False)
class Data:
    """A loaded data set.

    Attributes:
        name: as given to `load`.
        train, validation, test: the three splits; validation is empty where none was asked for.
        preprocessing: what was done to the pictures, and what is to be done to the images; the
            network that is trained on them is right on such inputs alone.
        notes: sentences to be shown wherever a figure from this data is shown.
        unreadable: every picture that was left out because it cannot be read, and why. Of streams
            see `Loader.unreadable`.

    Example:
        >>> data: netslim.data.Data = netslim.data.load("digits", validation=100)
        >>> data.shape, data.classes[:3], len(data.validation)
        ((1, 8, 8), ('0', '1', '2'), 100)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return self.train.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; label i is `classes[i]`."""
        return self.preprocessing.classes

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, on the scale 0..1; subtracted from the images."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, on the scale 0..1; divides the images."""
        return self.preprocessing.std


def stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions (rest, chosen), ascending; `chosen` holds `count`, every class in proportion.

    Shares are rounded by the largest remainder, so the count is met exactly: each class gets the
    whole part of its share, and what is left goes one by one to those that lost most by it.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.bincount(labels)
    shares = sizes.double() * count / len(labels)
    quota = shares.floor().long()
    quota[(quota - shares).argsort(stable=True)[: count - int(quota.sum())]] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, wanted in enumerate(quota.tolist()):
        members = (labels == label).nonzero()[:, 0]
        chosen[members[torch.randperm(len(members), generator=generator)[:wanted]]] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def held_out(validation: float | int, total: int) -> int:
    """How many of `total` training images `validation` means: a share below 1, or a number.

    Raises:
        DataError: it is neither, or leaves nothing to train on.
    """
    if not is_number(validation):
        raise DataError(
            f"validation is {validation!r}; give a share such as 0.1 or a number of images"
        )
    share = not is_whole(validation)
    if share and 0 <= validation < 1:
        return round(validation * total)
    if share and validation == 1.0:
        raise DataError("validation is 1.0, which leaves nothing to train on; give a share below 1")
    if float(validation).is_integer() and 0 <= validation < total:
        return int(validation)
    raise DataError(
        f"validation is {validation}; give a share from 0 up to, not including, 1.0 "
        f"or a whole number below the {total} training images"
    )


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population deviation of every channel, 0..1; of a stream, those of a sample.

    Pixels have 256 values: how often each occurs is counted, several times faster than sums of all
    pixels are formed, and the sums that follow from the counts are exact.
    """
    counts = torch.zeros(split.shape[0], 256, dtype=torch.int64)
    for images in _chunks(split):
        for channel, row in enumerate(counts):
            row += torch.bincount(images[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64)
    pixels = counts[0].sum()
    mean = (counts * values).sum(1) / pixels
    deviation = ((counts * values**2).sum(1) / pixels - mean**2).clamp(min=0).sqrt()
    # A channel that is the same everywhere is divided by 1, not by 0.
    deviation = torch.where(deviation > 0, deviation, torch.full_like(deviation, 255.0))
    return tuple((mean / 255).tolist()), tuple((deviation / 255).tolist())


def _chunks(split: Split) -> Iterator[Tensor]:
    if isinstance(split, ImageTensors):
        yield from torch.split(split.images, 1000)
        return
    sample, images = _sample(split)
    problems: list[PictureError] = []
    for position in sample:
        try:
            image = images[position]
        except PictureError as error:
            problems.append(error)
            continue
        yield image[None]
    if len(problems) == len(sample):
        refuse_many(problems, len(sample), split.unreadable)


def _sample(split: ImageStream | ImageSequence) -> tuple[list[int], Images]:
    """Positions of a few images, and the images that have these."""
    if isinstance(split, ImageSequence):
        found = sampled(split.shards, _SAMPLE)
        return list(found), split.decoded(found)
    spread = torch.linspace(0, len(split) - 1, min(_SAMPLE, len(split)))
    return spread.long().tolist(), split.images
