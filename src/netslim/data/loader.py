"""Batches of normalised images: the whole data path between a loaded set and the network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from netslim._support import as_device, checks_calls
from netslim.data.augment import Augment
from netslim.data.preprocessing import check_normalisation
from netslim.data.splits import ImageStream, ImageTensors, Split
from netslim.data.unreadable import PictureError, refuse_many, told
from netslim.errors import DataError


@checks_calls
class Loader:
    """Iterable of (images float32 (B, C, H, W), labels int64 (B,)), both on `device`.

    Pictures of a stream that cannot be read are left out of their batches, and warned of at the end
    of the epoch; more than the stream allows end it.

    Images held in memory are moved to `device` once, as uint8; a batch is one gather, the
    augmentation and one multiply-add. An `ImageStream` is decoded by `workers` processes and then
    takes the same way. Order and augmentation are a pure function of (seed, epoch), the same on
    every device and over all processes: each draws both for the whole set and takes its share.

    Args:
        split: one split of a loaded `Data`.
        batch_size: images a batch (of this process).
        shuffle: a new order each epoch.
        augment: applied to every batch before normalisation.
        mean, std: per channel on the scale 0..1, as `Data` holds them.
        drop_last: leave out an incomplete last batch.
        memory_format: layout of the image batches; channels_last costs nothing here and convolves
            fastest.
        shard: (rank, world) of this process in a distributed run. Where a process would lack the
            last batch, it gets one with the first image again, so that all have as many batches;
            `own_batches` does not count it.

    Raises:
        DataError: an option out of range, statistics for another number of channels, or no complete
            batch; while batches are taken, pictures that cannot be read.

    Example:
        >>> data = netslim.data.load("digits")
        >>> loader = netslim.data.Loader(
        ...     data.train, 64, shuffle=True, mean=data.mean, std=data.std)
        >>> loader.set_epoch(1)
        >>> pictures, labels = next(iter(loader))
        >>> tuple(pictures.shape), tuple(labels.shape)
        ((64, 1, 8, 8), (64,))
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: Augment | None = None,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        memory_format: torch.memory_format = torch.channels_last,
        workers: int = 2,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.split, self.batch_size, self.shuffle = split, batch_size, shuffle
        self.augment, self.seed, self.drop_last = augment, seed, drop_last
        self.device, self.memory_format = as_device(device), memory_format
        self.workers, self.shard = workers, shard
        self.epoch = 0
        self._unreadable: dict[int, PictureError] = {}
        self._check(mean, std)
        scale, shift = _scale_and_shift(mean, std, split.shape[2])
        self._scale, self._shift = scale.to(self.device), shift.to(self.device)
        self._labels = split.labels.to(self.device)
        self._rows = _pixel_rows(split, self.device) if isinstance(split, ImageTensors) else None

    def _check(self, mean: Sequence[float], std: Sequence[float]) -> None:
        check_normalisation(mean, std, [self.split.shape[0]])
        if self.batch_size < 1 or self.seed < 0:
            raise DataError(
                f"loader: batch_size is {self.batch_size}, seed is {self.seed}; give at least "
                "1 and 0"
            )
        if self.drop_last and len(self.split) and not len(self):
            raise DataError(
                f"loader: {len(self.split)} images make no complete batch of {self.batch_size}; "
                "lower batch_size or keep the incomplete batch"
            )

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Every picture of a stream that could not be read so far, and why; it was left out."""
        return tuple(map(str, self._unreadable.values()))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration stands for (0 until told)."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches an epoch, of this process."""
        whole = self.batch_size * self.shard[1]  # what all processes take at once
        if self.drop_last:
            return len(self.split) // whole
        return -(-len(self.split) // whole)

    @property
    def own_batches(self) -> int:
        """Batches an epoch of images that no other process has."""
        return min(len(self), -(-len(self._share) // self.batch_size))

    def weight(self, number: int) -> float:
        """What the mean loss of batch `number` (from 0) is multiplied with in this process.

        The mean over processes is that over all images of their batches then, also where some have
        one image more than others.
        """
        rank, world = self.shard
        start = number * self.batch_size
        sizes = [len(self._shares(one)[start : start + self.batch_size]) for one in range(world)]
        return sizes[rank] * world / max(1, sum(sizes))

    @property
    def _share(self) -> range:
        return self._shares(self.shard[0])

    def _shares(self, rank: int) -> range:
        """The positions in the order that process `rank` takes."""
        return range(rank, len(self.split), self.shard[1])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order, choices = self._draw()
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        batches = [order[start : start + self.batch_size] for start in starts]
        on_device = choices.to(self.device)
        for start, (images, labels, places) in zip(starts, self._raw(batches), strict=True):
            if self.augment is not None:
                images = self.augment(images, on_device[start + places])
            yield self._normalise(images), labels

    def _draw(self) -> tuple[Tensor, Tensor]:
        """This process's share of the epoch's order and augmentation choices, drawn on the CPU.

        Process r of w takes positions r, r + w, ... of the order, so that together they take batch
        by batch what one process would. All have as many batches: one that had fewer would leave
        the others waiting for its gradients.
        """
        # Hashed together: with their sum, seed 1 would begin with the second epoch of seed 0.
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        count = len(self.split)
        order, choices = torch.arange(count), torch.empty(count, 0)
        if self.shuffle:
            order = torch.randperm(count, generator=generator)
        if self.augment:
            choices = self.augment.draw(count, generator)
        mine = list(self._share)
        if count and self.own_batches < len(self):
            mine.append(0)
        return order[mine], choices[mine]

    def _raw(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batch by batch: uint8 images (B, C, H, W), labels, and their places in the batch."""
        if isinstance(self.split, ImageStream):
            yield from self._decoded(self.split, batches)
            return
        assert self._rows is not None
        channels, height, width = self.split.shape
        for batch in batches:
            index = batch.to(self.device, non_blocking=True)
            rows = self._rows.index_select(0, index).view(-1, height, width, channels)
            places = torch.arange(len(batch), device=self.device)
            yield rows.permute(0, 3, 1, 2), self._labels.index_select(0, index), places

    def _decoded(
        self, split: ImageStream, batches: list[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches out of worker processes, each without what of it cannot be read."""
        known = len(self._unreadable)
        for batch in _stream(split, batches, self.workers, self.device):
            self._unreadable.update(batch.problems)
            problems = list(self._unreadable.values())
            refuse_many(problems, len(split), split.unreadable)
            if not len(batch.images):
                raise DataError(f"loader: nothing of a batch is left; {told(problems)}")
            images = batch.images.to(self.device, non_blocking=True)
            labels = batch.labels.to(self.device, non_blocking=True)
            yield images, labels, batch.places.to(self.device, non_blocking=True)
        if len(self._unreadable) > known:
            warnings.warn(told(self.unreadable), stacklevel=2)

    def _normalise(self, images: Tensor) -> Tensor:
        """(x / 255 - mean) / std as one multiply-add, broadcast over whole image rows."""
        batch, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(batch, height, width * channels).float()
        rows = rows.mul_(self._scale).add_(self._shift)
        normalised = rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return normalised.contiguous(memory_format=self.memory_format)


def _scale_and_shift(
    mean: Sequence[float], std: Sequence[float], width: int
) -> tuple[Tensor, Tensor]:
    """What an image row of raw pixels, (W*C), is multiplied with and then shifted by."""
    deviation = torch.tensor(std, dtype=torch.float64)
    scale, shift = 1 / (255 * deviation), -torch.tensor(mean, dtype=torch.float64) / deviation
    return scale.float().repeat(width), shift.float().repeat(width)


def _pixel_rows(split: ImageTensors, device: torch.device) -> Tensor:
    """One row an image, (N, H*W*C), so that a batch is a plain copy of rows."""
    images = split.images.to(device).permute(0, 2, 3, 1)
    return images.reshape(len(split), images[0].numel() if len(split) else 0)


class _Batch(NamedTuple):
    """What could be read of a batch: images, labels and places in it, and what could not."""

    images: Tensor
    labels: Tensor
    places: Tensor
    problems: dict[int, PictureError]


class _Batches(Dataset[Any]):
    """Whole batches of a stream, decoded in one go.

    A picture's error is handed over and raised by the parent: what a worker raises arrives wrapped
    in its traceback.
    """

    def __init__(self, split: ImageStream, batches: list[Tensor]) -> None:
        self.split, self.batches = split, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> _Batch | DataError:
        batch = self.batches[number]
        images = [torch.empty(0, *self.split.shape, dtype=torch.uint8)]
        places, problems = [], {}
        for place, position in enumerate(batch.tolist()):
            try:
                images.append(self.split.images[position][None])
            except PictureError as error:
                problems[position] = error
                continue
            except DataError as error:
                return error
            places.append(place)
        read = torch.tensor(places, dtype=torch.long)
        return _Batch(torch.cat(images), self.split.labels[batch[read]], read, problems)


def _stream(
    split: ImageStream, batches: list[Tensor], workers: int, device: torch.device
) -> Iterator[_Batch]:
    """Decode batch after batch in worker processes, in the given order."""
    loader = DataLoader(
        _Batches(split, batches),
        batch_size=None,
        num_workers=min(workers, os.cpu_count() or 1),
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else each epoch would draw from the global random state
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch
