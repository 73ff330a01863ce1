"""Measured latency: median milliseconds a call, several models timed side by side.

A machine is never equally fast for long: clocks rise and fall, others work on it. Two models that
are timed one after the other are timed on two machines. So all are timed in rounds, one sample
each, and what slows one down slows down all; every other round runs backwards, so that none always
runs in the cache, or the heat, that the same other one left behind. Medians and quartiles then
leave out the samples that something disturbed.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, overload

import torch
from torch import nn

from netslim._support import checks_calls, expect, using_threads
from netslim._support.progress import Progress, untold
from netslim.errors import ArgumentError, TraceError
from netslim.graph.modules.ambient import holding_values
from netslim.measure.backends import Call, Ready, prepared, usable
from netslim.measure.runtimes import Backend

SAMPLE_SECONDS = 1e-3  # a shorter sample would measure the clock and the scheduler
MIN_ROUNDS = 5  # fewer samples make quartiles meaningless
_LARGE_BLOCK = 31 << 20  # bytes


@checks_calls
@dataclass(frozen=True, slots=True)
class Latency:
    """How long one forward pass takes, in milliseconds a call (the whole example batch).

    `low_ms` and `high_ms` are the lower and upper quartile of `repeats` samples; `device` is where
    they ran, and `backend` what ran them.

    Example:
        >>> found: netslim.measure.Latency = netslim.latency(model, images, repeats=5)
        >>> found.low_ms <= found.median_ms <= found.high_ms
        True
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int
    device: str
    backend: str = "eager"

    def __str__(self) -> str:
        how = ""
        if self.backend != "eager":
            how = f", {self.backend}"
        return (
            f"{self.median_ms:.3g} ms ({self.low_ms:.3g} to {self.high_ms:.3g}) on "
            f"{self.device}{how}"
        )


@overload
def latency(
    models: nn.Module,
    example_inputs: Any,
    *,
    backend: Backend = ...,
    repeats: int = ...,
    budget_seconds: float = ...,
    warmup: int = ...,
    device: torch.device | str | None = ...,
    threads: int | None = ...,
) -> Latency: ...
@overload
def latency(
    models: Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    backend: Backend = ...,
    repeats: int = ...,
    budget_seconds: float = ...,
    warmup: int = ...,
    device: torch.device | str | None = ...,
    threads: int | None = ...,
) -> dict[str, Latency]: ...
@checks_calls
@holding_values()
def latency(
    models: nn.Module | Mapping[str, nn.Module],
    example_inputs: Any,
    *,
    backend: Backend = "eager",
    repeats: int = 50,
    budget_seconds: float = 5.0,
    warmup: int = 3,
    device: torch.device | str | None = None,
    threads: int | None = None,
) -> Latency | dict[str, Latency]:
    """Time the forward pass of one model, or of several by name.

    Several models are timed in turn, one sample each a round, so that a machine that slows down or
    speeds up does so for all of them. Evaluation mode, no gradients; a call shorter than a
    millisecond is repeated within its sample. The models keep their mode and their device: for
    another `device` a copy is timed.

    Args:
        models: a module, or modules by name.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, timed
            whole.
        backend: `eager` calls the module as it is; `compile` passes it through `torch.compile`, for
            these shapes alone; `aotinductor` compiles it ahead of time, as a program of its own;
            `onnxruntime` and `openvino` run it as ONNX, `onnxruntime-int8` as `netslim.quantize`
            writes it, with ranges of the example inputs, and `executorch` in that runtime; OpenVINO
            and ExecuTorch are timed on the CPU alone (`pip install netslim[onnx]`, `[openvino]`,
            `[executorch]`).
            Compiling and exporting come before the first sample, and the modules stay as they are.
        repeats: rounds, and so samples a model, at most (at least 5).
        budget_seconds: no new round begins after this many seconds, once there are 5.
        warmup: calls of each model before the first sample.
        device: where to run; by default where each model's parameters are.
        threads: CPU threads to use meanwhile (`torch.set_num_threads`, and the same number in the
            other runtimes); by default as set.

    Raises:
        ArgumentError: an option is out of range, a device or backend cannot be used here, the
            backend cannot take a model, or there is no model.
        TraceError: a model does not run on the example inputs.

    Example:
        >>> small = netslim.slim(model, images, budget=netslim.Budget(cut_macs=0.5))
        >>> times = netslim.latency({"before": model, "after": small}, images, repeats=5)
    """
    named = models if isinstance(models, Mapping) else {"model": models}
    if not named:
        raise ArgumentError(
            "latency: no model given; pass a module, or a dictionary of modules by name"
        )
    for model in named.values():
        expect(model, nn.Module, "each of models", "latency(model, example_inputs)")
    _check(repeats, budget_seconds, warmup)
    calls = {}
    with ExitStack() as stack:
        stack.enter_context(using_threads(threads))
        for name, model in named.items():
            call = prepared(model, example_inputs, backend, device, name)
            calls[name] = stack.enter_context(call)
        found = timed(calls, repeats=repeats, budget_seconds=budget_seconds, warmup=warmup)
    if named is models:
        return found
    return found["model"]


def timed(
    calls: Mapping[str, Call],
    *,
    repeats: int = 50,
    budget_seconds: float = 5.0,
    warmup: int = 3,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    progress: Progress = untold,
) -> dict[str, Latency]:
    """Time calls without arguments, in turn: what `latency` does once its models are ready.

    Args:
        calls: by name; what `netslim.measure.backends.prepared` gives knows its device and backend.
        repeats, budget_seconds, warmup, threads: as for `latency`.
        device: where plain functions compute; an accelerator has finished before the clock is read.
        progress: told how many rounds are done, between them.

    Raises:
        ArgumentError: an option is out of range, the device cannot be used, or there is no call.
        TraceError: a call fails.
    """
    if not calls:
        raise ArgumentError("latency: nothing to time; pass a dictionary of calls by name")
    _check(repeats, budget_seconds, warmup)
    plain = usable(device)
    runs = []
    for name, call in calls.items():
        runs.append(_Run(name, call if isinstance(call, Ready) else Ready(call, plain)))
    _raise_mmap_threshold()
    with using_threads(threads), torch.no_grad():
        for run in runs:
            progress(f"warming up {run.name}", 0, repeats)
            run.warm_up(warmup)
        with _no_collection():
            _sample(runs, repeats, budget_seconds, progress)
    return {run.name: run.result() for run in runs}


def _raise_mmap_threshold() -> None:
    """Free a large block, as a process that has run for a while has done.

    Until then glibc takes every large tensor from the system anew, and each call pays for its first
    touch: half of the time of a MobileNet, and that or not, depending on what ran before
    (mallopt(3), M_MMAP_THRESHOLD). The block is just below the 32 MiB up to which freeing one
    raises the threshold.
    """
    torch.empty(_LARGE_BLOCK, dtype=torch.uint8)


def _check(repeats: int, seconds: float, warmup: int) -> None:
    if repeats < MIN_ROUNDS:
        raise ArgumentError(
            f"latency: repeats={repeats}; at least {MIN_ROUNDS} are needed for a median with "
            "quartiles"
        )
    if not seconds > 0:
        raise ArgumentError(f"latency: budget_seconds={seconds}; give a positive number of seconds")
    if warmup < 1:
        raise ArgumentError(
            f"latency: warmup={warmup}; at least 1 call is needed, the first one is never typical"
        )


def _sample(
    runs: list[_Run], repeats: int, budget_seconds: float, progress: Progress = untold
) -> None:
    """One sample of every call a round, every other round backwards."""
    started = time.perf_counter()
    for done in range(repeats):
        if done >= MIN_ROUNDS and time.perf_counter() - started > budget_seconds:
            break
        # Backwards every other time, so that what slows down in the meantime is shared out alike.
        for run in runs[:: (-1) ** done]:
            run.sample()
        # Whichever ends first, the rounds or the time for them.
        spent = (time.perf_counter() - started) / budget_seconds
        progress("timing", min(repeats, max(done + 1, round(repeats * spent))), repeats)


class _Run:
    """One call, and the samples taken of it (seconds a call)."""

    def __init__(self, name: str, ready: Ready) -> None:
        self.name, self.ready = name, ready
        self.call = ready.call
        self.synchronise = synchroniser(ready.device)
        self.inner = 1
        self.samples: list[float] = []

    def warm_up(self, calls: int) -> None:
        """Make the first calls, and choose how many make one sample.

        The quickest of them decides, so that a call which is slow only at first still fills its
        sample.
        """
        try:
            took = min(self._time() for _ in range(calls + 1))
        except Exception as problem:
            raise TraceError(
                f"latency: {self.name!r} failed: {type(problem).__name__}: {problem}"
            ) from problem
        self.inner = max(1, math.ceil(SAMPLE_SECONDS / max(took, 1e-9)))

    def sample(self) -> None:
        self.samples.append(self._time())

    def result(self) -> Latency:
        quartiles = quantiles(self.samples, n=4, method="inclusive")
        low, median, high = (1e3 * seconds for seconds in quartiles)
        count, device = len(self.samples), str(self.ready.device)
        return Latency(median, low, high, count, device, self.ready.backend)

    def _time(self) -> float:
        self.synchronise()
        started = time.perf_counter()
        for _ in range(self.inner):
            self.call()
        self.synchronise()
        return (time.perf_counter() - started) / self.inner


def synchroniser(device: torch.device) -> Callable[[], object]:
    """What waits for an accelerator, which runs behind Python's back, to have finished."""
    if device.type in ("cpu", "meta"):
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection between two readings of the clock, as in `timeit`."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
