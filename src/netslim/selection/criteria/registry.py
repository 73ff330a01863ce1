"""Criteria by name: those of netslim, those a user registers, functions of a user's own module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from torch import Tensor, nn

from netslim._support import checks_calls, described, from_module, nearest
from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.selection.criteria.observing import Loss, Measured
from netslim.selection.criteria.parts import Parts

Criterion = Callable[..., Tensor | Parts | None]
Own = TypeVar("Own", bound=Criterion)  # a decorated function stays what it is
Measure = Callable[[ChannelGraph, nn.Module, Iterable[Any], Loss | None], Measured]

CRITERIA: dict[str, Criterion] = {}
MEASURES: dict[Criterion, Callable[..., Measured]] = {}


@overload
def criterion(function: Own) -> Own: ...
@overload
def criterion(*, measure: Callable[..., Measured]) -> Callable[[Own], Own]: ...
@checks_calls
def criterion(
    function: Criterion | None = None, *, measure: Callable[..., Measured] | None = None
) -> Any:
    """Register a criterion under its own name, a decorator; then the name is understood everywhere.

    The function takes ``(group, tensors, **options)``: a `ChannelGroup`, and the values of
    parameters and buffers by name. It returns one score a unit, larger is more important: a tensor
    of shape (size,). Or it returns the scores of each layer, a list of (slice, one value for each
    entry of the slice's axis), which ``reduction`` of `netslim.score` puts together. Or None, where
    the group cannot be scored. A function that names ``over`` or ``reduction`` among its parameters
    is given these options of `netslim.score`.

    Args:
        function: the criterion. Commands and recipes find one in a module of yours as
            ``package.module:function``.
        measure: ``measure(graph, model, batches, loss)`` runs the model on data and returns tensors
            by name; the criterion gets these instead of the model's own.

    Raises:
        ArgumentError: it is no function.

    Example:
        >>> @netslim.criterion
        ... def largest_weight(group, tensors):
        ...     made = group.tensors("producer")
        ...     rows = [tensors[s.tensor].abs().movedim(s.axis, 0).flatten(1) for s in made]
        ...     return [(s, row.amax(1)) for s, row in zip(made, rows)]
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "largest_weight")
    """
    if function is None:
        return lambda function: criterion(_measured(function, measure))
    if not callable(function) or not hasattr(function, "__name__"):
        raise ArgumentError(
            f"a criterion must be a function with a name, got {described(function)}"
        )
    CRITERIA[function.__name__] = function
    return function


def _measured(function: Criterion, measure: Callable[..., Measured] | None) -> Criterion:
    if measure is not None:
        MEASURES[function] = measure
    return function


@checks_calls
def reads_data(name: str | Criterion) -> bool:
    """Whether a criterion looks at data besides the weights.

    Raises:
        ArgumentError: no criterion has this name; the nearest are given.

    Example:
        >>> [netslim.selection.criteria.reads_data(name) for name in ("l1", "taylor")]
        [False, True]
    """
    return named(name) in MEASURES


def _function(given: Criterion) -> Criterion:
    """What is called with a group and tensors: no class, and no module that would run on them."""
    if isinstance(given, (type, nn.Module)) or not callable(given):
        raise ArgumentError(
            "a criterion is a name, or a function of a group and the tensors of the model, got "
            f"{_said(given)}"
        )
    return given


def _said(given: Any) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}"
    return described(given)


def named(name: str | Criterion) -> Criterion:
    """The criterion of this name, or ``package.module:function``; a function is itself.

    Raises:
        ArgumentError: there is none (the nearest are given), or the module does not give one.
    """
    if not isinstance(name, str):
        return _function(name)
    if name in CRITERIA:
        return CRITERIA[name]
    if ":" in name:
        return from_module(name, ArgumentError)
    raise ArgumentError(f"unknown criterion {name!r}{nearest(name, sorted(CRITERIA))}")
