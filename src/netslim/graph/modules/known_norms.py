"""What normalisation over channels a module is, told by what it computes.

Not by its name, for every library has its own layer normalisation: on random numbers, of several
scales, in evaluation and in training, a module must agree with one of these of full width
(padded_norms.py, padded_reductions.py). Others need nothing to go on, as zeros change nothing to
them: a sum over channels, or a division by their length (`_same_of_half`).
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Iterator, Mapping
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
from netslim.graph.modules.norm_trials import (
    CLOSE,
    SAME,
    SETTINGS,
    SIMPLE,
    Trial,
    difference,
    double,
    drawn,
    made,
    plain,
    unchanged,
    waves,
)
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
from netslim.graph.modules.pytorchs_norms import pytorchs
from netslim.graph.modules.scaled_norms import eps_held, scale_eps, scaled_weight

_LITERALS = (1e-5, 1e-6, 1e-8, 1e-12)  # where it stands in the code


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
    if (row := pytorchs(module, x)) is not None:
        return Known(row, bare=not own_tensors(module))
    convolution = may_compute(module)
    widths = tuple(x.shape[d] if _as_many(module, x.shape[d]) else None for d in DIMS)
    if not convolution and not any(widths):
        return None
    like, memo = _made_of(module), _found(module, memo)
    key = (like, x.dim(), widths)
    if key not in memo:
        memo[key] = None
        family = _alike(module, x.dim(), widths)
        # It is code of anybody's, on inputs that it was not made for. Nobody watches.
        with (
            suppress(Exception),
            DisableTorchFunction(),
            dispatch_modes_off(),
            torch.inference_mode(mode=False),
        ):
            before = memo.get(family)
            memo[key] = (before and _again(module, x, before)) or _recognised(module, x)
            # Of one or two numbers much is the same that is not of more.
            if (found := memo[key]) is not None and found.row.width > 2:
                memo[family] = found
    if convolution and memo[key] is None:
        memo[key] = _convolution(module, like, memo)
    return memo[key]


def _convolution(module: nn.Module, like: Any, memo: Memo) -> Known | None:
    """A convolution that computes its weight, whatever its input is."""
    if like not in memo:
        memo[like] = None
        with suppress(Exception):
            if (kind := computes(module)) is not None:
                memo[like] = Known(NormWidth("", kind, 1, 0))
    return memo[like]


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
        if name not in _ORDINARY and not all(p is None or isinstance(p, SIMPLE) for p in parts):
            return False
    return True


_ORDINARY = frozenset(vars(nn.Module()))  # attributes of every module
_REPLACED = frozenset({"forward", "extra_repr", "reset_parameters"})  # of a class, and not missed


def _alike(module: nn.Module, dims: int, widths: tuple[int | None, ...]) -> tuple[Any, ...]:
    """Equal for modules that are made alike but for their widths, whatever holds these.

    And but for the number of groups, which often goes with the width.
    """
    of_width = {width: f"width {widths.index(width)}" for width in widths if width is not None}
    if isinstance(module, nn.GroupNorm) and plain(module.num_groups) > 1:
        of_width.setdefault(plain(module.num_groups), "groups")
    places = tuple(None if width is None else of_width[width] for width in widths)
    return "of any width", _made_of(module, of_width), dims, places


def _made_of(module: nn.Module, of_width: Mapping[int, str] | None = None) -> tuple[Any, ...]:
    """Equal for modules that are made alike; what cannot be compared is like nothing else.

    Args:
        module: any.
        of_width: what stands for sizes that do not matter.
    """
    of_width = of_width or {}
    own = {k: _put(plain(v), of_width) for k, v in vars(module).items() if k not in _ORDINARY}
    settings = {k: v for k, v in own.items() if v is None or isinstance(v, (*SETTINGS, list))}
    other = 0
    if len(settings) < len(own):
        other = id(module)
    tensors = {**module._parameters, **module._buffers}
    held = ((name, p is None or _put(tuple(p.shape), of_width)) for name, p in tensors.items())
    children = tuple(_made_of(child, of_width) for child in module.children())
    # The class itself would keep what is found of it alive.
    return type(module).__qualname__, repr(settings), other, tuple(held), children


def _put(value: Any, of_width: Mapping[int, str]) -> Any:
    """A setting with what stands for sizes in their place."""
    if isinstance(value, tuple):
        return tuple(_put(each, of_width) for each in value)
    if type(value) is int:
        return of_width.get(value, value)
    return value


def _by_itself(module: nn.Module) -> bool:
    """Whether a module's own class computes all that its parameters take part in."""
    if "forward" in vars(module) or is_parametrized(module):
        return False
    if type(module).__call__ is not nn.Module.__call__:  # which may do more than the forward
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


def _again(module: nn.Module, x: Tensor, before: Known) -> Known | None:
    """What a module is, if that is what another one is that is made alike but for its width.

    It must be that at this width, too. In a large batch and at many places it has been tried there:
    code that asks for these sizes asks for them at any width.
    """
    generator = torch.Generator().manual_seed(0)
    row = replace(before.row, width=x.shape[before.dim])
    if row.kind == ZEROS:
        same = _same_of_half(module, x, row.dim, generator)
        return replace(before, row=row) if same else None
    scaled = row.kind == SCALED
    if scaled:
        row = replace(row, kind=PaddedRMSNorm.kind)
    trial = Trial(double(module, generator), drawn(x, row.dim, generator))
    apart = trial.apart(KINDS[row.kind], row)
    if not apart < CLOSE or (apart > SAME) != before.casts:
        return None
    if _scales(module, x, row, generator) != scaled:
        return None
    return replace(before, row=replace(row, kind=before.kind))


def _recognised(module: nn.Module, x: Tensor) -> Known | None:
    generator = torch.Generator().manual_seed(0)
    trials: dict[int, Trial] = {}
    # What PyTorch's own normalisations are made from is probably one.
    likely = sorted(KINDS.items(), key=lambda each: not isinstance(module, each[1].__bases__[-1]))
    for name, kind in likely:
        for dim in kind.dims:
            channels = x.shape[dim]
            if not _as_many(module, channels):
                continue
            if dim not in trials:
                trials[dim] = Trial(double(module, generator), drawn(x, dim, generator))
            for row in _rows(module, kind, NormWidth("", name, dim, channels)):
                apart = trials[dim].apart(kind, row)
                if apart < CLOSE and _elsewhere(trials[dim].module, x, kind, row):
                    if _scales(module, x, row, generator):
                        row = replace(row, kind=SCALED)
                    return Known(row, apart > SAME, not own_tensors(module))
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
        numbers = torch.randn(shape, generator=generator, dtype=torch.float32)
        trial = Trial(module, numbers.to(x.device, torch.float64), derived=places < batch)
        if not trial.apart(kind, row) < CLOSE:
            return False
    return True


def _same_of_half(module: nn.Module, x: Tensor, dim: int, generator: torch.Generator) -> bool:
    """Whether a module makes the same of every other channel as of these and zeros between them.

    And another thing where there are no zeros, or it would not be about this dimension.
    """
    kept = torch.arange(0, x.shape[dim], 2, device=x.device)
    whole = double(module, generator)
    before, half = dict(vars(whole)), _half(whole, x.shape[dim], kept)
    given, some = drawn(x, dim, generator), _Some(dim, kept)
    # Of one sign, too: zeros are larger than all that is negative.
    for values, training in itertools.product((given, given.abs(), -given.abs()), (False, True)):
        if not some.apart(whole, half, values, training) <= SAME:
            return False
    with suppress(RuntimeError, IndexError, SurgeryError):
        full = made(whole, given, training=False)
        own = made(half, given.index_select(dim, kept), training=False)
        mixes = difference(list(map(some.chosen, full, own)), own) > CLOSE
        return mixes and unchanged(whole, before)
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
    whole, values = double(module, generator), drawn(x, row.dim, generator)
    half = _half(whole, channels, kept)
    weight = own_tensors(half)[row.weight]
    weight.copy_(scaled_weight(weight, channels, row.plus_one))
    scale_eps(half, replace(row, width=channels, eps=usual_eps(whole)))
    if hasattr(half, "normalized_shape"):
        half.normalized_shape = _narrowed(half.normalized_shape, channels, len(kept))
    some = _Some(row.dim, kept)
    return all(some.apart(whole, half, values, training) < CLOSE for training in (False, True))


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
            own = made(half, given, training, derived=derived)
            weights = partial(self.spread, waves(own[0]))
            full = made(whole, self.spread(given, values), training, weights, derived)
            return difference(list(map(self.chosen, full, own)), own)
        except (RuntimeError, IndexError, SurgeryError):
            return float("inf")


def _half(module: nn.Module, channels: int, kept: Tensor) -> nn.Module:
    """A copy that holds the numbers of these channels alone."""
    result = double(module)
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
