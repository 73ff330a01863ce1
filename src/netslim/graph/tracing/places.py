"""Which line of the user's code is running, among the frames of PyTorch and of netslim."""

from __future__ import annotations

import os
import sys
import traceback
from functools import cache
from pathlib import Path
from types import FrameType

import torch

from netslim.graph.modules import watching

TORCH = str(Path(torch.__file__).parent) + os.sep
HERE = str(Path(__file__).parent) + os.sep
_RUN, _SIZES = HERE + "running.py", HERE + "sizes.py"
_OURS = str(Path(watching.__file__).parent) + os.sep  # modules that we put in the place of others


def place(in_rule: bool) -> tuple[str, int] | None:
    """The file and the line of the user's code that is running; generated code has none.

    Args:
        in_rule: whether a rule asks, which may be one that was registered from outside.
    """
    frame: FrameType | None = sys._getframe(1)
    if in_rule:  # past the rule
        while frame is not None and not _follows(frame):
            frame = frame.f_back
    while frame is not None:
        name = frame.f_code.co_filename
        if name == _RUN:  # generated code has no file
            break
        if of_user(frame):
            return name, frame.f_lineno
        frame = frame.f_back
    return None


def of_user(frame: FrameType) -> bool:
    """Whether the code of a frame is the user's, in a file."""
    return _is_users(frame.f_code.co_filename)


@cache
def _is_users(file: str) -> bool:
    return not file.startswith((TORCH, HERE, _OURS, "<"))


def _follows(frame: FrameType) -> bool:
    """Whether this is `Dispatch.ran`, which calls the rules."""
    return frame.f_code.co_name == "ran" and frame.f_code.co_filename.startswith(HERE)


def asker() -> str:
    """The file of the code that did something with a size: the first frame out of sizes.py."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename == _SIZES:
        frame = frame.f_back
    if frame is None:
        return ""
    return frame.f_code.co_filename


def said(error: Exception) -> str:
    """``KeyError: 1 at rules.py:33``: an error on one line, and where it was raised.

    An error that the recorder raised is told with the line of the rule that called it.
    """
    places = list(traceback.walk_tb(error.__traceback__))
    outside = [p for p in places if not p[0].f_code.co_filename.startswith(HERE)]
    frame, line = (outside or places)[-1]
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first} at {Path(frame.f_code.co_filename).name}:{line}"


__all__ = ["HERE", "TORCH", "asker", "of_user", "place", "said"]
