"""Measured latency: median milliseconds a call, several models timed side by side."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, overload

import torch
from torch import nn

from netslim.errors import PlanError, TraceError
from netslim.graph.calls import evaluating

SAMPLE_SECONDS = 1e-3  # a shorter sample would measure the clock and the scheduler
MIN_ROUNDS = 5  # fewer samples make quartiles meaningless

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one forward pass takes, in milliseconds a call (the whole example batch).

    `low_ms` and `high_ms` are the lower and upper quartile of `repeats` samples; `device` is where they ran.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int
    device: str

    def __str__(self) -> str:
        return f"{self.median_ms:.3g} ms ({self.low_ms:.3g} to {self.high_ms:.3g}) on {self.device}"


@overload
def latency(
    models: nn.Module,
    example_inputs: Any,
    *,
    repeats: int = ...,
    budget_seconds: float = ...,
    warmup: int = ...,
    device: torch.device | str | None = ...,
    threads: int | None = ...,
) -> Latency: ...
@overload
def latency(
    models: dict[str, nn.Module],
    example_inputs: Any,
    *,
    repeats: int = ...,
    budget_seconds: float = ...,
    warmup: int = ...,
    device: torch.device | str | None = ...,
    threads: int | None = ...,
) -> dict[str, Latency]: ...
def latency(
    models: nn.Module | dict[str, nn.Module],
    example_inputs: Any,
    *,
    repeats: int = 50,
    budget_seconds: float = 5.0,
    warmup: int = 3,
    device: torch.device | str | None = None,
    threads: int | None = None,
) -> Latency | dict[str, Latency]:
    """Time the forward pass of one model, or of several by name.

    Several models are timed in turn, one sample each a round, so that a machine that slows down or speeds up
    does so for all of them. Evaluation mode, no gradients; a call shorter than a millisecond is repeated
    within its sample. The models keep their mode and their device: for another `device` a copy is timed.

    Args:
        models: a module, or modules by name.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, timed whole.
        repeats: rounds, and so samples a model, at most (at least 5).
        budget_seconds: no new round begins after this many seconds, once there are 5.
        warmup: calls of each model before the first sample.
        device: where to run; by default where each model's parameters are.
        threads: CPU threads to use meanwhile (`torch.set_num_threads`); by default as set.

    Raises:
        PlanError: an option is out of range, a device cannot be used, or there is no model.
        TraceError: a model does not run on the example inputs.
    """
    named = models if isinstance(models, dict) else {"model": models}
    _check(named, repeats, budget_seconds, warmup, threads)
    with ExitStack() as stack:
        stack.enter_context(_threads(threads))
        stack.enter_context(torch.no_grad())
        runs = {name: _Run(name, model, example_inputs, device, stack) for name, model in named.items()}
        for run in runs.values():
            run.warm_up(warmup)
        stack.enter_context(_no_collection())
        _sample(list(runs.values()), repeats, budget_seconds)
    found = {name: run.result() for name, run in runs.items()}
    return found if isinstance(models, dict) else found["model"]


def _check(models: dict[str, nn.Module], repeats: int, seconds: float, warmup: int, threads: int | None) -> None:
    if not models:
        raise PlanError("latency: no model given; pass a module, or a dictionary of modules by name")
    if repeats < MIN_ROUNDS:
        raise PlanError(f"latency: repeats={repeats}; at least {MIN_ROUNDS} are needed for a median with quartiles")
    if not seconds > 0:
        raise PlanError(f"latency: budget_seconds={seconds}; give a positive number of seconds")
    if warmup < 1:
        raise PlanError(f"latency: warmup={warmup}; at least 1 call is needed, the first one is never typical")
    if threads is not None and threads < 1:
        raise PlanError(f"latency: threads={threads}; give 1 or more, or None to leave the number as it is")


def _sample(runs: list[_Run], repeats: int, budget_seconds: float) -> None:
    """One sample of every model a round; every other round runs backwards, so none always follows another."""
    started = time.perf_counter()
    for done in range(repeats):
        if done >= MIN_ROUNDS and time.perf_counter() - started > budget_seconds:
            break
        for run in runs if done % 2 == 0 else reversed(runs):
            run.sample()


class _Run:
    """One model with its inputs on its device, and the samples taken of it (seconds a call)."""

    def __init__(self, name: str, model: nn.Module, inputs: Any, device: Any, stack: ExitStack) -> None:
        self.name = name
        self.device = _home(model, inputs) if device is None else _usable(device)
        moved = _on(model, self.device)
        stack.enter_context(evaluating(moved))
        self.call = _bind(moved, _move(inputs, self.device))
        self.synchronise = _synchroniser(self.device)
        self.inner = 1
        self.samples: list[float] = []

    def warm_up(self, calls: int) -> None:
        """Run the model, and choose how many calls make one sample."""
        try:
            took = min(self._time() for _ in range(calls + 1))
        except Exception as problem:
            raise TraceError(
                f"latency: {self.name!r} did not run on the example inputs: {problem}. "
                "Give a tensor, a tuple of positional inputs or a dict of keyword inputs that it accepts"
            ) from problem
        self.inner = max(1, math.ceil(SAMPLE_SECONDS / max(took, 1e-9)))

    def sample(self) -> None:
        self.samples.append(self._time())

    def result(self) -> Latency:
        low, median, high = (1e3 * value for value in quantiles(self.samples, n=4, method="inclusive"))
        return Latency(median, low, high, len(self.samples), str(self.device))

    def _time(self) -> float:
        self.synchronise()
        started = time.perf_counter()
        for _ in range(self.inner):
            self.call()
        self.synchronise()
        return (time.perf_counter() - started) / self.inner


def _home(model: nn.Module, inputs: Any) -> torch.device:
    tensors = [*model.parameters(), *model.buffers(), *_tensors(inputs)]
    return tensors[0].device if tensors else torch.device("cpu")


def _usable(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise PlanError(f"latency: device {str(device)!r} cannot be used here: {reason}. Try 'cpu'") from problem


def _on(model: nn.Module, device: torch.device) -> nn.Module:
    elsewhere = any(tensor.device != device for tensor in [*model.parameters(), *model.buffers()])
    return copy.deepcopy(model).to(device) if elsewhere else model


def _bind(model: nn.Module, inputs: Any) -> Call:
    if isinstance(inputs, dict):
        return lambda: model(**inputs)
    return lambda: model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _move(item, device) for key, item in value.items()}
    return type(value)(_move(item, device) for item in value) if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _synchroniser(device: torch.device) -> Call:
    """The clock may only be read when an accelerator, which runs behind Python's back, has finished."""
    if device.type in ("cpu", "meta"):
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection between two readings of the clock, as in the standard library's timeit."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
