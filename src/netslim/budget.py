"""From scores to a plan that meets a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil, floor
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .errors import PlanError
from .graph import ChannelGraph, ChannelGroup
from .graph.explain import nearest
from .graph.naming import granted, listed, meant
from .plan import DROPPED, GroupCut, PruningPlan, SizePatch, TensorCut, merging_rows, partners

_TIED = "tied weights cannot be summed on one side alone: leave these groups out of the merge"
Masks = dict[int, np.ndarray]  # group number -> which units are kept
Shortcuts = Literal["include", "avoid"]


@dataclass(frozen=True)
class Budget:
    """What must go, relative to the traced model, or how much may stay. Several may be given; all are met.

    Attributes:
        cut_channels: share of the scored channels to remove, 0 <= share < 1; exactly ``floor(N * share)`` go
            (the percentage of the Network Slimming paper).
        cut_params: least share of the parameters to remove.
        cut_macs: least share of the multiply-accumulates to remove.
        max_params: most parameters that may stay.
        max_macs: most multiply-accumulates that may stay, for the traced input.

    Raises:
        PlanError: a share is below 0 or at 1 and above, a maximum is not positive, or nothing is asked for.
    """

    cut_channels: float | None = None
    cut_params: float | None = None
    cut_macs: float | None = None
    max_params: int | None = None
    max_macs: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise PlanError(f"{name} must be a number, got {value!r}")
            if name.startswith("cut_") and not 0 <= value < 1:
                raise PlanError(f"{name} must be at least 0 and below 1, got {value}: it is the share that goes")
            if name.startswith("max_") and value <= 0:
                raise PlanError(f"{name} must be above 0, got {value}")

    def given(self) -> dict[str, float]:
        """The limits that were set."""
        return {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class Limits:
    """What a cut must respect, whatever it is to reach; see `select`.

    Raises:
        PlanError: a limit is out of range.
    """

    min_channels: int = 1
    max_cut: float | None = None
    round_to: int = 1
    protect: Iterable[str] = ()
    shortcuts: Shortcuts = "include"
    allow_inexact: bool = False

    def __post_init__(self) -> None:
        if self.min_channels < 1 or self.round_to < 1:
            raise PlanError(
                f"min_channels and round_to must be at least 1, got {self.min_channels} and {self.round_to}"
            )
        if self.max_cut is not None and not 0 <= self.max_cut < 1:
            raise PlanError(f"max_cut must be at least 0 and below 1, got {self.max_cut}")
        if self.shortcuts not in ("include", "avoid"):
            raise PlanError(f"shortcuts must be 'include' or 'avoid', got {self.shortcuts!r}")

    def __str__(self) -> str:
        cap = "" if self.max_cut is None else f" and max_cut={self.max_cut}"
        return f"min_channels={self.min_channels}{cap}"

    def most(self, size: int) -> int:
        """How many of ``size`` channels may go."""
        cap = size if self.max_cut is None else floor(size * self.max_cut + 1e-9)
        return max(0, min(cap, size - self.min_channels))

    def staying(self, graph: ChannelGraph) -> dict[str, str]:
        """Group name -> reason, for the groups that are left alone whatever their scores.

        Raises:
            PlanError: ``protect`` names no group.
        """
        names = (self.protect,) if isinstance(self.protect, str) else self.protect
        guarded = {g.name for name in names for g in meant(graph, name, "protect names no group")}
        found = {g.name: str(g.reason) for g in graph.groups if g.frozen or not (g.exact or self.allow_inexact)}
        for group in graph.groups:
            if group.name in guarded:
                found.setdefault(group.name, "protected")
            elif group.shortcut and self.shortcuts == "avoid":
                found.setdefault(group.name, "the outputs of several layers are added in it (shortcuts='avoid')")
        return found


def select(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    budget: Budget | None = None,
    *,
    min_channels: int = 1,
    max_cut: float | None = None,
    round_to: int = 1,
    protect: Iterable[str] = (),
    per_group: Mapping[str, float | int] | None = None,
    scope: Literal["global", "layer"] = "global",
    shortcuts: Shortcuts = "include",
    allow_inexact: bool = False,
) -> PruningPlan:
    """Choose the least important units that must go for the budget to be met.

    Args:
        graph: from `netslim.trace`.
        scores: from `netslim.score`; groups without scores are not cut.
        budget: what to reach; may be left out when ``per_group`` says it all.
        min_channels: units that stay in every group at least; no layer can die.
        max_cut: largest share of a group that may go (the papers' 50 % cap is 0.5).
        round_to: what stays in a touched group is a multiple of this, where the group has that many.
        protect: names, or patterns of group names, that are left alone (``"layer1.*"``).
        per_group: name or pattern -> what goes in each group that it means: a share (float below 1) or a count (int).
            A plain name may be any that ``graph[name]`` knows, and wins over patterns, wherever it stands; of two
            patterns the later one wins: ``{"layer1.*": 0.6, "layer1.3.conv1": 0}``. These groups take no part in the
            rest of the budget.
        scope: ``global`` compares all units with one threshold; ``layer`` cuts the same share of each group
            (only with ``cut_channels``).
        shortcuts: ``avoid`` leaves alone the groups in which the outputs of several layers are added.
        allow_inexact: also cut groups whose removal changes values (normalisation over channels, attention).

    Raises:
        PlanError: the budget cannot be met within the limits (names the limit and the best that can be reached),
            nothing is left that could be cut, or an option is out of range or names no group.
    """
    if budget is not None and not isinstance(budget, Budget):
        raise PlanError(f"budget must be a netslim.Budget, such as Budget(cut_channels=0.5), got {budget!r}")
    limits = Limits(min_channels, max_cut, round_to, protect, shortcuts, allow_inexact)
    chooser = Chooser(graph, scores, limits)
    masks = {n: chooser.lowest(n, count) for n, count in chooser.named_counts(per_group or {}).items()}
    if budget is not None and budget.given():
        if scope not in ("global", "layer"):
            raise PlanError(f"scope must be 'global' or 'layer', got {scope!r}")
        masks |= chooser.layer(budget, masks) if scope == "layer" else chooser.overall(budget, masks)
    elif not per_group:
        raise PlanError("nothing to do: give a budget such as Budget(cut_channels=0.5), or per_group")
    return resolve(graph, chooser.rounded(masks), chooser.notes)


class Chooser:
    """The groups that may be cut, their limits, and the ways to choose among their units.

    Attributes:
        scores: group number -> scores of its units, for the groups that may be cut.
        notes: sentences for people: what stays and why.

    Raises:
        PlanError: no group may be cut, a score is not finite or not of the group's size, or a name means no group.
    """

    def __init__(self, graph: ChannelGraph, scores: Mapping[str, Tensor], limits: Limits) -> None:
        for name in scores.keys() - {g.name for g in graph.groups}:
            raise PlanError(f"scores are given for {name!r}, which is no group; {nearest(graph, name)}")
        self.graph, self.limits = graph, limits
        self.staying = {g.name: "it has no score" for g in graph.groups if g.name not in scores}
        self.staying |= limits.staying(graph)
        self.notes = [f"{g.name} stays: {self.staying[g.name]}" for g in graph.groups if g.name in self.staying]
        self.scores = {n: _finite(g, scores[g.name]) for n, g in enumerate(graph.groups) if g.name not in self.staying}
        if not self.scores:
            raise PlanError(f"nothing can be cut: {listed(self.notes, '; ')}")

    def rescore(self, number: int, scores: Tensor | None) -> None:
        """Put other scores in place of a group's own, unless there are none."""
        if scores is not None:
            self.scores[number] = _finite(self.graph.groups[number], scores)

    def named_counts(self, per_group: Mapping[str, float | int]) -> dict[int, int]:
        """Group number -> how many of its channels go, for the groups that are named."""
        wanted = granted(self.graph, per_group, self.staying, "per_group names no group that can be cut")
        return {(n := self.graph.number(name)): self._amount(n, amount) for name, amount in wanted.items()}

    def _amount(self, number: int, amount: Any) -> int:
        group = self.graph.groups[number]
        if isinstance(amount, Integral) and not isinstance(amount, bool):
            count = int(amount)
        elif not isinstance(amount, Real) or isinstance(amount, bool):
            raise PlanError(f"{group.name}: give a share (float below 1) or a count (int) of channels, got {amount!r}")
        elif not 0 <= float(amount) < 1:
            raise PlanError(f"{group.name}: a share must be at least 0 and below 1, got {amount}; a count is an int")
        else:
            count = floor(group.size * float(amount) + 1e-9)
        most = self.limits.most(group.size)
        if not 0 <= count <= most:
            raise PlanError(
                f"{group.name} has {group.size} channels and {count} should go; {self.limits} allows at most {most}"
            )
        if amount and not count:
            self.notes.append(f"{group.name} stays: {amount:g} of its {group.size} channels is less than one")
        return count

    def lowest(self, number: int, count: int) -> np.ndarray:
        """Which units of a group stay when the ``count`` least important go."""
        keep = np.ones(self.graph.groups[number].size, dtype=bool)
        keep[np.argsort(self.scores[number], kind="stable")[:count]] = False
        return keep

    def layer(self, budget: Budget, fixed: Masks) -> Masks:
        """The same share of every group."""
        if set(budget.given()) != {"cut_channels"}:
            raise PlanError(f"scope 'layer' takes cut_channels alone, got {', '.join(budget.given())}")
        return {n: self.lowest(n, self._amount(n, budget.cut_channels)) for n in self.scores if n not in fixed}

    def overall(self, budget: Budget, fixed: Masks) -> Masks:
        """One threshold over all groups: remove in the order of the scores until every limit is met."""
        free = [n for n in self.scores if n not in fixed]
        groups, units = self._order(free)
        count = 0  # the shortest prefix of the order that meets every limit so far
        for name, value in budget.given().items():
            count = max(count, self._prefix(name, value, groups, units, free, fixed))
        return self._masks(free, groups, units, count)

    def _order(self, free: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Group and unit numbers by rising score, each group up to its limit."""
        parts = []
        for n in free:
            lowest = np.argsort(self.scores[n], kind="stable")[: self.limits.most(self.graph.groups[n].size)]
            parts.append(np.stack([np.full(len(lowest), n), lowest]))
        groups, units = np.concatenate(parts, axis=1) if parts else np.empty((2, 0), dtype=np.int64)
        values = np.array([self.scores[g][u] for g, u in zip(groups, units, strict=True)])
        order = np.argsort(values, kind="stable")
        return groups[order], units[order]

    def _masks(self, free: list[int], groups: np.ndarray, units: np.ndarray, count: int) -> Masks:
        masks = {n: np.ones(self.graph.groups[n].size, dtype=bool) for n in free}
        for g, u in zip(groups[:count].tolist(), units[:count].tolist(), strict=True):
            masks[g][u] = False
        return masks

    def _prefix(
        self, name: str, value: float, groups: np.ndarray, units: np.ndarray, free: list[int], fixed: Masks
    ) -> int:
        """How many units of the order must go for one limit to hold."""
        if name == "cut_channels":
            return self._share(value, len(groups), free)
        measure: Callable[[Masks], int] = self.graph.macs if name.endswith("macs") else self.graph.params
        limit = value if name.startswith("max_") else ceil(measure({}) * (1 - value) - 1e-9)
        best = measure(fixed | self._masks(free, groups, units, len(groups)))
        if best > limit:
            raise PlanError(
                f"{name}={value:g} leaves at most {limit:,.0f} {name[4:]}; {self.limits} and the groups that stay "
                f"leave no fewer than {best:,} ({1 - best / measure({}):.1%} less than the original {measure({}):,})"
            )
        low, high = 0, len(groups)
        while low < high:
            middle = (low + high) // 2
            if measure(fixed | self._masks(free, groups, units, middle)) <= limit:
                high = middle
            else:
                low = middle + 1
        return low

    def _share(self, value: float, allowed: int, free: list[int]) -> int:
        """How many units are ``cut_channels`` of the groups that no name settles."""
        total = sum(self.graph.groups[n].size for n in free)
        wanted = floor(total * value + 1e-9)
        if value and not total:
            raise PlanError(f"cut_channels={value} has nothing to cut: per_group settles every group that can be cut")
        if value and not wanted:
            self.notes.append(f"nothing goes for cut_channels={value}: of {total} channels that is less than one")
        if wanted > allowed:
            reached = floor(allowed / total * 1000) / 1000
            raise PlanError(
                f"cut_channels={value} asks for {wanted} of {total} channels; {self.limits} allows {allowed} "
                f"(at most cut_channels={reached})"
            )
        return wanted

    def rounded(self, masks: Masks) -> Masks:
        """Leave a multiple of ``round_to`` in each touched group: fewer where the limits allow it, else more."""
        step = self.limits.round_to
        if step == 1:
            return masks
        result = {}
        for n, mask in masks.items():
            kept, size = int(mask.sum()), len(mask)
            down, up = kept - kept % step, kept + -kept % step
            fits = down > 0 and size - down <= self.limits.most(size)
            result[n] = self.lowest(n, size - (down if fits else min(up, size))) if kept < size else mask
        return result


def _finite(group: ChannelGroup, values: Tensor) -> np.ndarray:
    array = torch.as_tensor(values).detach().double().cpu().numpy()
    if array.shape != (group.size,):
        raise PlanError(f"group {group.name!r} has {group.size} units, its scores have shape {array.shape}")
    if not np.isfinite(array).all():
        raise PlanError(f"the scores of group {group.name!r} are not finite; did training diverge?")
    return array


def resolve(
    graph: ChannelGraph,
    masks: Mapping[int, Any],
    notes: Iterable[str] = (),
    into: Mapping[int, np.ndarray] | None = None,
) -> PruningPlan:
    """Write out which indices of which tensors stay when group ``g`` keeps the units of the boolean ``masks[g]``.

    Args:
        graph: from `netslim.trace`.
        masks: group number -> shape (size,), which units are kept.
        notes: sentences for people.
        into: group number -> shape (size,), the kept unit each unit is merged into: itself when it is kept, and also
            when it is removed without being merged. What reads it is then summed.

    Raises:
        PlanError: a unit is merged into one that goes, or weights that read merged channels also make them (tied
            weights), so that they cannot be summed.
    """
    masks = {n: np.asarray(m, dtype=bool) for n, m in masks.items() if not np.all(m)}
    groups = {}
    onto: dict[tuple[str, int], np.ndarray] = {}  # where the entries of an axis end
    keep: dict[tuple[str, int], np.ndarray] = {}
    roles: dict[tuple[str, int], set[str]] = {}
    for number in sorted(masks):
        group, mask = graph.groups[number], masks[number]
        ends = _ends(group, mask, (into or {}).get(number))
        survivors = tuple(np.flatnonzero(mask).tolist())
        groups[group.name] = GroupCut(group.size, survivors, group.exact, merging_rows(ends, survivors))
        for s in group.slices:
            gone = s.positions[~mask[s.units]]
            key = (s.tensor, s.axis)
            kept = keep.setdefault(key, np.ones(graph.axis_sizes[key], dtype=bool))
            kept[gone] = False
            roles.setdefault(key, set()).add(s.role)
            if groups[group.name].into and s.role == "consumer":
                if s.mixed:
                    raise PlanError(f"group {group.name!r}: {s.tensor!r} reads the channels that it makes; {_TIED}")
                merged, targets = partners(s.positions, s.units, ends)
                onto.setdefault(key, np.full(len(kept), DROPPED))[merged] = targets
    for (t, a), others in {key: roles[key] - {"consumer"} for key in onto}.items():
        if others:
            what = " and ".join(sorted(others))
            raise PlanError(f"axis {a} of {t!r} reads merged channels and is {what} of channels, too; {_TIED}")
    same: dict[bytes, tuple[int, ...]] = {}  # many tensors keep the same indices
    tensors = []
    for (t, a), kept in keep.items():
        indices = _indices(kept, same)
        sums = merging_rows(onto[t, a], indices) if (t, a) in onto else ()
        tensors.append(TensorCut(t, a, len(kept), indices, "+".join(sorted(roles[t, a])), sums))
    patches = []
    for rule in graph.size_rules:
        new = rule.old * rule.count.kept(masks) // rule.count.kept({})
        if new != rule.old:
            patches.append(SizePatch(rule.module, rule.attribute, rule.old, new))
    return PruningPlan(graph.fingerprint, groups, tuple(tensors), tuple(patches), tuple(notes))


def _ends(group: ChannelGroup, mask: np.ndarray, into: np.ndarray | None) -> np.ndarray:
    """Where each unit ends: itself, the unit it is merged into, or `DROPPED`."""
    own = np.arange(group.size)
    ends = own.copy() if into is None else np.asarray(into, dtype=np.int64).copy()
    if ends.shape != own.shape or not ((ends >= 0) & (ends < group.size)).all():
        raise PlanError(f"group {group.name!r} has {group.size} units; into names {ends.tolist()} for them")
    wrong = np.flatnonzero((ends != own) & (mask | ~mask[ends]))
    if len(wrong):
        unit = int(wrong[0])
        what = "is kept and merged as well" if mask[unit] else "which is not kept"
        raise PlanError(f"group {group.name!r}: unit {unit} is merged into unit {int(ends[unit])}; it {what}")
    ends[~mask & (ends == own)] = DROPPED
    return ends


def _indices(kept: np.ndarray, known: dict[bytes, tuple[int, ...]]) -> tuple[int, ...]:
    key = kept.tobytes()
    if key not in known:
        known[key] = tuple(np.flatnonzero(kept).tolist())
    return known[key]
