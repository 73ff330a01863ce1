"""The proof: a pruned network equals the original with the removed channels silenced at every consumer's input."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .errors import VerificationError
from .graph import ChannelGraph, as_call, trace
from .graph.recorder import evaluating, output_tensors
from .plan import PruningPlan, named_tensors
from .surgery import prune

OWN_PRECISION = 5e-3  # tolerance where a model's own casts rule out float64


@dataclass(frozen=True)
class Verification:
    """What `verify` measured.

    Attributes:
        deviation: largest difference of any output, relative to the largest output, in float64; None when the
            plan cuts groups whose removal is not equal to silencing, so only shapes were tried.
        cut: number of removed channels.
        changed: how many of them the outputs depend on, with randomised weights: silencing them is felt.
        double: whether it ran in float64; a model that casts inside runs in its own precision.
    """

    deviation: float | None
    cut: int
    changed: int
    double: bool = True


def verify(
    model: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    tolerance: float = 1e-10,
    seed: int = 0,
) -> Verification:
    """Prove that ``small`` is ``model`` cut by ``plan``.

    Three things are shown: every tensor of ``small`` is, bit for bit, the planned slice of ``model``; in float64
    its outputs equal those of ``model`` with the removed channels silenced; and so they do when all parameters and
    normalisation statistics are randomised, so that no zero-initialised branch hides a mistake.
    Neither model is changed.

    Args:
        model: the original.
        small: the pruned copy, before any training.
        plan: the cut.
        example_inputs: as for `netslim.trace`.
        tolerance: largest accepted relative deviation in float64; `OWN_PRECISION` where the model casts inside.
        seed: of the random weights.

    Raises:
        PlanError: the plan belongs to another architecture.
        VerificationError: says which tensor or output differs, and by how much.
    """
    plan.check(model)
    _check_slices(prune(model, plan), small)
    exact = all(g.exact for g in plan.groups.values())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        original, cut, example_inputs, double = _in_double(model, small, example_inputs)
        deviation = _deviation(original, cut, plan, example_inputs, exact)
        randomise(original, seed)
        wanted = dict(named_tensors(prune(original, plan)))
        for name, tensor in named_tensors(cut):
            tensor.data = wanted[name].data
        deviation = max(deviation, _deviation(original, cut, plan, example_inputs, exact))
        changed = _felt(original, plan, example_inputs)
    allowed = tolerance if double else max(tolerance, OWN_PRECISION)
    if exact and not deviation <= allowed:
        raise VerificationError(
            f"the pruned model differs from the silenced original by {deviation:.3g} (relative, "
            f"{'float64' if double else 'in its own precision'}; allowed {allowed:g}): a size or index in the model's "
            "forward is not seen by the trace; protect the groups concerned"
        )
    return Verification(deviation if exact else None, plan.removed, changed, double)


def _in_double(model: nn.Module, small: nn.Module, example_inputs: Any) -> tuple[nn.Module, nn.Module, Any, bool]:
    """Copies of both models in float64, or as they are when the model's own casts keep it from running there."""
    original, inputs = _double(model), _doubled(example_inputs)
    try:
        with torch.no_grad():
            _run(original, inputs, "original")
    except VerificationError:
        return copy.deepcopy(model), copy.deepcopy(small), example_inputs, False
    return original, _double(small), inputs, True


@contextmanager
def silenced(model: nn.Module, plan: PruningPlan) -> Iterator[None]:
    """Inside, every weight that reads a removed channel is zero."""
    tensors = dict(named_tensors(model))
    before = []
    with torch.no_grad():
        for cut in plan.tensors:
            if "consumer" in cut.role:
                tensor = tensors[cut.tensor]
                gone = torch.tensor(cut.removed, device=tensor.device)
                before.append((tensor, cut.axis, gone, tensor.index_select(cut.axis, gone)))
        for tensor, axis, gone, _ in before:
            tensor.index_fill_(axis, gone, 0)
        try:
            yield
        finally:
            for tensor, axis, gone, values in before:
                tensor.index_copy_(axis, gone, values)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and normalisation statistic a random value of ordinary size, in place."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() < 2:
                sign = torch.rand(parameter.shape, generator=generator, device=device).to(parameter) - 1 / 3
                parameter.uniform_(0.5, 1.5, generator=generator).copysign_(sign)
            else:
                spread = (3 / (parameter.numel() / parameter.shape[0])) ** 0.5
                parameter.uniform_(-spread, spread, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                module.running_mean.uniform_(-0.5, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    return model


def _check_slices(expected: nn.Module, small: nn.Module) -> None:
    wanted, found = dict(named_tensors(expected)), dict(named_tensors(small))
    for name in sorted(set(wanted) ^ set(found)):
        raise VerificationError(f"{name!r} is in only one of the planned and the pruned model")
    for name, tensor in wanted.items():
        other = found[name]
        if tensor.shape != other.shape:
            raise VerificationError(f"{name!r} has shape {tuple(other.shape)}, the plan says {tuple(tensor.shape)}")
        if not _same(tensor.detach(), other.detach()):
            raise VerificationError(f"{name!r} does not hold the planned slice of the original")


def _same(a: Tensor, b: Tensor) -> bool:
    b = b.to(a.device)
    if a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _double(model: nn.Module) -> nn.Module:
    """A copy in float64, made without a copy in the model's own precision between."""
    memo: dict[int, Any] = {}
    for _, tensor in named_tensors(model):
        if tensor.is_floating_point():
            value = tensor.detach().to(torch.float64, copy=True)
            memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    return copy.deepcopy(model, memo).double()


def _doubled(example_inputs: Any) -> Any:
    return tree_map(lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, example_inputs)


def _run(model: nn.Module, example_inputs: Any, what: str) -> list[Tensor]:
    args, kwargs = as_call(example_inputs)
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            return output_tensors(model(*args, **kwargs))
        except Exception as error:
            raise VerificationError(f"the {what} does not run: {type(error).__name__}: {error}") from error


def _deviation(original: nn.Module, cut: nn.Module, plan: PruningPlan, example_inputs: Any, exact: bool) -> float:
    with torch.no_grad():
        found = _run(cut, example_inputs, "pruned model")
        with silenced(original, plan):
            wanted = _run(original, example_inputs, "silenced original")
    if len(wanted) != len(found):
        raise VerificationError(f"the pruned model returns {len(found)} tensors, the original {len(wanted)}")
    worst = 0.0
    for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
        if a.shape != b.shape:
            raise VerificationError(f"output {i} has shape {tuple(b.shape)}, the original's is {tuple(a.shape)}")
        if a.is_floating_point() and a.numel():
            worst = max(worst, _relative(a, b, i) if exact else 0.0)
    return worst


def _relative(a: Tensor, b: Tensor, number: int) -> float:
    if not torch.isfinite(a).all():
        raise VerificationError(f"output {number} is not finite, so it cannot be compared; try other example inputs")
    if not torch.isfinite(b).all():
        return float("inf")
    return float((a - b).abs().max() / a.abs().max().clamp_min(torch.finfo(a.dtype).tiny))


def _felt(original: nn.Module, plan: PruningPlan, example_inputs: Any) -> int:
    """How many removed channels the outputs depend on, to first order in the weights that read them."""
    tensors = {n: t for n, t in named_tensors(original) if t.is_floating_point()}
    reading = [c for c in plan.tensors if "consumer" in c.role and c.tensor in tensors]
    if not reading:
        return 0
    wanted = [tensors[c.tensor].requires_grad_(True) for c in reading]
    with torch.enable_grad():
        outputs = [t for t in _run(original, example_inputs, "original") if t.requires_grad]
        if not outputs:
            return 0
        generator = torch.Generator().manual_seed(0)
        total = sum((t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in outputs)
        unique = list({id(t): t for t in wanted}.values())
        found = torch.autograd.grad(total, unique, allow_unused=True)  # type: ignore[arg-type]
    gradient = {id(t): g for t, g in zip(unique, found, strict=True)}
    felt = {}
    for cut, weight in zip(reading, wanted, strict=True):
        g = gradient[id(weight)]
        if g is not None:
            effect = (g * weight.detach()).movedim(cut.axis, 0).flatten(1).abs().sum(1)
            felt[cut.tensor, cut.axis] = (effect > 0).cpu().numpy()
    return _count(trace(original, example_inputs), plan, felt)


def _count(graph: ChannelGraph, plan: PruningPlan, felt: dict[tuple[str, int], np.ndarray]) -> int:
    total = 0
    for name, cut in plan.groups.items():
        units = np.zeros(cut.size)
        for s in graph[name].tensors("consumer"):
            if (s.tensor, s.axis) in felt:
                units += np.bincount(s.units, felt[s.tensor, s.axis][s.positions], minlength=cut.size)
        total += int((units[list(cut.removed)] > 0).sum())
    return total
