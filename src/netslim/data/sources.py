"""`load`: from the name of a data set to its three splits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import netslim.data.builtin as builtin
import netslim.data.folders as folders
import netslim.data.hub as hub
import netslim.data.parquet as parquet
import netslim.data.shards as shards
import netslim.data.streaming as streams
from netslim._support import checks_calls, is_whole, nearest
from netslim.data.preprocessing import CHANNELS, Preprocessing, check_normalisation
from netslim.data.raw import Raw, Wanted, recoloured
from netslim.data.splits import Data, ImageTensors, Split, channel_statistics, held_out, stratified
from netslim.data.unreadable import told
from netslim.errors import DataError

_FETCHED = "as torchvision keeps it; download, or NETSLIM_DOWNLOAD=1, fetches it"
# Form of a name -> what stands behind it.
KINDS = {
    "digits": "1,797 grey digits of 8 x 8 pixels, which come with scikit-learn",
    **{f"torchvision:{name}": _FETCHED for name in builtin.TORCHVISION},
    "folder:PATH": "pictures in a sub-folder for each class, in PATH, or PATH/train and PATH/test",
    "hf:ID-or-local-folder": "a set of the Hugging Face hub, or train*.parquet and test*.parquet",
    "wds:PATH": "WebDataset shards: train*.tar, and test*.tar or val*.tar",
}


@checks_calls
def load(
    name: str,
    *,
    root: str | Path | None = None,
    validation: float | int = 0.1,
    subset: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
    resize_size: int | None = None,
    channels: Literal["rgb", "grey"] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    download: bool = False,
    memory_limit: int = 4 << 30,
    unreadable: float = 0.01,
    streaming: bool = False,
) -> Data:
    """Read a data set by name.

    Pictures in files are turned as their EXIF data says and become 8-bit grey or RGB by the range
    of their values: 0 to 65535 for 16 bits; 0 to 1 or 0 to 255 for floating-point numbers, and 0 to
    255 or 0 to 65535 for 32-bit whole ones, whichever those of a sample fit into. What is
    transparent is laid over white; of several frames or pages the first is taken. A picture that
    cannot be read, or whose values lie outside of the range, is left out; how many and which is
    warned of and in `Data.notes`, and `Data.unreadable` lists them all.

    Args:
        name: `digits`; `torchvision:CIFAR10` (`CIFAR100`, `SVHN`, `SVHN+extra`, `MNIST`,
            `FashionMNIST`); `folder:PATH` (class sub-folders, in PATH or in PATH/train and
            PATH/test); `hf:PATH` (a folder with train*.parquet and test*.parquet) or `hf:ID` (a set
            of the hub); `wds:PATH` (WebDataset shards: train*.tar and test*.tar or val*.tar, in
            which NAME.jpg lies beside NAME.cls or NAME.json; classes.txt may name the classes, one
            a line). A relative PATH is looked for in the working directory, then in `root`.
        root: the folder that holds data sets; default the variable NETSLIM_DATA, else `data`.
        validation: share (below 1) or number of training images set apart, every class in
            proportion; 0 for none. A source with a validation split of its own keeps that.
        subset: train on so many of the images that are left, every class in proportion; None takes
            all.
        seed: chooses the validation images and the subset. The test images never depend on it.
        image_size: bring every picture to a square of so many pixels: its shorter side is brought
            to them, and the middle is cut out.
        resize_size: bring its shorter side to so many pixels first, and cut the square of
            `image_size` out of that (256 and 224 are usual for ImageNet).
        channels: turn grey pictures into RGB ones, or colours into grey; None leaves them as they
            are, and takes RGB where some are.
        mean, std: per channel, on the scale 0..1, for the images to be normalised by; by default
            those of the training split.
        download: let torchvision fetch what is missing; also on when the variable NETSLIM_DOWNLOAD
            is 1.
        memory_limit: bytes of decoded pixels up to which pictures are held in memory; larger sets
            stream.
        unreadable: share of a split's pictures that may be left out because they cannot be read.
        streaming: read an `hf:` data set shard by shard, without downloading it or holding it in
            memory; needs the extra `hf`.

    Returns:
        Data with `ImageTensors`, or `ImageStream`s where the pictures do not fit, or
        `ImageSequence`s of what is streamed.

    Raises:
        DataError: the name is unknown, files are missing or damaged, more pictures than allowed
            cannot be read, or an option is out of range.

    Example:
        >>> data = netslim.data.load("digits", validation=0.1, seed=0)
        >>> len(data.train), len(data.validation), len(data.test)
        (1294, 144, 359)
    """
    if channels is not None and channels not in CHANNELS:
        raise DataError(f"channels is {channels!r}; give {' or '.join(CHANNELS)}")
    wanted = Wanted(CHANNELS.get(channels or ""), image_size, resize_size, memory_limit, unreadable)
    if seed < 0:
        raise DataError(f"seed is {seed}; give 0 or a positive whole number")
    base = Path(root or os.environ.get("NETSLIM_DATA") or "data").expanduser()
    fetch = download or os.environ.get("NETSLIM_DOWNLOAD") == "1"
    if streaming and not name.startswith("hf:"):
        raise DataError(
            f"{name}: streaming is for hf: data sets; pictures in folders and shards are read as "
            "they are needed without it"
        )
    raw = _streamed(name, base, wanted) if streaming else _read(name, base, wanted, fetch)
    _check(name, raw)
    splits, notes = _parts(name, raw, validation, subset, seed)
    prepared = _prepared(splits["train"], mean, std, wanted, raw.classes)
    parts = splits["train"], splits["validation"], splits["test"]
    return Data(name, *parts, prepared, notes, raw.unreadable)


def _prepared(
    train: Split,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    wanted: Wanted,
    classes: tuple[str, ...],
) -> Preprocessing:
    """What is done to the pictures and is to be done to the images; by default as they are."""
    if mean is None and std is None:
        mean, std = channel_statistics(train)
    check_normalisation(mean, std, [train.shape[0]])
    assert mean is not None
    assert std is not None
    resized = wanted.image_size is not None
    size = train.shape[1:]
    return Preprocessing(tuple(mean), tuple(std), size, resized, classes, wanted.resize_size)


def _read(name: str, root: Path, wanted: Wanted, download: bool) -> Raw:
    kind, _, rest = name.partition(":")
    if name == "digits":
        return _brought(builtin.read_digits(), wanted)
    if kind == "torchvision" and rest in builtin.TORCHVISION:
        return _brought(builtin.read_torchvision(rest, root, download), wanted)
    if kind == "folder" and rest:
        return folders.read_folder(_folder(name, rest, root), wanted)
    if kind == "wds" and rest:
        return shards.read_shards(_folder(name, rest, root), name, wanted)
    if kind == "hf" and rest:
        local = _find(rest, root)
        if local is None:
            return hub.read_hub(rest, wanted)
        return parquet.read_folder(local, name, wanted)
    raise DataError(
        f"unknown data set '{name}'{nearest(name, KINDS, otherwise=_or_folder(name))} "
        f"Data sets are named {', '.join(KINDS)}."
    )


def _streamed(name: str, root: Path, wanted: Wanted) -> Raw:
    identifier = name.partition(":")[2]
    return streams.read_streaming(identifier, _find(identifier, root), wanted)


def _or_folder(name: str) -> str:
    """How a message on an unknown name goes on where it is that of a folder."""
    if name and ":" not in name and os.path.isdir(name):
        return f"; did you mean 'folder:{name}' (pictures in a sub-folder for each class)?"
    return "."


def _find(path: str, root: Path) -> Path | None:
    given = Path(path).expanduser()
    return next((place for place in (given, root / given) if place.is_dir()), None)


def _folder(name: str, path: str, root: Path) -> Path:
    found = _find(path, root)
    if found is None:
        raise DataError(
            f"{name}: there is no folder {Path(path).expanduser().absolute()}, nor {path} in {root}"
        )
    return found


def _brought(raw: Raw, wanted: Wanted) -> Raw:
    """Images that came as tensors, with the wanted channels and of the wanted size."""
    if wanted.channels is None and wanted.image_size is None:
        return raw
    notes = recoloured(raw.splits["train"].shape[0], wanted)
    splits: dict[str, Split] = {}
    for role, split in raw.splits.items():
        assert isinstance(split, ImageTensors)
        parts = [_converted(part, wanted) for part in torch.split(split.images, 1000)]
        splits[role] = ImageTensors(torch.cat(parts), split.labels)
    return replace(raw, splits=splits, notes=(*raw.notes, *notes))


def _converted(images: Tensor, wanted: Wanted) -> Tensor:
    from torchvision.transforms.v2 import functional

    size = wanted.image_size
    if wanted.channels == 1:
        images = functional.rgb_to_grayscale(images)
    if wanted.channels == 3:
        images = functional.grayscale_to_rgb(images)
    if size is not None and images.shape[2:] != (size, size):
        images = functional.resize(images, [wanted.resize_size or size], antialias=True)
        images = functional.center_crop(images, [size, size])
    return images


def _check(name: str, raw: Raw) -> None:
    """What every source has to satisfy, whatever it was read from."""
    count = len(raw.classes)
    if count < 2:
        raise DataError(f"{name}: has only one class ({raw.classes[0]}); a classifier needs two")
    for role, split in raw.splits.items():
        if not len(split):
            raise DataError(f"{name}: the {role} split holds no images")
        if isinstance(split, ImageTensors) and len(split.images) != len(split):
            raise DataError(
                f"{name}: the {role} split holds {len(split.images)} images but {len(split)} "
                "labels; copy or download it again"
            )
        wrong = ((split.labels < 0) | (split.labels >= count)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{name}: row {row} of the {role} split has the label {int(split.labels[row])}, "
                f"outside 0..{count - 1} of its {count} classes; correct or remove it"
            )


def _parts(
    name: str, raw: Raw, validation: float | int, subset: int | None, seed: int
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The three splits, and remarks on them."""
    splits = dict(raw.splits)
    if "test" not in splits:
        splits["train"], splits["test"] = builtin.split_off_test(splits["train"])
    if "validation" not in splits:
        train = splits["train"]
        rest, chosen = stratified(train.labels, held_out(validation, len(train)), seed)
        splits["train"], splits["validation"] = train.take(rest), train.take(chosen)
    notes = raw.notes
    if raw.unreadable:
        left_out = f"{name}: {told(raw.unreadable)}"
        warnings.warn(left_out, stacklevel=3)
        notes = (*notes, f"{left_out}.")
    if subset is not None and subset < len(splits["train"]):
        whole = splits["train"]
        splits["train"] = whole.take(stratified(whole.labels, _drawn(subset, raw), seed)[1])
        notes = (*notes, f"trained on {subset:,} of {len(whole):,} training images")
    return splits, notes


def _drawn(subset: int, raw: Raw) -> int:
    if not (is_whole(subset) and subset >= len(raw.classes)):
        raise DataError(
            f"subset is {subset!r}; give at least as many images as there are classes "
            f"({len(raw.classes)})"
        )
    return subset
