"""From scores to a plan that meets a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil, floor
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .errors import PlanError
from .graph import ChannelGraph, ChannelGroup
from .plan import GroupCut, PruningPlan, SizePatch, TensorCut

Masks = dict[int, np.ndarray]  # group number -> which units are kept


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
        protect: patterns of group names that are left alone (``"layer1.*"``).
        per_group: pattern -> what goes in each matching group: a share (float below 1) or a count (int).
            These groups take no part in the rest of the budget.
        scope: ``global`` compares all units with one threshold; ``layer`` cuts the same share of each group
            (only with ``cut_channels``).
        allow_inexact: also cut groups whose removal changes values (normalisation over channels, attention).

    Raises:
        PlanError: the budget cannot be met within the limits (names the limit and the best that can be reached),
            or an option is out of range or names no group.
    """
    chooser = _Chooser(graph, scores, min_channels, max_cut, round_to, tuple(protect), allow_inexact)
    masks = chooser.named_cuts(per_group or {})
    if budget is not None and budget.given():
        if scope not in ("global", "layer"):
            raise PlanError(f"scope must be 'global' or 'layer', got {scope!r}")
        masks |= chooser.layer(budget, masks) if scope == "layer" else chooser.overall(budget, masks)
    elif not per_group:
        raise PlanError("nothing to do: give a budget such as Budget(cut_channels=0.5), or per_group")
    return resolve(graph, chooser.rounded(masks), chooser.notes)


class _Chooser:
    """The groups that may be cut, their limits, and the ways to choose among their units."""

    def __init__(
        self,
        graph: ChannelGraph,
        scores: Mapping[str, Tensor],
        min_channels: int,
        max_cut: float | None,
        round_to: int,
        protect: tuple[str, ...],
        allow_inexact: bool,
    ) -> None:
        if min_channels < 1 or round_to < 1:
            raise PlanError(f"min_channels and round_to must be at least 1, got {min_channels} and {round_to}")
        if max_cut is not None and not 0 <= max_cut < 1:
            raise PlanError(f"max_cut must be at least 0 and below 1, got {max_cut}")
        for pattern in protect:
            if not any(fnmatchcase(g.name, pattern) for g in graph.groups):
                raise PlanError(f"protect names no group: {pattern!r}; the groups are {_names(graph.groups)}")
        self.graph, self.round_to, self.min_channels, self.max_cut = graph, round_to, min_channels, max_cut
        self.scores: dict[int, np.ndarray] = {}
        self.limits: dict[int, int] = {}
        self.notes: list[str] = []
        for number, group in enumerate(graph.groups):
            guarded = any(fnmatchcase(group.name, p) for p in protect)
            if group.frozen or not (group.exact or allow_inexact):
                self.notes.append(f"{group.name} stays: {group.reason}")
            elif guarded or group.name not in scores:
                self.notes.append(f"{group.name} stays: " + ("protected" if guarded else "it has no score"))
            else:
                self.scores[number] = _finite(group, scores[group.name])
                cap = group.size if max_cut is None else floor(group.size * max_cut + 1e-9)
                self.limits[number] = max(0, min(cap, group.size - min_channels))

    def named_cuts(self, per_group: Mapping[str, float | int]) -> Masks:
        """Cut the groups that are named, by share or by count."""
        masks: Masks = {}
        for pattern, amount in per_group.items():
            matching = [n for n in self.scores if fnmatchcase(self.graph.groups[n].name, pattern)]
            if not matching:
                free = [self.graph.groups[n] for n in self.scores]
                raise PlanError(f"per_group names no group that can be cut: {pattern!r}; these can: {_names(free)}")
            for n in matching:
                masks[n] = self._lowest(n, self._amount(n, amount))
        return masks

    def _amount(self, number: int, amount: float | int) -> int:
        group = self.graph.groups[number]
        if isinstance(amount, float) and not 0 <= amount < 1:
            raise PlanError(f"{group.name}: a share must be at least 0 and below 1, got {amount}")
        count = amount if isinstance(amount, int) else floor(group.size * amount + 1e-9)
        if not 0 <= count <= self.limits[number]:
            raise PlanError(
                f"{group.name} has {group.size} channels and {count} should go; {self._limit()} allows at most "
                f"{self.limits[number]}"
            )
        return count

    def _lowest(self, number: int, count: int) -> np.ndarray:
        keep = np.ones(self.graph.groups[number].size, dtype=bool)
        keep[np.argsort(self.scores[number], kind="stable")[:count]] = False
        return keep

    def layer(self, budget: Budget, fixed: Masks) -> Masks:
        """The same share of every group."""
        if set(budget.given()) != {"cut_channels"}:
            raise PlanError(f"scope 'layer' takes cut_channels alone, got {', '.join(budget.given())}")
        share = float(budget.cut_channels)  # type: ignore[arg-type]
        return {n: self._lowest(n, self._amount(n, share)) for n in self.scores if n not in fixed}

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
            lowest = np.argsort(self.scores[n], kind="stable")[: self.limits[n]]
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
            total = sum(self.graph.groups[n].size for n in free)
            wanted = floor(total * value + 1e-9)
            if wanted > len(groups):
                reached = len(groups) / total if total else 0.0
                raise PlanError(
                    f"cut_channels={value} asks for {wanted} of {total} channels; {self._limit()} allows {len(groups)} "
                    f"(at most cut_channels={floor(reached * 1000) / 1000})"
                )
            return wanted
        measure: Callable[[Masks], int] = self.graph.macs if name.endswith("macs") else self.graph.params
        limit = value if name.startswith("max_") else ceil(measure({}) * (1 - value) - 1e-9)
        best = measure(fixed | self._masks(free, groups, units, len(groups)))
        if best > limit:
            raise PlanError(
                f"{name}={value:g} leaves at most {limit:,.0f} {name[4:]}; {self._limit()} and the frozen groups leave "
                f"no fewer than {best:,} ({1 - best / measure({}):.1%} less than the original {measure({}):,})"
            )
        low, high = 0, len(groups)
        while low < high:
            middle = (low + high) // 2
            if measure(fixed | self._masks(free, groups, units, middle)) <= limit:
                high = middle
            else:
                low = middle + 1
        return low

    def rounded(self, masks: Masks) -> Masks:
        """Leave a multiple of ``round_to`` in each touched group: fewer where the limits allow it, else more."""
        if self.round_to == 1:
            return masks
        result = {}
        for n, mask in masks.items():
            kept, size = int(mask.sum()), len(mask)
            down, up = kept - kept % self.round_to, kept + -kept % self.round_to
            fits = down > 0 and size - down <= self.limits[n]
            result[n] = self._lowest(n, size - (down if fits else min(up, size))) if kept < size else mask
        return result

    def _limit(self) -> str:
        cap = "" if self.max_cut is None else f" and max_cut={self.max_cut}"
        return f"min_channels={self.min_channels}{cap}"


def _finite(group: ChannelGroup, values: Tensor) -> np.ndarray:
    array = torch.as_tensor(values).detach().double().cpu().numpy()
    if array.shape != (group.size,):
        raise PlanError(f"group {group.name!r} has {group.size} units, its scores have shape {array.shape}")
    if not np.isfinite(array).all():
        raise PlanError(f"the scores of group {group.name!r} are not finite; did training diverge?")
    return array


def _names(groups: Iterable[ChannelGroup]) -> str:
    names = [g.name for g in groups]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def resolve(graph: ChannelGraph, masks: Mapping[int, Any], notes: Iterable[str] = ()) -> PruningPlan:
    """Write out which indices of which tensors stay when group ``g`` keeps the units of the boolean ``masks[g]``."""
    masks = {n: np.asarray(m, dtype=bool) for n, m in masks.items() if not np.all(m)}
    groups = {}
    keep: dict[tuple[str, int], np.ndarray] = {}
    roles: dict[tuple[str, int], set[str]] = {}
    for number in sorted(masks):
        group, mask = graph.groups[number], masks[number]
        groups[group.name] = GroupCut(group.size, tuple(np.flatnonzero(mask).tolist()), group.exact)
        for s in group.slices:
            gone = s.positions[~mask[s.units]]
            key = (s.tensor, s.axis)
            kept = keep.setdefault(key, np.ones(graph.axis_sizes[key], dtype=bool))
            kept[gone] = False
            roles.setdefault(key, set()).add(s.role)
    same: dict[bytes, tuple[int, ...]] = {}  # many tensors keep the same indices
    tensors = tuple(
        TensorCut(t, a, len(kept), _indices(kept, same), "+".join(sorted(roles[t, a]))) for (t, a), kept in keep.items()
    )
    patches = []
    for rule in graph.size_rules:
        new = rule.old * rule.count.kept(masks) // rule.count.kept({})
        if new != rule.old:
            patches.append(SizePatch(rule.module, rule.attribute, rule.old, new))
    return PruningPlan(graph.fingerprint, groups, tensors, tuple(patches), tuple(notes))


def _indices(kept: np.ndarray, known: dict[bytes, tuple[int, ...]]) -> tuple[int, ...]:
    key = kept.tobytes()
    if key not in known:
        known[key] = tuple(np.flatnonzero(kept).tolist())
    return known[key]
