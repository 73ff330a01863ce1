"""Batch-norm scales: their histogram, and the share near zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netslim.graph.modules.unwrapping import gathered
from netslim.methods.threshold import NEAR_ZERO

EDGES = (0.0, *(round(10 ** (n / 8), 8) for n in range(-40, 9)))  # to 10; 0.01 is one of them


def scales_of(network: nn.Module) -> Tensor:
    """|gamma| of every batch norm, one vector (float32, on the CPU); a collective call where they
    are shared out.
    """
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.affine]
    found = [gathered(layer.weight.detach()).abs().float().cpu() for layer in layers]
    return torch.cat([torch.empty(0), *found])


def share_near_zero(scales: Tensor) -> float | None:
    """Share of scales below 0.01; None where there are none."""
    if not len(scales):
        return None
    return float((scales < NEAR_ZERO).double().mean())


def histogram(scales: Tensor) -> list[int]:
    """Counts between neighbouring `EDGES`; larger scales count in the last bin."""
    bins = torch.bucketize(scales.float(), torch.tensor(EDGES[1:-1]), right=True)
    return torch.bincount(bins, minlength=len(EDGES) - 1).tolist()


def joint_histogram(
    before: Sequence[int], after: Sequence[int]
) -> dict[str, list[float] | list[int]]:
    """Two histograms over `EDGES`, without the bins above the largest scale of both."""
    filled = [number for number, pair in enumerate(zip(before, after, strict=True), 1) if any(pair)]
    used = max(filled, default=1)
    edges = list(EDGES[: used + 1])
    return {"edges": edges, "before": list(before[:used]), "after": list(after[:used])}
