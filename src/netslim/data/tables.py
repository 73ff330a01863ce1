"""Pictures with a label each, before decoding: what becomes of them is the same for all sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from netslim.data.memory import read_pictures
from netslim.data.pictures import SAMPLE, Encoded, Form, Pictures, common_form, frames_note, held
from netslim.data.raw import Raw, Wanted
from netslim.data.sequence import Arrived, ImageSequence, Shards, sampled
from netslim.data.splits import Split
from netslim.errors import DataError

_SMALL = 64  # pixels of a side
_CLASSES = 100_000  # that a set may name and not show


@dataclass(frozen=True, eq=False)
class Labels:
    """The label cells of one split, and the class names if it has them."""

    cells: np.ndarray
    classes: tuple[str, ...] | None
    where: str


@dataclass(frozen=True, eq=False)
class Table:
    """One split of encoded pictures that are at hand by position."""

    encoded: Encoded
    labels: Labels


@dataclass(frozen=True, eq=False)
class Passing:
    """One split of encoded pictures that pass by, shard by shard."""

    shards: Shards
    labels: Labels


def raw_of(
    tables: Mapping[str, Table], name: str, wanted: Wanted, remarks: tuple[str, ...] = ()
) -> Raw:
    """The splits of a source, by role, in the form that is wanted.

    Raises:
        DataError: a label is none of the classes; as `read_pictures`.
    """
    classes = _classes(tables["train"].labels)
    form = common_form(tables["train"].encoded, wanted)
    splits = {
        role: (table.encoded, _numbers(table.labels, classes)) for role, table in tables.items()
    }
    raw = read_pictures(splits, classes, form, wanted)
    return replace(raw, notes=(*_small_jpegs(form, name), *raw.notes, *remarks))


def raw_of_passing(
    splits: Mapping[str, Passing], name: str, wanted: Wanted, remarks: tuple[str, ...] = ()
) -> Raw:
    """The same of splits that pass by: as sequences, of which nothing is decoded but a sample.

    Raises:
        DataError: a label is none of the classes, or no picture of the sample can be read.
    """
    training = splits["train"]
    classes = _classes(training.labels)
    form = common_form(Arrivals(sampled(training.shards, SAMPLE)), wanted)
    sequences: dict[str, Split] = {}
    for role, split in splits.items():
        labels = _numbers(split.labels, classes)
        sequences[role] = ImageSequence(
            split.shards,
            torch.arange(len(labels)),
            labels,
            form.shape,
            partial(_decoded, form),
            wanted.unreadable,
        )
    notes = (*_small_jpegs(form, name), *form.notes, *frames_note(form.several), *remarks)
    return Raw(sequences, classes, notes)


def _decoded(form: Form, arrived: Mapping[int, Arrived]) -> Pictures:
    return Pictures(Arrivals(arrived), form)


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Encoded pictures of a sequence that have arrived, by position."""

    arrived: Mapping[int, Arrived]

    def __len__(self) -> int:
        return len(self.arrived)

    def read(self, position: int) -> bytes:
        return held(self.arrived[position].content)

    def where(self, position: int) -> str:
        return self.arrived[position].where


def _classes(labels: Labels) -> tuple[str, ...]:
    """As they are declared, else those of the labels."""
    if labels.classes:
        return labels.classes
    if labels.cells.dtype.kind in "iu":
        largest = int(labels.cells.max())
        # Else one number in a file would decide how much memory is taken.
        if largest > _CLASSES + len(labels.cells):
            raise DataError(
                f"{labels.where}: a label is {largest}, and {len(labels.cells):,} rows have no so "
                "many classes; labels count from 0"
            )
        return tuple(str(label) for label in range(largest + 1))
    return tuple(sorted({str(label) for label in labels.cells}))


def _numbers(labels: Labels, classes: tuple[str, ...]) -> Tensor:
    """int64 labels; whether they fit the classes is checked for every source alike, in `load`."""
    cells = labels.cells
    if cells.dtype.kind in "iu":
        return torch.from_numpy(cells.astype(np.int64))
    number = {name: position for position, name in enumerate(classes)}
    unknown = sorted({str(label) for label in cells} - set(number))
    if unknown:
        raise DataError(
            f"{labels.where}: label '{unknown[0]}' is not one of the classes {', '.join(classes)}"
        )
    return torch.tensor([number[str(label)] for label in cells])


def _small_jpegs(form: Form, name: str) -> tuple[str, ...]:
    """A remark on small JPEG pictures: their originals (CIFAR, SVHN, ...) were not compressed."""
    _, height, width = form.shape
    if "JPEG" not in form.files or max(height, width) > _SMALL:
        return ()
    return (
        f"The {width}x{height} pictures of {name} are JPEG-compressed; "
        "errors run somewhat above those published for the original pictures.",
    )
