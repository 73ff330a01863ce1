"""Soft Filter Pruning: zero the weakest filters after every epoch, and let them grow back.

After He et al. (IJCAI 2018). Where it acts in training::

    method = SoftFilterPruning(graph, model, 0.3).attach(optimizer)   # <- zeroes before training
    for epoch in range(epochs):
        for batch in loader:
            ...                          # zero filters receive gradients like all others
            optimizer.step()
        method.end_epoch()               # <- zeroes the weakest as the weights stand now
    method.finish(constants="zero")      # <- a last time; what zero filters still emit goes too
    small = netslim.prune(model, method.plan())
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from math import floor
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

import netslim.ranks as ranks
from netslim._support import brief, checks_calls, is_number, is_whole
from netslim.errors import ArgumentError, PlanError
from netslim.graph import coupling
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup, Slice
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import layer_of, named_tensors
from netslim.graph.words.naming import granted
from netslim.methods.hooks import Attachments, after_step, parameters_of
from netslim.selection.budget.limits import staying
from netslim.selection.criteria.registry import Criterion
from netslim.selection.criteria.scoring import score
from netslim.selection.options import Limits, Scoring, Shortcuts, takes_options
from netslim.selection.select import select
from netslim.surgery.plan import PruningPlan
from netslim.surgery.sharding import in_one_piece

Rate = float | Mapping[str, float]
Tensors = Mapping[str, Tensor]


@checks_calls
class SoftFilterPruning:
    """`SoftFilterPruning(graph, model, 0.3).attach(optimizer)`; train, and call `.end_epoch()`.

    Of each group that it acts on, the ``int(N * rate)`` filters of least importance are set to zero
    before training and after each epoch, all groups at once; BN is untouched. Zero filters go on
    training like the others and may come back: the next zeroing chooses anew (Algorithm 1).
    Momentum buffers are left alone, as in the authors' code. A zero filter that has not come back
    is always chosen again, so there are never more zeros than asked for.

    It acts on groups that can be cut exactly. In a group that several layers share, all of them
    lose the same filters. (The paper zeroes each layer on its own, after which hardly any channel
    of a shortcut is zero in all of them and nothing can be cut there.)

    Two things to know. The gradient of a zero filter is some hundred times the ordinary one, for
    its BN divides by the root of its eps: where epochs are short, clip gradients
    (`torch.nn.utils.clip_grad_norm_`), or the filters that come back upset what the others have
    learnt. And the running means of BN are of the time before the last zeroing: call
    `netslim.surgery.recalibrate` after it.

    Every rank of a distributed run chooses the same filters, for it looks at nothing but the
    weights; that they did is compared each time.

    Args:
        graph: of this model.
        model: the network, from scratch or trained. Nothing about it changes before `attach`,
            `zero` or `end_epoch`.
        rate: the share of each group that is zeroed, 0 <= rate < 1 (P of the paper; ``--rate`` of
            the authors' command line is 1 - P, the share that is kept). Or a mapping from names to
            shares: patterns of group names (``"layer1.*"``), or any layer the graph knows, which
            stands for its group; a later entry overrides an earlier one, and what no entry names is
            left alone.
        criterion: ``"l2"`` (the paper), ``"l1"``, ``"geometric_median"`` (FPGM), any other of
            `netslim.score` that needs the weights alone, or a function like them.
        shortcuts: ``"avoid"`` leaves out the groups whose channels several layers are added into;
            the inner convolutions of residual blocks remain. ``"include"`` acts on them too.
        projections: False leaves out the groups that the projection of a shortcut is a part of.
        every: epochs from one zeroing to the next.

    Attributes:
        counts: group name -> how many of its filters are zeroed.
        left_alone: name of every other group -> why it is not acted on.
        epoch: epochs that have ended.
        returned: of the filters that the last zeroing but one had chosen, how many the last one let
            live.

    Raises:
        StaleGraphError: the graph is of another model.
        ArgumentError: an option is out of range or names no group.
        PlanError: a group cannot be zeroed, or no filter would be.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> soft = netslim.SoftFilterPruning(graph, model, rate=0.25)
        >>> for inputs, labels in loader:
        ...     optimizer.zero_grad()
        ...     F.cross_entropy(model(inputs), labels).backward()
        ...     optimizer.step()
        >>> soft.end_epoch()
        >>> small = netslim.prune(model, soft.plan())
    """

    def __init__(
        self,
        graph: ChannelGraph,
        model: nn.Module,
        rate: Rate,
        *,
        criterion: str | Criterion = "l2",
        shortcuts: Shortcuts = "avoid",
        projections: bool = True,
        every: int = 1,
    ) -> None:
        self.graph, self.model, self.criterion = graph, model, criterion
        self.every = _at_least_one("every", every)
        barred = staying(Limits(shortcuts=shortcuts), graph)
        with in_one_piece(model):
            inner = bare(model, ArgumentError, call="SoftFilterPruning(graph, model, rate)")
            scores = score(graph, inner, criterion)
            for group in (g for g in graph if g.name not in barred):
                if why := _obstacle(graph, group, inner, scores, projections):
                    barred[group.name] = why
        rates = _rates(graph, rate, barred)
        sizes = {name: graph[name].size for name in rates}
        # The authors' int(N * rate), save where rounding misses what is meant: 0.29 * 100 is
        # 28.999999999999996 and means 29. One filter is always left.
        self.counts = {n: min(floor(sizes[n] * r + 1e-9), sizes[n] - 1) for n, r in rates.items()}
        others = [group.name for group in graph if group.name not in rates]
        self.left_alone = {name: barred.get(name, "no rate names it") for name in others}
        if not any(self.counts.values()):
            raise PlanError(f"rate={rate!r} zeroes no filter: int(N * rate) is 0 in every group")
        self.epoch = self.returned = self._step = 0
        self._chosen: dict[str, Tensor] = {}
        self._clock: tuple[Optimizer, int] | None = None  # whose steps make epochs, and how many
        self._attached = Attachments("SoftFilterPruning", "it acts on every epoch as it is")

    def attach(
        self, optimizer: Optimizer, steps_per_epoch: int | None = None, *, at_start: bool = True
    ) -> Self:
        """Zero the filters a first time, and count the epochs where `optimizer` does the steps.

        A method whose state was loaded before goes on where it was: nothing is zeroed now.

        A network from scratch may want ``at_start=False``. A zero filter leaves its BN at beta;
        where that is zero, as at the start, or below, a ReLU passes no gradient back, and only
        momentum, of which there is none yet, could move the filter: those that are zeroed at the
        start never come back, and the choice is made before anything is learnt. Filters that are
        zeroed later do come back; `returned` tells.

        Args:
            optimizer: of this model.
            steps_per_epoch: an epoch ends by itself after so many steps that moved the parameters
                (those that `GradScaler` skips are none). Left out, call `end_epoch`.
            at_start: zero before the first step (the authors' code), not only after the first epoch
                (Algorithm 1).

        Raises:
            ArgumentError: attached to it already, it holds none of the filters, `steps_per_epoch`
                is below 1, or another optimizer counts the epochs.
        """
        optimizer = self._attached.new(optimizer)
        self._check_held(optimizer)
        if steps_per_epoch is None:
            self._attached.add(optimizer)
        elif self._clock is None:
            self._clock = optimizer, _at_least_one("steps_per_epoch", steps_per_epoch)
            self._attached.add(optimizer, after_step(optimizer, self._count_step))
        else:
            raise ArgumentError(
                "another optimizer counts the epochs: give steps_per_epoch for one of them only"
            )
        if at_start and not (self.epoch or self._step):
            self.zero()
        return self

    def detach(self, optimizer: Optimizer | None = None) -> None:
        """Count the steps of `optimizer` (by default: of any) no longer.

        Raises:
            ArgumentError: it is not attached to `optimizer`.
        """
        left = self._attached.remove(optimizer)
        if self._clock is not None and self._clock[0] in left:
            self._clock = None

    def end_epoch(self, last: bool = False) -> None:
        """An epoch is over: count it, and zero the filters if it is their turn, or the `last` one.

        Raises:
            ArgumentError: an attached optimizer counts the epochs already.
        """
        if self._clock is not None:
            raise ArgumentError(
                "epochs end by themselves, for attach was given steps_per_epoch: leave out "
                "end_epoch()"
            )
        self._end_epoch(last)

    @torch.no_grad()
    @ranks.in_step("the zeroing of filters")
    def zero(self) -> None:
        """Choose by the criterion as the weights stand, and zero these filters and their biases.

        Every group is judged before any is touched, so the order of the groups does not matter.

        Raises:
            StaleGraphError: the model is no longer the traced one.
            ArgumentError: the scores are not finite.
            DisagreementError: ranks of a distributed run have chosen differently.
        """
        with in_one_piece(self.model):
            chosen = self._zero()
        self.returned = sum(int((old & ~chosen[name]).sum()) for name, old in self._chosen.items())
        self._chosen = chosen

    def _zero(self) -> dict[str, Tensor]:
        inner = bare(self.model, ArgumentError)
        scores, tensors = score(self.graph, inner, self.criterion), dict(named_tensors(inner))
        chosen = {
            name: _weakest(self.graph[name], scores[name], tensors, n)
            for name, n in self.counts.items()
        }
        ranks.agree(
            "the filters to be zeroed",
            str({name: units.tolist() for name, units in chosen.items()}),
            "their weights are not the same any more: are gradients reduced in every step?",
        )
        for name, units in chosen.items():
            _fill(tensors, _filters(self.graph[name]), units)
        return chosen

    @torch.no_grad()
    def finish(self, constants: Literal["keep", "zero"] = "keep") -> Self:
        """Zero a last time, whatever epoch it is, and detach: the weights are as the plan wants.

        Args:
            constants: a zero filter still emits ``beta - gamma * mean / std`` after its BN.
                ``"zero"`` sets gamma, beta and all else that works on the channel alone to zero as
                well, after which the model equals the one that `plan` makes of it, where
                activations leave zero at zero. ``"keep"`` leaves them as they are, for
                `netslim.surgery.compensate` to move them into the layers behind. Call
                `netslim.surgery.recalibrate` before, where a zero filter is to emit what it did in
                training: its running mean is still that of the time before.

        Raises:
            ArgumentError: another value of `constants`, or as `zero` does.
        """
        if constants not in ("keep", "zero"):
            raise ArgumentError(f"constants must be 'keep' or 'zero', not {brief(constants)}")
        self.zero()
        if constants == "zero":
            with in_one_piece(self.model):
                tensors = dict(named_tensors(bare(self.model, ArgumentError)))
                for name, units in self._zeroed().items():
                    _fill(tensors, _constants(self.graph[name], tensors), units)
        self.detach()
        return self

    def share_zero(self) -> float:
        """The share, 0 to 1, of the channels it acts on whose filters are zero now."""
        units = list(self._zeroed().values())
        if not units:
            return 0.0
        return torch.cat(units).double().mean().item()

    @takes_options
    def plan(self, *, limits: Limits = Limits()) -> PruningPlan:
        """The plan that removes the channels whose filters are zero now, in the groups it acts on.

        Args:
            limits: what the cut must respect, as for `netslim.select`.

        Raises:
            PlanError: no filter is zero, or more are zero than the limits allow to remove.
        """
        with in_one_piece(self.model):
            plan = plan_of_zeros(
                self.graph, self.model, groups=self.counts, criterion=self.criterion, limits=limits
            )
        notes = [
            f"{name} stays: {why}"
            for name, why in self.left_alone.items()
            if not self.graph[name].frozen
        ]
        return replace(plan, notes=(*plan.notes, *notes))

    def state_dict(self) -> dict[str, Any]:
        """The counters of epochs and steps, and which filters were chosen last; plain data."""
        chosen = {name: units.nonzero().flatten().tolist() for name, units in self._chosen.items()}
        counters = {"epoch": self.epoch, "step": self._step, "returned": self.returned}
        return {**counters, "chosen": chosen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the weights are the checkpoint's matter.

        Load it before `attach`, or load the model's weights after.

        Raises:
            ArgumentError: it is not such a state, or of a method that acted on other groups.
        """
        try:
            epoch, step, returned = (int(state[key]) for key in ("epoch", "step", "returned"))
            chosen = {
                name: _mask(self.graph[name].size, units) for name, units in state["chosen"].items()
            }
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ArgumentError(
                f"this is not a state of SoftFilterPruning ({type(error).__name__}: {error})"
            ) from None
        if chosen and set(chosen) != set(self.counts):
            other = sorted(set(chosen) ^ set(self.counts))
            raise ArgumentError(
                "the state is of a method that acts on other groups; they differ in "
                f"{', '.join(other[:6])}"
            )
        self.epoch, self._step, self.returned, self._chosen = epoch, step, returned, chosen

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_clock": None}  # a copy is attached to nothing

    def __repr__(self) -> str:
        return (
            f"SoftFilterPruning(groups={len(self.counts)}, "
            f"filters={sum(self.counts.values())}, every={self.every}, epoch={self.epoch})"
        )

    def _zeroed(self) -> dict[str, Tensor]:
        with in_one_piece(self.model):
            return zeroed(self.graph, self.model, self.counts)

    def _check_held(self, optimizer: Optimizer) -> None:
        tensors = dict(named_tensors(bare(self.model, ArgumentError, allow=("sharded",))))
        held = set(map(id, parameters_of(optimizer)))
        made = chain.from_iterable(self.graph[name].tensors("producer") for name in self.counts)
        if not any(id(tensors[s.tensor]) in held for s in made):
            raise ArgumentError(
                f"this {type(optimizer).__name__} holds none of the filters that "
                "SoftFilterPruning zeroes: attach to an optimizer of this very model (a pruned "
                "copy needs a SoftFilterPruning of its own)"
            )

    def _count_step(self, _: Optimizer) -> None:
        self._step += 1
        if self._clock is not None and self._step >= self._clock[1]:
            self._step = 0
            self._end_epoch()

    def _end_epoch(self, last: bool = False) -> None:
        self.epoch += 1
        if last or self.epoch % self.every == 0:
            self.zero()


@checks_calls
def zeroed(
    graph: ChannelGraph, model: nn.Module, groups: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Which units have nothing but zero weights in all the layers that produce them.

    Args:
        graph: of this model.
        model: whose weights are looked at; a bias, or a BN behind, may still emit a constant.
        groups: names of the groups to look at; by default all.

    Returns:
        Group name -> 1-D bool CPU tensor, one entry a unit.

    Raises:
        StaleGraphError: the model is not the traced one.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> with torch.no_grad():
        ...     model.features[0].weight[:3] = 0
        >>> netslim.methods.zeroed(graph, model)["features.0"].nonzero().flatten().tolist()
        [0, 1, 2]
    """
    inner = bare(model, ArgumentError, call="zeroed(graph, model)")
    graph.check(inner)
    tensors = dict(named_tensors(inner))
    if groups is None:
        groups = [group.name for group in graph]
    return {name: _zero_units(graph[name], tensors) for name in groups}


@takes_options
def plan_of_zeros(
    graph: ChannelGraph,
    model: nn.Module,
    *,
    groups: Iterable[str] | None = None,
    criterion: str | Criterion | Scoring = "l2",
    limits: Limits = Limits(),
) -> PruningPlan:
    """The plan that removes every channel whose filters are zero; one stays where all are.

    Args:
        graph: of this model.
        model: as training with `SoftFilterPruning` has left it, or any other with zero filters.
        groups: names of the groups that may be cut; by default all that can be cut exactly.
        criterion: which filters, besides the zero ones, go first where ``round_to`` asks for more.
        limits: what the cut must respect, as for `netslim.select`.

    Raises:
        StaleGraphError: the model is not the traced one.
        PlanError: no filter is zero, or more are zero than the limits allow to remove.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> with torch.no_grad():
        ...     model.features[0].weight[:3] = 0
        >>> plan = netslim.methods.plan_of_zeros(graph, model)
        >>> netslim.prune(model, plan).features[0].out_channels
        5
    """
    if groups is None:
        groups = [group.name for group in graph.prunable]
    zero = zeroed(graph, model, groups)
    counts = {name: min(int(units.sum()), len(units) - 1) for name, units in zero.items()}
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        raise PlanError(
            "no filter is zero, so there is nothing to remove: zero them first "
            "(SoftFilterPruning.zero(), or .finish() after training)"
        )
    scores = score(graph, model, criterion)
    for name in scores.keys() & zero.keys():
        scores[name] = _zero_first(scores[name], zero[name])
    return select(graph, scores, per_group=counts, limits=limits)


@checks_calls
def cifar_resnet_cut(depth: int, rate: float) -> float:
    """The cut of multiply-accumulates, 0 to 1, that the paper states for a CIFAR ResNet.

    The authors count (``utils/cifar_resnet_flop.py``) every convolution as if it lost the share
    `rate` of its outputs, and the second of each block, as well as the very first block, that share
    of its inputs too; without rounding to whole filters and without the linear layer. What is
    zeroed there layer by layer cannot all be cut: compare with `ChannelGraph.macs` under
    `SoftFilterPruning.plan`.

    Args:
        depth: 6n + 2 (20, 32, 56, 110).
        rate: the share that is zeroed, 0 <= rate < 1.

    Raises:
        ArgumentError: another depth or rate.

    Example:
        >>> round(netslim.methods.cifar_resnet_cut(56, rate=0.4), 3)
        0.526
    """
    if depth < 8 or (depth - 2) % 6:
        raise ArgumentError(f"a CIFAR ResNet has depth 6n + 2 (20, 32, 56, 110), not {depth}")
    _check_share("rate", rate)
    kept = 1 - float(rate)
    whole = left = 0.0
    for stage, channels in enumerate((16, 32, 64)):
        pixels = (32 >> stage) ** 2
        for block in range((depth - 2) // 6):
            narrower = stage > 0 and block == 0  # reads the channels of the stage before
            before = channels // 2 if narrower else channels
            # A 3 x 3 convolution has 9 * inputs * outputs MACs at each place.
            one, two = 9 * before * channels * pixels, 9 * channels**2 * pixels
            whole += one + two
            outputs_alone = stage > 0 or block > 0  # but the very first block
            left += one * (kept if outputs_alone else kept**2) + two * kept**2
    stem = 27 * 16 * 32**2
    return 1 - (left + stem * kept) / (whole + stem)


# --- which groups, and how much of each -----------------------------------------------------------


def _obstacle(
    graph: ChannelGraph,
    group: ChannelGroup,
    model: nn.Module,
    scores: Mapping[str, Tensor],
    projections: bool,
) -> str | None:
    """Why this group is not acted on; None if it is."""
    if coupling.picked(graph, group):
        return "an index picks its channels, no filters make them"
    if group.name not in scores or not group.tensors("producer"):
        return "the criterion does not score it"
    made = group.tensors("producer")
    if any(_computes_weights(model.get_submodule(layer_of(s.tensor))) for s in made):
        return (
            "its weights are computed from others (weight normalisation or the like), which "
            "cannot be zero"
        )
    if not projections and coupling.projections(graph, group):
        return (
            "the projection of a shortcut is a part of it, and projections=False leaves these out"
        )
    return None


def _computes_weights(layer: nn.Module) -> bool:
    """Whether it is parametrised, or has a hook as the old weight and spectral norms have."""
    hooks = map(type, layer._forward_pre_hooks.values())
    old_norm = any(kind.__module__.startswith("torch.nn.utils") for kind in hooks)
    return old_norm or is_parametrized(layer)


def _rates(graph: ChannelGraph, rate: Rate, barred: Mapping[str, str]) -> dict[str, float]:
    """Group name -> share, for the groups to act on, in the order of the graph."""
    entries = rate if isinstance(rate, Mapping) else {"*": rate}
    if not entries:
        raise ArgumentError(
            "the mapping of rates is empty: give a share for some group, such as {'layer1.*': 0.3}"
        )
    for name, value in entries.items():
        _check_share(f"the rate of {name!r}" if entries is rate else "rate", value)
    shares = {name: float(value) for name, value in entries.items()}
    return granted(graph, shares, barred, "SoftFilterPruning finds nothing to act on")


def _check_share(what: str, value: Any) -> None:
    if not (is_number(value) and 0 <= value < 1):
        raise ArgumentError(
            f"{what} must be at least 0 and below 1, not {brief(value)}: it is the share "
            "that is zeroed"
        )


def _at_least_one(what: str, value: Any) -> int:
    if not (is_whole(value) and value >= 1):
        raise ArgumentError(f"{what} must be a whole number of 1 or more, not {brief(value)}")
    return int(value)


# --- filters --------------------------------------------------------------------------------------


def _weakest(group: ChannelGroup, scores: Tensor, tensors: Tensors, count: int) -> Tensor:
    """Mask of the `count` units of least score; units that are zero already come first."""
    if not bool(torch.isfinite(scores).all()):
        raise ArgumentError(
            f"the scores of group {group.name!r} are not finite; did training diverge?"
        )
    order = torch.argsort(_zero_first(scores, _zero_units(group, tensors)), stable=True)
    return _mask(group.size, order[:count].tolist())


def _zero_first(scores: Tensor, zero: Tensor) -> Tensor:
    """The scores, with those of zero filters below all others, whatever the criterion says of them.

    By `geometric_median`, for one, a zero filter that is far from the others is important.
    """
    return torch.where(zero, scores.min() - 1, scores)


def _zero_units(group: ChannelGroup, tensors: Tensors) -> Tensor:
    """Mask of the units whose weights are 0 in all layers that make them; none without layers."""
    slices = [s for s in group.tensors("producer") if tensors[s.tensor].is_floating_point()]
    alive = torch.full((group.size,), not slices)
    for s in slices:
        nonzero = (tensors[s.tensor].detach().movedim(s.axis, 0).flatten(1) != 0).any(1).cpu()
        alive[torch.from_numpy(s.units)[nonzero[torch.from_numpy(s.positions)]]] = True
    return ~alive


def _filters(group: ChannelGroup) -> list[Slice]:
    """The weights that produce the group, and the biases of the same layers."""
    made = group.tensors("producer")
    layers = {layer_of(s.tensor) for s in made}
    biases = [s for s in group.tensors("channel") if _last(s).startswith("bias")]
    return made + [s for s in biases if layer_of(s.tensor) in layers]


def _constants(group: ChannelGroup, tensors: Tensors) -> list[Slice]:
    """What else works on a channel alone: learnt values, and the means that norms subtract."""
    slices = group.tensors("scale") + group.tensors("channel")
    learnt = [s for s in slices if isinstance(tensors[s.tensor], nn.Parameter)]
    return learnt + [s for s in slices if _last(s) == "running_mean"]


def _last(s: Slice) -> str:
    return s.tensor.rpartition(".")[2]


def _fill(tensors: Tensors, slices: Iterable[Slice], units: Tensor) -> None:
    """Set the entries of the chosen units to zero."""
    for s in slices:
        where = torch.from_numpy(s.positions)[units[torch.from_numpy(s.units)]]
        tensors[s.tensor].index_fill_(s.axis, where.to(tensors[s.tensor].device), 0)


def _mask(size: int, units: Iterable[int]) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(units)] = True
    return mask
