"""Sets that are too large for memory: folders, shards and streams, cut at random while decoded."""

from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from large_data import CLASSES, SIZE, WRITERS, add, examples, jpeg, write_tables
from netslim.data import Data, ImageSequence, ImageStream, ImageTensors, Loader, RandomResizedCrop
from netslim.data import sequence as sequences
from netslim.data.fingerprint import fingerprint
from netslim.data.sources import load
from netslim.errors import DataError

SOURCES = ["folder", "wds", "hf"]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def opened(kind: str, place: Path, **options: object) -> Data:
    if kind == "hf":
        pytest.importorskip("datasets", reason="the extra 'hf' is not installed")
        options["streaming"] = True
    given = {"image_size": SIZE, "memory_limit": 0, "validation": 6} | options
    return load(f"{kind}:{place}", **given)  # type: ignore[arg-type]


def written(kind: str, place: Path, cut: tuple[int, ...] = (), count: int = 36) -> Path:
    WRITERS[kind](place / kind, "train", examples(count, cut))
    WRITERS[kind](place / kind, "val", examples(9))
    return place / kind


def batches(data: Data, workers: int, **options: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = Loader(
        data.train,
        8,
        shuffle=True,
        augment=RandomResizedCrop(),
        mean=data.mean,
        std=data.std,
        workers=workers,
        **options,  # type: ignore[arg-type]
    )
    loader.set_epoch(1)
    return list(loader)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_splits(kind: str, tmp_path: Path) -> None:
    data = opened(kind, written(kind, tmp_path))
    assert isinstance(data.train, ImageSequence if kind == "hf" else ImageStream)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 6, 9)
    assert data.classes == CLASSES
    assert data.shape == (3, SIZE, SIZE)
    for split in (data.train, data.validation, data.test):
        counts = torch.bincount(split.labels, minlength=3)
        assert counts.tolist() == [len(split) // 3] * 3
    assert any("'val' serves as one" in note for note in data.notes)


@pytest.mark.parametrize("kind", SOURCES)
def test_the_order_is_that_of_the_seed_with_any_workers(kind: str, tmp_path: Path) -> None:
    data = opened(kind, written(kind, tmp_path))
    alone, together = batches(data, 0), batches(data, 2)
    assert len(alone) == len(together) == 4
    for (images, labels), (others, other_labels) in zip(alone, together, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    other_seed = batches(data, 0, seed=1)
    assert not torch.equal(alone[0][0], other_seed[0][0])


@pytest.mark.parametrize("kind", SOURCES)
def test_held_out_pictures_are_in_no_training_batch(kind: str, tmp_path: Path) -> None:
    data = opened(kind, written(kind, tmp_path))
    seen = []
    for split in (data.train, data.validation):
        loader = Loader(split, 8, mean=data.mean, std=data.std, shuffle=True, workers=0)
        seen += [image.numpy().tobytes() for images, _ in loader for image in images]
    assert len(seen) == len(set(seen)) == 36


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_pictures_are_skipped_counted_and_named(
    kind: str, workers: int, tmp_path: Path
) -> None:
    place = written(kind, tmp_path, cut=(4, 20))
    data = opened(kind, place, validation=0, unreadable=0.1)
    loader = Loader(data.train, 8, mean=data.mean, std=data.std, shuffle=True, workers=workers)
    with pytest.warns(UserWarning, match="cannot be read, left out: 2 "):
        counts = [len(labels) for _, labels in loader]
    assert sum(counts) == 34
    assert len(loader.unreadable) == 2
    places = {
        "folder": ["bee/004.jpg", "cat/020.jpg"],
        "wds": ["0000.tar, 004.jpg", "0002.tar, 020.jpg"],
        "hf": ["shard 0, row 4", "shard 2, row 6"],
    }
    for said, where in zip(sorted(loader.unreadable), places[kind], strict=True):
        assert where in said
        assert "truncated" in said


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("workers", [0, 2])
def test_above_the_limit_the_epoch_stops(kind: str, workers: int, tmp_path: Path) -> None:
    data = opened(kind, written(kind, tmp_path, cut=(4, 20)), validation=0, unreadable=0.03)
    loader = Loader(data.train, 8, mean=data.mean, std=data.std, workers=workers)
    with pytest.raises(DataError, match=r"2 of 36 pictures: .* raise data.unreadable,"):
        list(loader)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_picture_comes_with_its_own_label(kind: str, tmp_path: Path) -> None:
    """The blue of picture n is 5 n, and its class n modulo 3."""
    data = opened(kind, written(kind, tmp_path), validation=0)
    loader = Loader(data.train, 8, mean=(0.0,) * 3, std=(1 / 51,) * 3, shuffle=True, workers=0)
    seen = []
    for images, labels in loader:
        numbers = images[:, 2].mean((1, 2)).round().int()
        assert (numbers % 3).tolist() == labels.tolist()
        seen += numbers.tolist()
    assert sorted(seen) == list(range(36))
    assert seen != sorted(seen)


def test_the_limit_is_of_what_a_process_takes(tmp_path: Path) -> None:
    """Of 18 pictures of each of two processes one may be left out, and the second stops it."""
    cut = (0, 2)  # both of rank 0, which takes every other one
    WRITERS["wds"](tmp_path, "train", examples(36, cut))
    WRITERS["wds"](tmp_path, "val", examples(9))
    data = opened("wds", tmp_path, validation=0, unreadable=1 / 18)
    first, second = (
        Loader(data.train, 6, mean=data.mean, std=data.std, workers=0, shard=(rank, 2))
        for rank in range(2)
    )
    assert len(list(second)) == 3
    with pytest.raises(DataError, match="2 of 18 pictures"):
        list(first)


@pytest.mark.parametrize("kind", SOURCES)
def test_processes_share_out_one_order(kind: str, tmp_path: Path) -> None:
    """As many batches each, and together what one would see; the share that is short sees its first
    picture again.
    """
    data = opened(kind, written(kind, tmp_path), validation=3)  # 33 for training
    shares = [batches(data, 0, shard=(rank, 2)) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 3]
    whole = [image.numpy().tobytes() for images, _ in batches(data, 0) for image in images]
    seen = [image.numpy().tobytes() for share in shares for images, _ in share for image in images]
    assert set(seen) == set(whole)


@pytest.mark.parametrize("kind", SOURCES)
def test_the_fingerprint_is_that_of_the_pictures(kind: str, tmp_path: Path) -> None:
    first = fingerprint(opened(kind, written(kind, tmp_path / "one")))
    again = fingerprint(opened(kind, written(kind, tmp_path / "two")))
    other = fingerprint(opened(kind, written(kind, tmp_path / "three", cut=(0, 1, 2, 3, 4, 5))))
    assert first["train"] == again["train"]
    assert first["train"]["labels"] == other["train"]["labels"]
    assert first["train"]["listing"] != other["train"]["listing"]


# --- random resized crops -------------------------------------------------------------------------


def test_a_part_comes_out_of_the_whole_picture(tmp_path: Path) -> None:
    """Of the whole 40 columns, not of the 16 in the middle: some parts hold the outermost ones."""
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, :4] = 255
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    data = load(f"folder:{tmp_path}", image_size=16, memory_limit=0, validation=0)
    brightest = []
    for epoch in range(4):
        loader = Loader(
            data.train, 4, mean=(0.0,) * 3, std=(1.0,) * 3, augment=RandomResizedCrop(), workers=0
        )
        loader.set_epoch(epoch)
        brightest += [float(image.max()) for images, _ in loader for image in images]
    assert max(brightest) == 1.0
    assert min(brightest) == 0.0


def test_a_part_is_what_torchvision_cuts_out() -> None:
    from torchvision.transforms import v2

    picture = Image.open(io.BytesIO(jpeg(7)))
    crop = RandomResizedCrop(scale=(0.2, 0.9), ratio=(0.5, 2.0))
    before = torch.get_rng_state()
    part = crop.cut(picture, (8, 12), 5)
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = v2.RandomResizedCrop((8, 12), scale=(0.2, 0.9), ratio=(0.5, 2.0))(picture)
    assert np.array_equal(np.asarray(part), np.asarray(expected))


def test_images_in_memory_are_cut_too() -> None:
    pixels = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).to(torch.uint8)
    split = ImageTensors(pixels, torch.tensor([0, 1]))
    crop = RandomResizedCrop(scale=(0.2, 0.5))
    loader = Loader(split, 2, augment=crop, mean=(0.0,) * 3, std=(1.0,) * 3)
    first, _ = next(iter(loader))
    assert first.shape == (2, 3, 8, 8)
    assert not torch.equal((first * 255).round().to(torch.uint8), pixels)
    same, _ = next(iter(loader))
    assert torch.equal(first, same)


def test_half_are_mirrored() -> None:
    images = torch.rand(1000, 1, 2, 2)
    crop = RandomResizedCrop()
    choices = crop.draw(1000, torch.Generator().manual_seed(0))
    mirrored = crop.mirror(images, choices)
    turned = (mirrored == images.flip(3)).all((1, 2, 3)).float().mean()
    assert 0.4 < float(turned) < 0.6
    unturned = RandomResizedCrop(flip=False)
    assert torch.equal(unturned.mirror(images, unturned.draw(1000, torch.Generator())), images)


@pytest.mark.parametrize(
    "options", [{"scale": (0.0, 1.0)}, {"scale": (0.5, 1.2)}, {"ratio": (2.0, 1.0)}]
)
def test_impossible_crops(options: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(options))} is .* to "):
        RandomResizedCrop(**options)


def test_the_middle_of_a_larger_picture(tmp_path: Path) -> None:
    """Brought to 32 pixels, of which the middle 16 are taken: a quarter of either side is left."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48] = 200
    for name in CLASSES:
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
        Image.fromarray(pixels).save(tmp_path / name / "1.png")
    data = load(f"folder:{tmp_path}", image_size=16, resize_size=32, validation=0)
    assert isinstance(data.train, ImageTensors)
    assert data.train.images[:, :, 1:-1, 1:-1].unique().tolist() == [200]
    assert data.preprocessing.resize_size == 32
    with pytest.raises(DataError, match="resize_size is 8; give at least image_size, here 16"):
        load(f"folder:{tmp_path}", image_size=16, resize_size=8)


# --- sequences ------------------------------------------------------------------------------------


class Counted:
    """Shards of numbers, that count how much is read."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.taken = 0

    def read(self, shard: int):  # type: ignore[no-untyped-def]
        start = sum(self.sizes[:shard])
        for number in range(start, start + self.sizes[shard]):
            self.taken += 1
            yield sequences.Arrived(bytes([number]), f"{number}")


def numbers(sizes: list[int]) -> tuple[Counted, ImageSequence]:
    shards, count = Counted(sizes), sum(sizes)
    split = ImageSequence(
        shards,
        torch.arange(count),
        torch.zeros(count).long(),
        (1, 1, 1),
        dict,  # type: ignore[arg-type]
    )
    return shards, split


def test_a_buffer_mixes_and_what_is_aside_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "BUFFER", 10)
    shards, split = numbers([20] * 10)
    order = split.shuffled(torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(200))
    assert order[:20].sort().values.tolist() != list(range(20))
    parts = list(order.split(4))
    for number, images in enumerate(split.arriving(parts)):
        got = [images[position].content[0] for position in parts[number].tolist()]  # type: ignore[attr-defined]
        assert got == parts[number].tolist()
        given = 4 * (number + 1)
        assert shards.taken - given <= 10 + 20
    assert shards.taken == 200


def test_what_was_not_chosen_is_not_waited_for() -> None:
    shards, split = numbers([5, 5, 5])
    few = split.take(torch.tensor([6, 8]))
    (images,) = few.arriving([torch.tensor([1, 0])])
    assert [images[place].content[0] for place in (0, 1)] == [6, 8]  # type: ignore[attr-defined]
    assert shards.taken <= 5


def test_a_shard_that_has_become_shorter() -> None:
    shards, split = numbers([5, 5])
    shards.sizes = [5, 5]
    kept = shards.read
    shards.read = lambda shard: (one for one in kept(shard) if one.content != b"\x09")  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"picture 9 is no longer there"):
        list(split.arriving([torch.arange(10)]))


# --- shards ---------------------------------------------------------------------------------------


def test_labels_in_json_and_class_names_in_the_labels(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for number in range(8):
            add(archive, f"a/{number}.seg.json", b"{}")
            add(archive, f"a/{number}.json", b'{"label": "%s"}' % CLASSES[number % 2].encode())
            add(archive, f"a/{number}.jpg", jpeg(number))
    data = load(f"wds:{tmp_path}", image_size=SIZE, validation=0)
    assert data.classes == CLASSES[:2]
    assert len(data.train) + len(data.test) == 8


def test_shards_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tar file"):
        load(f"wds:{tmp_path}", image_size=SIZE)
    file = tmp_path / "train-0.tar"
    with tarfile.open(file, "w") as archive:
        add(archive, "0.jpg", jpeg(0))
    with pytest.raises(DataError, match=r"0\.jpg has no label; beside it 0\.cls .* is needed"):
        load(f"wds:{tmp_path}", image_size=SIZE)
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(DataError, match=r"train-0\.tar: cannot be read as tar"):
        load(f"wds:{tmp_path}", image_size=SIZE)


def test_streaming_is_for_hugging_face_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="digits: streaming is for hf: data sets"):
        load("digits", streaming=True)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    write_tables(tmp_path, "train", examples(6))
    with pytest.raises(
        DataError, match=r"streamed need the extra 'hf': pip install 'netslim\[hf\]'"
    ):
        load(f"hf:{tmp_path}", streaming=True)


def test_nothing_is_decoded_before_it_is_needed(tmp_path: Path) -> None:
    """Of a stream a sample alone is looked at; no warning comes of the others."""
    place = written("wds", tmp_path, cut=(35,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened("wds", place, mean=(0.5,) * 3, std=(0.2,) * 3)
