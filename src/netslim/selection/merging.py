"""Merge channels that do the same: one of each cluster survives, for which the others are read.

A layer that reads two equal channels with kernels ``a`` and ``b`` computes ``a x + b x``, which is
``(a + b) x``: summing its kernels makes up for the channel that goes, exactly. Nothing is done to
what makes the channels: the survivor is made as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from netslim._support import checks_calls, nearest
from netslim.errors import ArgumentError, PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.ambient import by_itself
from netslim.surgery.plan import PruningPlan
from netslim.surgery.plan_of_units import plan_keeping


@checks_calls
@by_itself
def merge(graph: ChannelGraph, clusters: Mapping[str, Sequence[int] | Tensor]) -> PruningPlan:
    """A plan that keeps the first of each cluster and sums into it what reads the other members.

    Where the members of a cluster are identical, the outputs stay as they are (Centripetal SGD,
    Ding et al. 2019, section 3.3); where they differ, the survivor stands for all of them. Groups
    that are not named are left alone.

    Args:
        graph: from `netslim.trace`.
        clusters: group name -> shape (size,), the cluster number of every unit; any integers from 0
            on.

    Raises:
        ArgumentError: there is no such group (the nearest are named), or its clusters do not cover
            its units.
        PlanError: a group cannot be cut exactly, its channels are normalised over, nothing is to be
            merged at all, or tied weights cannot be summed.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> plan = netslim.selection.merge(graph, {"features.0": [0, 0, 1, 1, 2, 2, 3, 3]})
        >>> netslim.prune(model, plan).features[0].out_channels
        4
    """
    if not isinstance(clusters, Mapping):
        raise ArgumentError(
            "clusters map group names to a cluster number for every unit, got "
            f"{type(clusters).__name__}"
        )
    masks, into = {}, {}
    for name, numbers in clusters.items():
        group = _group(graph, name)
        _, first, place = np.unique(_labels(group, numbers), return_index=True, return_inverse=True)
        number = graph.number(name)
        # Clusters 5 7 5 7 give into = 0 1 0 1: units 0 and 1 stay, as they end in themselves.
        into[number] = first[place]
        masks[number] = into[number] == np.arange(group.size)
    if all(mask.all() for mask in masks.values()):
        named = "every unit is a cluster of its own" if masks else "no clusters are given"
        raise PlanError(
            f"nothing to merge: {named}; give units that belong together the same number"
        )
    return plan_keeping(graph, masks, into=into)


def unmerged(graph: ChannelGraph, group: ChannelGroup) -> str | None:
    """Why channels are not merged although they can go; None where they can be merged."""
    norms = graph.normalising(group.name)
    if norms:
        # They would have to count a survivor as often as it stands for others.
        return f"{norms[0]} normalises over its channels, and counts each"
    if group.of_heads:
        return "a product of queries and keys has no weights that could be summed"
    return None


def _group(graph: ChannelGraph, name: str) -> ChannelGroup:
    names = [g.name for g in graph.groups]
    if name not in names:
        raise ArgumentError(f"there is no group {name!r}{nearest(name, names)}")
    group = graph.groups[graph.number(name)]
    if not group.prunable:
        raise PlanError(f"group {name!r} cannot be merged: {group.reason}")
    reason = unmerged(graph, group)
    if reason is not None:
        raise PlanError(f"group {name!r} cannot be merged: {reason}")
    return group


def _labels(group: ChannelGroup, numbers: Sequence[int] | Tensor) -> np.ndarray:
    try:
        labels = np.asarray(torch.as_tensor(numbers).detach().cpu())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"group {group.name!r} needs a whole number for each of its units: {error}"
        ) from None
    if labels.shape != (group.size,):
        raise ArgumentError(
            f"group {group.name!r} has {group.size} units and needs a cluster number for each; "
            f"got shape {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ArgumentError(
            f"the cluster numbers of group {group.name!r} must be integers, got {labels.dtype}"
        )
    if (labels < 0).any():
        unit = int(np.flatnonzero(labels < 0)[0])
        raise ArgumentError(
            f"unit {unit} of group {group.name!r} is in no cluster ({labels[unit]}): number "
            "clusters from 0, and give a unit that stays alone a number of its own"
        )
    return labels
