"""Silence channels, and see whether the outputs feel it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netslim.errors import VerificationError
from netslim.graph.channel_graph import ChannelGraph
from netslim.graph.modules.calls import as_call, evaluating, output_tensors
from netslim.graph.modules.walk import named_tensors
from netslim.graph.modules.wrapping import eagerly
from netslim.surgery.plan import PruningPlan
from netslim.surgery.rows import DROPPED, destinations, partners

ONE_BY_ONE = 256  # channels that are silenced one after the other where autograd cannot tell


def run(model: nn.Module, example_inputs: Any, what: str) -> list[Tensor]:
    """The output tensors in evaluation mode; random numbers are the same in every run.

    Raises:
        VerificationError: the model, called ``what``, does not run.
    """
    args, kwargs = as_call(example_inputs)
    with eagerly(), evaluating(model), torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            return output_tensors(model(*args, **kwargs))
        except Exception as error:
            raise VerificationError(
                f"the {what} does not run: {type(error).__name__}: {error}"
            ) from error


@contextmanager
def silenced(
    model: nn.Module, plan: PruningPlan, graph: ChannelGraph | None = None
) -> Iterator[None]:
    """Inside, every weight that reads a dropped channel is zero, and a merged channel is the same
    as its survivor.

    Args:
        model: the original.
        plan: what goes.
        graph: of ``model``; only where the plan merges channels: it tells what makes them.
    """
    tensors = dict(named_tensors(model))
    with ExitStack() as changes:
        for c in plan.tensors:
            if "consumer" in c.role:
                gone = _on(tensors[c.tensor], np.flatnonzero(destinations(c) == DROPPED))
                changes.enter_context(replaced(tensors[c.tensor], c.axis, gone, 0))
        for name, axis, merged, survivors in (
            _entries_to_equal(graph, plan) if graph is not None else ()
        ):
            values = tensors[name].detach().index_select(axis, _on(tensors[name], survivors))
            changes.enter_context(replaced(tensors[name], axis, _on(tensors[name], merged), values))
        yield


def _entries_to_equal(
    graph: ChannelGraph, plan: PruningPlan
) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(tensor, axis, entries of merged channels, entries of their survivors), apart from what reads
    them.
    """
    for name, cut in plan.groups.items():
        for s in graph[name].slices if cut.merged else ():
            if s.role != "consumer":
                yield (s.tensor, s.axis, *partners(s.positions, s.units, destinations(cut)))


def _on(tensor: Tensor, numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers).to(tensor.device)


@contextmanager
def replaced(tensor: Tensor, axis: int, where: Tensor, values: Tensor | int) -> Iterator[None]:
    """Inside, the entries ``where`` of one axis of a tensor have other values."""
    at = (slice(None),) * axis + (where,)
    before = tensor.detach()[at]
    try:
        with torch.no_grad():
            tensor[at] = values
        yield
    finally:
        with torch.no_grad():
            tensor[at] = before


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and normalisation statistic a random value of ordinary size, in place."""
    devices = {t.device for _, t in named_tensors(model)}
    generators = {device: torch.Generator(device).manual_seed(seed) for device in devices}
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            device, generator = parameter.device, generators[parameter.device]
            if parameter.dim() < 2:
                sign = (
                    torch.rand(parameter.shape, generator=generator, device=device).to(parameter)
                    - 1 / 3
                )
                parameter.uniform_(0.5, 1.5, generator=generator).copysign_(sign)
            else:
                spread = (3 / (parameter.numel() / parameter.shape[0])) ** 0.5
                parameter.uniform_(-spread, spread, generator=generator)
        for module in model.modules():
            if (
                isinstance(module, nn.modules.batchnorm._NormBase)
                and module.running_mean is not None
            ):
                generator = generators[module.running_mean.device]
                module.running_mean.uniform_(-0.5, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    return model


def channels_felt(
    original: nn.Module, graph: ChannelGraph, plan: PruningPlan, example_inputs: Any
) -> tuple[int, int]:
    """(how many removed channels the outputs depend on, how many were tried).

    To first order in the weights that read them, all at once; where the model cannot be
    differentiated, by silencing them one by one, at most `ONE_BY_ONE` of them.
    """
    for saving in (nullcontext, torch.autograd.graph.allow_mutation_on_saved_tensors):
        try:
            with saving():
                effects = _first_order(original, plan, example_inputs)
        except (RuntimeError, VerificationError):
            continue
        if effects is not None:
            return _count(graph, plan, effects), plan.removed
    return _one_by_one(original, graph, plan, example_inputs)


def _first_order(
    model: nn.Module, plan: PruningPlan, example_inputs: Any
) -> dict[tuple[str, int], np.ndarray] | None:
    """For each axis that reads channels, which entries the outputs depend on; None if no gradient
    reaches them.
    """
    tensors = {n: t for n, t in named_tensors(model) if t.is_floating_point()}
    reading = [c for c in plan.tensors if "consumer" in c.role and c.tensor in tensors]
    wanted = list({id(tensors[c.tensor]): tensors[c.tensor] for c in reading}.values())
    with torch.enable_grad(), _requiring(wanted):
        outputs = [t for t in run(model, example_inputs, "original") if t.requires_grad]
        if not outputs:
            return None
        generator = torch.Generator().manual_seed(0)
        total = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs)
        found = torch.autograd.grad(total, wanted, allow_unused=True)  # type: ignore[arg-type]
    gradient = {id(t): g for t, g in zip(wanted, found, strict=True) if g is not None}
    effects = {}
    for cut in reading:
        weight = tensors[cut.tensor]
        if id(weight) in gradient:
            effect = (
                (gradient[id(weight)] * weight.detach())
                .movedim(cut.axis, 0)
                .flatten(1)
                .abs()
                .sum(1)
            )
            effects[cut.tensor, cut.axis] = (effect > 0).cpu().numpy()
    return effects


@contextmanager
def _requiring(tensors: Sequence[Tensor]) -> Iterator[None]:
    before = [t.requires_grad for t in tensors]
    try:
        for t in tensors:
            t.requires_grad_(True)
        yield
    finally:
        for t, flag in zip(tensors, before, strict=True):
            t.requires_grad_(flag)


def _count(
    graph: ChannelGraph, plan: PruningPlan, effects: dict[tuple[str, int], np.ndarray]
) -> int:
    total = 0
    for name, cut in plan.groups.items():
        units = np.zeros(cut.size)
        for s in graph[name].tensors("consumer"):
            if (s.tensor, s.axis) in effects:
                units += np.bincount(
                    s.units, effects[s.tensor, s.axis][s.positions], minlength=cut.size
                )
        total += int((units[list(cut.removed)] > 0).sum())
    return total


def _one_by_one(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, example_inputs: Any
) -> tuple[int, int]:
    tensors = dict(named_tensors(model))
    removed = [(name, unit) for name, cut in plan.groups.items() for unit in cut.removed]
    removed = removed[:: -(-len(removed) // ONE_BY_ONE) or 1]
    changed = 0
    with torch.no_grad():
        whole = run(model, example_inputs, "original")
        for name, unit in removed:
            reading = [s for s in graph[name].tensors("consumer") if s.tensor in tensors]
            entries = [
                (t, s.axis, _on(t, s.positions[s.units == unit]))
                for s in reading
                for t in [tensors[s.tensor]]
            ]
            with ExitStack() as silence:
                for tensor, axis, where in entries:
                    silence.enter_context(replaced(tensor, axis, where, 0))
                without = run(model, example_inputs, "original")
            changed += any(not torch.equal(a, b) for a, b in zip(whole, without, strict=True))
    return changed, len(removed)
