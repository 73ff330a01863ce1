"""Pictures of every kind: what their values stand for, which files are taken, what is left out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from netslim.data.augment import Augment
from netslim.data.loader import Loader
from netslim.data.modes import in_bytes, is_grey
from netslim.data.sources import load
from netslim.data.splits import Data, ImageStream, ImageTensors
from netslim.errors import DataError

SIDE = 4


def filled(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), value)


def write(place: Path, pictures: list[Image.Image], ending: str = "png", **options: Any) -> None:
    """Two classes of the same pictures."""
    for name in ("cat", "dog"):
        (place / name).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            picture.save(place / name / f"{number}.{ending}", **options)


def read(place: Path, **options: Any) -> Data:
    return load(f"folder:{place}", validation=0, **options)


def values(data: Data) -> list[int]:
    """Those that occur in the training and test pictures."""
    found: set[int] = set()
    for split in (data.train, data.test):
        assert isinstance(split, ImageTensors)
        found |= set(split.images.unique().tolist())
    return sorted(found)


def count(data: Data) -> int:
    return len(data.train) + len(data.test)


# --- what values stand for ------------------------------------------------------------------------


def palette(alpha: int | None = None) -> Image.Image:
    picture = Image.new("P", (SIDE, SIDE), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    if alpha is not None:
        picture.info["transparency"] = bytes([255, alpha])
    return picture


def of_values(value: int, dtype: str) -> Image.Image:
    return Image.fromarray(np.full((SIDE, SIDE), value, dtype=dtype))


def half_over_white(colour: int) -> int:
    return round(colour * 128 / 255 + 255 * 127 / 255)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (filled("1", 1), (255,)),
        (filled("L", 77), (77,)),
        (filled("LA", (40, 128)), (half_over_white(40),)),
        (filled("LA", (40, 0)), (255,)),
        (filled("La", (20, 128)), (half_over_white(40),)),
        (of_values(65535, "<u2"), (255,)),
        (of_values(77 * 257, "<u2"), (77,)),
        (of_values(77 * 257, ">u2"), (77,)),
        (of_values(77, "<i4"), (77,)),
        (of_values(77 * 257, "<i4"), (77,)),
        (filled("F", 0.5), (128,)),
        (filled("F", 77.0), (77,)),
        (palette(), (10, 20, 30)),
        (palette(alpha=0), (255, 255, 255)),
        (palette(alpha=128), (half_over_white(10), half_over_white(20), half_over_white(30))),
        (filled("RGB", (10, 20, 30)), (10, 20, 30)),
        (filled("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (filled("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (filled("RGBa", (5, 10, 15, 128)), (132, 137, 142)),
        (filled("RGBX", (10, 20, 30, 0)), (10, 20, 30)),
        (filled("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (filled("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
        (filled("YCbCr", (77, 128, 128)), (77, 77, 77)),
        (filled("LAB", (255, 128, 128)), (255, 255, 255)),
        (filled("HSV", (0, 255, 255)), (255, 0, 0)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_mode(picture: Image.Image, expected: tuple[int, ...]) -> None:
    assert is_grey(picture) == (len(expected) == 1)
    shown = np.asarray(in_bytes(picture, len(expected), {}))[0, 0]
    np.testing.assert_allclose(np.atleast_1d(shown), expected, atol=1)


@pytest.mark.parametrize("mode", ["LAB", "HSV", "CMYK", "YCbCr", "RGBA", "P", "RGBa"])
def test_colour_among_grey_pictures(mode: str) -> None:
    assert in_bytes(Image.new(mode, (SIDE, SIDE)), 1, {}).mode == "L"


def test_sixteen_bit_grey_is_not_white(tmp_path: Path) -> None:
    write(tmp_path, [of_values(level * 257, "<u2") for level in range(0, 256, 51)])
    assert values(read(tmp_path)) == [0, 51, 102, 153, 204, 255]


def test_sixteen_bit_greymap(tmp_path: Path) -> None:
    """PIL gives these as 32-bit whole numbers; a dark one is still dark."""
    write(tmp_path, [of_values(100, "<u2")] * 5, "pgm")
    assert values(read(tmp_path)) == [0]


@pytest.mark.parametrize(("scale", "white"), [(1 / 255, 1), (1, 255)])
def test_floats(tmp_path: Path, scale: float, white: int) -> None:
    write(tmp_path, [filled("F", level * scale) for level in range(0, 256, 51)], "tiff")
    data = read(tmp_path)
    assert values(data) == [0, 51, 102, 153, 204, 255]
    assert (
        f"floating-point numbers are taken to go from 0 (black) to {white} (white)" in data.notes[0]
    )


def test_pictures_of_two_ranges_in_one_set_are_told(tmp_path: Path) -> None:
    write(tmp_path, [filled("F", level) for level in (0.25, 200, 0.5, 1, 0)], "tiff")
    (note,) = [note for note in read(tmp_path).notes if "all but black" in note]
    assert note.startswith("4 of the 10 pictures looked at have floating-point numbers between 0")
    assert "Scale them to 255: " in note


def test_a_dark_picture_has_the_range_of_its_set(tmp_path: Path) -> None:
    write(tmp_path, [filled("F", level) for level in (1, 200, 1, 1, 200)], "tiff")
    assert values(read(tmp_path)) == [1, 200]


@pytest.mark.parametrize("value", [-0.5, 300.0, float("nan"), float("inf")])
def test_floats_of_no_known_range(tmp_path: Path, value: float) -> None:
    write(tmp_path, [filled("F", 0.5)] * 4 + [filled("F", value)], "tiff")
    with pytest.raises(DataError, match=r"cat.4\.tiff: .*its floating-point numbers go from .* to"):
        read(tmp_path)


def test_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    pixels = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
    write(tmp_path, [Image.fromarray(pixels)] * 5, exif=exif)
    data = read(tmp_path)
    assert isinstance(data.test, ImageTensors)
    assert np.array_equal(data.test.images[0, 0].numpy(), pixels[::-1, ::-1])


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tiff"])
def test_of_several_frames_the_first(tmp_path: Path, ending: str) -> None:
    write(tmp_path, [filled("L", 0)] * 4, "png")
    options: dict[str, Any] = {"save_all": True, "append_images": [filled("L", 255)]}
    for name in ("cat", "dog"):
        filled("L", 0).save(tmp_path / name / f"moving.{ending}", **options)
    for limit in (4 << 30, 0):  # in memory, and streamed
        data = read(tmp_path, memory_limit=limit)
        assert data.mean[0] == 0
        (note,) = data.notes
        assert f"the first is taken ({tmp_path}/cat/moving.{ending}, {tmp_path}/dog" in note


# --- which files ----------------------------------------------------------------------------------


@pytest.fixture
def nine(tmp_path: Path) -> Path:
    for number, name in enumerate(("ant", "bee", "cow")):
        (tmp_path / "set" / name / "deep").mkdir(parents=True)
        for where in ("1.png", "2.png", "deep/3.png"):
            filled("L", number).save(tmp_path / "set" / name / where)
    return tmp_path / "set"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_pipes_among_pictures_are_left_aside(nine: Path) -> None:
    """Opening one would wait for ever."""
    before = count(read(nine))
    os.mkfifo(nine / "bee" / "pipe.png")
    (nine / "bee" / "link.png").symlink_to(nine / "bee" / "pipe.png")
    data = read(nine)
    assert count(data) == before
    assert any("pipes, sockets and devices, left aside: " in note for note in data.notes)


@pytest.mark.parametrize("target", ["..", ".", "../..", "../bee", "deep", "../bee/deep", "loop"])
def test_links_that_lead_back(nine: Path, target: str) -> None:
    link = nine / "ant" / "loop"
    link.symlink_to(target, target_is_directory=True)
    data = read(nine)
    assert count(data) == 9
    for split in (data.train, data.test):
        assert isinstance(split, ImageTensors)
        assert torch.equal(split.images[:, 0, 0, 0].long(), split.labels)
    assert f": 1 ({link})." in data.notes[0]


def test_links_that_lead_to_more(nine: Path) -> None:
    pool = nine.parent / "pool"
    pool.mkdir()
    filled("L", 9).save(pool / "more.png")
    filled("L", 9).save(nine.parent / "single.png")
    (pool / "back").symlink_to(nine / "ant", target_is_directory=True)
    (nine / "ant" / "0pool").symlink_to(pool, target_is_directory=True)
    (nine / "bee" / "pool").symlink_to(pool, target_is_directory=True)
    (nine / "bee" / "4.png").symlink_to(nine.parent / "single.png")
    (nine / "cow" / "4.png").symlink_to(nine.parent / "single.png")
    (nine / "dog").symlink_to(nine / "cow" / "deep", target_is_directory=True)
    with pytest.raises(DataError, match="dog: holds no pictures; every class needs"):
        read(nine)
    (nine / "dog").unlink()
    data = read(nine)
    assert count(data) == 11
    assert "not followed: 3 (" in data.notes[0]


def test_other_files_are_named(nine: Path) -> None:
    (nine / "ant" / "notes.txt").write_text("an ant")
    (nine / "ant" / ".hidden").write_text("")
    assert ".webp), left aside: 1 (" in read(nine).notes[0]


# --- what cannot be read --------------------------------------------------------------------------


def spoilt(place: Path, total: int, bad: list[int]) -> list[Path]:
    write(place, [filled("L", 10 * number) for number in range(total // 2)])
    files = sorted(place.glob("*/*.png"), key=lambda file: (file.parent, int(file.stem)))
    for number in bad:
        files[number].write_bytes(b"no picture")
    return files


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    files = spoilt(tmp_path, 20, [3, 15])
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    with pytest.warns(
        UserWarning, match=r"pictures that cannot be read, left out: 3 \(.*cat.3\.png: .*; .*gone"
    ):
        data = read(tmp_path, unreadable=0.15)
    assert count(data) == 18
    assert [line.partition(":")[0] for line in data.unreadable] == [
        str(files[3]),
        str(tmp_path / "cat" / "gone.png"),
        str(files[15]),
    ]
    assert "pictures that cannot be read, left out: 3" in data.notes[-1]


def test_above_the_limit_it_stops(tmp_path: Path) -> None:
    spoilt(tmp_path, 20, [3, 15])
    with pytest.raises(
        DataError, match=r"cat.3\.png: .*dog.5\.png: .*; that is 2 of 20 pictures: "
    ):
        read(tmp_path, unreadable=0.09)


@pytest.mark.parametrize("replaced", [False, True])
def test_postscript_is_not_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """Nor where another library has replaced PIL's function by one that would try more formats."""
    spoilt(tmp_path, 20, [])
    filled("L", 0).save(tmp_path / "cat" / "0.png", "EPS")
    known = Image.open

    def trying_more(*args: Any, **kwargs: Any) -> Any:
        try:
            return known(*args, **kwargs)
        except UnidentifiedImageError:
            raise ModuleNotFoundError("No module named 'more_formats'")  # noqa: B904

    if replaced:
        monkeypatch.setattr(Image, "open", trying_more)
    with pytest.raises(DataError, match=r"cat.0\.png: .*not an image format that is known"):
        read(tmp_path)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_impossible_share(share: float) -> None:
    with pytest.raises(DataError, match="unreadable is"):
        load("digits", unreadable=share)


# Of Python 3.12 and newer, about workers of PyTorch where other tests have left a thread running.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_leaves_out_what_it_cannot_read(tmp_path: Path, workers: int) -> None:
    files = spoilt(tmp_path, 20, [])
    data = read(tmp_path, memory_limit=0, unreadable=0.1)
    assert isinstance(data.train, ImageStream)

    options: dict[str, Any] = {"mean": data.mean, "std": data.std, "workers": workers}
    loader = Loader(data.train, 6, shuffle=True, augment=Augment(1), **options)
    whole = list(loader)
    label, centre = int(whole[1][1][2]), float(whole[1][0][2, 0, 2, 2])
    number = round((centre * data.std[0] + data.mean[0]) * 255 / 10)
    path = tmp_path / ("cat", "dog")[label] / f"{number}.png"
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"pictures that cannot be read, left out: 1 \("):
        left = list(loader)
    assert [len(images) for images, _ in left] == [6, 5, 4]
    kept = torch.tensor([0, 1, 3, 4, 5])
    torch.testing.assert_close(left[1][0], whole[1][0][kept], rtol=0, atol=0)
    assert torch.equal(left[1][1], whole[1][1][kept])
    (said,) = loader.unreadable
    assert said.startswith(f"{path}: the picture cannot be decoded")
    for file in files[:8]:
        file.write_bytes(b"")
    with pytest.raises(DataError, match="pictures: replace or remove them"):
        list(loader)
