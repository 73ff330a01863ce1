"""Normalisations that lose channels and stay what they are, with other numbers.

The root of the mean square needs no memory of the channels that are gone (padded_norms.py): over C
channels, of which all but k are zeros, the mean square is k / C times that over the k. So::

    w x / sqrt(k/C mean(x^2) + eps)  =  (w sqrt(C/k)) x / sqrt(mean(x^2) + eps C/k)

and the module of any library goes on under its own class, with that weight and that eps. Where the
code adds 1 to the weight, what it holds is one less than that. Only the weight can take the factor,
so a normalisation without one becomes a `PaddedRMSNorm`, as does one whose weight others hold or
read, too, and one whose eps is no attribute, or none: PyTorch then takes what goes with the data
type of each input, which no number in the module could follow.

What a module has at first is its own: a plan goes on from the eps of the network that is cut, not
of the one that it was made for, and what is set after a cut is what a later one goes on from.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from netslim.errors import SurgeryError
from netslim.graph.modules.padded_norms import (
    SCALED,
    NormWidth,
    eps_name,
    left_open,
    own_tensors,
)


def eps_held(module: nn.Module) -> str | None:
    """The attribute of a module that says its eps and can be set; None without one."""
    name = eps_name(module)
    if name is None or name not in vars(module):
        return None
    return name


def with_own_eps(module: nn.Module, norm: NormWidth) -> NormWidth:
    """The row of a plan with the eps that a module has itself, or had before it was cut."""
    if norm.kind != SCALED:
        return norm
    name = eps_held(module)
    if name is None or norm.weight not in own_tensors(module):
        return norm  # `scale_eps` refuses it
    own = float(getattr(module, name))
    channels = own_tensors(module)[norm.weight].numel()
    if channels != norm.width:
        own *= channels / norm.width
    return replace(norm, eps=own)


def is_scaled(module: nn.Module | None, norm: NormWidth) -> bool:
    """Whether a module has the eps that it needs with as many channels as its weight has."""
    if module is None or norm.weight not in own_tensors(module):
        return False
    name = eps_held(module)
    return name is not None and math.isclose(getattr(module, name), _eps(module, norm))


def was_scaled(module: nn.Module | None, norm: NormWidth) -> bool:
    """Whether a module was, and its eps was taken away after the cut: whoever saves it is told."""
    if module is None or norm.weight not in own_tensors(module) or not left_open(module):
        return False
    return own_tensors(module)[norm.weight].numel() != norm.width


def scale_eps(module: nn.Module, norm: NormWidth) -> None:
    """Give a module, whose weight has been cut, the eps that goes with that.

    Raises:
        SurgeryError: it has no eps, or not this weight.
    """
    if left_open(module):
        raise SurgeryError(
            f"the {type(module).__name__} {norm.module} has None for its eps, and the plan was "
            f"made for a network where that is a number, {norm.eps:g}: give it a number, or trace "
            "and select again"
        )
    name = eps_held(module)
    if name is None or norm.weight not in own_tensors(module):
        raise SurgeryError(
            f"a {type(module).__name__} has no eps, or no weight {norm.weight!r}, that could be "
            "scaled: trace and select again"
        )
    setattr(module, name, _eps(module, norm))


def scaled_weight(weight: Tensor, before: int, plus_one: bool) -> Tensor:
    """What is left of a weight, with the factor that goes with as many channels as it has.

    Args:
        weight: of any shape, one number for each channel.
        before: how many channels there were.
        plus_one: whether 1 is added to it.
    """
    factor = math.sqrt(before / weight.numel())
    if not plus_one:
        return weight * factor
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return ((wide + 1) * factor - 1).to(weight.dtype)


def _eps(module: nn.Module, norm: NormWidth) -> float:
    """The eps of a module that had ``norm.width`` channels at first."""
    assert norm.eps is not None  # a plan is refused without (surgery/soundness.py)
    return norm.eps * norm.width / own_tensors(module)[norm.weight].numel()


__all__ = ["eps_held", "is_scaled", "scale_eps", "scaled_weight", "was_scaled", "with_own_eps"]
