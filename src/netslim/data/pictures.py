"""Encoded pictures (JPEG, PNG, ...): decoding, and the form that all of a set are brought to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from netslim._support import listed
from netslim.data.augment import RandomResizedCrop
from netslim.data.modes import NUMBERS, in_bytes, is_grey, is_share, undecided, white_of
from netslim.data.raw import Wanted, recoloured
from netslim.data.unreadable import PictureError, named, picture_error, refuse_many
from netslim.errors import DataError

# Of what PIL knows, what holds pixels and nothing else: it would hand PostScript to an interpreter.
_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF",
    "WEBP",
)  # fmt: skip
ENDINGS = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
SAMPLE = 32  # pictures by which the form of a set is judged


def held(content: bytes | None) -> bytes:
    """What a row holds as its picture.

    Raises:
        ValueError: nothing.
    """
    if not content:
        raise ValueError("the row holds no picture")
    return content


class Encoded(Protocol):
    """A row of encoded pictures that can say where each came from."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> bytes | Path:
        """The encoded picture, or the file that holds it."""

    def where(self, position: int) -> str:
        """File (and row), for messages."""


@dataclass(frozen=True, eq=False)
class Files:
    """Pictures in files of their own."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> Path:
        return Path(self.paths[position])

    def where(self, position: int) -> str:
        return self.paths[position]


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture of PIL's, upright, and whether its file goes on with further ones."""

    picture: Any
    several: bool


@dataclass(frozen=True)
class Form:
    """What the pictures of a set are brought to.

    Attributes:
        shape: channels, height, width.
        resize: make the shorter side fit and crop the middle; else another size is an error.
        resize_size: pixels of the shorter side before that; None for just those of the crop.
        recoloured: a remark, where colours come or go.
        whites: mode -> what stands for white where the mode does not say it.
        several: of the sample that was judged by, what has further frames.
        files: the file formats of the sample.
    """

    shape: tuple[int, int, int]
    resize: bool
    recoloured: tuple[str, ...] = ()
    whites: Mapping[str, int] = field(default_factory=dict)
    several: tuple[str, ...] = ()
    files: frozenset[str] = frozenset()
    resize_size: int | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed about values, and done to colours."""
        return self.recoloured + tuple(
            f"Pictures of {NUMBERS[mode]} numbers are taken to go from 0 (black) to {white} "
            "(white), as the values of those looked at do."
            for mode, white in self.whites.items()
        )


def darkened(small: Sequence[str], seen: int, whites: Mapping[str, int]) -> tuple[str, ...]:
    """A remark on pictures of 0 to 1 among others, beside which they are all but black.

    Args:
        small: where there are pictures that seem to go from 0 to 1.
        seen: how many pictures were looked at.
        whites: mode -> what stands for white.
    """
    white = whites.get("F", 1)
    if not small or white == 1:
        return ()
    return (
        f"{len(small)} of the {seen} pictures looked at have {NUMBERS['F']} numbers between 0 and "
        f"1, and others go to {white}: the former become all but black. Scale them to {white}: "
        f"{listed(small, most=3)}.",
    )


def frames_note(several: Sequence[str]) -> tuple[str, ...]:
    """A remark on pictures whose files go on with further frames or pages, if there are any."""
    if not several:
        return ()
    return (f"Of files with several frames or pages the first is taken ({named(several)}).",)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures decoded on demand to uint8 (C, H, W) of one form."""

    encoded: Encoded
    form: Form

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, position: int, /) -> Tensor:
        return torch.from_numpy(self.pixels(position)[0]).permute(2, 0, 1)

    def part(self, position: int, crop: RandomResizedCrop, seed: int) -> Tensor:
        """The part of picture `position` that `seed` chooses, as uint8 (C, H, W).

        Raises:
            PictureError, DataError: as `pixels`.
        """
        return torch.from_numpy(self.pixels(position, crop, seed)[0]).permute(2, 0, 1)

    def pixels(
        self, position: int, crop: RandomResizedCrop | None = None, seed: int = 0
    ) -> tuple[np.ndarray, bool]:
        """Picture `position` as uint8 (H, W, C), and whether its file goes on with further ones.

        Args:
            crop: what cuts out the part that `seed` chooses; None takes all of it, or its middle.

        Raises:
            PictureError: it cannot be decoded, or its values have no known range.
            DataError: its size differs; both messages name file and row.
        """
        channels, height, width = self.form.shape
        decoded = open_picture(self.encoded, position)
        try:
            picture = in_bytes(decoded.picture, channels, self.form.whites)
        except ValueError as error:
            raise picture_error(self.encoded.where(position), error) from error
        if crop is not None:
            picture = crop.cut(picture, (height, width), seed)
        elif self.form.resize:
            picture = _fit(picture, height, self.form.resize_size or height)
        elif picture.size != (width, height):
            raise DataError(
                f"{self.encoded.where(position)}: the picture is "
                f"{picture.size[0]}x{picture.size[1]}, others are {width}x{height}; give "
                "image_size to bring all to one size"
            )
        pixels = np.array(picture, dtype=np.uint8).reshape(height, width, channels)
        return pixels, decoded.several


def open_picture(encoded: Encoded, position: int) -> Decoded:
    """A decoded picture: of several in one file the first, turned as its EXIF data says.

    Raises:
        PictureError: it is damaged; the message names file and row.
    """
    # PIL and not torchvision.io.decode_image, which ends the process on a damaged PNG (torchvision
    # 0.29).
    from PIL import Image, ImageOps

    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        source = encoded.read(position)
        if isinstance(source, bytes):
            source = BytesIO(source)  # type: ignore[assignment]
        with Image.open(source, formats=formats) as picture:
            several = bool(getattr(picture, "is_animated", False))
            picture.seek(0)
            picture.load()
            form = picture.format
            upright = ImageOps.exif_transpose(picture)
            upright.format = form  # lost by the copy
            return Decoded(upright, several)
    # Damaged files raise whatever their decoders meet: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise picture_error(encoded.where(position), _short(error)) from error


def _short(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    # Who replaces `Image.open`, as ultralytics does, may fail at trying more formats.
    if any(isinstance(one, UnidentifiedImageError) for one in (error, error.__context__)):
        return "not an image format that is known"
    return str(error) or type(error).__name__


def _fit(picture: Any, size: int, shorter: int) -> Any:
    """Shorter side to `shorter` pixels, then the central square of `size`."""
    width, height = picture.size
    scale = shorter / min(width, height)
    wide, high = max(shorter, round(width * scale)), max(shorter, round(height * scale))
    left, top = (wide - size) // 2, (high - size) // 2
    return picture.resize((wide, high), resample=2).crop((left, top, left + size, top + size))


def common_form(encoded: Encoded, wanted: Wanted) -> Form:
    """What all are brought to: as is wanted, else judged by a sample, grey only if all of it is.

    Raises:
        DataError: no picture of the sample can be read.
    """
    count = len(encoded)
    sample = np.linspace(0, count - 1, min(SAMPLE, count)).astype(int).tolist()
    grey, sizes, several, files, problems = True, [], [], set(), []
    whites: dict[str, int] = {}
    small: list[str] = []
    for position in sample:
        try:
            decoded = open_picture(encoded, position)
        except PictureError as error:
            problems.append(error)
            continue
        picture = decoded.picture
        grey = grey and is_grey(picture)
        sizes.append(picture.size)
        files.add(picture.format)
        if decoded.several:
            several.append(encoded.where(position))
        if undecided(picture):
            whites[picture.mode] = max(white_of(picture), whites.get(picture.mode, 0))
            if is_share(picture):
                small.append(encoded.where(position))
    if not sizes:
        refuse_many(problems, len(sample), 0)
    width, height = sizes[0]
    if wanted.image_size:
        width = height = wanted.image_size
    seen = 3 - 2 * grey  # channels
    shape = (wanted.channels or seen, height, width)
    notes = recoloured(seen, wanted) + darkened(small, len(sizes), whites)
    return Form(
        shape,
        wanted.image_size is not None,
        notes,
        whites,
        tuple(several),
        frozenset(files),
        wanted.resize_size,
    )
