"""Weight decay kept on or off the scales and shifts of normalisation layers."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from netslim._support import brief, checks_calls, is_number
from netslim.errors import ArgumentError
from netslim.graph.modules.unwrapping import bare

NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@checks_calls
def parameter_groups(
    model: nn.Module, weight_decay: float, norm_decay: float | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: ``SGD(parameter_groups(model, 1e-4, norm_decay=0), 0.1)``.

    The released Network Slimming code decays gamma and beta like every weight, which pulls them
    towards zero besides the L1 penalty; `norm_decay=0` leaves the penalty alone to decide about
    them.

    Args:
        model: the network, wrapped or not. Each of its trainable parameters is in one group, once;
            those with `requires_grad=False` are in none.
        weight_decay: for weights and for biases of layers that do not normalise; 0 or more.
        norm_decay: for gamma and beta of normalisation layers (batch, instance, group, layer, RMS);
            None: as weights.

    Returns:
        One group, or two when `norm_decay` is given: all others, then the normalisation layers'
        parameters. Each in the order of `model.parameters()`.

    Raises:
        ArgumentError: a decay below 0, nothing to train, or a `norm_decay` where no normalisation
            layer has trainable parameters.

    Example:
        >>> groups = netslim.methods.parameter_groups(model, 5e-4, norm_decay=0.0)
        >>> optimizer = torch.optim.SGD(groups, lr=0.1)
    """
    _check("weight_decay", weight_decay)
    inner = bare(
        model,
        ArgumentError,
        allow=("meta", "sharded"),
        call="parameter_groups(model, weight_decay)",
    )
    trained = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    if not trained:
        raise ArgumentError(
            f"{type(inner).__name__} has no parameter that requires a gradient: there is "
            "nothing to train"
        )
    if norm_decay is None:
        return [{"params": trained, "weight_decay": weight_decay}]
    _check("norm_decay", norm_decay)
    norms = (module for module in inner.modules() if isinstance(module, NORMS))
    apart = set(map(id, chain.from_iterable(norm.parameters(recurse=False) for norm in norms)))
    groups = [
        {"params": [p for p in trained if id(p) not in apart], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in apart], "weight_decay": norm_decay},
    ]
    if not groups[1]["params"]:
        raise ArgumentError(
            f"norm_decay has nothing to act on: {type(inner).__name__} has no normalisation "
            "layer with parameters that are trained; leave norm_decay out"
        )
    return [group for group in groups if group["params"]]


def _check(name: str, value: float) -> None:
    if not (is_number(value) and math.isfinite(value) and value >= 0):
        raise ArgumentError(f"{name} must be 0 or more, not {brief(value)}")
