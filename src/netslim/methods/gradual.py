"""Gradual pruning: the cut is made in parts while training goes on, each part chosen anew.

Zhu and Gupta 2017 (arXiv 1710.01878) raise the sparsity of a mask in this way; here channels go for
good. Where it acts in training::

    gradual = GradualPruning(model, images, Budget(cut_macs=0.5), steps=5, optimizer=optimizer)
    for epoch in range(epochs):
        for batch in loader:
            ...
            optimizer.step()        # the same parameters all along; what is left of momentum stays
        gradual.step()              # <- scores, selects, proves, cuts model and optimizer in place
    netslim.save(model, "small.safetensors")

Why every part is chosen in the terms of the *original* model: a budget of half the MACs means half
of what was given, and ``round_to`` or ``max_cut`` of 0.5 mean the widths that were given. If each
step chose a share of what is left, shares, caps and multiples would all have to be translated, and
rounding would add up. So a step

1. traces and scores the model as it is now, which may have fewer groups, with other names;
2. finds for each unit of now the unit of the original that it is (`_OriginalUnits`), and writes the
   scores there; what went before scores below all others, so it goes first, again;
3. selects in the original, for the budget of this step: a plan that contains all earlier ones;
4. takes from it what is still there, as a plan for the model as it is now.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import floor
from numbers import Integral
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

import netslim.ranks as ranks
from netslim._support import (
    brief,
    check_batches,
    checks_calls,
    described,
    is_format,
    is_whole,
    many,
)
from netslim.errors import ArgumentError, PlanError
from netslim.graph import trace
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.ports import PortName
from netslim.graph.modules.unwrapping import bare, reducing
from netslim.graph.modules.walk import fingerprint, named_tensors
from netslim.graph.words.naming import is_pattern, meant
from netslim.methods.cutting import Cut, cut, log, with_choice
from netslim.methods.hooks import Attachments, after_step
from netslim.methods.noise import StandIn, decided, stand_in
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
from netslim.surgery.ports import cut_inputs
from netslim.surgery.proof.verify import Verification
from netslim.surgery.prune import prune_
from netslim.surgery.sharding import in_one_piece
from netslim.surgery.why import Why

Schedule = Literal["linear", "exponential", "cubic"]
FORMAT = 1
MOST_STEPS = 100_000  # each traces, chooses and cuts; more is a slip of the pen
_SAME_COUNT = "they would cut at different times: give all of them the same"


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
    if not (is_whole(steps) and 1 <= steps <= MOST_STEPS):
        raise ArgumentError(
            f"steps must be a whole number from 1 to {MOST_STEPS:,}, got {described(steps)}"
        )
    if schedule not in (known := get_args(Schedule)):
        raise ArgumentError(
            f"schedule must be one of {', '.join(map(repr, known))}, got {brief(schedule)}"
        )
    if schedule == "exponential" and (cut is None or not 0 <= cut < 1):
        raise ArgumentError(
            "the exponential schedule depends on the final cut, a share from 0 to below 1, "
            f"got {brief(cut)}"
        )
    return (*(_share(i / steps, schedule, cut) for i in range(1, steps)), 1.0)


def _share(time: float, schedule: Schedule, cut: float | None) -> float:
    if schedule == "cubic":
        return 1 - (1 - time) ** 3
    if schedule == "exponential" and cut:  # as the cut goes to 0, it becomes linear
        left: float = (1 - cut) ** time
        return (1 - left) / cut
    return time


@checks_calls
class GradualPruning:
    """Reach a budget in several cuts; call `.step()` for each, between two batches of the loop.

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

    In a distributed run every rank makes this object and its steps, and rank 0 chooses for all of
    them, from the data of all of them. Give the model within `DistributedDataParallel`, which goes
    on around the smaller model, or the module inside, to be wrapped again after each step.

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
        free_outputs, free_inputs: what may shrink of these, see `netslim.trace`; feed the model
            `netslim.surgery.cut_inputs` then.
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
        free_outputs: Sequence[PortName] = (),
        free_inputs: Sequence[PortName] | Mapping[PortName, PortName | None] = (),
        optimizer: Optimizer | Iterable[Optimizer] = (),
        companions: Any = (),
        strict: bool = False,
    ) -> None:
        shares(steps, schedule, 0.0)
        call = "GradualPruning(model, example_inputs, budget)"
        bare(model, ArgumentError, allow=("sharded",), call=call)
        if limits.blocks:
            raise ArgumentError(
                "gradual pruning cuts channels step by step, and drops no block: leave blocks=True "
                "out; netslim.slim can"
            )
        self.model, self.example_inputs = model, example_inputs
        self._trace = partial(trace, free_outputs=free_outputs, free_inputs=free_inputs)
        self.budget, self.steps, self.schedule, self.strict = budget, steps, schedule, strict
        self.per_group, self.limits, self.latency = per_group or {}, limits, latency
        self.batches = batches
        if batches is not None:
            check_batches(batches)
        if isinstance(batches, Iterator):  # it could be read but once, and is read at each step
            self.batches = list(batches)
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
        self._take(self._choice())
        self.optimizers = all_optimizers(optimizer)
        for one in self.optimizers:
            cut_state(one, {}, set(model.parameters()))
        self.taken = self._seen = 0
        self.verification: Verification | None = None
        # Groups of the original that did not verify: they are as they are from then on.
        self._refused: set[int] = set()
        self._attached = Attachments("GradualPruning", "once is enough")
        with self._in_one_piece():
            ranks.everywhere("GradualPruning", self._begin)

    def _take(self, choice: Choice) -> None:
        """Take what is said, or what is taken where nothing is; refuse what cannot be done."""
        check_options(choice.scoring)
        allocation_of(choice.allocation)
        self.scoring, self.allocation, self._taken = choice.scoring, choice.allocation, choice

    def _begin(self) -> None:
        """Look at the model as it was given, and whether it can reach the budget."""
        inner = bare(self.model, ArgumentError)
        self.original = self._trace(inner, self._inputs(inner))
        self.plan = plan_keeping(self.original, {})
        self._now = self.original.fingerprint
        self._origin = _OriginalUnits(self.original)
        choose = partial(self._choice, graph=self.original)
        choice, made = decided(choose, inner, self._inputs(inner))
        self._take(choice)
        scores = self._found(self.original, inner, made)
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
        if not whole:
            return 1.0
        return self.original.macs(self._origin.masks(self.plan)) / whole

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
        with self._in_one_piece():
            return ranks.everywhere("a step of gradual pruning", self._step)

    def _step(self) -> PruningPlan:
        inner = bare(self.model, ArgumentError)
        if fingerprint(inner) != self._now:
            raise PlanError(
                f"the model is {fingerprint(inner)}, and the last step left {self._now}: it "
                "was cut or changed by something else since; make a new GradualPruning for "
                "what is still to go"
            )
        graph = self._trace(inner, self._inputs(inner))
        done = self._next_cut(graph, inner)
        log(done)
        plan = done.plan
        if plan.groups:
            self._cut_in_place(plan)
            why = self._judged_last(graph, plan.why or Why())
            self.plan = replace(compose(self.plan, plan), notes=plan.notes, why=why)
            self.verification, self._now = done.check, fingerprint(inner)
        self.taken += 1
        return plan

    def attach(self, optimizer: Optimizer, every: int) -> Self:
        """Make a step by itself after every so many of an optimizer, where no loop can do it.

        Its state is cut as well. Load a state before, and the count goes on where it was.

        Args:
            optimizer: of this model.
            every: steps that moved the parameters; those that `torch.amp.GradScaler` skips do not
                count.

        Raises:
            ArgumentError: it is attached already, or ``every`` is below 1.
            SurgeryError: the optimizer is not of this model.
        """
        if not (is_whole(every) and every >= 1):
            raise ArgumentError(f"every must be a whole number of 1 or more, got {brief(every)}")
        with _ranks_of(self.model):
            ranks.agree("the steps to count", f"{every} {self._seen}", _SAME_COUNT)
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
        """Go on from what `state_dict` gave: the model is cut as far as it was.

        Then load weights and optimizer. A model that was cut by ``state["plan"]`` since this object
        was made is taken as it is.

        Raises:
            ArgumentError: the state is none of ours or has another number of steps; or steps were
                made already.
            PlanError: the state belongs to another model.
        """
        if not is_format(state.get("format"), FORMAT):
            raise ArgumentError(
                f"this is no state of GradualPruning in format {FORMAT}: give what "
                ".state_dict() returned"
            )
        if state["steps"] != self.steps:
            raise ArgumentError(
                f"the state is of {many(state['steps'], 'step')}, this GradualPruning of "
                f"{self.steps}"
            )
        with _ranks_of(self.model):
            told = json.dumps(dict(state), default=str)
            ranks.agree("the state of GradualPruning", told, _SAME_COUNT)
        if self.taken:
            raise ArgumentError(
                "load a state before the first step: make a new GradualPruning with the uncut model"
            )
        plan = PruningPlan.from_json(state["plan"])
        with self._in_one_piece():
            inner = bare(self.model, ArgumentError)
            if fingerprint(inner) != state["fingerprint"]:
                self._cut_in_place(plan)
            self.plan, self._now = plan, fingerprint(inner)
        self.taken, self._seen = int(state["taken"]), int(state["seen"])
        self._refused = set(state["refused"])
        check = state["verification"]
        if check is not None:
            self.verification = Verification(**check)

    def __repr__(self) -> str:
        return (
            f"GradualPruning({self.schedule!r}, {self.taken} of {self.steps} steps, "
            f"macs_left={self.macs_left:.3f})"
        )

    # ------------------------------------------------------------ one step

    def _in_one_piece(self) -> AbstractContextManager[None]:
        """Inside, the model can be traced and cut, and the ranks that train it decide together."""
        if reducing(self.model) is None:
            return in_one_piece(self.model, self.optimizers)
        return _ranks_of(self.model)

    def _cut_in_place(self, plan: PruningPlan) -> None:
        # The notes of a step are about its part of the budget; the model does not remember them.
        silent = replace(plan, notes=())
        prune_(self.model, silent, optimizer=self.optimizers, companions=self.companions)

    def _inputs(self, inner: nn.Module) -> Any:
        device = next((tensor.device for _, tensor in named_tensors(inner)), torch.device("cpu"))
        inputs = self.example_inputs
        if self.taken:
            inputs = cut_inputs(inner, inputs, self.plan)
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)

    def _found(
        self, graph: ChannelGraph, inner: nn.Module, made: StandIn[nn.Module] | None
    ) -> dict[str, Tensor]:
        """The scores of the model as it is now, or of what stands in for it and its data."""
        batches = self.batches
        if made is not None:
            inner, batches = made.network, made.batches
        return score(graph, inner, self.scoring, batches=batches)

    def _next_cut(self, graph: ChannelGraph, inner: nn.Module) -> Cut[nn.Module]:
        """Made of a copy and proved; a group that cannot be proved is left alone from then on."""
        made = None
        if self._taken.noise:
            made = stand_in(inner, self._inputs(inner))
        found = self._found(graph, inner, made)
        origins = [self._origin.of(group, self.plan) for group in graph.groups]
        scores, held = self._original_scores(graph, origins, found)
        judged = {name: tuple(values.double().tolist()) for name, values in found.items()}

        def refused(alone: Iterable[str]) -> set[int]:
            groups = (origins[graph.number(name)].groups.tolist() for name in alone)
            return self._refused.union(*groups)

        def choose(alone: frozenset[str]) -> PruningPlan:
            masks, whole = self._selected(scores, held | refused(alone))
            kept = {n: _picked(masks, origin) for n, origin in enumerate(origins)}
            why = replace(whole.why or Why(), scores=judged)
            plan = replace(plan_keeping(graph, kept, whole.notes), why=why)
            return with_choice(plan, self._taken)

        done = cut(inner, graph, choose, self._inputs(inner), strict=self.strict)
        self._refused = refused(done.left_alone)
        return done

    def _selected(self, scores: Mapping[str, Tensor], held: set[int]) -> tuple[Masks, PruningPlan]:
        """What stays of the original's groups after this step, and the plan that led to it.

        What went never comes back.
        """
        past = self._origin.masks(self.plan)
        groups = self.original.groups
        fixed = {groups[n].name: int((~past[n]).sum()) if n in past else 0 for n in held}
        free = {name: values for name, values in scores.items() if fixed.get(name) != 0}
        plan = self._select(free, self._part(), self._amounts(fixed))
        masks = dict(past)
        for name, group in plan.groups.items():
            number = self.original.number(name)
            mask = np.isin(np.arange(group.size), group.kept)
            masks[number] = mask & past.get(number, True)
        return masks, plan

    def _original_scores(
        self, graph: ChannelGraph, origins: Sequence[_Origin], found: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], set[int]]:
        """Scores of the original's units, and the groups of it that can no longer be judged.

        Units that went score below all others. Those that are still there and have no score now are
        taken to be as important as any: a group that came apart since, or was cut down to one.
        """
        known = np.concatenate([values.double().cpu().numpy() for values in found.values()])
        gone, least, most = _bounds(known)
        past, groups = self._origin.masks(self.plan), self.original.groups
        scores = {n: np.full(g.size, most) for n, g in enumerate(groups) if g.name in self._scored}
        unjudged = {n: past.get(n, np.ones(len(scores[n]), dtype=bool)).copy() for n in scores}
        for group, origin in zip(graph.groups, origins, strict=True):
            if group.name not in found:
                continue
            values = np.maximum(found[group.name].double().cpu().numpy(), least)
            for n in set(origin.groups.tolist()) & scores.keys():
                mine = origin.groups == n
                scores[n][origin.units[mine]] = values[mine]
                unjudged[n][origin.units[mine]] = False
        for n in scores.keys() & past.keys():
            scores[n][~past[n]] = gone
        # A single channel is no group any more, and stays for min_channels; several without a score
        # are left alone.
        held = {n for n, mask in unjudged.items() if mask.sum() > 1}
        return {groups[n].name: torch.from_numpy(values) for n, values in scores.items()}, held

    def _judged_last(self, graph: ChannelGraph, why: Why) -> Why:
        """Of the last cut, with the score of every unit of the original when it was last there."""
        before = self.plan.why or Why()
        known = {name: np.array(values) for name, values in before.scores.items()}
        for group in graph.groups:
            if group.name in why.scores:
                origin, values = self._origin.of(group, self.plan), np.array(why.scores[group.name])
                for n in set(origin.groups.tolist()):
                    whole, mine = self.original.groups[n], origin.groups == n
                    scores = known.setdefault(whole.name, np.zeros(whole.size))
                    scores[origin.units[mine]] = values[mine]
        return replace(why, scores={name: tuple(v.tolist()) for name, v in known.items()})

    # ------------------------------------------------------------ how much of the budget

    def _reached(self, cut: float) -> float:
        """Share of a final cut that the next step reaches."""
        return shares(self.steps, self.schedule, min(max(cut, 0.0), 1 - 1e-9))[self.taken]

    def _part(self) -> Budget | None:
        """The budget of the next step, for the original."""
        if self.budget is None or self.taken + 1 == self.steps:
            return self.budget
        part = {name: self._partial(name, value) for name, value in self.budget.given().items()}
        return replace(self.budget, **part)

    def _partial(self, name: str, value: float) -> Any:
        """What the next step reaches of one part of the budget."""
        if name.startswith("cut_"):
            return value * self._reached(value)
        whole = self._whole(name)
        # From 300 down to 100, in a step that reaches half of that way: to 200.
        most = max(value, whole - (whole - value) * self._reached(1 - value / whole))
        if isinstance(value, Integral):
            return floor(most)
        return most

    def _whole(self, name: str) -> float:
        """What the original has of the resource of an absolute budget."""
        widths = Widths(self.original, {})
        every = range(len(self.original.groups))
        resource = kind_of(name).make(Asked(name, self.original, widths, every, self.latency))
        return float(resource.total(widths.counts(np.zeros(len(every), dtype=np.int64))))

    def _amounts(self, fixed: Mapping[str, int]) -> dict[str, float | int]:
        """``per_group`` of the next step, for the original: its own entries in part, and the fixed.

        An entry for a group that is fixed goes: it can no longer be met.
        """
        amounts: dict[str, float | int] = {name: count for name, count in fixed.items() if count}
        for name, amount in self.per_group.items():
            if is_pattern(self.original, name) or self.original[name].name not in fixed:
                amounts[name] = self._some(name, amount)
        return amounts

    def _some(self, name: str, amount: float | int) -> float | int:
        """What the next step reaches of an amount by name."""
        if self.taken + 1 == self.steps:
            return amount
        if not isinstance(amount, Integral):
            return float(amount) * self._reached(float(amount))
        members = meant(self.original, name, "per_group names no group that can be cut")
        size = min(group.size for group in members)
        return floor(int(amount) * self._reached(int(amount) / size) + 1e-9)


def _ranks_of(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, the ranks that train this model decide together."""
    wrapper = reducing(model)
    if wrapper is None:
        return nullcontext()
    return ranks.among(wrapper.process_group)


@dataclass(frozen=True)
class _Origin:
    """Where the units of a group come from: group and unit of the original, each shape (size,).

    The units of one group of now may be of several groups of the original, where all that told
    these apart is gone.
    """

    groups: np.ndarray
    units: np.ndarray


class _OriginalUnits:
    """Which unit of the original graph an entry of a tensor belongs to.

    Names of groups change as layers are cut, and so do numbers of units; entries of tensors can be
    followed. Each (tensor, axis) of the original is a table from entry to (group, unit). A plan
    says which entries it kept, in order, so ``kept[i]`` is the original entry that is now number i:
    the first slice of a group looks up there, for each of its units, which original unit it is.

    For instance a layer of 6 channels was cut to entries 0, 2, 5 of the original. Unit 1 of the
    group of now lies at entry 1, which is entry 2 of the original, and so unit 2 of its group.

    Args:
        graph: of the original.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self._table: dict[tuple[str, int], _Origin] = {}  # -1 where an entry is of no group
        for number, group in enumerate(graph.groups):
            for s in group.slices:
                key = s.tensor, s.axis
                size = graph.axis_sizes[key]
                entries = self._table.setdefault(key, _Origin(np.full(size, -1), np.full(size, -1)))
                entries.groups[s.positions], entries.units[s.positions] = number, s.units

    def of(self, group: ChannelGroup, past: PruningPlan) -> _Origin:
        """Of the units of a group of the graph after ``past``."""
        s = group.slices[0]
        where, known = s.positions, self._table[s.tensor, s.axis]
        for row in past.tensors:
            if (row.tensor, row.axis) == (s.tensor, s.axis):
                where = np.asarray(row.kept)[s.positions]
                break
        found = _Origin(*(np.empty(group.size, dtype=np.int64) for _ in range(2)))
        found.groups[s.units], found.units[s.units] = known.groups[where], known.units[where]
        return found

    def masks(self, past: PruningPlan) -> Masks:
        """Original group -> which of its units ``past`` keeps, for the groups that lose some."""
        masks: Masks = {}
        for row in past.tensors:
            known, removed = self._table[row.tensor, row.axis], list(row.removed)
            groups, units = known.groups[removed], known.units[removed]
            for n in np.unique(groups[groups >= 0]).tolist():
                mask = masks.setdefault(n, np.ones(self.graph.groups[n].size, dtype=bool))
                mask[units[groups == n]] = False
        return masks


def _picked(masks: Masks, origin: _Origin) -> np.ndarray:
    """Which units of a group of the present graph stay, from the masks of the original."""
    keep = np.ones(len(origin.units), dtype=bool)
    for n in set(origin.groups.tolist()) & masks.keys():
        mine = origin.groups == n
        keep[mine] = masks[n][origin.units[mine]]
    return keep


def _bounds(known: np.ndarray) -> tuple[float, float, float]:
    """(score of what went, least and greatest of what is there), so that what went is below all.

    Not below 0 where no score is, for some ways of allocation add scores up: then what went scores
    0, and what is there a little more at least.
    """
    low, high = float(known.min()), float(known.max())
    if not low >= 0:
        return low - max(1.0, high - low), low, high
    least = float(known[known > 0].min(initial=1.0)) * 1e-9
    return 0.0, least, max(high, least)


__all__ = ["GradualPruning", "Schedule", "shares"]
