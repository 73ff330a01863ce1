"""The regression behind `netslim.surgery.compensate`: what a layer reads of removed channels,
fitted by the others.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from netslim.errors import ArgumentError
from netslim.surgery.compensation.constants import Flow
from netslim.surgery.rows import TensorCut

TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class Layout:
    """A layer's weights as a matrix for each convolution group and tap, and its input as rows of
    channels.

    Everything is in float64. A linear layer has one tap; or, where ``table`` (channels, places)
    gives the entries of a flattened map, one for each place.
    """

    def __init__(
        self, cut: TensorCut, gone: np.ndarray, weight: Tensor, table: Tensor | None = None
    ) -> None:
        self.weight, self.cut, self.table = weight, cut, table
        self.transposed = cut.axis == 0 and weight.dim() > 2
        self.groups = 1  # of the convolution; known with the first call
        self.entries = np.arange(cut.size) if table is None else table[:, 0].numpy()
        self.here = np.isin(self.entries, cut.kept), np.isin(self.entries, gone)

    def indices(self) -> tuple[Tensor, Tensor]:
        """Channels that stay and go, counted within each convolution group: (groups, number)."""
        rows = [torch.from_numpy(np.flatnonzero(mask)).to(self.weight.device) for mask in self.here]
        if self.transposed:
            rows = [row.view(self.groups, -1) % (self.cut.size // self.groups) for row in rows]
        stays, goes = (row.expand(self.groups, -1) for row in rows)
        return stays, goes

    def matrix(self) -> Tensor:
        """The weights (groups, outputs, channels, taps)."""
        weight, table = self.weight.detach().double(), self.table
        if table is not None:
            return weight[:, table.to(weight.device)].unsqueeze(0)
        weight = weight.reshape(self.groups, -1, weight.shape[1], prod(weight.shape[2:]))
        return weight.transpose(1, 2) if self.transposed else weight

    def write(self, matrix: Tensor) -> None:
        """Put what `matrix` gave back into the weights."""
        if self.table is not None:
            self.weight[:, self.table.to(matrix.device)] = matrix[0].to(self.weight)
            return
        matrix = matrix.transpose(1, 2) if self.transposed else matrix
        self.weight.copy_(matrix.reshape(self.weight.shape))

    def rows(self, func: Any, x: Tensor) -> Tensor:
        """The input as (groups, samples, channels)."""
        if self.table is not None:
            return (
                x.reshape(-1, x.shape[-1])[:, self.table.to(x.device)]
                .transpose(1, 2)
                .flatten(0, 1)[None]
                .double()
            )
        if func is F.linear:
            return x.reshape(1, -1, x.shape[-1]).double()
        maps = self.maps(x)
        return (
            maps.unflatten(1, (self.groups, -1))
            .transpose(0, 1)
            .flatten(3)
            .transpose(2, 3)
            .flatten(1, 2)
            .double()
        )

    def maps(self, x: Tensor) -> Tensor:
        """A convolution's input with its batch dimension."""
        return x if x.dim() == self.weight.dim() else x.unsqueeze(0)

    def means(
        self, func: Any, x: Tensor, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[Tensor, int]:
        """What each tap meets on average over the outputs, (groups, channels, taps), and the number
        of outputs.
        """
        if func is F.linear:
            mean = x.reshape(-1, x.shape[-1]).double().mean(0)
            mean = mean[:, None] if self.table is None else mean[self.table.to(x.device)]
            return mean[None], x[..., 0].numel()
        maps = self.maps(x)
        kernel = self.weight.shape[2:]
        taps = torch.eye(prod(kernel), device=x.device, dtype=torch.float64).view(
            prod(kernel), 1, *kernel
        )
        taps = taps.transpose(0, 1) if func in TRANSPOSED else taps
        args, kwargs = _ungrouped(args, kwargs)
        met = func(maps.double().mean(0).unsqueeze(1), taps, None, *args, **kwargs).flatten(2)
        return met.mean(2).unflatten(0, (self.groups, -1)), met.shape[2] * len(maps)


def _ungrouped(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """What follows input, weight and bias in a convolution's call, with one group."""
    args = args[:3] + (1,) * (len(args) > 3) + args[4:]
    return args, {name: value for name, value in kwargs.items() if name != "groups"}


class Moments:
    """Means and covariances of predictors and targets, summed up in float64 about the first batch's
    means.
    """

    def __init__(self) -> None:
        self.count = 0
        self.origin = self.sum = self.square = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Take in values (groups, samples, channels)."""
        if not self.count:
            self.origin = values.mean(1, keepdim=True)
        values = values - self.origin
        self.sum = values.sum(1) + self.sum.to(values.device)
        self.square = values.mT @ values + self.square.to(values.device)
        self.count += values.shape[1]

    def second(self, centred: bool) -> Tensor:
        """The covariances (groups, channels, channels); where not ``centred`` the mean products."""
        mean = self.sum / self.count
        spread = self.square / self.count - mean[:, :, None] * mean[:, None, :]
        mean = mean + self.origin[:, 0]
        return spread if centred else spread + mean[:, :, None] * mean[:, None, :]


class Fit(Flow):
    """What one tensor of weights reads, and how that of it which goes follows from that which
    stays.

    The predictors p are the channels that stay as the cut network gives them; the targets d are
    what is missing: the channels that go and, where the cut network is not the original, the
    deviation of those that stay.
    """

    def __init__(self, cut: TensorCut, gone: np.ndarray, weight: Tensor, layout: Layout) -> None:
        super().__init__(cut, gone, weight)
        self.layout, self.moments = layout, Moments()
        self.taken = 0  # calls of layers

    def take(self, func: Any, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> None:
        self.compare(func, x, None, args, kwargs)

    def compare(
        self, func: Any, x: Tensor, now: Tensor | None, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        """Take in a call whose input is ``x`` in the original and ``now`` in the cut network (None:
        the same).
        """
        self.taken += 1
        if self.cut.axis != (0 if func in TRANSPOSED else 1) or self.weight.dim() < 2:
            return
        layout = self.layout
        if func is not F.linear:
            layout.groups = kwargs.get("groups", args[3] if len(args) > 3 else 1)
        values, (means, count) = layout.rows(func, x), layout.means(func, x, args, kwargs)
        if now is None:
            seen, met = None, None
        else:
            seen, met = layout.rows(func, now), layout.means(func, now, args, kwargs)[0]
        self.moments.add(self._stacked(values, seen, 2))
        self.total = self._stacked(means, met, 1) * count + self.total.to(means.device)
        self.count += count

    def _stacked(self, was: Tensor, now: Tensor | None, axis: int) -> Tensor:
        """Predictors and targets along one axis."""
        stays, goes = self.layout.indices()
        kept, gone = _pick(was, stays, axis), _pick(was, goes, axis)
        if now is None:
            return torch.cat([kept, gone], axis)
        predictors = _pick(now, stays, axis)
        return torch.cat([predictors, kept - predictors, gone], axis)

    @property
    def silent(self) -> bool:
        return not self.moments.second(centred=False)[
            :, self._predictors :, self._predictors :
        ].any()

    @property
    def _predictors(self) -> int:
        return self.layout.indices()[0].shape[1]

    def solve(self, ridge: float, centred: bool) -> tuple[Tensor, Tensor, float]:
        """The new weights as a matrix (see `Layout.matrix`), the constant for each output, and the
        share explained.

        Raises:
            ArgumentError: the covariances are singular even with ``ridge``.
        """
        k, matrix = self._predictors, self.layout.matrix()
        stays, goes = self.layout.indices()
        square = self.moments.second(centred)
        inner, cross, outer = square[:, :k, :k], square[:, :k, k:], square[:, k:, k:]
        mix = self._mix(inner, cross, ridge)
        read = _pick(matrix, stays, 2), _pick(matrix, goes, 2)
        wanted = read[1] if square.shape[1] == k + goes.shape[1] else torch.cat(read, 2)
        added = torch.einsum("gort,gkr->gokt", wanted, mix)
        means = self.total / self.count
        shift = torch.einsum("gort,grt->go", wanted, means[:, k:]) if centred else torch.zeros(())
        shift = shift - torch.einsum("gokt,gkt->go", added, means[:, :k]) if centred else shift
        left = outer - mix.mT @ cross - cross.mT @ mix + mix.mT @ inner @ mix
        before, after = (
            float(torch.einsum("gort,grs,gost->", wanted, c, wanted)) for c in (outer, left)
        )
        for group in range(len(matrix)):
            matrix[group].index_add_(1, stays[group], added[group]).index_fill_(1, goes[group], 0)
        return matrix, shift.flatten(), min(1 - after / before, 1.0) if before else 1.0

    def _mix(self, inner: Tensor, cross: Tensor, ridge: float) -> Tensor:
        """What each predictor adds to each target, (groups, predictors, targets)."""
        scale = inner.diagonal(dim1=1, dim2=2).mean(1)
        scale = torch.where(scale > 0, scale * ridge, 1.0)
        factor, failed = torch.linalg.cholesky_ex(
            inner + torch.diag_embed(scale[:, None].expand(-1, inner.shape[1]))
        )
        if failed.any():
            raise ArgumentError(
                f"what {self.cut.tensor!r} reads is too nearly dependent for ridge={ridge}: "
                "enlarge it"
            )
        return torch.cholesky_solve(cross, factor)


def _pick(values: Tensor, entries: Tensor, axis: int) -> Tensor:
    """Entries of one axis, others in each group (of axis 0)."""
    return torch.stack(
        [row.index_select(axis - 1, chosen) for row, chosen in zip(values, entries, strict=True)]
    )
