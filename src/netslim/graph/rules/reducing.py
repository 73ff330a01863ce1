"""Over space, reductions and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netslim.graph.modules.weight_norms import WeightNorm, dimension
from netslim.graph.rules.elementwise import meeting, pointwise
from netslim.graph.rules.indexing import hold
from netslim.graph.rules.registry import (
    Op,
    Rule,
    derived,
    name_of,
    named_arguments,
    rule,
    tensors_in,
    without,
)
from netslim.graph.tracing.atoms import CHANNEL, CONSUMER, SCALE, Vector
from netslim.graph.tracing.labels import Labels
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.shapes import split_vector

# The operators over 1, 2 and 3 dimensions of space.
_SPATIAL = {
    1: [
        "avg_pool1d", "max_pool1d", "max_pool1d_with_indices", "adaptive_avg_pool1d",
        "adaptive_max_pool1d", "upsample_nearest1d", "_upsample_nearest_exact1d",
        "upsample_linear1d", "reflection_pad1d", "replication_pad1d",
    ],
    2: [
        "avg_pool2d", "max_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d",
        "adaptive_avg_pool2d", "adaptive_max_pool2d", "fractional_max_pool2d", "max_unpool2d",
        "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d",
        "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
        "reflection_pad2d", "replication_pad2d",
    ],
    3: [
        "avg_pool3d", "max_pool3d", "max_pool3d_with_indices", "_adaptive_avg_pool3d",
        "adaptive_max_pool3d", "upsample_nearest3d", "_upsample_nearest_exact3d",
        "upsample_trilinear3d", "reflection_pad3d", "replication_pad3d",
    ],
}  # fmt: skip


def _spatial(space: int) -> Rule:
    """The rule of operators over the last ``space`` dimensions, whatever their arguments."""

    def apply(rec: Recorder, func: Op, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
        labels = rec.get(x)
        first = x.dim() - space
        dims = dict(labels.dims)
        for other in tensors_in(args):  # the places that unpooling fills
            for d in range(first):
                met = rec.meet(dims.get(d), rec.get(other).dims.get(d), name_of(func))
                if met is not None:
                    dims[d] = met
        for d in [d for d in dims if d >= first]:
            _over_channels(rec, func, dims, d, tensors_in(out)[0].shape[d])
        for t in tensors_in(out):
            rec.set(t, dims, labels.weight)

    return apply


def _over_channels(rec: Recorder, func: Op, dims: dict[int, Vector], d: int, made: int) -> None:
    """What becomes of channels in the place of space: a window may leave as many as there were.

    With a padding before it, whose constants stand at the ends, it may leave those between them.
    """
    vector = dims[d]
    inner = vector[np.cumsum(vector) > 0][: np.count_nonzero(vector)]  # without what stands around
    windowed = name_of(func).startswith(("avg_pool", "max_pool"))
    stays = windowed and made in (len(vector), len(inner)) and bool((inner > 0).all())
    along_space(rec, dims, d, name_of(func), stays=stays)
    if stays and made == len(inner):
        dims[d] = inner


def along_space(rec: Recorder, dims: dict[int, Vector], dim: int, what: str, stays: bool) -> None:
    """A window slides over the channels: after a cut it sees others; inexact at best.

    Where it changes their number they stay.
    """
    if stays:
        rec.couple(dims[dim], f"{what} slides over the channels")
    else:
        rec.freeze(dims.pop(dim), f"{what} runs over the channels as if they were space")


for _space, _names in _SPATIAL.items():
    rule(
        *_names,
        reads="self input indices random_samples",
        # Where windows and samples lie in space.
        ignores="kernel_size stride padding dilation ceil_mode count_include_pad divisor_override "
        "output_size align_corners scales scales_d scales_h scales_w scale_factors",
    )(_spatial(_space))


@rule(
    "grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler",
    reads="input self grid",
    ignores="interpolation_mode padding_mode align_corners",  # how places are read, for all alike
)  # fmt: skip
def grid_sampler(rec: Recorder, func: Op, out: Tensor, x: Tensor, grid: Tensor, *args: Any) -> None:
    hold(rec, grid, "it is a sampling grid")
    _spatial(x.dim() - 2)(rec, func, out, x)


@rule(
    "mean", "sum", "nansum", "prod", "amax", "amin", "max", "min", "aminmax", "median", "nanmedian",
    "count_nonzero", "any",
    "all", "argmax", "argmin", "var", "std", "var_mean", "std_mean", "logsumexp", "norm",
    "linalg_vector_norm", reads="self dim keepdim other",
)  # fmt: skip
def reduction(rec: Recorder, func: Op, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Reducing over channels couples them; the others keep their labels.

    Example:
        >>> rule = netslim.register_rule("mylib::my_reduction", netslim.graph.rules.reduction)
    """
    if tensors_in(args, kwargs):  # max(x, other)
        pointwise(rec, func, out, x, *args, **kwargs)
        return
    labels = rec.get(x)
    given = named_arguments(func, args, kwargs)
    wanted = given.get("dim")
    if isinstance(wanted, int):
        wanted = [wanted]
    reduced = {d % max(x.dim(), 1) for d in wanted or range(x.dim())}
    mixed = [d for d in labels.dims if d in reduced and not _as_a_layer(rec, func, labels, d)]
    if given.get("keepdim", False):
        dims = {d: v for d, v in labels.dims.items() if d not in reduced}
    else:
        dims = without(dict(labels.dims), reduced)
    for t in tensors_in(out):
        rec.set(t, dims, labels.weight)
        for d in mixed:
            rec.mixed(t, labels.dims[d], f"{name_of(func)} over the channels")
            if not t.is_floating_point() and x.is_floating_point() and t.dtype != torch.bool:
                rec.number(t, labels.dims[d], name_of(func))


def _as_a_layer(rec: Recorder, func: Op, labels: Labels, dim: int) -> bool:
    """Whether it adds up products with a weight, ``(w * x[:, None]).sum(2)``, as a layer does."""
    if name_of(func) != "sum" or labels.weight:
        return False
    return rec.mark_weight(labels, dim, CONSUMER)


@rule(
    "mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss",
    reads="self target reduction",
    ignores="delta",  # a threshold for each element
)  # fmt: skip
def loss(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, target: Tensor, reduction: int = 1, *args: Any
) -> None:
    """Element by element; the mean or the sum of all runs over the channels, too."""
    if reduction == 0:
        pointwise(rec, func, out, x, target)
        return
    ndim = max(x.dim(), target.dim())
    for d in range(ndim):
        met = meeting(rec, (x, target), d, ndim, name_of(func))
        rec.couple(met, f"{name_of(func)} over the channels")
    rec.set(out, {}, derived(rec, x, target))


@rule(
    "_softmax",
    "_log_softmax",
    "_safe_softmax",
    "cumsum",
    "cumprod",
    "logcumsumexp",
    reads="self dim",
)
def softmax(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: int, *args: Any, **kwargs: Any
) -> None:
    """Along one dimension, which is coupled: each share depends on all elements.

    Example:
        >>> rule = netslim.register_rule("mylib::my_softmax", netslim.graph.rules.softmax)
    """
    labels = rec.get(x)
    vector = labels.dims.get(dim % max(x.dim(), 1))
    rec.couple(vector, f"{name_of(func).strip('_')} over the channels")
    rec.set(out, labels.dims, labels.weight)


def _affine(rec: Recorder, dims: dict[int, Vector], dim: int, first: int, *vectors: object) -> None:
    """Tie per-channel tensors to dimension ``dim``; the first of them is the scale."""
    for i, t in enumerate(vectors):
        if isinstance(t, Tensor):
            labels = rec.get(t)
            met = rec.meet(dims.get(dim), labels.dims.get(first), "normalisation")
            if met is not None:
                dims[dim] = met
            role = CHANNEL
            if i == 0:
                role = SCALE
            rec.mark(labels, first, role)


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update",
    "batch_norm", reads="input weight bias running_mean running_var training",
)  # fmt: skip
def batch_norm(rec: Recorder, func: Op, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Per channel, with the four vectors of the channel.

    Example:
        >>> rule = netslim.register_rule("mylib::my_batch_norm", netslim.graph.rules.batch_norm)
    """
    labels = rec.get(x)
    given = named_arguments(func, args, kwargs)
    dims = dict(labels.dims)
    vectors = [given.get(k) for k in ("weight", "bias", "running_mean", "running_var")]
    _affine(rec, dims, 1, 0, *vectors)
    if not isinstance(given.get("running_mean"), Tensor) or given.get("training"):
        for d in [d for d in dims if d != 1]:
            rec.couple(dims[d], "statistics are taken over the channels")
    rec.set(tensors_in(out)[0], dims, labels.weight and derived(rec, vectors))


@rule(
    "native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm",
    reads="input normalized_shape weight bias",
)  # fmt: skip
def layer_norm(
    rec: Recorder, func: Op, out: Any, x: Tensor, shape: Sequence[int], *params: Any
) -> None:
    """Over the last dimensions, which are coupled: mean and deviation are taken over them.

    Example:
        >>> rule = netslim.register_rule("mylib::my_layer_norm", netslim.graph.rules.layer_norm)
    """
    labels = rec.get(x)
    dims = dict(labels.dims)
    first = x.dim() - len(shape)
    for d in range(first, x.dim()):
        _affine(rec, dims, d, d - first, *params[:2])
        # What the weights alone number, such as places, stays anyway.
        rec.couple(labels.dims.get(d), "layer normalisation over the channels")
    for t in tensors_in(out):  # the result; means and deviations, of size 1 along the channels
        rec.set(t, {d: v for d, v in dims.items() if t.shape[d] == len(v)}, weight=False)


@rule(
    "native_group_norm", "group_norm",
    reads="input weight bias group num_groups", ignores="N C HxW",  # the sizes of the input
)  # fmt: skip
def group_norm(rec: Recorder, func: Op, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """One channel a group is exact, and the number of groups follows; else each shrinks alike.

    Example:
        >>> rule = netslim.register_rule("mylib::my_group_norm", netslim.graph.rules.group_norm)
    """
    given = named_arguments(func, args, kwargs)
    dims = dict(rec.get(x).dims)
    _affine(rec, dims, 1, 0, given.get("weight"), given.get("bias"))
    if 1 in dims:
        (groups,) = (given[name] for name in ("group", "num_groups") if name in given)
        _normalised_groups(rec, dims[1], int(groups))
    rec.set(tensors_in(out)[0], dims, weight=False)


def _normalised_groups(rec: Recorder, vector: Vector, groups: int) -> None:
    if groups == len(vector):
        rec.constrain(rec.passed(1, "num_groups", default=groups), vector, groups)
        return
    split_vector(rec, vector, (groups, len(vector) // groups), keep=1, what="group normalisation")
    rec.couple(vector, "group normalisation over the channels")


_UNRANKED = "; x.amax(1), x.mean(1) or a ranking of places would be followed"


@rule(
    "sort", "argsort", "topk", "kthvalue", "mode", "cummax", "cummin",
    reads="self dim",
    ignores="descending k largest keepdim",  # what is ranked stays; the result shows what is left
)  # fmt: skip
def ranking(rec: Recorder, func: Op, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Along other dimensions the channels keep their places."""
    labels = rec.get(x)
    dims = dict(labels.dims)
    given = named_arguments(func, args, kwargs)
    dim = int(given.get("dim", -1)) % max(x.dim(), 1)
    if dim in dims:
        rec.freeze(dims.pop(dim), f"channels are ranked by {name_of(func)}{_UNRANKED}")
    for t in tensors_in(out):
        gone = t.dim() < x.dim()
        rec.set(t, {d - (gone and d > dim): v for d, v in dims.items()}, labels.weight)


@rule(
    "_fft_r2c", "_fft_c2r", "_fft_c2c",
    reads="self dim",
    # A factor that is the same for all, and how much is kept of a dimension that stays.
    ignores="normalization onesided forward last_dim_size",
)  # fmt: skip
def fourier(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, dims: Sequence[int], *args: Any
) -> None:
    """Dimensions that are transformed stay; along the others the channels keep their places."""
    labels = rec.get(x)
    transformed = {d % x.dim() for d in dims}
    for d, vector in labels.dims.items():
        if d in transformed:
            rec.freeze(vector, "a Fourier transform runs over the channels")
    rec.set(out, {d: v for d, v in labels.dims.items() if d not in transformed}, labels.weight)


@rule("_weight_norm_interface", "_weight_norm", reads="v g dim")
def weight_norm(rec: Recorder, func: Op, out: Any, v: Tensor, g: Tensor, dim: int = 0) -> None:
    """Directions and their gains: ``g * v / |v|``, with the norm over all dimensions but one."""
    labels, gains, dim = rec.get(v), rec.get(g), dimension(dim, v.dim())
    dims = dict(labels.dims)
    met = rec.meet(dims.get(dim), gains.dims.get(dim), "weight normalisation")
    if met is not None:
        dims[dim] = met
    rec.mark(gains, dim, CHANNEL)
    if labels.weight and gains.weight and {dim} <= set(labels.dims) & set(gains.dims):
        rec.atoms.gains.append((labels.dims[dim], gains.dims[dim]))
    names = rec.atoms.names
    norm = WeightNorm(names.get(id(v), ""), names.get(id(g), ""), dim)
    for d, vector in dims.items():
        # The norms change with what is left of the directions; a cut adjusts the gains it knows.
        if d != dim and norm not in rec.weight_norms:
            rec.couple(vector, "weight normalisation over the channels")
    rec.set(tensors_in(out)[0], dims, weight=labels.weight and gains.weight)
