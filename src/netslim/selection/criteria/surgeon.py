"""What the layers behind a channel lose when it goes and the channels that stay make up for it.

Optimal Brain Surgeon (Hassibi and Stork 1993), with the error of one layer's outputs in place of
the loss. A layer computes ``W x``, with covariance ``C`` of what it reads. When column ``j`` of
``W`` goes and least squares adjusts the others, the outputs lose the variance ::

    |w_j|^2 / (C^-1)_jj                                        (their Eq. 5)

A channel is worth nothing if nobody weighs it (``w_j`` is 0), and nothing if the others foretell it
(``(C^-1)_jj`` is then large: 1 / it is the variance of x_j that the others leave unexplained).

Nothing of size (outputs) is kept: the loss asks only for the inner products ``M = W^T W``, of
which ``|w_j|^2`` is the diagonal. Taking ``j`` out is a step of Gaussian elimination in both. With
``m = (C^-1)_:j / (C^-1)_jj``, how much the others take over of it::

    W    <-  W - w_j m^T           so  M <- M - m M_j: - M_:j m^T + m M_jj m^T
    C^-1 <-  C^-1 - m (C^-1)_j:    the inverse for those that are left

So the next loss costs a rank-two update instead of a new inverse, and channels that copy each other
are told apart: once the first has gone, what its copy does is no longer foretold.

A convolution is taken tap by tap, as if each tap read a sample of its own of the same channels:
``C`` is that of the channels, and ``M`` adds up the taps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import netslim.ranks as ranks
from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.walk import named_tensors
from netslim.selection.criteria.observing import Loss, Measured, inputs
from netslim.selection.criteria.registry import criterion
from netslim.surgery.compensation.least_squares import stride

STEPS = 128  # rounds to take a group's channels out: those of wide groups go several at once
WHOLE = ""  # in place of a group: everything that a layer reads


class _Reader:
    """How a tensor of weights reads the units of a group, and what it reads, over the batches.

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
        rows = rows[:: stride(len(rows))]
        rows = torch.unflatten(rows, 1, (-1, self.entries))
        units = rows[:, :, self.table.to(rows.device)]  # (samples, parts, units, entries)
        values = units.permute(1, 0, 3, 2).flatten(1, 2).double()  # (parts, samples, units)
        if not self.count:
            # About the mean: sums of squares about a far-off zero would cancel to nothing.
            self.origin = values.mean(1, keepdim=True)
        values = values - self.origin
        self.sum = self.sum + values.sum(1).cpu()
        self.square = self.square + (values.mT @ values).cpu()
        self.count += values.shape[1]

    def total(self) -> Tensor:
        """The sum of what was read, (parts, units)."""
        return self.sum + self.count * self.origin[:, 0].cpu()

    def about(self, mean: Tensor) -> Tensor:
        """The sum of squares about ``mean``, (parts, units), in place of the origin."""
        step = mean - self.origin[:, 0].cpu()
        cross = self.sum[:, :, None] * step[:, None, :]
        return self.square - cross - cross.mT + self.count * step[:, :, None] * step[:, None, :]

    def result(self) -> Tensor:
        """Covariance and inner products of the weights of units: (parts, 2, units, units)."""
        mean = self.sum / self.count
        covariance = self.square / self.count - mean[:, :, None] * mean[:, None, :]
        weight = self.weight.detach().movedim(self.axis, -1)
        weight = torch.unflatten(weight, 0, (len(covariance), -1)).flatten(1, -2).double().cpu()
        units = weight[:, :, self.table]  # (parts, outputs and taps, units, entries)
        read = units.permute(0, 2, 1, 3).flatten(2)  # (parts, units, all the rest)
        return torch.stack([covariance, read @ read.mT], 1)


def second_moments(
    graph: ChannelGraph, model: nn.Module, batches: Iterable[Any], loss: Loss | None
) -> Measured:
    """For every group and tensor of weights that reads it: see `_Reader.result`.

    Raises:
        ArgumentError: there is no batch, the model does not run on one, or what it computes is not
            finite.
    """
    readers = _readers(graph, dict(named_tensors(model)))

    def take(tensor: str, rows: Tensor) -> None:
        for reader in readers[tensor].values():
            reader.add(rows)

    ranks.everywhere("what layers read", lambda: inputs(model, batches, set(readers), take))
    every = {}
    for tensor, own in readers.items():
        every.update({(g, tensor): reader for g, reader in own.items()})
    _put_together(every)
    seen = {key: reader for key, reader in every.items() if reader.count}
    for (_, tensor), reader in seen.items():
        if not reader.square.isfinite().all():
            raise ArgumentError(
                f"what {tensor!r} reads is not finite on these batches: look for NaN or "
                "infinity in them"
            )
    return {key: reader.result() for key, reader in seen.items()}


def _put_together(readers: Mapping[tuple[str, str], _Reader]) -> None:
    """Have every reader hold what it has seen on all ranks of a distributed run."""
    if ranks.count() == 1:
        return
    seen = {key: reader for key, reader in readers.items() if reader.count}
    number = {key: torch.tensor(reader.count) for key, reader in seen.items()}
    counts = ranks.summed("places that were read", number)
    totals = ranks.summed("sums of what was read", {k: one.total() for k, one in seen.items()})
    means = {key: total / counts[key] for key, total in totals.items()}
    about = {key: reader.about(means[key]) for key, reader in seen.items()}
    for key, square in ranks.summed("squares of what was read", about).items():
        one = readers[key]
        one.count, one.origin, one.square = int(counts[key]), means[key][:, None], square
        one.sum = torch.zeros_like(means[key])


def _readers(graph: ChannelGraph, weights: Mapping[str, Tensor]) -> dict[str, dict[str, _Reader]]:
    """Tensor -> the groups that it reads, and `WHOLE` where these are not all it reads."""
    readers: dict[str, dict[str, _Reader]] = {}
    for group in graph.groups:
        if group.frozen:
            continue
        for s in group.tensors("consumer"):
            if s.mixed or len(set(np.bincount(s.units, minlength=group.size).tolist())) > 1:
                continue  # units that do not have as many entries each: no table, no score
            positions = torch.from_numpy(s.positions[s.units.argsort(kind="stable")])
            weight, own = weights[s.tensor], readers.setdefault(s.tensor, {})
            size = weight.shape[s.axis]
            own[group.name] = _Reader(weight, s.axis, positions.view(group.size, -1))
            if len(positions) < size:
                own[WHOLE] = _Reader(weight, s.axis, torch.arange(size)[:, None])
    return readers


@criterion(measure=second_moments)
def obs(group: ChannelGroup, measured: Measured, ridge: float = 1e-4) -> Tensor | None:
    """Variance that is lost behind the channel, as a share, when the others make up for it.

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
    return _by_elimination(parts, group.size)


def _by_elimination(parts: list[_Loss], size: int) -> Tensor:
    """Take all channels out, cheapest first; a channel's score is what was lost when it went."""
    scores = torch.zeros(size, dtype=torch.float64)
    alive = torch.arange(size)  # the channels that the parts still hold
    waiting = torch.ones(size, dtype=torch.bool)  # of these, the ones that have not gone
    least, several = 0.0, max(1, size // STEPS)
    for _ in range(0, size, several):
        nothing = torch.zeros(len(alive), dtype=torch.float64)
        losses = sum((part.losses() for part in parts), nothing)
        cheapest = losses.masked_fill(~waiting, torch.inf).argsort(stable=True)
        gone = cheapest[: min(several, int(waiting.sum()))]
        for place in gone.tolist():
            # Never less than what went before: sorted by score, channels go in this very order.
            least = max(least, float(losses[place]))
            scores[alive[place]] = least
        waiting[gone] = False
        for part in parts:
            part.remove(gone)
        if 2 * int(waiting.sum()) < len(alive):  # steps cost the square of what is held
            for part in parts:
                part.forget(waiting)
            alive, waiting = alive[waiting], waiting[waiting]
    return scores


def _variance(moments: Tensor) -> float:
    """Of what the layer computes of these channels, the taps of its kernel one by one."""
    return float((moments[:, 0] * moments[:, 1]).sum())


class _Loss:
    """What the outputs of one layer lose with each channel, while channels are taken out.

    Args:
        moments: of `_Reader.result`.
        whole: variance of all that the layer computes, which losses are a share of.
        ridge: as for `obs`. Where no channel varies at all, there is nothing to take a share of:
            all get the variance 1, and the weights alone decide.
    """

    def __init__(self, moments: Tensor, whole: float, ridge: float) -> None:
        covariance, self.weights = moments[:, 0], moments[:, 1].clone()
        self.share = 1 / whole if whole > 0 else 0.0
        scale = covariance.diagonal(dim1=1, dim2=2).mean(1)
        scale = torch.where(scale > 0, scale * ridge, 1.0)
        ridges = torch.diag_embed(scale[:, None].expand(covariance.shape[:2]))
        self.inverse: Tensor = torch.linalg.inv(covariance + ridges)

    def losses(self) -> Tensor:
        """By each channel alone, shape (channels,)."""
        apart = self.weights.diagonal(dim1=1, dim2=2) / self.inverse.diagonal(dim1=1, dim2=2)
        return apart.sum(0).clamp(min=0) * self.share

    def remove(self, gone: Tensor) -> None:
        """Take channels out, and have the others make up for them.

        What is left in their own rows means nothing. The update of the inner products is the one of
        the module's docstring for several channels at once; its last term is halved and put into
        the two before, so that one product makes it.
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
