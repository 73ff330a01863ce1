"""What ranks that train one network must have alike, and are made to have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import netslim.ranks as ranks
from netslim.surgery.rewrapping import Rewrapping

_APART = (
    "they have trained apart, or were given other files: start the run anew with the same files on "
    "every machine; where it comes again, one of the machines computes wrongly"
)


def same_weights(what: str, network: nn.Module) -> None:
    """See to it that every rank has the same network, bit for bit; of one that is shared out, what
    each of them has.

    Raises:
        DisagreementError: on every rank: names the digests.
    """
    if ranks.count() > 1:
        state = network.state_dict()
        alike = {key: value for key, value in state.items() if not hasattr(value, "placements")}
        ranks.agree(what, ranks.digest(alike), _APART)


def average_statistics(network: nn.Module) -> None:
    """Give every rank the means of the buffers, such as running statistics, which each has of its
    own images; whole numbers are the same anyway.
    """
    if ranks.count() == 1:
        return
    own = {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
    with torch.no_grad():
        for name, value in ranks.mean("the statistics of batch normalisation", own).items():
            own[name].copy_(value)


@contextmanager
def wrapped_anew(wrapper: Any, network: nn.Module) -> Iterator[None]:
    """Begin a wrapper anew afterwards, if `network`, which lies somewhere in it, was cut inside."""
    if not isinstance(wrapper, DistributedDataParallel):
        yield
        return
    before, anew = shapes(network), Rewrapping(wrapper)
    yield
    if shapes(network) != before:
        anew.carry_out()


def shapes(network: nn.Module) -> list[torch.Size]:
    """Of its parameters, which tell whether it was cut."""
    return [parameter.shape for parameter in network.parameters()]
