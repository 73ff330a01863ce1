"""Random networks: a description that prints as code, the network it builds, and a strategy that
draws them.

A `Spec` is a list of nodes; each names an operator of `random_layers`, the values it reads and its
options. Values are numbered: the inputs first, then the results of each node in turn. The same spec
builds the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from random_layers import CHANNEL_AXIS, OPERATORS, Operator, Shape, Step

LIVE = 3  # values that wait for a reader at most; more are joined or become outputs
AGAIN = (
    "again"  # a node that runs the step of an earlier one once more: its option ``step`` says which
)
HEADS = {
    "map": "conv",
    "last": "linear",
    "tokens": "linear",
    "series": "conv_of_series",
    "vector": "linear_of_vectors",
}


@dataclass(frozen=True, repr=False)
class Node:
    """One operator applied to values by their numbers."""

    op: str
    reads: tuple[int, ...]
    options: dict[str, Any]

    def __repr__(self) -> str:
        parts = [
            repr(self.op),
            *map(str, self.reads),
            *(f"{k}={v!r}" for k, v in self.options.items()),
        ]
        return f"node({', '.join(parts)})"


def node(op: str, *reads: int, **options: Any) -> Node:
    """A `Node`, written as it prints."""
    return Node(op, reads, options)


@dataclass(frozen=True, repr=False)
class Spec:
    """A network: channels and space of its inputs, its nodes, which values it returns and in what.

    ``inputs`` holds (C, H, W) for a map and (C,) for a vector; the batch has ``batch`` examples.
    """

    inputs: tuple[tuple[int, ...], ...]
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    container: str = "tuple"
    batch: int = 2
    seed: int = 0

    def __repr__(self) -> str:
        nodes = "".join(f"\n        {n!r}," for n in self.nodes)
        return (
            f"Spec(\n    inputs={self.inputs},\n    nodes=({nodes}\n    ),\n    "
            f"outputs={self.outputs}, container={self.container!r}, batch={self.batch}, "
            f"seed={self.seed},\n)"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def build(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """The network, in evaluation mode, and example inputs."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            draft = Draft(self.inputs, self.batch)
            for n in self.nodes:
                draft.add(n)
            return Network(self, draft.steps).eval(), tuple(draft.values[: len(self.inputs)])


@dataclass
class Result:
    """An output that is an object."""

    values: list[Tensor]


def unpacked(value: Any) -> list[Tensor]:
    """The outputs of a `Network`, out of their container."""
    if isinstance(value, Tensor):
        return [value]
    return list(
        value.values()
        if isinstance(value, dict)
        else value.values
        if isinstance(value, Result)
        else value
    )


class Network(nn.Module):
    """Runs the steps of a spec in order."""

    def __init__(self, spec: Spec, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.wires = [n.reads for n in spec.nodes]
        self.outputs, self.container = spec.outputs, spec.container

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step, reads in zip(self.steps, self.wires, strict=True):
            out = step(*(values[i] for i in reads))
            values += [out] if isinstance(out, Tensor) else out
        results = [values[i] for i in self.outputs]
        if self.container == "dict":
            return {f"out{i}": value for i, value in enumerate(results)}
        if self.container == "object":
            return Result(results)
        return results[0] if self.container == "single" else tuple(results)


@dataclass
class Draft:
    """A network being put together: its steps so far, the value of each number, and its shape."""

    inputs: Sequence[tuple[int, ...]]
    batch: int = 2
    values: list[Tensor] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    read: list[list[Shape]] = field(default_factory=list)  # shapes that each step was made for

    def __post_init__(self) -> None:
        for sizes in self.inputs:
            self.values.append(torch.randn(self.batch, *sizes))
            self.shapes.append(Shape("map" if len(sizes) == 3 else "vector", tuple(sizes)))

    @torch.no_grad()
    def add(self, n: Node) -> list[int]:
        """Build and run one node; the numbers of its results."""
        shapes = [self.shapes[i] for i in n.reads]
        if n.op == AGAIN:
            step, operator = self.steps[n.options["step"]], self.operators[n.options["step"]]
        else:
            operator = OPERATORS[n.op]
            step = operator.make(*shapes, **n.options).eval()
        out = step(*(self.values[i] for i in n.reads))
        results = [out] if isinstance(out, Tensor) else list(out)
        first = len(self.values)
        self.steps.append(step)
        self.operators.append(operator)
        self.read.append(shapes)
        self.values += results
        kinds = operator.kinds(*shapes)
        self.shapes += [Shape(k, tuple(v.shape[1:])) for k, v in zip(kinds, results, strict=True)]
        return list(range(first, len(self.values)))


# --- the strategy ---------------------------------------------------------------------------------


@st.composite
def networks(
    draw: Callable[[Any], Any], least: int = 2, most: int = 12, without: Sequence[str] = ()
) -> Spec:
    """Random specs of ``least`` to ``most`` nodes, and a head for most of the values nobody read.

    Every draw means the same whatever was drawn before, so specs shrink to few nodes, plain
    convolutions and small numbers: an operator that fits no value at hand is passed over.
    """
    operators = sorted(
        (o for name, o in OPERATORS.items() if name not in without), key=lambda o: -o.weight
    )
    names = [o.name for o in operators for _ in range(o.weight)] + [AGAIN] * 6
    inputs = [(draw(st.integers(1, 4)), draw(st.integers(4, 7)), draw(st.integers(4, 7)))]
    inputs += draw(
        st.lists(st.one_of(st.just(inputs[0]), st.tuples(st.integers(2, 6))), max_size=1)
    )
    writer = Writer(draw, Draft(inputs, draw(st.sampled_from([2, 1, 3]))))
    while len(writer.nodes) < least or (len(writer.nodes) < most and draw(st.integers(0, 59)) > 0):
        writer.grow(draw(st.sampled_from(names)), draw(st.integers(0, LIVE - 1)))
    outputs = [writer.head(i) for i in writer.live[-LIVE:]]
    container = draw(
        st.sampled_from(["tuple", "dict", "object"] if len(outputs) > 1 else ["single", "dict"])
    )
    return Spec(tuple(inputs), tuple(writer.nodes), tuple(outputs), container, writer.draft.batch)


@dataclass
class Writer:
    """Draws one node after the other onto a draft."""

    draw: Callable[[Any], Any]
    draft: Draft
    nodes: list[Node] = field(default_factory=list)
    live: list[int] = field(default_factory=list)  # values nobody read yet, oldest first

    def __post_init__(self) -> None:
        self.live = list(range(len(self.draft.values)))

    def grow(self, name: str, age: int) -> None:
        """Add a node that reads the live value of this age, if its operator takes it, and a second
        one of any age.
        """
        first = self.live[-1 - min(age, len(self.live) - 1)]
        if name == AGAIN:
            same = [
                i for i, read in enumerate(self.draft.read) if read == [self.draft.shapes[first]]
            ]
            if same:
                self._add(node(AGAIN, first, step=self._latest(same)))
            return
        operator = OPERATORS[name]
        partners = self._partners(operator, first)
        reads = (first, self._latest(partners)) if partners else (first,)
        shapes = [self.draft.shapes[i] for i in reads]
        if len(reads) == len(operator.takes) and operator.fits(*shapes):
            self._add(Node(name, reads, operator.draw(self.draw, *shapes)))

    def head(self, value: int) -> int:
        """The value itself, or what a layer makes of it, as an output."""
        if self.draw(st.integers(0, 3)) == 0:
            return value
        operator = OPERATORS[HEADS[self.draft.shapes[value].kind]]
        options = operator.draw(self.draw, self.draft.shapes[value])
        return self._add(Node(operator.name, (value,), options))[0]

    def _latest(self, numbers: Sequence[int]) -> int:
        return numbers[-1 - min(self.draw(st.integers(0, 5)), len(numbers) - 1)]

    def _partners(self, operator: Operator, first: int) -> list[int]:
        shapes = self.draft.shapes
        if len(operator.takes) == 1:
            return []
        return [
            i for i in range(len(shapes)) if i != first and operator.fits(shapes[first], shapes[i])
        ]

    def _add(self, n: Node) -> list[int]:
        with torch.random.fork_rng(devices=[]):
            results = self.draft.add(n)
        self.nodes.append(n)
        self.live = [i for i in self.live if i not in n.reads] + results
        return results


__all__ = ["CHANNEL_AXIS", "Network", "Node", "Spec", "networks", "node", "unpacked"]
