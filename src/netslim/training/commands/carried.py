"""What unfinished runs go on from on another machine: few files, none of them large.

A finished stage is carried with its weights and its marker, an unfinished one with its last
checkpoint; optimizer states of finished stages, pages and logs stay behind. All of it is one
archive, cut into parts that lie beside the results::

    carried-1.part ... carried-4.part       of 15 MiB, with paper.json and results.md six files

Rows that do not fit go on from their run folders alone, which is said.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from netslim._support import write_atomic
from netslim.errors import RecipeError

# So that all of it is less than 64 MiB, which is as much as some places let out.
PART = 15 * 2**20  # bytes
PARTS = 4
_OF_STAGES = ("stage.json", "model.safetensors", "plan.json", "metrics.csv", "copied")
_OF_RUNS = ("config.yaml", "environment.json")
_UNFINISHED = ("last.ckpt", "best.safetensors", "metrics.csv")


def pack(runs: Path, rows: Iterable[Path], out: Path) -> tuple[list[Path], list[Path]]:
    """Write the parts, in the place of older ones.

    Args:
        runs: the folder that the run folders lie in.
        rows: folders of unfinished runs, those first that are to be carried first.
        out: where the parts go.

    Returns:
        The run folders that are in them, and those that are too large.
    """
    taken, left, used = [], [], 0
    for row in filter(Path.is_dir, rows):
        size = sum(path.stat().st_size for path in _needed(row))
        if used + size > _room():
            left.append(row)
        elif size:
            taken.append(row)
            used += size
    for old in _parts(out):
        old.unlink()
    if taken:
        _write(runs, taken, out)
    return taken, left


def _room() -> int:
    """Bytes that surely fit: what cannot be compressed grows by a little."""
    return int(0.99 * PART * PARTS)


def _write(runs: Path, rows: Iterable[Path], out: Path) -> None:
    with tempfile.TemporaryFile() as whole:
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in (path for row in rows for path in _needed(row)):
                archive.write(path, path.relative_to(runs).as_posix())
        whole.seek(0)
        for number in range(1, PARTS + 1):
            if content := whole.read(PART):
                write_atomic(out / f"carried-{number}.part", content)


def _needed(row: Path) -> Iterator[Path]:
    """The files of a run folder that it goes on from; none where nothing is done yet."""
    work = list(_of_stages(row))
    if work:
        yield from filter(Path.exists, (row / name for name in _OF_RUNS))
    yield from work


def _of_stages(row: Path) -> Iterator[Path]:
    for stage in sorted(path for path in row.glob("[0-9][0-9]-*") if path.is_dir()):
        names: tuple[str, ...] = _UNFINISHED
        if (stage / "stage.json").exists():
            names = _OF_STAGES
        yield from filter(Path.exists, (stage / name for name in names))
        yield from sorted(stage.glob("strength*/*.json"))


def unpack(out: Path, runs: Path) -> tuple[list[str], list[str]]:
    """Put what the parts hold where run folders lie; rows that are there already stay as they are.

    Returns:
        The rows that the parts hold, as ROW/SEED, and those of them that were put there.

    Raises:
        RecipeError: a part is missing or damaged.
    """
    parts = _parts(out)
    if not parts:
        return [], []
    whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    try:
        with zipfile.ZipFile(whole) as archive:
            return _extracted(archive, runs)
    except zipfile.BadZipFile as problem:
        raise RecipeError(
            f"the parts {out / 'carried-*.part'} cannot be put together ({problem}): copy all of "
            "them again, or move them away to begin anew"
        ) from None


def _extracted(archive: zipfile.ZipFile, runs: Path) -> tuple[list[str], list[str]]:
    if archive.testzip() is not None:
        raise zipfile.BadZipFile("what they hold is not what was written")
    rows = {name: "/".join(PurePosixPath(name).parts[:2]) for name in archive.namelist()}
    new = {row for row in rows.values() if not (runs / row).exists()}
    for name, row in rows.items():
        if row in new:
            archive.extract(name, runs)  # which never leaves the folder
    return list(dict.fromkeys(rows.values())), sorted(new)


def _parts(out: Path) -> list[Path]:
    found = [out / f"carried-{number}.part" for number in range(1, PARTS + 1)]
    return [path for path in found if os.path.exists(path)]


__all__ = ["pack", "unpack"]
