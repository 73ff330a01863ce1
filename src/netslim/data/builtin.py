"""`digits` from scikit-learn and the small classic sets of torchvision, all held in memory."""

from __future__ import annotations

import gzip
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netslim._support import first_line
from netslim.data.raw import Raw
from netslim.data.splits import ImageTensors, stratified
from netslim.errors import DataError

TORCHVISION = ("CIFAR10", "CIFAR100", "FashionMNIST", "MNIST", "SVHN", "SVHN+extra")
_EXTRA = "+extra"
_SPLIT_SEED = 0
_TEST_SHARE = 0.2
# MNIST's file format: 0, 0, the data type (8: uint8), the number of dimensions, each as 4 bytes.
_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_digits() -> Raw:
    """scikit-learn's 1,797 handwritten digits, 8x8, grey levels 0..16 stretched to 0..255."""
    images, labels = _digits()
    train, test = split_off_test(ImageTensors(images.clone(), labels.clone()))
    return Raw({"train": train, "test": test}, tuple(str(digit) for digit in range(10)))


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Images and labels; they are a text file, which takes a while to read."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    return images, torch.from_numpy(bunch.target).long()


def split_off_test(whole: Any) -> tuple[Any, Any]:
    """(train, test) for a source without a test split: always the same fifth of every class."""
    rest, chosen = stratified(whole.labels, round(_TEST_SHARE * len(whole)), _SPLIT_SEED)
    return whole.take(rest), whole.take(chosen)


def read_torchvision(name: str, root: Path, download: bool) -> Raw:
    """One of `TORCHVISION`, from the files that torchvision keeps under `root`.

    `SVHN+extra` trains on the 531,131 further images too, as the papers do.

    Raises:
        DataError: files are missing (and `download` is off), damaged, or cannot be downloaded.
    """
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name.removesuffix(_EXTRA))
    extra = ("extra",) if name.endswith(_EXTRA) else ()
    if not download:
        _check_files(name, kind, root)
    try:
        parts = {}
        for role in ("train", *extra, "test"):
            parts[role] = _open(kind, name, root, role, download)
    # torchvision raises whatever its parsers meet: RuntimeError, EOFError, URLError, ...
    except Exception as error:
        raise _unreadable(name, kind, root, error) from error
    splits = {role: ImageTensors(_images(part), _labels(part)) for role, part in parts.items()}
    for role in extra:
        splits["train"] = _joined(splits["train"], splits.pop(role))
    classes = getattr(parts["train"], "classes", None) or [str(digit) for digit in range(10)]
    return Raw(dict(splits), tuple(classes))


def _unreadable(name: str, kind: Any, root: Path, error: Exception) -> DataError:
    """Files that could not be fetched are told otherwise than those that are there and damaged."""
    reason = first_line(error)
    missing = [file for file in _files(name, kind, root) if not file.exists()]
    if not missing:
        return DataError(
            f"torchvision:{name} under {root}: cannot be read ({reason}); remove the files and "
            "load with data.download: true"
        )
    return DataError(
        f"torchvision:{name}: {missing[0]} is missing, and cannot be downloaded ({reason}): set "
        "data.root (or NETSLIM_DATA) to the folder that holds the set, or copy it there from a "
        "machine that is connected"
    )


def _joined(first: ImageTensors, second: ImageTensors) -> ImageTensors:
    images = torch.cat((first.images, second.images))
    return ImageTensors(images, torch.cat((first.labels, second.labels)))


def _open(kind: Any, name: str, root: Path, role: str, download: bool) -> Any:
    if name.startswith("SVHN"):
        return kind(root=str(root), download=download, split=role)
    return kind(root=str(root), download=download, train=role == "train")


def _images(part: Any) -> Tensor:
    """uint8 (N, C, H, W) from any of the layouts torchvision holds its sets in."""
    pixels = torch.as_tensor(part.data)
    if pixels.ndim == 3:
        return pixels[:, None]
    if pixels.shape[1] == 3:
        return pixels
    return pixels.permute(0, 3, 1, 2)


def _labels(part: Any) -> Tensor:
    found = part.labels if hasattr(part, "labels") else part.targets
    return torch.as_tensor(found).long()


def _files(name: str, kind: Any, root: Path) -> list[Path]:
    """The files torchvision will read."""
    if name.startswith("SVHN"):
        wanted = ["train", "test"]
        if name.endswith(_EXTRA):
            wanted.insert(1, "extra")
        return [root / kind.split_list[role][1] for role in wanted]
    if name.startswith("CIFAR"):
        listed = [*kind.train_list, *kind.test_list, [kind.meta["filename"]]]
        return [root / kind.base_folder / entry[0] for entry in listed]
    return [root / name / "raw" / file for file in _IDX]


def _check_files(name: str, kind: Any, root: Path) -> None:
    """Say which file is missing or short before torchvision says only that something is."""
    for file in _files(name, kind, root):
        if not file.exists():
            raise DataError(
                f"torchvision:{name}: {file} is missing{_packed(file)}; set data.root (or "
                "NETSLIM_DATA) to the folder that holds the set, or load with data.download: true"
            )
        if file.name in _IDX:
            _check_idx(file)


def _packed(file: Path) -> str:
    """What a compressed copy beside a missing file is worth."""
    packed = file.with_name(file.name + ".gz")
    if not packed.exists():
        return ""
    try:
        with gzip.open(packed) as stream:
            whole = sum(len(part) for part in iter(lambda: stream.read(1 << 20), b""))
    except (OSError, EOFError):
        whole = 0
    if not whole:
        return f" and {packed.name} beside it is truncated or damaged"
    return f" ({packed.name} beside it is whole: unpack it with gunzip)"


def _check_idx(file: Path) -> None:
    """Compare a file of the MNIST family with the size that its header promises."""
    content = file.stat().st_size
    with file.open("rb") as stream:
        header = stream.read(16)
    dimensions = header[3] if len(header) == 16 else 0
    promised = 0
    if dimensions:
        starts = range(4, 4 + 4 * dimensions, 4)
        sizes = [int.from_bytes(header[at : at + 4], "big") for at in starts]
        promised = 4 + 4 * dimensions + prod(sizes)
    if header[:3] != b"\0\0\x08" or dimensions not in (1, 3) or content != promised:
        raise DataError(
            f"{file}: holds {content:,} bytes where its header promises {promised:,}; it is "
            "truncated or damaged: remove it and copy or download it again"
        )
