"""`wds:`: WebDataset shards, tar files in which a picture lies beside its label.

The headers of a tar file say where in it each picture begins. So shards on disk are no stream here:
they are looked through once, and then every picture is at hand by position, as in folders. Shards
that are elsewhere are read with `hf:ID` and `streaming`.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from netslim._support import parse_json, read_text, refusing
from netslim.data.pictures import ENDINGS
from netslim.data.raw import Raw, Wanted, roles, standing_in
from netslim.data.tables import Labels, Table, raw_of
from netslim.data.unreadable import named
from netslim.errors import DataError

_CLASSES = "classes.txt"
_LARGEST = 1 << 20  # bytes of a label
_KEYS = ("label", "cls")  # of .json files


@dataclass(frozen=True, eq=False)
class _Members:
    """Encoded pictures within tar files."""

    files: tuple[str, ...]
    names: tuple[str, ...]
    places: np.ndarray  # int64 (N, 3): which file, first byte, bytes

    def __len__(self) -> int:
        return len(self.names)

    def read(self, position: int) -> bytes:
        file, first, size = self.places[position].tolist()
        with open(self.files[file], "rb") as stream:
            stream.seek(first)
            return stream.read(size)

    def where(self, position: int) -> str:
        return f"{self.files[self.places[position, 0]]}, {self.names[position]}"


@dataclass
class _Sample:
    """What a shard holds under one key: a picture's name, first byte and bytes, and its label."""

    picture: tuple[str, int, int] | None = None
    label: str | None = None


@dataclass
class _Shard:
    """What lies in one tar file."""

    file: Path
    samples: dict[str, _Sample] = field(default_factory=dict)

    @property
    def pictures(self) -> Iterator[tuple[tuple[str, int, int], str]]:
        """Those of them that are pictures, with their labels."""
        for key, sample in self.samples.items():
            if sample.picture is None:
                continue
            if sample.label is None:
                raise DataError(
                    f"{self.file}: {sample.picture[0]} has no label; beside it {key}.cls (a number "
                    f"or a name of a class) or {key}.json (with {' or '.join(_KEYS)}) is needed"
                )
            yield sample.picture, sample.label


def read_shards(folder: Path, name: str, wanted: Wanted) -> Raw:
    """Files *.tar in a folder or in sub-folders; their names tell which split each belongs to.

    Raises:
        DataError: there are none, one is damaged, or a picture has no label.
    """
    files = sorted(folder.glob("*.tar")) + sorted(folder.glob("*/*.tar"))
    if not files:
        raise DataError(f"{folder}: holds no tar file; shards such as train-000000.tar are needed")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    found = roles(by_split)
    classes = _class_names(folder / _CLASSES)
    tables = {role: _table(by_split[split], classes) for role, split in found.items()}
    return raw_of(tables, name, wanted, standing_in(found))


def _split_of(path: Path) -> str:
    """The first word of folder and name that is a split's: imagenet1k-train-0000.tar is train."""
    words = re.split(r"[^a-z]+", str(path.with_suffix("")).lower())
    return next((word for word in words if roles([word])), "train")


def _class_names(file: Path) -> tuple[str, ...] | None:
    """One a line, in the order of the numbers."""
    if not file.exists():
        return None
    with refusing(DataError, f"{file} cannot be read", "name a class a line"):
        text = read_text(file)
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _table(files: list[Path], classes: tuple[str, ...] | None) -> Table:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shards = list(pool.map(_looked_through, files))
    held = [list(shard.pictures) for shard in shards]
    pictures = [picture for picture, _ in chain.from_iterable(held)]
    labels = [label for _, label in chain.from_iterable(held)]
    if not pictures:
        raise DataError(
            f"{named(files)}: hold no picture (by its ending: {' '.join(ENDINGS)}); check the files"
        )
    file = np.repeat(np.arange(len(files)), list(map(len, held)))
    within = np.array([picture[1:] for picture in pictures], dtype=np.int64)
    members = _Members(
        tuple(map(str, files)),
        tuple(picture[0] for picture in pictures),
        np.column_stack([file, within]),
    )
    return Table(members, Labels(_cells(labels), classes, str(files[0])))


def _cells(labels: list[str]) -> np.ndarray:
    """Whole numbers where all are such, else names."""
    try:
        return np.array([int(label) for label in labels], dtype=np.int64)
    except (ValueError, OverflowError):
        return np.array(labels)


def _looked_through(file: Path) -> _Shard:
    shard = _Shard(file)
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                _note(shard, archive, member)
                archive.members.clear()  # type: ignore[attr-defined]  # else all headers are kept
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{file}: cannot be read as tar ({error}); it is truncated or damaged: copy or "
            "download it again"
        ) from error
    return shard


def _note(shard: _Shard, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """One file of a shard. What lies before the first dot of its name is its key."""
    folder, base = os.path.split(member.name)
    key, _, ending = base.lower().partition(".")
    if not member.isreg() or not key:
        return
    key = os.path.join(folder, base[: len(key)])
    sample = shard.samples.setdefault(key, _Sample())
    if f".{ending}" in ENDINGS:
        sample.picture = member.name, member.offset_data, member.size
    if ending in ("cls", "json") and member.size <= _LARGEST:
        content = archive.extractfile(member)
        assert content is not None
        sample.label = sample.label or _label(
            content.read(), ending, f"{shard.file}, {member.name}"
        )


def _label(content: bytes, ending: str, where: str) -> str | None:
    try:
        text = content.decode()
        if ending == "cls":
            return text.strip()
        said = parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: is no text of a label ({error}); correct it") from None
    if not isinstance(said, dict):
        return None
    return next((str(said[key]) for key in _KEYS if isinstance(said.get(key), int | str)), None)
