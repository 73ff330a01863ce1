"""Whether the data path keeps up: a ResNet-18 trained from generated shards of ImageNet's kind.

    python benchmarks/data_path.py [--steps 300] [--batch 8] [--workers 1] [--pictures 1000]

JPEGs of ImageNet's usual size (500 by 375 pixels, some 110 KB) are written as class folders, as
WebDataset shards and as parquet files. Measured are pictures a second

*decoded*: read, decoded, cut at random to 224 pixels, normalised, by so many workers, from each of
the three (parquet files streamed, which needs the extra `hf`);
*step*: of the training step alone, on one batch that is at hand;
*both*: of training from the shards, with the share of the time in which the step waits for data,
workers' start at each epoch included.

Goal: the step waits for at most 5 % of the time. Where it is faster (a GPU), workers have to be
more: pictures a second of the step, divided by what one worker decodes.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import tarfile
import tempfile
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _common import record, show
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from netslim import models
from netslim.data import Data, Loader, RandomResizedCrop, load

CLASSES, SIZE, WIDTH, HEIGHT = 10, 224, 500, 375
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GOAL, WARM_UP, EACH = 0.05, 5, 250


def pictures(number: int) -> Iterator[tuple[bytes, int]]:
    """JPEGs with shapes and grain, and their labels."""
    random = np.random.default_rng(0)
    for position in range(number):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        )
        grain = random.normal(0, 12, (HEIGHT, WIDTH, 1))
        content = io.BytesIO()
        mixed = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(mixed).save(content, "JPEG", quality=90)
        yield content.getvalue(), position % CLASSES


def write(place: Path, number: int) -> float:
    """The three forms of one set; the mean size of a picture in bytes."""
    found = list(pictures(number))
    for split, part in (("train", found), ("val", found[:CLASSES])):
        for position, (content, label) in enumerate(part):
            file = place / "folder" / split / f"class{label}" / f"{position:06}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        for start in range(0, len(part), EACH):
            shard = part[start : start + EACH]
            _tar(place / "wds" / f"{split}-{start // EACH:06}.tar", shard)
            _table(place / "hf" / f"{split}-{start // EACH:05}.parquet", shard)
    return sum(len(content) for content, _ in found) / number


def _tar(file: Path, part: list[tuple[bytes, int]]) -> None:
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for position, (content, label) in enumerate(part):
            for ending, held in (("jpg", content), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{position:06}.{ending}")
                member.size = len(held)
                archive.addfile(member, io.BytesIO(held))


def _table(file: Path, part: list[tuple[bytes, int]]) -> None:
    file.parent.mkdir(exist_ok=True)
    images = [{"bytes": content, "path": None} for content, _ in part]
    pq.write_table(pa.table({"image": images, "label": [label for _, label in part]}), file)


def batches(data: Data, options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Training batches, epoch after epoch."""
    loader = Loader(
        data.train,
        options.batch,
        shuffle=True,
        augment=RandomResizedCrop(),
        mean=data.mean,
        std=data.std,
        device=options.device,
        drop_last=True,
        workers=options.workers,
    )
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader


def opened(place: Path, kind: str) -> Data:
    return load(
        f"{kind}:{place / kind}",
        image_size=SIZE,
        resize_size=256,
        validation=0.05,
        memory_limit=0,
        streaming=kind == "hf",
        **IMAGENET,
    )


def decoded(data: Data, options: argparse.Namespace, number: int) -> float:
    """Pictures a second out of the data path alone."""
    coming = batches(data, options)
    next(coming)
    started = time.perf_counter()
    for _ in islice(coming, number // options.batch):
        pass
    return number / (time.perf_counter() - started)


class Training:
    """A ResNet-18 with SGD."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        network = models.build("torchvision:resnet18", num_classes=CLASSES)
        self.network = network.to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
        self.losses: list[Tensor] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(self.network(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())
        if images.is_cuda:
            torch.cuda.synchronize()


def alone(batch: tuple[Tensor, Tensor], options: argparse.Namespace, steps: int) -> float:
    """Pictures a second of the step on one batch."""
    training = Training(options.device)
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            started = time.perf_counter()
        training.step(*batch)
    return steps * options.batch / (time.perf_counter() - started)


def both(data: Data, options: argparse.Namespace) -> dict[str, float]:
    """Training from the data: pictures a second, the share of waiting, the mean losses."""
    training, coming, waited = Training(options.device), batches(data, options), 0.0
    for number in range(WARM_UP + options.steps):
        if number == WARM_UP:
            started, waited = time.perf_counter(), 0.0
        asked = time.perf_counter()
        batch = next(coming)
        waited += time.perf_counter() - asked
        training.step(*batch)
    seconds = time.perf_counter() - started
    losses = torch.stack(training.losses).cpu()
    return {
        "pictures_per_second": options.steps * options.batch / seconds,
        "share_waited": waited / seconds,
        "seconds": seconds,
        "first_loss": float(losses[:20].mean()),
        "last_loss": float(losses[-20:].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    kinds = ["folder", "wds"]
    if importlib.util.find_spec("datasets") is not None:
        kinds.append("hf")
    with tempfile.TemporaryDirectory() as place:
        size = write(Path(place), options.pictures)
        sets = {kind: opened(Path(place), kind) for kind in kinds}
        rates = {kind: decoded(data, options, options.pictures // 2) for kind, data in sets.items()}
        step = alone(next(batches(sets["wds"], options)), options, max(10, options.steps // 10))
        trained = both(sets["wds"], options)
    rows = [[f"decoded, {kind}", f"{rate:.1f}", ""] for kind, rate in rates.items()]
    rows.append(["step", f"{step:.1f}", ""])
    waited = trained["share_waited"]
    rows.append(["both, wds", f"{trained['pictures_per_second']:.1f}", f"{waited:.1%}"])
    show("ResNet-18 at 224 pixels", ["", "pictures/s", "waited"], rows)
    met = waited <= GOAL
    print(
        f"the step waits for {waited:.1%} of the time; goal {GOAL:.0%}: {'met' if met else 'missed'}"
    )
    results = {
        "options": vars(options),
        "threads": torch.get_num_threads(),
        "bytes_per_picture": round(size),
        "decoded_per_second": rates,
        "step_per_second": step,
        "both": trained,
        "goal": GOAL,
        "met": met,
    }
    record("data_path", results, options.device)


if __name__ == "__main__":
    main()
