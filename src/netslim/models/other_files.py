"""What is given for a checkpoint and is none: an export, weights of others, a folder.

Whoever meets one says what it is and which way leads on; that it cannot be read is the lesser news.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Format = Literal["onnx", "torch.export", "openvino", "executorch", "aotinductor"]
# What a file of each ends on; the longer endings first, for one may end as another does.
EXPORTS: dict[str, Format] = {
    ".aoti.pt2": "aotinductor",
    ".onnx": "onnx",
    ".pt2": "torch.export",
    ".xml": "openvino",
    ".pte": "executorch",
}
WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".th")  # what torch.save's files end on
_SHOWN = 3  # files of a folder that a message names


def format_of(path: str) -> Format | None:
    """The format of an exported file, by its ending."""
    return next((kind for end, kind in EXPORTS.items() if path.endswith(end)), None)


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
            "changed: name the .safetensors file that it was made of (netslim evaluate and "
            "predict take an .onnx file, too)"
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


__all__ = ["EXPORTS", "WEIGHTS", "Format", "format_of", "no_checkpoint"]
