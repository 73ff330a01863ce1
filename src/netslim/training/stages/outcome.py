"""What came of a cut, as plain data for those who read the results: which layers lost how many
channels, where these lie in the network, and by which scores they were chosen.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.words.drawing import picture
from netslim.surgery.plan import PruningPlan

Found = dict[str, Any]


def where(graph: ChannelGraph, plan: PruningPlan, masked: bool = False) -> Found:
    """Where the channels of a graph went; a mask leaves them where they are."""
    if masked:
        return {"widths": []}
    return {"widths": widths(graph.groups, plan), "picture": asdict(picture(graph))}


def scored(plan: PruningPlan) -> Found:
    """The scores of each layer that could be cut: least, middle and largest of the channels that
    went, and of those that stay.
    """
    if plan.why is None:
        return {}
    layers = []
    for name, scores in plan.why.scores.items():
        kept = {*range(len(scores))}
        if name in plan.groups:
            kept = {*plan.groups[name].kept}
        stay = [score for unit, score in enumerate(scores) if unit in kept]
        gone = [score for unit, score in enumerate(scores) if unit not in kept]
        if all(map(math.isfinite, scores)):
            layers.append({"layer": name, "gone": _ends(gone), "kept": _ends(stay)})
    if not layers:
        return {}
    return {"scores": {"criterion": plan.why.criterion, "layers": layers}}


def _ends(scores: Sequence[float]) -> list[float]:
    """Least, middle and largest; four digits, as in a plan."""
    if not scores:
        return []
    found = (min(scores), statistics.median(scores), max(scores))
    return [float(f"{score:.4g}") for score in found]


def widths(groups: Iterable[ChannelGroup], plan: PruningPlan) -> list[Found]:
    """Channels of every prunable layer before and after."""
    found = []
    for group in groups:
        if group.prunable and not group.block:
            cut = plan.groups.get(group.name)
            after = group.size
            if cut is not None:
                after = len(cut.kept)
            elif plan.dropped and all(plan.dropped.holds(s.tensor) for s in group.slices):
                after = 0  # it went with a block
            found.append({"layer": group.name, "before": group.size, "after": after})
    return found


__all__ = ["scored", "where", "widths"]
