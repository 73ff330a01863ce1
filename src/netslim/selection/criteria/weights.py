"""Criteria of the weights alone."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from netslim.graph.groups import ChannelGroup
from netslim.selection.criteria.parts import Parts, of_filters, reduced
from netslim.selection.criteria.registry import criterion
from netslim.selection.options import Over, Reduction


@criterion
def bn_scale(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Parts:
    """Absolute value of gamma in the channel's normalisations (Liu et al. 2017, section 3)."""
    return [(s, tensors[s.tensor].abs()) for s in group.tensors("scale")]


@criterion
def l1(group: ChannelGroup, tensors: Mapping[str, Tensor], over: Over = "producers") -> Parts:
    """Sum of absolute kernel weights of the filter (Li et al. 2017, section 3.1)."""
    return of_filters(group, tensors, partial(torch.linalg.vector_norm, ord=1, dim=1), over)


@criterion
def l2(group: ChannelGroup, tensors: Mapping[str, Tensor], over: Over = "producers") -> Parts:
    """Euclidean norm of the filter (He et al. 2018, Eq. 2)."""
    return of_filters(group, tensors, partial(torch.linalg.vector_norm, ord=2, dim=1), over)


@criterion
def largest(group: ChannelGroup, tensors: Mapping[str, Tensor], over: Over = "producers") -> Parts:
    """Minus `l1`: the filters with the largest sums go first (an ablation of Li et al. 2017)."""

    def negated(filters: Tensor) -> Tensor:
        sums: Tensor = torch.linalg.vector_norm(filters, ord=1, dim=1)
        return -sums

    return of_filters(group, tensors, negated, over)


@criterion
def geometric_median(
    group: ChannelGroup, tensors: Mapping[str, Tensor], over: Over = "producers"
) -> Parts:
    """Sum of Euclidean distances to all other filters of the layer.

    Small close to the geometric median, where a filter is best replaced by the others (FPGM, He et
    al. 2019). Over all, distances are those of the group's own channels, in each layer that makes,
    scales or reads them.
    """

    def distances(filters: Tensor) -> Tensor:
        # cdist goes by way of inner products, after which a filter is not quite 0 from itself.
        return torch.cdist(filters, filters).fill_diagonal_(0).sum(1)

    return of_filters(group, tensors, distances, over)


@criterion
def group_l2(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Parts:
    """Squared Euclidean norm of all weights that make, scale or read a channel, biases apart.

    With ``reduction="sum"`` the group norm of DepGraph (Fang et al. 2023, section 3.3); with the
    mean over the layers, and ``normalize="mean"``, torch-pruning's default.
    """
    return of_filters(group, tensors, _squares, "all")


@criterion
def lamp(
    group: ChannelGroup,
    tensors: Mapping[str, Tensor],
    over: Over = "producers",
    reduction: Reduction = "mean",
) -> Tensor | None:
    """Squared norm of the filter over the sum of all in the group that are not smaller.

    The layer-adaptive magnitude of Lee et al. (2021, Eq. 2), of channels instead of single weights
    as in torch-pruning: the last to go in any group has the score 1, so one threshold spares every
    group. Equal norms have equal scores.
    """
    squares = reduced(group, of_filters(group, tensors, _squares, over), reduction)
    if squares is None:
        return None
    # Squares 1 2 5: behind each are 8, 7 and 5, so scores are 1/8, 2/7 and 1. Of equal ones
    # `searchsorted` finds the first, and all of them have the score of that.
    ordered = squares.sort().values
    not_smaller = ordered.flip(0).cumsum(0).flip(0)[torch.searchsorted(ordered, squares)]
    return torch.where(squares > 0, squares / not_smaller, 0.0)


def _squares(filters: Tensor) -> Tensor:
    return filters.square().sum(1)


@criterion
def random(group: ChannelGroup, tensors: Mapping[str, Tensor], seed: int = 0) -> Tensor:
    """Uniform random scores, the same for the same seed and group name."""
    generator = torch.Generator().manual_seed(seed + zlib.crc32(group.name.encode()))
    return torch.rand(group.size, generator=generator, dtype=torch.float64)
