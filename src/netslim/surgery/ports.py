"""Inputs and outputs that shrink with a cut: which entries of them stay.

Whoever runs a cut network beside the uncut one, on the same example or the same batches, has to
give it less and gets less from it. `cut_inputs` does the one for everybody, `kept_outputs` the
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from netslim._support import checks_calls
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.groups import Port
from netslim.graph.modules.batches import inputs_of
from netslim.graph.modules.ports import PortName, input_tensors, with_inputs
from netslim.graph.modules.unwrapping import inside
from netslim.surgery.history import history
from netslim.surgery.plan import PruningPlan
from netslim.surgery.rows import (
    DROPPED,
    GroupCut,
    PortCut,
    destinations,
    index,
    merging_rows,
    partners,
)


@checks_calls
def cut_inputs(model: nn.Module, example_inputs: Any, plan: PruningPlan | None = None) -> Any:
    """The inputs of the uncut network as the cut one takes them.

    Only inputs that were named as free (``free_inputs`` of `netslim.trace`) are smaller; where
    there are none, or they are so small already, the inputs come back as they are.

    Args:
        model: either of the two.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        plan: of the cut; None takes all that has been cut of ``model``.

    Example:
        >>> small = netslim.slim(model, images, budget=netslim.Budget(cut_macs=0.5))
        >>> netslim.surgery.cut_inputs(small, images) is images  # a picture does not shrink
        True
    """
    inner = inside(model)
    if plan is None:
        plan = history(inner)
    if plan is None or not any(port.kind == "input" for port in plan.ports):
        return example_inputs
    tensors = input_tensors(inner, example_inputs)
    smaller: dict[str, Tensor] = {}
    for port in plan.ports:
        tensor = smaller.get(port.name, tensors.get(port.name))
        if port.kind == "input" and tensor is not None and _whole(tensor, port):
            smaller[port.name] = tensor.index_select(port.dim, index(port.kept, tensor.device))
    return with_inputs(inner, example_inputs, smaller)


def _whole(tensor: Tensor, port: PortCut) -> bool:
    return tensor.dim() > port.dim and tensor.shape[port.dim] == port.size


def cut_batch(model: nn.Module, batch: Any, plan: PruningPlan) -> Any:
    """What a data loader gives, inputs and labels, with the inputs that the cut network takes."""
    args, kwargs = inputs_of(batch)
    inputs = kwargs or args
    smaller = cut_inputs(model, inputs, plan)
    if smaller is inputs:
        return batch
    return (smaller,)


def kept_outputs(outputs: Iterable[tuple[str, Tensor]], plan: PruningPlan) -> list[Tensor]:
    """What the cut network puts out too, of the named outputs of the uncut one."""
    cuts: dict[str, list[PortCut]] = {}
    for port in plan.ports:
        if port.kind == "output":
            cuts.setdefault(port.name, []).append(port)
    found = []
    for name, tensor in outputs:
        for port in cuts.get(name, ()):
            tensor = tensor.index_select(port.dim, index(port.kept, tensor.device))
        found.append(tensor)
    return found


def equal_inputs(model: nn.Module, example_inputs: Any, plan: PruningPlan) -> Any:
    """The inputs, in which entries of merged channels are as those of their survivors.

    What is fed back is made of the same weights in both.
    """
    tensors = input_tensors(model, example_inputs)
    equal: dict[str, Tensor] = {}
    for port in plan.ports:
        if port.kind == "input" and port.into:
            tensor = equal.get(port.name, tensors[port.name])
            ends = destinations(port)
            ends = np.where(ends == DROPPED, np.arange(port.size), ends)
            equal[port.name] = tensor.index_select(
                port.dim, index(tuple(ends.tolist()), tensor.device)
            )
    return with_inputs(model, example_inputs, equal)


def free_names(plan: PruningPlan) -> tuple[list[PortName], dict[PortName, PortName | None]]:
    """What of the plan `netslim.trace` takes as ``free_outputs`` and ``free_inputs``."""
    outputs: list[PortName] = [port.name for port in plan.ports if port.kind == "output"]
    taken = [port for port in plan.ports if port.kind == "input"]
    inputs: dict[PortName, PortName | None] = {port.name: port.fed_by or None for port in taken}
    return [*dict.fromkeys(outputs)], inputs


def port_cuts(graph: ChannelGraph, groups: Mapping[str, GroupCut]) -> tuple[PortCut, ...]:
    """The rows of a plan for the inputs and outputs that lose something."""
    cuts = {graph.number(name): cut for name, cut in groups.items()}
    return tuple(_rows(graph.ports, cuts))


def _rows(ports: Iterable[Port], cuts: Mapping[int, GroupCut]) -> Iterator[PortCut]:
    for port in ports:
        ends = np.arange(len(port.groups))
        for number in set(port.groups.tolist()) & cuts.keys():
            entries = np.flatnonzero(port.groups == number)
            units, cut = port.units[entries], cuts[number]
            ends[entries[~np.isin(units, cut.kept)]] = DROPPED
            if cut.into:
                merged, survivors = partners(entries, units, destinations(cut))
                ends[merged] = survivors
        kept = np.flatnonzero(ends == np.arange(len(ends)))
        if len(kept) < len(ends):
            into = merging_rows(ends, kept.tolist())
            yield PortCut(
                port.kind, port.name, port.dim, len(ends), tuple(kept.tolist()), into, port.fed_by
            )


__all__ = ["cut_batch", "cut_inputs", "equal_inputs", "free_names", "kept_outputs", "port_cuts"]
