"""Gradual pruning: the cut is made in parts while training goes on, each part chosen anew.

Where it acts in training::

    gradual = GradualPruning(model, images, Budget(cut_macs=0.5), steps=5, optimizer=optimizer)
    for epoch in range(epochs):
        for batch in loader:
            ...
            optimizer.step()        # the same parameters all along; what is left of momentum stays
        gradual.step()              # <- scores, selects, proves, cuts model and optimizer in place
    netslim.save(model, "small.safetensors")

Zhu and Gupta 2017 (arXiv 1710.01878) raise the sparsity of a mask in this way; here channels go for
good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from math import floor
from numbers import Integral
from types import NoneType
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from netslim._support import check_batches, expect
from netslim.errors import ArgumentError, PlanError
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.walk import fingerprint, named_tensors
from netslim.graph.modules.wrapping import bare, reduces
from netslim.graph.words.naming import is_pattern, meant
from netslim.methods.cutting import Cut, cut
from netslim.methods.hooks import Attachments, after_step
from netslim.selection.budget.allocation import allocation_of
from netslim.selection.budget.choice import Masks
from netslim.selection.budget.resources import Asked, LatencySource, Widths, kind_of
from netslim.selection.criteria.registry import Criterion
from netslim.selection.criteria.scoring import check_options, score
from netslim.selection.defaults import AUTO, Choice, chosen
from netslim.selection.options import Budget, Limits, Scoring, takes_options
from netslim.selection.select import select
from netslim.surgery.optimizers import all_optimizers, cut_state
from netslim.surgery.plan import PruningPlan, compose
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.verify import Verification
from netslim.surgery.prune import prune_

Schedule = Literal["linear", "exponential", "cubic"]
FORMAT = 1


def shares(steps: int, schedule: Schedule = "cubic", cut: float | None = None) -> tuple[float, ...]:
    """The shares of the final cut that are reached after step 1, 2, ... ``steps``; the last is 1.

    * ``linear``: ``i / k``, the same amount each time.
    * ``exponential``: ``(1 - (1 - cut) ** (i / k)) / cut``: what is left falls by the same factor
      each time, as when a share of what is left goes in each round (Han et al. 2015, Frankle and
      Carbin 2019).
    * ``cubic``: ``1 - (1 - i / k) ** 3``: much at first, while there is plenty to choose from,
      little in the end (Zhu and Gupta 2017, equation 1, with an initial sparsity of 0).

    Args:
        steps: k, 1 or more.
        schedule: one of the three.
        cut: the share of the whole that goes in the end, 0 <= cut < 1; only ``exponential`` depends
            on it.

    Raises:
        ArgumentError: no such schedule, fewer than 1 step, or ``exponential`` without ``cut``.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ArgumentError(f"steps must be a whole number of 1 or more, got {steps!r}")
    if schedule not in (known := get_args(Schedule)):
        raise ArgumentError(
            f"schedule must be one of {', '.join(map(repr, known))}, got {schedule!r}"
        )
    if schedule == "exponential" and (cut is None or not 0 <= cut < 1):
        raise ArgumentError(
            "the exponential schedule depends on the final cut, a share from 0 to below 1, "
            f"got {cut!r}"
        )
    return (*(_share(i / steps, schedule, cut) for i in range(1, steps)), 1.0)


def _share(time: float, schedule: Schedule, cut: float | None) -> float:
    if schedule == "cubic":
        return 1 - (1 - time) ** 3
    return (1 - (1 - cut) ** time) / cut if schedule == "exponential" and cut else time


class GradualPruning:
    """Reach a budget in several cuts; call `.step()` for each, wherever the training loop is
    between two batches.

    Each step traces the model as it is then, scores it anew, selects what goes for the next part of
    the budget, proves the cut (`netslim.verify`) and makes it in place with `netslim.prune_`:
    parameters stay the same objects, momentum and the like are cut with them, and learning-rate
    schedulers go on.

    Budget and limits are those of one cut of the model as it was given: after step i of k a budget
    of ``cut_macs=c`` has cut the share ``c * shares(k, schedule)[i - 1]`` of the given model's
    multiply-accumulates, and ``max_cut``, ``min_channels``, ``per_group`` and ``round_to`` refer to
    the given model's channels at every step. What went stays away. With one step it cuts in place
    what `netslim.slim` cuts: the same choice where it is left to netslim, the same channels; but
    nothing makes up for those that go, for the training that goes on does.

    Going on after a kill: make everything as at the start, with the uncut model, then load, this
    first::

        gradual.load_state_dict(state["gradual"])          # cuts the fresh model as far as it was
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    Args:
        model: to be trained and cut; not changed before the first step.
        example_inputs: as for `netslim.trace`; brought to the model's device at each step.
        budget: what to reach in the end, see `netslim.Budget`; may be left out when ``per_group``
            says it all.
        steps: how many cuts, 1 or more.
        schedule: how they are spread, see `shares`.
        per_group: name or pattern -> what goes there in the end, a share or a count, as in
            `netslim.select`.
        criterion: what makes a channel important: a name, a function or a
            `netslim.selection.Scoring`, see `netslim.score`. ``"auto"``, this and ``allocation``:
            what `netslim.slim` takes.
        batches: for criteria that look at data: a loader or a list, read anew at each step.
        allocation: how the budget is spread, see `netslim.select`.
        limits: what the cut must respect whatever it is to reach.
        latency: for budgets of latency, see `netslim.select`.
        optimizer: one or several whose state is cut with the parameters.
        companions: copies that are cut alike, such as weight averages, see `netslim.prune_`.
        strict: refuse a step when a group fails verification, instead of leaving that group alone.

    Attributes:
        original: the graph of the model as it was given.
        steps: how many cuts there are in all.
        taken: how many were made.
        plan: all cuts so far as one plan for the model as it was given; empty before the first.
        verification: of the last cut that removed something.

    Raises:
        TraceError: the model does not run on the inputs.
        PlanError: the budget cannot be met within the limits.
        ArgumentError: an option is misspelt or out of range.
        SurgeryError: an optimizer is none, or is not of this model.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> gradual = netslim.GradualPruning(
        ...     model, images, netslim.Budget(cut_macs=0.5), steps=2, optimizer=optimizer
        ... )
        >>> for epoch in range(2):
        ...     for inputs, labels in loader:
        ...         optimizer.zero_grad()
        ...         F.cross_entropy(model(inputs), labels).backward()
        ...         optimizer.step()
        ...     plan = gradual.step()
        >>> gradual.done
        True
    """

    @takes_options
    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        budget: Budget | None = None,
        *,
        per_group: Mapping[str, float | int] | None = None,
        steps: int = 5,
        schedule: Schedule = "cubic",
        criterion: str | Criterion | Scoring = AUTO,
        batches: Iterable[Any] | None = None,
        allocation: str = AUTO,
        limits: Limits = Limits(),
        latency: LatencySource | None = None,
        optimizer: Optimizer | Iterable[Optimizer] = (),
        companions: Any = (),
        strict: bool = False,
    ) -> None:
        if reduces(model):
            raise ArgumentError(
                "DistributedDataParallel has laid out its communication for the sizes it was "
                "given, and this cuts in place: give the module inside (model.module), and "
                "wrap that again after each step"
            )
        shares(steps, schedule, 0.0)
        expect(
            budget, (Budget, NoneType), "budget", "GradualPruning(model, example_inputs, budget)"
        )
        bare(model, ArgumentError, call="GradualPruning(model, example_inputs, budget)")
        self.model, self.example_inputs = model, example_inputs
        self.budget, self.steps, self.schedule, self.strict = budget, steps, schedule, strict
        self.per_group, self.limits, self.latency = per_group or {}, limits, latency
        given = None if batches is None else check_batches(batches)
        self.batches = list(given) if isinstance(given, Iterator) else given
        self.companions = companions
        self._choice = partial(
            chosen,
            budget,
            self.per_group,
            data=batches is not None,
            criterion=criterion,
            allocation=allocation,
            compensation=None,
        )
        self._settle(self._choice())
        self.optimizers = all_optimizers(optimizer)
        for one in self.optimizers:
            cut_state(one, {}, set(model.parameters()))
        self.taken = self._seen = 0
        self.verification: Verification | None = None
        self._notes: tuple[str, ...] = ()
        self._refused: set[int] = (
            set()
        )  # original groups that did not verify: as they are from then on
        self._attached = Attachments("GradualPruning", "once is enough")
        self._begin()

    def _settle(self, choice: Choice) -> None:
        """Take what is said, or what is taken where nothing is; refuse what cannot be done."""
        check_options(choice.scoring)
        allocation_of(choice.allocation)
        self.scoring, self.allocation = choice.scoring, choice.allocation

    def _begin(self) -> None:
        """Look at the model as it was given, and whether it can reach the budget."""
        inner = bare(self.model, ArgumentError)
        self.original = trace(inner, self._inputs(inner))
        self.plan = plan_keeping(self.original, {})
        self._now = self.original.fingerprint
        self._places = _Places(self.original)
        self._settle(self._choice(graph=self.original))
        scores = score(self.original, inner, self.scoring, batches=self.batches)
        self._scored = set(scores)
        self._select(scores, self.budget, self.per_group)

    def _select(
        self,
        scores: Mapping[str, Tensor],
        budget: Budget | None,
        per_group: Mapping[str, float | int],
    ) -> PruningPlan:
        """Of the original."""
        return select(
            self.original,
            scores,
            budget,
            per_group=per_group,
            allocation=self.allocation,
            limits=self.limits,
            latency=self.latency,
        )

    @property
    def done(self) -> bool:
        """Whether all steps are made."""
        return self.taken == self.steps

    @property
    def macs_left(self) -> float:
        """Multiply-accumulates of the model as it is now, as a share of the given one's, 0 to 1."""
        whole = self.original.macs()
        return self.original.macs(self._places.masks(self.plan)) / whole if whole else 1.0

    def step(self) -> PruningPlan | None:
        """Make the next cut.

        Returns:
            Its plan, for the model as it was before this step; with no groups where the part is
            less than a channel, and nothing was cut. None once all steps are made.

        Raises:
            ArgumentError: scores are not finite.
            PlanError: the model is not as the last step left it, or there is nothing to cut.
            SurgeryError, VerificationError: the cut cannot be made; model and optimizers are as
                they were.
        """
        if self.done:
            return None
        inner = bare(self.model, ArgumentError)
        if fingerprint(inner) != self._now:
            raise PlanError(
                f"the model is {fingerprint(inner)}, and the last step left {self._now}: it "
                "was cut or changed by something else since; make a new GradualPruning for "
                "what is still to go"
            )
        graph = trace(inner, self._inputs(inner))
        done = self._chosen(graph, inner)
        plan = done.plan
        if plan.groups:
            self._cut(plan)
            self.plan = replace(compose(self.plan, plan), notes=plan.notes)
            self.verification, self._now = done.check, fingerprint(inner)
        self.taken += 1
        return plan

    def attach(self, optimizer: Optimizer, every: int) -> Self:
        """Make a step by itself after every so many steps of an optimizer, where no loop of one's
        own could.

        Its state is cut as well. Load a state before, and the count goes on where it was.

        Args:
            optimizer: of this model.
            every: steps that moved the parameters; those that `torch.amp.GradScaler` skips do not
                count.

        Raises:
            ArgumentError: it is attached already, or ``every`` is below 1.
            SurgeryError: the optimizer is not of this model.
        """
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ArgumentError(f"every must be a whole number of 1 or more, got {every!r}")
        found = self._attached.new(optimizer)
        if len(self._attached):
            raise ArgumentError(
                "another optimizer counts already; pass this one as optimizer= to have its "
                "state cut"
            )
        cut_state(found, {}, set(self.model.parameters()))
        self.optimizers = [*(one for one in self.optimizers if one is not found), found]

        def count(_: Optimizer) -> None:
            self._seen += 1
            if self._seen % every == 0:
                self.step()

        self._attached.add(found, after_step(found, count))
        return self

    def detach(self) -> None:
        """Count steps no longer."""
        self._attached.remove()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs: plain data, without the weights."""
        return {
            "format": FORMAT,
            "steps": self.steps,
            "taken": self.taken,
            "seen": self._seen,
            "plan": self.plan.to_json(),
            "fingerprint": self._now,
            "refused": sorted(self._refused),
            "verification": None if self.verification is None else asdict(self.verification),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave: cut the model as far as it was; then load weights and
        optimizer.

        A model that was cut by ``state["plan"]`` since this object was made is taken as it is.

        Raises:
            ArgumentError: the state is none of ours or has another number of steps; or steps were
                made already.
            PlanError: the state belongs to another model.
        """
        if state.get("format") != FORMAT:
            raise ArgumentError(
                f"this is no state of GradualPruning in format {FORMAT}: give what "
                ".state_dict() returned"
            )
        if state["steps"] != self.steps:
            raise ArgumentError(
                f"the state is of {state['steps']} steps, this GradualPruning of {self.steps}"
            )
        if self.taken:
            raise ArgumentError(
                "load a state before the first step: make a new GradualPruning with the uncut model"
            )
        plan, inner = PruningPlan.from_json(state["plan"]), bare(self.model, ArgumentError)
        if fingerprint(inner) != state["fingerprint"]:
            self._cut(plan)
        self.plan, self._now = plan, fingerprint(inner)
        self.taken, self._seen, self._refused = (
            int(state["taken"]),
            int(state["seen"]),
            set(state["refused"]),
        )
        check = state["verification"]
        self.verification = None if check is None else Verification(**check)

    def __repr__(self) -> str:
        return (
            f"GradualPruning({self.schedule!r}, {self.taken} of {self.steps} steps, "
            f"macs_left={self.macs_left:.3f})"
        )

    # ------------------------------------------------------------ one step

    def _cut(self, plan: PruningPlan) -> None:
        """The notes of a step are about its part of the budget; what the model remembers is without
        them.
        """
        bare_plan = replace(plan, notes=())
        prune_(self.model, bare_plan, optimizer=self.optimizers, companions=self.companions)

    def _inputs(self, inner: nn.Module) -> Any:
        device = next((tensor.device for _, tensor in named_tensors(inner)), torch.device("cpu"))
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), self.example_inputs)

    def _chosen(self, graph: ChannelGraph, inner: nn.Module) -> Cut[nn.Module]:
        """The next cut, made of a copy and proved; a group that cannot be proved is left alone from
        then on.
        """
        found = score(graph, inner, self.scoring, batches=self.batches)
        places = [self._places.of(group, self.plan) for group in graph.groups]
        scores, held = self._spread(graph, places, found)

        def choose(alone: frozenset[str]) -> PruningPlan:
            wrong = {n for name in alone for n in np.unique(places[graph.number(name)][0]).tolist()}
            self._refused |= wrong
            masks = self._selected(scores, held | self._refused)
            return plan_keeping(
                graph, {n: _picked(masks, place) for n, place in enumerate(places)}, self._notes
            )

        return cut(inner, graph, choose, self._inputs(inner), strict=self.strict)

    def _selected(self, scores: Mapping[str, Tensor], held: set[int]) -> Masks:
        """What stays of the original's groups after this step; what went never comes back."""
        past = self._places.masks(self.plan)
        groups = self.original.groups
        settled = {groups[n].name: int((~past[n]).sum()) if n in past else 0 for n in held}
        free = {name: values for name, values in scores.items() if settled.get(name) != 0}
        plan = self._select(free, self._part(), self._amounts(settled))
        self._notes = plan.notes
        masks = dict(past)
        for name, group in plan.groups.items():
            number = self.original.number(name)
            mask = np.isin(np.arange(group.size), group.kept)
            masks[number] = mask & masks[number] if number in masks else mask
        return masks

    def _spread(
        self,
        graph: ChannelGraph,
        places: list[tuple[np.ndarray, np.ndarray]],
        found: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], set[int]]:
        """Scores for the original's groups, what went below all others; and the groups that can no
        longer be judged.
        """
        known = np.concatenate([values.double().cpu().numpy() for values in found.values()])
        gone, least, most = _bounds(known)
        past, groups = self._places.masks(self.plan), self.original.groups
        scores = {n: np.full(g.size, most) for n, g in enumerate(groups) if g.name in self._scored}
        open_ = {
            n: past[n].copy() if n in past else np.ones(len(scores[n]), dtype=bool) for n in scores
        }
        for group, (numbers, units) in zip(graph.groups, places, strict=True):
            if group.name in found:
                values = np.maximum(found[group.name].double().cpu().numpy(), least)
                for n in set(numbers.tolist()) & scores.keys():
                    mine = numbers == n
                    scores[n][units[mine]], open_[n][units[mine]] = values[mine], False
        for n in scores.keys() & past.keys():
            scores[n][~past[n]] = gone
        # A single channel is no group any more, and stays for min_channels; several without a score
        # are left alone.
        held = {n for n, mask in open_.items() if mask.sum() > 1}
        return {groups[n].name: torch.from_numpy(values) for n, values in scores.items()}, held

    # ------------------------------------------------------------ how much of the budget

    def _reached(self, cut: float) -> float:
        """Share of a final cut that the next step reaches."""
        return shares(self.steps, self.schedule, min(max(cut, 0.0), 1 - 1e-9))[self.taken]

    def _part(self) -> Budget | None:
        """The budget of the next step, for the original."""
        if self.budget is None or self.taken + 1 == self.steps:
            return self.budget
        part: dict[str, Any] = {}
        for name, value in self.budget.given().items():
            if name.startswith("cut_"):
                part[name] = value * self._reached(value)
            else:
                whole = self._whole(name)
                most = max(value, whole - (whole - value) * self._reached(1 - value / whole))
                part[name] = floor(most) if isinstance(value, Integral) else most
        return replace(self.budget, **part)

    def _whole(self, name: str) -> float:
        """What the original has of the resource of an absolute budget."""
        widths = Widths(self.original, {})
        every = range(len(self.original.groups))
        resource = kind_of(name).make(Asked(name, self.original, widths, every, self.latency))
        return float(resource.total(widths.counts(np.zeros(len(every), dtype=np.int64))))

    def _amounts(self, settled: Mapping[str, int]) -> dict[str, float | int]:
        """``per_group`` of the next step, for the original: its own entries in part, and what is
        settled.
        """
        amounts: dict[str, float | int] = {name: count for name, count in settled.items() if count}
        for name, amount in self.per_group.items():
            if is_pattern(self.original, name) or self.original[name].name not in settled:
                amounts[name] = amount if self.taken + 1 == self.steps else self._some(name, amount)
        return amounts

    def _some(self, name: str, amount: float | int) -> float | int:
        if not isinstance(amount, Integral):
            return float(amount) * self._reached(float(amount))
        size = min(
            group.size
            for group in meant(self.original, name, "per_group names no group that can be cut")
        )
        return floor(int(amount) * self._reached(int(amount) / size) + 1e-9)


class _Places:
    """Which unit of the original graph an entry of a tensor belongs to.

    Args:
        graph: of the original.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._units: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        for number, group in enumerate(graph.groups):
            for s in group.slices:
                key = s.tensor, s.axis
                size = graph.axis_sizes[key]
                numbers, units = self._units.setdefault(key, (np.full(size, -1), np.full(size, -1)))
                numbers[s.positions], units[s.positions] = number, s.units

    def of(self, group: ChannelGroup, past: PruningPlan) -> tuple[np.ndarray, np.ndarray]:
        """(original group, original unit) of each unit of a group of the graph after ``past``,
        shapes (size,).
        """
        s = group.slices[0]
        past_cut = next((t for t in past.tensors if (t.tensor, t.axis) == (s.tensor, s.axis)), None)
        where = s.positions if past_cut is None else np.asarray(past_cut.kept)[s.positions]
        found = tuple(np.empty(group.size, dtype=np.int64) for _ in range(2))
        for row, known in zip(found, self._units[s.tensor, s.axis], strict=True):
            row[s.units] = known[where]
        return found[0], found[1]

    def masks(self, past: PruningPlan) -> Masks:
        """Original group -> which of its units ``past`` keeps, for the groups that lose some."""
        masks: Masks = {}
        for row in past.tensors:
            numbers, units = (
                known[list(row.removed)] for known in self._units[row.tensor, row.axis]
            )
            for n in np.unique(numbers[numbers >= 0]).tolist():
                mask = masks.setdefault(n, np.ones(self.graph.groups[n].size, dtype=bool))
                mask[units[numbers == n]] = False
        return masks


def _picked(masks: Masks, place: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Which units of a group of the present graph stay, from the masks of the original."""
    numbers, units = place
    keep = np.ones(len(units), dtype=bool)
    for n in set(numbers.tolist()) & masks.keys():
        keep[numbers == n] = masks[n][units[numbers == n]]
    return keep


def _bounds(known: np.ndarray) -> tuple[float, float, float]:
    """(score of what went, least and greatest of what is there): what went is below all, and not
    below 0 needlessly.
    """
    low, high = float(known.min()), float(known.max())
    if not low >= 0:
        return low - max(1.0, high - low), low, high
    least = float(known[known > 0].min(initial=1.0)) * 1e-9
    return 0.0, least, max(high, least)


__all__ = ["GradualPruning", "Schedule", "shares"]
