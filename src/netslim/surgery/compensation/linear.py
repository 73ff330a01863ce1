"""Have the channels that stay stand in for those that go: least squares on what each layer reads.

Each layer that reads removed channels x_R is watched on data. They are fitted by the channels that
stay, x_R ~ M x_K + b, and the fit moves into the layer's weights, W_K + W_R M, and W_R b into its
bias (or the running mean behind it), tap by tap of a kernel. Least squares fits every removed
channel on its own, so it does not matter how much the layer makes of each: with the best M and b
for the channels, W_R (M x_K + b) is the best for its outputs as well, exactly for linear layers and
1x1 convolutions; in larger kernels the taps are taken one by one.

That is why one pass over the data is enough, and why nothing of the size of the outputs is kept:
the fit needs the means and covariances of what the layer reads, see `least_squares`.

What is left over a layer hands on to the next. Layer after layer (`kernels`) each is fitted to what
it computed, whole kernels at once, from what it reads by then. So are the layers behind a block
that goes in either way: all that they read is something else than it was.

Luo et al., "ThiNet", 2017 (section 3.2.3) fit the outputs of a layer by a scale for each channel
that stays; Kim et al., "Neuron Merging: Compensating for Pruned Neurons", 2020, and its successor
LBYL move a removed channel's filters into those that stay, without data.
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

import netslim.ranks as ranks
from netslim._support import brief, checks_calls
from netslim.errors import ArgumentError, PlanError, TraceError
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.ambient import by_itself
from netslim.graph.modules.batches import inputs_of
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import layer_of, named_modules, named_tensors
from netslim.surgery.compensation.constants import (
    Flow,
    Folding,
    Model,
    Moved,
    Place,
    extended,
    move,
    move_constants,
    place_of,
    reading,
    watched,
)
from netslim.surgery.compensation.kernels import KernelFit, LayerAfterLayer, small_enough
from netslim.surgery.compensation.least_squares import Fit, Layout
from netslim.surgery.compensation.ways import FoldWay
from netslim.surgery.plan import PruningPlan
from netslim.surgery.rows import TensorCut, bias_of, weight_of

logger = logging.getLogger("netslim")


# A flattened map has an entry for each channel and place. They are fitted one by one up to LARGEST
# entries and with SAMPLES examples for each; else the places of a channel share its fit.
LARGEST = 4096
SAMPLES = 4
_NONE = np.empty(0, dtype=np.int64)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@checks_calls
@by_itself
def compensate(
    model: Model,
    plan: PruningPlan,
    batches: Iterable[Any],
    way: FoldWay = "sequential",
    *,
    ridge: float | None = None,
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
    * ``"sequential"``: layer after layer, in order of execution, what a layer of the original
      computes is fitted by what the layer reads after those before it were cut: the weights of
      whole kernels, nearest in the sense of least squares (He et al., "Channel Pruning for
      Accelerating Very Deep Neural Networks", 2017, eq. 3). Layers that read no removed channel
      make up for what deviates, too. Each batch is run five times, however deep the network; of
      many or large batches only the first ones are looked at again, as their runs wait before each
      layer, in some 2 GiB. Where a network computes examples otherwise together than alone, these
      are eight batches at most. Weights that are used more than once, layers of which one output
      reads more than some 6,000 entries, and those that read other examples after the cut are
      fitted as by ``"linear"``, or stay.

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
        ridge: of the fits: this share of the mean variance of what stays is added to the variance
            of each, which keeps combinations small where channels are nearly the same, and kernels
            near to what they were where the data says little. None takes 1e-4; for whole kernels
            0.02 times the entries that one output reads over the number of images.

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
    if ridge is not None and not ridge > 0:
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
    inner: Model, plan: PruningPlan, batches: Iterable[Any], way: FoldWay, ridge: float | None
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
    inner: Model,
    plan: PruningPlan,
    batches: Iterable[Any],
    ridge: float | None,
    *,
    sequential: bool,
) -> Folding[Model]:
    plan.check(inner)
    copy = duplicate(inner)
    plan = extended(copy, replace(plan, biases=()), plan.biases)
    if isinstance(batches, Iterator):  # it is read several times
        batches = list(batches)
    others = _layers(copy, plan) if sequential else _behind(copy, plan, batches)
    fits = _measure(copy, plan, others, batches, gathers=not sequential)
    names = {id(tensor): name for name, tensor in named_tensors(copy)}
    places = {fit: _place(copy, fit, names) for fit in fits}
    plan = extended(copy, plan, [place.new for place in places.values() if place.new is not None])
    tensors = dict(named_tensors(copy))
    shared = [tensors[place.target] for place in places.values() if place.target is not None]
    anew = [fit for fit in fits if isinstance(fit, Fit) and _runs_once(fit)]
    in_order = sorted(fits, key=lambda fit: fit.turn)
    if sequential:
        tables = {fit for fit in anew if fit.layout.table is not None}
        by_channels = [fit for fit in fits if fit not in anew or fit in tables]
        _gather(by_channels, copy, batches)
    else:
        anew = [fit for fit in anew if fit.cut.tensor in others]
    rows: dict[Flow, Moved] = {}
    # In order of execution: each layer is fitted to what those before it really give by then, so a
    # deviation is made up for by the next layer and not handed on to all that follow.
    with LayerAfterLayer(inner, copy, plan, anew, shared, batches) as layers:
        for fit in in_order:
            whole = layers.fit(fit, ridge) if fit in anew else None
            if whole is not None and whole.seen:
                if len(fit.gone) or whole.misses:
                    rows[fit] = _moved(tensors, whole, places[fit], ridge)
            elif len(fit.gone):
                _gather([fit], copy, batches)
                rows[fit] = _move(tensors, fit, places[fit], ridge)
    for row in rows.values():
        if row.reason:
            what = "what it reads"
            if row.explained is not None:
                what = f"the constant part of {what}"
            logger.warning(
                "%s: %s of removed channels is not moved: %s", row.consumer, what, row.reason
            )
    return Folding(copy, plan, tuple(rows[fit] for fit in fits if fit in rows))


def _layers(model: nn.Module, plan: PruningPlan) -> dict[str, TensorCut]:
    """All layers: the axis of the weights that reads, of which the plan need not cut anything."""
    found = {}
    tensors = dict(named_tensors(model))
    for module, path in named_modules(model).items():
        own = weight_of(path) in tensors  # it is computed of others, or another layer's
        if isinstance(module, _LAYERS) and own and not plan.dropped.holds(weight_of(path)):
            axis = int(not isinstance(module, _TRANSPOSED))
            size = module.weight.shape[axis]
            if size <= LARGEST:
                name = weight_of(path)
                found[name] = TensorCut(name, axis, size, tuple(range(size)), "consumer")
    return found


def _behind(model: nn.Module, plan: PruningPlan, batches: Any) -> dict[str, TensorCut]:
    """The layers that read what a block that goes is added to."""
    call, _ = _first_call(batches)
    if not plan.dropped or call is None:
        return {}
    try:
        blocks = trace(model, call, blocks=True).blocks
    except TraceError:  # whether the model runs on the batches is seen soon
        return {}
    assert blocks is not None
    sums = {one for block in plan.dropped.blocks for one in block.sums}
    behind = blocks.layers_behind(sums)
    return {name: cut for name, cut in _layers(model, plan).items() if name in behind}


def _measure(
    model: nn.Module,
    plan: PruningPlan,
    others: Mapping[str, TensorCut],
    batches: Any,
    *,
    gathers: bool,
) -> list[Flow]:
    """What each layer reads that reads removed channels, or is one of the others."""
    tensors = dict(named_tensors(model))
    read = [*_reading(plan, bool(others and plan.dropped))]
    known = {cut.tensor for cut, _ in read}
    rows = [(cut, gone, tensors[cut.tensor]) for cut, gone in read]
    tables = _tables(model, rows, batches)
    rows += [(cut, _NONE, tensors[name]) for name, cut in others.items() if name not in known]
    flows = [_flow(cut, gone, weight, tables.get(cut), gathers) for cut, gone, weight in rows]
    watched(model, flows, batches)
    for flow in flows:
        finite = flow.finite if isinstance(flow, Fit) else bool(flow.total.isfinite().all())
        if not finite:
            raise ArgumentError(
                f"what {flow.cut.tensor!r} reads is not finite on these batches: there is "
                "nothing to fit"
            )
    return flows


def _gather(fits: Iterable[Flow], model: nn.Module, batches: Any) -> None:
    """Take in what those need that have not."""
    waiting = [fit for fit in fits if isinstance(fit, Fit) and len(fit.gone) and not fit.gathers]
    for fit in waiting:
        fit.gathers, fit.count = True, 0
    if waiting:
        watched(model, waiting, batches)


def _reading(plan: PruningPlan, blocks: bool) -> list[tuple[TensorCut, np.ndarray]]:
    """As `reading`; where ``blocks`` go, there may be none."""
    try:
        return reading(plan)
    except PlanError:
        if not blocks:
            raise
        return []


def _flow(
    cut: TensorCut, gone: np.ndarray, weight: Tensor, table: Tensor | None, gathers: bool
) -> Flow:
    if table is None and cut.size > LARGEST:
        logger.warning(
            "%s: only the mean of what goes is moved: more than %d entries", cut.tensor, LARGEST
        )
        return Flow(cut, gone, weight)
    return Fit(cut, gone, weight, Layout(cut, gone, weight, table), gathers)


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


def _runs_once(fit: Fit) -> bool:
    """Whether the layer's kernels can be fitted as a whole."""
    return not _lost(fit) and fit.calls == 1 and small_enough(fit)


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


def _place(model: nn.Module, fit: Flow, names: Mapping[int, str]) -> Place:
    reason = _lost(fit)
    if reason:
        return Place(reason=reason)
    place = place_of(model, fit, names)
    if not len(fit.gone) and (place.new or place.reason):  # a layer of which nothing need change
        return Place()
    return place


def _move(tensors: Mapping[str, Tensor], fit: Flow, place: Place, ridge: float | None) -> Moved:
    if not isinstance(fit, Fit):
        return move(tensors, fit, place)
    if _lost(fit):
        return Moved(fit.cut.tensor, place.target, len(fit.gone), reason=place.reason)
    return _moved(tensors, fit, place, ridge)


@torch.no_grad()
def _moved(
    tensors: Mapping[str, Tensor], fit: Fit | KernelFit, place: Place, ridge: float | None
) -> Moved:
    row = Moved(fit.cut.tensor, place.target, len(fit.gone), reason=place.reason)
    matrix, shift, explained = fit.solve(ridge, centred=place.target is not None)
    fit.layout.write(matrix)
    if place.target is not None:
        target = tensors[place.target]
        target.add_(shift.to(target), alpha=place.sign)
    return replace(row, explained=explained)


__all__ = ["compensate"]
