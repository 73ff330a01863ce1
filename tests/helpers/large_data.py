"""Small sets of JPEGs of differing sizes, as class folders, WebDataset shards and parquet files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("ant", "bee", "cat")
SIZE = 16


def jpeg(number: int) -> bytes:
    """A picture of its own size, with a colour gradient that tells it from all others."""
    height, width = 20 + number % 5, 20 + 3 * (number % 4)
    rows = np.linspace(0, 255, height)[:, None] * np.ones(width)
    columns = np.linspace(0, 255, width)[None] * np.ones((height, 1))
    colour = np.full((height, width), 5 * number % 256)
    pixels = np.stack([rows, columns, colour], axis=2).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=95)
    return content.getvalue()


def examples(count: int, cut: tuple[int, ...] = ()) -> list[tuple[bytes, int]]:
    """Pictures and labels; those of the numbers in `cut` are truncated."""
    found = []
    for number in range(count):
        content = jpeg(number)
        if number in cut:
            content = content[: len(content) // 2]
        found.append((content, number % len(CLASSES)))
    return found


def write_folder(place: Path, split: str, found: list[tuple[bytes, int]]) -> None:
    for number, (content, label) in enumerate(found):
        file = place / split / CLASSES[label] / f"{number:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_shards(place: Path, split: str, found: list[tuple[bytes, int]], each: int = 7) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "classes.txt").write_text("\n".join(CLASSES))
    for start in range(0, len(found), each):
        with tarfile.open(place / f"pets-{split}-{start // each:04}.tar", "w") as archive:
            for number, (content, label) in enumerate(found[start : start + each], start):
                add(archive, f"{number:03}.jpg", content)
                add(archive, f"{number:03}.cls", str(label).encode())


def write_tables(place: Path, split: str, found: list[tuple[bytes, int]], each: int = 7) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(found), each):
        part = found[start : start + each]
        images = [{"bytes": content, "path": None} for content, _ in part]
        labels = [CLASSES[label] for _, label in part]
        table = pa.table({"image": images, "label": labels})
        pq.write_table(table, place / f"{split}-{start // each:05}.parquet")


WRITERS = {"folder": write_folder, "wds": write_shards, "hf": write_tables}
