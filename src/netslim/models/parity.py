"""Whether a file computes what the model computes, on inputs that would show it.

An exporter may drop a branch, take a size for a constant, or put in an operator that differs in a
corner, and the file still loads and runs. So it is run beside the model: on the example, which may
be special (zeros, a mask that masks nothing), on random inputs of the same shapes, and, where the
batch size is free, on batches of 1, of the example's size and of two more; it is the batch of 1 and
the one of another size that an accidental constant does not survive.

The deviation of an output is the largest difference relative to its largest entry. Entry by entry
it would be decided by entries near zero, which are sums of large terms that cancel, and there even
a right file is far off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from netslim.errors import ExportError
from netslim.graph.modules.calls import as_call, describe, output_tensors
from netslim.models.onnx_session import Outputs, innermost, tensors_of
from netslim.models.ordering import Order, Orders, as_ordered

Tolerance = float | Mapping[str, float] | None
Computes = Callable[[Any], Outputs]  # example inputs -> what a file computes from them

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest output
LOW_PRECISION = 2e-2
_REDRAWN = 8  # random inputs that are tried where near ties leave open what is right


def compare(
    model: Callable[..., Any],
    loaded: Computes,
    example: Any,
    dynamic: bool,
    tolerance: Tolerance = None,
    names: Sequence[str] = (),
) -> tuple[float, tuple[int, ...]]:
    """The largest deviation of a file from a model, and the batch sizes at which it was looked for.

    Args:
        model: in evaluation mode.
        loaded: what the file computes.
        example: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        dynamic: whether the file takes batches of any size.
        tolerance: for all outputs, or by name; by default what the data types of the outputs allow.
        names: of the outputs.

    Raises:
        ExportError: the file does not run, or deviates by more, or near ties decide which rows the
            outputs have, whatever the inputs.
    """
    size = batch_size(example)
    sizes = sorted({1, size, size + 2}) if dynamic else [size]
    generator = torch.Generator().manual_seed(0)
    comparison = _Comparison(model, loaded, tolerance, names)
    worst = comparison.of(example, last=False)
    for count in sizes:
        found = None
        for left in reversed(range(_REDRAWN)):
            if found is None:
                inputs = randomised(batched(example, count), generator)
                found = comparison.of(inputs, last=not left)
        worst = max(worst or 0.0, found or 0.0)
    return worst or 0.0, tuple(sizes)


@dataclass(frozen=True)
class _Comparison:
    """Of a file with a model, on one input after the other."""

    model: Callable[..., Any]
    loaded: Computes
    tolerance: Tolerance
    names: Sequence[str]

    def of(self, inputs: Any, last: bool) -> float | None:
        """The largest deviation; None where near ties leave open what is right, unless `last`.

        Raises:
            ExportError: the file does not run, or deviates by more than is accepted.
        """
        with Orders() as orders:
            expected = run(self.model, inputs)
        try:
            found = self.loaded(inputs)
        except ExportError:
            raise
        except Exception as problem:
            raise ExportError(
                f"the file does not run on inputs of {describe(inputs)}: {innermost(problem)}"
            ) from problem
        possible = list(chain.from_iterable(one.fitting(expected) for one in orders.found))
        allowed = self._allowed(expected)
        off = deviations(expected, found)
        if _over(off, allowed):
            found = self._reordered(expected, found, possible, allowed)
            off = deviations(expected, found)
        over = _over(off, allowed)
        if not over:
            return max(off, default=0.0)
        if not last and any(order.open for order in possible):
            return None
        raise ExportError(self._refusal(inputs, off, allowed, over[0], possible))

    def _allowed(self, expected: Outputs) -> list[float]:
        usual = _tolerance(expected)
        if isinstance(self.tolerance, Mapping):
            return [self.tolerance.get(self._name(n), usual) for n in range(len(expected))]
        if self.tolerance is not None:
            usual = self.tolerance
        return [usual] * len(expected)

    def _name(self, number: int) -> str:
        return dict(enumerate(self.names)).get(number, f"output_{number}")

    def _reordered(
        self, expected: Outputs, found: Outputs, orders: list[Order], allowed: list[float]
    ) -> Outputs:
        if [one.shape for one in expected] != [one.shape for one in found]:
            return found
        over = set(_over(deviations(expected, found), allowed))
        for order in orders:
            rows = [number for number, one in enumerate(expected) if order.rows(one)]
            if not over <= set(rows):
                continue
            moved = as_ordered(expected, found, rows, order, allowed)
            if moved is not None:
                return moved
        return found

    def _refusal(
        self, inputs: Any, off: list[float], allowed: list[float], number: int, orders: list[Order]
    ) -> str:
        said = (
            f"the file does not compute what the model does: on inputs of {describe(inputs)} "
            f"{self._name(number)!r} deviates by {off[number]:.1e} of its largest entry, and "
            f"{allowed[number]:.1e} is accepted"
        )
        if orders:
            said += ", also in any order of its rows that near ties leave open"
        if any(order.open for order in orders):
            said += (
                "; a near tie decides which rows there are: try example inputs like those that the "
                "model was trained on"
            )
        return f"{said}; nothing was written"


def _over(off: list[float], allowed: list[float]) -> list[int]:
    """Numbers of the outputs that deviate by more than is accepted."""
    # Not `off > allowed`, which is false where off is no number.
    return [number for number, one in enumerate(off) if not one <= allowed[number]]


def deviations(expected: Outputs, found: Outputs) -> list[float]:
    """Of each output; infinite where their number or shapes differ."""
    if len(expected) != len(found):
        return [math.inf] * len(expected)
    return [_off(a, b.to(a.device)) for a, b in zip(expected, found, strict=True)]


def _off(expected: Tensor, found: Tensor) -> float:
    """The largest difference relative to the largest entry; infinite where one is no number.

    Entries that are the same infinity, or no number in both, are equal and else left out.
    """
    if expected.shape != found.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return float((expected != found).double().mean())
    same = (expected == found) | (expected.isnan() & found.isnan())
    finite = expected.isfinite() & found.isfinite()
    if not (same | finite).all():
        return math.inf
    if not finite.any():
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    ours, theirs = expected[finite].to(wide), found[finite].to(wide)
    largest, gap = ours.abs().amax(), (ours - theirs).abs().amax()
    if largest > 0:
        gap = gap / largest
    return float(gap)


def _tolerance(outputs: Outputs) -> float:
    """What the coarsest data type among the outputs allows."""
    kinds = [t.dtype for t in outputs if t.is_floating_point()]
    return max(
        (TOLERANCES.get(kind, LOW_PRECISION) for kind in kinds), default=TOLERANCES[torch.float32]
    )


# ---------------------------------------------------------------- inputs


def run(model: Callable[..., Any], inputs: Any) -> Outputs:
    """The tensors that a model puts out."""
    args, kwargs = as_call(inputs)
    return output_tensors(model(*args, **kwargs))


def batch_size(inputs: Any) -> int:
    """The first dimension of the first input that has one."""
    return next((t.shape[0] for t in tensors_of(inputs) if t.dim()), 1)


def with_batch(inputs: Any) -> list[Tensor]:
    """The inputs whose first dimension is the batch, as far as its size tells."""
    size = batch_size(inputs)
    return [t for t in tensors_of(inputs) if t.dim() and t.shape[0] == size]


def batched(inputs: Any, count: int) -> Any:
    """The inputs with another batch size: their examples over again."""
    size = batch_size(inputs)

    def change(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim() or value.shape[0] != size:
            return value
        return value[torch.arange(count, device=value.device) % size]

    return tree_map(change, inputs)


def randomised(inputs: Any, generator: torch.Generator) -> Any:
    """Normal numbers where the inputs are real; the others in another order.

    Integers and booleans keep their values, as only the model knows which there may be.
    """

    def change(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point() or value.is_complex():
            return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        order = torch.randperm(value.numel(), generator=generator).to(value.device)
        return value.flatten()[order].view(value.shape)

    return tree_map(change, inputs)


__all__ = ["batch_size", "batched", "compare", "deviations", "randomised", "run", "with_batch"]
