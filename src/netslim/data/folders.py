"""`folder:`: one sub-folder of pictures a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from netslim.data.pictures import common_shape, fit_memory, stream
from netslim.data.raw import Raw, roles
from netslim.data.splits import ImageStream
from netslim.errors import DataError


@dataclass(frozen=True, eq=False)
class _Files:
    """Pictures in files of their own."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> Path:
        return Path(self.paths[position])

    def where(self, position: int) -> str:
        return self.paths[position]


def read_folder(folder: Path, image_size: int | None, limit: int) -> Raw:
    """PATH/train and PATH/test (or val) with class sub-folders, or such folders in PATH itself."""
    places = {"train": folder}
    found = roles(child.name for child in folder.iterdir() if child.is_dir())
    if "train" in found:
        places = {role: folder / name for role, name in found.items()}
    scanned = {role: _scan(place) for role, place in places.items()}
    classes = tuple(scanned["train"].classes)
    for role, scan in scanned.items():
        _check_classes(scan, classes, places[role], places["train"])
    encoded = {}
    for role, scan in scanned.items():
        encoded[role] = _Files(tuple(path for path, _ in scan.samples))
    shape = common_shape(encoded["train"], image_size)
    streams: dict[str, ImageStream] = {}
    for role, scan in scanned.items():
        # By name: a split that lacks a class numbers those after it differently.
        labels = torch.tensor([classes.index(scan.classes[label]) for label in scan.targets])
        streams[role] = stream(encoded[role], labels, shape, image_size is not None)
    return Raw(fit_memory(streams, limit), classes)


def _scan(place: Path) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(place))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"{place}: {reason}; every class needs a sub-folder with its pictures"
        ) from error


def _check_classes(scan: Any, classes: tuple[str, ...], place: Path, train: Path) -> None:
    extra = sorted(set(scan.classes) - set(classes))
    if extra:
        raise DataError(
            f"{place}: class folder '{extra[0]}' is not in {train}, which has "
            f"{', '.join(classes[:10])}; both need the same classes"
        )
