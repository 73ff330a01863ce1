"""Batch-norm scales: their histogram, the share near zero, and those of one layer over training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    return torch.cat([torch.empty(0), *(_magnitudes(layer) for _, layer in _layers(network))])


def _layers(network: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Batch norms with scales, by name."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.affine:
            yield name, module


def _magnitudes(layer: _BatchNorm) -> Tensor:
    return gathered(layer.weight.detach()).abs().float().cpu()


def widest(network: nn.Module) -> str:
    """The batch norm with most scales; of several the one in the middle. Empty where there is none.

    The first layers hardly lose channels, and the last ones nearly all: in the middle it is seen
    how those that stay part from those that go.
    """
    sizes = {name: len(layer.weight) for name, layer in _layers(network)}
    names = [name for name, size in sizes.items() if size == max(sizes.values())]
    if not names:
        return ""
    return names[len(names) // 2]


def levels(network: nn.Module, name: str) -> str:
    """The scales of one batch norm, each as the number of its bin between `EDGES`, two hexadecimal
    digits a channel; nothing where it has gone with its block. A collective call where they are
    shared out.
    """
    layer = dict(_layers(network)).get(name)
    if layer is None:
        return ""
    return bytes(_bins(_magnitudes(layer)).tolist()).hex()


def share_near_zero(scales: Tensor) -> float | None:
    """Share of scales below 0.01; None where there are none."""
    if not len(scales):
        return None
    return float((scales < NEAR_ZERO).double().mean())


def histogram(scales: Tensor) -> list[int]:
    """Counts between neighbouring `EDGES`; larger scales count in the last bin."""
    return torch.bincount(_bins(scales), minlength=len(EDGES) - 1).tolist()


def _bins(scales: Tensor) -> Tensor:
    return torch.bucketize(scales.float(), torch.tensor(EDGES[1:-1]), right=True)


def trimmed(histograms: Sequence[Sequence[int]]) -> tuple[list[float], list[list[int]]]:
    """`EDGES` and histograms over them, without the bins above the largest scale of all."""
    filled = [number for number, bins in enumerate(zip(*histograms, strict=True), 1) if any(bins)]
    used = max(filled, default=1)
    return list(EDGES[: used + 1]), [list(counts[:used]) for counts in histograms]
