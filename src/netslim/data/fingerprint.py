"""Which images a data set holds, in a few digests: so that a run that goes on can tell whether they
are those that it began with.

Of pictures in files their names and sizes are looked at, of all others what they hold; of many a
sample. Where the files lie does not matter, so a data set may be moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netslim.data.pictures import Encoded, Files, Pictures
from netslim.data.sequence import ImageSequence, sampled
from netslim.data.splits import Data, ImageStream, ImageTensors, Split

_SAMPLE = 1000  # pictures that are looked at themselves
_PASSING = 100  # of those that have to be read in order
_PIXELS = 256 << 20  # bytes of pixels that are looked at


def fingerprint(data: Data) -> dict[str, Any]:
    """Plain data; equal where the images, their order and their labels are.

    Example:
        >>> from netslim.data.fingerprint import fingerprint
        >>> fingerprint(netslim.data.load("digits"))["train"]["images"]
        1293
    """
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    found = {name: _of_split(split) for name, split in splits.items()}
    return {"name": data.name, "classes": list(data.classes), **found}


def _of_split(split: Split) -> dict[str, Any]:
    return {
        "images": len(split),
        "labels": hashlib.sha256(split.labels.numpy().tobytes()).hexdigest(),
        "listing": _digest(_looked_at(split)),
    }


def _looked_at(split: Split) -> Iterator[bytes]:
    if isinstance(split, ImageTensors):
        return _pixels(split)
    if isinstance(split, ImageSequence):
        return _passing(split)
    return _listed(split)


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _pixels(split: ImageTensors) -> Iterator[bytes]:
    """Those of every image, or of each so manieth."""
    every = 1 + split.images.numel() // _PIXELS
    yield str(tuple(split.images.shape)).encode()
    for images in torch.split(split.images[::every], 1000):
        yield images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()


def _passing(split: ImageSequence) -> Iterator[bytes]:
    """How many pictures each shard holds, which of them are meant, and the first of some shards."""
    yield str(list(split.shards.sizes)).encode()
    yield split.positions.numpy().tobytes()
    for one in sampled(split.shards, _PASSING).values():
        yield one.content


def _listed(split: ImageStream) -> Iterator[bytes]:
    images, positions = split.unwrapped()
    sample = set(np.linspace(0, max(0, len(positions) - 1), _SAMPLE).astype(int).tolist())
    for place, position in enumerate(positions.tolist()):
        chosen = place in sample
        if isinstance(images, Pictures):
            yield from _of_picture(images.encoded, position, chosen)
        elif chosen:
            pixels: Tensor = images[position]
            yield pixels.contiguous().numpy().tobytes()


def _of_picture(encoded: Encoded, position: int, chosen: bool) -> Iterator[bytes]:
    """The name of a file, and the size of a chosen one; or what a picture within a file holds."""
    if isinstance(encoded, Files):
        yield "/".join(Path(encoded.paths[position]).parts[-2:]).encode()
    if not chosen:
        return
    content = encoded.read(position)
    if isinstance(content, bytes):
        yield content
        return
    yield str(content.stat().st_size).encode()


__all__ = ["fingerprint"]
