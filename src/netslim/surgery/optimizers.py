"""The state that optimizers keep for each parameter, cut along with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_leaves

from netslim.errors import ArgumentError, SurgeryError

Keep = Callable[[Tensor, tuple[int, ...]], Tensor]  # the planned entries of the given axes
_REMEDY = "make a new optimizer after prune_, and do not pass this one"


def innermost(optimizer: Any) -> Any:
    """The optimizer that steps in the end: Lightning and Accelerate wrap it."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def all_optimizers(optimizer: Any) -> list[Optimizer]:
    """All that keep state, of one or several, wrapped or not; also those that others hold.

    Raises:
        ArgumentError: something else is among them.
        SurgeryError: the state of one lies elsewhere.
    """
    single = isinstance(innermost(optimizer), Optimizer) or not isinstance(optimizer, Iterable)
    found = [innermost(one) for one in ([optimizer] if single else optimizer)]
    for one in found:
        if not isinstance(one, Optimizer):
            raise ArgumentError(
                f"optimizer takes torch.optim.Optimizer objects, not a {type(one).__name__}"
            )
        if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(one).__mro__):
            raise SurgeryError(
                f"ZeroRedundancyOptimizer shards its state over processes; {_REMEDY}"
            )
        if isinstance(one, LBFGS) and one.state:
            raise SurgeryError(
                f"LBFGS keeps its history in one vector over all parameters; {_REMEDY}"
            )
        # Lookahead, sharpness-aware and averaging optimizers keep another one as an attribute. What
        # is added here is looked at in its turn.
        held = (value for value in vars(one).values() if isinstance(value, Optimizer))
        found += [inner for inner in held if inner not in found]
    return list({id(one): one for one in found}.values())


def cut_state(
    optimizer: Optimizer, cuts: Mapping[Any, tuple[str, Keep]], held: Collection[Tensor]
) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """(the state of a parameter, its new entries) for each that is cut; nothing is changed yet.

    Momentum and the like have the parameter's shape. Factors such as Adafactor's have a size of 1
    along the axes they are averaged over, and keep their value there.

    Args:
        optimizer: whose state it is.
        cuts: parameter -> its name, and how to cut along some of its axes.
        held: all parameters of the models.

    Raises:
        SurgeryError: the optimizer holds none of the parameters, or keeps state that does not
            follow their shape.
    """
    stepped = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    if not any(parameter in held for parameter in stepped):
        raise SurgeryError(
            f"this {type(optimizer).__name__} holds none of the model's parameters: pass the "
            "optimizer that trains this very model, or none"
        )
    result = []
    for parameter, (name, keep) in cuts.items():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        smaller = {}
        for key, value in state.items():
            entry = _cut_entry(optimizer, key, value, name, parameter, keep)
            if entry is not None:
                smaller[key] = entry
        result.append((state, smaller))
    return result


def without_parameters(optimizer: Optimizer, gone: Collection[int]) -> Callable[[], None]:
    """Take parameters, by their ids, out of an optimizer; what is given puts them back."""
    before = [group["params"] for group in optimizer.param_groups]
    states = {one: optimizer.state[one] for one in [*optimizer.state] if id(one) in gone}
    for group in optimizer.param_groups:
        group["params"] = [one for one in group["params"] if id(one) not in gone]
    for one in states:
        del optimizer.state[one]

    def put_back() -> None:
        for group, params in zip(optimizer.param_groups, before, strict=True):
            group["params"] = params
        optimizer.state.update(states)

    return put_back


def _cut_entry(
    optimizer: Optimizer, key: str, value: Any, name: str, parameter: Tensor, keep: Keep
) -> Tensor | None:
    """The cut entry, or None for one that does not depend on the parameter's shape."""
    keeps = f"{type(optimizer).__name__} keeps {key!r}"
    if not isinstance(value, Tensor):
        if any(isinstance(leaf, Tensor) and leaf.dim() for leaf in tree_leaves(value)):
            raise SurgeryError(
                f"{keeps}, a {type(value).__name__} of tensors, for {name!r}; {_REMEDY}"
            )
        return None
    if value.numel() == 1 and parameter.numel() > 1:
        return None
    # For a weight of (64, 32): momentum of (64, 32) is cut along both axes, a factor of (64, 1)
    # along the first alone, and one of (64,) does not say which axis it is: refused.
    pairs = list(zip(value.shape, parameter.shape, strict=False))
    if value.dim() != parameter.dim() or any(size not in (1, whole) for size, whole in pairs):
        raise SurgeryError(
            f"{keeps} of shape {tuple(value.shape)} for {name!r} of shape "
            f"{tuple(parameter.shape)}, which cannot be cut with it; {_REMEDY}"
        )
    return keep(value, tuple(axis for axis, (size, whole) in enumerate(pairs) if size == whole))
