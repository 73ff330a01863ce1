"""`hf:`: image tables in the Hugging Face layout, from a folder of parquet files."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np

from netslim._support import first_line, parse_json
from netslim.data.pictures import held
from netslim.data.raw import Raw, Wanted, roles, standing_in
from netslim.data.tables import Labels, Table, raw_of
from netslim.errors import DataError

_IMAGE_COLUMNS = ("img", "image", "picture", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "cls")


@dataclass(frozen=True, eq=False)
class _Rows:
    """Encoded pictures of local parquet files, held in memory as they are."""

    images: Any
    files: tuple[Path, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, position: int) -> bytes:
        return held(self.images[position].as_py())

    def where(self, position: int) -> str:
        file = bisect_right(self.ends, position)
        start = (0, *self.ends)[file]
        return f"{self.files[file]}, row {position - start}"


def read_folder(folder: Path, name: str, wanted: Wanted) -> Raw:
    """A local folder with `train*.parquet` and `test*.parquet`, directly or in `data/`.

    Raises:
        DataError: there are no training files, one is damaged, or as `raw_of`.
    """
    by_split = files_of(folder)
    found = roles(by_split)
    tables = {role: _read_files(by_split[split]) for role, split in found.items()}
    return raw_of(tables, name, wanted, standing_in(found))


def files_of(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of a folder by the name of their split, training files among them.

    Raises:
        DataError: there are no training files.
    """
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(re.split(r"[-_.]", file.stem)[0], []).append(file)
    if "train" not in roles(by_split):
        names = ", ".join(file.name for file in files[:5]) or "no parquet file"
        raise DataError(f"{folder}: holds {names}; train*.parquet (and test*.parquet) are needed")
    return by_split


def _read_files(files: list[Path]) -> Table:
    import pyarrow as pa

    pictures, labels, classes = zip(*map(_read_file, files), strict=True)
    chunks = chain.from_iterable(array.chunks for array in pictures)
    ends = tuple(accumulate(map(len, labels)))
    rows = _Rows(pa.chunked_array(list(chunks)), tuple(files), ends)
    return Table(rows, Labels(np.concatenate(labels), classes[0], str(files[0])))


def _read_file(file: Path) -> tuple[Any, np.ndarray, tuple[str, ...] | None]:
    """Encoded pictures (a chunked binary array), label cells and class names of one file."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
        features = _features(opened.schema_arrow.metadata)
        columns = opened.schema_arrow.names
        image, label = columns_of(str(file), columns, features)
        table = opened.read([image, label])
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file}: cannot be read as parquet ({first_line(error)}); "
            "it is truncated or damaged: copy or download it again"
        ) from error
    cells = table[image]
    if pa.types.is_struct(cells.type) and cells.type.get_field_index("bytes") >= 0:
        cells = pc.struct_field(cells, "bytes")
    if not (pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type)):
        raise DataError(f"{file}: column '{image}' holds {cells.type}, not encoded pictures")
    if not table.num_rows:
        raise DataError(f"{file}: holds no rows; copy or download it again")
    return cells, _cells(table[label], file, label), class_names(features, label)


def _cells(column: Any, file: Path, label: str) -> np.ndarray:
    if column.null_count:
        raise DataError(
            f"{file}: column '{label}' has {column.null_count} rows without a label; remove them"
        )
    import pyarrow as pa
    import pyarrow.types as types

    allowed = (types.is_integer, types.is_string, types.is_large_string)
    if not any(is_such(column.type) for is_such in allowed):
        raise DataError(
            f"{file}: column '{label}' holds {column.type}; whole numbers or class names are needed"
        )
    try:
        cells: np.ndarray = column.to_numpy()
    except pa.ArrowException as error:
        raise DataError(
            f"{file}: column '{label}' cannot be read ({first_line(error)}); it is damaged: copy "
            "or download the file again"
        ) from error
    return cells


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The column types that the Hugging Face writer leaves in a file's metadata."""
    try:
        return dict(parse_json((metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}


def columns_of(where: str, columns: list[str], features: dict[str, Any]) -> tuple[str, str]:
    """The image column and the label column: by declared type, else by the usual names.

    Raises:
        DataError: there is no such column.
    """
    picked = []
    for role, kind, usual in (
        ("image", "Image", _IMAGE_COLUMNS),
        ("label", "ClassLabel", _LABEL_COLUMNS),
    ):
        declared = [name for name in columns if _entry(features, name).get("_type") == kind]
        known = [name for name in usual if name in (declared or columns)]
        if not known and not declared:
            raise DataError(
                f"{where}: has no {role} column among {', '.join(columns)}; name it one of "
                f"{', '.join(usual)}"
            )
        picked.append([*known, *declared][0])
    image, label = picked
    return image, label


def _entry(features: dict[str, Any], column: str) -> dict[str, Any]:
    """What is declared about a column: `_type`, and for labels `names`."""
    entry = features.get(column)
    return entry if isinstance(entry, dict) else {}


def class_names(features: dict[str, Any], label: str) -> tuple[str, ...] | None:
    """What is declared of the names of the classes, if anything is."""
    names = _entry(features, label).get("names")
    return tuple(map(str, names)) if names else None
