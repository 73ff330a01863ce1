"""From cut to device: float, cut, int8, and cut and int8, of ten small networks on CIFAR-10.

Each network is trained on a part of the training images, written as ONNX in float and in int8, cut
to half of its multiply-accumulates in widths of fours, trained on, and written in both again: the
stages of a recipe.
The four files then run in ONNX Runtime on one thread: the same test images for each, and times
taken in turn in one process, medians with quartiles. Training is short and the networks are small:
the table shows what each step costs and saves, not how good the networks can become.

    python benchmarks/devices.py [--networks ResNet-20 ...] [--work runs/devices] [--time-again]
    [--page docs/devices.md]

What is finished in --work is not done again, down to the epoch, and a row that is in
results/devices.json stays. Times are taken last, network after network, and anew by --time-again;
--page writes the table into the page.
"""

from __future__ import annotations

import argparse
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from _common import RESULTS, record, show, write_page

from netslim.measure.latency import timed
from netslim.report.numbers import percent, signed
from netslim.training.commands import looking
from netslim.training.loop.progress import Display
from netslim.training.recipe.reading import parse_recipe
from netslim.training.recipe.schema import Recipe
from netslim.training.stages.folder import RunFolder
from netslim.training.stages.quantize import InOnnxRuntime
from netslim.training.stages.runner import Runner

VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4}
NETWORKS: dict[str, dict[str, Any]] = {
    "VGG-16 / 4": {"name": "zoo:vgg16", "width": 0.25},
    "ResNet-20": {"name": "zoo:resnet20"},
    "ResNet-32 / 2": {"name": "zoo:resnet32", "width": 0.5},
    "PreResNet-20": {"name": "zoo:preresnet", "depth": 20},
    "DenseNet-16": {"name": "zoo:densenet", "depth": 16, "growth": 8},
    "ResNet-18": {"name": "torchvision:resnet18"},
    "MobileNetV2 / 2": {"name": "torchvision:mobilenet_v2", "width_mult": 0.5},
    "ResNet-10-T": {"name": "timm:resnet10t"},
    "RegNetX-200MF": {"name": "timm:regnetx_002"},
    "ViT, 4 blocks": {"name": "timm:vit_tiny_patch16_224", **VIT},
}
FORMS = ("float", "int8", "cut", "cut and int8")
STAGES = ("whole", "small")  # of quantize stages
IMAGES, EPOCHS, TUNED, TESTED = 4000, 3, 1, 5000
SEED = 0


def recipe_of(model: dict[str, Any]) -> Recipe:
    """From a fresh network to four files."""
    schedule = {"name": "onecycle"}
    optimizer: dict[str, Any] = {"lr": 0.05}
    if "vit" in model["name"]:
        optimizer = {"name": "adamw", "lr": 1e-3}
    training = {"optimizer": optimizer, "schedule": schedule}
    tuning = {"optimizer": {**optimizer, "lr": optimizer["lr"] / 5}, "schedule": schedule}
    return parse_recipe(
        {
            "name": "devices",
            "title": "From cut to device",
            "seed": SEED,
            "data": {
                "name": "hf:cifar10",
                "subset": IMAGES,
                "batch_size": 64,
                "augment": {"pad": 4, "flip": True},
            },
            "model": model,
            "trainer": {"threads": 1, "device": "cpu", "tensorboard": False},
            "stages": [
                {"kind": "train", "epochs": EPOCHS, **training},
                {"kind": "quantize", "name": STAGES[0]},
                {"kind": "prune", "budget": {"cut_macs": 0.5}, "round_to": 4},
                {"kind": "finetune", "epochs": TUNED, **tuning},
                {"kind": "quantize", "name": STAGES[1]},
            ],
        },
        whole=False,
    )


def place_of(label: str, work: Path) -> RunFolder:
    """The run folder of a network."""
    return RunFolder(work / re.sub(r"\W+", "-", label.lower()).strip("-"))


def files_of(label: str, work: Path) -> dict[str, Path]:
    """Its four files."""
    folder, files = place_of(label, work), list[Path]()
    for index, stage in enumerate(recipe_of(NETWORKS[label]).stages):
        if stage.kind == "quantize":
            forms = folder.stage(index, stage).forms
            files += [forms.exact, forms.int8]
    return dict(zip(FORMS, files, strict=True))


def running(files: dict[str, Path]) -> dict[str, InOnnxRuntime]:
    """The four files, loaded."""
    return {name: InOnnxRuntime(path.read_bytes()) for name, path in files.items()}


def row_of(label: str, work: Path) -> dict[str, Any]:
    """One network, made where it is not yet: what each of its four files knows, and its bytes."""
    recipe, folder, seconds = recipe_of(NETWORKS[label]), place_of(label, work), 0.0
    with folder.lock():
        folder.claim(recipe)
        runner = Runner(recipe, folder, Display(), "")
        for index, stage in enumerate(recipe.stages):
            seconds += runner.stage(index, stage)["seconds"]
    accuracy, labels = looking.accuracy(runner, "test", TESTED)
    files = files_of(label, work)
    forms = {
        name: {"accuracy": accuracy(one), "bytes": files[name].stat().st_size}
        for name, one in running(files).items()
    }
    found = {"model": NETWORKS[label], "images": len(labels), "seconds": round(seconds, 1)}
    return {**found, **forms}


def times_of(label: str, work: Path) -> dict[str, dict[str, float]]:
    """How long each of the four files takes for one image, in turn."""
    image = torch.zeros(1, 3, 32, 32)
    calls = {name: one.ready(image) for name, one in running(files_of(label, work)).items()}
    times = timed(calls, repeats=200, budget_seconds=8)
    return {
        name: {"median_ms": one.median_ms, "low_ms": one.low_ms, "high_ms": one.high_ms}
        for name, one in times.items()
    }


def markdown(rows: dict[str, Any]) -> str:
    """The table: accuracy with its difference, bytes, milliseconds with their quartiles."""
    lines = [
        f"| network | {' | '.join(FORMS)} | int8 is faster, whole and cut | all is faster | all is smaller |",
        "|---" * (len(FORMS) + 4) + "|",
    ]
    for label, row in rows.items():
        cells = [_cell(row, name) for name in FORMS]
        ratios = [
            f"{row['float']['median_ms'] / row['int8']['median_ms']:.2f} ×, "
            f"{row['cut']['median_ms'] / row['cut and int8']['median_ms']:.2f} ×",
            f"{row['float']['median_ms'] / row['cut and int8']['median_ms']:.1f} ×",
            f"{row['float']['bytes'] / row['cut and int8']['bytes']:.1f} ×",
        ]
        lines.append(f"| {' | '.join([label, *cells, *ratios])} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], name: str) -> str:
    one, accuracy = row[name], percent(row[name]["accuracy"], 1)
    if name != "float":
        accuracy += f" ({signed(100 * (one['accuracy'] - row['float']['accuracy']))})"
    return (
        f"{accuracy}, {one['bytes'] / 1e6:.2f} MB, {one['median_ms']:.2f} ms "
        f"({one['low_ms']:.2f} to {one['high_ms']:.2f})"
    )


def keep(rows: dict[str, Any]) -> None:
    """Write what is known so far."""
    settings = {"images": IMAGES, "epochs": EPOCHS, "tuned": TUNED, "seed": SEED}
    runtimes = {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript", "timm")}
    record("devices", {"settings": settings, "runtimes": runtimes, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--work", type=Path, default=Path("runs/devices"))
    parser.add_argument("--time-again", action="store_true")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path, rows = RESULTS / "devices.json", {}
    if path.exists():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for label in options.networks:
        if label not in rows:
            rows[label] = row_of(label, options.work)
            keep(rows)
    rows = {label: rows[label] for label in NETWORKS if label in rows}
    for label in options.networks:
        if options.time_again or "median_ms" not in rows[label]["float"]:
            for name, times in times_of(label, options.work).items():
                rows[label][name] |= times
            keep(rows)
    if options.page is not None:
        write_page(options.page, markdown(rows))
    show(
        "From cut to device",
        ["network", *FORMS],
        [[label, *(_cell(row, name) for name in FORMS)] for label, row in rows.items()],
    )


if __name__ == "__main__":
    main()
