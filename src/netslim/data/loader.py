"""Batches of normalised images: the whole data path between a loaded set and the network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from netslim._support import as_device, checks_calls
from netslim.data.augment import Augmentation, RandomResizedCrop
from netslim.data.images import Images, part_of
from netslim.data.preprocessing import check_normalisation
from netslim.data.sequence import ImageSequence
from netslim.data.splits import ImageStream, ImageTensors, Split
from netslim.data.unreadable import PictureError, refuse_many, told
from netslim.errors import DataError


@checks_calls
class Loader:
    """Iterable of (images float32 (B, C, H, W), labels int64 (B,)), both on `device`.

    Pictures of a stream that cannot be read are left out of their batches, and warned of at the end
    of the epoch; more than the stream allows, of what this process takes, end it.

    Images held in memory are moved to `device` once, as uint8; a batch is one gather, the
    augmentation and one multiply-add. An `ImageStream` is decoded by `workers` processes and then
    takes the same way; an `ImageSequence` is read here and decoded by them. Order and augmentation
    are a pure function of (seed, epoch), the same on every device, with any number of workers and
    over all processes: each draws both for the whole set and takes its share.

    Args:
        split: one split of a loaded `Data`.
        batch_size: images a batch (of this process).
        shuffle: a new order each epoch.
        augment: applied to every batch before normalisation; a `RandomResizedCrop` of a stream to
            every picture while it is decoded.
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
        augment: Augmentation | None = None,
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
        if isinstance(self.split, ImageTensors):
            for positions, choices in self.picks():
                yield self.batch(positions, choices)
            return
        order, choices = self._draw()
        on_device, finish = choices.to(self.device), self._finish
        starts = self._starts
        batches = [order[start : start + self.batch_size] for start in starts]
        raw = self._decoded(self._tasks(batches, choices))
        for start, (images, labels, places) in zip(starts, raw, strict=True):
            if finish is not None:
                images = finish(images, on_device[start + places])
            yield self._normalise(images), labels

    @property
    def picks_suffice(self) -> bool:
        """Whether all that is left to do for a batch, once it is picked, is done on the device."""
        return self._rows is not None and not isinstance(self.augment, RandomResizedCrop)

    def picks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What `batch` makes the batches of an epoch of: positions (B,) of images held in memory,
        and the choices (B, k) of their augmentation, both on the device.
        """
        order, choices = (drawn.to(self.device) for drawn in self._draw())
        for start in self._starts:
            here = slice(start, start + self.batch_size)
            yield order[here], choices[here]

    def batch(self, positions: Tensor, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of a pick; nothing is asked of the device, so that a CUDA graph can
        hold it (with `picks_suffice`).
        """
        assert self._rows is not None
        channels, height, width = self.split.shape
        rows = self._rows.index_select(0, positions).view(-1, height, width, channels)
        images = rows.permute(0, 3, 1, 2)
        if self.augment is not None:
            images = self.augment(images, choices)
        return self._normalise(images), self._labels.index_select(0, positions)

    @property
    def _starts(self) -> range:
        """The first place of every batch in this process's share."""
        return range(0, len(self) * self.batch_size, self.batch_size)

    @property
    def _finish(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """What of the augmentation is left to do for a batch."""
        crop = self._crop
        return self.augment if crop is None else crop.mirror

    @property
    def _crop(self) -> RandomResizedCrop | None:
        """What cuts parts out of pictures while they are decoded."""
        if isinstance(self.split, ImageTensors) or not isinstance(self.augment, RandomResizedCrop):
            return None
        return self.augment

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
            order = self.split.shuffled(generator)
        if self.augment:
            choices = self.augment.draw(count, generator)
        mine = list(self._share)
        if count and self.own_batches < len(self):
            mine.append(0)
        return order[mine], choices[mine]

    def _tasks(self, batches: list[Tensor], choices: Tensor) -> Iterator[_Task]:
        """What a worker is told of each batch; of a sequence its pictures go along."""
        assert not isinstance(self.split, ImageTensors)
        arriving: Iterator[Images | None] = repeat(None)
        if isinstance(self.split, ImageSequence):
            arriving = self.split.arriving(batches)
        start = 0
        # The batches first: where they end, nothing further is to arrive.
        for positions, images in zip(batches, arriving, strict=False):
            seeds = choices[start : start + len(positions), 0] if self._crop else None
            start += len(positions)
            yield _Task(positions, seeds, images)

    def _decoded(self, tasks: Iterator[_Task]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches out of worker processes, each without what of it cannot be read."""
        split = self.split
        assert not isinstance(split, ImageTensors)
        known = len(self._unreadable)
        decoding = _Decoding(split, self._crop)
        for batch in _in_workers(decoding, tasks, self.workers, self.device):
            self._unreadable.update(batch.problems)
            problems = list(self._unreadable.values())
            refuse_many(problems, len(self._share), split.unreadable)
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


class _Task(NamedTuple):
    """A batch that is to be decoded: positions, seeds of random parts, and images by position
    where the split has none at hand.
    """

    positions: Tensor
    seeds: Tensor | None
    images: Images | None


class _Decoding(Dataset[Any]):
    """Whole batches of a split, decoded in one go.

    Its "indices" are tasks: a `DataLoader` hands them to its workers in turn and gives out what
    comes back in their order, so the order does not depend on the number of workers.

    A picture's error is handed over and raised by the parent: what a worker raises arrives wrapped
    in its traceback.
    """

    def __init__(self, split: ImageStream | ImageSequence, crop: RandomResizedCrop | None) -> None:
        self.images = split.images if isinstance(split, ImageStream) else None
        self.labels, self.shape, self.crop = split.labels, split.shape, crop

    def __getitem__(self, task: _Task) -> _Batch | DataError:
        images = [torch.empty(0, *self.shape, dtype=torch.uint8)]
        places, problems = [], {}
        for place, position in enumerate(task.positions.tolist()):
            try:
                images.append(self._image(task, place, position)[None])
            except PictureError as error:
                problems[position] = error
                continue
            except DataError as error:
                return error
            places.append(place)
        read = torch.tensor(places, dtype=torch.long)
        return _Batch(torch.cat(images), self.labels[task.positions[read]], read, problems)

    def _image(self, task: _Task, place: int, position: int) -> Tensor:
        images = task.images or self.images
        assert images is not None
        if self.crop is None or task.seeds is None:
            return images[position]
        return part_of(images, position, self.crop, int(task.seeds[place]))


def _in_workers(
    decoding: _Decoding, tasks: Iterator[_Task], workers: int, device: torch.device
) -> Iterator[_Batch]:
    """Decode batch after batch in worker processes, in the given order."""
    loader = DataLoader(
        decoding,
        batch_size=None,
        sampler=tasks,
        num_workers=min(workers, os.cpu_count() or 1),
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else each epoch would draw from the global random state
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch
