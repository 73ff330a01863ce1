"""Means, norms and the like over channels in the midst of a module's code: over as many as before.

Where one stands in a module of its own, that goes on over its old width (padded_norms.py,
padded_reductions.py). A call such as ``x.mean(1)`` within a larger ``forward`` is replaced there
(call_sites.py) by a `PaddedCall`, which gives what the call would if the channels that are gone
were zeros. A sum or a length over channels needs no other: zeros add nothing to it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy
from torch.overrides import handle_torch_function, has_torch_function_unary

from netslim.graph.modules.padded_norms import (
    ZEROS,
    NormWidth,
    at_least,
    least_number,
    standardised,
)

ATTENTION = "scaled_dot_product_attention()"  # over the width of heads
Told = tuple[Any, ...]  # an operator of PyTorch's and its arguments


@dataclass(frozen=True)
class PaddedCall:
    """What is called in the place of a function of PyTorch's, over channels of which some are gone.

    ``row`` says which function, along which dimension of its input, and over how many.
    """

    row: NormWidth

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As the function in whose place it is, which an object may hold: ``self.mean(x)``."""
        if not isinstance(x, (Tensor, Proxy)):
            x, *args = args  # type: ignore[assignment]
        if not isinstance(x, Proxy) and has_torch_function_unary(x):
            return handle_torch_function(padded_call, (x,), self, x, *args, **kwargs)
        return REDUCTIONS[self.row.kind].compute(self, x, *args, **_usual(kwargs))

    def share(self, x: Tensor) -> float:
        """Which part of the channels is there."""
        return x.shape[self.row.dim] / self.row.width

    def all_there(self, x: Tensor) -> bool:
        """Whether no channel is gone; of operators that are written down nobody knows."""
        return not isinstance(x, Proxy) and x.shape[self.row.dim] == self.row.width


def padded_call(call: PaddedCall, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The same as a function, which a `torch.overrides.TorchFunctionMode` is told of."""
    return call(x, *args, **kwargs)


def _usual(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """By the names that PyTorch uses, for those of NumPy."""
    other = {"axis": "dim", "keepdims": "keepdim"}
    return {other.get(name, name): value for name, value in kwargs.items()}


# --- what is computed -----------------------------------------------------------------------------


def _mean(
    call: PaddedCall, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    return torch.mean(x, dim, keepdim, dtype=dtype) * call.share(x)


def _amax(call: PaddedCall, x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    largest = torch.amax(x, dim, keepdim)
    if call.all_there(x):
        return largest
    return largest.clamp_min(0)


def _amin(call: PaddedCall, x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    least = torch.amin(x, dim, keepdim)
    if call.all_there(x):
        return least
    return least.clamp_max(0)


def _max(call: PaddedCall, x: Tensor, dim: int, keepdim: bool = False) -> Any:
    values, numbers = torch.max(x, dim, keepdim)[:2]
    if not call.all_there(x):
        values = values.clamp_min(0)
    return torch.return_types.max((values, numbers))


def _min(call: PaddedCall, x: Tensor, dim: int, keepdim: bool = False) -> Any:
    values, numbers = torch.min(x, dim, keepdim)[:2]
    if not call.all_there(x):
        values = values.clamp_max(0)
    return torch.return_types.min((values, numbers))


def _moments(
    call: PaddedCall, x: Tensor, dim: Any, keepdim: bool, correction: float
) -> tuple[Tensor, Tensor]:
    """Variance and mean of all channels, of which those that are gone are zeros."""
    dims = _dims(dim, x)
    given, share = x, call.share(x)
    x = x.to(at_least(x, torch.float32))
    mean = x.mean(dims, keepdim=True) * share
    square = (x - mean).square().mean(dims, keepdim=True)
    variance = share * square + (1 - share) * mean * mean
    number = math.prod([x.shape[d] for d in dims]) / share
    variance = variance * (number / (number - correction))
    if not keepdim:
        variance, mean = variance.squeeze(dims), mean.squeeze(dims)
    return variance.to(given.dtype), mean.to(given.dtype)


def _correction(unbiased: bool, correction: float | None) -> float:
    """What is taken from the number of values."""
    if correction is None:
        return float(unbiased)
    return correction


def _var_mean(
    call: PaddedCall, x: Tensor, dim: Any, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _moments(call, x, dim, keepdim, _correction(unbiased, correction))


def _std_mean(
    call: PaddedCall, x: Tensor, dim: Any, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    variance, mean = _moments(call, x, dim, keepdim, _correction(unbiased, correction))
    return variance.sqrt(), mean


def _var(
    call: PaddedCall, x: Tensor, dim: Any, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> Tensor:  # fmt: skip
    return _moments(call, x, dim, keepdim, _correction(unbiased, correction))[0]


def _std(
    call: PaddedCall, x: Tensor, dim: Any, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> Tensor:  # fmt: skip
    return _var(call, x, dim, unbiased, keepdim, correction=correction).sqrt()


def _layer_norm(
    call: PaddedCall, x: Tensor, normalized_shape: Any, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5, cudnn_enable: bool = True,
) -> Tensor:  # fmt: skip
    over = list(range(-len(normalized_shape), 0))
    wide = x.to(at_least(x, torch.float32))
    return _scaled(x, standardised(wide, over, call.share(x), eps), weight, bias)


def _rms_norm(
    call: PaddedCall, x: Tensor, normalized_shape: Any, weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:  # fmt: skip
    over = list(range(-len(normalized_shape), 0))
    if eps is None:
        eps = least_number(x)
    wide = x.to(at_least(x, torch.float32))
    square = wide.square().mean(over, keepdim=True) * call.share(x)
    return _scaled(x, wide * torch.rsqrt(square + eps), weight, None)


def _group_norm(
    call: PaddedCall, x: Tensor, num_groups: int, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Tensor:  # fmt: skip
    grouped = torch.unflatten(x, 1, (num_groups, -1)).flatten(2)
    wide = grouped.to(at_least(x, torch.float32))
    out = standardised(wide, -1, call.share(x), eps).reshape(x.shape)
    return _scaled(x.movedim(1, -1), out.movedim(1, -1), weight, bias).movedim(-1, 1)


def _attention(
    call: PaddedCall, x: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Divided by the root of the width that heads had."""
    given = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal}
    if enable_gqa:
        given["enable_gqa"] = True
    root = call.row.width**-0.5
    return F.scaled_dot_product_attention(x, key, value, **given, scale=root)  # type: ignore[arg-type]


def _scaled(like: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """With weight and bias, and of the data type of the input."""
    if weight is not None:
        x = x * weight
    if bias is not None:
        x = x + bias
    return x.to(like.dtype)


# --- of what zeros change nothing -----------------------------------------------------------------


def _sum(
    call: PaddedCall, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any: ...


def _norm(
    call: PaddedCall, x: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False,
    out: None = None, dtype: Any = None,
) -> Any: ...  # fmt: skip


def _vector_norm(
    call: PaddedCall, x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False,
    *, dtype: Any = None,
) -> Any: ...  # fmt: skip


def _normalize(
    call: PaddedCall, x: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: None = None
) -> Any: ...


def _cosine(
    call: PaddedCall, x: Tensor, other: Tensor, /, dim: int = 1, eps: float = 1e-8
) -> Any: ...


# --- which are known ------------------------------------------------------------------------------


def _dims(dim: Any, x: Tensor) -> tuple[int, ...]:
    """Those that are reduced, as numbers from 0 on."""
    if dim is None or dim == () or dim == []:
        return tuple(range(x.dim()))
    if isinstance(dim, int):
        dim = (dim,)
    return tuple(int(d) % x.dim() for d in dim)


def _named(x: Tensor, given: Mapping[str, Any]) -> tuple[int, ...]:
    return _dims(given["dim"], x)


def _last(x: Tensor, given: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(range(x.dim() - len(given["normalized_shape"]), x.dim()))


def _second(x: Tensor, given: Mapping[str, Any]) -> tuple[int, ...]:
    return (1,)


def _as_reduction(name: str) -> Callable[[Tensor, Mapping[str, Any]], Told]:
    def told(x: Tensor, given: Mapping[str, Any]) -> Told:
        operator = getattr(torch.ops.aten, name)
        dims = list(_named(x, given))
        if name in ("max", "min"):
            return operator.dim, x, dims[0], given["keepdim"]
        if name == "mean":
            return operator.dim, x, dims, given["keepdim"]
        return operator.default, x, dims, given["keepdim"]

    return told


def _as_moments(name: str) -> Callable[[Tensor, Mapping[str, Any]], Told]:
    def told(x: Tensor, given: Mapping[str, Any]) -> Told:
        return getattr(torch.ops.aten, name).dim, x, list(_named(x, given)), True, given["keepdim"]

    return told


def _as_layer_norm(x: Tensor, given: Mapping[str, Any]) -> Told:
    shape = list(map(int, given["normalized_shape"]))
    return (
        torch.ops.aten.native_layer_norm.default,
        x,
        shape,
        given["weight"],
        given.get("bias"),
        0.0,
    )


def _as_group_norm(x: Tensor, given: Mapping[str, Any]) -> Told:
    sizes, weights = (*x.shape[:2], 0), (given["weight"], given["bias"])
    return (
        torch.ops.aten.native_group_norm.default,
        x,
        *weights,
        *sizes,
        int(given["num_groups"]),
        0.0,
    )


def _untold(x: Tensor, given: Mapping[str, Any]) -> Told:
    raise AssertionError("nothing takes its place")


def _queries(x: Tensor, given: Mapping[str, Any]) -> tuple[int, ...]:
    return (x.dim() - 1,)


def _as_attention(x: Tensor, given: Mapping[str, Any]) -> Told:
    operator = torch.ops.aten._scaled_dot_product_attention_math.default
    return operator, x, given["key"], given["value"], given["attn_mask"]


class Reduction(NamedTuple):
    """A function of PyTorch's over channels: how it is computed over more, over which dimensions it
    runs, and which operator does to channels what it does.
    """

    compute: Callable[..., Any]
    over: Callable[[Tensor, Mapping[str, Any]], tuple[int, ...]] = _named
    told: Callable[[Tensor, Mapping[str, Any]], Told] = _untold

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The arguments by name, without the input; None where it is called in another way."""
        try:
            bound = inspect.signature(self.compute).bind(None, *args, **_usual(kwargs))
        except TypeError:
            return None
        bound.apply_defaults()
        given = dict(bound.arguments)
        if isinstance(given.get("dim"), (bool, Tensor)) or given.get("out") is not None:
            return None
        if given.get("scale") is not None:  # one that is passed stays as it is
            return None
        return given


REDUCTIONS: dict[str, Reduction] = {
    "mean()": Reduction(_mean, told=_as_reduction("mean")),
    "amax()": Reduction(_amax, told=_as_reduction("amax")),
    "amin()": Reduction(_amin, told=_as_reduction("amin")),
    "max()": Reduction(_max, told=_as_reduction("max")),
    "min()": Reduction(_min, told=_as_reduction("min")),
    "var()": Reduction(_var, told=_as_moments("var")),
    "std()": Reduction(_std, told=_as_moments("std")),
    "var_mean()": Reduction(_var_mean, told=_as_moments("var_mean")),
    "std_mean()": Reduction(_std_mean, told=_as_moments("std_mean")),
    "layer_norm()": Reduction(_layer_norm, _last, _as_layer_norm),
    "rms_norm()": Reduction(_rms_norm, _last, _as_layer_norm),
    "group_norm()": Reduction(_group_norm, _second, _as_group_norm),
    ATTENTION: Reduction(_attention, _queries, _as_attention),
}
_LENGTHS: dict[str, Any] = {
    "sum": _sum,
    "norm": _norm,
    "vector_norm": _vector_norm,
    "normalize": _normalize,
    "cosine_similarity": _cosine,
}
# Whose second input has the same channels as the first: both find zeros.
PAIRS = frozenset({torch.cosine_similarity, F.cosine_similarity})


class Function(NamedTuple):
    """A function of PyTorch's, as it is known here; ``kind`` is of `REDUCTIONS`, or `ZEROS`."""

    kind: str
    reduction: Reduction


def _functions() -> dict[Any, Function]:
    found: dict[Any, Function] = {}
    for kind, reduction in REDUCTIONS.items():
        name = kind.removesuffix("()")
        for place in (torch, Tensor, F):
            found[getattr(place, name, None)] = Function(kind, reduction)
    for name, compute in _LENGTHS.items():
        for place in (torch, Tensor, torch.linalg, F):
            found[getattr(place, name, None)] = Function(ZEROS, Reduction(compute))
    found.pop(None, None)
    found.pop(torch.linalg.norm)  # of matrices, where no dimension is given
    return found


FUNCTIONS = _functions()


class Read(NamedTuple):
    """What a call of one of these is given.

    Attributes:
        kind: of `REDUCTIONS`, or `ZEROS`.
        x: its input.
        dims: of that, over which it runs.
        width: over how many channels it goes on already; 0 for a function of PyTorch's.
    """

    kind: str
    x: Tensor
    dims: tuple[int, ...]
    width: int


def reading(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Read | None:
    """What a call is given; None for one in another way, or where zeros would count.

    Args:
        function: of `FUNCTIONS`, or `padded_call`.
        args: of the call.
        kwargs: likewise.
    """
    width = 0
    if function is padded_call:
        (padded, *rest) = args
        kind, width, args = padded.row.kind, padded.row.width, tuple(rest)
        reduction = REDUCTIONS[kind]
    else:
        kind, reduction = FUNCTIONS[function]
    given = reduction.given(args, kwargs)
    if given is None or not _zeros_add_nothing(given):
        return None
    if function in PAIRS and given["x"].shape != given["other"].shape:  # one is copied
        return None
    return Read(kind, given["x"], reduction.over(given["x"], given), width)


def _zeros_add_nothing(given: Mapping[str, Any]) -> bool:
    """Not to a length that is the smallest of all, or counts others than zeros."""
    power = given.get("p", given.get("ord", 2))
    return power == "fro" or (isinstance(power, (int, float)) and power > 0)


__all__ = [
    "ATTENTION",
    "FUNCTIONS",
    "PAIRS",
    "REDUCTIONS",
    "PaddedCall",
    "Read",
    "padded_call",
    "reading",
]
