"""Convolutions that compute their weight from all of a parameter, as weight standardisation does.

Mean and deviation of the weights that make a channel are taken over all channels that are read, so
without some of these the others would be read by other weights. What a cut leaves is read as before
where the weight is computed once, of the whole parameter, and kept: the module becomes the plain
convolution that it runs, whose parameter is the computed weight.

What it runs is seen in a call: the weight that PyTorch's convolution is given. Two things may be
left that a plain convolution does not do, and are done by one of netslim's (`KeptConvolution`): a
gain for each channel, a parameter that the weight is multiplied with at last, goes on to be
trained; and as many zeros around the input as TensorFlow's ``SAME`` asks of its size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from netslim.errors import SurgeryError

KIND, SAME_KIND = "convolution", "same convolution"  # in the rows of plans
CONVOLUTIONS = KIND, SAME_KIND
PLAIN: tuple[type[_ConvNd], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_SAME = 1e-9  # relative, in float64
_ROUNDED = 1e-5  # likewise, where numbers of a module's own precision are multiplied
_PRIME = 4099  # more than most filters have numbers, so that no two of these begin alike


class NotScripted(nn.Module):
    """A module of netslim's, whose code is not what `torch.jit.script` takes."""

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` asks for in place of this.

        Not the operators that this runs, as PyTorch would put them into the user's model for good.
        """
        raise SurgeryError(
            f"torch.jit.script does not take the code of {type(self).__name__}: script "
            "netslim.models.plain(model), the same network in PyTorch's own operators"
        )


class KeptConvolution(NotScripted, _ConvNd):
    """A convolution that has kept the weight which it had computed, up to a gain.

    Attributes:
        kept_gain: name of the parameter that the weight is multiplied with, one number a channel;
            empty without.
        kept_same: whether zeros go around the input as TensorFlow's ``SAME`` asks.
    """

    kept_gain: str
    kept_same: bool

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, in_channels, ...) to (N, out_channels, ...)."""
        weight = self.weight
        if self.kept_gain:
            gain = getattr(self, self.kept_gain)
            weight = weight * gain.reshape(-1, *(1 for _ in self.kernel_size), 1)
        if self.kept_same:
            x = nn.functional.pad(x, self._around(x))
        made: Tensor = self._conv_forward(x, weight, self.bias)
        return made

    def _around(self, x: Tensor) -> list[int]:
        """How many zeros to put before and behind each dimension of space, the last one first."""
        around: list[Any] = []
        for dim, kernel in reversed(list(enumerate(self.kernel_size))):
            size, stride = x.shape[2 + dim], self.stride[dim]
            places = (-(-size // stride) - 1) * stride + (kernel - 1) * self.dilation[dim] + 1
            lacking = _at_least_none(places - size)
            around += [lacking // 2, lacking - lacking // 2]
        return around

    def extra_repr(self) -> str:
        own: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{own}, gain={self.kept_gain!r}, same={self.kept_same}"


def _at_least_none(size: Any) -> Any:
    """The size, or 0 where it is negative, also where sizes are only written down: torch.compile
    takes those for whole numbers and knows `max` alone, other exports have numbers of their own.
    """
    if isinstance(size, int):
        return max(size, 0)
    return torch.sym_max(size, 0)


class KeptConv1d(KeptConvolution, nn.Conv1d):
    """A convolution over one dimension: `KeptConvolution`."""


class KeptConv2d(KeptConvolution, nn.Conv2d):
    """A convolution over two dimensions: `KeptConvolution`."""


class KeptConv3d(KeptConvolution, nn.Conv3d):
    """A convolution over three dimensions: `KeptConvolution`."""


_KEPT: tuple[type[KeptConvolution], ...] = (KeptConv1d, KeptConv2d, KeptConv3d)


_GIVEN = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class _Given(TorchFunctionMode):
    """Sees what a convolution is given, and who else asks for the input or for what is made.

    Args:
        x: the input of the module.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.ends, self.others = [x], 0
        self.calls: list[dict[str, Any]] = []
        self.versions: list[int] = []  # of the input, the weight and the result at a call

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _FUNCTIONS:
            held = tree_leaves((args, kwargs))
            self.others += any(each is end for each in held for end in self.ends)
            return func(*args, **kwargs)
        call = {**dict(zip(_GIVEN, args, strict=False)), **kwargs}
        made = func(*args, **kwargs)
        self.calls.append({**call, "function": func})
        self.ends.append(made)
        self.versions = _versions([*self.ends, call["weight"]])
        return made

    def is_all(self, module: Any, out: Any) -> bool:
        """Whether a module does no more than to call the convolution that it says it is.

        Then it makes what that makes of the weight, whatever its input is: it has not looked at
        that, or it would have asked for it.
        """
        if len(self.calls) != 1 or self.others or out is not self.ends[-1]:
            return False
        call = self.calls[0]
        own = {"input": self.ends[0], "function": _FUNCTIONS[len(module.kernel_size) - 1]}
        own |= {name: getattr(module, name) for name in _GIVEN[2:]}
        alike = all(call.get(name) is value for name, value in own.items())
        unwritten = self.versions == _versions([*self.ends, call["weight"]])
        return alike and unwritten and module.padding_mode == "zeros"


def _versions(tensors: list[Tensor]) -> list[int]:
    """How often each has been written to."""
    return [tensor._version for tensor in tensors]


def keeps_weight(module: nn.Module | None) -> bool:
    """Whether a module is a convolution that computes no weight."""
    return type(module) in (*PLAIN, *_KEPT)


def may_compute(module: nn.Module | None) -> bool:
    """Whether a module is another convolution, of a weight and at most a gain for each channel."""
    if not isinstance(module, PLAIN) or keeps_weight(module):
        return False
    more = [module._parameters[name] for name in _more(module)]
    filters = module.weight.shape[0]
    return len(more) < 2 and all(p is not None and p.numel() == filters for p in more)


def keep_weight(module: Any, kind: str) -> None:
    """Let a convolution, whose parameter is the computed weight by now, compute none any more."""
    number = next(number for number, plain in enumerate(PLAIN) if isinstance(module, plain))
    gain, same = "".join(_more(module)), kind == SAME_KIND
    if not gain and not same:
        module.__class__ = PLAIN[number]
        return
    module.__class__ = _KEPT[number]
    vars(module).update(kept_gain=gain, kept_same=same)


def computed_weight(module: nn.Module, parameters: Mapping[str, Tensor]) -> Tensor | None:
    """What a convolution makes of these parameters, up to the gain; None if nobody can tell."""
    weight, held = parameters["weight"], dict(module.named_parameters(recurse=False))
    ones = {name: torch.ones_like(held[name]) for name in _more(module)}
    given, _ = _run(_with(module, {**parameters, **ones}), weight)
    if len(given.calls) != 1:
        return None
    made: Tensor = given.calls[0]["weight"].detach()
    return made


def _run(module: nn.Module, weight: Tensor, again: bool = False) -> tuple[_Given, Tensor]:
    """What a module gives a convolution, and what it makes of an input of zeros; ``again`` of one
    that is another in all: of ones, in a larger batch, and larger.
    """
    x = _input(module, weight, 0)
    if again:
        x = _input(module, weight, 1, batch=3) + 1
    given = _Given(x)
    with torch.no_grad(), given:
        out = type(module).forward(module, x)
    return given, out


def computes(module: nn.Module) -> str | None:
    """The kind of row for a module that is a convolution but for how it computes its weight."""
    if not may_compute(module):
        return None
    with suppress(Exception):  # what fails in its own precision may do in float64
        if _is_plain(module):
            return KIND
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for name, p in module._parameters.items():
        if p is not None:  # drawn in single precision, which is several times as fast
            random = torch.randn(p.shape, generator=generator, dtype=torch.float32)
            drawn[name] = random.to(p.device, torch.float64)
    made = computed_weight(module, drawn)
    if made is None or made.shape != drawn["weight"].shape:
        return None
    one = _with(module, drawn)
    for kind in CONVOLUTIONS:
        other = _with(module, {**drawn, "weight": made})
        keep_weight(other, kind)
        if _alike(one, other, made, generator):
            return kind
    return None


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is seen to be the plain convolution of the weight that it computes.

    With a gain the weight must be what it is without, times that: to the bit where the gains are
    powers of two, which round nothing, and nearly where they are not, for code may round those.
    What else a module may do, as to put zeros around its input, is not seen here but tried out.
    """
    numbers = {name: _uneven(p) for name, p in module._parameters.items() if p is not None}
    powers = {name: _powers(numbers[name]) for name in _more(module)}
    uneven = {name: numbers[name] * power for name, power in powers.items()}
    ones = {name: torch.ones_like(power) for name, power in powers.items()}
    weight, made = numbers["weight"], []
    # No two weights are drawn, and none is made of what comes in on a way that is not seen here.
    for gains, again in ((powers, False), (ones, True), (uneven, True))[: 2 + len(powers)]:
        one = _with(module, {**numbers, **gains})
        given, out = _run(one, weight, again)
        if not given.is_all(one, out) or given.calls[0]["weight"].shape != weight.shape:
            return False
        made.append(given.calls[0]["weight"])
    each = (-1, *(1 for _ in weight.shape[1:]))
    if not powers:
        return torch.equal(*made)
    (power,), (gain,) = (tuple(g.values()) for g in (powers, uneven))
    exactly, plain, nearly = made
    allowed = max(_ROUNDED, 8 * torch.finfo(weight.dtype).eps) * plain.abs().flatten(1).amax(1)
    apart = (nearly / gain.reshape(each) - plain).abs().flatten(1).amax(1)
    return torch.equal(exactly, plain * power.reshape(each)) and bool((apart <= allowed).all())


def _uneven(p: Tensor) -> Tensor:
    """Numbers in the place of a parameter's: a prime number of them, time and again."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(_PRIME, generator=generator, dtype=torch.float32).to(p)
    return few.repeat(-(-p.numel() // _PRIME))[: p.numel()].view(p.shape)


def _powers(numbers: Tensor) -> Tensor:
    """Powers of two in their place, from an eighth to 8 and of either sign."""
    places = torch.arange(numbers.numel(), device=numbers.device).view(numbers.shape)
    return torch.exp2(places % 7 - 3.0).to(numbers).copysign(numbers)


def _alike(one: nn.Module, other: nn.Module, weight: Tensor, generator: torch.Generator) -> bool:
    """Whether two convolutions make the same of random numbers, odd and even in size."""
    x = _input(one, weight, 3, batch=3)
    x = x + torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
    with torch.no_grad():
        a, b = type(one).forward(one, x.clone()), type(other).forward(other, x)
    return a.shape == b.shape and torch.allclose(a, b, rtol=_SAME, atol=_SAME)


def _more(module: nn.Module) -> list[str]:
    """The names of the parameters that a plain convolution does not have."""
    return [name for name in module._parameters if name not in ("weight", "bias")]


def _with(module: nn.Module, parameters: Mapping[str, Tensor]) -> Any:
    """A copy without hooks that has these parameters, in the precision of the weight."""
    result: Any = copy.copy(module)
    vars(result).update({k: v for k, v in vars(nn.Module()).items() if k != "training"})
    result._parameters = {}
    for name, own in module._parameters.items():
        value = parameters.get(name, own)
        if value is not None:
            value = value.detach().to(parameters["weight"].dtype)
            value = nn.Parameter(value, requires_grad=False)
        result._parameters[name] = value
    return result


def _input(module: Any, weight: Tensor, more: int, batch: int = 1) -> Tensor:
    """Zeros of as many places as the kernel needs, and some more."""
    sizes = zip(module.kernel_size, module.dilation, strict=True)
    places = [(int(k) - 1) * int(d) + 1 + more * (1 + i) for i, (k, d) in enumerate(sizes)]
    return weight.new_zeros(batch, weight.shape[1] * int(module.groups), *places)


__all__ = [
    "CONVOLUTIONS", "KIND", "KeptConvolution", "NotScripted", "computed_weight", "computes",
    "keep_weight", "keeps_weight", "may_compute",
]  # fmt: skip
