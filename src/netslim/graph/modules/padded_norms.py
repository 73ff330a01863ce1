"""Normalisations that go on over the width they had: channels that were cut away count as zeros.

A layer normalisation takes mean and deviation over all channels, so without some of them it is
another function of the others. What the network would compute if those were silent, zeros at its
input, takes no more than to remember how many there were. Let k channels x be left of C. With C - k
zeros beside them, and s = k / C, where a bar is the mean over the k::

    mean      m = s bar(x)
    variance  s bar((x - m)^2) + (1 - s) m^2      (each of the zeros is m away from the mean)

No two large numbers are taken from each other there, as in the difference of a mean square and m^2.
So are the root of the mean square, s times that of the k channels, and the statistics of a group
of channels, where each group lost as many.

A module that computes one of these, whatever its name (known_norms.py), becomes one by a change of
its class, as `torch.nn.utils.parametrize` does it: it stays the same object with the same
parameters, hooks and place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import Proxy

from netslim.errors import SurgeryError
from netslim.graph.modules.computed_convolutions import (
    CONVOLUTIONS,
    NotScripted,
)

SLIDING = "sliding"  # `PaddedSliding`
ZEROS = "zeros"  # in the rows of plans, for what stays as it is: zeros change nothing to it
SCALED = "scaled"  # likewise, for what stays and has other numbers (scaled_norms.py)
DIMS = (-1, 1)  # that channels may be along
KINDS: dict[str, type[PaddedNorm]] = {}  # by their names in the rows of plans
_EPS = ("eps", "variance_epsilon", "epsilon")  # what libraries call it


def _least() -> torch.dtype:
    """Of which data type at least the eps is that PyTorch takes where none is given."""
    made = nn.functional.rms_norm(torch.tensor([1e-3], dtype=torch.bfloat16), (1,))
    return torch.float32 if made > 0.5 else torch.bfloat16  # 1e-6 is much more, or less, than eps


_LEAST = _least()  # newer versions of PyTorch compute in float32, eps and all


@dataclass(frozen=True)
class NormWidth:
    """A normalisation that goes on over ``width`` channels, whatever is cut of them.

    Attributes:
        module: its path.
        kind: one of `KINDS`, such as ``"layer"``; or of `CONVOLUTIONS`, whose weight is normalised
            (computed_convolutions.py); or `ZEROS`, or `SCALED`.
        dim: of its input, the one that the channels are along: 1 or -1.
        width: how many there were at first.
        weight: name of the parameter or buffer that the result is multiplied with, of any shape.
        bias: likewise, of what is added.
        plus_one: whether 1 is added to the weight.
        eps: what is added to the variance; None where an attribute of the module says it. Where
            that changes with the width (`SCALED`), what it was at first.
        size: of its input along ``dim``, where the module has no weights whose rows tell it.
        lost: likewise, which entries of the input go; of a `PaddedSliding`, of all cuts so far.
        call: where it is a call within the code of the module, its place there (call_sites.py); and
            ``kind`` is of `padded_calls.REDUCTIONS`, or `ZEROS`, and ``dim`` any of the input's.
        text: how that is written.
    """

    module: str
    kind: str
    dim: int
    width: int
    weight: str = "weight"
    bias: str = "bias"
    plus_one: bool = False
    eps: float | None = None
    size: int = 0
    lost: tuple[int, ...] = ()
    call: str = ""
    text: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """The module, and the call in its code: no two rows of a plan have the same."""
        return self.module, self.call

    @property
    def where(self) -> str:
        """The place for people."""
        if not self.call:
            return self.module
        return f"{self.text} in {self.module or 'the model itself'}"

    @property
    def lasting(self) -> NormWidth:
        """Without what is true of one cut alone."""
        if self.kind == SLIDING:
            return replace(self, size=0)
        return replace(self, size=0, lost=())

    def after(self, first: NormWidth) -> NormWidth:
        """The row for both of two cuts, of which this one came second."""
        if self.kind != SLIDING:
            return first.lasting
        left = [place for place in range(self.width) if place not in first.lost]
        gone = sorted([*first.lost, *(left[place] for place in self.lost)])
        return replace(first.lasting, lost=tuple(gone))

    def __str__(self) -> str:
        if self.kind in CONVOLUTIONS:
            return f"{self.module}: keeps the weight that it computes for {self.width} channels"
        if self.kind == ZEROS:
            return f"{self.where}: reads zeros of channels that are gone, as of silent ones"
        if self.call:
            return f"{self.where}: is taken over {self.width} channels as before"
        if self.kind == SCALED:
            return f"{self.module}: normalises over {self.width} channels as before, scaled to that"
        return f"{self.module}: {KINDS[self.kind].does} over {self.width} channels as before"


class PaddedNorm(NotScripted):
    """A normalisation as if its input had ``padded_width`` channels, of which the last are zeros.

    ``(N, C, ...)`` or ``(..., C)``, as ``padded_dim`` says, with C up to that width, to the same
    shape. Submodules, such as an activation, follow the normalisation.

    Attributes:
        padded_width: over how many channels it normalises.
        padded_dim: 1 or -1, where the channels are.
        padded_eps: is added to the variance; None for the least number of the data type.
        padded_weight: name of the parameter or buffer that the result is multiplied with.
        padded_bias: likewise, of what is added.
        padded_plus_one: whether 1 is added to the weight.

    Example:
        >>> convnext = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> half = netslim.Budget(cut_channels=0.5)
        >>> small = netslim.slim(convnext, torch.randn(1, 3), budget=half)
        >>> isinstance(small[1], netslim.models.PaddedNorm), small[1]
        (True, PaddedLayerNorm(width=8, dim=-1, eps=1e-05))
    """

    kind: ClassVar[str]
    does: ClassVar[str] = "normalises"  # in words
    has_eps: ClassVar[bool] = True
    dims: ClassVar[tuple[int, ...]] = DIMS
    padded_width: int
    padded_dim: int
    padded_eps: float | None
    padded_weight: str = "weight"  # here, for those that were cut before there were others
    padded_bias: str = "bias"
    padded_plus_one: bool = False

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    @classmethod
    def _of(cls, module: nn.Module, norm: NormWidth) -> Any:
        """Make this of a module that normalises, in place.

        Raises:
            SurgeryError: it cannot be made of that.
        """
        if not cls._fits(module, norm) or norm.dim not in cls.dims or norm.width < 1:
            raise SurgeryError(
                f"a {type(module).__name__} cannot go on as a {cls.kind} normalisation over "
                f"{norm.width} channels: trace and select again"
            )
        eps = norm.eps
        if eps is None:
            eps = usual_eps(module)
        try:
            module.__class__ = cls
        except TypeError as error:
            raise SurgeryError(f"a {type(module).__name__} keeps its class: {error}") from error
        vars(module).update(
            padded_width=norm.width,
            padded_dim=norm.dim,
            padded_eps=eps,
            padded_weight=norm.weight,
            padded_bias=norm.bias,
            padded_plus_one=norm.plus_one,
        )
        return module

    @property
    def padded_row(self) -> NormWidth:
        """What a plan says of it, but for its name."""
        eps = self.padded_eps
        if eps == usual_eps(self):
            eps = None
        names = self.padded_weight, self.padded_bias, self.padded_plus_one
        return NormWidth("", self.kind, self.padded_dim, self.padded_width, *names, eps)

    @property
    def padded_bare(self) -> bool:
        """Whether it has no weights whose rows would tell which channels it loses."""
        return not own_tensors(self)

    @classmethod
    def _fits(cls, module: nn.Module, norm: NormWidth) -> bool:
        """Whether a module has what this needs."""
        return norm.eps is not None or usual_eps(module) is not None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; statistics are taken in float32 at least, as PyTorch's own do it."""
        share = x.shape[self.padded_dim] / self.padded_width
        eps = self.padded_eps
        if eps is None:
            eps = least_number(x)
        given = x.dtype
        out = self._computed(x.to(at_least(x, torch.float32)), share, eps)
        if not self._casts_up(x):
            out = out.to(given)
        for module in self.children():
            out = module(out)
        return out

    def _casts_up(self, x: Tensor) -> bool:
        """Whether the result is float32, as PyTorch's own are under autocast, but on CPUs."""
        if isinstance(x, Proxy) or x.device.type == "cpu":
            return False
        return torch.is_autocast_enabled(x.device.type)

    def _computed(self, x: Tensor, share: float, eps: float) -> Tensor:
        """With weight and bias; ``share`` of the channels are given."""
        if not self._differentiated(x) and eps:
            return self._inferred(x, share, eps)
        return self._affine(self._normalised(x, share, eps))

    def _differentiated(self, x: Tensor) -> bool:
        """Whether derivatives are taken, or operators written down for whoever takes them."""
        # torch.compile knows the public function alone; it is False there, as it folds it.
        tracing: bool = torch.jit.is_tracing()  # type: ignore[no-untyped-call, attr-defined]
        written_down = isinstance(x, Proxy) or tracing
        if written_down or forward_ad._current_level >= 0:
            return True
        parameters = (p for p in self._parameters.values() if p is not None)
        return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))

    def _inferred(self, x: Tensor, share: float, eps: float) -> Tensor:
        """`_computed` where nobody takes a derivative."""
        return self._affine(self._normalised(x, share, eps))

    def _normalised(self, x: Tensor, share: float, eps: float) -> Tensor:
        """Without weight and bias."""
        raise NotImplementedError

    def _held(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias, as far as there are any, in the type that is computed in."""
        held = [getattr(self, name, None) for name in (self.padded_weight, self.padded_bias)]
        weight, bias = [p if p is None else p.flatten().to(x.dtype) for p in held]
        if self.padded_plus_one and weight is not None:
            weight = weight + 1
        return weight, bias

    def _affine(self, x: Tensor) -> Tensor:
        """With weight and bias, as far as there are any."""
        weight, bias = self._held(x)
        x = x.movedim(self.padded_dim, -1)
        if weight is not None:
            x = x * weight
        if bias is not None:
            x = x + bias
        return x.movedim(-1, self.padded_dim)

    def extra_repr(self) -> str:
        return f"width={self.padded_width}, dim={self.padded_dim}, eps={self.padded_eps}"


class PaddedLayerNorm(PaddedNorm, nn.LayerNorm):
    """A layer normalisation over channels of which some are missing: `PaddedNorm`."""

    kind = "layer"

    def _normalised(self, x: Tensor, share: float, eps: float) -> Tensor:
        out = standardised(x, self.padded_dim, share, eps)
        if self.padded_dim == -1:  # as PyTorch's own, whatever the layout of the input is
            out = out.contiguous()
        return out

    def _inferred(self, x: Tensor, share: float, eps: float) -> Tensor:
        """PyTorch's own kernel, corrected; weights lie in it, so that it is passed over less."""
        weight, bias = self._held(x)
        x = x.movedim(self.padded_dim, -1)
        out, mean, over = torch.native_layer_norm(x, [x.shape[-1]], weight, None, eps)
        scale, shift = _correction(mean, over, share, eps)
        shift = scale * shift
        out = out.mul_(scale)
        if weight is None:
            out = out.add_(shift)
        else:
            out = out.addcmul_(shift, weight)
        if bias is not None:
            out = out.add_(bias)
        return out.movedim(-1, self.padded_dim)


class PaddedWholeNorm(PaddedNorm, nn.LayerNorm):
    """A layer normalisation over channels and places alike, with a weight for each: `PaddedNorm`.

    As many of its last dimensions as PyTorch's own takes, of which one is that of the channels.
    """

    kind = "whole"

    @classmethod
    def _fits(cls, module: nn.Module, norm: NormWidth) -> bool:
        """Whether a module has what this needs."""
        return type(module) is nn.LayerNorm and len(module.normalized_shape) > 1

    def _normalised(self, x: Tensor, share: float, eps: float) -> Tensor:
        over = list(range(-len(self.normalized_shape), 0))
        return standardised(x, over, share, eps).contiguous()

    def _affine(self, x: Tensor) -> Tensor:
        for held, use in ((self.weight, torch.mul), (self.bias, torch.add)):
            if held is not None:
                x = use(x, held.to(x.dtype))
        return x


class PaddedGroupNorm(PaddedNorm, nn.GroupNorm):
    """A group normalisation whose groups have all lost as many channels: `PaddedNorm`."""

    kind = "group"
    dims = (1,)

    @classmethod
    def _fits(cls, module: nn.Module, norm: NormWidth) -> bool:
        """Whether a module has what this needs."""
        return super()._fits(module, norm) and isinstance(module, nn.GroupNorm)

    def _normalised(self, x: Tensor, share: float, eps: float) -> Tensor:
        grouped = torch.unflatten(x, 1, (self.num_groups, -1)).flatten(2)
        return standardised(grouped, -1, share, eps).reshape(x.shape)

    def _inferred(self, x: Tensor, share: float, eps: float) -> Tensor:
        """PyTorch's own kernel, corrected; what is done to groups and channels is done at once."""
        examples, channels = x.shape[:2]
        sizes = examples, channels, math.prod(x.shape[2:]), self.num_groups
        out, mean, over = torch.native_group_norm(x, None, None, *sizes, eps)
        scale, shift = _correction(mean, over, share, eps)
        each = channels // self.num_groups
        scale, shift = scale.repeat_interleave(each, 1), (scale * shift).repeat_interleave(each, 1)
        weight, bias = self._held(x)
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        if bias is not None:
            shift = shift + bias
        places = examples, channels, *(1 for _ in x.shape[2:])
        return out.mul_(scale.view(places)).add_(shift.view(places))


class PaddedRMSNorm(PaddedNorm, nn.RMSNorm):
    """A normalisation by the root of the mean square, over more channels: `PaddedNorm`."""

    kind = "rms"

    @classmethod
    def _fits(cls, module: nn.Module, norm: NormWidth) -> bool:
        """Whether a module has what this needs."""
        return True  # PyTorch's own function has an eps where none is given

    def _normalised(self, x: Tensor, share: float, eps: float) -> Tensor:
        square = x.square().mean(self.padded_dim, keepdim=True)
        return x * torch.rsqrt(square * share + eps)


class PaddedResponseNorm(PaddedNorm):
    """A global response normalisation (ConvNeXt V2) over more channels: `PaddedNorm`.

    The length of each channel's map is divided by the mean length of all; a missing one has none.
    """

    kind = "response"

    @classmethod
    def _fits(cls, module: nn.Module, norm: NormWidth) -> bool:
        """Whether a module has what this needs."""
        tensors = [getattr(module, name, None) for name in (norm.weight, norm.bias)]
        held = all(isinstance(tensor, Tensor) for tensor in tensors)
        return held and super()._fits(module, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh each channel by its share of the mean length."""
        channels_last = x.movedim(self.padded_dim, -1)
        length = torch.linalg.vector_norm(channels_last, dim=(1, 2), keepdim=True)
        share = x.shape[self.padded_dim] / self.padded_width
        response = length / (length.mean(-1, keepdim=True) * share + self.padded_eps)
        weight, bias = self._held(x)
        assert weight is not None  # `_fits` has looked
        assert bias is not None
        out: Tensor = channels_last + bias + weight * (channels_last * response)
        return out.movedim(-1, self.padded_dim)


def at_least(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The data type of the input, if it is not smaller; operators are written down for any type."""
    if isinstance(x, Proxy):
        return torch.result_type(x, x.new_empty(1, dtype=dtype))
    return torch.promote_types(x.dtype, dtype)


def least_number(x: Tensor) -> Any:
    """What PyTorch adds for an input where no eps is given."""
    dtype = at_least(x, _LEAST)
    if isinstance(x, Proxy):
        one = x.new_ones((), dtype=dtype)
        return torch.nextafter(one, 2 * one) - one
    return torch.finfo(dtype).eps


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module itself."""
    held = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def usual_eps(module: nn.Module) -> float | None:
    """What a module says under one of the usual names that it adds to the variance."""
    name = eps_name(module)
    if name is None:
        return None
    return float(getattr(module, name))


def eps_name(module: nn.Module) -> str | None:
    """The attribute that says what a module adds to the variance; None without a usual one."""
    return next((name for name in _EPS if _is_number(getattr(module, name, None))), None)


def _is_number(value: object) -> bool:
    return isinstance(value, (float, int)) and not isinstance(value, bool)


def left_open(module: nn.Module) -> bool:
    """Whether a module says that it adds what goes with the data type of each input: its eps is
    None.
    """
    if isinstance(module, PaddedNorm):
        return module.has_eps and module.padded_eps is None
    return any(vars(module).get(name, "") is None for name in _EPS)


def add_eps(module: nn.Module, eps: float | None) -> None:
    """Let a padded normalisation add this; where it is None, what goes with the data type.

    Raises:
        SurgeryError: it is none, or cannot do without a number.
    """
    if not isinstance(module, PaddedNorm) or (
        eps is None and not isinstance(module, PaddedRMSNorm)
    ):
        raise SurgeryError(f"a {type(module).__name__} cannot have {eps} for its eps")
    module.padded_eps = eps
    vars(module).update((name, eps) for name in _EPS if name in vars(module))


def standardised(x: Tensor, dim: int | list[int], share: float, eps: float) -> Tensor:
    """Without the mean and over the deviation; both as if the others were zeros."""
    mean = share * x.mean(dim, keepdim=True)
    x = x - mean
    # Several times as fast as `torch.var_mean`, and as exact: x is small where the variance is.
    variance = share * x.square().mean(dim, keepdim=True) + (1 - share) * mean * mean
    return x * torch.rsqrt(variance + eps)


def _correction(mean: Tensor, over: Tensor, share: float, eps: float) -> tuple[Tensor, Tensor]:
    """(scale, shift) that make what PyTorch's own kernels give `standardised`.

    They give y = (x - mu) r with the mean mu and r = (v + eps)^(-1/2), of which they know no
    derivatives. The mean over all channels is s mu, their variance s v + s (1 - s) mu^2. As
    v r^2 = 1 - eps r^2, nothing is taken from anything large here::

        (x - mean) / deviation = a (y + (1 - s) mu r),  a^-2 = s + (1 - s) r^2 (eps + s mu^2)

    Args:
        mean: mu.
        over: r.
        share: s.
        eps: as it was given to the kernel.
    """
    lost = 1 - share
    scale = torch.rsqrt(share + lost * over * over * (eps + share * mean * mean))
    return scale, lost * mean * over
