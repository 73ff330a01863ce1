"""Criteria of weights and data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from netslim.graph.groups import ChannelGroup
from netslim.selection.criteria.observing import Measured, activations, contributions, gates
from netslim.selection.criteria.parts import Parts, of_measured
from netslim.selection.criteria.registry import Measure, criterion
from netslim.selection.options import Over


def _of_terms(
    per_channel: Callable[[Tensor], Tensor], alone: bool = False
) -> Callable[..., Measured]:
    """A measure of gradient * weight, (channels, weights) -> (channels,)."""
    return partial(contributions, per_channel=per_channel, alone=alone)


def _of_maps(
    per_example: Callable[[Tensor], Tensor], variance: bool = False, role: str = "producer"
) -> Measure:
    """A measure of the maps of each layer, (examples, places, channels) -> (examples, channels)."""
    return lambda graph, model, batches, loss: activations(
        graph, model, batches, per_example, variance, role
    )


def _length(maps: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(maps, dim=1)
    return lengths


@criterion(measure=_of_terms(lambda terms: terms.sum(1).square()))
def taylor(group: ChannelGroup, measured: Measured, over: Over = "producers") -> Parts:
    """``(sum over the filter of gradient * weight) ** 2``, mean over batches.

    The first-order estimate, from the weights, of the squared change of the loss when the filter is
    set to zero (Molchanov et al. 2019).
    """
    return of_measured(group, measured, over)


@criterion(measure=gates)
def taylor_bn(group: ChannelGroup, measured: Measured) -> Parts:
    """``(gamma * gradient of gamma + beta * gradient of beta) ** 2``, mean over batches.

    The first-order estimate of the squared change of the loss when a gate behind the normalisation
    is shut (Molchanov et al. 2019, "Taylor-FO-BN").
    """
    return of_measured(group, measured, role="scale")


@criterion(measure=_of_terms(lambda terms: terms.square().sum(1) / 2, alone=True))
def obd(group: ChannelGroup, measured: Measured, over: Over = "producers") -> Parts:
    """``1/2 * sum over the filter of F * weight ** 2``, F the mean squared gradient of examples.

    Optimal Brain Damage (LeCun et al. 1990, Eq. 5) summed over the filter (C-OBD in Wang et al.
    2019), with the diagonal of the empirical Fisher matrix for that of the Hessian, as in Theis et
    al. (2018). The loss is taken of each example alone, in a pass of its own: it costs as much as
    so many batches of one.
    """
    return of_measured(group, measured, over)


@criterion(measure=_of_maps(lambda maps: maps.abs().mean(1), role="consumer"))
def activation(group: ChannelGroup, measured: Measured) -> Parts:
    """Mean absolute value of what the layers receive that read the channel.

    So it is taken behind norms, non-linearities and pooling. Mean over the places and the
    examples; of rectified maps it is the mean activation (Molchanov et al. 2017, 2.2).
    """
    return of_measured(group, measured, role="consumer")


@criterion(measure=_of_maps(lambda maps: maps.mean(1)))
def mean_mean(group: ChannelGroup, measured: Measured) -> Parts:
    """Mean over the examples of the mean of the map before BN (Li et al. 2017, section 4.4)."""
    return of_measured(group, measured)


@criterion(measure=_of_maps(lambda maps: maps.std(1, correction=0)))
def mean_std(group: ChannelGroup, measured: Measured) -> Parts:
    """Mean over the examples of the standard deviation of the map before BN (Li et al. 2017, 4.4).

    Of the population: divided by the number of places.
    """
    return of_measured(group, measured)


@criterion(measure=_of_maps(lambda maps: maps.abs().sum(1)))
def mean_l1(group: ChannelGroup, measured: Measured) -> Parts:
    """Mean over the examples of the L1 norm of the map before BN (Li et al. 2017, 4.4)."""
    return of_measured(group, measured)


@criterion(measure=_of_maps(_length))
def mean_l2(group: ChannelGroup, measured: Measured) -> Parts:
    """Mean over the examples of the Euclidean norm of the map before BN (Li et al. 2017, 4.4)."""
    return of_measured(group, measured)


@criterion(measure=_of_maps(_length, variance=True))
def var_l2(group: ChannelGroup, measured: Measured) -> Parts:
    """Variance over the examples of the Euclidean norm of the map before BN (Li et al. 2017, 4.4).

    Of the population: divided by the number of examples.
    """
    return of_measured(group, measured)
