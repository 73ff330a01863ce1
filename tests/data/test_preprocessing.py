"""What is done to pictures travels with the network, and one rule says which values are taken."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from netslim.data import load
from netslim.data.preprocessing import Preprocessing
from netslim.errors import DataError

ONE = Preprocessing((0.5,), (0.25,), (8, 8), False, ("a", "b"))


@pytest.fixture
def grey_folder(tmp_path):
    for role in ("train", "test"):
        for label in ("a", "b"):
            place = tmp_path / role / label
            place.mkdir(parents=True)
            for number in range(4):
                pixels = np.full((8, 8), 40 * number + 5, dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path


def test_the_statistics_are_those_of_the_training_split_unless_values_are_given():
    data = load("digits", validation=0.5)
    images = data.train.images / 255
    assert data.mean == pytest.approx([images.mean().item()], abs=1e-6)
    given = load("digits", validation=0.5, mean=[0.5], std=[0.25])
    assert (given.mean, given.std) == ((0.5,), (0.25,))


def test_grey_becomes_rgb_and_rgb_grey_where_it_is_wanted(grey_folder):
    name = f"folder:{grey_folder}"
    plain, rgb = load(name), load(name, channels="rgb")
    assert (plain.shape, rgb.shape) == ((1, 8, 8), (3, 8, 8))
    assert torch.equal(rgb.test.images, plain.test.images.expand(-1, 3, -1, -1))
    assert any("red, green and blue alike" in note for note in rgb.notes)
    assert not plain.notes
    assert load("digits", channels="rgb").shape == (3, 8, 8)
    assert load("digits", channels="grey").notes == ()


def test_images_that_come_as_tensors_are_resized_only_where_they_have_another_size():
    digits = load("digits", image_size=8)
    assert torch.equal(digits.test.images, load("digits").test.images)
    assert load("digits", image_size=6).shape == (1, 6, 6)


def test_normalised_images_are_those_of_the_loader():
    images = torch.tensor([[[[0, 255], [128, 64]]]], dtype=torch.uint8)
    want = torch.tensor([[[[-2.0, 2.0], [(128 / 255 - 0.5) * 4, (64 / 255 - 0.5) * 4]]]])
    torch.testing.assert_close(ONE.normalise(images), want)


def test_it_goes_through_json():
    assert Preprocessing.from_json(json.loads(json.dumps(ONE.to_json())), "file") == ONE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [0.5, 0.5]}, "one number each"),
        ({"mean": "0.5"}, "one number each"),
        ({"std": [0.0]}, "a positive deviation"),
        ({"std": [float("nan")]}, "finite"),
        ({"mean": [0.5, 0.5], "std": [0.5, 0.5]}, "1 or 3 channels"),
        ({"size": [8]}, "size"),
        ({"size": [8, 0]}, "size"),
        ({"size": [8.0, 8]}, "size"),
        ({"resize": 1}, "resize"),
        ({"classes": []}, "classes"),
        ({"classes": [1, 2]}, "classes"),
        ({"crop": 3}, "must hold mean, std, size, resize, classes"),
    ],
)
def test_a_damaged_one_is_refused_with_the_file_named(change, message):
    with pytest.raises(DataError, match=rf"net\.safetensors: .*{message}"):
        Preprocessing.from_json({**ONE.to_json(), **change}, "net.safetensors")


def test_impossible_wishes_are_refused():
    with pytest.raises(DataError, match="channels is 'cmyk'; give grey or rgb"):
        load("digits", channels="cmyk")
    with pytest.raises(DataError, match="3 means and deviations for images of 1 channels"):
        load("digits", mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(DataError, match="one number each"):
        load("digits", mean=[0.5])


def test_validation_images_that_serve_as_test_images_are_told(grey_folder):
    assert not load(f"folder:{grey_folder}").notes
    (grey_folder / "test").rename(grey_folder / "val")
    (note,) = load(f"folder:{grey_folder}").notes
    assert "'val' serves as one" in note
