"""`PruningPlan`: what a cut keeps, as plain data.

A plan stands between deciding and cutting. It names the kept units of every touched group and,
resolved from these, the kept indices of every (parameter or buffer, axis) and the Python sizes that
must follow, so applying a plan needs no trace. It is immutable, printable, and JSON that people can
diff.

Plans of cuts that follow each other compose, see `compose`. A model keeps the composed plan of all
its cuts, counted on its original architecture: that is how a checkpoint of a model that was cut
several times is loaded into a fresh uncut one, with one cut.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
from torch import nn

from netslim._support import checks_calls, expect, many
from netslim.errors import PlanError
from netslim.graph.modules.padded_norms import SCALED, NormWidth
from netslim.graph.modules.walk import Walked
from netslim.surgery.dropped import Dropped, composed, fits
from netslim.surgery.plan_file import LARGEST, Fields, read, write
from netslim.surgery.rows import (
    DROPPED,
    GroupCut,
    OrderCut,
    PortCut,
    SizePatch,
    TensorCut,
    bias_of,
    destinations,
    merging_rows,
    weight_of,
)
from netslim.surgery.soundness import (
    check_fits,
    check_layers,
    check_rows,
    explained,
    linked,
)
from netslim.surgery.why import Why

_Cut = GroupCut | TensorCut | PortCut
_Row = TensorCut | PortCut | OrderCut
sys.modules.setdefault("netslim.plan", sys.modules[__name__])  # where pickles of 0.1 look for plans


@checks_calls
@dataclass(frozen=True)
class PruningPlan:
    """An immutable description of a cut; see the module docstring.

    Attributes:
        fingerprint: of the architecture it applies to (`fingerprint`).
        groups: group name -> `GroupCut`, for every group that loses something.
        tensors: `TensorCut` rows, one for each (tensor, axis) that shrinks.
        patches: `SizePatch` rows.
        notes: sentences for people: what stayed and why.
        biases: paths of modules that are given a bias of zeros before the cut, see
            `netslim.surgery.compensate`.
        norms: `NormWidth` rows, of normalisations over channels that go on over their old width.
        orders: `OrderCut` rows, of buffers that pick channels by their numbers.
        ports: `PortCut` rows, of inputs and outputs that shrink, as ``free_inputs`` and
            ``free_outputs`` of `netslim.trace` allow.
        dropped: the blocks that go, as ``Limits(blocks=True)`` allows.
        why: how the kept units were chosen; None where that is not known, as of several cuts. Plans
            that cut the same are equal without it.
        counts: how many rows of each of these it was made with; None where nobody says that these
            are all, as in plans of version 0.1.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> half = netslim.Budget(cut_channels=0.5)
        >>> plan = netslim.select(graph, netslim.score(graph, model), half)
        >>> netslim.PruningPlan.from_json(plan.to_json()) == plan
        True
        >>> print(plan.explain())  # doctest: +ELLIPSIS
        Plan for the architecture ...
    """

    fingerprint: str
    groups: Mapping[str, GroupCut]
    tensors: tuple[TensorCut, ...]
    patches: tuple[SizePatch, ...] = ()
    notes: tuple[str, ...] = field(default=())
    biases: tuple[str, ...] = ()
    norms: tuple[NormWidth, ...] = ()
    ports: tuple[PortCut, ...] = ()
    orders: tuple[OrderCut, ...] = ()
    dropped: Dropped = Dropped()
    why: Why | None = field(default=None, compare=False)
    counts: tuple[int, ...] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.explain()

    @property
    def removed(self) -> int:
        """Number of channels that go; blocks, with all that is in them, aside."""
        return sum(g.size - len(g.kept) for g in self.groups.values())

    def explain(self) -> str:
        """Tell in words what goes, what stays and why."""
        what = f"{self.removed} channels"
        if self.dropped:
            what += f" and {many(len(self.dropped.blocks), 'block')}"
        lines = [f"Plan for the architecture {self.fingerprint}: {what} go."]
        width = max((len(n) for n in self.groups), default=0)
        for name, cut in self.groups.items():
            said = _remarks(cut) + self._threshold(name, cut)
            lines.append(f"  {name:<{width}}  keeps {len(cut.kept)} of {cut.size}{said}")
        lines += [f"  {block.name}: the block goes" for block in self.dropped.blocks]
        lines += [f"  {row}" for row in self.dropped.replaced]
        lines += [f"  {path}: is given a bias" for path in self.biases]
        lines += [f"  {p.module}.{p.attribute}: {p.old} -> {p.new}" for p in self.patches]
        lines += [f"  {norm}" for norm in self.norms]
        lines += [f"  {port}" for port in self.ports]
        lines += [f"  {order.tensor}: its numbers are made anew" for order in self.orders]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def _threshold(self, name: str, cut: GroupCut) -> str:
        gone, left = (self.why or Why()).threshold(name, cut.kept)
        if gone is None or left is None:
            return ""
        return f", scores up to {gone:.3g} go, from {left:.3g} stay"

    def to_json(self) -> str:
        """Write the plan as JSON; kept indices are runs ``[start, stop)``."""
        return write(Fields(**{part.name: getattr(self, part.name) for part in fields(Fields)}))

    @staticmethod
    def from_json(text: str, *, most: int = LARGEST) -> PruningPlan:
        """Read what `to_json` wrote; plans of version 0.1, too.

        Args:
            text: the JSON.
            most: indices that it may list; a run of many is a short text.

        Raises:
            PlanError: the text is not a plan, is damaged, was edited, or was written by a newer
                format.
        """
        fields = read(text, most)
        rows = (fields.groups, fields.tensors, fields.patches, fields.biases, fields.norms)
        check_rows(*rows, fields.ports, fields.orders, fields.counts, fields.dropped)
        return PruningPlan(**vars(fields))

    @cached_property
    def _agrees(self) -> bool:
        """True; looked at once, for nothing about a plan changes.

        Raises:
            PlanError: the rows do not agree.
        """
        rows = (self.groups, self.tensors, self.patches, self.biases, self.norms)
        check_rows(*rows, self.ports, self.orders, self.counts, self.dropped)
        return True

    def check(self, model: nn.Module) -> None:
        """Refuse a model this plan does not belong to, and a plan whose rows do not agree.

        Raises:
            PlanError: names both fingerprints, or the row and what is wrong with it.
        """
        expect(model, nn.Module, "model", "plan.check(model)")
        check_walked(self, Walked.of(model))


def check_walked(plan: PruningPlan, walked: Walked) -> None:
    """As `PruningPlan.check`, of a model that was walked through."""
    found = walked.fingerprint
    if found != plan.fingerprint:
        raise PlanError(
            f"the plan was made for the architecture {plan.fingerprint}, this model is "
            f"{found}: apply it to the model it was made for, or trace and select again"
        )
    if plan._agrees:
        check_fits(plan.tensors, plan.biases, walked.tensors)
        problem = fits(walked, plan.dropped)
        if problem is not None:
            raise PlanError(f"{problem}: make the plan again with netslim.select")
        if plan.counts is None and not linked(plan.groups):
            check_layers(plan.tensors, plan.patches, walked.model)


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """The one plan that does ``first`` and then ``second``, on the architecture of ``first``.

    ``second`` counts the entries that ``first`` left, so its entry i is entry ``first.kept[i]`` of
    the original: the numbers of ``second`` are looked up in those of ``first``. Kept (0, 2, 3, 5)
    of 6 and then (1, 3) of 4 is (2, 5) of 6.

    Merges chain: what ``first`` merged into a channel goes where ``second`` sends that channel, so
    it is merged into the last survivor, or dropped with it. On the original's values the composed
    plan therefore gives what the two give one after the other, apart from the rounding of sums of
    three and more. A bias that ``second`` adds is added to the original, and cut as ``first`` cut
    the outputs of its module.

    Raises:
        PlanError: ``second`` is not for what ``first`` leaves.
    """
    cuts = {(t.tensor, t.axis): t for t in (*first.tensors, *bias_cuts(first, second.biases))}
    for t in second.tensors:
        key = t.tensor, t.axis
        cuts[key] = _tensor_after(cuts[key], t) if key in cuts else t
    patches = {(p.module, p.attribute): p for p in first.patches}
    for p in second.patches:
        original = patches.get((p.module, p.attribute), p)
        patches[p.module, p.attribute] = replace(p, old=original.old)
    groups = _compose_groups(first.groups, second.groups)
    norms = {norm.place: norm.lasting for norm in (*second.norms, *first.norms)}
    norms |= _norms_after(first.norms, second.norms)
    added = [bias_of(path) for path in first.biases]
    dropped = composed(first.dropped, second.dropped, first.tensors, added)
    both = PruningPlan(
        first.fingerprint,
        groups,
        tuple(cuts.values()),
        tuple(patches.values()),
        notes=tuple(dict.fromkeys(first.notes + second.notes)),
        biases=tuple(dict.fromkeys(first.biases + second.biases)),
        norms=tuple(norms.values()),
        ports=_ports_after(first.ports, second.ports),
        orders=_orders_after(first.orders, second.orders),
        dropped=dropped,
    )
    both = without_dropped_rows(both)
    both = replace(both, groups=with_known_sizes(both.groups, both.patches))
    if first.counts is None or second.counts is None:
        return both
    return counted(both)


def _norms_after(
    first: Iterable[NormWidth], second: Iterable[NormWidth]
) -> dict[tuple[str, str], NormWidth]:
    """The rows that both of two cuts have, as they are after both.

    Raises:
        PlanError: one has scaled a weight, and another has not.
    """
    later = {norm.place: norm for norm in second}
    both = [(norm, later[norm.place]) for norm in first if norm.place in later]
    for one, other in both:
        if (one.kind == SCALED) != (other.kind == SCALED):
            raise PlanError(
                f"one cut has scaled the weight of {one.where!r}, and the other leaves it, as it "
                "does where others hold that weight: give each its own, trace and select again"
            )
    return {one.place: other.after(one) for one, other in both}


def counted(plan: PruningPlan) -> PruningPlan:
    """The plan, which says of itself that nothing of it is missing.

    Where groups do not say which entries they have, a row that was lost leaves no trace.
    """
    rows: list[Sized] = [plan.tensors, plan.patches, plan.norms, plan.ports, plan.orders]
    if plan.dropped:
        rows += [plan.dropped.replaced, plan.dropped.tensors]
    return replace(plan, counts=tuple(map(len, rows)))


def without_dropped_rows(plan: PruningPlan) -> PruningPlan:
    """The plan without rows of what goes with its blocks, of which nothing is left to cut."""
    gone = plan.dropped.holds
    if not plan.dropped:
        return plan
    groups = {}
    for name, cut in plan.groups.items():
        slices = tuple(s for s in cut.slices if not gone(s.tensor))
        sizes = tuple(size for size in cut.sizes if not gone(size.module))
        if slices or not cut.slices:  # of several cuts none says what it holds
            groups[name] = replace(cut, slices=slices, sizes=sizes)
    return replace(
        plan,
        groups=groups,
        tensors=tuple(cut for cut in plan.tensors if not gone(cut.tensor)),
        patches=tuple(patch for patch in plan.patches if not gone(patch.module)),
        biases=tuple(path for path in plan.biases if not gone(path)),
        norms=tuple(norm for norm in plan.norms if not gone(norm.module)),
        orders=tuple(order for order in plan.orders if not gone(order.tensor)),
    )


def bias_cuts(plan: PruningPlan, paths: Iterable[str]) -> list[TensorCut]:
    """The cuts that biases need when they are added to modules whose outputs the plan cuts."""
    outputs = {t.tensor: t for t in plan.tensors if t.axis == 0}
    found = []
    for path in paths:
        made = outputs.get(weight_of(path))
        if made is not None:
            found.append(TensorCut(bias_of(path), 0, made.size, made.kept, "channel"))
    return found


def without_slices(plan: PruningPlan) -> PruningPlan:
    """The plan for a model to keep: what it is checked with before a cut has done its duty, and the
    reasons for each unit.
    """
    return replace(plan, groups=_bare(plan.groups), why=None)


def with_known_sizes(
    groups: Mapping[str, GroupCut], patches: Iterable[SizePatch]
) -> dict[str, GroupCut]:
    """The groups; without what they say of attributes where that is no longer all of it."""
    if explained(groups, patches):
        return dict(groups)
    return {name: replace(cut, sizes=()) for name, cut in groups.items()}


def with_biases(plan: PruningPlan, paths: Iterable[str], fingerprint: str) -> PruningPlan:
    """The plan for a model whose modules at these paths have been given a bias.

    What cuts their outputs cuts the biases, too; ``fingerprint`` is of the model with them.
    """
    known = {t.tensor for t in plan.tensors}
    cuts = [t for t in bias_cuts(plan, paths) if t.tensor not in known]
    weights = {weight_of(path): bias_of(path) for path in paths}
    groups = {}
    for name, cut in plan.groups.items():
        added = [
            replace(s, tensor=weights[s.tensor], role="channel")
            for s in cut.slices
            if s.tensor in weights and s.axis == 0
        ]
        groups[name] = replace(cut, slices=(*cut.slices, *added))
    tensors = (*plan.tensors, *cuts)
    return replace(plan, fingerprint=fingerprint, groups=groups, tensors=tensors)


def _bare(groups: Mapping[str, GroupCut]) -> dict[str, GroupCut]:
    return {name: replace(cut, slices=()) for name, cut in groups.items()}


def _tensor_after(first: TensorCut, second: TensorCut) -> TensorCut:
    """Two cuts of one axis, one after the other, as one."""
    kept = _kept_after(first, second, f"{second.tensor} axis {second.axis}")
    return replace(first, kept=kept, into=_chained(first, second))


def _kept_after(first: _Row, second: _Row, what: str) -> tuple[int, ...]:
    if len(first.kept) != second.size:
        raise PlanError(
            f"the plans do not follow each other: {what} has "
            f"{len(first.kept)} entries after the first and {second.size} before the second"
        )
    return tuple(first.kept[i] for i in second.kept)


def _ports_after(first: Iterable[PortCut], second: Iterable[PortCut]) -> tuple[PortCut, ...]:
    """What two cuts, one after the other, leave of inputs and outputs."""
    cuts = {(p.kind, p.name, p.dim): p for p in first}
    for p in second:
        before = cuts.get((p.kind, p.name, p.dim))
        if before is not None:
            kept = _kept_after(before, p, str(p))
            p = replace(before, kept=kept, into=_chained(before, p))
        cuts[p.kind, p.name, p.dim] = p
    return tuple(cuts.values())


def _compose_groups(
    first: Mapping[str, GroupCut], second: Mapping[str, GroupCut]
) -> dict[str, GroupCut]:
    """For people to read; where a name stands for another group than before, the later one.

    Without their slices, then: those of the second are counted in what the first leaves.
    """
    groups = _bare(first)
    for name, cut in _bare(second).items():
        before = groups.get(name)
        if before is None or len(before.kept) != cut.size:
            groups[name] = cut
            continue
        kept = tuple(before.kept[i] for i in cut.kept)
        exact = before.exact and cut.exact
        sizes = (*before.sizes, *cut.sizes)
        groups[name] = GroupCut(before.size, kept, exact, _chained(before, cut), sizes=sizes)
    return groups


def _orders_after(first: Iterable[OrderCut], second: Iterable[OrderCut]) -> tuple[OrderCut, ...]:
    """What two cuts, one after the other, make of numbers of channels."""
    cuts = {order.tensor: order for order in first}
    for order in second:
        before = cuts.get(order.tensor)
        if before is not None:
            order = replace(before, kept=_kept_after(before, order, order.tensor))
        cuts[order.tensor] = order
    return tuple(cuts.values())


def _chained(first: _Cut, second: _Cut) -> tuple[int, ...]:
    """``into`` of the two cuts one after the other, in the numbers of the first.

    For instance first: 1 into 2, keeping (0, 2, 3); second: its 1 (the original's 2) into its 2
    (the original's 3). Then 1 and 2 both end in 3.
    """
    if not first.into and not second.into:
        return ()
    kept = np.asarray(first.kept)
    one, two = destinations(first), destinations(second)
    # DROPPED is -1, which as an index means the last entry: `where` puts it back.
    ends = np.full(first.size, DROPPED)  # of what the first cut keeps
    ends[kept] = np.where(two == DROPPED, DROPPED, kept[two])
    total = np.where(one == DROPPED, DROPPED, ends[one])
    return merging_rows(total, kept[list(second.kept)].tolist())


def _remarks(cut: GroupCut) -> str:
    said = ""
    if cut.merged:
        said += f", merges {cut.merged} of {cut.size} into them"
    if not cut.exact:
        said += "  (values change: not equal to silencing)"
    return said
