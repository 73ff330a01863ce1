"""Measuring a latency table: kernels alone, whole networks, and how the ones add up to the others.

A network takes longer than its layers together: norms and activations move bytes, weights come
from memory, and every call costs something. None of it can be measured alone, as it depends on what
ran just before. So cut copies of the network are timed whole, and least squares tell how much of
each there is (`LatencyTable`).

Which copies, matters. Those cut by chance cover all widths, but selection never asks about such
networks: it cuts where a cut pays, to multiples of the block. Errors there are of one kind, and a
fit to chance alone does not see them. So the first fit chooses further copies, cut as `select`
would cut with it; they are timed, the fit is made again, and once more.

All copies of a round are timed side by side, and each round times the uncut network too: times of
later rounds are scaled to its time in the first, in case the machine has become slower meanwhile.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import netslim.ranks as ranks
from netslim._support import checks_calls, using_threads
from netslim._support.progress import Progress, untold
from netslim.errors import ArgumentError, PlanError, SurgeryError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.ambient import by_itself
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.unwrapping import bare
from netslim.measure.backends import check_backend, home, moved, prepared, usable
from netslim.measure.latency import synchroniser, timed
from netslim.measure.runtimes import TableBackend, in_onnxruntime
from netslim.measure.table.cache import cached
from netslim.measure.table.curves import Vector, points, probes
from netslim.measure.table.kernels import Kernel, Values, kernels_of, observe, rate
from netslim.measure.table.latency_table import (
    LatencyTable,
    Listing,
    Masks,
    Measured,
    Parts,
    Run,
    Site,
    Terms,
    fixed_size,
)
from netslim.measure.table.onnx_kernels import int8_kernel, onnx_kernel, whole_numbers
from netslim.models.onnx_session import Session, tensors_of
from netslim.selection.criteria.scoring import score
from netslim.selection.options import Budget
from netslim.selection.select import select
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.ports import cut_inputs
from netslim.surgery.prune import prune

KERNEL_ROUNDS, KERNEL_SECONDS = 7, 0.3
RUN_ROUNDS, RUN_SECONDS = 21, 15.0
# Shares of latency are relative to the uncut network, so it counts for more in the fit.
UNCUT_WEIGHT = 2.0
_SIDE_BY_SIDE = 1 << 29  # bytes of weights of the sizes of a kernel that are timed in turn
# Shares of the channels that go by chance, (least, most) for each group of a copy. There are fewer
# where each copy is exported or compiled, which is slow.
_CUTS = (
    (0.15, 0.15), (0.3, 0.3), (0.5, 0.5), (0.7, 0.7),
    (0.0, 0.5), (0.2, 0.8), (0.0, 0.9), (0.3, 0.95),
)  # fmt: skip
_FEW_CUTS = ((0.2, 0.2), (0.5, 0.5), (0.0, 0.5), (0.0, 0.9), (0.3, 0.9))
# Shares of the latency that go by choice: what is asked of a table later is like these, and unlike
# what chance cuts.
_AIMS = ((0.2, 0.4, 0.6), (0.3, 0.4, 0.5))  # the second time with what the first has taught
_FEW_AIMS = ((0.2, 0.4, 0.6),)
AIM_WEIGHT = 2.0


@checks_calls
@by_itself
def latency_table(
    model: nn.Module,
    graph: ChannelGraph,
    example_inputs: Any,
    *,
    backend: TableBackend = "eager",
    device: torch.device | str | None = None,
    threads: int | None = None,
    cache: bool | str | Path = True,
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure how long the network takes at other widths, here and now: what ``cut_latency`` needs.

    Every layer runs alone at some tens of widths, once for layers that compute the same; then the
    whole network and copies of it that are really cut, by chance, are timed side by side. Half a
    minute to minutes, on a machine that does nothing else: what disturbs the measurement makes
    promises wrong, by the table's ``error`` and more.

    Args:
        model: the traced model; it is not changed.
        graph: from `netslim.trace`, with the same example inputs.
        example_inputs: what a call takes: the table holds for a batch of this size.
        backend: what will run the network, as for `netslim.latency`.
        device: where to run; by default where the parameters are.
        threads: CPU threads; by default as torch has them set.
        cache: whether to take a table that was measured before, and to keep this one, for the same
            machine, versions, backend, threads, architecture and input shapes; or the folder to
            keep it in. By default ``$NETSLIM_CACHE``, or the user's cache folder.
        progress: called with what is measured, how many measurements are done, and how many there
            are.

    Raises:
        ArgumentError: a backend, device or number of threads cannot be used.
        StaleGraphError: the graph is not of this model.
        TraceError: the model does not run on the example inputs.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> table = netslim.latency_table(model, graph, images)
        >>> path = table.save("this_machine.json")  # for select(..., latency=table)
    """
    check_backend(backend, TableBackend)
    model = bare(model, ArgumentError, call="latency_table(model, graph, example_inputs)")
    graph.check(model)
    place = home(model, example_inputs) if device is None else usable(device)
    with using_threads(threads):
        about = _about(graph, example_inputs, backend, place)

        def measure() -> LatencyTable:
            there, inputs = _moved(model, example_inputs, place)
            run = _Measurement(there, graph, inputs, backend, place, progress or untold)
            return run.table(about)

        return ranks.shared("the latency table", lambda: cached(about, cache, measure))


def _moved(model: nn.Module, inputs: Any, place: torch.device) -> tuple[nn.Module, Any]:
    if any(t.device != place for t in (*model.parameters(), *model.buffers())):
        model = duplicate(model).to(place)
    return model, moved(inputs, place)


class _Measurement:
    """The measurement of one table."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, inputs: Any, backend: TableBackend,
        place: torch.device, progress: Progress,
    ) -> None:  # fmt: skip
        self.model, self.graph, self.inputs = model, graph, inputs
        self.backend, self.place, self.progress = backend, place, progress
        self.values = Values(place)

    def table(self, about: Mapping[str, Any]) -> LatencyTable:
        seen = observe(self.model, self.inputs, synchroniser(self.place), runs=3)
        found = kernels_of(self.graph, seen)
        different = list(dict.fromkeys(kernel for kernel in found if kernel is not None))
        measured = []
        for done, kernel in enumerate(different):
            self.progress(str(kernel), done, len(different) + 1)
            measured.append(self.alone(kernel))
        self.progress("whole networks", len(different), len(different) + 1)
        sites = tuple(self.sites(found, different, rate(self.graph, seen, found)))
        bare = LatencyTable(sites=sites, kernels=tuple(measured), **about)
        terms, runs, error = self.calibrated(bare)
        self.progress("done", len(different) + 1, len(different) + 1)
        return LatencyTable(
            sites=bare.sites, kernels=bare.kernels, terms=terms, runs=runs, error=error,
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **about,
        )  # fmt: skip

    def sites(
        self, found: Sequence[Kernel | None], different: list[Kernel], ms_per_mac: float
    ) -> Iterator[Site]:
        """The graph's costs, each with what it is measured by: a kernel, or a rate for its MACs."""
        for kernel, cost in zip(found, self.graph.costs, strict=True):
            if kernel is None:
                size = fixed_size(cost, ())
                yield Site(cost.module, cost.operator, size, (), None, ms_per_mac)
                continue
            first = len(cost.factors) - 2  # the last two factors are depth and width
            axes = tuple(first + axis for axis in (0, 1) if kernel.live[axis])
            size = fixed_size(cost, axes)
            yield Site(cost.module, cost.operator, size, axes, different.index(kernel))

    def alone(self, kernel: Kernel) -> Measured:
        """Time a kernel at its probes, with nothing around it."""
        full = (kernel.depth, kernel.width)
        live = [axis for axis in (0, 1) if kernel.live[axis]]
        axes = [probes(full[axis], kernel.step(axis)) for axis in live]
        widths = {}
        for point in points(axes):
            at = dict(zip(live, point, strict=True))
            widths[point] = at.get(0, full[0]), at.get(1, full[1])
        ms: list[tuple[tuple[int, ...], float]] = []
        for some in self.portions(kernel, widths):
            found = timed(
                {str(point): self.call(kernel, *widths[point]) for point in some},
                repeats=KERNEL_ROUNDS, budget_seconds=KERNEL_SECONDS, warmup=1, device=self.place,
            )  # fmt: skip
            # What disturbs so short a call only ever makes it longer: the lower quartile is the
            # steadier figure.
            ms += [(point, found[str(point)].low_ms) for point in some]
        return Measured(str(kernel), tuple(map(tuple, axes)), tuple(ms))

    def portions(
        self, kernel: Kernel, widths: Mapping[tuple[int, ...], tuple[int, int]]
    ) -> Iterator[list[tuple[int, ...]]]:
        """The points that are timed side by side: all, or as many as fit into memory. In ONNX
        Runtime each has weights of its own, and those of VGG's first linear layer are 400 MB.
        """
        some: list[tuple[int, ...]] = []
        held = 0
        for point, (depth, width) in widths.items():
            size = 0
            if in_onnxruntime(self.backend):
                size = 4 * prod(kernel.shapes(depth, width)[1])
            if some and held + size > _SIDE_BY_SIDE:
                yield some
                some, held = [], 0
            some.append(point)
            held += size
        yield some

    def call(self, kernel: Kernel, depth: int, width: int) -> Callable[[], object]:
        """The kernel at these widths on this backend, ready to be timed."""
        if not in_onnxruntime(self.backend):
            return kernel.call(depth, width, self.values)
        shape, weight_shape, _ = kernel.shapes(depth, width)
        weight = self.values.take(weight_shape, kernel.dtype)
        bias = self.values.take((width,), kernel.dtype) if kernel.bias else None
        write, x = onnx_kernel, self.values.take(shape, kernel.dtype)
        if self.backend == "onnxruntime-int8":
            write, x = int8_kernel, whole_numbers(x)
        return Session(write(kernel, depth, width, weight, bias), self.place).bound(x)

    def calibrated(self, table: LatencyTable) -> tuple[Terms, tuple[Run, ...], float]:
        """Time whole networks, cut by chance and then by choice, and fit the terms to them."""
        cuts, aims = (_CUTS, _AIMS) if self.backend == "eager" else (_FEW_CUTS, _FEW_AIMS)
        masks, times = self.whole([{}, *random_cuts(self.graph, cuts)])
        weights = [UNCUT_WEIGHT, *[1.0] * (len(masks) - 1)]
        terms, error = self.fitted(table, masks, times, weights)
        for shares in aims:
            aimed = list(chosen_cuts(self.model, self.graph, replace(table, terms=terms), shares))
            again, found = self.whole([{}, *aimed])
            masks = [*masks, *again[1:]]
            as_at_first = found[1:] * (times[0] / found[0])
            times = np.concatenate([times, as_at_first])
            weights += [AIM_WEIGHT] * (len(again) - 1)
            terms, error = self.fitted(table, masks, times, weights)
        predicted = self.amounts(table, masks) @ np.array(astuple(terms))
        macs = [self.graph.macs(m) / max(1, self.graph.macs()) for m in masks]
        return terms, tuple(map(Run, macs, times.tolist(), predicted.tolist())), error

    def fitted(
        self, table: LatencyTable, masks: Sequence[Masks], times: Vector, weights: Sequence[float]
    ) -> tuple[Terms, float]:
        """The terms for these runs, and the largest error of a run left out."""
        return fit(self.amounts(table, masks), times, np.array(weights))

    def amounts(self, table: LatencyTable, masks: Sequence[Masks]) -> Vector:
        """What the terms are multiplied with, shape (masks, 4)."""
        rows = []
        for cut in masks:
            counts = Listing()
            parts = Parts(table.sites, table.stack, self.graph, counts)
            rows.append(parts.amounts(counts.kept(cut)))
        return np.array(rows)

    def whole(self, masks: Sequence[Masks]) -> tuple[list[Masks], Vector]:
        """The masks that could be cut, and the median milliseconds under each, side by side."""
        models, inputs = {0: self.model}, {0: self.inputs}
        for number, cut in enumerate(masks[1:], 1):
            plan = plan_keeping(self.graph, cut)
            try:
                models[number] = prune(self.model, plan)
            except SurgeryError:
                continue
            inputs[number] = cut_inputs(self.model, self.inputs, plan)
        with ExitStack() as stack:
            calls = {}
            for number, copy in models.items():
                call = prepared(copy, inputs[number], self.backend, self.place, f"copy {number}")
                calls[str(number)] = stack.enter_context(call)
            found = timed(calls, repeats=RUN_ROUNDS, budget_seconds=RUN_SECONDS, warmup=2)
        return [masks[n] for n in models], np.array([found[str(n)].median_ms for n in models])


def random_cuts(graph: ChannelGraph, shares: Sequence[tuple[float, float]]) -> Iterator[Masks]:
    """For each (least, most), masks that take such shares of every group, units by chance.

    There are none for a graph of which nothing can be cut.
    """
    generator = np.random.default_rng(0)
    groups = {
        n: group.size for n, group in enumerate(graph.groups) if group.prunable and group.size > 1
    }
    if not groups:
        return
    for least, most in shares:
        masks = {}
        for number, size in groups.items():
            keep = np.ones(size, dtype=bool)
            gone = min(size - 1, int(size * generator.uniform(least, most)))
            keep[generator.permutation(size)[:gone]] = False
            masks[number] = keep
        yield masks


def chosen_cuts(
    model: nn.Module, graph: ChannelGraph, table: LatencyTable, shares: Sequence[float]
) -> Iterator[Masks]:
    """Masks that cut these shares of the latency by ``table``, as `netslim.select` does, by l2."""
    try:
        scores = score(graph, model, "l2")
    except (ArgumentError, PlanError):  # nothing that l2 can score
        return
    for share in shares:
        try:
            plan = select(
                graph, scores, Budget(cut_latency=share), latency=table, allocation="cost"
            )
        except (ArgumentError, PlanError):  # so much cannot go
            continue
        yield {
            graph.number(name): np.isin(np.arange(cut.size), cut.kept)
            for name, cut in plan.groups.items()
        }


def fit(amounts: Vector, ms: Vector, weights: Vector) -> tuple[Terms, float]:
    """The terms, none negative, with the smallest relative errors; and how far they err.

    That is the largest error of a run that the fit did not see: each run, but for the uncut one,
    is left out once and predicted by the fit to the others. A fit's own errors would say how well
    four numbers bend to some ten, not what a promise is worth.

    Args:
        amounts: shape (runs, 4): layers in ms, bytes, parameters, 1.
        ms: measured, shape (runs,).
        weights: of the runs, shape (runs,).
    """
    terms = _least_squares(amounts, ms, weights)
    errors = np.abs(amounts @ terms / ms - 1)
    if len(ms) > amounts.shape[1]:  # the first run is the uncut network, which is always measured
        for left in range(1, len(ms)):
            kept = np.arange(len(ms)) != left
            others = _least_squares(amounts[kept], ms[kept], weights[kept])
            errors[left] = abs(amounts[left] @ others / ms[left] - 1)
    return Terms(*terms.tolist()), float(errors.max())


def _least_squares(amounts: Vector, ms: Vector, weights: Vector) -> Vector:
    """Non-negative least squares of relative errors.

    With four terms there are 15 sets of them that may be above 0. Each is fitted without a bound,
    and the best of those that came out without a negative one is the answer, for the best fit with
    bounds is the unbounded one of those terms that it does not hold at 0. Of sets that fit alike
    the smaller wins: that is why a larger one must be better by more than rounding.
    """
    # Bytes run to 1e8 and the constant is 1: brought to one scale, lstsq drops none as negligible.
    scale = np.maximum(amounts.max(axis=0), 1e-30)
    rows = amounts / scale / ms[:, None] * weights[:, None]
    best, found = np.inf, np.zeros(amounts.shape[1])
    for size in range(1, min(amounts.shape) + 1):
        for chosen in map(list, combinations(range(amounts.shape[1]), size)):
            terms = np.linalg.lstsq(rows[:, chosen], weights, rcond=None)[0]
            residual = float(np.square(rows[:, chosen] @ terms - weights).sum())
            if (terms >= 0).all() and residual < best * (1 - 1e-6):
                best, found = residual, np.zeros(amounts.shape[1])
                found[chosen] = terms
    fitted: Vector = found / scale
    return fitted


def _about(graph: ChannelGraph, inputs: Any, backend: str, place: torch.device) -> dict[str, Any]:
    """What a table holds for, and what it is kept under."""
    packages = ["netslim"]
    if in_onnxruntime(backend):
        packages.append("onnxruntime")
    return {
        "backend": backend,
        "device": str(place),
        "threads": torch.get_num_threads(),
        "inputs": tuple(tuple(tensor.shape) for tensor in tensors_of(inputs)),
        "fingerprint": graph.fingerprint,
        "machine": machine(place),
        "versions": {"torch": torch.__version__} | {p: v for p in packages if (v := _version(p))},
    }


def machine(place: torch.device) -> dict[str, Any]:
    """Processor, cores, accelerator and operating system."""
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    if place.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(place)
    return found


def processor() -> str:
    """What the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


__all__ = ["latency_table"]
