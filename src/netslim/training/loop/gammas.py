"""Batch-norm scales: their histogram, the share near zero, and whether a cut took large ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NEAR_ZERO = 0.01
EDGES = (0.0, *(round(10 ** (n / 8), 8) for n in range(-40, 9)))  # to 10; 0.01 is one of them
_SMALL = 0.05  # a removed scale above this share of the median kept one still carries signal


def scales_of(network: nn.Module) -> Tensor:
    """|gamma| of every batch norm, one vector (float32, on the CPU)."""
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.affine]
    found = [layer.weight.detach().abs().float().cpu() for layer in layers]
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


def cut_warning(scores: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]]) -> str | None:
    """A sentence when channels were cut whose scales are not small; None when the cut was clean.

    A cut is clean when the largest scale removed is below 0.01 or below 5 % of the median scale
    kept: then the network hardly used what goes.

    Args:
        scores: |gamma| by group.
        kept: unit numbers kept, by group; a group that is not named keeps everything.
    """
    gone, stay = [], []
    for name, values in scores.items():
        mask = torch.zeros(len(values), dtype=torch.bool)
        mask[list(kept.get(name, range(len(values))))] = True
        sizes = values.detach().abs().float().cpu()
        stay.append(sizes[mask])
        gone.append(sizes[~mask])
    removed, left = torch.cat(gone or [torch.empty(0)]), torch.cat(stay or [torch.empty(0)])
    if not len(removed) or not len(left):
        return None
    largest, median = float(removed.max()), float(left.median())
    bound = max(NEAR_ZERO, _SMALL * median)
    if largest < bound:
        return None
    large = int((removed >= bound).sum())
    return (
        f"the cut went through scales that are not small: {large} of the {len(removed)} "
        f"removed ones, up to {largest:.3g}, where the median kept is {median:.3g}; "
        "fine-tuning has to make up for it (train longer or with a larger sparsity strength, "
        "or cut less)"
    )
