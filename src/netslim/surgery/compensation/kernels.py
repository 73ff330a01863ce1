"""Layer after layer: whole kernels, fitted to what each layer computes.

A layer of the cut network reads x', where that of the original reads x: channels are missing, and
those that stay deviate, as the layers before them were cut, too. Its weights W' on the channels
that stay are fitted such that it computes what it did::

    W' = argmin |W x - V x'|^2 + ridge |V - W_K|^2     over V

x and x' are all that one output reads, the patch under a kernel, so that the taps are fitted
together; W_K are the weights there were. With what is missing, d = W x - W_K x', and covariances C
over places and images the step from W_K solves the normal equations::

    D = (C_x'x' + ridge I)^-1 C_x'd        W' = W_K + D', and mean(d) - D' mean(x') is the constant

The layers are taken in the order in which they run, so that each makes up for what those before it
leave; layers that read no removed channel take part, too. The ridge, a share of the mean variance
of what is read, holds weights of which the data says little to what training made of them. Few
images say little of many entries, however many places they have: it grows with the one and falls
with the other (`PULL`, the best of those tried on ResNet-20 and VGG on the digits, with one, three
and eleven batches).

He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", 2017: eq. 3, and section
3.2 for the order and for the outputs of the original as targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain, islice
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netslim.ranks as ranks
from netslim.errors import ArgumentError, PlanError
from netslim.graph.modules.ambient import eagerly, settings_kept
from netslim.graph.modules.batches import joined, outputs
from netslim.graph.modules.calls import evaluating, named_outputs
from netslim.graph.modules.walk import named_tensors
from netslim.surgery.compensation.constants import first_of
from netslim.surgery.compensation.halted import Call, HaltedRun
from netslim.surgery.compensation.least_squares import (
    ROWS,
    TRANSPOSED,
    Fit,
    Layout,
    Moments,
    pick,
    ridged,
    stride,
    summed_over_ranks,
)
from netslim.surgery.norm_inputs import hang, silent_inputs
from netslim.surgery.plan import PruningPlan
from netslim.surgery.proof.branches import branches_silent

LARGEST = 6144  # entries that one output reads; of more, covariances take long and much memory
MEMORY = 2**31  # bytes, about, of what runs hold while they wait
RUNS = 8  # of each network: each thread may have as many more as there are cores
ALIKE = 1e-3  # of the largest output, where examples are computed alike with others
PULL = 0.02  # ridge, where there are as many images as entries that one output reads
_HELD = 6  # tensors of the size of the largest input of a layer that two runs hold, about
_VALUES = 2**22  # entries and outputs at a time


class KernelFit:
    """The weights of one layer, fitted to what the original computes.

    Args:
        fit: the same layer, as it was first seen; the weights are those of the cut network, and
            read removed channels still.
        original: the weights of the original.
        ridge: as of `netslim.surgery.compensate`.
        rows: outputs that are looked at in one call, about.

    Attributes:
        misses: whether the layer computes something else than it did.
    """

    def __init__(self, fit: Fit, original: Tensor, ridge: float | None, rows: int = ROWS) -> None:
        self.cut, self.gone, self.weight, self.original = fit.cut, fit.gone, fit.weight, original
        self.base = fit.weight.index_fill(fit.cut.axis, fit.gone, 0)  # that the step is from
        self.layout, self._start = _layout(fit, fit.weight), _layout(fit, self.base)
        self.images, self.misses, self.rows = 0, False, rows
        self.entries = _entries(self.layout)
        self.moments = Moments(self.entries)
        self.few: list[Tensor] = []  # samples that are fewer than entries
        if fit.layout.table is not None:
            # Too few examples for each entry of a flattened map: the channels that stay stand in
            # for the others at all places alike, and what still deviates is fitted by entries.
            start = Layout(fit.cut, fit.gone.cpu().numpy(), self.base, fit.layout.table)
            start.write(fit.solve(ridge, centred=True)[0])

    def add(self, was: Call, now: Call) -> None:
        """Take in a call of the layer in the original and the same in the cut network."""
        if was.x.shape != now.x.shape:  # what is read is chosen by values, and is of other examples
            return
        right = was.func(was.x, self.original, None, *was.args, **was.kwargs)
        missing = right - now.func(now.x, self.base, None, *now.args, **now.kwargs)
        self.misses |= bool(missing.any())
        for read, wanted in self._samples(now, missing):
            targets = torch.unflatten(wanted.double(), 1, (self.layout.groups, -1)).transpose(0, 1)
            self._take(torch.cat([read.double(), targets], 2))
        self.images += self._images(now)

    def _take(self, values: Tensor) -> None:
        """Take in samples (groups, samples, entries and outputs)."""
        self.few.append(values)
        if self.moments.count or sum(rows.shape[1] for rows in self.few) > self.entries:
            self._sum_up()

    def _sum_up(self) -> None:
        for rows in self.few:
            self.moments.add(rows)
        self.few = []

    def _images(self, call: Call) -> int:
        """How many there are in what a layer reads."""
        if call.func is F.linear:
            return len(call.x) if call.x.dim() > 1 else 1
        return len(self.layout.maps(call.x))

    def _samples(self, call: Call, missing: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What outputs read (groups, samples, entries), and the same of ``missing`` (samples,
        outputs); of many outputs some, and of these a part at a time.
        """
        if call.func is F.linear:
            maps = call.x.reshape(-1, call.x.shape[-1], 1)
            missing = missing.reshape(len(maps), 1, -1)
        else:
            maps = self.layout.maps(call.x)
            missing = self.layout.maps(missing).flatten(2).transpose(1, 2)
        count, places, outputs = missing.shape
        chosen = torch.arange(
            0, count * places, stride(count * places, self.rows), device=maps.device
        )
        at_once = max(1, _VALUES // (self.layout.groups * self.entries + outputs))
        if call.func in TRANSPOSED:
            read = self._shifted(call, maps)
        else:
            read = self._picked(call, maps)
        for first in range(0, len(chosen), at_once):
            part = chosen[first : first + at_once]
            image, place = part // places, part % places
            yield read(image, place), missing[image, place]

    def _kept(self, maps: Tensor) -> Tensor:
        """The channels that stay, (groups, images, channels, ...)."""
        stays, _ = self.layout.indices()
        grouped = torch.unflatten(maps, 1, (self.layout.groups, -1)).transpose(0, 1)
        return pick(grouped, stays, 2)

    def _picked(self, call: Call, maps: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """What single outputs read, by image and place: (groups, samples, channels times taps)."""
        dims, kernel = maps.dim() - 2, self.weight.shape[2:]
        steps, holes, out = [1] * dims, [1] * dims, maps.shape[2:]
        if call.func is not F.linear:
            names = ("stride", "padding", "dilation")
            (given, padding, dilation), _, _ = first_of(names, call.args, call.kwargs)
            steps, holes = _each(given, 1, dims), _each(dilation, 1, dims)
            reach = [hole * (size - 1) for hole, size in zip(holes, kernel, strict=True)]
            before = [whole // 2 for whole in reach]  # of padding "same"; the rest comes behind
            behind = [whole - half for whole, half in zip(reach, before, strict=True)]
            if padding != "same":
                before = behind = _each(0 if padding == "valid" else padding, 0, dims)
            sides = zip(reversed(before), reversed(behind), strict=True)
            maps = F.pad(maps, [*chain.from_iterable(sides)])
            sizes = zip(maps.shape[2:], reach, steps, strict=True)
            out = torch.Size((size - whole - 1) // step + 1 for size, whole, step in sizes)
        kept = self._kept(maps).contiguous()
        flat, widths = kept.flatten(3), kept.stride()[3:]
        grid = [torch.arange(size, device=maps.device) for size in kernel]
        taps = _sums([a * h * w for a, h, w in zip(grid, holes, widths, strict=False)], maps)

        def read(image: Tensor, place: Tensor) -> Tensor:
            where = torch.unravel_index(place, out)
            corner = torch.zeros_like(place)
            for at, step, width in zip(where, steps, widths, strict=True):
                corner = corner + at * step * width
            entries = flat[:, image[:, None], :, corner[:, None] + taps]
            return entries.permute(2, 0, 3, 1).flatten(2)

        return read

    def _shifted(self, call: Call, maps: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The same of a transposed convolution, whose outputs all read in other ways."""
        kept = self._kept(maps)

        def read(image: Tensor, place: Tensor) -> Tensor:
            seen = torch.unique(image)
            channels = kept[:, seen].flatten(0, 2)
            met = self.layout.met(call.func, channels, call.args, call.kwargs)
            met = torch.unflatten(met, 0, (len(kept), len(seen), -1))  # ..., taps, places)
            entries = met[:, torch.searchsorted(seen, image), :, :, place]
            return entries.transpose(0, 1).flatten(2)

        return read

    def over_ranks(self) -> None:
        """Have the sums over the batches of all ranks of a distributed run, on each of them."""
        if ranks.count() > 1:
            what = "what layers compute after the cut"
            self._sum_up()
            seen = ranks.gathered(what, (self.images, self.misses))
            self.images = sum(images for images, _ in seen)
            self.misses = any(misses for _, misses in seen)
            summed_over_ranks(self.moments, what, self.weight.device)

    @property
    def seen(self) -> bool:
        """Whether the layer ran in both networks."""
        return bool(self.moments.count or self.few)

    def solve(self, ridge: float | None, centred: bool) -> tuple[Tensor, Tensor, float]:
        """As `Fit.solve`; explained is what the layer computes no more."""
        matrix = self._start.matrix()  # (groups, outputs, channels, taps)
        stays, _ = self.layout.indices()
        if not self.misses:
            return matrix, torch.zeros_like(matrix[:, :, 0, 0]).flatten(), 1.0
        if ridge is None:
            ridge = PULL * self.entries / self.images
        of = self._step_of_few if self.few else self._step
        step, shift, explained = of(ridge, centred)
        more = torch.unflatten(step.mT, 2, (-1, matrix.shape[3]))
        for group in range(len(matrix)):
            matrix[group].index_add_(1, stays[group], more[group])
        return matrix, shift.flatten(), explained

    def _step(self, ridge: float, centred: bool) -> tuple[Tensor, Tensor, float]:
        """The step from the weights (groups, entries, outputs), the constant, what they explain."""
        k, square = self.entries, self.moments.second(centred)
        cross = square[:, :, k:]
        factors, added = ridged(square[:, :, :k], ridge, self.cut.tensor)
        step = torch.cholesky_solve(cross, factors)
        mean = self.moments.mean if centred else torch.zeros_like(self.moments.mean)
        whole = self.moments.squares(centred)[:, k:].sum()
        return step, *_told(step, mean, cross, added, whole)

    def _step_of_few(self, ridge: float, centred: bool) -> tuple[Tensor, Tensor, float]:
        """The same, of fewer samples n than entries: (X'X / n + r I)^-1 X'D / n is X'(XX' / n + r
        I)^-1 D / n, of which the second inverts what is as large as the samples.
        """
        values = torch.cat(self.few, 1)
        mean = values.mean(1) if centred else torch.zeros_like(values[:, 0])
        about = values - mean[:, None]
        x, d, n = about[:, :, : self.entries], about[:, :, self.entries :], values.shape[1]
        factors, added = ridged(x @ x.mT / n, ridge, self.cut.tensor, self.entries)
        step = x.mT @ torch.cholesky_solve(d, factors) / n
        return step, *_told(step, mean, x.mT @ d / n, added, d.square().sum() / n)


def _told(
    step: Tensor, mean: Tensor, cross: Tensor, added: Tensor, whole: Tensor
) -> tuple[Tensor, float]:
    """(the constant that goes with a step, the share of the variance ``whole`` that it explains).

    What the step D takes off the variance is tr(2 D'C_xd - D'C_xx D), and C_xx D is ``cross``,
    which is C_xd, but for what the ridge has ``added``.
    """
    k = step.shape[1]
    shift = mean[:, k:] - torch.einsum("gko,gk->go", step, mean[:, :k])
    taken = (step * (cross + added[:, None, None] * step)).sum()
    return shift, float(taken / whole) if whole else 1.0


def _each(value: Any, otherwise: int, dims: int) -> list[int]:
    """A setting of a convolution for each dimension."""
    given = otherwise if value is None else value
    return [given] * dims if isinstance(given, int) else [*given] * (dims // len(given))


def _sums(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """All sums of one entry of each."""
    found: Tensor = torch.zeros(1, dtype=torch.long, device=like.device)
    for part in parts:
        found = (found[:, None] + part).flatten()
    return found


def small_enough(fit: Fit) -> bool:
    """Whether one output of the layer reads so few entries that its kernels can be fitted whole."""
    return _entries(_layout(fit, fit.weight)) <= LARGEST


def _entries(layout: Layout) -> int:
    """How many one output reads in the cut network: channels times taps."""
    return layout.indices()[0].shape[1] * layout.taps


def _layout(fit: Fit, weight: Tensor) -> Layout:
    """Without a table: each entry of a flattened map is one of its own."""
    layout = Layout(fit.cut, fit.gone.cpu().numpy(), weight)
    layout.groups = fit.layout.groups
    return layout


class LayerAfterLayer:
    """Runs of the original and of the cut network, side by side, for the fits of some layers.

    Args:
        original, copy: the network before the cut, and what is fitted.
        plan: of ``copy``, by which it runs as the cut network will.
        fits: of layers that run once.
        shared: tensors of ``copy`` beside its parameters that fits change.
        batches: of which as many are run as `MEMORY` is enough for, put together as one where that
            is the same; else `RUNS` at most.
    """

    def __init__(
        self,
        original: nn.Module,
        copy: nn.Module,
        plan: PruningPlan,
        fits: Sequence[Fit],
        shared: Sequence[Tensor],
        batches: Iterable[Any],
    ) -> None:
        names = [fit.cut.tensor for fit in fits]
        tensors = dict(named_tensors(original))
        self._before = {name: tensors[name] for name in names}
        now = {fit.cut.tensor: fit.weight for fit in fits}
        each = _HELD * max((fit.largest for fit in fits), default=0)
        most = max(1, MEMORY // max(each, 1))
        self._done: set[str] = set()
        self._settings, self._rows = ExitStack(), ROWS
        self._pairs: list[tuple[HaltedRun, HaltedRun]] = []
        if fits:
            several = [*islice(batches, most)]
            few = _as_few(original, several)
            self._rows = ROWS * len(several) // len(few)
            for batch in few:
                first = HaltedRun(original, batch, self._before)
                second = HaltedRun(copy, batch, now, shared, partial(_as_cut, plan=plan))
                self._pairs.append((first, second))

    @torch.no_grad()
    def fit(self, fit: Fit, ridge: float | None) -> KernelFit:
        """The layer's, now that those before it are what they will be."""
        name = fit.cut.tensor
        found = KernelFit(fit, self._before[name], ridge, self._rows)

        def run() -> None:
            for was, now in self._pairs:
                reached = [one.reach(name, self._done) for one in (was, now)]
                if all(reached):
                    found.add(was.halted, now.halted)

        ranks.everywhere("what layers compute after the cut", run)
        found.over_ranks()
        self._done.add(name)
        return found

    def __enter__(self) -> Self:
        self._settings.enter_context(settings_kept())
        self._settings.enter_context(torch.random.fork_rng(devices=[]))
        return self

    def __exit__(self, *_: object) -> None:
        with self._settings:
            for pair in self._pairs:
                for run in pair:
                    run.end()


@contextmanager
def _as_cut(model: nn.Module, plan: PruningPlan) -> Iterator[None]:
    """Inside, a copy that is run no more afterwards computes as what is cut from it: without the
    branches that go, and its normalisations over channels find zeros where those were.
    """
    with suppress(PlanError):  # a norm without weights, of which no plan can tell
        for found in silent_inputs(model, plan):
            hang(*found)
    with branches_silent(model, [one for block in plan.dropped.blocks for one in block.sums]):
        yield


def _as_few(model: nn.Module, batches: Sequence[Any]) -> list[Any]:
    """The batches as one, where the model computes the same of them together; else the first."""
    if len(batches) > 1:
        whole = joined(batches)
        if whole is not None and _independent(model, batches, whole):
            return [whole]
    return list(batches[:RUNS])


def _independent(model: nn.Module, batches: Sequence[Any], whole: Any) -> bool:
    """Whether examples are computed alike alone and together with those of other batches.

    A first dimension may be of time or channels, and what is computed may depend on the size.
    """
    try:
        with torch.no_grad(), eagerly(), evaluating(model):
            alone, together = (
                [[tensor for _, tensor in named_outputs(out)] for _, out in outputs(model, run)]
                for run in (batches, [whole])
            )
    except ArgumentError:
        return False
    rows = [*zip(*alone, strict=False)]
    return len(rows) == len(together[0]) and all(map(_put_together, rows, together[0]))


def _put_together(parts: Sequence[Tensor], whole: Tensor) -> bool:
    if not all(part.dim() for part in parts):
        return False
    if {part.shape[1:] for part in parts} != {whole.shape[1:]} or sum(map(len, parts)) != len(
        whole
    ):
        return False
    right = torch.cat([*parts])
    if not right.numel() or not (right.is_floating_point() or right.is_complex()):
        return torch.equal(right, whole)
    return bool((right - whole).abs().max() <= ALIKE * right.abs().max())


__all__ = ["KernelFit", "LayerAfterLayer", "small_enough"]
