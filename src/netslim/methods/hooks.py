"""Where a method acts in `optimizer.step()`: when the gradients are there, or parameters moved.

A hook before the step seems to be all that is needed, and three traps show that it is not:

- *Closures.* LBFGS, and Lightning with every optimizer, call ``step(closure)``: the gradients come
  to be inside the step, after a hook before it has run and changed the old ones. So the hook puts a
  closure of its own in the place of theirs, which calls theirs and then acts. LBFGS calls it
  several times a step and compares the losses that it returns: they have to be those whose
  gradients it gets, penalty included.
- *Loss scales.* `torch.amp.GradScaler` divides the gradients of ordinary optimizers by its scale
  before the step. Fused ones (``fused=True``) do it themselves, inside the step: what is added to
  their gradients before must carry the scale, too, or it would come out thousands of times too
  small (`loss_scale`).
- *Skipped steps.* Where gradients overflow, the scaler does not call ordinary optimizers at all.
  Fused ones are called, and told by ``found_inf`` to move nothing; such a step must not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from netslim.errors import ArgumentError
from netslim.surgery.optimizers import innermost

Act = Callable[[Optimizer], None]
Closure = Callable[[], Any]


def before_step(
    optimizer: Optimizer, act: Act, loss_term: Callable[[], Tensor] | None = None
) -> RemovableHandle:
    """Call `act(optimizer)` in every step, after gradients are computed and before they are used.

    It runs under ``no_grad``. A closure computes the gradients inside the step, maybe several
    times: there `act` follows each of its calls. Methods act in the order they were registered in.

    Args:
        optimizer: to act on, until `.remove()` is called on the result.
        act: may change the gradients; under a fused optimizer they may still carry
            `loss_scale(optimizer)`.
        loss_term: what `act` adds to the loss whose gradient it changes; for LBFGS, whose line
            search compares losses.
    """

    # A closure may outlive the hook that wrapped it: what it does may end with the method, as a cut
    # within it does, and the optimizer goes on calling what it was given.
    def registered() -> bool:
        hooks = handle.hooks_dict_ref()
        return hooks is not None and handle.id in hooks

    def followed(closure: Closure) -> Closure:
        def wrapped() -> Any:
            loss = closure()
            if not registered():  # removed while the closure ran
                return loss
            with torch.no_grad():
                act(optimizer)
                if isinstance(optimizer, LBFGS) and loss is not None and loss_term is not None:
                    return loss + loss_term()
            return loss

        return wrapped

    def hook(
        _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": followed(kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):  # args[0] is the optimizer itself
            return (args[0], followed(args[1]), *args[2:]), kwargs
        with torch.no_grad():
            act(optimizer)
        return None

    handle = optimizer.register_step_pre_hook(hook)
    return handle


def after_step(optimizer: Optimizer, act: Act) -> RemovableHandle:
    """Call `act(optimizer)` without gradients after every step that moved the parameters.

    A step that `GradScaler` skips is none: ordinary optimizers are not called then, fused ones are
    told so.
    """

    def hook(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            with torch.no_grad():
                act(optimizer)

    return optimizer.register_step_post_hook(hook)


def loss_scale(optimizer: Optimizer) -> Tensor | None:
    """The 0-D loss scale that gradients carry inside the step of a fused optimizer, or None.

    `GradScaler` leaves it on the optimizer for the length of the step.
    """
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters the optimizer holds, over its groups, in order."""
    return list(chain.from_iterable(group["params"] for group in optimizer.param_groups))


class Attachments:
    """The optimizers that one method acts on, each once, and the hooks to take off again.

    Args:
        method: its class name, for messages.
        twice: what attaching twice would do, and the remedy, for messages.
    """

    def __init__(self, method: str, twice: str) -> None:
        self._method, self._twice = method, twice
        self._handles: dict[Optimizer, tuple[RemovableHandle, ...]] = {}

    def new(self, optimizer: Any) -> Optimizer:
        """The optimizer that steps in the end, unwrapped.

        Raises:
            ArgumentError: it is no optimizer, or attached already.
        """
        optimizer = innermost(optimizer)
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(
                f"{self._method} attaches to a torch.optim.Optimizer, not to a "
                f"{type(optimizer).__name__}"
            )
        if optimizer in self._handles:
            raise ArgumentError(
                f"this {self._method} is attached to this {type(optimizer).__name__} already; "
                f"{self._twice}, or call .detach() first"
            )
        return optimizer

    def add(self, optimizer: Optimizer, *handles: RemovableHandle) -> None:
        """Remember `optimizer`, as `new` returned it, and its hooks."""
        self._handles[optimizer] = handles

    def remove(self, optimizer: Any = None) -> list[Optimizer]:
        """Take the hooks off `optimizer` (by default: off all); the optimizers that were left.

        Raises:
            ArgumentError: not attached to it.
        """
        leaving = list(self._handles)
        if optimizer is not None:
            leaving = [innermost(optimizer)]
        for one in leaving:
            if not isinstance(one, Optimizer) or one not in self._handles:
                raise ArgumentError(
                    f"this {self._method} is not attached to this {type(one).__name__}"
                )
            for handle in self._handles.pop(one):
                handle.remove()
        return leaving

    def __getstate__(self) -> dict[str, Any]:
        """A copy is attached to nothing: copies of optimizers leave their hooks behind."""
        return {**vars(self), "_handles": {}}

    def __iter__(self) -> Iterator[Optimizer]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)
