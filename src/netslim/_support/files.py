"""Files: written whole or not at all, and locked."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from netslim.errors import ArgumentError

_TEMPORARY = re.compile(r"\.(?P<stem>.*)\.[0-9a-f]{12}\.tmp(?P<suffix>(\..*)?)")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path to write a file under that takes the place of ``path`` when the block ends,
    complete.

    It lies in the same folder and has the same ending. After an exception ``path`` is as before and
    nothing is left; what a killed process has left of earlier tries is removed.

    Raises:
        OSError: the file cannot be written; it names ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        remove_leftovers(path.parent, path)
        with _locked(temporary):
            yield temporary
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        _settle(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        # A full disk is told without a name, and the temporary one means nothing to anyone.
        why = error.strerror
        if error.errno == errno.EISDIR:
            why = "a folder is in its place: move that away"
        raise OSError(error.errno, why, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, path: Path | None = None) -> None:
    """Remove what killed processes have left of files that they were writing into ``folder``, or of
    the one that was to become ``path``; what a living one is writing stays.
    """
    if os.name != "posix":  # no lock tells there whether its writer lives
        return
    for found in folder.glob(".*.tmp*"):
        name = _TEMPORARY.fullmatch(found.name)
        if name is None or found.is_symlink():
            continue
        if path is None or (name["stem"], name["suffix"]) == (path.stem, path.suffix):
            _remove_if_left(found)


def _remove_if_left(temporary: Path) -> None:
    """The system lifts a lock with the process that holds it, so what has none has no writer."""
    try:
        handle = os.open(temporary, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return
    try:
        if try_lock(handle):
            temporary.unlink(missing_ok=True)
    finally:
        os.close(handle)


@contextmanager
def _locked(temporary: Path) -> Iterator[None]:
    """A new file, which is locked inside; it follows no link, for none can be there."""
    handle = _created(temporary)
    if os.name != "posix":  # an open file could not take another one's place
        os.close(handle)
        yield
        return
    try:
        # Between the two, somebody may have taken it for what a killed process has left.
        _wait_for_lock(handle)
        while not temporary.exists():
            os.close(handle)
            handle = _created(temporary)
            _wait_for_lock(handle)
        yield
    finally:
        os.close(handle)


def _created(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _wait_for_lock(handle: int) -> None:
    """Lock an open file or folder as soon as nobody else has it, where the file system can."""
    import fcntl

    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)


def try_lock(handle: int) -> bool:
    """Lock an open file for as long as it is open, and however the process ends; False where
    another one has it. Windows knows no such locks, and there it is always True.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for this out of a folder for a moment; they wait."""
    handle = None
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        _wait_for_lock(handle)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _settle(folder: Path) -> None:
    """Have the names in a folder survive a loss of power, where the system can see to it."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that cannot
            raise
    finally:
        os.close(handle)


def named_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path, where a file can be by that name; ``what`` is its parameter, for the message.

    Raises:
        ArgumentError: it is empty, or a folder.
    """
    found = Path(path)
    try:
        folder = not found.name or found.is_dir()
    except OSError as error:  # too long, for instance
        raise ArgumentError(f"{what} must name a file: {error.strerror}") from None
    if folder:
        raise ArgumentError(f"{what} must name a file, got {os.fspath(path)!r}, which is a folder")
    return found


def is_format(found: object, *known: int) -> bool:
    """Whether a file's format is one of these numbers: ``true`` is no 1, and 1.0 none either."""
    return type(found) is int and found in known


def digest_of_plain(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON file holds, whatever the order of its keys and its white space."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that it is either as before or complete, also after a kill; text as UTF-8.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


__all__ = [
    "alone_in",
    "digest_of_plain",
    "is_format",
    "named_file",
    "remove_leftovers",
    "replacing",
    "try_lock",
    "write_atomic",
]
