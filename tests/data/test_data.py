"""Loading by name, damaged files of every kind, splits, augmentation, and batches that can be
repeated.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from netslim.data.augment import Augment
from netslim.data.loader import Loader
from netslim.data.raw import roles
from netslim.data.sources import load
from netslim.data.splits import (
    Data,
    ImageStream,
    ImageTensors,
    channel_statistics,
    held_out,
    stratified,
)
from netslim.errors import ArgumentError, DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def tensors(count: int = 20, channels: int = 3, size: int = 8, classes: int = 2) -> ImageTensors:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(
        0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator
    )
    return ImageTensors(images, torch.arange(count) % classes)


def encode(pixels: np.ndarray, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def picture(seed: int, size: int = 8, channels: int = 3) -> np.ndarray:
    shape = (size, size, channels) if channels > 1 else (size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def plain(loader: Loader) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images.cpu(), labels.cpu()) for images, labels in loader]


# --- names and options ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean 'digits'?"),
        ("cifar10", "did you mean 'torchvision:CIFAR10'"),
        ("torchvision:FashionMINST", "did you mean 'torchvision:FashionMNIST'"),
        ("folder:", "folder:PATH"),
        ("", "Data sets are named digits, torchvision:CIFAR10"),
    ],
)
def test_unknown_name_offers_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(DataError, match="unknown data set") as caught:
        load(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, -3, 5000])
def test_impossible_validation_share(share: object) -> None:
    with pytest.raises(DataError, match=r"validation is .*; give a share"):
        load("digits", validation=share)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [True, "many"])
def test_a_validation_share_of_another_kind(share: object) -> None:
    with pytest.raises(ArgumentError, match="validation must be a number"):
        load("digits", validation=share)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"image_size": 0}, {"seed": -1}])
def test_impossible_options(options: dict[str, int]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(options))} is"):
        load("digits", **options)  # type: ignore[arg-type]


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"folder:nowhere: there is no folder .*nowhere, nor nowhere in"
    ):
        load("folder:nowhere", root=tmp_path)


# --- digits ---------------------------------------------------------------------------------------


def test_digits() -> None:
    data = load("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (
        1294,
        144,
        359,
    )  # 1797 = 1438 + 359
    assert data.shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert isinstance(data.train, ImageTensors)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert int(data.train.images.max()) == 255
    assert torch.bincount(data.test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


def test_digits_test_images_do_not_depend_on_the_seed() -> None:
    first, second = load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(first.test.labels, second.test.labels)
    assert isinstance(first.test, ImageTensors)
    assert isinstance(second.test, ImageTensors)
    assert torch.equal(first.test.images, second.test.images)
    assert not torch.equal(first.validation.labels, second.validation.labels)


def test_digits_without_validation() -> None:
    data = load("digits", validation=0)
    assert (len(data.train), len(data.validation)) == (1438, 0)
    for shard in ((0, 1), (1, 2)):
        assert plain(Loader(data.validation, 32, mean=data.mean, std=data.std, shard=shard)) == []


def test_image_size_resizes_sets_in_memory() -> None:
    assert load("digits", image_size=12).shape == (1, 12, 12)


# --- splits and statistics ------------------------------------------------------------------------


def test_stratified_meets_the_count_and_the_proportions() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    rest, chosen = stratified(labels, 11, seed=3)
    # shares 6.6, 3.3, 1.1 of 11 round down to 6 + 3 + 1; the one left goes to the largest remainder
    assert torch.bincount(labels[chosen]).tolist() == [7, 3, 1]
    assert sorted(rest.tolist() + chosen.tolist()) == list(range(100))
    assert not torch.equal(chosen, stratified(labels, 11, seed=4)[1])
    assert torch.equal(chosen, stratified(labels, 11, seed=3)[1])


@pytest.mark.parametrize(
    ("option", "count"), [(0.1, 10), (0, 0), (0.0, 0), (25, 25), (25.0, 25), (1, 1)]
)
def test_held_out(option: float | int, count: int) -> None:
    assert held_out(option, 100) == count


def test_statistics_by_hand() -> None:
    images = torch.zeros(2, 2, 1, 2, dtype=torch.uint8)
    images[0, 0] = 255  # channel 0: 255 255 0 0 -> mean 1/2, deviation 1/2; channel 1 is constant
    mean, std = channel_statistics(ImageTensors(images, torch.zeros(2, dtype=torch.int64)))
    assert mean == (0.5, 0.0)
    assert std == (0.5, 1.0)


def test_statistics_match_torch_over_several_chunks() -> None:
    split = tensors(2500)
    mean, std = channel_statistics(split)
    values = split.images.double() / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), values.mean((0, 2, 3)))
    torch.testing.assert_close(
        torch.tensor(std, dtype=torch.float64), values.std((0, 2, 3), correction=0)
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train", "test"], {"train": "train", "test": "test"}),
        (["train", "val"], {"train": "train", "test": "val"}),
        (["train", "valid", "test"], {"train": "train", "validation": "valid", "test": "test"}),
        (["cats", "dogs"], {}),
    ],
)
def test_roles(names: list[str], expected: dict[str, str]) -> None:
    assert roles(names) == expected


# --- augmentation ---------------------------------------------------------------------------------


def reference(image: torch.Tensor, row: int, column: int, mirrored: int, pad: int) -> torch.Tensor:
    """Crop and mirror one image (C, H, W), slowly."""
    channels, height, width = image.shape
    canvas = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=image.dtype)
    canvas[:, pad : pad + height, pad : pad + width] = image
    crop = canvas[:, row : row + height, column : column + width]
    return crop.flip(2) if mirrored else crop


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_augmentation_matches_a_loop_over_images(device: str, channels: int, pad: int) -> None:
    images = torch.randint(
        0, 256, (12, channels, 6, 9), dtype=torch.uint8
    )  # not square: axes cannot be swapped
    last = 2 * pad
    offsets = [(0, 0), (0, last), (last, 0), (last, last), (pad, pad), (last // 2, min(1, last))]
    choices = torch.tensor([(*offset, mirrored) for mirrored in (0, 1) for offset in offsets])
    result = Augment(pad=pad)(images.to(device), choices.to(device)).cpu()
    expected = [
        reference(image, *choice, pad)
        for image, choice in zip(images, choices.tolist(), strict=True)
    ]
    assert torch.equal(result, torch.stack(expected))


def test_augmentation_by_hand() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    moved = Augment(pad=1)(image, torch.tensor([[0, 2, 0]]))  # up one, right one
    assert moved.tolist() == [[[[0, 0], [2, 0]]]]
    mirrored = Augment(pad=1)(image, torch.tensor([[1, 1, 1]]))
    assert mirrored.tolist() == [[[[2, 1], [4, 3]]]]


def test_augmentation_leaves_its_input_alone() -> None:
    images = tensors().images
    before = images.clone()
    result = Augment(pad=2)(images, torch.tensor([[2, 2, 0]]).expand(len(images), 3))
    assert torch.equal(result, before)
    result.zero_()
    assert torch.equal(images, before)


def test_draw_covers_every_offset_evenly() -> None:
    choices = Augment(pad=2).draw(10_000, torch.Generator().manual_seed(0))
    for column in (0, 1):
        counts = torch.bincount(choices[:, column])
        assert len(counts) == 5
        assert int(counts.min()) > 1800
        assert int(counts.max()) < 2200
    assert 0.48 < choices[:, 2].double().mean() < 0.52
    assert not Augment(flip=False).draw(100, torch.Generator())[:, 2].any()


def test_negative_padding() -> None:
    with pytest.raises(DataError, match="pad is -1"):
        Augment(pad=-1)


# --- loader ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalisation_is_exact(device: str, layout: torch.memory_format) -> None:
    split, mean, std = tensors(), (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)
    loader = Loader(split, 8, mean=mean, std=std, device=device, memory_format=layout)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [8, 8, 4]
    assert all(images.is_contiguous(memory_format=layout) for images, _ in batches)
    assert all(images.device.type == device == labels.device.type for images, labels in batches)
    view = (1, 3, 1, 1)
    expected = (split.images.double() / 255 - torch.tensor(mean).view(view)) / torch.tensor(
        std
    ).view(view)
    result = torch.cat([images for images, _ in batches]).cpu()
    torch.testing.assert_close(result, expected.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(torch.cat([labels for _, labels in batches]).cpu(), split.labels)


@pytest.mark.parametrize("device", DEVICES)
def test_same_epoch_same_batches(device: str) -> None:
    split = tensors(50)

    def fresh(seed: int = 5, where: str = device) -> Loader:
        augment = Augment(pad=2)
        return Loader(
            split,
            16,
            shuffle=True,
            augment=augment,
            mean=(0.5,) * 3,
            std=(0.2,) * 3,
            seed=seed,
            device=where,
        )

    loader = fresh()
    loader.set_epoch(3)
    first = plain(loader)
    loader.set_epoch(4)
    other = plain(loader)
    resumed = fresh()
    resumed.set_epoch(3)
    on_cpu = fresh(where="cpu")
    on_cpu.set_epoch(3)
    for again in (plain(resumed), plain(on_cpu)):
        torch.testing.assert_close(again, first)
    assert not torch.equal(first[0][1], other[0][1])
    reseeded = fresh(seed=6)
    reseeded.set_epoch(3)
    assert not torch.equal(first[0][0], plain(reseeded)[0][0])


def test_an_epoch_shows_every_image_once() -> None:
    images = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1)
    loader = Loader(
        ImageTensors(images, torch.arange(50)), 16, shuffle=True, mean=(0.0,), std=(1.0,)
    )
    seen = [
        (round(float(value) * 255), int(label))
        for x, y in loader
        for value, label in zip(x, y, strict=True)
    ]
    assert sorted(seen) == [(position, position) for position in range(50)]
    assert seen != sorted(seen)


@pytest.mark.parametrize("streamed", [False, True])
def test_random_state_of_the_process_is_neither_read_nor_moved(streamed: bool) -> None:
    held = tensors()
    split = ImageStream(list(held.images), held.labels, held.shape) if streamed else held
    loader = Loader(split, 8, shuffle=True, augment=Augment(), mean=(0.5,) * 3, std=(0.2,) * 3)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = plain(loader)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    torch.testing.assert_close(plain(loader), first, rtol=0, atol=0)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 8, 4]), (True, [8, 8])])
def test_drop_last(drop_last: bool, sizes: list[int]) -> None:
    loader = Loader(tensors(20), 8, mean=(0.5,) * 3, std=(0.2,) * 3, drop_last=drop_last)
    assert len(loader) == len(sizes)
    assert [len(labels) for _, labels in loader] == sizes


def test_shards_share_out_one_order() -> None:
    images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1)
    split = ImageTensors(images, torch.arange(7))

    def order(shard: tuple[int, int]) -> list[int]:
        loader = Loader(split, 2, shuffle=True, mean=(0.0,), std=(1.0,), seed=1, shard=shard)
        assert len(loader) == len(list(loader))
        return torch.cat([labels for _, labels in loader]).tolist()

    whole = order((0, 1))
    assert order((0, 2)) == whole[0::2]
    assert order((1, 2)) == whole[1::2]
    # A process that would lack the last batch gets the first image again, so that all take as many.
    assert order((1, 4)) == [whole[1], whole[5]]
    assert order((1, 6)) == [whole[1]]
    split = split.take(torch.arange(5))
    whole = order((0, 1))
    assert [order((rank, 2)) for rank in range(2)] == [whole[0::2], [*whole[1::2], whole[0]]]


def test_shares_of_a_batch_weigh_what_they_hold() -> None:
    split = ImageTensors(torch.zeros(9, 1, 1, 1, dtype=torch.uint8), torch.arange(9))
    loaders = [Loader(split, 2, mean=(0.0,), std=(1.0,), shard=(rank, 2)) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [3, 3]
    assert [loader.own_batches for loader in loaders] == [3, 2]
    # Two full batches of four; of the last image, rank 0 has all and rank 1 nothing.
    assert [[loader.weight(n) for n in range(3)] for loader in loaders] == [[1, 1, 2], [1, 1, 0]]
    assert [Loader(split, 9, mean=(0.0,), std=(1.0,), shard=(r, 2)).weight(0) for r in (0, 1)] == [
        10 / 9,
        8 / 9,
    ]
    alone = Loader(split, 2, mean=(0.0,), std=(1.0,))
    assert [alone.weight(n) for n in range(len(alone))] == [1] * 5
    complete = Loader(split, 2, mean=(0.0,), std=(1.0,), shard=(1, 2), drop_last=True)
    assert (len(complete), complete.own_batches) == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,), "std": (0.2,)}, "1 means and deviations for images of 3 channels"),
        ({"std": (0.2, 0.0, 0.2)}, "needs a finite mean and a positive deviation"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 21, "drop_last": True}, "20 images make no complete batch of 21"),
    ],
)
def test_impossible_loader(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Loader(tensors(20), **{"batch_size": 8, "mean": (0.5,) * 3, "std": (0.2,) * 3, **options})  # type: ignore


# --- torchvision ----------------------------------------------------------------------------------


def write_idx(file: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(
        size.to_bytes(4, "big") for size in array.shape
    )
    file.write_bytes(header + array.tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A tiny set in MNIST's layout; returns the folder of its four files."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 10)):
        rng = np.random.default_rng(count)
        write_idx(
            raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        )
        write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return raw


def test_torchvision_reads_its_own_layout(mnist: Path, tmp_path: Path) -> None:
    data = load("torchvision:MNIST", root=tmp_path, validation=10)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    assert torch.bincount(data.validation.labels).tolist() == [1] * 10
    assert data.shape == (1, 28, 28)
    assert isinstance(data.test, ImageTensors)
    stored = np.fromfile(mnist / "t10k-images-idx3-ubyte", dtype=np.uint8)[16:].reshape(
        10, 1, 28, 28
    )
    assert np.array_equal(data.test.images.numpy(), stored)


def test_root_defaults_to_the_environment(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSLIM_DATA", str(tmp_path))
    assert len(load("torchvision:MNIST").test) == 10


def test_missing_file_is_named_with_the_remedy(mnist: Path, tmp_path: Path) -> None:
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        DataError, match=r"t10k-labels-idx1-ubyte is missing; .*NETSLIM_DATA.*download: true"
    ):
        load("torchvision:MNIST", root=tmp_path)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "SVHN", "FashionMNIST"])
def test_missing_set_is_never_downloaded_unasked(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"torchvision:{name}: .* is missing"):
        load(f"torchvision:{name}", root=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [3, 4000])
def test_short_idx_file(mnist: Path, tmp_path: Path, keep: int) -> None:
    file = mnist / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        DataError, match=rf"train-images-idx3-ubyte: holds {keep:,} bytes .* truncated"
    ):
        load("torchvision:MNIST", root=tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"), [(0, "is whole: unpack it"), (40, "truncated or damaged")]
)
def test_only_a_compressed_file(mnist: Path, tmp_path: Path, damage: int, said: str) -> None:
    file = mnist / "train-labels-idx1-ubyte"
    packed = gzip.compress(file.read_bytes())
    file.with_name(file.name + ".gz").write_bytes(packed[: len(packed) - damage])
    file.unlink()
    with pytest.raises(DataError, match=said):
        load("torchvision:MNIST", root=tmp_path)


def test_images_and_labels_that_do_not_match(mnist: Path, tmp_path: Path) -> None:
    write_idx(mnist / "train-labels-idx1-ubyte", np.zeros(29, dtype=np.uint8))
    with pytest.raises(DataError, match=r"the train split holds 30 images but 29 labels"):
        load("torchvision:MNIST", root=tmp_path)


def test_label_out_of_range(mnist: Path, tmp_path: Path) -> None:
    write_idx(
        mnist / "t10k-labels-idx1-ubyte", np.array([0, 1, 2, 3, 4, 99, 6, 7, 8, 9], dtype=np.uint8)
    )
    with pytest.raises(
        DataError, match=r"row 5 of the test split has the label 99, outside 0\.\.9"
    ):
        load("torchvision:MNIST", root=tmp_path)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny set in CIFAR-10's layout, its checksums put in place of the real ones."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import calculate_md5

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, calculate_md5(folder / name)]

    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    entries = []
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (10, 3072), dtype=np.uint8)
        entries.append(write(name, {"data": pixels, "labels": list(range(10))}))
    meta = write("batches.meta", {"label_names": [f"class {number}" for number in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", entries[:5])
    monkeypatch.setattr(CIFAR10, "test_list", entries[5:])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    return folder


def test_cifar_layout(cifar: Path, tmp_path: Path) -> None:
    data = load("torchvision:CIFAR10", root=tmp_path, validation=0)
    assert (len(data.train), len(data.test), data.shape) == (50, 10, (3, 32, 32))
    assert data.classes[3] == "class 3"
    stored = np.random.default_rng(5).integers(0, 256, (10, 3072), dtype=np.uint8)
    assert isinstance(data.test, ImageTensors)
    assert np.array_equal(data.test.images.numpy().reshape(10, -1), stored)


def test_damaged_cifar(cifar: Path, tmp_path: Path) -> None:
    (cifar / "data_batch_3").write_bytes(b"half")
    with pytest.raises(
        DataError, match=r"torchvision:CIFAR10 under .*: cannot be read .*download: true"
    ):
        load("torchvision:CIFAR10", root=tmp_path)


def test_files_that_are_missing_and_cannot_be_downloaded(tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    message = r"data_batch_1 is missing, and cannot be downloaded \(no route.*data.root"
    with pytest.raises(DataError, match=message):
        load("torchvision:CIFAR10", root=tmp_path, download=True)


def test_svhn_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import calculate_md5

    entries = {}
    for role, count in (("train", 20), ("test", 10)):
        file = tmp_path / f"{role}_32x32.mat"
        pixels = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(
            file, {"X": pixels, "y": (np.arange(count) % 10 + 1)[:, None]}
        )  # 10 stands for the digit 0
        entries[role] = ["", file.name, calculate_md5(file)]
    monkeypatch.setattr(SVHN, "split_list", entries)
    data = load("torchvision:SVHN", root=tmp_path, validation=0)
    assert (len(data.train), len(data.test), data.shape) == (20, 10, (3, 32, 32))
    assert data.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert data.classes == tuple("0123456789")


# --- tables (hf:) ---------------------------------------------------------------------------------


def write_table(
    file: Path,
    cells: list[bytes | None],
    labels: list[object],
    *,
    names: list[str] | None = None,
    columns: tuple[str, str] = ("img", "label"),
) -> None:
    pictures = pa.array(
        [{"bytes": cell, "path": None} for cell in cells],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({columns[0]: pictures, columns[1]: pa.array(labels)})
    if names:
        features = {
            columns[0]: {"_type": "Image"},
            columns[1]: {"_type": "ClassLabel", "names": names},
        }
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, file)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """20 training and 8 test pictures of two classes."""
    folder = tmp_path / "pets"
    folder.mkdir()
    for part, count in (("train", 20), ("test", 8)):
        cells = [encode(picture(seed)) for seed in range(count)]
        write_table(
            folder / f"{part}.parquet",
            cells,
            [seed % 2 for seed in range(count)],
            names=["cat", "dog"],
        )
    return folder


def test_table(table: Path) -> None:
    data = load(f"hf:{table}", validation=4)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 8)
    assert data.classes == ("cat", "dog")
    assert data.notes == ()
    assert isinstance(data.test, ImageTensors)
    assert np.array_equal(data.test.images[3].permute(1, 2, 0).numpy(), picture(3))
    assert data.test.labels.tolist() == [0, 1] * 4


def test_relative_path_in_the_working_directory_or_the_root(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(load("hf:pets", root=tmp_path).test) == 8
    monkeypatch.chdir(tmp_path)
    assert len(load("hf:pets").test) == 8


def test_table_in_pieces_with_other_column_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    labels = ["dog", "cat", "dog", "cat"]
    for piece in range(2):
        cells = [encode(picture(10 * piece + seed)) for seed in range(4)]
        write_table(
            tmp_path / "data" / f"train-{piece:05}-of-00002.parquet",
            cells,
            labels,
            columns=("image", "fine_label"),
        )
    data = load(
        f"hf:{tmp_path}", validation=0
    )  # no test split: always the same fifth of every class
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (6, 2)
    assert torch.bincount(data.test.labels).tolist() == [1, 1]


def test_small_jpegs_are_remarked_upon(tmp_path: Path) -> None:
    cells = [encode(picture(seed), "JPEG") for seed in range(10)]
    write_table(tmp_path / "train.parquet", cells, [0, 1] * 5)
    (note,) = load(f"hf:{tmp_path}").notes
    assert "JPEG-compressed" in note
    assert "8x8" in note


def test_a_label_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    cells = [encode(picture(seed)) for seed in range(10)]
    write_table(tmp_path / "train.parquet", cells, [0, 10**12] * 5)
    with pytest.raises(DataError, match="a label is 1000000000000, and 10 rows have no so many"):
        load(f"hf:{tmp_path}")


def test_grey_pictures_have_one_channel_unless_some_are_in_colour(tmp_path: Path) -> None:
    cells = [encode(picture(seed, channels=1)) for seed in range(10)]
    write_table(tmp_path / "train.parquet", cells, [0, 1] * 5)
    assert load(f"hf:{tmp_path}").shape == (1, 8, 8)
    write_table(tmp_path / "train.parquet", [*cells[:9], encode(picture(9))], [0, 1] * 5)
    assert load(f"hf:{tmp_path}").shape == (3, 8, 8)


def test_pictures_of_several_sizes(tmp_path: Path) -> None:
    cells = [encode(picture(seed, size=8 if seed < 7 else 11)) for seed in range(10)]
    write_table(tmp_path / "train.parquet", cells, [0, 1] * 5)
    with pytest.raises(
        DataError, match=r"train.parquet, row 7: the picture is 11x11, others are 8x8; give image"
    ):
        load(f"hf:{tmp_path}")
    assert load(f"hf:{tmp_path}", image_size=6).shape == (3, 6, 6)


def test_truncated_table(table: Path) -> None:
    file = table / "test.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=r"test.parquet: cannot be read as parquet .* copy or download it again"
    ):
        load(f"hf:{table}")


def test_damage_inside_a_table(table: Path) -> None:
    file = table / "test.parquet"
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"test.parquet"):
        load(f"hf:{table}")


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "none"])
def test_damaged_picture_is_named_by_file_and_row(tmp_path: Path, form: str, damage: str) -> None:
    cells: list[bytes | None] = [encode(picture(seed, size=32), form) for seed in range(10)]
    whole = cells[4] or b""
    cells[4] = {
        "cut": whole[: len(whole) // 2],
        "noise": b"no picture",
        "empty": b"",
        "none": None,
    }[damage]
    write_table(tmp_path / "train.parquet", cells, [0, 1] * 5)
    with pytest.raises(
        DataError, match=r"train.parquet, row 4: the picture cannot be decoded .*replace or remove"
    ):
        load(f"hf:{tmp_path}")


def test_overwritten_png_does_not_end_the_process(tmp_path: Path) -> None:
    damaged = bytearray(encode(picture(4, size=32)))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 50] = bytes(50)
    cells = [encode(picture(seed, size=32)) for seed in range(9)]
    write_table(tmp_path / "train.parquet", [*cells, bytes(damaged)], [0, 1] * 5)
    with pytest.raises(DataError, match=r"train.parquet, row 9"):
        load(f"hf:{tmp_path}")


def test_row_is_counted_in_its_own_file(tmp_path: Path) -> None:
    good = [encode(picture(seed)) for seed in range(5)]
    write_table(tmp_path / "train-0.parquet", good, [0, 1, 0, 1, 0])
    write_table(tmp_path / "train-1.parquet", [*good[:2], b"bad", *good[3:]], [0, 1, 0, 1, 0])
    with pytest.raises(DataError, match=r"train-1.parquet, row 2:"):
        load(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (
            [0, 1, 0, 1, 0, 1, 7, 1, 0, 1],
            ["cat", "dog"],
            r"row 6 of the train split has the label 7, outside 0\.\.1",
        ),
        ([0, 1, 0, -1, 0, 1, 0, 1, 0, 1], None, r"row 3 of the train split has the label -1"),
        ([0] * 10, None, "has only one class"),
        ([0, None] * 5, None, "'label' has 5 rows without a label"),
        ([0.5, 1.0] * 5, None, "column 'label' holds double"),
    ],
)
def test_wrong_labels(
    tmp_path: Path, labels: list[object], names: list[str] | None, message: str
) -> None:
    cells = [encode(picture(seed)) for seed in range(10)]
    write_table(tmp_path / "train.parquet", cells, labels, names=names)
    with pytest.raises(DataError, match=message):
        load(f"hf:{tmp_path}")


def test_class_that_only_the_test_file_has(tmp_path: Path) -> None:
    cells = [encode(picture(seed)) for seed in range(4)]
    write_table(tmp_path / "train.parquet", cells, ["cat", "dog"] * 2)
    write_table(tmp_path / "test.parquet", cells, ["cat", "emu"] * 2)
    with pytest.raises(
        DataError, match=r"test.parquet: label 'emu' is not one of the classes cat, dog"
    ):
        load(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("page", "label"), "has no image column among page, label"),
        (("img", "weight"), "has no label column among img, weight"),
    ],
)
def test_unknown_columns(tmp_path: Path, columns: tuple[str, str], message: str) -> None:
    write_table(tmp_path / "train.parquet", [encode(picture(0))] * 2, [0, 1], columns=columns)
    with pytest.raises(DataError, match=message):
        load(f"hf:{tmp_path}")


def test_column_of_something_else(tmp_path: Path) -> None:
    pq.write_table(pa.table({"img": [1, 2], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="column 'img' holds int64, not encoded pictures"):
        load(f"hf:{tmp_path}")


def test_folder_without_tables_and_table_without_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no parquet file; train\*\.parquet"):
        load(f"hf:{tmp_path}")
    write_table(tmp_path / "train.parquet", [], [])
    with pytest.raises(DataError, match=r"train.parquet: holds no rows"):
        load(f"hf:{tmp_path}")


def test_hub_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"no such folder here .* pip install 'netslim\[hf\]'"):
        load("hf:nobody/nothing", root=tmp_path)


def test_hub_reader_on_local_tables(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="the extra 'hf' is not installed")
    from netslim.data.hub import read_hub
    from netslim.data.raw import Wanted

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    read = read_hub(str(table), Wanted(None, None, None, 1 << 30, 0.0))
    assert read.classes == ("cat", "dog")
    test = read.splits["test"]
    assert isinstance(test, ImageTensors)
    assert np.array_equal(test.images[3].permute(1, 2, 0).numpy(), picture(3))


# --- folders --------------------------------------------------------------------------------------


def write_folder(place: Path, classes: dict[str, int], size: int = 8) -> None:
    for name, count in classes.items():
        (place / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(picture(number, size)).save(place / name / f"{number:03}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "train", {"cat": 10, "dog": 10})
    write_folder(tmp_path / "test", {"cat": 3, "dog": 3})
    return tmp_path


def test_folder_with_train_and_test(folder: Path) -> None:
    data = load(f"folder:{folder}", validation=0.2)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 6)
    assert data.classes == ("cat", "dog")
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert isinstance(data.test, ImageTensors)
    assert np.array_equal(data.test.images[4].permute(1, 2, 0).numpy(), picture(1))


def test_one_folder_is_split_in_proportion(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 20, "dog": 10})
    first, second = (load(f"folder:{tmp_path}", validation=3, seed=seed) for seed in (0, 1))
    assert (len(first.train), len(first.validation), len(first.test)) == (21, 3, 6)
    assert torch.bincount(first.test.labels).tolist() == [4, 2]
    assert isinstance(first.test, ImageTensors)
    assert isinstance(second.test, ImageTensors)
    assert torch.equal(first.test.images, second.test.images)


def test_folder_with_a_validation_part_of_its_own(folder: Path) -> None:
    write_folder(folder / "val", {"cat": 2, "dog": 2})
    data = load(f"folder:{folder}", validation=0.5)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 4, 6)


def test_labels_follow_the_training_classes(folder: Path) -> None:
    shutil.rmtree(folder / "test" / "cat")
    assert load(f"folder:{folder}").test.labels.tolist() == [1, 1, 1]


def test_class_folder_that_training_lacks(folder: Path) -> None:
    write_folder(folder / "test", {"emu": 1})
    with pytest.raises(
        DataError, match=r"test: class folder 'emu' is not in .*train, which has cat, dog"
    ):
        load(f"folder:{folder}")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({}, "holds no folder; every class needs"),
        ({"cat": 3, "dog": 0}, "dog"),
        ({"cat": 3}, "only one class"),
    ],
)
def test_folder_that_cannot_be_used(tmp_path: Path, classes: dict[str, int], message: str) -> None:
    write_folder(tmp_path, classes)
    with pytest.raises(DataError, match=message):
        load(f"folder:{tmp_path}")


def test_damaged_file_is_named(folder: Path) -> None:
    file = folder / "train" / "dog" / "004.png"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match=r"dog.004\.png: the picture cannot be decoded"):
        load(f"folder:{folder}")


def test_resizing_keeps_the_middle(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        pixels = np.zeros((10, 30, 3), dtype=np.uint8)
        pixels[:, 10:20] = 200  # the central square of a wide picture
        for number in range(5):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    data = load(f"folder:{tmp_path}", image_size=10)
    assert isinstance(data.train, ImageTensors)
    assert data.train.images.unique().tolist() == [200]


def batches(data: Data, workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    augment = Augment(pad=1)
    loader = Loader(
        data.train,
        6,
        shuffle=True,
        augment=augment,
        mean=data.mean,
        std=data.std,
        seed=2,
        workers=workers,
    )
    loader.set_epoch(7)
    return plain(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_the_batches_that_memory_gives(folder: Path, workers: int) -> None:
    held, streamed = load(f"folder:{folder}"), load(f"folder:{folder}", memory_limit=1000)
    assert isinstance(streamed.train, ImageStream)
    assert (streamed.shape, len(streamed.train), len(streamed.validation)) == ((3, 8, 8), 18, 2)
    assert streamed.mean == held.mean  # fewer pictures than the sample takes
    torch.testing.assert_close(batches(streamed, workers), batches(held, 0), rtol=0, atol=0)


def test_a_stream_names_a_damaged_file_out_of_a_worker(folder: Path) -> None:
    data = load(f"folder:{folder}", memory_limit=1000)
    for file in (folder / "train").glob("*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"^[^\n]*\.png: the picture cannot be decoded"):
        batches(data, 2)


def test_a_stream_may_be_left_early(folder: Path) -> None:
    data = load(f"folder:{folder}", memory_limit=1000)
    loader = Loader(data.train, 2, mean=data.mean, std=data.std)
    first = next(iter(loader))
    torch.testing.assert_close(first, next(iter(loader)))


def test_large_pictures_are_decoded_by_threads_in_order(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 5, "dog": 5}, size=160)
    data = load(f"folder:{tmp_path}", validation=0)
    assert isinstance(data.train, ImageTensors)
    pairs = zip(data.train.images, data.train.labels.tolist(), strict=True)
    shown = {(label, image.numpy().tobytes()) for image, label in pairs}
    made = {
        (label, picture(n, 160).transpose(2, 0, 1).tobytes()) for label in (0, 1) for n in range(5)
    }
    assert len(shown) == 8
    assert shown <= made


# --- the real sets --------------------------------------------------------------------------------


def test_real_mnist(netslim_data: Path) -> None:
    data = load("torchvision:MNIST", root=netslim_data, validation=0)
    assert (len(data.train), len(data.test), data.shape) == (60_000, 10_000, (1, 28, 28))
    assert data.mean == pytest.approx((0.1307,), abs=1e-4)  # the figures everybody quotes
    assert data.std == pytest.approx((0.3081,), abs=1e-4)


def test_real_cifar10(netslim_data: Path) -> None:
    """As a stream: what is in memory comes from the same decoder, and 60,000 pictures take long."""
    data = load("hf:cifar10", root=netslim_data, memory_limit=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert torch.bincount(data.validation.labels).tolist() == [500] * 10
    assert data.classes[0] == "airplane"
    # Of 2,000 pictures, those that everybody quotes; the channels differ by more.
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=4e-3)
    assert "JPEG" in data.notes[0]
    assert isinstance(data.test, ImageStream)
    assert all(data.test.images[position].float().std() > 1 for position in range(0, 10_000, 100))
