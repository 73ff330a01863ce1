"""`hf:`: data sets of the Hugging Face hub, downloaded by `datasets`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netslim._support import first_line
from netslim.data.parquet import class_names, columns_of
from netslim.data.pictures import held
from netslim.data.raw import Raw, Wanted, roles, standing_in
from netslim.data.tables import Labels, Table, raw_of
from netslim.errors import DataError

NEEDED = (
    "there is no such folder here or in the data root (set root or NETSLIM_DATA), and data sets of "
    "the hub"
)


@dataclass(frozen=True, eq=False)
class _HubRows:
    """Encoded pictures of a `datasets.Dataset`, which maps its files into memory."""

    dataset: Any
    column: str
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, position: int) -> bytes | Path:
        cell = self.dataset[int(position)][self.column] or {}
        if cell.get("path") and not cell.get("bytes"):
            return Path(cell["path"])
        return held(cell.get("bytes"))

    def where(self, position: int) -> str:
        return f"{self.name}, row {position}"


def read_hub(identifier: str, wanted: Wanted) -> Raw:
    """A data set of the Hugging Face hub, downloaded and cached by `datasets`.

    Raises:
        DataError: the extra `hf` is not installed, or the set cannot be had.
    """
    loaded = opened(f"hf:{identifier}", identifier, missing=NEEDED)
    found = roles(loaded)
    need_train(f"hf:{identifier}", loaded)
    tables = {}
    for role, split in found.items():
        tables[role] = _hub_table(loaded[split], f"hf:{identifier} {split}")
    return raw_of(tables, f"hf:{identifier}", wanted, standing_in(found))


def need_train(name: str, splits: Iterable[str]) -> None:
    """`DataError` unless one of the splits is for training."""
    if "train" not in roles(splits):
        raise DataError(f"{name}: has the splits {', '.join(splits)}; one called train is needed")


def opened(name: str, *what: str, missing: str, **how: Any) -> Any:
    """What `datasets.load_dataset` makes of its arguments.

    Args:
        name: of the data set, for messages.
        missing: what to say where `datasets` is not installed.

    Raises:
        DataError: the extra `hf` is not installed, or the set cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{name}: {missing} need the extra 'hf': pip install 'netslim[hf]'"
        ) from None
    try:
        return datasets.load_dataset(*what, **how)
    # The hub client raises a dozen unrelated types, all meaning "not to be had".
    except Exception as error:
        raise DataError(
            f"{name}: is neither a local folder nor to be had from the hub "
            f"({first_line(error)}); check the name and the connection"
        ) from error


def _hub_table(dataset: Any, where: str) -> Table:
    import datasets

    features = dataset.features.to_dict()
    image, label = columns_of(where, dataset.column_names, features)
    encoded = dataset.cast_column(image, datasets.Image(decode=False))
    labels = np.asarray(dataset.with_format("numpy", columns=[label])[:][label])
    return Table(
        _HubRows(encoded, image, where), Labels(labels, class_names(features, label), where)
    )
