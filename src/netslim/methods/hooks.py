"""Where a method acts in `optimizer.step()`: as soon as the gradients are there, or once the
parameters have moved.

Both hold in a plain loop, with a closure (Lightning passes one always), with
`torch.amp.GradScaler`, and for fused optimizers, which unscale the gradients and skip a step with
infinite ones inside the step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """Call `act(optimizer)` without gradients in every step, after they are computed and before
    they are used.

    A closure computes the gradients inside the step, maybe several times: there `act` follows each
    of its calls. Methods act in the order they were registered in.

    Args:
        optimizer: to act on, until `.remove()` is called on the result.
        act: may change the gradients; under a fused optimizer they may still carry
            `loss_scale(optimizer)`.
        loss_term: what `act` adds to the loss whose gradient it changes; for LBFGS, whose line
            search compares losses.
    """

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
                searches = (
                    isinstance(optimizer, LBFGS) and loss is not None and loss_term is not None
                )
                return loss + loss_term() if searches else loss  # type: ignore[misc]

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
    """The 0-D loss scale that gradients still carry inside the step of a fused optimizer, or None."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale if isinstance(scale, Tensor) else None


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters the optimizer holds, over its groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


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
        leaving = list(self._handles) if optimizer is None else [innermost(optimizer)]
        for one in leaving:
            if one not in self._handles:
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
