"""What a module makes of random numbers, held against what normalisations make of them.

It is code of anybody's: it runs as a copy in float64, in evaluation and in training, and is told
apart by its results, by their derivatives, and by what it leaves behind (known_norms.py). The
numbers are many where a module is tried in a large batch, so nothing is copied that need not be.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from netslim.errors import SurgeryError
from netslim.graph.modules.padded_norms import NormWidth, PaddedNorm, own_tensors

SAME = 1e-9  # relative, in float64: other formulas differ by far more
CLOSE = 1e-5  # where a module casts to float32
_SCALES = (1.0, 1e-3, 1e-6, 1e6)  # of random numbers: eps matters to small, a clamp to large ones
SIMPLE = (bool, int, float, str)  # of what a module holds
SETTINGS = (*SIMPLE, tuple)


class Trial:
    """What a module makes of an input, compared with what normalisations do.

    Args:
        module: in float64, with random weights.
        x: its input.
        derived: whether derivatives are compared, too.
    """

    def __init__(self, module: nn.Module, x: Tensor, derived: bool = True) -> None:
        self.module, self.inputs, self.derived = module, [x], derived
        self.made: dict[tuple[int, bool], list[Tensor] | None] = {}

    def apart(self, kind: type[PaddedNorm], row: NormWidth) -> float:
        """How far the module is from what one of this kind computes that has all its channels."""
        if not kind._fits(self.module, row):
            return float("inf")
        other = kind._of(double(self.module), row)
        worst = 0.0
        # To the largest of all it matters whether any is above 0.
        numbers = range(2 - kind.has_eps)
        for number, training in itertools.product(numbers, (False, True)):
            own = self._own(number, training)
            if own is None:
                return float("inf")
            try:
                apart = difference(own, self._of(other, number, training))
            except (RuntimeError, IndexError):  # there are fewer channels along this dimension
                return float("inf")
            if not apart <= CLOSE:
                return float("inf")
            worst = max(worst, apart)
        return worst

    def _own(self, number: int, training: bool) -> list[Tensor] | None:
        """What the module makes; None if it fails, or if somebody may read what it leaves."""
        key = number, training
        if key not in self.made:
            self.made[key] = None
            before = dict(vars(self.module))
            with suppress(RuntimeError, IndexError):
                self.made[key] = self._of(self.module, number, training)
            if not unchanged(self.module, before):
                self.made[key] = None
        return self.made[key]

    def _of(self, module: nn.Module, number: int, training: bool) -> list[Tensor]:
        if number == len(self.inputs):
            self.inputs.append(-self.inputs[0].abs())
        return made(module, self.inputs[number], training, derived=self.derived)


def drawn(x: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    """Random numbers, an example of each scale, with as many channels as ``x`` has along ``dim``.

    No other size is one, for which a mean over places would be none. They are drawn in single
    precision, which is several times as fast.
    """
    shape = [len(_SCALES), *range(2, x.dim())]
    shape.insert(dim % x.dim(), x.shape[dim])
    numbers = torch.randn(shape, generator=generator, dtype=torch.float32)
    numbers = numbers.to(x.device, torch.float64).mul_(2).add_(1)
    return numbers.mul_(torch.tensor(_SCALES).to(numbers).view(-1, *[1] * (x.dim() - 1)))


def unchanged(module: nn.Module, before: dict[str, Any]) -> bool:
    """Whether a module holds what it held, but for its mode."""
    after = vars(module)
    same = before.keys() == after.keys()
    return same and all(after[k] is v for k, v in before.items() if k != "training")


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest relative difference of what two modules make, and of its derivative.

    Relative to each example's own largest number, for they are of different scales.
    """
    worst = []
    for u, v in zip(one, other, strict=True):
        if u.shape != v.shape:
            return float("inf")
        apart, scale = _largest(u - v), _largest(u)
        worst.append((apart / scale.clamp_min_(torch.finfo(u.dtype).tiny)).max())
    return float(torch.stack(worst).max())  # NaN where one is


def _largest(t: Tensor) -> Tensor:
    """Each example's largest number, whatever its sign; without a copy of all of them."""
    least, most = t.reshape(len(t), -1).aminmax(dim=1)
    return torch.maximum(least.neg(), most)  # NaN where one is


def waves(out: Tensor) -> Tensor:
    """Weights of a sum over all that was made, each another."""
    return torch.arange(1.0, 1 + out.numel(), dtype=out.dtype).sin_().view(out.shape).to(out)


def made(
    module: nn.Module,
    x: Tensor,
    training: bool,
    weigh: Callable[[Tensor], Tensor] = waves,
    derived: bool = True,
) -> list[Tensor]:
    """What a module makes of an input; in training its derivative by the input, too.

    Args:
        module: in float64.
        x: its input.
        training: whether it is in training.
        weigh: gives the weights of the sum whose derivative it is.
        derived: whether there is that derivative.

    Raises:
        SurgeryError: it writes to its input.
    """
    module.train(training)
    state = torch.default_generator.get_state()
    derived &= training
    leaf = x.detach().requires_grad_(derived)
    try:
        torch.default_generator.manual_seed(0)
        with torch.set_grad_enabled(derived):
            given = leaf * 1  # it may write to this
            out: Tensor = type(module).forward(module, given)
    finally:
        torch.default_generator.set_state(state)
    if not torch.equal(given, x):
        raise SurgeryError(f"{type(module).__name__} writes to its input")
    if not derived:
        return [out]
    return [out.detach(), torch.autograd.grad((out * weigh(out)).sum(), leaf)[0]]


def double(module: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """A copy without hooks in float64; with a generator, of random weights."""
    result = copy.copy(module)
    _unhooked(result)
    vars(result).update({k: plain(v) for k, v in vars(result).items() if isinstance(v, SETTINGS)})
    result._modules = copy.deepcopy(dict(module._modules))
    for child in result.children():
        child.apply(_unhooked)
    result._parameters, result._buffers = dict(module._parameters), dict(module._buffers)
    for name, tensor in own_tensors(module).items():
        value = tensor.detach().double()
        if generator is not None:
            random = torch.rand(value.shape, generator=generator, dtype=value.dtype)
            value = 0.5 + random.to(value)
        if name in result._buffers:
            result._buffers[name] = value
        else:
            result._parameters[name] = nn.Parameter(value, requires_grad=False)
    return result


def _unhooked(module: nn.Module) -> None:
    """Let a copy forget its hooks."""
    kept = "training", "_modules", "_parameters", "_buffers"
    vars(module).update({k: v for k, v in vars(nn.Module()).items() if k not in kept})


def plain(value: Any) -> Any:
    """Without the memory that sizes of a trace have."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    return value


__all__ = [
    "CLOSE", "SAME", "SETTINGS", "SIMPLE", "Trial", "difference", "double", "drawn", "made",
    "plain", "unchanged", "waves",
]  # fmt: skip
