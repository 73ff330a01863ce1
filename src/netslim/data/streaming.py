"""`hf:` with `streaming`: read shard by shard by `datasets`, neither downloaded nor kept.

First the labels alone, for to hold images out in proportion and to draw an epoch's order one has to
know them: of parquet files that column alone is read. Then, in every epoch, the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netslim._support import first_line, read_bytes
from netslim.data.hub import need_train, opened
from netslim.data.parquet import class_names, columns_of, files_of
from netslim.data.raw import Raw, Wanted, roles, standing_in
from netslim.data.sequence import Arrived
from netslim.data.tables import Labels, Passing, raw_of_passing
from netslim.errors import DataError

_NEEDED = "data sets that are streamed"


@dataclass(frozen=True, eq=False)
class _StreamShards:
    """The shards of a `datasets.IterableDataset` whose pictures are not decoded."""

    stream: Any
    column: str
    sizes: tuple[int, ...]
    name: str

    def read(self, shard: int) -> Iterator[Arrived]:
        for row, cell in enumerate(_rows(self.stream, shard, self.name)):
            yield Arrived(_content(cell[self.column]), f"{self.name}, shard {shard}, row {row}")


def _content(cell: Any) -> bytes:
    """An encoded picture; empty where there is none."""
    if isinstance(cell, Mapping):
        path = cell["path"]
        if cell["bytes"] is None and path and Path(path).is_file():
            return read_bytes(path)
        cell = cell["bytes"]
    return cell or b""


def _rows(stream: Any, shard: int, name: str) -> Iterator[Any]:
    """The rows of one shard.

    Raises:
        DataError: the connection breaks, or a file is damaged.
    """
    try:
        yield from stream.shard(num_shards=stream.num_shards, index=shard)
    # Whatever the client, the file system and the parser raise.
    except Exception as error:
        raise DataError(
            f"{name}, shard {shard}: cannot be read on ({first_line(error)}); check the connection "
            "and the file, and run again"
        ) from error


def read_streaming(identifier: str, folder: Path | None, wanted: Wanted) -> Raw:
    """A data set of the hub, or a local folder of parquet files, streamed.

    Args:
        identifier: of the hub, or the folder as it was named.
        folder: where it lies, if it is local.

    Raises:
        DataError: the extra `hf` is not installed, or the set cannot be had.
    """
    name, what, how = f"hf:{identifier}", (identifier,), {}
    if folder is not None:
        files = {split: list(map(str, paths)) for split, paths in files_of(folder).items()}
        what, how = ("parquet",), {"data_files": files}
    loaded = opened(name, *what, missing=_NEEDED, streaming=True, **how)
    need_train(name, loaded)
    found = roles(loaded)
    splits = {
        role: _passing(loaded[split], f"{name} {split}", split, what, how)
        for role, split in found.items()
    }
    return raw_of_passing(splits, name, wanted, standing_in(found))


def _passing(stream: Any, where: str, split: str, what: Sequence[str], how: Any) -> Passing:
    import datasets

    declared = stream.features or datasets.Features()
    features = declared.to_dict()
    names = stream.column_names or list(next(iter(stream)))
    image, label = columns_of(where, names, features)
    if isinstance(declared.get(image), datasets.Image):
        stream = stream.cast_column(image, datasets.Image(decode=False))
    shards = _labels(_label_stream(stream, label, split, what, how), label, where)
    labels = Labels(np.concatenate(shards), class_names(features, label), where)
    return Passing(_StreamShards(stream, image, tuple(map(len, shards)), where), labels)


def _label_stream(stream: Any, label: str, split: str, what: Sequence[str], how: Any) -> Any:
    """The label column alone: of parquet files nothing else is read, of others it is picked out."""
    import datasets

    try:
        alone = datasets.load_dataset(*what, streaming=True, columns=[label], **how)[split]
    # Other formats know no `columns`, and say so by errors of many types.
    except Exception:
        return stream.select_columns([label])
    # Labels are told apart by shard and row, so the shards must be the same.
    if alone.num_shards != stream.num_shards:
        return stream.select_columns([label])
    return alone


def _labels(stream: Any, label: str, where: str) -> list[np.ndarray]:
    """The label cells of every shard."""
    found = []
    for shard in range(stream.num_shards):
        cells = [row[label] for row in _rows(stream, shard, where)]
        if any(cell is None for cell in cells):
            raise DataError(f"{where}, shard {shard}: has rows without a label; remove them")
        found.append(np.asarray(cells, dtype=None if cells else np.int64))
    return found
