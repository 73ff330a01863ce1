"""What the values of a picture stand for: any picture of PIL's as 8-bit grey or RGB.

PIL's own `convert` moves numbers from one mode to another and does not ask what they mean: 16-bit
grey above 255 is clipped to white, floating-point grey of 0 to 1 cut to black, and where a picture
is transparent, whatever colour lies beneath comes out. So the value that stands for white is known
here before anything is converted. For 1, 8 and 16 bits the mode fixes it. For 32 bits nothing does,
so all pictures of a set have the smallest usual one that those looked at do not exceed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

BACKGROUND = "white"  # of what is transparent: of paper, and of browsers
SIXTEEN_BITS = 65535
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_SIXTEEN_BIT_FILES = frozenset({"PNG", "PPM"})  # their mode I is never of 32 bits
_WHITES = {"I": (255, SIXTEEN_BITS), "F": (1, 255)}  # that are usual, smallest first
NUMBERS = {"I": "32-bit whole", "F": "floating-point"}
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", *_SIXTEEN_BIT_MODES})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


def is_grey(picture: Any) -> bool:
    """Whether the mode of a picture has no colour."""
    return picture.mode in _GREY_MODES


def undecided(picture: Any) -> bool:
    """Whether nothing but its values tells what stands for white in a picture."""
    return picture.mode in _WHITES and picture.format not in _SIXTEEN_BIT_FILES


def is_share(picture: Any) -> bool:
    """Whether an undecided picture holds fractions of 1: the numbers of a dark one are whole."""
    values = np.asarray(picture)
    return bool(values.max() <= 1 and (values % 1).any())


def white_of(picture: Any) -> int:
    """The smallest usual value for white that an undecided picture does not exceed, or the last."""
    smaller, larger = _WHITES[picture.mode]
    if np.asarray(picture).max() <= smaller:
        return smaller
    return larger


def in_bytes(picture: Any, channels: int, whites: Mapping[str, int]) -> Any:
    """A decoded picture as PIL's L (one channel) or RGB (three).

    Args:
        picture: of any mode; what is transparent is laid over `BACKGROUND`.
        channels: 1 or 3.
        whites: mode -> the value for white of the set's undecided pictures; where a mode is not in
            it, the picture is judged alone.

    Raises:
        ValueError: values lie outside of the range, or the mode has no known conversion.
    """
    if picture.mode in _SIXTEEN_BIT_MODES | set(_WHITES):
        picture = _narrowed(picture, _white(picture, whites))
    if picture.mode in _ALPHA_MODES or "transparency" in picture.info:
        picture = _opaque(picture)
    # By way of RGB: PIL has no conversion from LAB and others to grey.
    if channels == 1 and picture.mode not in ("1", "L"):
        picture = picture.convert("RGB")
    return picture.convert({1: "L", 3: "RGB"}[channels])


def _white(picture: Any, whites: Mapping[str, int]) -> int:
    if not undecided(picture):
        return SIXTEEN_BITS
    return whites.get(picture.mode) or white_of(picture)


def _narrowed(picture: Any, white: int) -> Any:
    """Grey of many bits as 8-bit grey, 0 to `white` as 0 to 255."""
    from PIL import Image

    values = np.asarray(picture).astype(np.float64)
    if not (values.min() >= 0 and values.max() <= white):  # false, too, where one is no number
        smaller, larger = _WHITES[picture.mode]
        raise ValueError(
            f"its {NUMBERS[picture.mode]} numbers go from {values.min():g} to {values.max():g}, "
            f"and here 0 to {white} is read; all of a set may go to {smaller} or to {larger}: "
            "scale it, or save it with 8 or 16 bits"
        )
    # The colour that a PNG declares transparent, named by its value.
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        values[values == clear] = white
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def _opaque(picture: Any) -> Any:
    from PIL import Image

    if picture.mode == "La":  # premultiplied, as RGBa, from which PIL has a way to RGBA
        picture = picture.convert("LA")
    shown = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, BACKGROUND), shown)
