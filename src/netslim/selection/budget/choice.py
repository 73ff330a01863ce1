"""The groups that may be cut, how far, and which of their units go first."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netslim._support import brief, is_number, listed
from netslim.errors import ArgumentError, PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.unwrapping import without_values
from netslim.graph.words.explain import hint
from netslim.graph.words.naming import granted
from netslim.graph.words.table import never_ran
from netslim.selection.budget.limits import caps, shown, staying
from netslim.selection.options import Limits, plain, said
from netslim.surgery.why import Why

Masks = dict[int, np.ndarray]  # group number -> which units are kept


class Chooser:
    """The groups that may be cut, and their limits.

    Attributes:
        scores: group number -> scores of its units, for the groups that may be cut.
        caps: for each group, how many of its units may go.
        notes: sentences for people: what stays and why.

    Raises:
        ArgumentError: a score is not finite or not of the group's size, or a name means no group.
        PlanError: no group may be cut.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "l1")
        >>> chooser = netslim.selection.budget.Chooser(graph, scores, netslim.Limits(round_to=4))
        >>> chooser.levels(graph.number("features.0"))  # how many of its 8 channels may go
        array([0, 4])
    """

    def __init__(self, graph: ChannelGraph, scores: Mapping[str, Tensor], limits: Limits) -> None:
        for name in scores.keys() - {g.name for g in graph.groups}:
            raise ArgumentError(
                f"scores are given for {name!r}, which is no group{hint(graph, name)}"
            )
        self.graph, self.limits = graph, limits
        self.staying = {g.name: "it has no score" for g in graph.groups if g.name not in scores}
        self.staying |= staying(limits, graph)
        self.notes = [
            f"{g.name} stays: {self.staying[g.name]}"
            for g in graph.groups
            if g.name in self.staying
        ]
        self.scores = {
            n: _finite(g, scores[g.name])
            for n, g in enumerate(graph.groups)
            if g.name not in self.staying
        }
        self.caps = caps(limits, graph)
        if not self.scores:
            raise PlanError(f"nothing can be cut: {listed([*never_ran(graph), *self.notes], '; ')}")

    def rescore(self, number: int, scores: Tensor | None) -> None:
        """Put other scores in place of a group's own, unless there are none.

        Raises:
            ArgumentError: a score is not finite, or they are not of the group's size.
        """
        if scores is not None:
            self.scores[number] = _finite(self.graph.groups[number], scores)

    def order(self, number: int) -> np.ndarray:
        """The units of a group, the least important first; shape (size,)."""
        return np.argsort(self.scores[number], kind="stable")

    def lowest(self, number: int, count: int) -> np.ndarray:
        """Which units of a group stay when the ``count`` least important go."""
        keep = np.ones(self.graph.groups[number].size, dtype=bool)
        keep[self.order(number)[:count]] = False
        return keep

    def levels(self, number: int) -> np.ndarray:
        """How many units of a group may go: 0, and what leaves a multiple of ``round_to``."""
        size, step = self.graph.groups[number].size, self.limits.round_to or 1
        if self.graph.groups[number].block:
            return np.arange(self.caps[number] + 1)
        # Of 20 channels with ``round_to=8`` first 4 go, so that 16 stay, and then 12; of 16 first
        # 8.
        gone = np.arange(size % step or step, self.caps[number] + 1, step)
        return np.concatenate([[0], gone[gone < size]])

    def named_counts(self, per_group: Mapping[str, float | int]) -> dict[int, int]:
        """Group number -> how many of its channels go, for the groups that are named.

        Raises:
            ArgumentError: a name means no group, or an amount is no share and no count.
            PlanError: a group cannot be cut, or not as far as it says.
        """
        wanted = granted(
            self.graph, per_group, self.staying, "per_group names no group that can be cut"
        )
        return {
            (n := self.graph.number(name)): self._amount(n, amount)
            for name, amount in wanted.items()
        }

    def rounded(self, number: int, count: int) -> int:
        """How many of a group go by ``round_to`` when ``count`` should: more, or else fewer."""
        levels = self.levels(number)
        place = int(np.searchsorted(levels, count))
        return int(levels[min(place, len(levels) - 1)])

    def why(
        self,
        allocation: str,
        named: Mapping[int, int],
        budget: Mapping[str, float] | None = None,
    ) -> Why:
        """What was asked for, and the scores that decided; the criterion is not known here.

        ``named``: group number -> how many go, where names say so.
        """
        return Why(
            allocation=allocation,
            budget=plain(budget or {}),
            per_group={self.graph.groups[n].name: named[n] for n in sorted(named)},
            limits=said(self.limits),
            scores={self.graph.groups[n].name: tuple(v.tolist()) for n, v in self.scores.items()},
        )

    def _amount(self, number: int, amount: Any) -> int:
        group = self.graph.groups[number]
        count = _count(group, amount)
        most = self.caps[number]
        if not 0 <= count <= most:
            raise PlanError(
                f"{group.name} has {group.size} channels and {count} should go; "
                f"{shown(self.limits)} allows at most {most}"
            )
        if amount and not count:
            self.notes.append(
                f"{group.name} stays: {amount} of its {group.size} channels is less than one"
            )
        return self.rounded(number, count)


def _count(group: ChannelGroup, amount: Any) -> int:
    """Channels of a group, from a count or a share."""
    if not is_number(amount):
        raise ArgumentError(
            f"{group.name}: give a share (float below 1) or a count (int) of channels, got "
            f"{brief(amount)}"
        )
    if isinstance(amount, Integral):
        return int(amount)
    if not 0 <= float(amount) < 1:
        raise ArgumentError(
            f"{group.name}: a share must be at least 0 and below 1, got {amount}; a count is an int"
        )
    return floor(group.size * float(amount) + 1e-9)  # 0.29 * 100 is 28.999...


def _finite(group: ChannelGroup, values: Tensor) -> np.ndarray:
    values = torch.as_tensor(values)
    if without_values(values):
        raise ArgumentError(
            f"the scores of group {group.name!r} have no values: they were made on the meta device "
            "or in a FakeTensorMode; score the model outside of it"
        )
    array = values.detach().double().cpu().numpy()
    if array.shape != (group.size,):
        raise ArgumentError(
            f"group {group.name!r} has {group.size} units, its scores have shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ArgumentError(
            f"the scores of group {group.name!r} are not finite; did training diverge?"
        )
    return array


__all__ = ["Chooser", "Masks"]
