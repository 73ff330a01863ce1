"""Move what removed channels still emit into the layers behind them.

A channel whose gamma is near zero while its beta is not emits a constant, and to cut it throws the
constant away. Here each layer that reads removed channels is watched on data: their mean
contribution to its outputs goes into its bias, or into the running mean of the batch normalisation
behind it. That is exact where the contribution is constant: without zero padding, which makes it
smaller at the border.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from netslim.errors import ArgumentError, PlanError
from netslim.graph import trace
from netslim.graph.layers import FUNCTIONS, channels_of
from netslim.graph.modules.batches import inputs_of, outputs
from netslim.graph.modules.calls import evaluating, output_tensors
from netslim.graph.modules.walk import fingerprint, named_modules, named_tensors
from netslim.graph.modules.wrapping import duplicate, eagerly
from netslim.surgery.plan import PruningPlan, bias_cuts, bias_of
from netslim.surgery.proof.silencing import replaced
from netslim.surgery.prune import new_biases, remember, takes_bias
from netslim.surgery.rows import DROPPED, TensorCut, destinations

Model = TypeVar("Model", bound=nn.Module)
logger = logging.getLogger("netslim")


@dataclass(frozen=True)
class Moved:
    """What one layer read from removed channels, and where it went.

    Attributes:
        consumer: name of the weights that read them.
        target: name of the bias or running mean that took it; None where it could not be moved, or
            was zero.
        channels: number of entries of the weights that read removed channels.
        spread: largest deviation of any output from the constant that was moved, relative to the
            largest constant; 0 where it is exact. Of the way ``"constant"`` only.
        reason: why nothing was moved; together with ``explained``, why no constant was.
        explained: of the ways ``"linear"`` and ``"sequential"`` only: share of the variance of what
            was read that the channels that stay explain (R squared; of the square where no constant
            could be moved); None where nothing was moved.
    """

    consumer: str
    target: str | None
    channels: int
    spread: float = 0.0
    reason: str = ""
    explained: float | None = None

    def __str__(self) -> str:
        where = (
            f"{self.target} (spread {self.spread:.2g})"
            if self.target
            else f"not moved: {self.reason}"
        )
        if self.explained is not None:
            constant = self.target or "no constant" + (f": {self.reason}" if self.reason else "")
            where = f"entries that stay ({self.explained:.1%} explained), {constant}"
        return f"{self.consumer}: {self.channels} entries -> {where}"


@dataclass(frozen=True)
class Folding(Generic[Model]):
    """A model whose removed channels are no longer read, and the plan that cuts them from it.

    Attributes:
        model: a copy; what the removed channels emitted comes from ``target`` in ``moved`` now.
        plan: for that copy, which may have more biases than the original; its history says so.
        moved: one row for each tensor of weights that reads removed channels.
    """

    model: Model
    plan: PruningPlan
    moved: tuple[Moved, ...]

    def __str__(self) -> str:
        return "\n".join(
            ["What removed channels emit has moved:", *(f"  {row}" for row in self.moved)]
        )


def move_constants(inner: Model, plan: PruningPlan, batches: Iterable[Any]) -> Folding[Model]:
    """`netslim.surgery.compensate` in the way ``"constant"``; of a bare model."""
    plan.check(inner)
    copy = duplicate(inner)
    plan = extended(copy, replace(plan, biases=()), plan.biases)
    flows = _measure(copy, plan, batches)
    places = [place_of(copy, flow) for flow in flows]
    plan = extended(copy, plan, [place.new for place in places if place.new is not None])
    moved = tuple(move(copy, flow, place) for flow, place in zip(flows, places, strict=True))
    for row in moved:
        if row.reason:
            logger.warning(
                "what %s reads of removed channels is not moved: %s", row.consumer, row.reason
            )
    return Folding(copy, plan, moved)


def extended(model: nn.Module, plan: PruningPlan, paths: Sequence[str]) -> PruningPlan:
    """Give modules a bias of zeros, keep that in the history of the model, and have the plan cut
    them.
    """
    if not paths:
        return plan
    remember(model, PruningPlan(fingerprint(model), {}, (), biases=tuple(paths)))
    for module, bias in new_biases(model, paths):
        module.bias = bias
    known = {t.tensor for t in plan.tensors}
    cuts = [t for t in bias_cuts(plan, paths) if t.tensor not in known]
    return replace(plan, fingerprint=fingerprint(model), tensors=(*plan.tensors, *cuts))


class Flow:
    """What one tensor of weights reads from dropped channels, summed up over the batches."""

    def __init__(self, cut: TensorCut, gone: np.ndarray, weight: Tensor) -> None:
        self.cut, self.weight = cut, weight
        self.gone = torch.from_numpy(gone).to(weight.device)
        self.calls = 0  # most calls in one forward pass
        self.uses = 0  # of the weights by any operator, in all passes
        self.turn = 0  # in the order of execution
        self.biases: dict[int, Tensor | None] = {}  # what stood for the bias in these calls, by id
        self.means: dict[
            int, Tensor | None
        ] = {}  # the running mean behind them, by id; None where there is not one
        self.count = 0
        self.total = self.low = self.high = torch.zeros((), dtype=torch.float64)

    def add(self, part: Tensor) -> None:
        """Take in contributions of shape (outputs, places)."""
        if part.numel():
            values = part.double()
            low, high = values.amin(1), values.amax(1)
            self.low, self.high = (
                (low, high) if not self.count else (self.low.minimum(low), self.high.maximum(high))
            )
            self.total, self.count = (
                values.sum(1) + self.total.to(values.device),
                self.count + values.shape[1],
            )

    def take(self, func: Any, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> None:
        """Take in one call ``func(x, weight, bias, *args, **kwargs)``."""
        axis, weight = self.cut.axis, self.weight
        dropped = torch.zeros_like(weight).index_copy_(
            axis, self.gone, weight.index_select(axis, self.gone)
        )
        channels = channels_of(weight, linear=func is F.linear)
        self.add(func(x, dropped, None, *args, **kwargs).movedim(channels, 0).flatten(1))

    @property
    def silent(self) -> bool:
        """Whether nothing was read."""
        return not self.shift.any()

    @property
    def shift(self) -> Tensor:
        """The mean contribution to each output."""
        return self.total / max(self.count, 1)

    @property
    def spread(self) -> float:
        """Largest deviation from the mean, relative to the largest mean."""
        deviation = float(torch.maximum(self.high - self.shift, self.shift - self.low).max())
        largest = float(self.shift.abs().max())
        return deviation / largest if largest else float("inf") if deviation else 0.0


def reading(plan: PruningPlan) -> list[tuple[TensorCut, np.ndarray]]:
    """The axes that read dropped channels, each with the entries that do.

    Raises:
        PlanError: there are none.
    """
    found = [
        (t, np.flatnonzero(destinations(t) == DROPPED))
        for t in plan.tensors
        if "consumer" in t.role
    ]
    found = [(t, gone) for t, gone in found if len(gone)]
    if not found:
        raise PlanError(
            "nothing to fold: the plan drops no channel that is read by weights (merged ones "
            "are summed)"
        )
    return found


def _measure(model: nn.Module, plan: PruningPlan, batches: Any) -> list[Flow]:
    tensors = dict(named_tensors(model))
    flows = [Flow(t, gone, tensors[t.tensor]) for t, gone in reading(plan)]
    scales, batches = _scales(model, plan, batches)
    watch = Watch({id(flow.weight): flow for flow in flows})
    with torch.no_grad(), eagerly(), evaluating(model), ExitStack() as zeroed:
        for name, axis, gone in scales:
            zeroed.enter_context(
                replaced(tensors[name], axis, torch.from_numpy(gone).to(tensors[name].device), 0)
            )
        with watch:
            for _, output in outputs(model, batches):
                watch.finish(output)
    for flow in flows:
        if not torch.isfinite(flow.total).all():
            raise ArgumentError(
                f"what {flow.cut.tensor!r} reads is not finite on these batches: there is no "
                "mean to move"
            )
    return flows


def _scales(
    model: nn.Module, plan: PruningPlan, batches: Any
) -> tuple[list[tuple[str, int, np.ndarray]], Any]:
    """(tensor, axis, entries) that scale dropped channels; and the batches, from the first on."""
    if not any(group.merged for group in plan.groups.values()):
        return [
            (t.tensor, t.axis, np.asarray(t.removed)) for t in plan.tensors if t.role == "scale"
        ], batches
    first = list(islice(batches, 1))
    if isinstance(batches, Iterator):  # it can be read only once
        batches = chain(first, batches)
    args, kwargs = inputs_of(first[0]) if first else ((), {})
    graph = trace(model, kwargs or args)
    found = []
    for name, cut in plan.groups.items():
        for s in graph[name].tensors("scale"):
            found.append((s.tensor, s.axis, s.positions[destinations(cut)[s.units] == DROPPED]))
    return found, batches


class Watch(TorchFunctionMode):
    """Sees the layers of a forward pass that read dropped channels, and where their outputs go."""

    def __init__(self, flows: dict[int, Flow]) -> None:
        super().__init__()
        self.flows = flows  # by the id of the weights
        self._begin()

    def _begin(self) -> None:
        self.calls: Counter[int] = (
            Counter()
        )  # of each tensor of weights, bias or running mean, by id
        self.made: dict[
            int, tuple[Tensor, Flow, list[Tensor | None]]
        ] = {}  # by the id of an output: its uses

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(
            isinstance(leaf, Tensor) for leaf in tree_leaves(result)
        ):  # not for sizes and the like
            self._use(func, args, kwargs)
        if func in FUNCTIONS:
            self._layer(func, *first_of(("input", "weight", "bias"), args, kwargs), result)
        return result

    def _use(self, func: Any, args: tuple, kwargs: dict) -> None:
        mean = None
        if func is F.batch_norm:
            (_, mean), _, _ = first_of(("input", "running_mean"), args, kwargs)
            self.calls[id(mean)] += 1
        for leaf in tree_leaves((args, kwargs)):
            self.calls[id(leaf)] += id(leaf) in self.flows
            if id(leaf) in self.made:
                output, flow, uses = self.made[id(leaf)]
                uses.append(mean if flow.weight.dim() > 2 or output.dim() == 2 else None)

    def _layer(
        self, func: Any, named: Sequence[Any], args: tuple, kwargs: dict, result: Tensor
    ) -> None:
        x, weight, bias = named
        self.calls[id(bias)] += 1
        flow = self.flows.get(id(weight))
        if flow is None:
            return
        flow.biases[id(bias)] = bias
        self.made[id(result)] = (result, flow, [])
        flow.take(func, x, args, kwargs)

    def finish(self, output: Any) -> None:
        """Take stock after a forward pass."""
        returned = {id(t) for t in output_tensors(output)}
        for flow in self.flows.values():
            flow.uses += self.calls[id(flow.weight)]
        for turn, (number, (_, flow, uses)) in enumerate(self.made.items()):
            flow.turn = turn
            mean = uses[0] if len(uses) == 1 and number not in returned else None
            once = mean is not None and self.calls[id(mean)] == 1
            flow.means[id(mean) if once else 0] = mean if once else None
            flow.calls = max(flow.calls, self.calls[id(flow.weight)])
            if any(self.calls[id(bias)] > 1 for bias in flow.biases.values() if bias is not None):
                flow.calls = max(flow.calls, 2)
        self._begin()


def first_of(names: Sequence[str], args: tuple, kwargs: dict) -> tuple[list[Any], tuple, dict]:
    """The first arguments of a call by name (None where one is not given), and the others."""
    values = [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]
    return values, args[len(names) :], {k: v for k, v in kwargs.items() if k not in names}


@dataclass(frozen=True)
class Place:
    """Where a flow can go: a tensor, which may be the bias of a module that has none yet."""

    target: str | None = None
    sign: int = 1
    new: str | None = None
    reason: str = ""


def place_of(model: nn.Module, flow: Flow) -> Place:
    """Where the constant of a flow can go."""
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    if flow.cut.role != "consumer":
        return Place(reason="the weights make or scale channels, too")
    if not flow.count:
        return Place(
            reason="no convolution or linear layer was seen to run with just these weights"
        )
    if flow.calls > 1:
        return Place(reason="the weights or their bias are used more than once")
    if flow.silent:
        return Place()
    bias, mean = _single(flow.biases), _single(flow.means)
    if bias is not None:
        name = names.get(id(bias))
        return Place(name, reason="" if name else "the bias is computed from other tensors")
    if mean is not None and id(mean) in names:
        return Place(names[id(mean)], -1)
    owners = [path for module, path in named_modules(model).items() if _owns(module, flow.weight)]
    if len(owners) == 1 and takes_bias(model.get_submodule(owners[0])):
        return Place(bias_of(owners[0]), new=owners[0])
    return Place(
        reason="the layer has no bias, cannot be given one, and no batch normalisation follows "
        "it alone"
    )


def _owns(module: nn.Module, weight: Tensor) -> bool:
    return any(parameter is weight for parameter in module._parameters.values())


def _single(seen: dict[int, Tensor | None]) -> Tensor | None:
    return next(iter(seen.values())) if len(seen) == 1 else None


@torch.no_grad()
def move(model: nn.Module, flow: Flow, place: Place) -> Moved:
    """Take what a flow reads out of its weights, and put the mean of it where it can go."""
    row = Moved(flow.cut.tensor, place.target, len(flow.gone), reason=place.reason)
    if place.reason:
        return row
    flow.weight.index_fill_(flow.cut.axis, flow.gone, 0)
    if place.target is None:
        return row
    target = dict(named_tensors(model))[place.target]
    target.add_(flow.shift.to(target), alpha=place.sign)
    return replace(row, spread=flow.spread)
