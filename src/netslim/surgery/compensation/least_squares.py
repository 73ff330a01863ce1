"""The regression behind `netslim.surgery.compensate`: what goes, fitted by what stays.

A layer reads channels that stay (the predictors p) and others that go (the targets d). With the
covariances C of both, the combination of predictors that is nearest to the targets solves the
normal equations::

    M = (C_pp + ridge I)^-1 C_pd        d is replaced by M' p + b, where b = mean(d) - M' mean(p)

* C is all that is kept of the data: (channels, channels), however many images there are. It is
  summed in float64 and about the means of the first batch: "mean of squares less square of mean"
  loses the digits that matter where a mean is much larger than the spread, as behind a ReLU.
* All outputs and all taps of a kernel share one factorisation. The channels are fitted, not the
  outputs, and p is the same for each of them; what the layer makes of the channels is multiplied in
  afterwards, W_p + W_d M'.
* Where no constant can be moved (b must be zero) the same equations hold with mean products in
  place of covariances: a fit through the origin. `centred` says which.
* The ridge is a share of the mean variance of the predictors, so that it means the same in each
  layer. Two predictors that are nearly equal would otherwise get huge weights of opposite sign.
* What a tap meets on average depends on the tap: at the border those on one side meet padding. So b
  is made of means for each tap, found with one-hot kernels on the mean map.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import netslim.ranks as ranks
from netslim.errors import ArgumentError
from netslim.surgery.compensation.constants import Args, Flow, Kwargs
from netslim.surgery.rows import TensorCut

RIDGE = 1e-4  # keeps combinations small where channels are nearly the same
ROWS = 8192  # samples that are looked at of one layer and batch, about
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class Layout:
    """A layer's weights as a matrix for each convolution group and tap, its input as rows.

    Everything is in float64. A linear layer has one tap; or, where ``table`` (channels, places)
    gives the entries of a flattened map, one for each place.
    """

    def __init__(
        self, cut: TensorCut, gone: np.ndarray, weight: Tensor, table: Tensor | None = None
    ) -> None:
        self.weight, self.cut, self.table = weight, cut, table
        self.transposed = cut.axis == 0 and weight.dim() > 2
        self.groups = 1  # of the convolution; known with the first call
        entries = np.arange(cut.size)
        if table is not None:
            entries = table[:, 0].numpy()
        self.masks = np.isin(entries, cut.kept), np.isin(entries, gone)

    @property
    def taps(self) -> int:
        """Of the kernel; one of a linear layer."""
        return prod(self.weight.shape[2:])

    def indices(self) -> tuple[Tensor, Tensor]:
        """Channels that stay and go, counted within each convolution group: (groups, number).

        A plan for a grouped convolution cuts each group alike. An ordinary weight holds the inputs
        of one group and says so once; a transposed one holds those of all groups.
        """
        device = self.weight.device
        rows = [torch.from_numpy(np.flatnonzero(mask)).to(device) for mask in self.masks]
        if self.transposed:
            rows = [row.view(self.groups, -1) % (self.cut.size // self.groups) for row in rows]
        stays, goes = (row.expand(self.groups, -1) for row in rows)
        return stays, goes

    def matrix(self) -> Tensor:
        """The weights (groups, outputs, channels, taps)."""
        weight, table = self.weight.detach().double(), self.table
        if table is not None:
            return weight[:, table.to(weight.device)].unsqueeze(0)
        weight = weight.reshape(self.groups, -1, weight.shape[1], self.taps)
        return self._inputs_last(weight)

    def write(self, matrix: Tensor) -> None:
        """Put what `matrix` gave back into the weights."""
        if self.table is not None:
            self.weight[:, self.table.to(matrix.device)] = matrix[0].to(self.weight)
            return
        self.weight.copy_(self._inputs_last(matrix).reshape(self.weight.shape))

    def _inputs_last(self, weight: Tensor) -> Tensor:
        """Transposed convolutions have their inputs first: swap them with the outputs, or back."""
        if self.transposed:
            return weight.transpose(1, 2)
        return weight

    def rows(self, func: Any, x: Tensor) -> Tensor:
        """The input as (groups, samples, channels), of many samples some."""
        if func is F.linear:
            flat = x.reshape(-1, x.shape[-1])
            if self.table is None:
                return flat[:: stride(len(flat))][None].double()
            places = flat[:, self.table.to(x.device)]  # (examples, channels, places)
            samples = places.transpose(1, 2).flatten(0, 1)
            return samples[:: stride(len(samples))][None].double()
        maps = self.maps(x).flatten(2)
        each = maps.shape[2]
        every = len(maps) * each
        chosen = torch.arange(0, every, stride(every), device=x.device)
        samples = maps[chosen // each, :, chosen % each].double()
        return torch.unflatten(samples, 1, (self.groups, -1)).transpose(0, 1)

    def maps(self, x: Tensor) -> Tensor:
        """A convolution's input with its batch dimension."""
        if x.dim() == self.weight.dim():
            return x
        return x.unsqueeze(0)

    def means(self, func: Any, x: Tensor, args: Args, kwargs: Kwargs) -> tuple[Tensor, int]:
        """What each tap meets on average over the outputs, and the number of outputs.

        Returns:
            (groups, channels, taps), and a count.
        """
        if func is F.linear:
            mean = x.reshape(-1, x.shape[-1]).double().mean(0)
            met = mean[:, None] if self.table is None else mean[self.table.to(x.device)]
            return met[None], x[..., 0].numel()
        maps = self.maps(x)
        met = self.met(func, maps.mean(0, dtype=torch.float64), args, kwargs)
        return torch.unflatten(met.mean(2), 0, (self.groups, -1)), met.shape[2] * len(maps)

    def met(self, func: Any, channels: Tensor, args: Args, kwargs: Kwargs) -> Tensor:
        """What each tap of a convolution meets of single channels: (channels, taps, places)."""
        taps = torch.eye(self.taps, device=channels.device, dtype=channels.dtype)
        taps = taps.view(-1, 1, *self.weight.shape[2:])
        if func in TRANSPOSED:
            taps = taps.transpose(0, 1)
        args, kwargs = _ungrouped(args, kwargs)
        # Channels stand as examples of one channel, and each tap is a kernel of its own.
        found: Tensor = func(channels.unsqueeze(1), taps, None, *args, **kwargs)
        return found.flatten(2)


def stride(samples: int, rows: int = ROWS) -> int:
    """Every how-manieth sample of one layer and batch is looked at: of many about ``rows``."""
    # An odd stride: an even one would meet only some of the columns of a map of even width.
    return samples // rows | 1


# In a convolution's call input, weight and bias are followed by three arguments, then the groups.


def _groups(args: Args, kwargs: Kwargs) -> int:
    """Of a convolution's call."""
    found: int = kwargs.get("groups", 1)
    if len(args) > 3:
        found = args[3]
    return found


def _ungrouped(args: Args, kwargs: Kwargs) -> tuple[Args, dict[str, Any]]:
    """What follows input, weight and bias, with one group."""
    if len(args) > 3:
        args = (*args[:3], 1, *args[4:])
    return args, {name: value for name, value in kwargs.items() if name != "groups"}


class Moments:
    """Means and covariances, summed up about the first batch's means.

    Args:
        rows: of so many entries, the first ones, the products with all are kept; of the others
            their squares alone. None keeps all.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.rows, self.count = rows, 0
        self.origin = self.sum = self.square = self.diagonal = torch.zeros(())

    def add(self, values: Tensor) -> None:
        """Take in values (groups, samples, channels)."""
        if not self.count:
            self.origin = values.mean(1, keepdim=True)
        values = values - self.origin
        self.sum = values.sum(1) + self.sum.to(values.device)
        self.square = values[:, :, : self.rows].mT @ values + self.square.to(values.device)
        self.diagonal = values.square().sum(1) + self.diagonal.to(values.device)
        self.count += values.shape[1]

    def own(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums, none where nothing was taken in."""
        if not self.count:
            return {}
        return sums

    def about(self, origin: Tensor) -> dict[str, Tensor]:
        """The sums about another origin, which batches of others may be summed about, too."""
        # With d = old - new, sum (x - new) = sum (x - old) + n d, and the products likewise.
        if not self.count:
            return {}
        step = (self.origin - origin)[:, 0]
        moved = self.sum + self.count * step
        square = self.square + self._outer(self.sum, step) + self._outer(step, moved)
        diagonal = self.diagonal + 2 * self.sum * step + self.count * step.square()
        return {"sum": moved, "square": square, "diagonal": diagonal}

    @property
    def mean(self) -> Tensor:
        """(groups, channels)."""
        return self.origin[:, 0] + self.sum / self.count

    def second(self, centred: bool) -> Tensor:
        """The covariances (groups, rows, channels); where not ``centred`` the mean products."""
        # With y = x - origin: cov(x) = mean(y y') - mean(y) mean(y)', whatever the origin, and
        # mean(x x') = cov(x) + mean(x) mean(x)'.
        mean = self.sum / self.count  # about the origin
        spread = self.square / self.count - self._outer(mean, mean)
        if centred:
            return spread
        return spread + self._outer(self.mean, self.mean)

    def squares(self, centred: bool) -> Tensor:
        """The variances (groups, channels); where not ``centred`` the mean squares."""
        spread = self.diagonal / self.count - (self.sum / self.count).square()
        return spread if centred else spread + self.mean.square()

    def _outer(self, one: Tensor, other: Tensor) -> Tensor:
        return one[:, : self.rows, None] * other[:, None, :]


def summed_over_ranks(moments: Moments, what: str, device: torch.device) -> None:
    """Have the sums over the batches of all ranks of a distributed run, on each of them."""
    counts = ranks.gathered(what, moments.count)
    origins = ranks.summed(what, moments.own({"origin": moments.origin}))
    if not origins:
        return
    # Each rank summed about the means of its own first batch; any origin near these will do.
    origin = origins["origin"].to(device) / sum(count > 0 for count in counts)
    own = ranks.summed(what, moments.about(origin))
    moments.origin, moments.count = origin, sum(counts)
    for name, value in own.items():
        setattr(moments, name, value.to(device))


class Fit(Flow):
    """What one tensor of weights reads, and how what goes of it follows from what stays.

    Attributes:
        gathers: whether the sums for that are taken in; else only how the layer runs.
        taken: calls of layers.
        largest: bytes of an input.
        finite: whether all that was read is.
    """

    def __init__(
        self, cut: TensorCut, gone: np.ndarray, weight: Tensor, layout: Layout, gathers: bool
    ) -> None:
        super().__init__(cut, gone, weight)
        self.layout, self.moments, self.gathers = layout, Moments(), gathers and len(gone) > 0
        self.taken = self.largest = 0
        self.finite, self._loud = True, not len(gone)

    def take(self, func: Any, x: Tensor, args: Args, kwargs: Kwargs) -> None:
        self.taken += 1
        inputs = int(func not in TRANSPOSED)  # the axis of the weights that reads
        if self.cut.axis != inputs or self.weight.dim() < 2:
            return
        layout = self.layout
        if func is not F.linear:
            layout.groups = _groups(args, kwargs)
        self.largest = max(self.largest, x.nbytes)
        self.finite = self.finite and bool(x.isfinite().all())
        if self._loud and not self.gathers:
            self.count += 1
            return
        stays, goes = layout.indices()
        rows = layout.rows(func, x)
        self._loud = self._loud or bool(pick(rows, goes, 2).any())
        if not self.gathers:
            self.count += 1
            return
        entries = torch.cat([stays, goes], 1)  # predictors, then targets
        self.moments.add(pick(rows, entries, 2))
        means, count = layout.means(func, x, args, kwargs)
        self.total = pick(means, entries, 1) * count + self.total.to(means.device)
        self.count += count

    def over_ranks(self) -> None:
        super().over_ranks()
        what, moments = "moments of what layers read", self.moments
        own = (self.taken, self.layout.groups, self.finite, self._loud)
        taken, groups, finite, loud = zip(*ranks.gathered(what, own), strict=True)
        self.taken, self.layout.groups = sum(taken), max(groups)
        self.finite, self._loud = all(finite), any(loud)
        summed_over_ranks(moments, what, self.weight.device)

    @property
    def silent(self) -> bool:
        """Whether nothing was read of what goes; what deviates as a whole is not silent."""
        return not self._loud

    @property
    def _predictors(self) -> int:
        return self.layout.indices()[0].shape[1]

    def solve(self, ridge: float | None, centred: bool) -> tuple[Tensor, Tensor, float]:
        """Fit the targets, and give what they are read with to the predictors.

        In the subscripts g is a convolution group, o an output, t a tap, k a predictor, and r and s
        are targets.

        Args:
            ridge: share of the predictors' mean variance that is added to the variance of each;
                None takes `RIDGE`.
            centred: whether there is a place for a constant.

        Returns:
            The new weights (see `Layout.matrix`), the constant for each output, and the share of
            the variance of what was read that the fit explains.

        Raises:
            ArgumentError: the covariances are singular even with ``ridge``.
        """
        if ridge is None:
            ridge = RIDGE
        k, matrix = self._predictors, self.layout.matrix()
        stays, goes = self.layout.indices()
        square = self.moments.second(centred)
        inner, cross, outer = square[:, :k, :k], square[:, :k, k:], square[:, k:, k:]
        mix = torch.cholesky_solve(cross, ridged(inner, ridge, self.cut.tensor)[0])
        read = pick(matrix, goes, 2)  # the weights that read the targets
        # W_d M' for each tap; and of b what the layer makes of it: W_d mean(d) - W_d M' mean(p),
        # summed over the taps.
        added = torch.einsum("gort,gkr->gokt", read, mix)
        shift = torch.zeros(())
        if centred:
            means = self.total / self.count
            shift = torch.einsum("gort,grt->go", read, means[:, k:])
            shift = shift - torch.einsum("gokt,gkt->go", added, means[:, :k])
        # The covariance of what the fit leaves over, d - M' p, from those of d and p: no second
        # pass.
        left = outer - mix.mT @ cross - cross.mT @ mix + mix.mT @ inner @ mix
        for group in range(len(matrix)):
            matrix[group].index_add_(1, stays[group], added[group]).index_fill_(1, goes[group], 0)
        return matrix, shift.flatten(), _explained(read, outer, left)


def ridged(
    inner: Tensor, ridge: float, tensor: str, predictors: int | None = None
) -> tuple[Tensor, Tensor]:
    """The Cholesky factors of covariances (groups, predictors, predictors) with the ridge, and what
    it adds to the variances (groups,).

    Args:
        inner: the covariances; or the products of samples, of so many ``predictors``.
        ridge: share of the mean variance of the predictors.
        tensor: name of the weights, for messages.

    Raises:
        ArgumentError: they are singular even so.
    """
    scale = inner.diagonal(dim1=1, dim2=2).sum(1) / (predictors or inner.shape[1])
    scale = torch.where(scale > 0, scale * ridge, 1.0)  # dead predictors: anything above 0
    added = torch.diag_embed(scale[:, None].expand(-1, inner.shape[1]))
    factors, failed = torch.linalg.cholesky_ex(inner + added)
    if failed.any():
        raise ArgumentError(
            f"what {tensor!r} reads is too nearly dependent for ridge={ridge}: enlarge it"
        )
    return factors, scale


def _explained(read: Tensor, before: Tensor, after: Tensor) -> float:
    """The share of the variance of what is read that a fit takes away, given both covariances."""
    whole, left = (
        float(torch.einsum("gort,grs,gost->", read, spread, read)) for spread in (before, after)
    )
    if not whole:
        return 1.0
    return min(1 - left / whole, 1.0)


def pick(values: Tensor, entries: Tensor, axis: int) -> Tensor:
    """Entries of one axis, others in each group (of axis 0)."""
    return torch.stack(
        [row.index_select(axis - 1, chosen) for row, chosen in zip(values, entries, strict=True)]
    )
