"""Whether memory holds the pictures of a set, and what of them cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from netslim.data.pictures import Encoded, Form, Pictures, frames_note
from netslim.data.raw import Raw, Wanted
from netslim.data.splits import ImageStream, ImageTensors
from netslim.data.unreadable import PictureError, refuse_many

_THREADED_PIXELS = 128 * 128


@dataclass(frozen=True)
class _Found:
    """What was met while the pictures were decoded."""

    unreadable: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)


def read_pictures(
    splits: Mapping[str, tuple[Encoded, Tensor]],
    classes: tuple[str, ...],
    form: Form,
    wanted: Wanted,
) -> Raw:
    """Pictures and labels: tensors if together they take at most the wanted bytes, else streams.

    Of tensors is known what cannot be read, and it is left out; of streams it shows when they are
    decoded.

    Raises:
        DataError: more cannot be read than may be, or a picture is of another size.
    """
    streams = {
        role: ImageStream(Pictures(encoded, form), labels, form.shape, wanted.unreadable)
        for role, (encoded, labels) in splits.items()
    }
    if sum(map(len, streams.values())) * prod(form.shape) > wanted.memory_limit:
        return Raw(dict(streams), classes, (*form.notes, *frames_note(form.several)))
    found = _Found()
    held = {role: _to_memory(stream, found) for role, stream in streams.items()}
    notes = (*form.notes, *frames_note(found.several))
    return Raw(dict(held), classes, notes, tuple(found.unreadable))


def _to_memory(stream: ImageStream, found: _Found) -> ImageTensors:
    """Decode every picture of a stream, in threads where pictures are large enough to gain."""
    pictures = stream.images
    assert isinstance(pictures, Pictures)
    channels, height, width = stream.shape
    pixels = np.empty((len(stream), height, width, channels), dtype=np.uint8)
    problems: dict[int, PictureError] = {}
    several: set[int] = set()

    def decode(block: range) -> None:
        for position in block:
            try:
                pixels[position], further = pictures.pixels(position)
            except PictureError as error:
                problems[position] = error
                continue
            if further:
                several.add(position)

    threads = 1
    if height * width > _THREADED_PIXELS:
        threads = os.cpu_count() or 1
    _in_threads(decode, len(stream), threads)
    ordered = [problems[position] for position in sorted(problems)]
    refuse_many(ordered, len(stream), stream.unreadable)
    found.unreadable.extend(map(str, ordered))
    found.several.extend(pictures.encoded.where(position) for position in sorted(several))
    whole = ImageTensors(torch.from_numpy(pixels).permute(0, 3, 1, 2), stream.labels)
    if not problems:
        return whole
    return whole.take(torch.tensor([n for n in range(len(stream)) if n not in problems]))


def _in_threads(work: Callable[[range], None], count: int, threads: int) -> None:
    blocks = [range(start, min(start + 256, count)) for start in range(0, count, 256)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, blocks):
            pass
