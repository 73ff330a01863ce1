"""`TracedGraph`: the groups of a traced model and what they cost, in numbers without words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral

import numpy as np
from torch import nn

from netslim._support import brief, checks_calls, described, nearest
from netslim.errors import ArgumentError, StaleGraphError
from netslim.graph.blocks import Block, Blocks
from netslim.graph.counts import Cost, without
from netslim.graph.groups import ChannelGroup, NormRule, Order, Port, SizeRule
from netslim.graph.inventory import Inventory
from netslim.graph.memory import Lifetime, Memory, Output, memory
from netslim.graph.modules.walk import fingerprint
from netslim.graph.tracing.atoms import Vector


@checks_calls
@dataclass(frozen=True, eq=False)
class TracedGraph:
    """What must be cut together in a model, learnt by running it once; it does not hold the model.

    Its fields are told where users meet them, in `ChannelGraph`.
    """

    groups: tuple[ChannelGroup, ...]
    fingerprint: str
    unsupported: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    costs: tuple[Cost, ...] = ()
    parameters: Mapping[str, Cost] = field(default_factory=dict)
    size_rules: tuple[SizeRule, ...] = ()
    axis_sizes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    inventory: Inventory = field(default_factory=Inventory)
    outputs: tuple[Output, ...] = ()
    lifetimes: tuple[Lifetime, ...] = ()
    norms: tuple[NormRule, ...] = ()
    ports: tuple[Port, ...] = ()
    orders: tuple[Order, ...] = ()
    blocks: Blocks | None = None

    @cached_property
    def _index(self) -> dict[str, int]:
        return {g.name: i for i, g in enumerate(self.groups)}

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups that can be cut exactly."""
        return tuple(g for g in self.groups if g.prunable)

    @property
    def frozen(self) -> dict[str, str]:
        """Name -> reason, for the groups that cannot be cut, or not exactly."""
        return {g.name: str(g.reason) for g in self.groups if not g.prunable}

    def prunable_share(self, allow_inexact: bool = False) -> float:
        """Share of the parameters that lie in channels which can be cut, 0 to 1."""
        total = self.params()
        if not total:
            return 0.0
        none = {
            i: np.zeros(g.size, dtype=bool)
            for i, g in enumerate(self.groups)
            if not g.block and (g.prunable or (allow_inexact and not g.frozen))
        }
        return 1 - self.params(none) / total

    def number(self, name: str) -> int:
        """Position of the group in ``groups``.

        Raises:
            ArgumentError: no group has this name; the nearest are given.
        """
        if name not in self._index:
            raise ArgumentError(f"there is no group {name!r}{nearest(name, self._index)}")
        return self._index[name]

    def block(self, name: str) -> Block:
        """The block of the group of this name.

        Raises:
            ArgumentError: there is no such block; the nearest names are given.
        """
        blocks = {group.name: n for n, group in enumerate(g for g in self.groups if g.block)}
        if self.blocks is None or name not in blocks:
            raise ArgumentError(f"there is no block {name!r}{nearest(name, blocks)}")
        return self.blocks.found[blocks[name]]

    def blocks_around(self, number: int) -> list[int]:
        """Numbers of the blocks within which all is that a group of channels has entries in."""
        held = {s.tensor for s in self.groups[number].slices}
        if self.blocks is None or not held:
            return []
        numbers = [n for n, group in enumerate(self.groups) if group.block]
        pairs = zip(numbers, self.blocks.found, strict=True)
        return [n for n, block in pairs if held <= block.tensors]

    def normalising(self, name: str) -> tuple[str, ...]:
        """Paths of the modules that normalise over the channels of the group of this name.

        Raises:
            ArgumentError: no group has this name; the nearest are given.
        """
        number = self.number(name)
        return tuple(norm.module for norm in self.norms if number in norm.groups)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that is not, or no longer, the traced one.

        Raises:
            StaleGraphError: names both fingerprints.
        """
        found = fingerprint(model)
        if found != self.fingerprint:
            raise StaleGraphError(
                f"the graph was traced from the architecture {self.fingerprint}, the model is "
                f"now {found}: trace it again (netslim.trace)"
            )

    def _masks(self, masks: Mapping[int, Vector] | None, call: str) -> Mapping[int, Vector]:
        """What to count under: nothing is cut where nothing is said."""
        for group, mask in (masks or {}).items():
            known = isinstance(group, Integral) and 0 <= group < len(self.groups)
            if not known or np.shape(mask) != (self.groups[group].size,):
                raise ArgumentError(
                    "masks are boolean arrays, one entry a unit, by the number of the group "
                    f"(graph.number(name)), got {brief(group)}: {described(mask)}"
                )
        return self.with_joined(masks or {})

    @cached_property
    def joined(self) -> dict[int, tuple[int, ...]]:
        """Number of a block that is a layer of a DenseNet -> of the groups that go with it."""
        if self.blocks is None:
            return {}
        numbers = [n for n, group in enumerate(self.groups) if group.block]
        found = zip(numbers, self.blocks.found, strict=True)
        return {n: block.channels for n, block in found if block.channels}

    def with_joined(self, masks: Mapping[int, Vector]) -> dict[int, Vector]:
        """The masks, in which the channels of layers that go as blocks go, too."""
        found = dict(masks)
        for block, numbers in self.joined.items():
            if block in masks and not np.all(masks[block]):
                found |= {n: np.zeros(self.groups[n].size, dtype=bool) for n in numbers}
        return found

    def macs(self, masks: Mapping[int, Vector] | None = None) -> int:
        """Multiply-accumulates of the traced call where group ``g`` keeps units ``masks[g]``."""
        masks = self._masks(masks, "macs")
        return sum(c.macs(masks) for c in self.costs)

    def params(self, masks: Mapping[int, Vector] | None = None) -> int:
        """Number of parameters under the masks."""
        masks = self._masks(masks, "params")
        return sum(c.macs(masks) for c in self.parameters.values())

    @cached_property
    def memory(self) -> Memory:
        """Which tensors are in memory at once."""
        return memory(self.lifetimes)

    @cached_property
    def _layers(self) -> tuple[Output, ...]:
        return tuple(o for o in self.outputs if o.layer)

    def activations(self, masks: Mapping[int, Vector] | None = None) -> int:
        """Elements that layers put out in the traced call, under the masks.

        Layers are convolutions, linear layers, matrix products, attention and recurrent layers;
        norms, activation functions, pooling and sums are none, nor is what does not depend on the
        inputs. Source: Radosavovic et al. 2020, "Designing Network Design Spaces", section 3.1, who
        count convolutions; fvcore and timm count as here.
        """
        masks = self._masks(masks, "activations")
        return sum(o.elements(masks) for o in self._layers)

    def activation_bytes(self, masks: Mapping[int, Vector] | None = None) -> int:
        """Bytes of the `activations` in the data types of the traced call, under the masks."""
        masks = self._masks(masks, "activation_bytes")
        return sum(o.bytes(masks) for o in self._layers)

    def peak_bytes(self, masks: Mapping[int, Vector] | None = None) -> int:
        """Most bytes of tensors alive at once in the traced call, under the masks.

        Counted are the inputs and whatever operators put out, until the eager evaluation call,
        without gradients, lets go of it; not parameters and buffers, nor what an operator needs
        only while it runs.
        """
        masks = self._masks(masks, "peak_bytes")
        return self.memory.peak(masks)

    def shares(self) -> dict[str, tuple[float, float, float]]:
        """Group name -> shares of parameters, MACs and activations that go with all its units."""
        gone = np.zeros((len(self.groups), 3))
        kinds: list[Iterable[Cost | Output]]
        kinds = [self.parameters.values(), self.costs, self._layers]
        for column, products in enumerate(kinds):
            for product in products:
                for group, left in without(product.terms).items():
                    gone[group, column] += left
        gone /= np.maximum([self.params(), self.macs(), self.activations()], 1)
        rows = zip(self.groups, gone.tolist(), strict=True)
        return {group.name: (params, macs, made) for group, (params, macs, made) in rows}
