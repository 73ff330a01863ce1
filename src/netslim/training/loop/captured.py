"""A training step as one function of static buffers: captured as a CUDA graph, and replayed.

A step of a small network is some hundred kernels of a few microseconds each, and to start them from
Python one by one takes longer than they run. A CUDA graph starts all of them at once, with the
addresses and the numbers of its capture. So what changes from step to step must lie in tensors: the
batch is copied to where it lay at the capture, learning rates and strengths are tensors that are
written in place, and random numbers go on by themselves, for the graph counts on in torch's
generator. How a graph comes about, and what each part of that is there for::

    steps 1 and 2    as they are, on the stream of the capture    momentum is where it stays; cuDNN
                                                                  and cuBLAS have what they need
    step 3           as it is, watched                            does it wait for the GPU, or draw
                                                                  numbers on the CPU?
    step 4           captured; replayed; undone; as it is         does the replay do what the step
                                                                  does?
    further steps    replayed, if their batch has that shape; the short last one of an epoch is
                     run as it is

The first steps are steps of the training, so batch norm's statistics do not drift and nothing has
to be undone after them. A capture itself runs nothing, and one that went wrong may look as if it
had gone well: hence the comparison, after which the step counts that was run as it is. Where a cut
has put tensors elsewhere the graph is of no use, and all begins anew (`WholeStep.look_again`).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from netslim._support.reading import first_line

WARM_UP = 3  # steps before a capture
_NEAR = 0.1  # of a step's length: the order of sums on a GPU may differ, and bf16 makes that show
_WAITS = "synchronizing CUDA operation"  # of torch's warning

Step = Callable[..., Tensor]  # from inputs to a detached loss
State = Callable[[], Sequence[Sequence[Tensor]]]


@dataclass(frozen=True)
class Recording:
    """A step that was recorded.

    Attributes:
        replay: does it again with what its inputs hold now; the loss, in the same place each time.
        release: gives back what it held.
    """

    replay: Callable[[], Tensor]
    release: Callable[[], None]


class Recorder(Protocol):
    """How steps are recorded on some device."""

    def around(self) -> AbstractContextManager[None]:
        """Every step is run inside, recorded or not."""

    def watched(self, run: Callable[[], Tensor]) -> tuple[Tensor, str | None]:
        """Run a step; and what of it cannot be recorded, if anything."""

    def record(self, run: Callable[[], Tensor]) -> Recording:
        """Record a step without running it."""

    def random_state(self) -> Any:
        """Of the generator that steps draw from."""

    def set_random_state(self, state: Any) -> None:
        """Draw again what was drawn after `random_state`."""


class Unrecorded:
    """Runs the function where another replays it: all that a capture does, but on a CPU."""

    def around(self) -> AbstractContextManager[None]:
        return nullcontext()

    def watched(self, run: Callable[[], Tensor]) -> tuple[Tensor, str | None]:
        return run(), None

    def record(self, run: Callable[[], Tensor]) -> Recording:
        return Recording(run, lambda: None)

    def random_state(self) -> Any:
        return torch.get_rng_state()

    def set_random_state(self, state: Any) -> None:
        torch.set_rng_state(state)


class CUDAGraphs:
    """Captures steps on a stream beside that of all else.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _stream(device)

    @contextmanager
    def around(self) -> Iterator[None]:
        # Gradients are added up on the stream that a parameter was first used on, so steps that are
        # not captured run there, too. Each side waits for the other, on the GPU.
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            outside.wait_stream(self.stream)

    def watched(self, run: Callable[[], Tensor]) -> tuple[Tensor, str | None]:
        drawn, mode = _drawn_on_cpu(), torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = run()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        for warning in seen:
            if _WAITS in str(warning.message):
                place = f"{Path(warning.filename).name}, line {warning.lineno}"
                return result, f"{place}, makes every step wait for the GPU"
        if drawn != _drawn_on_cpu():
            return result, "a step draws random numbers on the CPU"
        return result, None

    def record(self, run: Callable[[], Tensor]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph,
                stream=self.stream,
                capture_error_mode="thread_local",  # other threads may load data meanwhile
            ):
                loss = run()
        except Exception:
            self._recover(graph)
            raise

        def replay() -> Tensor:
            graph.replay()
            return loss

        def release() -> None:
            torch.cuda.synchronize(self.device)  # a replay may be under way
            graph.reset()

        return Recording(replay, release)

    def random_state(self) -> Any:
        return torch.cuda.get_rng_state(self.device)

    def set_random_state(self, state: Any) -> None:
        torch.cuda.set_rng_state(state, self.device)

    def _recover(self, graph: torch.cuda.CUDAGraph) -> None:
        """After a capture that failed: torch's generator believes that it goes on."""
        with suppress(RuntimeError):
            graph.reset()
        torch.cuda.synchronize(self.device)
        index = self.device.index or 0
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The same for all stages: what libraries and the allocator keep for a stream stays of use."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def recorder(device: torch.device) -> Recorder:
    """What records steps on a device."""
    if device.type == "cuda":
        return CUDAGraphs(device)
    return Unrecorded()


class WholeStep:
    """A training step, recorded after some steps and replayed from then on.

    Args:
        step: from tensors on the device to the loss; the whole step, which changes tensors in place
            and nothing else.
        state: the tensors that it changes, as they are now, in groups of what is of one kind.
        recorder: of the device.
        refused: called with the reason, once, where the step is not recorded.
    """

    def __init__(
        self, step: Step, state: State, recorder: Recorder, refused: Callable[[str], None]
    ) -> None:
        self._step, self._state, self._refused = step, state, refused
        self._recorder = recorder
        self._given_up = False
        self._begin()

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed now."""
        return self._recording is not None

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """Where a replay finds its inputs."""
        return self._buffers

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Take a step: its loss, which the next one overwrites."""
        with self._recorder.around():
            return self._take(inputs)

    def look_again(self) -> None:
        """Begin anew, if a tensor of the state lies elsewhere than it did."""
        if self._recording is not None and self._places != self._where():
            self.release()

    def release(self) -> None:
        """Give back what a recording holds."""
        if self._recording is not None:
            self._recording.release()
        self._begin()

    def _begin(self) -> None:
        self._recording: Recording | None = None
        self._shapes: list[torch.Size] | None = None
        self._buffers: tuple[Tensor, ...] = ()
        self._places: list[int] = []
        self._taken = 0

    def _where(self) -> list[int]:
        return [tensor.data_ptr() for group in self._state() for tensor in group]

    def _take(self, inputs: Sequence[Tensor]) -> Tensor:
        shapes = [tensor.shape for tensor in inputs]
        if self._given_up or shapes != (self._shapes or shapes):
            return self._step(*inputs)
        if self._recording is not None:
            for buffer, tensor in zip(self._buffers, inputs, strict=True):
                buffer.copy_(tensor)
            return self._recording.replay()
        self._shapes, self._taken = shapes, self._taken + 1
        if self._taken < WARM_UP:
            return self._step(*inputs)
        if self._taken > WARM_UP:
            return self._recorded(inputs)
        loss, why = self._recorder.watched(partial(self._step, *inputs))
        if why is not None:
            self._give_up(why)
        return loss

    def _recorded(self, inputs: Sequence[Tensor]) -> Tensor:
        """Record the step, hold a replay against the step as it is, and take the latter."""
        self._buffers = tuple(tensor.clone() for tensor in inputs)
        try:
            recording = self._recorder.record(partial(self._step, *self._buffers))
        except RuntimeError as error:
            self._give_up(f"CUDA refuses the capture ({first_line(_first(error))})")
            return self._step(*inputs)
        before, drawn = self._copies(), self._recorder.random_state()
        recording.replay()
        replayed = self._copies()
        self._put_back(before)
        self._recorder.set_random_state(drawn)
        loss = self._step(*inputs).clone()
        if not all(map(_near, before, replayed, self._state())):
            recording.release()
            self._give_up("what was captured does not do what the step does")
            return loss
        self._recording, self._places = recording, self._where()
        return loss

    def _copies(self) -> list[list[Tensor]]:
        return [[tensor.detach().clone() for tensor in group] for group in self._state()]

    @torch.no_grad()
    def _put_back(self, copies: list[list[Tensor]]) -> None:
        for group, before in zip(self._state(), copies, strict=True):
            for tensor, value in zip(group, before, strict=True):
                tensor.copy_(value)

    def _give_up(self, why: str) -> None:
        self._given_up = True
        self._refused(why)


def _near(before: Sequence[Tensor], replayed: Sequence[Tensor], stepped: Sequence[Tensor]) -> bool:
    """Whether two states are as near to each other as steps from `before` that should be equal."""
    apart = sum(_distance(*pair) for pair in zip(replayed, stepped, strict=True))
    moved = sum(_distance(*pair) for pair in zip(before, stepped, strict=True))
    return bool(apart <= _NEAR**2 * moved)


def _distance(one: Tensor, other: Tensor) -> float:
    """Squared; what is not a number in both is equal."""
    difference = one.detach().double().nan_to_num() - other.detach().double().nan_to_num()
    return float(difference.square().sum())


def _drawn_on_cpu() -> tuple[Any, ...]:
    """What tells whether numbers were drawn on the CPU."""
    numbers: Any = np.random.get_state()
    _, keys, *rest = numbers
    return random.getstate(), bytes(keys), rest, bytes(torch.get_rng_state().numpy())


def _first(error: Any) -> Any:
    """The error that the others followed from."""
    while error.__context__ is not None:
        error = error.__context__
    return error
