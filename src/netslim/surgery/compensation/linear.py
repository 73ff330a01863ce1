"""Have the channels that stay stand in for those that go: least squares on what each layer reads.

Each layer that reads removed channels x_R is watched on data. They are fitted by the channels that
stay, x_R ~ M x_K + b, and the fit moves into the layer's weights, W_K + W_R M, and W_R b into its
bias (or the running mean behind it), tap by tap of a kernel. Least squares fits every removed
channel on its own, so it does not matter how much the layer makes of each: with the best M and b
for the channels, W_R (M x_K + b) is the best for its outputs as well, exactly for linear layers and
1x1 convolutions; in larger kernels the taps are taken one by one.

That is why one pass over the data is enough, and why nothing of the size of the outputs is kept:
the fit needs the means and covariances of what the layer reads, see `least_squares`.

Behind a block that goes every layer reads something else than it did. What it read is fitted by
what it reads without the branch, the deviation being what is missing, layer after layer.

He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", 2017 (eq. 3: least squares
for the weights that stay) and Luo et al., "ThiNet", 2017 (section 3.2.3) fit the outputs of a
layer; Kim et al., "Neuron Merging: Compensating for Pruned Neurons", 2020, and its successor LBYL
move a removed channel's filters into those that stay, without data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import netslim.ranks as ranks
from netslim._support import brief, checks_calls
from netslim.errors import ArgumentError, PlanError, TraceError
from netslim.graph import trace
from netslim.graph.blocks import Addition
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.layers import FUNCTIONS
from netslim.graph.modules.ambient import by_itself, eagerly
from netslim.graph.modules.batches import inputs_of, outputs
from netslim.graph.modules.calls import evaluating
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import layer_of, named_modules, named_tensors
from netslim.surgery.compensation.constants import (
    Args,
    Flow,
    Folding,
    Kwargs,
    Model,
    Moved,
    Place,
    extended,
    first_of,
    move,
    move_constants,
    place_of,
    reading,
    watched,
)
from netslim.surgery.compensation.least_squares import Fit, Layout
from netslim.surgery.compensation.ways import FoldWay
from netslim.surgery.plan import PruningPlan
from netslim.surgery.proof.branches import branches_silent
from netslim.surgery.rows import TensorCut, bias_of, weight_of

logger = logging.getLogger("netslim")


# A flattened map has an entry for each channel and place. They are fitted one by one up to LARGEST
# entries and with SAMPLES examples for each; else the places of a channel share its fit.
LARGEST = 4096
SAMPLES = 4
_NONE = np.empty(0, dtype=np.int64)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@checks_calls
@by_itself
def compensate(
    model: Model,
    plan: PruningPlan,
    batches: Iterable[Any],
    way: FoldWay = "linear",
    *,
    ridge: float = 1e-4,
) -> Folding[Model]:
    """A copy of ``model`` in which what the channels that ``plan`` removes emit comes from
    elsewhere.

    * ``"constant"``: what is constant of it, its mean over the batches, moves into what reads it. A
      layer with a bias takes it there; else the batch normalisation that alone reads the layer's
      output takes it off its running mean; else the layer is given a bias. Exact where it is
      constant, as behind filters or scales of zero where no zero padding makes it smaller at the
      border; else `Moved.spread` says by how much it is not.
    * ``"linear"``: the channels that stay stand in for it. What a layer reads of removed channels
      is replaced by the linear combination of what it reads of the others, and a constant, that is
      nearest in the sense of least squares on the batches. The combination moves into the layer's
      weights; the constant goes where constants go, and where none can go the fit is through the
      origin. In grouped convolutions the channels of a group fit each other. The entries of a
      flattened map are fitted one by one if there are enough examples for it; else all places of
      the map share the fit of its channels.
    * ``"sequential"``: the same layer after layer, in order of execution: what the original reads
      is fitted by what the layer reads after the layers before it were cut, so that deviations do
      not add up. The batches are run twice for each layer, as far as that layer. Weights that are
      used more than once are fitted as by ``"linear"``.

    Layers that read what a dropped block was added to are fitted layer after layer by ``"linear"``,
    too; ``"constant"`` moves nothing of blocks.

    Channels that are merged are left alone. What cannot be moved is told in `Folding.moved` and in
    a warning.

    ``netslim.prune(folding.model, folding.plan)`` is the smaller model; its history starts at the
    architecture of ``model``, so that `netslim.load` rebuilds it from a fresh one.

    Args:
        model: the original; it is not changed. It is run in evaluation mode.
        plan: what goes.
        batches: data loader or list; a batch is a tensor, a list or tuple with the input first, or
            a dict. In a distributed run each rank gives its own, and the fits are those of all.
        way: one of the three.
        ridge: of the fits: this share of the mean variance of the channels that stay is added to
            the variance of each, which keeps the combination small where they are nearly the same.

    Raises:
        PlanError: the plan is for another architecture or removes nothing that is read.
        ArgumentError: there is no such way, ``ridge`` is not above 0, there are no batches, the
            model does not run on one, or gives values that are not finite.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "l2")
        >>> plan = netslim.select(graph, scores, netslim.Budget(cut_macs=0.5))
        >>> mended = netslim.surgery.compensate(model, plan, loader)
        >>> small = netslim.prune(mended.model, mended.plan)
    """
    if way not in (known := get_args(FoldWay)):
        raise ArgumentError(f"way must be {' or '.join(map(repr, known))}, got {brief(way)}")
    if not ridge > 0:
        raise ArgumentError(
            f"ridge must be above 0, got {ridge}: a small share of a channel's variance, such "
            "as 1e-4"
        )
    inner = bare(model, ArgumentError, call="compensate(model, plan, batches)")
    what = "what makes up for removed channels"
    folding = ranks.everywhere(what, lambda: _compensated(inner, plan, batches, way, ridge))
    if ranks.count() == 1:
        return folding
    # The sums are alike on all ranks to the last bit, what other hardware makes of them need not.
    result = ranks.shared(what, lambda: _Result.of(inner, folding, plan))
    return result.carried_out(inner, plan)


def _compensated(
    inner: Model, plan: PruningPlan, batches: Iterable[Any], way: FoldWay, ridge: float
) -> Folding[Model]:
    if way == "constant":
        return move_constants(inner, plan, batches)
    return _fitted(inner, plan, batches, ridge, sequential=way == "sequential")


@dataclass(frozen=True)
class _Result:
    """What one rank of a distributed run has come to, for all of them.

    Attributes:
        biases: layers that were given one besides those of the plan.
        tensors: name -> new value, of those that changed.
        moved: of the folding.
    """

    biases: tuple[str, ...]
    tensors: dict[str, Tensor]
    moved: tuple[Moved, ...]

    @staticmethod
    def of(inner: nn.Module, folding: Folding[Any], plan: PruningPlan) -> _Result:
        before = dict(named_tensors(inner))
        after = {name: tensor.detach().cpu() for name, tensor in named_tensors(folding.model)}
        planned = set(map(bias_of, plan.biases))
        biases = [layer_of(name) for name in after if name not in before and name not in planned]
        changed = {
            name: tensor
            for name, tensor in after.items()
            if name not in before or not torch.equal(tensor, before[name].detach().cpu())
        }
        return _Result(tuple(biases), changed, folding.moved)

    @torch.no_grad()
    def carried_out(self, inner: Model, plan: PruningPlan) -> Folding[Model]:
        copy = duplicate(inner)
        plan = extended(copy, replace(plan, biases=()), plan.biases)
        plan = extended(copy, plan, self.biases)
        tensors = dict(named_tensors(copy))
        for name, value in self.tensors.items():
            tensors[name].copy_(value)
        return Folding(copy, plan, self.moved)


def _fitted(
    inner: Model, plan: PruningPlan, batches: Iterable[Any], ridge: float, *, sequential: bool
) -> Folding[Model]:
    plan.check(inner)
    copy = duplicate(inner)
    plan = extended(copy, replace(plan, biases=()), plan.biases)
    if isinstance(batches, Iterator):  # it is read several times
        batches = list(batches)
    sums = [one for block in plan.dropped.blocks for one in block.sums]
    behind = _behind(copy, plan, batches)
    fits = _measure(copy, plan, behind, batches)
    places = {fit: _place(copy, fit) for fit in fits}
    plan = extended(copy, plan, [place.new for place in places.values() if place.new is not None])
    rows: dict[Flow, Moved] = {}
    # In order of execution: each layer is fitted to what those before it really give by then, so a
    # deviation is made up for by the next layer and not handed on to all that follow.
    for fit in sorted(fits, key=lambda fit: fit.turn):
        place = places[fit]
        anew = sequential or fit.cut.tensor in behind
        if anew and isinstance(fit, Fit) and not _lost(fit) and fit.calls == 1:
            # By now `copy` holds the fits of all layers before this one.
            again = _measure_again(inner, copy, fit, batches, sums)
            if len(fit.gone) or again.moments.count >= SAMPLES * fit.cut.size:
                rows[fit] = _move(copy, again, place, ridge)
        elif len(fit.gone):
            rows[fit] = _move(copy, fit, place, ridge)
    for row in rows.values():
        if row.reason:
            what = "what it reads"
            if row.explained is not None:
                what = f"the constant part of {what}"
            logger.warning(
                "%s: %s of removed channels is not moved: %s", row.consumer, what, row.reason
            )
    return Folding(copy, plan, tuple(rows[fit] for fit in fits if fit in rows))


def _behind(model: nn.Module, plan: PruningPlan, batches: Any) -> dict[str, TensorCut]:
    """The layers that read what a block that goes is added to: the axis of the weights that reads,
    of which the plan need not cut anything.
    """
    call, _ = _first_call(batches)
    if not plan.dropped or call is None:
        return {}
    try:
        blocks = trace(model, call, blocks=True).blocks
    except TraceError:  # whether the model runs on the batches is seen soon
        return {}
    assert blocks is not None
    sums = {one for block in plan.dropped.blocks for one in block.sums}
    layers = {path: module for module, path in named_modules(model).items()}
    found = {}
    for name in sorted(blocks.layers_behind(sums)):
        layer = layers.get(layer_of(name))
        if isinstance(layer, _LAYERS) and name == weight_of(layer_of(name)):
            size = layer.weight.shape[1]
            if size <= LARGEST and not plan.dropped.holds(name):
                found[name] = TensorCut(name, 1, size, tuple(range(size)), "consumer")
    return found


def _measure(
    model: nn.Module, plan: PruningPlan, behind: Mapping[str, TensorCut], batches: Any
) -> list[Flow]:
    """What each layer reads that reads removed channels, or what blocks were added to."""
    tensors = dict(named_tensors(model))
    read = [*_reading(plan, bool(behind))]
    known = {cut.tensor for cut, _ in read}
    rows = [(cut, gone, tensors[cut.tensor]) for cut, gone in read]
    tables = _tables(model, rows, batches)
    rows += [(cut, _NONE, tensors[name]) for name, cut in behind.items() if name not in known]
    flows = [_flow(cut, gone, weight, tables.get(cut)) for cut, gone, weight in rows]
    watched(model, flows, batches)
    for flow in flows:
        sums = flow.total
        if isinstance(flow, Fit):
            sums = flow.moments.square
        if not torch.isfinite(sums).all():
            raise ArgumentError(
                f"what {flow.cut.tensor!r} reads is not finite on these batches: there is "
                "nothing to fit"
            )
    return flows


def _reading(plan: PruningPlan, blocks: bool) -> list[tuple[TensorCut, np.ndarray]]:
    """As `reading`; where ``blocks`` go, there may be none."""
    try:
        return reading(plan)
    except PlanError:
        if not blocks:
            raise
        return []


def _flow(cut: TensorCut, gone: np.ndarray, weight: Tensor, table: Tensor | None) -> Flow:
    if table is None and cut.size > LARGEST:
        logger.warning(
            "%s: only the mean of what goes is moved: more than %d entries", cut.tensor, LARGEST
        )
        return Flow(cut, gone, weight)
    return Fit(cut, gone, weight, Layout(cut, gone, weight, table))


def _tables(
    model: nn.Module, rows: list[tuple[TensorCut, np.ndarray, Tensor]], batches: Any
) -> dict[TensorCut, Tensor]:
    """For linear layers with too many entries to fit one by one: where each channel's entries are.

    Returns:
        Their cut -> entries of the flattened map, (channels, places).
    """
    call, own = _first_call(batches)
    known = ranks.gathered("the number of examples", own)
    numbers = [number for number in known if number is not None]
    if len(numbers) < len(known) or all(weight.dim() > 2 for *_, weight in rows):
        return {}
    examples = sum(numbers)
    found: dict[TensorCut, Tensor] = {}
    graph = None
    for cut, _, weight in rows:
        if weight.dim() == 2 and (cut.size > LARGEST or examples < SAMPLES * len(cut.kept)):
            try:
                graph = graph or trace(model, call)
            except TraceError:  # whether the model runs on the batches is seen soon
                return {}
            table = _table(graph, cut)
            if table is not None:
                found[cut] = table
    return found


def _first_call(batches: Any) -> tuple[Any, int | None]:
    """(the inputs in the first batch, how many examples there are, 0 if that is unknown).

    None examples: what is wrong with the batches is said where they are run.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
        return None, None
    first = list(islice(batches, 1))
    if not first:
        return None, None
    args, kwargs = inputs_of(first[0])
    values = [value for value in chain(args, kwargs.values()) if isinstance(value, Tensor)]
    sizes = [len(value) for value in values if value.dim()]
    if not isinstance(batches, Sized) or not sizes:
        return kwargs or args, 0
    return kwargs or args, len(batches) * sizes[0]


def _table(graph: ChannelGraph, cut: TensorCut) -> Tensor | None:
    """Entries of one axis, (channels, places); None where not all its channels have as many."""
    slices = chain.from_iterable(group.slices for group in graph.groups)
    tables = []
    for s in slices:
        if (s.tensor, s.axis) == (cut.tensor, cut.axis):
            by_unit = s.positions[np.lexsort((s.positions, s.units))]
            tables.append(by_unit.reshape(s.units.max() + 1, -1))
    places = {table.shape[1] for table in tables}
    if len(places) != 1 or places == {1} or sum(table.size for table in tables) != cut.size:
        return None
    return torch.from_numpy(np.vstack(tables))


class _FoundError(Exception):
    """The call that was looked for has been seen."""


class _Inputs(TorchFunctionMode):
    """Ends a forward pass at the call of a layer with these weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.call: tuple[Any, Tensor, Args, Kwargs] | None = None  # function, input, the others

    def __torch_function__(
        self, func: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        if func in FUNCTIONS:
            (x, weight, _), more, named = first_of(("input", "weight", "bias"), args, kwargs or {})
            if weight is self.weight:
                self.call = func, x, more, named
                raise _FoundError
        return func(*args, **(kwargs or {}))


def _measure_again(
    model: nn.Module, copy: nn.Module, fit: Fit, batches: Any, sums: Iterable[Addition]
) -> Fit:
    """The fit of what ``model`` reads by what ``copy`` reads now, without the branches of sums."""
    again = Fit(fit.cut, fit.gone.cpu().numpy(), fit.weight, fit.layout)
    weight = dict(named_tensors(model))[fit.cut.tensor]

    def run() -> None:
        # Two runs a batch, ended at this layer: its inputs are never kept for longer than a batch.
        for batch in batches:
            func, x, args, kwargs = _input(model, weight, batch)
            with branches_silent(copy, sums):
                _, now, _, _ = _input(copy, fit.weight, batch)
            with torch.no_grad():
                again.compare(func, x, now, args, kwargs)

    ranks.everywhere("what layers read of removed channels", run)
    if ranks.count() > 1:
        again.over_ranks()
    again.uses = again.taken
    return again


def _input(model: nn.Module, weight: Tensor, batch: Any) -> tuple[Any, Tensor, Args, Kwargs]:
    """The call of the layer with these weights on one batch."""
    watch = _Inputs(weight)
    with torch.no_grad(), eagerly(), evaluating(model), watch:
        try:
            for _ in outputs(model, [batch]):
                pass
        except ArgumentError:
            if watch.call is None:
                raise
    if watch.call is None:
        raise ArgumentError(
            "a layer that reads removed channels runs on some of the batches and not on others: "
            "way='sequential' needs it in each, take way='linear'"
        )
    return watch.call


def _lost(fit: Flow) -> str:
    """Why nothing of a fit can be moved."""
    if not isinstance(fit, Fit):
        return ""
    if fit.cut.role != "consumer":
        return "the weights make or scale channels, too"
    if not fit.count:
        return "no convolution or linear layer was seen to run with just these weights"
    if fit.uses != fit.taken:
        return "the weights are used by other operators than layers, too"
    return ""


def _place(model: nn.Module, fit: Flow) -> Place:
    reason = _lost(fit)
    if reason:
        return Place(reason=reason)
    return place_of(model, fit)


@torch.no_grad()
def _move(model: nn.Module, fit: Flow, place: Place, ridge: float) -> Moved:
    if not isinstance(fit, Fit):
        return move(model, fit, place)
    row = Moved(fit.cut.tensor, place.target, len(fit.gone), reason=place.reason)
    if _lost(fit):
        return row
    matrix, shift, explained = fit.solve(ridge, centred=place.target is not None)
    fit.layout.write(matrix)
    if place.target is not None:
        target = dict(named_tensors(model))[place.target]
        target.add_(shift.to(target), alpha=place.sign)
    return replace(row, explained=explained)


__all__ = ["compensate"]
