"""last.ckpt: what a stage goes on from, whole and sealed.

The file is what `torch.save` makes, with its digest in a last line behind it, which `torch.load`
does not mind. So one rename puts content and digest in place together, and no kill can part them.
torch itself does not look at the checksums within the file: a flipped bit is another weight to it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from netslim._support import replacing

_MARK = b"\nnetslim sha256 "
_SEAL = len(_MARK) + 64 + 1
# What `torch.load` raises for a file that was cut short or is another one.
UNREADABLE = (
    *(OSError, RuntimeError, ValueError, EOFError, AttributeError, LookupError, TypeError),
    *(ArithmeticError, AssertionError, MemoryError, struct.error),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)


class SealedCheckpoints(CheckpointIO):
    """How Lightning writes and reads checkpoints: complete or not at all, and only as written."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write it in the place of an older one; OSError names the file that cannot be written."""
        with replacing(path) as temporary, open(temporary, "wb") as file:
            writer = _Digesting(file)
            try:
                torch.save(checkpoint, writer)  # type: ignore[arg-type]
            except RuntimeError:  # torch's words for what a full disk has told the writer
                raise (writer.failure or RuntimeError(f"{path} cannot be written")) from None
            file.write(_MARK + writer.digest.hexdigest().encode() + b"\n")

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: Any = True
    ) -> dict[str, Any]:
        """Read it; raises one of `UNREADABLE` where it is damaged."""
        check_seal(Path(path))
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return content

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete it."""
        Path(path).unlink(missing_ok=True)


class _Digesting:
    """A file that knows the digest of what was written to it, and why it could not be."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            written = self.file.write(content)
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(content)
        return written

    def flush(self) -> None:
        self.file.flush()


def check_seal(path: Path) -> None:
    """See to it that a checkpoint is as it was written.

    Raises:
        ValueError: it is not.
        OSError, BadZipFile: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _SEAL))
        seal = file.read()
        if not seal.startswith(_MARK):  # of version 0.1
            _check_parts(file)
            return
        file.seek(0)
        left, digest = size - _SEAL, hashlib.sha256()
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    if seal != _MARK + digest.hexdigest().encode() + b"\n":
        raise ValueError("it is not as it was written: its digest is another")


def _check_parts(file: BinaryIO) -> None:
    """By the checksums of the archive, where there is no digest."""
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        wrong = archive.testzip()
    if wrong is not None:
        raise ValueError(f"it is not as it was written: {wrong} has another checksum")
