"""What a run ran on: machine, versions, threads."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import netslim.ranks as ranks
from netslim.errors import RecipeError
from netslim.measure.table.measuring import processor
from netslim.training.recipe.schema import TrainerOptions

# What adds the same numbers in another order, or rounds them otherwise: one seed gives one result
# only where these are the same.
_DECIDES = ("processor", "device", "precision", "threads", "processes")
_PACKAGES = ("netslim", "torchvision", "pytorch-lightning", "numpy")


def describe(device: torch.device, precision: str, command: str) -> dict[str, Any]:
    """Plain data for environment.json and the report."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": ranks.count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "python": sys.version.split()[0],
        "versions": versions(),
    }


def told(environment: Mapping[str, Any]) -> str:
    """What `describe` found of device, threads and processes, as one line."""
    device, precision, threads, processes = (environment[key] for key in _DECIDES[1:])
    text = f"computing on {device} in {precision}, CPU threads: {threads}"
    if processes > 1:
        text += f" in each of {processes} processes"
    return text


def moved(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """That a run goes on where it computes other bits than where it began, if it does."""
    parts = [
        f"{key} {now[key]}, before {then[key]}"
        for key in _DECIDES
        if key in then and then[key] != now[key]
    ]
    if not parts:
        return None
    return (
        f"this run goes on with other arithmetic than it began with ({'; '.join(parts)}): its "
        "figures may differ from those of a run in one go, at first by rounding alone"
    )


def choose_device(options: TrainerOptions) -> torch.device:
    """The device that `trainer.device` stands for.

    Raises:
        RecipeError: CUDA was asked for and there is none.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "trainer.device is cuda, but torch finds no CUDA GPU here; use --trainer.device cpu"
        )
    return _found(options)


def _found(options: TrainerOptions) -> torch.device:
    if options.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def choose_precision(options: TrainerOptions, device: torch.device) -> str:
    """`float32`, `bf16` or `fp16`; `auto` takes bf16 where it is native, for elsewhere it is slow,
    and where nothing is said a GPU does.
    """
    if options.precision is None and device.type == "cpu":
        return "float32"
    if options.precision not in (None, "auto"):
        return str(options.precision)
    if _native_bf16(device):
        return "bf16"
    return "float32"


def choose_layout(options: TrainerOptions, device: torch.device) -> torch.memory_format:
    """The layout of images and weights; where nothing is said, channels last on a GPU."""
    last = options.channels_last
    if last is None:
        last = device.type == "cuda" and options.strategy != "fsdp"
    return torch.channels_last if last else torch.contiguous_format


def settled(options: TrainerOptions) -> dict[str, Any]:
    """Those options that nothing was said of, as they are on this machine."""
    device = _found(options)
    layout = choose_layout(options, device)
    return {
        "precision": choose_precision(options, device),
        "channels_last": layout is torch.channels_last,
    }


def _native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)


def versions() -> dict[str, str]:
    """Of the packages that figures depend on."""
    return dict(_versions())


@cache  # each stage of a run asks, and reading a package's metadata takes milliseconds
def _versions() -> Mapping[str, str]:
    found = {"torch": str(torch.__version__)}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
