"""`hf:`: image tables in the Hugging Face layout, from a folder of parquet files or the hub."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netslim.data.memory import read_pictures
from netslim.data.pictures import Encoded, Form, common_form
from netslim.data.raw import Raw, Wanted, roles, standing_in
from netslim.errors import DataError

_IMAGE_COLUMNS = ("img", "image", "picture", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "cls")
_SMALL = 64


@dataclass(frozen=True, eq=False)
class _Rows:
    """Encoded pictures of local parquet files, held in memory as they are."""

    images: Any
    files: tuple[Path, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, position: int) -> bytes:
        content: bytes | None = self.images[position].as_py()
        if not content:
            raise ValueError("the row holds no picture")
        return content

    def where(self, position: int) -> str:
        file = bisect_right(self.ends, position)
        start = (0, *self.ends)[file]
        return f"{self.files[file]}, row {position - start}"


@dataclass(frozen=True, eq=False)
class _HubRows:
    """Encoded pictures of a `datasets.Dataset`, which maps its files into memory."""

    dataset: Any
    column: str
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, position: int) -> bytes | Path:
        cell = self.dataset[int(position)][self.column]
        if not cell or not (cell["bytes"] or cell["path"]):
            raise ValueError("the row holds no picture")
        return cell["bytes"] or Path(cell["path"])

    def where(self, position: int) -> str:
        return f"{self.name}, row {position}"


@dataclass(frozen=True, eq=False)
class _Table:
    """One split before decoding: pictures, label cells, and the class names if it has them."""

    encoded: Encoded
    labels: np.ndarray
    classes: tuple[str, ...] | None
    where: str


def read_folder(folder: Path, name: str, wanted: Wanted) -> Raw:
    """A local folder with `train*.parquet` and `test*.parquet`, directly or in `data/`."""
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(re.split(r"[-_.]", file.stem)[0], []).append(file)
    found = roles(by_split)
    if "train" not in found:
        names = ", ".join(file.name for file in files[:5]) or "no parquet file"
        raise DataError(f"{folder}: holds {names}; train*.parquet (and test*.parquet) are needed")
    tables = {role: _read_files(by_split[split]) for role, split in found.items()}
    return _raw(tables, name, wanted, standing_in(found))


def _read_files(files: list[Path]) -> _Table:
    import pyarrow as pa

    pictures, labels, classes = zip(*map(_read_file, files), strict=True)
    chunks = chain.from_iterable(array.chunks for array in pictures)
    ends = tuple(accumulate(map(len, labels)))
    rows = _Rows(pa.chunked_array(list(chunks)), tuple(files), ends)
    return _Table(rows, np.concatenate(labels), classes[0], str(files[0]))


def _read_file(file: Path) -> tuple[Any, np.ndarray, tuple[str, ...] | None]:
    """Encoded pictures (a chunked binary array), label cells and class names of one file."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
        features = _features(opened.schema_arrow.metadata)
        columns = opened.schema_arrow.names
        image, label = _columns(str(file), columns, features)
        table = opened.read([image, label])
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file}: cannot be read as parquet ({_first_line(error)}); "
            "it is truncated or damaged: copy or download it again"
        ) from error
    cells = table[image]
    if pa.types.is_struct(cells.type) and cells.type.get_field_index("bytes") >= 0:
        cells = pc.struct_field(cells, "bytes")
    if not (pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type)):
        raise DataError(f"{file}: column '{image}' holds {cells.type}, not encoded pictures")
    if not table.num_rows:
        raise DataError(f"{file}: holds no rows; copy or download it again")
    return cells, _cells(table[label], file, label), _class_names(features, label)


def _cells(column: Any, file: Path, label: str) -> np.ndarray:
    if column.null_count:
        raise DataError(
            f"{file}: column '{label}' has {column.null_count} rows without a label; remove them"
        )
    import pyarrow.types as types

    allowed = (types.is_integer, types.is_string, types.is_large_string)
    if not any(is_such(column.type) for is_such in allowed):
        raise DataError(
            f"{file}: column '{label}' holds {column.type}; whole numbers or class names are needed"
        )
    cells: np.ndarray = column.to_numpy()
    return cells


def _first_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The column types that the Hugging Face writer leaves in a file's metadata."""
    try:
        return dict(json.loads((metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}


def _columns(where: str, columns: list[str], features: dict[str, Any]) -> tuple[str, str]:
    """The image column and the label column: by declared type, else by the usual names."""
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


def _class_names(features: dict[str, Any], label: str) -> tuple[str, ...] | None:
    names = _entry(features, label).get("names")
    return tuple(map(str, names)) if names else None


def read_hub(identifier: str, wanted: Wanted) -> Raw:
    """A data set of the Hugging Face hub, downloaded and cached by `datasets`.

    Raises:
        DataError: the extra `hf` is not installed, or the set cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"hf:{identifier}: there is no such folder here or in the data root (set root or "
            "NETSLIM_DATA), and data sets of the hub need the extra 'hf': pip install 'netslim[hf]'"
        ) from None
    try:
        loaded = datasets.load_dataset(identifier)
    # The hub client raises a dozen unrelated types, all meaning "not to be had".
    except Exception as error:
        raise DataError(
            f"hf:{identifier}: is neither a local folder nor to be had from the hub "
            f"({_first_line(error)}); check the name and the connection"
        ) from error
    found = roles(loaded)
    if "train" not in found:
        raise DataError(
            f"hf:{identifier}: has the splits {', '.join(loaded)}; one called train is needed"
        )
    tables = {}
    for role, split in found.items():
        tables[role] = _hub_table(loaded[split], f"hf:{identifier} {split}")
    return _raw(tables, f"hf:{identifier}", wanted, standing_in(found))


def _hub_table(dataset: Any, where: str) -> _Table:
    import datasets

    features = dataset.features.to_dict()
    image, label = _columns(where, dataset.column_names, features)
    encoded = dataset.cast_column(image, datasets.Image(decode=False))
    labels = np.asarray(dataset.with_format("numpy", columns=[label])[:][label])
    return _Table(_HubRows(encoded, image, where), labels, _class_names(features, label), where)


def _raw(tables: dict[str, _Table], name: str, wanted: Wanted, remarks: tuple[str, ...]) -> Raw:
    classes = _classes(tables["train"])
    form = common_form(tables["train"].encoded, wanted)
    splits = {
        role: (table.encoded, _label_tensor(table, classes)) for role, table in tables.items()
    }
    raw = read_pictures(splits, classes, form, wanted)
    return replace(raw, notes=(*_notes(form, name), *raw.notes, *remarks))


def _classes(table: _Table) -> tuple[str, ...]:
    if table.classes:
        return table.classes
    if table.labels.dtype.kind in "iu":
        return tuple(str(label) for label in range(int(table.labels.max()) + 1))
    return tuple(sorted({str(label) for label in table.labels}))


def _label_tensor(table: _Table, classes: tuple[str, ...]) -> Tensor:
    """int64 labels; whether they fit the classes is checked for every source alike, in `load`."""
    if table.labels.dtype.kind in "iu":
        return torch.from_numpy(table.labels.astype(np.int64))
    number = {name: position for position, name in enumerate(classes)}
    unknown = sorted({str(label) for label in table.labels} - set(number))
    if unknown:
        raise DataError(
            f"{table.where}: label '{unknown[0]}' is not one of the classes {', '.join(classes)}"
        )
    return torch.tensor([number[str(label)] for label in table.labels])


def _notes(form: Form, name: str) -> tuple[str, ...]:
    """A remark on small JPEG pictures: their originals (CIFAR, SVHN, ...) were not compressed."""
    _, height, width = form.shape
    if "JPEG" not in form.files or max(height, width) > _SMALL:
        return ()
    return (
        f"The {width}x{height} pictures of {name} are JPEG-compressed; "
        "errors run somewhat above those published for the original pictures.",
    )
