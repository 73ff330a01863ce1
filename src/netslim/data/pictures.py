"""Encoded pictures (JPEG, PNG, ...): decoding, a common size, and whether memory holds them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from netslim.data.splits import ImageStream, ImageTensors, Split
from netslim.errors import DataError

_GREY_MODES = {"1", "L", "LA", "I", "I;16", "F"}
_THREADED_PIXELS = 128 * 128


class Encoded(Protocol):
    """A row of encoded pictures that can say where each came from."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> bytes | Path:
        """The encoded picture, or the file that holds it."""

    def where(self, position: int) -> str:
        """File (and row), for messages."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures decoded on demand to uint8 (C, H, W) of one size.

    A picture is resized so that its shorter side fits and cropped in the middle, when `resize` is
    set; otherwise its size has to be `shape`'s.
    """

    encoded: Encoded
    shape: tuple[int, int, int]
    resize: bool

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, position: int, /) -> Tensor:
        return torch.from_numpy(self.pixels(position)).permute(2, 0, 1)

    def pixels(self, position: int) -> np.ndarray:
        """Picture `position` as uint8 (H, W, C).

        Raises:
            DataError: it cannot be decoded, or its size differs; the message names file and row.
        """
        channels, height, width = self.shape
        picture = open_picture(self.encoded, position, "L" if channels == 1 else "RGB")
        if self.resize:
            picture = _fit(picture, height)
        elif picture.size != (width, height):
            raise DataError(
                f"{self.encoded.where(position)}: the picture is "
                f"{picture.size[0]}x{picture.size[1]}, others are {width}x{height}; give "
                "image_size to bring all to one size"
            )
        return np.array(picture, dtype=np.uint8).reshape(height, width, channels)


def open_picture(encoded: Encoded, position: int, mode: str | None = None) -> Any:
    """A decoded PIL image, converted to `mode` if given.

    Raises:
        DataError: it is damaged; the message names file and row.
    """
    # PIL and not torchvision.io.decode_image, which ends the process on a damaged PNG (torchvision
    # 0.29).
    from PIL import Image

    try:
        source = encoded.read(position)
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as picture:
            return picture.convert(mode) if mode else picture.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{encoded.where(position)}: the picture cannot be decoded ({_short(error)}); "
            "replace or remove it"
        ) from error


def _short(error: Exception) -> str:
    text = str(error)
    if text.startswith("cannot identify"):
        return "not an image format that is known"
    return text


def _fit(picture: Any, size: int) -> Any:
    """Shorter side to `size`, then the central square."""
    width, height = picture.size
    scale = size / min(width, height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (wide - size) // 2, (high - size) // 2
    return picture.resize((wide, high), resample=2).crop((left, top, left + size, top + size))


def stream(
    encoded: Encoded, labels: Tensor, shape: tuple[int, int, int], resize: bool
) -> ImageStream:
    """Pictures and labels as a stream."""
    return ImageStream(Pictures(encoded, shape, resize), labels, shape)


def common_shape(encoded: Encoded, image_size: int | None) -> tuple[int, int, int]:
    """(C, H, W) that the pictures are brought to, judged by a sample: grey only if all of it is."""
    sample = np.linspace(0, len(encoded) - 1, min(32, len(encoded))).astype(int)
    modes, sizes = [], []
    for position in sample:
        picture = open_picture(encoded, int(position))
        modes.append(picture.mode)
        sizes.append(picture.size)
    channels = 1 if _GREY_MODES.issuperset(modes) else 3
    width, height = (image_size, image_size) if image_size else sizes[0]
    return channels, height, width


def fit_memory(splits: dict[str, ImageStream], limit: int) -> dict[str, Split]:
    """The splits as tensors if together they take at most `limit` bytes, else as they are."""
    needed = sum(len(split) * int(np.prod(split.shape)) for split in splits.values())
    if needed > limit:
        return dict(splits)
    return {name: to_memory(split) for name, split in splits.items()}


def to_memory(split: ImageStream) -> ImageTensors:
    """Decode every picture of a stream, in threads where pictures are large enough to gain."""
    pictures = split.images
    assert isinstance(pictures, Pictures)
    channels, height, width = split.shape
    pixels = np.empty((len(split), height, width, channels), dtype=np.uint8)

    def decode(block: range) -> None:
        for position in block:
            pixels[position] = pictures.pixels(position)

    large = height * width > _THREADED_PIXELS
    _in_threads(decode, len(split), os.cpu_count() or 1 if large else 1)
    return ImageTensors(torch.from_numpy(pixels).permute(0, 3, 1, 2), split.labels)


def _in_threads(work: Callable[[range], None], count: int, threads: int) -> None:
    blocks = [range(start, min(start + 256, count)) for start in range(0, count, 256)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, blocks):
            pass
