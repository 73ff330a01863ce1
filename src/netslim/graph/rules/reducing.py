"""Over space, reductions and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netslim.graph.rules.elementwise import pointwise
from netslim.graph.rules.registry import Rule, derived, name_of, named_arguments, rule, tensors
from netslim.graph.tracing.atoms import CHANNEL, SCALE, Vector
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.shapes import split_vector

_SPATIAL = {
    2: ["max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
        "adaptive_max_pool2d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d",
        "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa", "reflection_pad2d",
        "replication_pad2d", "fractional_max_pool2d", "max_unpool2d"],
    1: ["avg_pool1d", "max_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "upsample_nearest1d",
        "_upsample_nearest_exact1d", "upsample_linear1d", "reflection_pad1d", "replication_pad1d",
        "max_pool1d_with_indices"],
    3: ["max_pool3d_with_indices", "max_pool3d", "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d",
        "upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_trilinear3d", "reflection_pad3d",
        "replication_pad3d"],
}  # fmt: skip


def _spatial(space: int) -> Rule:
    def apply(rec: Recorder, func: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
        labels = rec.get(x)
        first = x.dim() - space
        dims = dict(labels.dims)
        for other in tensors(args):  # the places that unpooling fills
            for d in range(first):
                met = rec.meet(dims.get(d), rec.get(other).dims.get(d), name_of(func))
                dims |= {} if met is None else {d: met}
        for d in [d for d in dims if d >= first]:
            inner = dims[d][np.cumsum(dims[d]) > 0][
                : np.count_nonzero(dims[d])
            ]  # without constants at the ends
            stays = (
                _windowed(func)
                and tensors(out)[0].shape[d] in (len(dims[d]), len(inner))
                and (inner > 0).all()
            )
            along_space(rec, dims, d, name_of(func), stays=bool(stays))
            if stays and tensors(out)[0].shape[d] == len(inner):
                dims[d] = inner
        for t in tensors(out):
            rec.set(t, dims, labels.weight)

    return apply


def _windowed(func: Any) -> bool:
    return name_of(func).startswith(("avg_pool", "max_pool"))


def along_space(rec: Recorder, dims: dict[int, Vector], dim: int, what: str, stays: bool) -> None:
    """A window slides over the channels: it sees others after a cut, and where it changes their
    number they stay.
    """
    if stays:
        rec.atoms.couple(dims[dim], f"{what} slides over the channels{rec.where()}")
    else:
        rec.atoms.freeze(
            dims.pop(dim), f"{what} runs over the channels as if they were space{rec.where()}"
        )


for _space, _names in _SPATIAL.items():
    rule(*_names)(_spatial(_space))


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, grid: Tensor, *args: Any
) -> None:
    for vector in rec.get(grid).dims.values():
        rec.atoms.freeze(vector, f"it is a sampling grid{rec.where()}")
    _spatial(x.dim() - 2)(rec, func, out, x)


@rule(
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "prod",
    "any",
    "all",
    "argmax",
    "argmin",
    "logsumexp",
    "linalg_vector_norm",
    "norm",
    "median",
    "nansum",
    "aminmax",
)
def reduction(rec: Recorder, func: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Reducing over channels couples them; the others keep their labels."""
    others = tensors(args, kwargs)
    if others:
        pointwise(rec, func, out, x, *args, **kwargs)
        return
    labels = rec.get(x)
    given = named_arguments(func, args, kwargs)
    dim, keep = given.get("dim"), bool(given.get("keepdim", False))
    wanted = [dim] if isinstance(dim, int) else dim
    reduced = {d % x.dim() for d in wanted} if wanted else set(range(x.dim()))
    dims: dict[int, Vector] = {}
    for d, vector in labels.dims.items():
        if d in reduced:
            rec.atoms.couple(vector, f"{name_of(func)} over the channels{rec.where()}")
        else:
            dims[d if keep else d - sum(r < d for r in reduced)] = vector
    for t in tensors(out):
        rec.set(t, dims, labels.weight)
        if not t.is_floating_point() and x.is_floating_point() and t.dtype != torch.bool:
            for d in reduced & set(labels.dims):
                rec.number(t, labels.dims[d], name_of(func))


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp")
def softmax(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, dim: int, *args: Any, **kwargs: Any
) -> None:
    labels = rec.get(x)
    if dim % max(x.dim(), 1) in labels.dims:
        rec.atoms.couple(
            labels.dims[dim % x.dim()], f"{name_of(func).strip('_')} over the channels{rec.where()}"
        )
    rec.set(out, labels.dims, labels.weight)


def _affine(
    rec: Recorder, dims: dict[int, Vector], dim: int, first: int, *vectors: Tensor | None
) -> None:
    """Tie per-channel vectors to dimension ``dim``; the first of them is the scale."""
    for i, t in enumerate(vectors):
        if t is not None:
            labels = rec.get(t)
            met = rec.meet(dims.get(dim), labels.dims.get(first), "normalisation")
            if met is not None:
                dims[dim] = met
            rec.mark(labels, first, SCALE if i == 0 else CHANNEL)


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
    "batch_norm",
)
def batch_norm(rec: Recorder, func: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Per channel, with the four vectors of the channel."""
    labels = rec.get(x)
    given = named_arguments(func, args, kwargs)
    dims = dict(labels.dims)
    vectors = [given.get(k) for k in ("weight", "bias", "running_mean", "running_var")]
    present = [v if isinstance(v, Tensor) else None for v in vectors]
    _affine(rec, dims, 1, 0, *present)
    if present[2] is None or given.get("training"):
        for d in [d for d in dims if d != 1]:
            rec.atoms.couple(dims[d], f"statistics are taken over the channels{rec.where()}")
    rec.set(tensors(out)[0], dims, labels.weight and derived(rec, present))


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(
    rec: Recorder, func: Any, out: Any, x: Tensor, shape: Sequence[int], *params: Any
) -> None:
    labels = rec.get(x)
    dims = dict(labels.dims)
    first = x.dim() - len(shape)
    function, args, kwargs = rec.call
    known = getattr(function, "__name__", "") in ("layer_norm", "rms_norm")
    written = (
        (args[1] if len(args) > 1 else kwargs.get("normalized_shape", shape))
        if known
        else [None] * len(shape)
    )
    for d in range(first, x.dim()):
        rec.constrain(written[d - first], dims.get(d), x.shape[d])
        weight, bias = (p if isinstance(p, Tensor) else None for p in (*params, None, None)[:2])
        _affine(rec, dims, d, d - first, weight, bias)
        if d in dims:
            rec.atoms.couple(dims[d], f"layer normalisation over the channels{rec.where()}")
    for t in tensors(out)[:1]:
        rec.set(t, dims, weight=False)


@rule("native_group_norm", "group_norm")
def group_norm(rec: Recorder, func: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """One channel a group is exact and the number of groups follows; otherwise each group shrinks
    alike.
    """
    given = named_arguments(func, args, kwargs)
    labels = rec.get(x)
    dims, groups = dict(labels.dims), given.get("group", given.get("num_groups"))
    _affine(rec, dims, 1, 0, given.get("weight"), given.get("bias"))
    if 1 in dims:
        _normalised_groups(rec, dims[1], int(groups))  # type: ignore[arg-type]
    rec.set(tensors(out)[0], dims, weight=False)


def _normalised_groups(rec: Recorder, vector: Vector, groups: int) -> None:
    _, args, kwargs = rec.call
    written = args[1] if len(args) > 1 else kwargs.get("num_groups", groups)
    if groups == len(vector):
        rec.constrain(written, vector, groups)
        return
    split_vector(rec, vector, (groups, len(vector) // groups), keep=1, what="group normalisation")
    rec.atoms.couple(vector, f"group normalisation over the channels{rec.where()}")


@rule("sort", "argsort", "topk", "kthvalue", "mode")
def ranking(rec: Recorder, func: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Along other dimensions the channels keep their places."""
    labels = rec.get(x)
    dims = dict(labels.dims)
    given = named_arguments(func, args, kwargs)
    dim = int(given.get("dim", -1)) % max(x.dim(), 1)
    if dim in dims:
        rec.atoms.freeze(dims.pop(dim), f"channels are ranked by {name_of(func)}{rec.where()}")
    for t in tensors(out):
        gone = t.dim() < x.dim()
        rec.set(t, {d - (gone and d > dim): v for d, v in dims.items()}, labels.weight)


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, dims: Sequence[int], *args: Any
) -> None:
    labels = rec.get(x)
    transformed = {d % x.dim() for d in dims}
    for d, vector in labels.dims.items():
        if d in transformed:
            rec.atoms.freeze(vector, f"a Fourier transform runs over the channels{rec.where()}")
    rec.set(out, {d: v for d, v in labels.dims.items() if d not in transformed}, labels.weight)


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(rec: Recorder, func: Any, out: Any, v: Tensor, g: Tensor, dim: int = 0) -> None:
    labels = rec.get(v)
    dims = dict(labels.dims)
    met = rec.meet(dims.get(dim), rec.get(g).dims.get(dim), "weight normalisation")
    if met is not None:
        dims[dim] = met
    rec.mark(rec.get(g), dim, CHANNEL)
    for d, vector in dims.items():
        if d != dim:
            rec.atoms.couple(vector, f"weight normalisation over the channels{rec.where()}")
    rec.set(tensors(out)[0], dims, weight=True)
