"""What normalisation over channels a module is, told by what it computes.

Not by its name, for every library has its own layer normalisation: on random numbers, of several
scales, in evaluation and in training, a module must agree with one of these of full width
(padded_norms.py, padded_reductions.py). Others need nothing to go on, as zeros change nothing to
them: a sum over channels, or a division by their length (`_same_of_half`).
"""

from __future__ import annotations

import copy
import inspect
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.nn.utils.parametrize import is_parametrized

from netslim.errors import SurgeryError
from netslim.graph.modules.ambient import dispatch_modes_off
from netslim.graph.modules.computed_convolutions import KeptConvolution, computes, may_compute
from netslim.graph.modules.padded_norms import (
    DIMS,
    KINDS,
    SCALED,
    ZEROS,
    NormWidth,
    PaddedNorm,
    PaddedRMSNorm,
    PaddedWholeNorm,
    own_tensors,
    usual_eps,
)
from netslim.graph.modules.scaled_norms import eps_held, scale_eps, scaled_weight

_LITERALS = (1e-5, 1e-6, 1e-8, 1e-12)  # where it stands in the code
_SAME = 1e-9  # relative, in float64: other formulas differ by far more
_CLOSE = 1e-5  # where a module casts to float32
_SCALES = (1.0, 1e-3, 1e-6, 1e6)  # of random numbers: eps matters to small, a clamp to large ones


@dataclass(frozen=True)
class Known:
    """What normalisation a module is.

    Attributes:
        row: of any module and width.
        casts: whether it computes in float32, whatever it is given.
        bare: whether it has no weights.
    """

    row: NormWidth
    casts: bool = False
    bare: bool = False

    @property
    def kind(self) -> str:
        return self.row.kind

    @property
    def dim(self) -> int:
        return self.row.dim


Memo = dict[Any, Known | None]


def known(module: nn.Module, x: Tensor, memo: Memo) -> Known | None:
    """What normalisation over channels a module is; None for others.

    Args:
        module: as a trace finds it, with sizes that remember.
        x: its input.
        memo: what was found before, of modules that are made alike.
    """
    if isinstance(module, PaddedNorm):
        return Known(module.padded_row, bare=module.padded_bare)
    if x.dim() < 2 or not _by_itself(module):
        return None
    whole = NormWidth("", PaddedWholeNorm.kind, 1, 0)
    if PaddedWholeNorm._fits(module, whole):
        return Known(whole, bare=not own_tensors(module))
    convolution = may_compute(module)
    widths = tuple(x.shape[d] if _as_many(module, x.shape[d]) else None for d in DIMS)
    if not convolution and not any(widths):
        return None
    made, memo = _made_of(module), _found(module, memo)
    key = (made, x.dim(), widths)
    if key not in memo:
        memo[key] = None
        # It is code of anybody's, on inputs that it was not made for. Nobody watches.
        with (
            suppress(Exception),
            DisableTorchFunction(),
            dispatch_modes_off(),
            torch.inference_mode(mode=False),
        ):
            memo[key] = _recognised(module, x)
    if convolution and memo[key] is None:
        memo[key] = _convolution(module, made, memo)
    return memo[key]


def _convolution(module: nn.Module, made: Any, memo: Memo) -> Known | None:
    """A convolution that computes its weight, whatever its input is."""
    if made not in memo:
        memo[made] = None
        with suppress(Exception):
            if (kind := computes(module)) is not None:
                memo[made] = Known(NormWidth("", kind, 1, 0))
    return memo[made]


# One cut traces a network several times. What modules of a class are is found once a process, as
# long as the class has the code that it had.
_FOUND: weakref.WeakKeyDictionary[type, tuple[list[int], Memo]] = weakref.WeakKeyDictionary()


def _found(module: nn.Module, memo: Memo) -> Memo:
    """Where to look for what was found of modules like this; ``memo`` for one like no other."""
    if not all(map(_comparable, module.modules())):
        return memo
    bases = [base for part in module.modules() for base in type(part).__mro__]
    own = [base for base in dict.fromkeys(bases) if base.__module__.partition(".")[0] != "torch"]
    state = [id(each) for base in own for each in vars(base).values()]
    before, found = _FOUND.get(type(module), ([], {}))
    if before != state or type(module) not in _FOUND:
        found = {}
        _FOUND[type(module)] = state, found
    return found


def _comparable(module: nn.Module) -> bool:
    """Whether all that a module holds beside tensors and parts is plain, whoever made it."""
    for name, value in vars(module).items():
        parts = value if isinstance(value, (tuple, list)) else (value,)
        if name not in _ORDINARY and not all(p is None or isinstance(p, _SIMPLE) for p in parts):
            return False
    return True


_SIMPLE = (bool, int, float, str)
_SETTINGS = (*_SIMPLE, tuple)
_ORDINARY = frozenset(vars(nn.Module()))  # attributes of every module
_REPLACED = frozenset({"forward", "extra_repr", "reset_parameters"})  # of a class, and not missed


def _made_of(module: nn.Module) -> tuple[Any, ...]:
    """Equal for modules that are made alike; what cannot be compared is like nothing else."""
    own = {k: _plain(v) for k, v in vars(module).items() if k not in _ORDINARY}
    settings = {k: v for k, v in own.items() if v is None or isinstance(v, (*_SETTINGS, list))}
    other = 0
    if len(settings) < len(own):
        other = id(module)
    tensors = {**module._parameters, **module._buffers}
    held = ((name, p is None or p.shape) for name, p in tensors.items())
    children = tuple(map(_made_of, module.children()))
    # The class itself would keep what is found of it alive.
    return type(module).__qualname__, repr(settings), other, tuple(held), children


def _by_itself(module: nn.Module) -> bool:
    """Whether a module's own class computes all that its parameters take part in."""
    if "forward" in vars(module) or is_parametrized(module):
        return False
    if isinstance(module, torch.jit.ScriptModule | KeptConvolution):
        return False
    if _has_more(type(module)) or not _takes_one(type(module).forward):
        return False
    return not any(True for child in module.children() for _ in child.parameters())


def _takes_one(forward: Any) -> bool:
    """Whether a ``forward`` can be given nothing but its input, as what takes its place."""
    if (getattr(forward, "__module__", None) or "").startswith("torch."):
        return True
    code = getattr(inspect.unwrap(forward), "__code__", None)
    if code is None:  # a callable of another kind
        return False
    rest = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    return bool(code.co_argcount == 2 and not code.co_kwonlyargcount and not rest)


def _has_more(kind: type[nn.Module]) -> bool:
    """Whether others may use of a class what is gone when it is another one."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "torch":
            return False
        if any(not name.startswith("_") and name not in _REPLACED for name in vars(base)):
            return True
    return False


def _plain(value: Any) -> Any:
    """Without the memory that sizes of a trace have."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    return value


def _recognised(module: nn.Module, x: Tensor) -> Known | None:
    generator = torch.Generator().manual_seed(0)
    trials: dict[int, _Trial] = {}
    # What PyTorch's own normalisations are made from is probably one.
    likely = sorted(KINDS.items(), key=lambda each: not isinstance(module, each[1].__bases__[-1]))
    for name, kind in likely:
        for dim in kind.dims:
            channels = x.shape[dim]
            if not _as_many(module, channels):
                continue
            if dim not in trials:
                trials[dim] = _Trial(_double(module, generator), _drawn(x, dim, generator))
            for row in _rows(module, kind, NormWidth("", name, dim, channels)):
                apart = trials[dim].apart(kind, row)
                if apart < _CLOSE and _elsewhere(trials[dim].module, x, kind, row):
                    if _scales(module, x, row, generator):
                        row = replace(row, kind=SCALED)
                    return Known(row, apart > _SAME, not own_tensors(module))
    for dim in DIMS:
        if _as_many(module, x.shape[dim]) and _same_of_half(module, x, dim, generator):
            row = NormWidth("", ZEROS, dim, x.shape[dim])
            return Known(row, bare=not own_tensors(module))
    return None


def _elsewhere(module: nn.Module, x: Tensor, kind: type[PaddedNorm], row: NormWidth) -> bool:
    """Whether it is the same in a large batch and at many places, as code may ask for sizes.

    At so many places derivatives are not taken, as that needs many times the memory.
    """
    generator = torch.Generator().manual_seed(1)
    for batch, places in ((65, 2), (2, 1030)):
        shape = [batch, places, *[1] * (x.dim() - 3)][: x.dim() - 1]
        shape.insert(row.dim % x.dim(), row.width)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32)
        trial = _Trial(module, drawn.to(x.device, torch.float64), derived=places < batch)
        if not trial.apart(kind, row) < _CLOSE:
            return False
    return True


def _same_of_half(module: nn.Module, x: Tensor, dim: int, generator: torch.Generator) -> bool:
    """Whether a module makes the same of every other channel as of these and zeros between them.

    And another thing where there are no zeros, or it would not be about this dimension.
    """
    kept = torch.arange(0, x.shape[dim], 2, device=x.device)
    whole = _double(module, generator)
    before, half = dict(vars(whole)), _half(whole, x.shape[dim], kept)
    drawn, some = _drawn(x, dim, generator), _Some(dim, kept)
    # Of one sign, too: zeros are larger than all that is negative.
    for values, training in itertools.product((drawn, drawn.abs(), -drawn.abs()), (False, True)):
        if not some.apart(whole, half, values, training) <= _SAME:
            return False
    with suppress(RuntimeError, IndexError, SurgeryError):
        full = _made(whole, drawn, training=False)
        own = _made(half, drawn.index_select(dim, kept), training=False)
        mixes = _difference(list(map(some.chosen, full, own)), own) > _CLOSE
        return mixes and _unchanged(whole, before)
    return False


def _scales(module: nn.Module, x: Tensor, row: NormWidth, generator: torch.Generator) -> bool:
    """Whether a module with every other channel, and with the weight and the eps that go with
    that, makes the same of these as with zeros between them; ``row`` says what it is.
    """
    if row.kind != PaddedRMSNorm.kind or row.weight not in own_tensors(module):
        return False
    if eps_held(module) is None:
        return False
    channels = x.shape[row.dim]
    kept = torch.arange(0, channels, 2, device=x.device)
    whole, values = _double(module, generator), _drawn(x, row.dim, generator)
    half = _half(whole, channels, kept)
    weight = own_tensors(half)[row.weight]
    weight.copy_(scaled_weight(weight, channels, row.plus_one))
    scale_eps(half, replace(row, width=channels, eps=usual_eps(whole)))
    if hasattr(half, "normalized_shape"):
        half.normalized_shape = _narrowed(half.normalized_shape, channels, len(kept))
    some = _Some(row.dim, kept)
    return all(some.apart(whole, half, values, training) < _CLOSE for training in (False, True))


def _narrowed(shape: Any, channels: int, kept: int) -> Any:
    """A ``normalized_shape`` of fewer channels, which plans see to in every class."""
    if isinstance(shape, int):
        return kept
    return tuple(kept if size == channels else size for size in shape)


@dataclass(frozen=True)
class _Some:
    """Some of the channels along a dimension, and zeros where the others are."""

    dim: int
    kept: Tensor

    def spread(self, of_kept: Tensor, like: Tensor) -> Tensor:
        """With zeros between them, where there are channels."""
        if of_kept.shape == like.shape:
            return of_kept
        return torch.zeros_like(like).index_copy(self.dim, self.kept, of_kept)

    def chosen(self, of_all: Tensor, like: Tensor) -> Tensor:
        if of_all.shape == like.shape:
            return of_all
        return of_all.index_select(self.dim, self.kept)

    def apart(self, whole: nn.Module, half: nn.Module, values: Tensor, training: bool) -> float:
        """How far what one makes of these channels alone is from what another makes of all."""
        given = values.index_select(self.dim, self.kept)
        try:
            # Of a single number divided by its own length the derivative is none but rounding.
            derived = len(self.kept) > 1
            own = _made(half, given, training, derived=derived)
            waves = partial(self.spread, _waves(own[0]))
            full = _made(whole, self.spread(given, values), training, waves, derived)
            return _difference(list(map(self.chosen, full, own)), own)
        except (RuntimeError, IndexError, SurgeryError):
            return float("inf")


def _half(module: nn.Module, channels: int, kept: Tensor) -> nn.Module:
    """A copy that holds the numbers of these channels alone."""
    result = _double(module)
    for name, tensor in own_tensors(result).items():
        part = tensor.detach().index_select(tensor.shape.index(channels), kept)
        if name in result._buffers:
            result._buffers[name] = part
        else:
            result._parameters[name] = nn.Parameter(part, requires_grad=False)
    return result


def _as_many(module: nn.Module, channels: int) -> bool:
    """Whether what a module holds are numbers for each of so many channels."""
    return all(t.numel() == channels for t in own_tensors(module).values())


def _rows(module: nn.Module, kind: type[PaddedNorm], row: NormWidth) -> Iterator[NormWidth]:
    """What a module of a kind may be.

    Its tensors are weight and bias in either order, and where it has no attribute of a usual name,
    eps is another number that it holds, or a usual one.
    """
    names = [*own_tensors(module), "", ""]
    pairs = [(names[0], names[1]), (names[1], names[0])]
    if {"weight", "bias"} >= {*names[:-2]}:
        pairs = [("weight", "bias")]
    values: list[float | None] = [None]
    if kind.has_eps and usual_eps(module) is None and not isinstance(module, nn.RMSNorm):
        held = [v for v in vars(module).values() if isinstance(v, float)]
        values = list(dict.fromkeys([*held, *_LITERALS, None]))
    for (weight, bias), eps in itertools.product(pairs, values):
        for plus_one in (False, True)[: 1 + bool(names[0])]:
            yield replace(row, weight=weight, bias=bias, plus_one=plus_one, eps=eps)


def _drawn(x: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    """Random numbers, an example of each scale, with as many channels as ``x`` has along ``dim``.

    No other size is one, for which a mean over places would be none. They are drawn in single
    precision, which is several times as fast.
    """
    shape = [len(_SCALES), *range(2, x.dim())]
    shape.insert(dim % x.dim(), x.shape[dim])
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32)
    drawn = drawn.to(x.device, torch.float64).mul_(2).add_(1)
    return drawn * torch.tensor(_SCALES).to(drawn).view(-1, *[1] * (x.dim() - 1))


class _Trial:
    """What a module makes of an input, compared with what normalisations do.

    Args:
        module: in float64, with random weights.
        x: its input.
        derived: whether derivatives are compared, too.
    """

    def __init__(self, module: nn.Module, x: Tensor, derived: bool = True) -> None:
        self.module, self.inputs, self.derived = module, (x, -x.abs()), derived
        self.made: dict[tuple[int, bool], list[Tensor] | None] = {}

    def apart(self, kind: type[PaddedNorm], row: NormWidth) -> float:
        """How far the module is from what one of this kind computes that has all its channels."""
        if not kind._fits(self.module, row):
            return float("inf")
        other = kind._of(_double(self.module), row)
        worst = 0.0
        # To the largest of all it matters whether any is above 0.
        numbers = range(2 - kind.has_eps)
        for number, training in itertools.product(numbers, (False, True)):
            own = self._own(number, training)
            if own is None:
                return float("inf")
            try:
                apart = _difference(own, self._of(other, number, training))
            except (RuntimeError, IndexError):  # there are fewer channels along this dimension
                return float("inf")
            if not apart <= _CLOSE:
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
            if not _unchanged(self.module, before):
                self.made[key] = None
        return self.made[key]

    def _of(self, module: nn.Module, number: int, training: bool) -> list[Tensor]:
        return _made(module, self.inputs[number], training, derived=self.derived)


def _unchanged(module: nn.Module, before: dict[str, Any]) -> bool:
    """Whether a module holds what it held, but for its mode."""
    after = vars(module)
    same = before.keys() == after.keys()
    return same and all(after[k] is v for k, v in before.items() if k != "training")


def _difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest relative difference of what two modules make, and of its derivative.

    Relative to each example's own largest number, for they are of different scales.
    """
    worst = []
    for u, v in zip(one, other, strict=True):
        if u.shape != v.shape:
            return float("inf")
        apart, scale = (t.abs().reshape(len(t), -1).amax(1) for t in (u - v, u))
        worst.append((apart / scale.clamp_min(torch.finfo(u.dtype).tiny)).max())
    return float(torch.stack(worst).max())  # NaN where one is


def _waves(out: Tensor) -> Tensor:
    """Weights of a sum over all that was made, each another."""
    return torch.arange(1.0, 1 + out.numel(), dtype=out.dtype).sin().view(out.shape).to(out)


def _made(
    module: nn.Module,
    x: Tensor,
    training: bool,
    weigh: Callable[[Tensor], Tensor] = _waves,
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
    x = x.clone().requires_grad_(derived)
    given = x * 1
    try:
        torch.default_generator.manual_seed(0)
        with torch.set_grad_enabled(derived):
            out: Tensor = type(module).forward(module, given)
    finally:
        torch.default_generator.set_state(state)
    if not torch.equal(given, x):
        raise SurgeryError(f"{type(module).__name__} writes to its input")
    if not derived:
        return [out]
    return [out.detach(), torch.autograd.grad((out * weigh(out)).sum(), x)[0]]


def _double(module: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """A copy without hooks in float64; with a generator, of random weights."""
    result = copy.copy(module)
    _unhooked(result)
    vars(result).update({k: _plain(v) for k, v in vars(result).items() if isinstance(v, _SETTINGS)})
    result._modules = copy.deepcopy(dict(module._modules))
    for child in result.children():
        child.apply(_unhooked)
    result._parameters, result._buffers = dict(module._parameters), dict(module._buffers)
    for name, tensor in own_tensors(module).items():
        value = tensor.detach().double()
        if generator is not None:
            drawn = torch.rand(value.shape, generator=generator, dtype=value.dtype)
            value = 0.5 + drawn.to(value)
        if name in result._buffers:
            result._buffers[name] = value
        else:
            result._parameters[name] = nn.Parameter(value, requires_grad=False)
    return result


def _unhooked(module: nn.Module) -> None:
    """Let a copy forget its hooks."""
    kept = "training", "_modules", "_parameters", "_buffers"
    vars(module).update({k: v for k, v in vars(nn.Module()).items() if k not in kept})
