"""Parameters, MACs, activations and bytes of a model, as the channel graph counts them.

One convention throughout: a MAC is one multiply-accumulate, two of what `torch.utils.flop_counter`
calls FLOPs. Convolutions, linear layers, matrix products, attention and recurrent layers count;
norms, activation functions, pooling, element-wise operations and biases do not. Activations are the
elements that these same layers put out.

What an operator costs is said by its rule and nowhere else: budgets and reports ask the same
recorder, so they cannot differ, and an operator taught with `netslim.register_rule` counts in both.
One that has no rule counts nothing in either, whatever it multiplies;
``netslim.trace(...).unsupported`` lists it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from netslim._support import checks_calls, expect
from netslim.errors import TraceError
from netslim.graph.counts import length, whole
from netslim.graph.memory import lifetimes, memory, outputs
from netslim.graph.modules.ambient import undisturbed
from netslim.graph.modules.unwrapping import bare, without_values
from netslim.graph.modules.walk import named_modules, named_tensors
from netslim.graph.rules.elementwise import fallback
from netslim.graph.rules.registry import RULES
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.running import record
from netslim.surgery.ports import cut_inputs

__all__ = ["Cost", "ModuleCost", "cost", "size_on_disk"]


@dataclass(frozen=True)
class ModuleCost:
    """One module's own share, without its children's.

    Attributes:
        params: its parameters.
        macs: multiply-accumulates of the operators it calls.
        activations: elements that the layers among these operators put out.
    """

    params: int
    macs: int
    activations: int = 0


@checks_calls
@dataclass(frozen=True)
class Cost:
    """What a model costs for one batch of example inputs; `str()` is a table.

    Attributes:
        params: trainable and frozen parameters, shared ones once. Buffers are not parameters.
        macs: multiply-accumulates of one forward pass of the whole batch of the example inputs.
        by_module: the modules that have parameters or do MACs, by name, in order; `""` is the model
            itself. The rows add up to the totals.
        activations: elements that layers put out in this pass: convolutions, linear layers, matrix
            products, attention and recurrent layers, as in RegNet (Radosavovic et al. 2020), fvcore
            and timm. What does not depend on the inputs, such as a standardised weight, is none.
        activation_bytes: bytes of these elements in their data types.
        peak_bytes: most bytes of inputs and intermediate tensors alive at once in this pass, which
            is eager and without gradients. Parameters, buffers, and what an operator needs only
            while it runs, do not count.

    Example:
        >>> cost: netslim.measure.Cost = netslim.cost(model, images)
        >>> cost.params, cost.within("classifier").params
        (1323, 51)
    """

    params: int
    macs: int
    by_module: dict[str, ModuleCost] = field(repr=False)
    activations: int = 0
    activation_bytes: int = 0
    peak_bytes: int = 0

    def within(self, name: str) -> ModuleCost:
        """The sum over module `name` and everything inside it."""
        inside = f"{name}." if name else ""
        rows = [row for path, row in self.by_module.items() if f"{path}.".startswith(inside)]
        return ModuleCost(
            sum(row.params for row in rows),
            sum(row.macs for row in rows),
            sum(row.activations for row in rows),
        )

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("module", "params", "share", "MACs", "share", "activations", "share")
        ]
        total = ModuleCost(self.params, self.macs, self.activations)
        for name, row in (*self.by_module.items(), ("total", total)):
            rows.append((name or "(itself)", *_cells(row, total)))
        widths = [max(len(row[column]) for row in rows) for column in range(7)]
        lines = []
        for name, *cells in rows:
            lines.append("  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]))
        lines.append(
            f"at most {self.peak_bytes:,} bytes of inputs and intermediate tensors at once"
        )
        return "\n".join(lines)


def _cells(row: ModuleCost, total: ModuleCost) -> Iterator[str]:
    """Each figure and its share of the total."""
    for name in ("params", "macs", "activations"):
        part, everything = getattr(row, name), getattr(total, name)
        yield f"{part:,}"
        yield f"{100 * part / max(everything, 1):.1f} %"


@checks_calls
def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Count parameters, MACs and activations by running `model` once.

    It runs in evaluation mode and without gradients. The figures are those of the graph that
    `netslim.trace` makes of the same model and inputs.

    Args:
        model: left as it was, training flags included. It may be on the meta device.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs, where
            the model is. MACs and activations are those of this batch: give one example for the
            MACs of one example. Of a model on the meta device their shapes count.

    Raises:
        TraceError: the model does not run on these inputs.

    Example:
        >>> found = netslim.cost(model, images[:1])
        >>> found.params, found.macs
        (1323, 23088)
    """
    model = bare(model, TraceError, allow=("meta",), call="cost(model, example_inputs)")
    with undisturbed(model):
        recorder = _recorded(model, cut_inputs(model, example_inputs))
    # The same recording that groups are formed of, with no cut in sight: all counts are whole.
    layers = [output for output in outputs(recorder.outputs, whole) if output.layer]
    rows = _by_module(recorder)
    return Cost(
        sum(row.params for row in rows.values()),
        sum(row.macs for row in rows.values()),
        {name: row for name, row in rows.items() if row != ModuleCost(0, 0)},
        sum(output.elements({}) for output in layers),
        sum(output.bytes({}) for output in layers),
        memory(lifetimes(recorder.storages.spans, whole)).peak({}),
    )


def _recorded(model: nn.Module, example_inputs: Any) -> Recorder:
    """A count needs no values: beside a model without any, inputs and constants have none."""
    if not any(map(without_values, model.parameters())):
        return record(model, example_inputs, RULES, fallback, unused=False)
    hollow = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), example_inputs)
    with torch.device("meta"):
        return record(model, hollow, RULES, fallback, unused=False)


def _by_module(recorder: Recorder) -> dict[str, ModuleCost]:
    """Every module's own share, in order; a shared parameter is the first module's that has it."""
    params, macs, activations = Counter[str](), Counter[str](), Counter[str]()
    for name, tensor in named_tensors(recorder.model):
        if isinstance(tensor, nn.Parameter):
            params[name.rpartition(".")[0]] += tensor.numel()
    for work in recorder.costs:
        macs[work.module] += prod(map(length, work.factors))
    for put in recorder.outputs:
        if put.layer:
            activations[put.module] += prod(map(length, put.factors))
    names = named_modules(recorder.model).values()
    return {name: ModuleCost(params[name], macs[name], activations[name]) for name in names}


@checks_calls
def size_on_disk(model: nn.Module) -> int:
    """Bytes of the model's tensors in a safetensors file.

    These are the parameters and the persistent buffers, shared ones once. The file's header, some
    tens of bytes a tensor, comes on top.

    Raises:
        ArgumentError: ``model`` is no module.

    Example:
        >>> netslim.measure.size_on_disk(nn.Linear(10, 2))
        88
    """
    expect(model, nn.Module, "model", "size_on_disk(model)")
    tensors = {id(t): t for t in model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in tensors.values())
