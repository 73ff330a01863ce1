"""What builders refuse, width scaling, and the initialisation the Network Slimming port uses for
all its networks.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from netslim._support import Thing, brief, call_checked
from netslim.errors import ArgumentError

_COUNTS = ("num_classes", "in_channels", "in_features", "pool")


def builder(function: Thing) -> Thing:
    """Decorator of what builds a network: `checks_calls`, and the ranges that all of them share."""
    return call_checked(function, check=_check_ranges)


def _check_ranges(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if not isinstance(value, (int, float)):
            continue  # the kind is looked at next
        if name in _COUNTS and value < 1:
            raise ArgumentError(f"{name} must be at least 1, not {value}")
        if name == "width" and not 0 < value < math.inf:
            raise ArgumentError(f"width must be above 0, not {value}")
        if name == "dropout" and not 0 <= value <= 1:
            raise ArgumentError(f"dropout must be a probability, 0 to 1, not {value}")


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1.

    Raises:
        ArgumentError: `channels` is no positive whole number.
    """
    if not (isinstance(channels, int) and channels > 0):
        raise ArgumentError(
            f"a layer needs a positive whole number of channels, not {brief(channels)}"
        )
    return max(1, round(channels * width))


def initialise(model: nn.Module) -> None:
    """Convolutions He normal over fan-out, linear layers normal(0, 0.01), shifts 0, scales 1."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
        elif isinstance(module, _BatchNorm):
            nn.init.ones_(module.weight)
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)
