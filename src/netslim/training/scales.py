"""Batch-norm scales: their histogram, the share near zero, and whether a cut went through large ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NEAR_ZERO = 0.01
BIN = 0.01
_SMALL = 0.05  # a removed scale above this share of the median kept one still carries signal


def scales_of(network: nn.Module) -> Tensor:
    """|gamma| of every batch norm, one vector (float32, on the CPU)."""
    found = [m.weight.detach().abs().float().cpu() for m in network.modules() if isinstance(m, _BatchNorm) and m.affine]
    return torch.cat(found) if found else torch.empty(0)


def share_near_zero(scales: Tensor) -> float | None:
    """Share of scales below 0.01; None where there are none."""
    return float((scales < NEAR_ZERO).double().mean()) if len(scales) else None


def histogram(scales: Tensor) -> list[int]:
    """Counts in bins of 0.01 from 0 up to the largest scale."""
    bins = (scales.double() / BIN + 1e-9).long().clamp(min=0)
    return torch.bincount(bins).tolist() if len(bins) else []


def joint_histogram(before: Sequence[int], after: Sequence[int], most: int = 60) -> dict[str, list[float] | list[int]]:
    """Two histograms of bins of 0.01 over one set of edges, with at most `most` bins."""
    length = max(len(before), len(after), 1)
    width = -(-length // most)
    bins = -(-length // width)
    edges = [round(index * width * BIN, 6) for index in range(bins + 1)]
    return {"edges": edges, "before": _coarse(before, width, bins), "after": _coarse(after, width, bins)}


def _coarse(counts: Sequence[int], width: int, bins: int) -> list[int]:
    return [sum(counts[index * width : (index + 1) * width]) for index in range(bins)]


def cut_warning(scores: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]]) -> str | None:
    """A sentence when channels were cut whose scales are not small; None when the cut was clean.

    A cut is clean when the largest scale removed is below 0.01 or below 5 % of the median scale kept: then the
    network hardly used what goes.

    Args:
        scores: |gamma| by group.
        kept: unit numbers kept, by group; a group that is not named keeps everything.
    """
    gone, stay = [], []
    for name, values in scores.items():
        mask = torch.zeros(len(values), dtype=torch.bool)
        mask[list(kept.get(name, range(len(values))))] = True
        stay.append(values.detach().abs().float().cpu()[mask])
        gone.append(values.detach().abs().float().cpu()[~mask])
    removed, left = torch.cat(gone or [torch.empty(0)]), torch.cat(stay or [torch.empty(0)])
    if not len(removed) or not len(left):
        return None
    largest, median = float(removed.max()), float(left.median())
    if largest < max(NEAR_ZERO, _SMALL * median):
        return None
    large = int((removed >= max(NEAR_ZERO, _SMALL * median)).sum())
    return (
        f"the cut went through scales that are not small: {large} of the {len(removed)} removed ones, up to {largest:.3g}, "
        f"where the median kept is {median:.3g}; fine-tuning has to make up for it (train longer or with a larger "
        "sparsity strength, or cut less)"
    )
