"""What the layers behind a channel lose when it goes and the channels that stay make up for it as
well as they can.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.walk import named_tensors
from netslim.selection.criteria.observing import Loss, Measured, inputs
from netslim.selection.criteria.registry import criterion

ROWS = 8192  # places that are looked at of one layer and batch, about
STEPS = 128  # channels of wide groups are taken out several at once
WHOLE = ""  # in place of a group: everything that a layer reads


class _Reader:
    """How a tensor of weights reads the units of a group, and what it reads of them, summed up over
    the batches.

    The entries of one unit, as in a flattened map, count as so many samples of it. The groups of a
    grouped convolution are apart from each other.
    """

    def __init__(self, weight: Tensor, axis: int, table: Tensor) -> None:
        self.weight, self.axis, self.entries = weight, axis, weight.shape[axis]
        self.table = table  # (units, entries)
        self.count = 0
        self.origin = self.sum = self.square = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Take in what the layer reads, (samples, channels)."""
        # An odd stride meets all columns of a map.
        rows = rows[:: len(rows) // ROWS | 1].unflatten(1, (-1, self.entries))
        values = (
            rows[:, :, self.table.to(rows.device)].permute(1, 0, 3, 2).flatten(1, 2)
        )  # (parts, samples, units)
        values = values.double()
        if not self.count:
            self.origin = values.mean(1, keepdim=True)
        values = values - self.origin
        self.sum = self.sum + values.sum(1).cpu()
        self.square = self.square + (values.mT @ values).cpu()
        self.count += values.shape[1]

    def result(self) -> Tensor:
        """Covariance of the units, and the inner products of their weights: (parts, 2, units,
        units).
        """
        mean = self.sum / self.count
        covariance = self.square / self.count - mean[:, :, None] * mean[:, None, :]
        weight = self.weight.detach().movedim(self.axis, -1)
        weight = weight.unflatten(0, (len(covariance), -1)).flatten(1, -2).double().cpu()
        read = (
            weight[:, :, self.table].permute(0, 2, 1, 3).flatten(2)
        )  # (parts, units, outputs and taps and entries)
        return torch.stack([covariance, read @ read.mT], 1)


def second_moments(
    graph: ChannelGraph, model: nn.Module, batches: Iterable[Any], loss: Loss | None
) -> Measured:
    """For every group and tensor of weights that reads it: see `_Reader.result`.

    Raises:
        ArgumentError: there is no batch, the model does not run on one, or what it computes is not
            finite.
    """
    weights = dict(named_tensors(model))
    readers: dict[str, dict[str, _Reader]] = {}
    for group in graph.groups:
        for s in [] if group.frozen else group.tensors("consumer"):
            if len(set(np.bincount(s.units, minlength=group.size).tolist())) == 1 and not s.mixed:
                table = torch.from_numpy(s.positions[s.units.argsort(kind="stable")]).view(
                    group.size, -1
                )
                own = readers.setdefault(s.tensor, {})
                own[group.name] = _Reader(weights[s.tensor], s.axis, table)
                if table.numel() < weights[s.tensor].shape[s.axis]:
                    own[WHOLE] = _Reader(
                        weights[s.tensor],
                        s.axis,
                        torch.arange(weights[s.tensor].shape[s.axis])[:, None],
                    )

    def take(tensor: str, rows: Tensor) -> None:
        for reader in readers[tensor].values():
            reader.add(rows)

    inputs(model, batches, set(readers), take)
    for tensor, own in readers.items():
        if any(reader.count and not reader.square.isfinite().all() for reader in own.values()):
            raise ArgumentError(
                f"what {tensor!r} reads is not finite on these batches: look for NaN or "
                "infinity in them"
            )
    return {
        (group, t): reader.result()
        for t, own in readers.items()
        for group, reader in own.items()
        if reader.count
    }


@criterion(measure=second_moments)
def obs(group: ChannelGroup, measured: Measured, ridge: float = 1e-4) -> Tensor | None:
    """Share of the variance of what the layers behind compute that is lost with the channel, the
    others making up.

    Optimal Brain Surgeon (Hassibi and Stork 1993, Eq. 5) for the outputs of the layers that read
    the channel, whose Hessian is the covariance of what they read, as in ZipLM (Kurtic et al. 2023,
    section 3.1): channels are taken out one by one, the one that costs least first, and each time
    the weights of the others are adjusted by least squares. So of two channels that emit the same
    one is worth nothing, once. `netslim.surgery.compensate` makes the adjustment.

    Args:
        group: what is scored.
        measured: by `second_moments`.
        ridge: this share of the mean variance of the channels is added to the variance of each.
    """
    read = {tensor: moments for (name, tensor), moments in measured.items() if name == group.name}
    parts = [
        _Loss(moments, _variance(measured.get((WHOLE, t), moments)), ridge)
        for t, moments in read.items()
    ]
    if not parts:
        return None
    scores = torch.zeros(group.size, dtype=torch.float64)
    alive = torch.arange(group.size)  # the channels that the parts still hold
    waiting = torch.ones(group.size, dtype=torch.bool)  # of these, the ones that have not gone
    least, several = 0.0, max(1, group.size // STEPS)
    for _ in range(0, group.size, several):
        losses = sum(
            (part.losses() for part in parts), torch.zeros(len(alive), dtype=torch.float64)
        )
        gone = losses.masked_fill(~waiting, torch.inf).argsort(stable=True)[
            : min(several, int(waiting.sum()))
        ]
        for place in gone.tolist():
            least = max(least, float(losses[place]))  # what goes later is worth more
            scores[alive[place]] = least
        waiting[gone] = False
        for part in parts:
            part.remove(gone)
        if 2 * int(waiting.sum()) < len(alive):
            for part in parts:
                part.forget(waiting)
            alive, waiting = alive[waiting], waiting[waiting]
    return scores


def _variance(moments: Tensor) -> float:
    """Of what the layer computes of these channels, the taps of its kernel one by one."""
    return float((moments[:, 0] * moments[:, 1]).sum())


class _Loss:
    """What the outputs of one layer lose with each channel, while channels are taken out."""

    def __init__(self, moments: Tensor, whole: float, ridge: float) -> None:
        covariance, self.weights = moments[:, 0], moments[:, 1].clone()
        self.share = 1 / whole if whole > 0 else 0.0
        scale = covariance.diagonal(dim1=1, dim2=2).mean(1)
        scale = torch.where(scale > 0, scale * ridge, 1.0)
        self.inverse = torch.linalg.inv(
            covariance + torch.diag_embed(scale[:, None].expand(covariance.shape[:2]))
        )

    def losses(self) -> Tensor:
        """By each channel alone, shape (channels,)."""
        apart = self.weights.diagonal(dim1=1, dim2=2) / self.inverse.diagonal(dim1=1, dim2=2)
        return apart.sum(0).clamp(min=0) * self.share

    def remove(self, gone: Tensor) -> None:
        """Take channels out, and have the others make up for them; what is left in their own rows
        means nothing.
        """
        cross = self.inverse[:, :, gone]
        mix = torch.linalg.solve(cross[:, gone], cross, left=False)
        read = self.weights[:, gone]
        read = read - read[:, :, gone] @ mix.mT / 2
        self.weights.baddbmm_(torch.cat([mix, read.mT], 2), torch.cat([read, mix.mT], 1), alpha=-1)
        self.inverse.baddbmm_(mix, cross.mT, alpha=-1)

    def forget(self, waiting: Tensor) -> None:
        """Keep the rows of the channels that have not gone."""
        self.weights = self.weights[:, waiting][:, :, waiting]
        self.inverse = self.inverse[:, waiting][:, :, waiting]
