"""Pointwise operators, the fallback, and operators that rename dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from netslim.graph.rules.registry import Op, derived, labelled, name_of, rule, tensors_in
from netslim.graph.tracing.atoms import ADDED, CHANNEL, Vector
from netslim.graph.tracing.recorder import Recorder


def fallback(rec: Recorder, func: Op, out: Any, *args: Any, **kwargs: Any) -> None:
    """Pointwise operators by their tag; anything else freezes what it touches and is listed."""
    if torch.Tag.pointwise in func.tags:
        pointwise(rec, func, out, *args, **kwargs)
        return
    inputs = tensors_in(args, kwargs)
    weight = derived(rec, inputs)
    rec.unknown(name_of(func), [rec.get(t) for t in inputs])
    for tensor in tensors_in(out):
        rec.set(tensor, {}, weight)


# Element-wise operators that PyTorch does not tag as such (for several, only the in-place twin
# lacks the tag). The tensors among their arguments are read, whatever they are called; the numbers
# are the same for every element.
@rule(
    "_prelu_kernel", "copy", "dropout", "alpha_dropout", "feature_dropout", "masked_fill",
    "where", "hardswish", "hardsigmoid", "hardtanh", "mish", "gelu", "elu", "celu", "selu",
    "softplus", "leaky_relu", "threshold", "relu", "relu6", "silu", "softshrink", "hardshrink",
    "log_sigmoid_forward", "rrelu_with_noise", "rsub", "isnan", "complex", "polar",
    "fake_quantize_per_tensor_affine", "fake_quantize_per_tensor_affine_cachemask",
    reads="self src input other weight mask condition output buffer noise real imag abs angle",
    # The shape of a curve and what is dropped of all, the same for every element.
    ignores="min_val max_val approximate scale input_scale threshold negative_slope lambd lower "
    "upper training zero_point quant_min quant_max",
)  # fmt: skip
def pointwise(rec: Recorder, func: Op, out: Any, *args: Any, **kwargs: Any) -> None:
    """Tie the dimensions that meet; broadcasting dimensions of size 1 meet nothing.

    Example:
        >>> @torch.library.custom_op("examples::soft_sign", mutates_args=())
        ... def soft_sign(x: torch.Tensor) -> torch.Tensor:
        ...     return x / (1 + x.abs())
        >>> rule = netslim.register_rule(soft_sign, netslim.graph.rules.pointwise)
    """
    inputs = tensors_in(args, kwargs)
    outs = tensors_in(out)
    weight = derived(rec, inputs)
    if not labelled(rec, inputs):
        for tensor in outs:
            rec.set(tensor, {}, weight)
        return
    ndim, dims = outs[0].dim(), dict[int, Vector]()
    if name_of(func).rstrip("_") in _SUMS:
        _note_sum(rec, inputs, ndim)
    if len(inputs) == 1 and inputs[0].dim() == ndim and not weight:  # an activation meets nothing
        dims = dict(sorted(rec.get(inputs[0]).dims.items()))
    else:
        for d in range(ndim):
            met = meeting(rec, inputs, d, ndim, name_of(func))
            if met is not None:
                dims[d] = met
    for tensor in outs:
        own = dims
        if tensor.shape != outs[0].shape:  # a buffer beside the result may be empty
            own = {}
        rec.set(tensor, own, weight)


@rule(
    "fake_quantize_per_channel_affine", "fake_quantize_per_channel_affine_cachemask",
    reads="self scale zero_point axis", ignores="quant_min quant_max",
)  # fmt: skip
def quantise_by_channel(
    rec: Recorder, func: Op, out: Any, x: Tensor, scale: Tensor, zero: Tensor, axis: int,
    *args: Any,
) -> None:  # fmt: skip
    """Rounded in place, by a step and an offset for each entry of one dimension."""
    labels = rec.get(x)
    dims = dict(labels.dims)
    axis %= x.dim()
    for t in (scale, zero):
        rec.mark(rec.get(t), 0, CHANNEL)
        met = rec.meet(dims.get(axis), rec.get(t).dims.get(0), name_of(func))
        if met is not None:
            dims[axis] = met
    for t in tensors_in(out):
        rec.set(t, dims, derived(rec, x, scale, zero))


_SUMS = frozenset({"add", "sub", "rsub", "lerp"})


def _note_sum(rec: Recorder, inputs: Sequence[Tensor], ndim: int) -> None:
    """Note the channels of activations that come from different layers and are added."""
    carried = [(t.dim(), rec.get(t)) for t in inputs if not rec.get(t).weight]
    for d in range(ndim):
        met = [v for dim, labels in carried if (v := labels.dims.get(d - ndim + dim)) is not None]
        for a, b in zip(met, met[1:], strict=False):
            if a is not b and len(a) == len(b) and (rec.atoms.find(a) != rec.atoms.find(b)).any():
                for vector in (a, b):
                    rec.atoms.roles[vector[vector > 0]] |= ADDED


def meeting(
    rec: Recorder, inputs: Sequence[Tensor], dim: int, ndim: int, what: str
) -> Vector | None:
    """Tie one dimension of a result of ``ndim`` over all inputs that have it; returns its labels.

    They are lined up from the last dimension on, as broadcasting does.
    """
    vectors: list[Vector | None] = []
    for t in inputs:
        d = dim - (ndim - t.dim())
        if d >= 0 and t.shape[d] != 1:
            labels = rec.get(t)
            vectors.append(labels.dims.get(d))
            rec.mark(labels, d, CHANNEL)
    return met_by_all(rec, vectors, what)


def met_by_all(rec: Recorder, vectors: Sequence[Vector | None], what: str) -> Vector | None:
    """Tie dimensions that must keep equal sizes, a fixed one being None; returns their labels."""
    if all(v is None for v in vectors):
        return None
    result = vectors[0]
    for other in vectors[1:]:
        if result is not None and other is not None and _transposed(rec, result, other):
            rec.couple(other, f"a weight meets its own transpose in {what}")
        result = rec.meet(result, other, what)
    return result


def _transposed(rec: Recorder, a: Vector, b: Vector) -> bool:
    """Whether they are two axes of one parameter, of which neither alone silences a channel."""
    first, second = (rec.atoms.axis_of[v[0]] for v in (a, b))
    if first == second or min(first, second) < 0:
        return False
    axes = rec.atoms.axes
    return bool(axes[first].tensor == axes[second].tensor)


@rule(
    "clone", "detach", "alias", "contiguous", "_to_copy", "lift_fresh", "lift_fresh_copy",
    "zeros_like", "ones_like", "empty_like", "full_like", "fill", "zero",
    "resolve_conj", reads="self",
)  # fmt: skip
def same(rec: Recorder, func: Op, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """The output has the labels of the input.

    Example:
        >>> rule = netslim.register_rule("mylib::my_same", netslim.graph.rules.same)
    """
    labels = rec.get(x)
    rec.set(out, labels.dims, labels.weight)


@rule(
    "rand_like", "randn_like", "randint_like", "bernoulli", "normal", "uniform", "native_dropout",
    "exponential", reads="self input mean std p high",
    ignores="size std low from to lambd",  # the distribution; the size is that of the result
)  # fmt: skip
def drawn(rec: Recorder, func: Op, out: Any, *args: Any, **kwargs: Any) -> None:
    """Other sizes draw other numbers; all that is said of them is said element by element."""
    pointwise(rec, func, out, *args, **kwargs)
    for t in tensors_in(out):
        dims = rec.get(t).dims
        if not rec.training:
            for vector in dims.values():
                rec.couple(vector, "random numbers are drawn for the channels")
        rec.set(t, dims, weight=False)


@rule("permute", reads="self dims")
def permute(rec: Recorder, func: Op, out: Tensor, x: Tensor, order: Sequence[int]) -> None:
    labels = rec.get(x)
    sources = [d % x.dim() for d in order]
    dims = {d: labels.dims[source] for d, source in enumerate(sources) if source in labels.dims}
    rec.set(out, dims, labels.weight)


@rule("transpose", "t", "numpy_T", reads="self dim0 dim1")
def transpose(rec: Recorder, func: Op, out: Tensor, x: Tensor, a: int = 0, b: int = -1) -> None:
    order = list(range(x.dim()))
    if order:
        order[a], order[b] = order[b], order[a]
    permute(rec, func, out, x, order)


@rule("unsqueeze", reads="self dim")
def unsqueeze(rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: int) -> None:
    labels, dim = rec.get(x), dim % out.dim()
    rec.set(out, {d + (d >= dim): v for d, v in labels.dims.items()}, labels.weight)


@rule("squeeze", reads="self dim")
def squeeze(rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: Any = None) -> None:
    labels = rec.get(x)
    if dim is None:
        dim = range(x.dim())
    elif isinstance(dim, int):
        dim = [dim]
    wanted = {d % max(x.dim(), 1) for d in dim}
    left = [d for d in range(x.dim()) if not (d in wanted and x.shape[d] == 1)]
    rec.set(out, {i: labels.dims[d] for i, d in enumerate(left) if d in labels.dims}, labels.weight)


@rule("as_strided", reads="self size stride storage_offset")
def as_strided(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, size: Any, stride: Any, offset: Any = None
) -> None:
    """Only what leaves all as it is is understood: the same sizes and strides, from the start.

    Called by the user's code it is given them, and no cut would change the strides.
    """
    if (out.shape, out.stride(), out.storage_offset()) == (x.shape, x.stride(), x.storage_offset()):
        same(rec, func, out, x)
        if rec.calling == "as_strided":
            for vector in rec.get(x).dims.values():
                rec.freeze(vector, "as_strided takes sizes and strides as they are")
    else:
        fallback(rec, func, out, x)
