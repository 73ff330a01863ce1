"""How much of a resource is left at other widths, cheap enough to be asked thousands of times.

Why a budget is met exactly without building a smaller network: while the model ran for the trace,
every operator left what it costs as a product of *counts*, for a convolution ``pixels * out * in *
taps`` (`netslim.graph.Count`), and a count says how many entries of its dimension each unit of each
group holds. Cutting changes nothing but counts. So a resource is a sum of products, the same before
and after the cut, and only the counts have to be put in anew: `netslim.cost` of the smaller network
finds the very same number.

Units of a group go in a fixed order, so the number of those that went tells everything: a count is
looked up in a table by that number (`Widths`), and all counts of a network are one `bincount`. A
flattened map, of which a channel is 49 entries, or a concatenation, where a count depends on
several groups, need no care of their own: a table has steps of 49, a count adds up several tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, runtime_checkable

import numpy as np

from netslim._support import checks_calls, nearest
from netslim.errors import ArgumentError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.counts import Count
from netslim.graph.memory import Memory

Vector = np.ndarray


class Resource(Protocol):
    """What a budget limits, as a function of the counts."""

    def total(self, counts: Vector) -> float:
        """How much is left; ``counts`` from `Widths.counts`."""
        ...

    def slopes(self, counts: Vector) -> Vector:
        """Its derivative by each count."""
        ...


class Positions(Protocol):
    """What gives each count a position in the vector ``counts``: `Widths`, for one."""

    def index(self, count: Count) -> int:
        """Its position."""
        ...


@runtime_checkable
class Stepped(Protocol):
    """A latency source that knows which widths are fast."""

    @property
    def steps(self) -> tuple[int, ...]:
        """What widths are best a multiple of, the best first; empty where all are alike."""
        ...


class LatencySource(Protocol):
    """What knows the latency of a network at other widths: `netslim.measure.LatencyTable`."""

    def resource(self, graph: ChannelGraph, widths: Widths) -> Resource:
        """Milliseconds, as a function of the counts."""
        ...


class Widths:
    """Turns the number of units that went from each group into all counts of a graph.

    Args:
        graph: whose groups and counts they are.
        orders: group number -> its units, shape (size,), in the order in which they go. Other
            groups stay whole.
    """

    def __init__(self, graph: ChannelGraph, orders: Mapping[int, Vector]) -> None:
        self.graph, self.orders = graph, orders
        self._constants: list[float] = []
        # Counts hold arrays, so they are told apart by identity: operators of one dimension share
        # one. Constants are told apart by their value.
        self._numbers: dict[object, int] = {}
        self._held: list[Count] = []  # so that their ids stay theirs
        self._tables: list[Vector] = []
        self._places: dict[tuple[int, bytes], int] = {}  # (group, entries) -> start of its table
        self._end = 0
        self._rows: list[tuple[int, int, int]] = []  # (count, group, start of its table)
        self._products: list[tuple[int, int, int]] = []  # (count, the two that it is made of)
        self._arrays: tuple[Vector, ...] | None = None

    def index(self, count: Count) -> int:
        """Position of a count in the vector that `counts` gives."""
        key: object = id(count)
        if not count.groups:
            key = "constant", count.kept({})
        if key not in self._numbers:
            self._held.append(count)
            if count.times is None or not count.groups:
                self._numbers[key] = self._linear(count)
            else:
                # Its factors stand before it, so that they are known when it is worked out.
                one, other = (self.index(part) for part in (count.linear[0], count.times))
                self._numbers[key] = len(self._constants)
                self._constants.append(0)
                self._products.append((self._numbers[key], one, other))
            self._arrays = None
        return self._numbers[key]

    def _linear(self, count: Count) -> int:
        """The position of a count that is a sum, at the end."""
        number = len(self._constants)
        if not count.groups:
            self._constants.append(count.kept({}))
            return number
        self._constants.append(count.constant)
        for group, entries in count.shares:
            if group in self.orders:
                self._rows.append((number, group, self._table(group, entries)))
            else:
                self._constants[number] += int(entries.sum())
        return number

    def _table(self, group: int, entries: Vector) -> int:
        """Where the entries that are left lie, by the number of units that went."""
        key = (group, entries.tobytes())
        if key not in self._places:
            # Three channels of a map of 7 x 7 places, flattened, leave 147, 98, 49 or 0 columns.
            gone = np.cumsum(entries[self.orders[group]], dtype=np.float64)
            whole = gone[-1]
            # The end stands twice, so that `savings` of a group that went entirely are 0.
            self._tables.append(np.concatenate([[whole], whole - gone, [0.0]]))
            self._places[key], self._end = self._end, self._end + len(gone) + 2
        return self._places[key]

    def counts(self, removed: Vector) -> Vector:
        """All counts, shape (counts,), from how many units went of each group, shape (groups,)."""
        constants, rows, groups, starts, flat = self._built()
        removed = self._with_joined(removed)
        # A row is one group's share in one count. Counts that depend on several groups, as behind a
        # concatenation, have several rows, which `bincount` adds up.
        left = flat[starts + removed[groups]]
        found: Vector = constants + np.bincount(rows, weights=left, minlength=len(constants))
        for number, one, other in self._products:
            found[number] = found[one] * found[other]
        return found

    def savings(self, slopes: Vector, removed: Vector) -> Vector:
        """What the next unit of each group saves, shape (groups,), from slopes by the counts."""
        _, rows, groups, starts, flat = self._built()
        slopes = self._through_products(slopes, removed)
        removed = self._with_joined(removed)
        # The chain rule: a unit takes ``flat[at] - flat[at + 1]`` entries off each count that its
        # group has a share in, and each entry saves the slope of its count.
        at = starts + removed[groups]
        left = flat[at]
        saved: Vector = np.bincount(
            groups,
            weights=slopes[rows] * (left - flat[at + 1]),
            minlength=len(self.graph.groups),
        )
        for block, numbers in self.graph.joined.items():  # it takes all that is left of its own
            own = np.isin(groups, numbers)
            saved[block] += (slopes[rows[own]] * left[own]).sum()
        return saved

    def _with_joined(self, removed: Vector) -> Vector:
        """How many went, where the channels of layers that went as blocks did, too."""
        for block, numbers in self.graph.joined.items():
            if removed[block]:
                removed = removed.copy()
                removed[list(numbers)] = [self.graph.groups[n].size for n in numbers]
        return removed

    def _through_products(self, slopes: Vector, removed: Vector) -> Vector:
        """Slopes by the counts that are sums alone."""
        if not self._products:
            return slopes
        slopes, counts = slopes.copy(), self.counts(removed)
        for number, one, other in reversed(self._products):
            slopes[one] += slopes[number] * counts[other]
            slopes[other] += slopes[number] * counts[one]
        return slopes

    def groups_of(self, number: int) -> list[int]:
        """The groups that a count depends on."""
        for product, one, other in self._products:
            if product == number:
                return [*self.groups_of(one), *self.groups_of(other)]
        found = [group for row, group, _ in self._rows if row == number]
        joined = self.graph.joined.items()
        return found + [block for block, numbers in joined if not set(found).isdisjoint(numbers)]

    def _built(self) -> tuple[Vector, ...]:
        if self._arrays is None:
            rows = np.array(self._rows, dtype=np.int64).reshape(-1, 3).T
            flat = np.concatenate(self._tables or [np.zeros(1)])
            self._arrays = (np.array(self._constants, dtype=np.float64), *rows, flat)
        return self._arrays


class Terms:
    """Products of counts, one by one.

    Args:
        widths: which counts there are.
        terms: the factors of each product.
    """

    def __init__(self, widths: Positions, terms: Sequence[Sequence[Count]]) -> None:
        one = widths.index(Count(1, ()))  # fills up products of fewer factors than the longest
        rows = [[widths.index(factor) for factor in factors] for factors in terms]
        most = max(map(len, rows), default=0)
        table = np.array([[*row, *[one] * (most - len(row))] for row in rows], dtype=np.int64)
        self.factors = table.reshape(len(rows), most)

    def values(self, counts: Vector) -> Vector:
        """The products, shape (terms,)."""
        products: Vector = counts[self.factors].prod(axis=1)
        return products

    def slopes(self, counts: Vector, weights: Vector) -> Vector:
        """The derivative of their weighted sum by each count.

        By the product rule, factor after factor: the product of the others. (Not the product over
        the factor: a count may be 0.)
        """
        found = np.zeros(len(counts))
        values = counts[self.factors]
        for column in range(values.shape[1]):
            others = np.delete(values, column, axis=1).prod(axis=1) * weights
            found += np.bincount(self.factors[:, column], weights=others, minlength=len(counts))
        return found


class Products:
    """A weighted sum of products of counts: parameters, multiply-accumulates, activations, ...

    Factors that no cut changes are multiplied into the weight, and products of the same factors are
    put together: of the thousands of operators of a network some dozen different products remain.

    Args:
        widths: which counts there are.
        products: the factors of each product.
        weights: what each product is multiplied with; by default 1.

    Example:
        >>> from netslim.selection.budget import Chooser, Ladder, Products
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "l1")
        >>> ladder = Ladder(Chooser(graph, scores, netslim.Limits()), fixed={})
        >>> macs = Products(ladder.widths, [cost.terms for cost in graph.costs])
        >>> macs.total(ladder.widths.counts(ladder.start)) == graph.macs()
        True
    """

    def __init__(
        self,
        widths: Positions,
        products: Sequence[Sequence[Count]],
        weights: Iterable[float] | None = None,
    ) -> None:
        merged: dict[tuple[int, ...], float] = {}
        live: dict[tuple[int, ...], list[Count]] = {}
        for factors, weight in zip(products, weights or [1.0] * len(products), strict=True):
            moving = sorted((f for f in factors if f.groups), key=id)
            fixed = prod(f.kept({}) for f in factors if not f.groups)
            # Sorted by identity, so that ``a * b`` and ``b * a`` are one product.
            key = tuple(map(id, moving))
            live[key] = moving
            merged[key] = merged.get(key, 0.0) + weight * fixed
        self.terms = Terms(widths, list(live.values()))
        self.weights = np.array(list(merged.values()))

    def total(self, counts: Vector) -> float:
        """The sum; exact, as long as it is below 2**53."""
        return float(self.terms.values(counts) @ self.weights)

    def slopes(self, counts: Vector) -> Vector:
        """Its derivative by each count."""
        return self.terms.slopes(counts, self.weights)


class Peak:
    """The most bytes that are in memory at once.

    A maximum of sums of products: each moment of the forward pass is one sum, over the blocks that
    are alive then. Its slope is that of the fullest moment, and jumps where another one takes over.

    Args:
        widths: which counts there are.
        memory: of the graph.
    """

    def __init__(self, widths: Widths, memory: Memory) -> None:
        self.terms = Terms(widths, [block.factors for block in memory.blocks])
        self.units = np.array([float(block.unit) for block in memory.blocks])
        self.moments = memory.steps * self.units

    def total(self, counts: Vector) -> float:
        """Bytes at the fullest moment."""
        if not len(self.moments):
            return 0.0
        return float((self.moments @ self.terms.values(counts)).max())

    def slopes(self, counts: Vector) -> Vector:
        """The derivative, at the fullest moment, by each count."""
        if not len(self.moments):
            return np.zeros(len(counts))
        fullest = int((self.moments @ self.terms.values(counts)).argmax())
        return self.terms.slopes(counts, self.moments[fullest])


# ---------------------------------------------------------------- the resources of budgets, by name


@dataclass(frozen=True)
class Asked:
    """What a resource is made for.

    Attributes:
        field: of `Budget`, such as ``cut_macs``: who asks, for messages.
        graph: of the network.
        widths: which counts there are.
        free: numbers of the groups whose units may go for a budget.
        latency: what knows milliseconds, if anything does.

    Example:
        >>> from netslim.selection.budget import Asked, Products, resource
        >>> @resource("operators' work", "work")  # what it is made of is asked of `asked`
        ... def made(asked: Asked) -> Products:
        ...     return Products(asked.widths, [cost.terms for cost in asked.graph.costs])
    """

    field: str
    graph: ChannelGraph
    widths: Widths
    free: Sequence[int]
    latency: LatencySource | None = None


@dataclass(frozen=True)
class Kind:
    """A resource by name: how it is made for a network, and its unit, for messages."""

    make: Callable[[Asked], Resource]
    unit: str


RESOURCES: dict[str, Kind] = {}


@checks_calls
def resource(
    unit: str, *names: str
) -> Callable[[Callable[[Asked], Resource]], Callable[[Asked], Resource]]:
    """Register what fields ``cut_NAME`` and ``max_NAME`` of a budget limit, a decorator.

    Args:
        unit: for messages, such as ``"MACs"``.
        names: one or several; by default the function's.

    Example:
        >>> from dataclasses import dataclass
        >>> from netslim.selection.budget import Products, resource
        >>> from netslim.selection.options import option
        >>> @resource("operators' work")
        ... def work(asked):
        ...     return Products(asked.widths, [cost.terms for cost in asked.graph.costs])
        >>> @dataclass(frozen=True)
        ... class MyBudget(netslim.Budget):
        ...     cut_work: float | None = option(None, "share of the work", least=0, below=1)
        >>> small = netslim.slim(model, images, budget=MyBudget(cut_work=0.5))
    """

    def register(make: Callable[[Asked], Resource]) -> Callable[[Asked], Resource]:
        for name in names or (make.__name__,):
            RESOURCES[name] = Kind(make, unit)
        return make

    return register


def kind_of(field: str) -> Kind:
    """The resource that a field of a budget limits.

    Raises:
        ArgumentError: there is none; the nearest, or all, are named.
    """
    name = field.partition("_")[2]
    if name not in RESOURCES:
        raise ArgumentError(
            f"{field} limits no resource that is known{nearest(name, RESOURCES)}; "
            "netslim.selection.budget.resource registers more"
        )
    return RESOURCES[name]


@resource("channels")
def channels(asked: Asked) -> Resource:
    """Units of the groups that no name settles."""
    groups = asked.graph.groups
    ones = {n: Count(0, ((n, np.ones(groups[n].size, dtype=np.int64)),)) for n in asked.free}
    # The channels within a block go with it; the block itself is none.
    found = [
        (ones[n], *(ones[b] for b in asked.graph.blocks_around(n) if b in ones))
        for n in asked.free
        if not groups[n].block
    ]
    return Products(asked.widths, found)


@resource("parameters")
def params(asked: Asked) -> Resource:
    """Entries of parameters."""
    return Products(asked.widths, [cost.terms for cost in asked.graph.parameters.values()])


@resource("MACs")
def macs(asked: Asked) -> Resource:
    """Multiply-accumulates of the traced call."""
    return Products(asked.widths, [cost.terms for cost in asked.graph.costs])


@resource("activations")
def activations(asked: Asked) -> Resource:
    """Elements that layers put out."""
    made = [output.terms for output in asked.graph.outputs if output.layer]
    return Products(asked.widths, made)


@resource("bytes of activations")
def activation_bytes(asked: Asked) -> Resource:
    """Bytes that layers put out."""
    made = [output for output in asked.graph.outputs if output.layer]
    return Products(asked.widths, [output.terms for output in made], [o.itemsize for o in made])


@resource("bytes of memory at the peak", "peak_memory", "peak_bytes")
def peak(asked: Asked) -> Resource:
    """Bytes that are alive at once."""
    return Peak(asked.widths, asked.graph.memory)


@resource("ms", "latency", "latency_ms")
def latency(asked: Asked) -> Resource:
    """Milliseconds that a table foretells."""
    if asked.latency is None:
        raise ArgumentError(
            f"{asked.field} needs to know how long layers take: give "
            "latency=netslim.latency_table(model, graph, example_inputs), measured where the "
            "network is to run"
        )
    return asked.latency.resource(asked.graph, asked.widths)


__all__ = [
    "RESOURCES",
    "Asked",
    "Kind",
    "LatencySource",
    "Peak",
    "Positions",
    "Products",
    "Resource",
    "Stepped",
    "Widths",
    "kind_of",
    "resource",
]
