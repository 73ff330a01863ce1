"""`LatencyTable`: milliseconds of a network at other widths, from its layers and cut copies.

The prediction is linear in four quantities: the time of the layers alone, each from its own
measured surface; the bytes that operators put out, for normalisation, activations and everything
else that touches them; the parameters, which a whole network reads from memory while a layer alone
has them in its cache; and a constant, for what each operator costs however small it is. Their
weights are fitted to whole networks that were cut and timed.

A table holds no graph and no model, so it can be kept in a file and used on another machine. It is
bound to a graph when it is asked (`Parts`): the sites must be the graph's costs, one by one, and a
graph that was cut since fits as well as the one that was measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netslim._support import (
    brief,
    checks_calls,
    is_format,
    many,
    named_file,
    parse_json,
    read_text,
    refusing,
    typed,
    write_atomic,
)
from netslim.errors import PlanError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.counts import Cost, Count
from netslim.measure.runtimes import in_onnxruntime
from netslim.measure.table.curves import Stack, Surface, Vector, points, surface_of
from netslim.selection.budget.resources import Positions, Products, Resource, Widths

FORMAT = 1
# Group number -> which of its units are kept, shape (size,).
Masks = Mapping[int, NDArray[np.bool_]]


@dataclass(frozen=True)
class Measured:
    """A kernel's milliseconds, alone, at some of its widths.

    Attributes:
        name: what it computes.
        axes: for each axis the widths that were measured along it, rising.
        ms: for each point measured its milliseconds: ((width, ...), ms).
    """

    name: str
    axes: tuple[tuple[int, ...], ...]
    ms: tuple[tuple[tuple[int, ...], float], ...]

    def surface(self) -> Surface:
        """Milliseconds at any widths."""
        return surface_of([list(axis) for axis in self.axes], dict(self.ms))


@dataclass(frozen=True)
class Site:
    """One operator call that costs MACs.

    Attributes:
        module, operator: which call it is, as in the graph's costs.
        size: the product of the cost's factors that are no axis; the same in any network that the
            table fits.
        axes: positions of the other factors in the cost, in the order of the kernel's axes.
        kernel: number of the kernel; None where the call cannot be measured alone.
        ms_per_mac: for a call without a kernel.
    """

    module: str
    operator: str
    size: int
    axes: tuple[int, ...]
    kernel: int | None
    ms_per_mac: float = 0.0


@dataclass(frozen=True)
class Run:
    """A cut copy of the network, timed whole: share of the MACs, ms measured and predicted.

    Example:
        >>> from netslim.measure.table import Run
        >>> half = Run(macs=0.5, measured_ms=4.0, predicted_ms=4.2)
        >>> round(half.predicted_ms / half.measured_ms - 1, 2)
        0.05
    """

    macs: float
    measured_ms: float
    predicted_ms: float


@dataclass(frozen=True)
class Terms:
    """Milliseconds for each ms of layers alone, byte put out, parameter; and those of any call.

    Example:
        >>> from netslim.measure.table import Terms
        >>> terms = Terms(layers=0.9, constant=0.2)  # layers of 4 ms alone take, as a network:
        >>> round(terms.layers * 4.0 + terms.constant, 3)
        3.8
    """

    layers: float = 1.0
    bytes: float = 0.0
    params: float = 0.0
    constant: float = 0.0


@checks_calls
@dataclass(frozen=True, eq=False)
class LatencyTable:
    """What a network takes at any width on one machine, in ms a call (the whole example batch).

    Made by `netslim.latency_table`; an input to `netslim.select`, also on another machine than the
    one measured.

    Attributes:
        backend: ``"eager"``, ``"compile"``, ``"onnxruntime"`` or ``"onnxruntime-int8"``.
        device: where it was measured.
        threads: CPU threads.
        inputs: shapes of the example inputs.
        fingerprint: of the architecture that was measured.
        machine: processor, cores, GPU, operating system.
        versions: of torch, netslim and what runs the backend.
        date: when it was measured.
        sites: the operator calls that cost MACs, in order.
        kernels: what they compute, measured alone.
        terms: how the parts add up.
        runs: the whole networks that the terms were fitted to, the uncut one first.
        error: the largest relative error of a run that was left out of the fit; of the fit itself
            when there were too few runs.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> table = netslim.latency_table(model, graph, images, cache=False)
        >>> table.save("table.json")
        >>> again = netslim.measure.LatencyTable.load("table.json")
        >>> round(again.ms(graph) / table.ms(graph), 6)
        1.0
    """

    backend: str
    device: str
    threads: int
    inputs: tuple[tuple[int, ...], ...]
    fingerprint: str
    sites: tuple[Site, ...]
    kernels: tuple[Measured, ...]
    terms: Terms = Terms()
    runs: tuple[Run, ...] = ()
    error: float = 0.0
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""

    unit = "ms"

    @property
    def steps(self) -> tuple[int, ...]:
        """What widths are best a multiple of, where only time counts; the best first.

        ONNX Runtime's blocked layout (NCHWc) takes 16 channels at a time with AVX-512, and 8 with
        AVX2; a depthwise layer or a sum of another width falls out of it, and what goes in and out
        is reordered. Timed alone each layer is reordered, so that its own curve does not tell.
        In int8 vector instructions take as many. Of MobileNetV2 53 % of the multiply-accumulates
        stay at 60 % of the time in float, and 38 % in int8; in any widths 30 and 13 %.
        """
        if in_onnxruntime(self.backend) and self.device == "cpu":
            return (16, 8)
        return ()

    def resource(self, graph: ChannelGraph, widths: Widths) -> Resource:
        """Milliseconds as a function of the counts, for `netslim.select`.

        Args:
            graph: of the network that was measured, or of one that was cut out of it.
            widths: numbers the graph's counts.

        Raises:
            PlanError: the graph has other operators, or was traced with other input sizes.
        """
        return _Latency(self, graph, widths)

    def ms(self, graph: ChannelGraph, masks: Masks | None = None) -> float:
        """Predicted milliseconds when group ``g`` of the graph keeps the units of ``masks[g]``.

        Raises:
            PlanError: as for `resource`.
        """
        counts = Listing()
        resource = _Latency(self, graph, counts)
        return resource.total(counts.kept(graph.with_joined(masks or {})))

    def __str__(self) -> str:
        where = self.device
        if where == "cpu":
            where = f"cpu, {many(self.threads, 'thread')}"
        shapes = " ".join("x".join(map(str, shape)) for shape in self.inputs)
        lines = [
            f"{self.backend} on {where}, inputs {shapes}, {self.date}",
            f"{len(self.sites)} operators, {len(self.kernels)} kernels; predictions err by up "
            f"to {self.error:.1%}",
        ]
        for run in self.runs:
            lines.append(
                f"  {run.macs:4.0%} of the MACs: {run.measured_ms:.4g} ms, "
                f"predicted {run.predicted_ms:.4g}"
            )
        return "\n".join(lines)

    @cached_property
    def stack(self) -> Stack:
        """The surfaces of the sites that have a kernel, in order."""
        surfaces = [kernel.surface() for kernel in self.kernels]
        return Stack([surfaces[site.kernel] for site in self.sites if site.kernel is not None])

    def to_json(self) -> str:
        """The table as JSON; times are in milliseconds."""
        plain = {
            **_HEAD,
            **{name: getattr(self, name) for name in _PLAIN},
            "terms": vars(self.terms),
            "runs": [vars(run) for run in self.runs],
            "sites": [vars(site) for site in self.sites],
            "kernels": [vars(kernel) for kernel in self.kernels],
        }
        return json.dumps(plain, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes | bytearray) -> LatencyTable:
        """The table that `to_json` wrote.

        Raises:
            PlanError: it is damaged, or of another version.
        """
        with refusing(PlanError, "the latency table is damaged", "measure it anew"):
            content = parse_json(text)
            if not _is_ours(content):
                raise PlanError(
                    f"it is not a latency table of this version of netslim (format {FORMAT}): "
                    "measure anew"
                )
            plain = {name: value for name, value in content.items() if name not in _HEAD}
            # What is left out is no default: it was measured.
            found: LatencyTable = typed(
                cls, dict.fromkeys(item.name for item in fields(cls)) | plain
            )
            _check_kernels(found)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to a JSON file, as a whole or not at all.

        Raises:
            ArgumentError: the path is empty or a folder.
            OSError: the file cannot be written.
        """
        path = named_file(path, "path")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """Read a table from the file that `save` wrote.

        Raises:
            PlanError: there is no such file, it is damaged, or of another version.
        """
        with refusing(PlanError, f"no latency table can be read from {path}", "measure one"):
            text = read_text(path)
        try:
            return cls.from_json(text)
        except PlanError as problem:
            raise PlanError(f"{path}: {problem}") from None


_HEAD = {"format": FORMAT, "kind": "netslim latency table", "unit": "ms"}
_LONGEST, _WIDEST = 1e9, 2**31  # milliseconds of a kernel, and entries of an axis
_PLAIN = (
    "backend", "device", "threads", "inputs", "fingerprint", "machine", "versions", "date", "error",
)  # fmt: skip


def _is_ours(content: Any) -> bool:
    if not isinstance(content, dict) or content.get("kind") != _HEAD["kind"]:
        return False
    return is_format(content.get("format"), FORMAT)


def _check_kernels(table: LatencyTable) -> None:
    """Refuse kernels that no surface can be laid through, and sites that do not fit theirs."""
    for kernel in table.kernels:
        _check_times(kernel)
    for site in table.sites:
        if site.kernel is None:
            continue
        if not 0 <= site.kernel < len(table.kernels):
            raise ValueError(f"there is no kernel {site.kernel}")
        if len(table.kernels[site.kernel].axes) != len(site.axes):
            raise ValueError(f"the site {site.module!r} does not fit its kernel")


def _check_times(kernel: Measured) -> None:
    what = f"the kernel {brief(kernel.name)}"
    if not all(0 < ms < _LONGEST for _, ms in kernel.ms):
        raise ValueError(f"a time of {what} is not positive, or beyond all sense")
    if len(kernel.axes) > 2 or not all(kernel.axes):
        raise ValueError(
            f"{what} has {len(kernel.axes)} axes; it has at most two, none of them empty"
        )
    for axis in kernel.axes:
        if not 1 <= axis[0] <= axis[-1] <= _WIDEST or list(axis) != sorted(set(axis)):
            raise ValueError(f"the widths of {what} do not rise")
    axes = [list(axis) for axis in kernel.axes]
    if missing := set(points(axes)) - {point for point, _ in kernel.ms}:
        raise ValueError(f"{what} was not measured at {min(missing)}")


class Listing:
    """Gives counts their positions, as `Widths` does, but for any masks, one cut at a time."""

    def __init__(self) -> None:
        self.held: list[Count] = []

    def index(self, count: Count) -> int:
        """Position of a count in what `kept` gives."""
        self.held.append(count)
        return len(self.held) - 1

    def kept(self, masks: Masks) -> Vector:
        """All counts under the masks."""
        return np.array([count.kept(masks) for count in self.held], dtype=float)


class _Latency:
    """A table bound to a graph and to positions of its counts: a `Resource`."""

    def __init__(self, table: LatencyTable, graph: ChannelGraph, widths: Positions) -> None:
        self.parts = Parts(table.sites, table.stack, graph, widths)
        self.terms = table.terms

    def total(self, counts: Vector) -> float:
        """Milliseconds."""
        t = self.terms
        layers, output, params, calls = self.parts.amounts(counts)
        return t.layers * layers + t.bytes * output + t.params * params + t.constant * calls

    def slopes(self, counts: Vector) -> Vector:
        """Milliseconds saved by each entry of a count; steps are smoothed over some blocks."""
        found: Vector = self.terms.layers * self.parts.layer_slopes(counts)
        if self.terms.bytes:
            found += self.terms.bytes * self.parts.output.slopes(counts)
        if self.terms.params:
            found += self.terms.params * self.parts.params.slopes(counts)
        if self.terms.constant and self.parts.gates.size:
            found += self.terms.constant * self.parts.calls.slopes(counts)
        return found


class Parts:
    """The quantities that latency is linear in, for one graph.

    Raises:
        PlanError: the graph has other operators than the sites, or was traced with other input
            sizes.
    """

    def __init__(
        self, sites: Sequence[Site], stack: Stack, graph: ChannelGraph, widths: Positions
    ) -> None:
        _check(sites, graph)
        self.stack = stack
        one = widths.index(Count(1, ()))
        # A stack takes two widths for each surface; the constant 1 stands where there is no axis.
        rows, rest, rates, gates = [], [], [], []
        for site, cost in zip(sites, graph.costs, strict=True):
            if site.kernel is None:
                rest.append(cost.terms)
                rates.append(site.ms_per_mac)
            else:
                found = [widths.index(cost.factors[axis]) for axis in site.axes]
                rows.append([*found, one, one][:2])
                gates.append([widths.index(gate) for gate in cost.gates])
        self.rows = np.array(rows, dtype=np.int64).reshape(len(rows), 2)
        most = max(map(len, gates), default=0)
        filled = [[*own, *[one] * (most - len(own))] for own in gates]
        self.gates = np.array(filled, dtype=np.int64).reshape(len(rows), most)
        self.rest = Products(widths, rest, rates)
        # What is written takes time by its bytes. A view writes nothing, and what is computed from
        # parameters alone, as a standardised weight, goes by their number.
        put = [o for o in graph.outputs if o.kind != "view" and not o.constant]
        self.output = Products(widths, [o.terms for o in put], [float(o.itemsize) for o in put])
        self.params = Products(widths, [cost.terms for cost in graph.parameters.values()])
        # What each operator costs, however small it is, goes with the operators of a block.
        self.calls = Products(widths, [o.gates for o in put], [1 / max(1, len(put))] * len(put))

    def amounts(self, counts: Vector) -> tuple[float, float, float, float]:
        """Milliseconds of the layers alone, bytes put out, parameters, and the share of the
        operators that run.
        """
        times = self.stack.times(counts[self.rows]) * counts[self.gates].prod(axis=1)
        layers = float(times.sum()) + self.rest.total(counts)
        return layers, self.output.total(counts), self.params.total(counts), self._running(counts)

    def _running(self, counts: Vector) -> float:
        if not self.gates.size:
            return 1.0
        return self.calls.total(counts)

    def layer_slopes(self, counts: Vector) -> Vector:
        """The derivative of the layers' milliseconds by each count."""
        rows = self.rows[:, : self.stack.axes]
        open_ = counts[self.gates].prod(axis=1)
        slopes = self.stack.slopes(counts[self.rows]) * open_[:, None]
        # One count may be the width of many sites, and their slopes add up.
        found = np.bincount(rows.ravel(), weights=slopes.ravel(), minlength=len(counts))
        rest: Vector = self.rest.slopes(counts)
        return found + rest + self._gate_slopes(counts)

    def _gate_slopes(self, counts: Vector) -> Vector:
        """What layers take that go with a block, for each block."""
        found = np.zeros(len(counts))
        if not self.gates.size:
            return found
        times, values = self.stack.times(counts[self.rows]), counts[self.gates]
        for column in range(values.shape[1]):
            others = np.delete(values, column, axis=1).prod(axis=1) * times
            found += np.bincount(self.gates[:, column], weights=others, minlength=len(counts))
        return found


def _check(sites: Sequence[Site], graph: ChannelGraph) -> None:
    ours = [(site.module, site.operator) for site in sites]
    theirs = [(cost.module, cost.operator) for cost in graph.costs]
    end = ("nothing", "the end")
    for number, (mine, other) in enumerate(zip_longest(ours, theirs, fillvalue=end)):
        if mine != other:
            raise PlanError(
                f"the latency table is of another network: its operator {number} is "
                f"{mine[0]!r} ({mine[1]}), the graph's is {other[0]!r} ({other[1]}); measure one "
                "for this network with netslim.latency_table"
            )
    for site, cost in zip(sites, graph.costs, strict=True):
        if site.kernel is None:
            continue
        there = all(0 <= axis < len(cost.factors) for axis in site.axes)
        if not there or fixed_size(cost, site.axes) != site.size:
            raise PlanError(
                f"the latency table was measured at other input sizes: {site.module!r} "
                f"({site.operator}) differs; trace with the example inputs that the table was "
                "measured with, or measure a table for these"
            )


def fixed_size(cost: Cost, axes: Sequence[int]) -> int:
    """The product of a cost's factors, all entries kept, that are no axis."""
    size = 1
    for position, factor in enumerate(cost.factors):
        if position not in axes:
            size *= factor.kept({})
    return size


__all__ = ["LatencyTable", "Listing", "Masks", "Measured", "Parts", "Run", "Site", "Terms"]
