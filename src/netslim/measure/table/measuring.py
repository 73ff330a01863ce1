"""Measuring a latency table: kernels alone, then whole networks, then how the one adds up to the
other.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from netslim._support import expect, using_threads
from netslim.errors import ArgumentError, PlanError, SurgeryError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.wrapping import bare, duplicate
from netslim.measure.backends import Backend, home, prepared, usable
from netslim.measure.latency import timed
from netslim.measure.table.cache import cached
from netslim.measure.table.curves import Vector, points, probes
from netslim.measure.table.kernels import Kernel, Values, kernels_of, observe, rate
from netslim.measure.table.latency_table import (
    LatencyTable,
    Listing,
    Measured,
    Parts,
    Run,
    Site,
    Terms,
    fixed_size,
)
from netslim.measure.table.onnx_kernels import onnx_kernel
from netslim.models.onnx_session import Session
from netslim.selection.criteria.scoring import score
from netslim.selection.options import Budget
from netslim.selection.select import select
from netslim.surgery.plan_of_units import resolve
from netslim.surgery.prune import prune

Masks = Mapping[int, Vector]
Progress = Callable[[str, int, int], object]

KERNEL_ROUNDS, KERNEL_SECONDS = 7, 0.3
RUN_ROUNDS, RUN_SECONDS = 21, 15.0
UNCUT_WEIGHT = (
    2.0  # shares of latency are relative to the uncut network, so it counts for more in the fit
)
# Shares of the channels that go, (least, most) for each group of a copy. Exporting and compiling
# are slow.
_CUTS = (
    (0.15, 0.15),
    (0.3, 0.3),
    (0.5, 0.5),
    (0.7, 0.7),
    (0.0, 0.5),
    (0.2, 0.8),
    (0.0, 0.9),
    (0.3, 0.95),
)
_FEW_CUTS = ((0.2, 0.2), (0.5, 0.5), (0.0, 0.5), (0.0, 0.9), (0.3, 0.9))
# Shares of the latency that go by choice: what is asked of a table later is like these, and unlike
# what chance cuts.
_AIMS = ((0.2, 0.4, 0.6), (0.3, 0.4, 0.5))  # the second time with what the first has taught
_FEW_AIMS = ((0.2, 0.4, 0.6),)
AIM_WEIGHT = 2.0


def latency_table(
    model: nn.Module,
    graph: ChannelGraph,
    example_inputs: Any,
    *,
    backend: Backend = "eager",
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
    """
    if backend not in get_args(Backend):
        raise ArgumentError(
            f"there is no backend {backend!r}; choose one of {', '.join(get_args(Backend))}"
        )
    model = bare(model, ArgumentError, call="latency_table(model, graph, example_inputs)")
    expect(graph, ChannelGraph, "graph", "latency_table(model, graph, example_inputs)")
    graph.check(model)
    place = home(model, example_inputs) if device is None else usable(device)
    with using_threads(threads):
        about = _about(graph, example_inputs, backend, place)

        def measure() -> LatencyTable:
            there, inputs = _moved(model, example_inputs, place)
            return _Measurement(there, graph, inputs, backend, place, progress or _silent).table(
                about
            )

        return cached(about, cache, measure)


def _silent(what: str, done: int, total: int) -> None:
    pass


def _tensors(inputs: Any) -> list[Tensor]:
    return [value for value in tree_leaves(inputs) if isinstance(value, Tensor)]


def _moved(model: nn.Module, inputs: Any, place: torch.device) -> tuple[nn.Module, Any]:
    if any(t.device != place for t in (*model.parameters(), *model.buffers())):
        model = duplicate(model).to(place)
    return model, tree_map(
        lambda value: value.to(place) if isinstance(value, Tensor) else value, inputs
    )


class _Measurement:
    """The measurement of one table."""

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, inputs: Any, backend: Backend, place: torch.device,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.model, self.graph, self.inputs, self.backend, self.place = (
            model,
            graph,
            inputs,
            backend,
            place,
        )
        self.progress = progress
        self.values = Values(place)

    def table(self, about: Mapping[str, Any]) -> LatencyTable:
        seen = observe(self.model, self.inputs, self._synchronise, runs=3)
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
        for kernel, cost in zip(found, self.graph.costs, strict=True):
            first = len(cost.factors) - 2
            axes = (
                ()
                if kernel is None
                else tuple(first + axis for axis in (0, 1) if kernel.live[axis])
            )
            number = None if kernel is None else different.index(kernel)
            slow = ms_per_mac if kernel is None else 0.0
            yield Site(cost.module, cost.operator, fixed_size(cost, axes), axes, number, slow)

    def alone(self, kernel: Kernel) -> Measured:
        """Time a kernel at its probes, with nothing around it."""
        full = (kernel.depth, kernel.width)
        live = [axis for axis in (0, 1) if kernel.live[axis]]
        axes = [probes(full[axis], kernel.step(axis)) for axis in live]
        calls = {}
        for point in points(axes):
            at = dict(zip(live, point, strict=True))
            calls[point] = self.call(kernel, at.get(0, full[0]), at.get(1, full[1]))
        found = timed(
            {str(point): call for point, call in calls.items()},
            repeats=KERNEL_ROUNDS, budget_seconds=KERNEL_SECONDS, warmup=1, device=self.place,
        )  # fmt: skip
        # What disturbs so short a call only ever makes it longer: the lower quartile is the
        # steadier figure.
        ms = tuple((point, found[str(point)].low_ms) for point in calls)
        return Measured(str(kernel), tuple(map(tuple, axes)), ms)

    def call(self, kernel: Kernel, depth: int, width: int) -> Callable[[], object]:
        if self.backend != "onnxruntime":
            return kernel.call(depth, width, self.values)
        shape, weight_shape, _ = kernel.shapes(depth, width)
        weight = self.values.take(weight_shape, kernel.dtype)
        bias = self.values.take((width,), kernel.dtype) if kernel.bias else None
        session = Session(onnx_kernel(kernel, depth, width, weight, bias), self.place)
        return session.bound(self.values.take(shape, kernel.dtype))

    def calibrated(self, table: LatencyTable) -> tuple[Terms, tuple[Run, ...], float]:
        """Time whole networks and fit the terms to them: cut by chance, and then by choice with
        what was learnt.
        """
        few = self.backend != "eager"
        masks, times = self.whole([{}, *random_cuts(self.graph, _FEW_CUTS if few else _CUTS)])
        weights = [UNCUT_WEIGHT, *[1.0] * (len(masks) - 1)]
        terms, error = self.fitted(table, masks, times, weights)
        for shares in _FEW_AIMS if few else _AIMS:
            aimed = list(chosen_cuts(self.model, self.graph, replace(table, terms=terms), shares))
            again, found = self.whole([{}, *aimed])
            masks = [*masks, *again[1:]]
            times = np.concatenate(
                [times, found[1:] * (times[0] / found[0])]
            )  # as fast as the machine was at first
            weights += [AIM_WEIGHT] * (len(again) - 1)
            terms, error = self.fitted(table, masks, times, weights)
        amounts = np.array([_amounts(table, self.graph, m) for m in masks])
        predicted = amounts @ np.array([terms.layers, terms.bytes, terms.params, terms.constant])
        macs = [self.graph.macs(m) / max(1, self.graph.macs()) for m in masks]
        return terms, tuple(map(Run, macs, times.tolist(), predicted.tolist())), error

    def fitted(
        self, table: LatencyTable, masks: Sequence[Masks], times: Vector, weights: Sequence[float]
    ) -> tuple[Terms, float]:
        """The terms for these runs, and the largest error of a run left out."""
        return fit(
            np.array([_amounts(table, self.graph, m) for m in masks]), times, np.array(weights)
        )

    def whole(self, masks: Sequence[Masks]) -> tuple[list[Masks], Vector]:
        """The masks that could be cut, and the median milliseconds of the network under each, timed
        side by side.
        """
        models = {0: self.model}
        for number, cut in enumerate(masks[1:], 1):
            try:
                models[number] = prune(self.model, resolve(self.graph, cut))
            except SurgeryError:
                continue
        with ExitStack() as stack:
            calls = {
                str(n): stack.enter_context(
                    prepared(m, self.inputs, self.backend, self.place, f"copy {n}")
                )
                for n, m in models.items()
            }
            found = timed(calls, repeats=RUN_ROUNDS, budget_seconds=RUN_SECONDS, warmup=2)
        return [masks[n] for n in models], np.array([found[str(n)].median_ms for n in models])

    def _synchronise(self) -> None:
        if self.place.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(self.place)


def _amounts(
    table: LatencyTable, graph: ChannelGraph, masks: Masks
) -> tuple[float, float, float, float]:
    counts = Listing()
    parts = Parts(table.sites, table.stack, graph, counts)
    return (*parts.amounts(counts.kept(masks)), 1.0)


def random_cuts(graph: ChannelGraph, shares: Sequence[tuple[float, float]]) -> Iterator[Masks]:
    """For each (least, most) masks that take such shares out of all groups that can be cut, units
    by chance.
    """
    generator = np.random.default_rng(0)
    groups = {
        n: group.size for n, group in enumerate(graph.groups) if group.prunable and group.size > 1
    }
    for least, most in shares if groups else ():
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
    """Masks that cut these shares of the latency, by ``table``, as `netslim.select` does, with the
    criterion l2.
    """
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
    """The terms, none negative, that make the smallest relative errors; and the largest error of a
    run left out.

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
    """Non-negative least squares of relative errors: of all sets of terms the one that fits best
    with none below 0.
    """
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
    return found / scale


def _about(graph: ChannelGraph, inputs: Any, backend: str, place: torch.device) -> dict[str, Any]:
    """What a table holds for, and what it is kept under."""
    packages = ["netslim", *(["onnxruntime"] if backend == "onnxruntime" else [])]
    return {
        "backend": backend,
        "device": str(place),
        "threads": torch.get_num_threads(),
        "inputs": tuple(tuple(tensor.shape) for tensor in _tensors(inputs)),
        "fingerprint": graph.fingerprint,
        "machine": machine(place),
        "versions": {"torch": torch.__version__} | {p: v for p in packages if (v := _version(p))},
    }


def machine(place: torch.device) -> dict[str, Any]:
    """Processor, cores, accelerator and operating system."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    return found | ({"gpu": torch.cuda.get_device_name(place)} if place.type == "cuda" else {})


def _processor() -> str:
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
