"""Which channels are to become equal: clusters of a group's units, and how many each group gets.

Channels of one cluster end as copies of each other, at the mean of what they were (`centripetal`).
So the less their kernels differ before, the less training has to move them, which is what k-means
makes small; `even` and `imbalanced` ask nothing of the kernels, and are what the paper compares
with. A group has as many channels in the end as it has clusters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import ceil

import numpy as np
import torch
from torch import Tensor

from netslim._support import brief, is_number, is_whole, nearest
from netslim.errors import ArgumentError, PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.words.naming import granted

Labels = np.ndarray  # the cluster number of every unit, clusters numbered as they first appear
Target = float | Mapping[str, float | int]

_RESTARTS = 10  # scikit-learn's own number of starts when the authors of C-SGD used it


def even(kernels: np.ndarray, clusters: int, seed: int = 0) -> Labels:
    """Neighbours together, in clusters whose sizes differ by at most 1."""
    # Eight kernels in three clusters: 0 0 0 1 1 1 2 2.
    return np.arange(len(kernels)) * clusters // len(kernels)


def imbalanced(kernels: np.ndarray, clusters: int, seed: int = 0) -> Labels:
    """The first cluster takes all the excess; every other has one member."""
    # Five kernels in three clusters: 0 0 0 1 2.
    return np.maximum(np.arange(len(kernels)) - (len(kernels) - clusters), 0)


def kmeans(kernels: np.ndarray, clusters: int, seed: int = 0) -> Labels:
    """k-means (Lloyd 1982) as scikit-learn runs it, the best of ten seeded starts.

    Where fewer kernels than ``clusters`` differ, which leaves clusters empty, the member farthest
    from its cluster's mean gets a cluster of its own until there are as many as asked for.
    """
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        # ConvergenceWarning: fewer distinct kernels than clusters, which is repaired below.
        warnings.simplefilter("ignore")
        labels = KMeans(clusters, n_init=_RESTARTS, random_state=seed % 2**32).fit_predict(kernels)
    return canonical(_filled(kernels, canonical(labels), clusters))


CLUSTERINGS: dict[str, Callable[[np.ndarray, int, int], Labels]] = {
    "kmeans": kmeans,
    "even": even,
    "imbalanced": imbalanced,
}


def canonical(labels: np.ndarray) -> Labels:
    """The same clusters, numbered from 0 in the order of their first members: 7 2 7 5 -> 0 1 0 2.

    So equal clusters have equal labels, whoever made them, and files and runs can be compared.
    """
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _filled(kernels: np.ndarray, labels: Labels, clusters: int) -> Labels:
    """Split clusters until there are as many as wanted."""
    labels = labels.copy()
    # What is farthest from its mean costs its cluster most, so it is the best one to take out.
    # Where all members are equal, any will do: the width that was asked for counts.
    for fresh in range(labels.max() + 1, clusters):
        sizes = np.bincount(labels)
        means = np.stack([kernels[labels == c].mean(0) for c in range(fresh)])
        distance = np.linalg.norm(kernels - means[labels], axis=1)
        distance[sizes[labels] == 1] = -1  # a cluster of one cannot be split
        labels[int(distance.argmax())] = fresh
    return labels


def clustering(name: str) -> Callable[[np.ndarray, int, int], Labels]:
    """The clustering of this name.

    Raises:
        ArgumentError: there is none; the nearest are given.
    """
    if not isinstance(name, str) or name not in CLUSTERINGS:
        raise ArgumentError(f"there is no clustering {name!r}{nearest(name, CLUSTERINGS)}")
    return CLUSTERINGS[name]


def kernels_of(tensor: Tensor, group: ChannelGroup, name: str) -> np.ndarray:
    """The flattened kernels of a group's units in one producer, shape (units, numbers), float64.

    Raises:
        ArgumentError: they are not finite.
    """
    part = next(s for s in group.tensors("producer") if s.tensor == name)
    rows = tensor.detach().movedim(part.axis, 0).reshape(tensor.shape[part.axis], -1)
    # A unit of a flattened map has several kernels: they stand one behind the other, in order of
    # their places, and are compared as one.
    order = np.lexsort((part.positions, part.units))
    picked = rows.double().cpu()[torch.from_numpy(part.positions[order])]
    kernels = picked.reshape(group.size, -1).numpy()
    if not np.isfinite(kernels).all():
        raise ArgumentError(
            f"the kernels of {name!r} are not finite, so they cannot be clustered; did "
            "training diverge?"
        )
    return kernels


def widths(graph: ChannelGraph, target: Target, staying: Mapping[str, str]) -> dict[str, int]:
    """How many clusters each group gets, by name, for the groups that become narrower.

    Args:
        graph: of the model.
        target: what stays: a share of every group (0 < share <= 1; ``ceil(size * share)``), or a
            mapping from names or patterns to a width (int) or a share (float); plain names win over
            patterns, of these the later one.
        staying: group name -> why it is left alone, for those that are.

    Raises:
        ArgumentError: a width or share is out of range, or a name means nothing here.
        PlanError: a group cannot be merged, or none becomes narrower.
    """
    entries = target if isinstance(target, Mapping) else {"*": target}
    amounts = granted(graph, entries, staying, "target names no group that can become narrower")
    wanted = {name: _width(graph[name], amount) for name, amount in amounts.items()}
    narrower = {name: width for name, width in wanted.items() if width < graph[name].size}
    if not narrower:
        raise PlanError(
            f"target={target!r} leaves every group as wide as it is, so there is nothing to "
            "make equal: ask for less than the present widths (print(graph) lists them)"
        )
    return narrower


def _width(group: ChannelGroup, amount: float | int) -> int:
    if not is_number(amount):
        raise ArgumentError(
            f"{group.name}: a width (int) or the share that stays (float) is needed, not "
            f"{brief(amount)}"
        )
    if not is_whole(amount):
        if not 0 < amount <= 1:
            raise ArgumentError(
                f"{group.name}: the share that stays must be above 0 and at most 1, not {amount}"
            )
        # In floating point 0.07 * 100 is 7.000000000000001, which must not become 8.
        return ceil(group.size * amount - 1e-9)
    if not 1 <= amount <= group.size:
        raise ArgumentError(
            f"{group.name} has {group.size} channels, so it can keep 1 to {group.size} of "
            f"them, not {amount}"
        )
    return int(amount)


def checked(
    graph: ChannelGraph,
    clusters: Mapping[str, Sequence[int] | np.ndarray | Tensor],
    staying: Mapping[str, str],
) -> dict[str, Labels]:
    """Clusters that somebody gave, by group name, canonical, without groups that stay as they are.

    Raises:
        ArgumentError: a name means nothing here, or there is not one whole number a unit.
        PlanError: a group cannot be merged, or no cluster has two members.
    """
    result = {}
    for key, labels in clusters.items():
        group = graph[key]
        if group.name in staying:
            raise PlanError(
                f"the clusters name {key!r}, but {group.name} stays: {staying[group.name]}"
            )
        array = np.asarray(labels)
        if array.shape != (group.size,) or array.dtype.kind not in "iu":
            raise ArgumentError(
                f"{group.name} has {group.size} channels; its clusters must be as many whole "
                f"numbers, got shape {array.shape} of {array.dtype}"
            )
        if len(np.unique(array)) < group.size:
            result[group.name] = canonical(array)
    if not result:
        raise PlanError("no cluster has two members, so there is nothing to make equal")
    return {g.name: result[g.name] for g in graph if g.name in result}
