"""One-pattern networks: how to state what may be cut by hand, and the check that each must pass.

A pattern is a forward function ``forward(s, x)`` over the parts of a small network ``s``. Unless it
says otherwise it has ``a`` (a convolution from 3 to 8 channels), ``b`` (from 8 to 6) and ``head``
(6 features to 2), and reads a batch of 8x8 pictures; `tail` is the usual way out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nets import counted_alike
from netslim import ChannelGraph, PruningPlan, prune, trace, verify
from netslim.graph.groups import ChannelGroup
from netslim.graph.modules.calls import as_call, output_tensors
from netslim.surgery.plan_of_units import plan_keeping
from netslim.surgery.proof.verify import Verification

OUTPUT = "it is an output of the network"
PICTURES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.tensor([[1, 4, 2, 0, 7], [3, 3, 9, 5, 6]])


def conv(cin: int, cout: int, kernel: int = 1, **kwargs: Any) -> nn.Conv2d:
    """A convolution that keeps the size of its maps."""
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2, **kwargs)


def tail(s: nn.Module, h: Tensor) -> Tensor:
    """Out of maps: ``b``, the mean over space, ``head``."""
    return s.head(s.b(h).relu().mean((2, 3)))


def steps(s: nn.Module, h: Tensor) -> Tensor:
    """Out of a sequence (batch, steps, channels): ``b``, the mean over the steps, ``head``."""
    return s.head(s.b(h).relu().mean(1))


@dataclass(frozen=True)
class Line:
    """A reason that names the line of the forward function that holds ``code``, and says ``why``."""

    code: str
    why: str = ""

    def place(self, source: Callable[..., Any] | type) -> str:
        lines, first = inspect.getsourcelines(source)
        body = next(i for i, line in enumerate(lines) if re.match(r"\s*def ", line))
        (number,) = (first + i for i, line in enumerate(lines) if i > body and self.code in line)
        return f"({inspect.getsourcefile(source).rpartition('/')[2]}:{number})"


class Net(nn.Module):
    """A network from a forward function and its parts."""

    def __init__(self, forward: Callable[..., Any], parts: Mapping[str, Any]) -> None:
        super().__init__()
        self._forward = forward
        defaults = {"a": conv(3, 8), "b": conv(8, 6), "head": nn.Linear(6, 2)}
        for name, value in {**defaults, **parts}.items():
            setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self, *args, **kwargs)


@dataclass(frozen=True)
class Pattern:
    """A network and what may be cut from it.

    Attributes:
        exact: group -> number of units that can go exactly.
        inexact: group -> (number of units, why their removal changes what remains).
        refused: group -> why it stays: part of the reason, or the line of the code that it must
            name.
        outputs: groups that stay because the network returns them.
        unsupported: operators that netslim has no rule for.
        patched: attribute of a module not of PyTorch's own -> its value when half of every exact
            group is gone.

    One layer may appear in several groups; they are told apart by ``#2`` and so on, in any order.
    """

    name: str
    model: nn.Module
    source: Callable[..., Any] | type
    inputs: Any
    exact: Mapping[str, int]
    inexact: Mapping[str, tuple[int, str]]
    refused: Mapping[str, str | Line]
    outputs: tuple[str, ...]
    unsupported: tuple[str, ...]
    patched: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name

    def check(self) -> None:
        """The groups are those stated, cutting them does what is stated, and both counters say the
        same.
        """
        graph = trace(self.model.eval(), self.inputs)
        counted_alike(self.model, self.inputs, graph)
        self._check_groups(graph)
        if self.exact:
            plan, small = prove(graph, self.model, self.inputs)
            own = [
                p for p in plan.patches if not _mirrors_its_shapes(small.get_submodule(p.module))
            ]
            assert {f"{p.module}.{p.attribute}".lstrip("."): p.new for p in own} == self.patched
        if self.inexact:
            self._check_shapes(graph)

    def _check_groups(self, graph: ChannelGraph) -> None:
        refused = [g for g in graph if g.frozen and not str(g.reason).startswith(OUTPUT)]
        inexact = [g for g in graph if not g.frozen and not g.exact]
        found = {
            "exact": sorted((_layer(g), g.size) for g in graph.prunable),
            "inexact": sorted((_layer(g), g.size) for g in inexact),
            "refused": sorted(_layer(g) for g in refused),
            "outputs": sorted(_layer(g) for g in graph if str(g.reason).startswith(OUTPUT)),
            "unsupported": sorted(graph.unsupported),
        }
        wanted = {
            "exact": sorted((_layer(k), n) for k, n in self.exact.items()),
            "inexact": sorted((_layer(k), n) for k, (n, _) in self.inexact.items()),
            "refused": sorted(map(_layer, self.refused)),
            "outputs": sorted(map(_layer, self.outputs)),
            "unsupported": sorted(self.unsupported),
        }
        assert found == wanted, f"{found}, not {wanted}; {graph.frozen}"
        self._check_reasons(refused, dict(self.refused))
        self._check_reasons(inexact, {k: why for k, (_, why) in self.inexact.items()})

    def _check_reasons(self, groups: list[ChannelGroup], stated: Mapping[str, str | Line]) -> None:
        for group in groups:
            wanted = [why for name, why in stated.items() if _layer(name) == _layer(group)]
            assert any(self._says(str(group.reason), why) for why in wanted), (group.reason, wanted)

    def _says(self, reason: str, stated: str | Line) -> bool:
        if isinstance(stated, str):
            return stated in reason
        return stated.why in reason and stated.place(self.source) in reason

    def _check_shapes(self, graph: ChannelGraph) -> None:
        """With half of everything gone that may go at all, the outputs have the shapes they had."""
        masks = {
            graph.number(g.name): np.arange(g.size) % 2 == 0
            for g in graph
            if not g.frozen and g.size > 1
        }
        plan = plan_keeping(graph, masks)
        small = prune(self.model, plan)
        assert verify(self.model, small, plan, self.inputs, graph=graph).deviation is None
        args, kwargs = as_call(self.inputs)
        with torch.no_grad():
            before, after = (output_tensors(m(*args, **kwargs)) for m in (self.model, small))
        assert [t.shape for t in after] == [t.shape for t in before]
        removed = sum(g.size // 2 for g in graph if not g.frozen)
        assert plan.removed == removed > 0


def _layer(group: ChannelGroup | str) -> str:
    """The layer's name without ``#2``."""
    return re.sub(r"#\d+$", "", group if isinstance(group, str) else group.name)


def prove(graph: ChannelGraph, model: nn.Module, inputs: Any) -> tuple[PruningPlan, nn.Module]:
    """Cut half of every exact group at random; the outputs must depend on what was cut, and be
    right without it.

    Then cut the groups unequally, so that two that must keep equal numbers are found out.
    """
    rng = np.random.default_rng(0)
    halves = {g.name: g.size // 2 for g in graph.prunable}
    plan, small, check = _cut(graph, model, inputs, halves, rng)
    assert plan.removed == sum(halves.values())
    assert check.deviation < 1e-10
    assert check.changed > plan.removed / 3
    _cut(
        graph,
        model,
        inputs,
        {g.name: min(g.size - 1, 1 + i % 3) for i, g in enumerate(graph.prunable)},
        rng,
    )
    return plan, small


def _cut(
    graph: ChannelGraph,
    model: nn.Module,
    inputs: Any,
    gone: Mapping[str, int],
    rng: np.random.Generator,
) -> tuple[PruningPlan, nn.Module, Verification]:
    masks = {
        graph.number(name): rng.permutation(graph[name].size) >= count
        for name, count in gone.items()
    }
    plan = plan_keeping(graph, masks)
    small = prune(model, plan)
    return plan, small, verify(model, small, plan, inputs, graph=graph)


def _mirrors_its_shapes(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's layers, or made from one, whose attributes repeat its weights'
    shapes.
    """
    return (
        next(c for c in type(module).__mro__ if c.__module__.startswith("torch.")) is not nn.Module
    )


class Patterns(list[Pattern]):
    """The patterns of one theme; used as a decorator on forward functions and module classes."""

    def __call__(
        self,
        exact: Mapping[str, int] | None = None,
        inexact: Mapping[str, tuple[int, str]] | None = None,
        refused: Mapping[str, str | Line] | None = None,
        *,
        inputs: Any = PICTURES,
        outputs: tuple[str, ...] = ("head",),
        unsupported: tuple[str, ...] = (),
        patched: Mapping[str, Any] | None = None,
        **parts: Any,
    ) -> Callable[[Any], Any]:
        """Add the decorated forward function (or module class) with its answer; see `Pattern`."""

        def add(source: Any) -> Any:
            model = source() if isinstance(source, type) else Net(source, parts)
            name = source.__name__.replace("_", "-")
            answer = (
                exact or {},
                inexact or {},
                refused or {},
                outputs,
                unsupported,
                patched or {},
            )
            self.append(Pattern(name, model, source, inputs, *answer))
            torch.manual_seed(0)  # so that no pattern's weights depend on which others there are
            return source

        return add
