"""What is given for a checkpoint and is none: an export, weights of others, a folder.

Whoever meets one says what it is and which way leads on; that it cannot be read is the lesser news.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Format = Literal["onnx", "torch.export"]
EXPORTS: dict[str, Format] = {".onnx": "onnx", ".pt2": "torch.export"}  # of `netslim.export`
WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".th")  # what torch.save's files end on
_SHOWN = 3  # files of a folder that a message names


def no_checkpoint(path: str) -> str | None:
    """What it is and what to do, as a message; None for all that may be a checkpoint."""
    if path.endswith(WEIGHTS):
        return (
            f"{path} holds weights, and does not say of which network: name the network, with "
            f"weights_file={path!r} beside it"
        )
    if path.endswith(tuple(EXPORTS)):
        return (
            f"{path} is an export, finished for other runtimes, and can be neither looked into nor "
            "changed: name the .safetensors file that it was made of (netslim predict alone takes "
            "an .onnx file, too)"
        )
    if os.path.isdir(path):
        return f"{path} is a folder, and a network is one file{_inside(Path(path))}"
    return None


def _inside(folder: Path) -> str:
    """Which files of a folder may be meant: those in it, or what the stages of a run have left."""
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*/model.safetensors"))
    if not found:
        return "; there is no .safetensors file in it"
    return f": name one in it, such as {', '.join(map(str, found[-_SHOWN:]))}"


__all__ = ["EXPORTS", "WEIGHTS", "Format", "no_checkpoint"]
