"""Runs of models that wait before the layers that are looked at, many of them side by side.

Who changes a network layer after layer, in the order in which the layers run, must know what each
layer reads once those before it are changed. To run the network anew for each layer costs the
square of its depth. Here a run is a thread that waits before each such layer until it is told to go
on: by then the layer is another one, and so is all that follows. Only one thread runs at any time.

Each run has modules of its own, for a forward may keep on them what it needs later on; the
parameters are those of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netslim.errors import ArgumentError
from netslim.graph.layers import FUNCTIONS
from netslim.graph.modules.ambient import as_here, eagerly
from netslim.graph.modules.batches import outputs
from netslim.graph.modules.calls import in_mode
from netslim.graph.modules.duplicating import duplicate
from netslim.surgery.compensation.constants import Args, Kwargs, first_of

LONGEST = 300  # seconds from one layer to the next
_LEFT = 10  # seconds that a run is given to end; then it is left behind


@dataclass(frozen=True)
class Call:
    """A layer that is about to run: ``func(x, weight, bias, *args, **kwargs)``."""

    weight: str  # its name
    func: Any
    x: Tensor
    args: Args
    kwargs: Kwargs


class _EndedError(BaseException):
    """Nobody waits for this run any more; a forward that catches exceptions lets it through."""


class HaltedRun:
    """A run of a model on one batch, in evaluation mode, that waits before some layers.

    Args:
        model: what runs; a copy of it that has its parameters.
        batch: as for `netslim.graph.modules.batches.outputs`.
        weights: name -> weights of the layers to wait before; parameters of ``model``.
        shared: further tensors of ``model`` that the run is to see change.
        within: makes, of the copy, what the run happens in.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        weights: Mapping[str, Tensor],
        shared: Iterable[Tensor] = (),
        within: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.call: Call | None = None  # that it waits before
        tensors = (*model.parameters(), *weights.values(), *shared)
        self._model = duplicate(model, {id(tensor): tensor for tensor in tensors})
        self._batch, self._within = batch, within
        self._watch = _Watch({id(weight): name for name, weight in weights.items()}, self._wait)
        self._over = self._ended = False
        self._chance = torch.get_rng_state()  # what is random is so in each run alike
        self._error: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def reach(self, weight: str, done: Collection[str]) -> bool:
        """Go on until the run waits before a layer that is not ``done``; whether it is this one.

        Raises:
            Exception: what the run ends in.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=as_here(self._work), daemon=True)
            self._thread.start()
        while not self._over and (self.call is None or self.call.weight in done):
            self.call = None
            self._go.release()
            if not self._back.acquire(timeout=LONGEST):
                raise ArgumentError(
                    f"a run of the model has not come from one layer to the next for {LONGEST} s: "
                    "where its forward waits for other runs, as with a lock around layers, take "
                    "way='linear'"
                )
            if self._error is not None:
                raise self._error
        return self.call is not None and self.call.weight == weight

    @property
    def halted(self) -> Call:
        """What it waits before; it was reached."""
        assert self.call is not None
        return self.call

    def end(self) -> None:
        """Stop where it is."""
        self._ended, self.call = True, None
        self._go.release()
        if self._thread is not None:
            self._thread.join(_LEFT)

    def _work(self) -> None:
        self._go.acquire()
        try:
            if not self._ended:
                self._run()
        except BaseException as error:
            if not self._ended:
                self._error = error
        self._over = True
        self._back.release()

    def _run(self) -> None:
        model = self._model
        evaluating = in_mode(model, training=False)
        torch.set_rng_state(self._chance)
        with torch.no_grad(), eagerly(), evaluating, self._within(model), self._watch:
            for _ in outputs(model, [self._batch]):
                pass

    def _wait(self, call: Call) -> None:
        if not self._ended:
            self._chance = torch.get_rng_state()
            self.call = call
            self._back.release()
            self._go.acquire()
            torch.set_rng_state(self._chance)
        if self._ended:
            raise _EndedError


class _Watch(TorchFunctionMode):
    """Hands on the calls of layers with these weights before they run."""

    def __init__(self, names: Mapping[int, str], wait: Callable[[Call], None]) -> None:
        super().__init__()
        self._names, self._wait = names, wait

    def __torch_function__(
        self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        if func in FUNCTIONS:
            (x, weight, _), more, named = first_of(("input", "weight", "bias"), args, kwargs or {})
            name = self._names.get(id(weight))
            if name is not None:
                self._wait(Call(name, func, x, more, named))
        return func(*args, **(kwargs or {}))


__all__ = ["Call", "HaltedRun"]
