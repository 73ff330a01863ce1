"""Move what removed channels still emit into the layers behind them.

A channel whose gamma is near zero while its beta is not emits a constant, and so does one whose
filter is zero: beta - gamma * mean / std, once the activation behind has seen it. To cut it throws
the constant away. Here each layer that reads removed channels is watched on data, with the model as
it is: their mean contribution to its outputs goes into its bias, or into the running mean of the
batch normalisation behind it (which is subtracted, so the contribution is taken off it). That is
exact where the contribution is constant. Nothing takes that for granted: it is not where gamma is
merely small, nor beside zero padding, which makes it smaller at the border, and the spread that is
measured along with the mean says by how much.

Layers are watched at the *functions* they call (`F.conv2d`, `F.linear`, ...), not with hooks on
modules: so weights that are used without their module, twice, or with another bias are seen as they
are used. Whose weights they are is told by the tensor object, the same in each call.

The bookkeeping is done in four steps: a `Watch` sees the calls, a `Flow` sums up what one tensor of
weights reads in them, a `Place` says where that may go (and if nowhere, why), `move` puts it there.
A place must be the layer's alone: a bias that two layers share, or the running mean behind a layer
whose output is read elsewhere as well, would take the constant to where it does not belong.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import netslim.ranks as ranks
from netslim._support import checks_calls
from netslim.errors import ArgumentError, PlanError
from netslim.graph.layers import FUNCTIONS, channels_of
from netslim.graph.modules.ambient import eagerly
from netslim.graph.modules.batches import outputs
from netslim.graph.modules.calls import evaluating, output_tensors
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.walk import Walked, fingerprint, named_modules, named_tensors
from netslim.surgery.history import history, remember
from netslim.surgery.plan import PruningPlan, with_biases
from netslim.surgery.prune import new_biases, takes_bias
from netslim.surgery.rows import DROPPED, TensorCut, bias_of, destinations

Model = TypeVar("Model", bound=nn.Module)
Args = tuple[Any, ...]  # of a call, by place
Kwargs = Mapping[str, Any]  # and by name
logger = logging.getLogger("netslim")


@dataclass(frozen=True)
class Moved:
    """What one layer read from removed channels, and where it went.

    Attributes:
        consumer: name of the weights that read them.
        target: name of the bias or running mean that took it; None where it could not be moved, or
            was zero.
        channels: number of entries of the weights that read removed channels; 0 where what is read
            deviates only, as the layers before or a block that goes were cut.
        spread: largest deviation of any output from the constant that was moved, relative to the
            largest constant; 0 where it is exact. Of the way ``"constant"`` only.
        reason: why nothing was moved; together with ``explained``, why no constant was.
        explained: of the ways ``"linear"`` and ``"sequential"`` only: share of the variance of what
            was read, or of what the layer computes no more, that the channels that stay explain
            (R squared; of the square where no constant could be moved); None where nothing was
            moved.
    """

    consumer: str
    target: str | None
    channels: int
    spread: float = 0.0
    reason: str = ""
    explained: float | None = None

    def __str__(self) -> str:
        what = f"{self.channels} entries"
        if not self.channels:
            what = "what has come of others"
        return f"{self.consumer}: {what} -> {self._where()}"

    def _where(self) -> str:
        if self.explained is not None:
            because = f": {self.reason}" if self.reason else ""
            constant = self.target or f"no constant{because}"
            return f"entries that stay ({self.explained:.1%} explained), {constant}"
        if self.target:
            return f"{self.target} (spread {self.spread:.2g})"
        return f"not moved: {self.reason}"


@checks_calls
@dataclass(frozen=True)
class Folding(Generic[Model]):
    """A model whose removed channels are no longer read, and the plan that cuts them from it.

    Attributes:
        model: a copy; what the removed channels emitted comes from ``target`` in ``moved`` now.
        plan: for that copy, which may have more biases than the original; its history says so.
        moved: one row for each tensor of weights that reads removed channels.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "l1")
        >>> plan = netslim.select(graph, scores, netslim.Budget(cut_channels=0.5))
        >>> folding: netslim.surgery.Folding = netslim.surgery.compensate(
        ...     model, plan, loader, way="constant")
        >>> small = netslim.prune(folding.model, folding.plan)
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
    names = {id(tensor): name for name, tensor in named_tensors(copy)}
    places = [place_of(copy, flow, names) for flow in flows]
    plan = extended(copy, plan, [place.new for place in places if place.new is not None])
    tensors = dict(named_tensors(copy))
    moved = tuple(move(tensors, flow, place) for flow, place in zip(flows, places, strict=True))
    for row in moved:
        if row.reason:
            logger.warning(
                "what %s reads of removed channels is not moved: %s", row.consumer, row.reason
            )
    return Folding(copy, plan, moved)


def extended(model: nn.Module, plan: PruningPlan, paths: Sequence[str]) -> PruningPlan:
    """Give modules a bias of zeros, and have the plan cut it where it cuts their outputs.

    It goes into the history of the model: the plan is then for another architecture, and a fresh
    one must be given the same biases before the plan is carried out on it.
    """
    if not paths:
        return plan
    past, added = history(model), PruningPlan(fingerprint(model), {}, (), biases=tuple(paths))
    for module, bias in new_biases(model, paths):
        module.bias = bias
    remember(Walked.of(model), past, added)
    return with_biases(plan, paths, fingerprint(model))


class Flow:
    """What one tensor of weights reads from dropped channels, summed up over the batches.

    A layer is linear in its weights: with all entries but those of dropped channels at zero, and
    without the bias, it gives just their contribution. Its sum makes the mean, its least and
    largest value tell how far it is from a constant.
    """

    def __init__(self, cut: TensorCut, gone: np.ndarray, weight: Tensor) -> None:
        self.cut, self.weight = cut, weight
        self.gone = torch.from_numpy(gone).to(weight.device)
        self.calls = 0  # most calls in one forward pass
        self.uses = 0  # of the weights by any operator, in all passes
        self.turn = 0  # in the order of execution
        # By id, what stood for the bias in these calls, and the one running mean behind them; None
        # for none. A second entry means that the calls differ.
        self.biases: dict[int, Tensor | None] = {}
        self.means: dict[int, Tensor | None] = {}
        self.count = 0
        self.total = self.low = self.high = torch.zeros((), dtype=torch.float64)

    def add(self, part: Tensor) -> None:
        """Take in contributions of shape (outputs, places)."""
        if not part.numel():
            return
        values = part.double()
        low, high = values.amin(1), values.amax(1)
        if self.count:
            low, high = self.low.minimum(low), self.high.maximum(high)
        self.low, self.high = low, high
        self.total = values.sum(1) + self.total.to(values.device)
        self.count += values.shape[1]

    def take(self, func: Any, x: Tensor, args: Args, kwargs: Kwargs) -> None:
        """Take in one call ``func(x, weight, bias, *args, **kwargs)``."""
        axis, weight = self.cut.axis, self.weight
        read = weight.index_select(axis, self.gone)
        dropped = torch.zeros_like(weight).index_copy_(axis, self.gone, read)
        channels = channels_of(weight, linear=func is F.linear)
        self.add(func(x, dropped, None, *args, **kwargs).movedim(channels, 0).flatten(1))

    def over_ranks(self) -> None:
        """Have the sums over the batches of all ranks of a distributed run, on each of them."""
        what = "what layers read of removed channels"
        numbers = ranks.gathered(what, (self.count, self.calls, self.uses, self.turn))
        bounds = ranks.gathered(what, (self.low.cpu(), self.high.cpu()))
        sums = ranks.summed(what, self._sums())
        # What a rank's batches do not reach it knows nothing of: the others say it.
        counts, calls, uses, turns = zip(*numbers, strict=True)
        self.count, self.uses = sum(counts), sum(uses)
        self.calls, self.turn = max(calls), max(turns)
        reached = [both for both, count in zip(bounds, counts, strict=True) if count]
        if reached:
            lows, highs = zip(*reached, strict=True)
            device = self.weight.device
            self.low = torch.stack(lows).amin(0).to(device)
            self.high = torch.stack(highs).amax(0).to(device)
        if "total" in sums:
            self.total = sums["total"].to(self.weight.device)

    def _sums(self) -> dict[str, Tensor]:
        """What is summed over ranks; nothing where nothing was seen."""
        if not self.count:
            return {}
        return {"total": self.total}

    def note_mean(self, mean: Tensor | None) -> None:
        """Take in what a call's output goes to: a running mean that is its alone, or None."""
        self.means[id(mean)] = mean  # None has an id, too

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
        if largest:
            return deviation / largest
        return float("inf") if deviation else 0.0


def reading(plan: PruningPlan) -> list[tuple[TensorCut, np.ndarray]]:
    """The axes that read dropped channels, each with the entries that do.

    Raises:
        PlanError: there are none.
    """
    consumers = [t for t in plan.tensors if "consumer" in t.role]
    entries = [(t, np.flatnonzero(destinations(t) == DROPPED)) for t in consumers]
    found = [(t, gone) for t, gone in entries if len(gone)]
    if not found:
        raise PlanError(
            "nothing to fold: the plan drops no channel that is read by weights (merged ones "
            "are summed)"
        )
    return found


def _measure(model: nn.Module, plan: PruningPlan, batches: Any) -> list[Flow]:
    tensors = dict(named_tensors(model))
    flows = [Flow(t, gone, tensors[t.tensor]) for t, gone in reading(plan)]
    watched(model, flows, batches)
    for flow in flows:
        if not torch.isfinite(flow.total).all():
            raise ArgumentError(
                f"what {flow.cut.tensor!r} reads is not finite on these batches: there is no "
                "mean to move"
            )
    return flows


def watched(model: nn.Module, flows: Sequence[Flow], batches: Any) -> None:
    """Run the batches, those of all ranks of a distributed run, and have the flows take them in."""
    watch = Watch({id(flow.weight): flow for flow in flows})

    def run() -> None:
        with torch.no_grad(), eagerly(), evaluating(model), watch:
            for _, output in outputs(model, batches):
                watch.finish(output)

    ranks.everywhere("what layers read of removed channels", run)
    if ranks.count() > 1:
        for flow in flows:
            flow.over_ranks()


class Watch(TorchFunctionMode):
    """Sees the layers of a forward pass that read dropped channels, and where their outputs go.

    An id tells which object a tensor is only while the object lives: `made` keeps the outputs of a
    pass alive, so that no later one gets the same id.
    """

    def __init__(self, flows: dict[int, Flow]) -> None:
        super().__init__()
        self.flows = flows  # by the id of the weights
        self._begin()

    def _begin(self) -> None:
        self.calls: Counter[int] = Counter()  # of weights, biases and running means, by id
        # By the id of an output: itself, whose it is, and for each use of it the running mean that
        # is subtracted there, None where it is another use.
        self.made: dict[int, tuple[Tensor, Flow, list[Tensor | None]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made_tensor = any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        if made_tensor:  # to ask for a size and the like is no use
            self._use(func, args, kwargs)
        if func in FUNCTIONS:
            self._layer(func, *first_of(("input", "weight", "bias"), args, kwargs), result)
        return result

    def _use(self, func: Any, args: Args, kwargs: Kwargs) -> None:
        mean = None
        if func is F.batch_norm:
            (_, mean), _, _ = first_of(("input", "running_mean"), args, kwargs)
            self.calls[id(mean)] += 1
        for leaf in tree_leaves((args, kwargs)):
            self.calls[id(leaf)] += id(leaf) in self.flows
            if id(leaf) in self.made:
                output, flow, uses = self.made[id(leaf)]
                # The channels of a linear layer come last, those of a batch norm second.
                same_channels = flow.weight.dim() > 2 or output.dim() == 2
                uses.append(mean if same_channels else None)

    def _layer(
        self, func: Any, named: Sequence[Any], args: Args, kwargs: Kwargs, result: Tensor
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
            flow.note_mean(self._own_mean(uses, is_returned=number in returned))
            flow.calls = max(flow.calls, self.calls[id(flow.weight)])
            if any(self.calls[id(bias)] > 1 for bias in flow.biases.values() if bias is not None):
                flow.calls = max(flow.calls, 2)
        self._begin()

    def _own_mean(self, uses: Sequence[Tensor | None], *, is_returned: bool) -> Tensor | None:
        """The running mean of the normalisation that alone reads an output, and reads no other."""
        if is_returned or len(uses) != 1:
            return None
        (mean,) = uses
        if self.calls[id(mean)] != 1:
            return None
        return mean


def first_of(
    names: Sequence[str], args: Args, kwargs: Kwargs
) -> tuple[list[Any], Args, dict[str, Any]]:
    """The first arguments of a call by name (None where one is not given), and the others."""
    positional = dict(zip(names, args, strict=False))
    values = [positional.get(name, kwargs.get(name)) for name in names]
    return values, args[len(names) :], {k: v for k, v in kwargs.items() if k not in names}


@dataclass(frozen=True)
class Place:
    """Where a flow can go: a tensor, which may be the bias of a module that has none yet."""

    target: str | None = None
    sign: int = 1
    new: str | None = None
    reason: str = ""


def place_of(model: nn.Module, flow: Flow, names: Mapping[int, str]) -> Place:
    """Where the constant of a flow can go; ``names`` are those of the model's tensors, by id."""
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
    bias, mean = _only(flow.biases), _only(flow.means)
    if bias is not None:
        if id(bias) not in names:
            return Place(reason="the bias is computed from other tensors")
        return Place(names[id(bias)])
    if mean is not None and id(mean) in names:
        # A normalisation subtracts its mean m: with c gone from what it reads, m has to lose c too.
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


def _only(seen: dict[int, Tensor | None]) -> Tensor | None:
    if len(seen) != 1:
        return None
    return next(iter(seen.values()))


@torch.no_grad()
def move(tensors: Mapping[str, Tensor], flow: Flow, place: Place) -> Moved:
    """Take what a flow reads out of its weights, and put the mean of it where it can go."""
    row = Moved(flow.cut.tensor, place.target, len(flow.gone), reason=place.reason)
    if place.reason:
        return row
    flow.weight.index_fill_(flow.cut.axis, flow.gone, 0)
    if place.target is None:
        return row
    target = tensors[place.target]
    target.add_(flow.shift.to(target), alpha=place.sign)
    return replace(row, spread=flow.spread)
