"""Make a small data set for detectors: handwritten digits on coloured, noisy canvases.

The digits are scikit-learn's, 1,797 pictures of real handwriting that need no download; those of
the validation pictures are others than those of the training pictures. Written as ultralytics reads
it: boxes, outlines for ``segment``, the first and last drawn pixel for ``pose``, and a folder for
each class for ``classify``.

    python examples/digit_scenes.py scenes                   # scenes/data.yaml, 400 + 100 pictures
    python examples/digit_scenes.py outlines --task segment
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

MOST = 4  # digits in a picture


def scene(
    digits: np.ndarray, labels: np.ndarray, size: int, draw: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """A picture (size, size, 3); of each digit its class and its drawn pixels (n, 2), x and y."""
    picture = draw.uniform(0, 120, 3) + draw.normal(0, 12, (size, size, 3))
    cells = draw.permutation(4)[: draw.integers(1, MOST + 1)]  # one digit a quarter: none overlap
    found = []
    for cell in cells:
        index = draw.integers(len(digits))
        scale = int(draw.integers(max(1, size // 40), max(2, size // 16) + 1))
        ink = np.kron(digits[index] / 16, np.ones((scale, scale)))
        left, top = (np.array([cell % 2, cell // 2]) * (size // 2)) + draw.integers(
            0, size // 2 - 8 * scale + 1, 2
        )
        part = picture[top : top + 8 * scale, left : left + 8 * scale]
        part += ink[..., None] * (draw.uniform(170, 255, 3) - part)
        drawn = np.argwhere(ink > 0.3)[:, ::-1] + (left, top)
        found.append((int(labels[index]), drawn))
    return picture.clip(0, 255).astype(np.uint8), found


def row(label: int, drawn: np.ndarray, size: int, task: str) -> str:
    """A line of a label file, all numbers as shares of the picture."""
    low, high = drawn.min(0) / size, (drawn.max(0) + 1) / size
    box = [*((low + high) / 2), *(high - low)]
    if task == "segment":
        numbers = [low[0], low[1], high[0], low[1], high[0], high[1], low[0], high[1]]
    elif task == "pose":
        numbers = [*box, *(drawn[0] / size), 2, *(drawn[-1] / size), 2]
    else:
        numbers = box
    return " ".join([str(label), *(f"{number:.5f}" for number in numbers)])


def write_scenes(
    folder: Path,
    train: int = 400,
    val: int = 100,
    size: int = 128,
    task: str = "detect",
    seed: int = 0,
) -> Path:
    """Write the pictures and labels; returns what ``yolo.train(data=...)`` takes."""
    digits, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(digits))
    halves = {"train": (order[:1200], train), "val": (order[1200:], val)}
    for number, (split, (chosen, count)) in enumerate(halves.items()):
        draw = np.random.default_rng([seed, number])
        images = digits[chosen].reshape(-1, 8, 8)
        for index, made in enumerate(
            scenes(images, labels[chosen], count, size, draw, single=task == "classify")
        ):
            write(folder, split, index, made, size, task)
    if task == "classify":
        return folder
    data = {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"}
    data |= {"names": {number: str(number) for number in range(10)}}
    if task == "pose":
        data |= {"kpt_shape": [2, 3]}
    path = folder / "data.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")  # which is YAML, too
    return path


Scene = tuple[np.ndarray, list[tuple[int, np.ndarray]]]


def scenes(
    digits: np.ndarray,
    labels: np.ndarray,
    count: int,
    size: int,
    draw: np.random.Generator,
    single: bool,
) -> Iterator[Scene]:
    for index in range(count):
        if single:  # all classes in turn, a digit a picture
            of_class = labels == index % 10
            picture, found = scene(digits[of_class], labels[of_class], size, draw)
            yield picture, found[:1]
        else:
            yield scene(digits, labels, size, draw)


def write(folder: Path, split: str, index: int, made: Scene, size: int, task: str) -> None:
    picture, found = made
    if task == "classify":
        path = folder / split / str(found[0][0]) / f"{index:05}.png"
    else:
        path = folder / "images" / split / f"{index:05}.png"
        text = folder / "labels" / split / f"{index:05}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("\n".join(row(*one, size, task) for one in found), encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--task", default="detect", choices=["detect", "segment", "pose", "classify"]
    )
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(write_scenes(**vars(options)))


if __name__ == "__main__":
    main()
