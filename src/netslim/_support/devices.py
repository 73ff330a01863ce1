"""Threads and devices of torch, which is imported when one of these is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from netslim._support.arguments import brief, is_whole
from netslim._support.reading import first_line
from netslim.errors import ArgumentError

if TYPE_CHECKING:
    import torch

_MOST_THREADS = 2**16


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Inside, torch uses so many CPU threads; None leaves the number as it is.

    Raises:
        ArgumentError: the number is below 1.
    """
    if count is not None and not (is_whole(count) and 1 <= count <= _MOST_THREADS):
        raise ArgumentError(
            f"threads must be 1 to {_MOST_THREADS:,}, or None to leave the number as it is, got "
            f"{brief(count)}"
        )
    import torch  # here, so that names and files wait for nobody

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Inside, random numbers may be drawn and seeded; afterwards they go on as before."""
    import torch

    # Named, for PyTorch warns where there are several GPUs and nobody says which.
    begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cards = torch.cuda.device_count() if begun else 0
    with torch.random.fork_rng(range(cards)):
        yield


def as_device(name: torch.device | str | None) -> torch.device:
    """The device of a name; where tensors are made by default without one.

    Raises:
        ArgumentError: no device has this name.
    """
    import torch

    try:
        # Not torch.get_default_device, which fails in 2.6 once the default was taken back.
        return torch.empty(0).device if name is None else torch.device(name)
    except RuntimeError as problem:
        raise ArgumentError(f"there is no device {str(name)!r}: {first_line(problem)}") from None


__all__ = ["as_device", "own_random_numbers", "using_threads"]
