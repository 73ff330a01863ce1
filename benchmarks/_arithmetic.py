"""Processor time of a training step on a CPU: float32 and bf16, contiguous and channels last.

A stage of the runner each, on one thread, in turn. Processor time and not the clock's, for on a
shared machine that is the neighbours' as much as ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _captured import STAGE, Setting, watched
from _common import record, show

from netslim.training.recipe.schema import TrainerOptions

NETWORKS = ("resnet20", "vgg16", "densenet40")
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32", "channels_last": False},
    "float32, channels last": {"precision": "float32", "channels_last": True},
    "bf16": {"precision": "bf16", "channels_last": False},
    "bf16, channels last": {"precision": "bf16", "channels_last": True},
}
WARM_UP = 2
SUPPORTS = ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported")


def supported() -> dict[str, bool]:
    """What this processor has of what bf16 is fast with."""
    found = {name: getattr(torch.cpu, name, lambda: False)() for name in SUPPORTS}
    return {name.removeprefix("_is_").removesuffix("_supported"): found[name] for name in found}


def compare_arithmetic(
    networks: Sequence[str], *, width: float, batch: int, steps: int, rounds: int, out: Path
) -> None:
    """Measure, print and write the file after each round."""
    torch.set_num_threads(1)
    device, found = torch.device("cpu"), {name: {way: [] for way in WAYS} for name in networks}
    setting = {"batch": batch, "steps": steps, "width": width, "processor": supported()}
    for _ in range(rounds):
        for name in networks:
            for way, options in WAYS.items():
                trainer = TrainerOptions(device="cpu", tensorboard=False, threads=1, **options)
                seen = watched(
                    Setting(device, name, width, batch, steps), STAGE, trainer, warm_up=WARM_UP
                )
                found[name][way].append(seen.computing_ms)
        record(out.stem, {"setting": setting, "ms": found}, device, out.parent)
    rows = []
    for name, each in found.items():
        ms = [statistics.median(each[way]) for way in WAYS]
        rows.append([name, *(f"{value:.0f} ({value / ms[0]:.2f})" for value in ms)])
    show("Milliseconds of processor time a step (times float32): medians", ["", *WAYS], rows)
    print(", ".join(f"{what}: {there}" for what, there in supported().items()))
