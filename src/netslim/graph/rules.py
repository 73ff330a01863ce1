"""What each ATen operator does to labels.

A rule is ``rule(recorder, func, out, *args, **kwargs)`` with the operator's own arguments. It ties the dimensions
that must be cut together, gives the output its labels, and notes what must stay. `RULES` maps the operator's name
(without overload) to its rule; pointwise operators are known by their tag; `fallback` freezes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import gcd, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from .atoms import CHANNEL, CONSUMER, PRODUCER, SCALE, Vector
from .recorder import Labels, Recorder
from .shapes import reshape, split_vector
from .sizes import Size, symbols

Rule = Callable[..., None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these ATen operators (in-place twins included)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = RULES[name + "_"] = function
        return function

    return register


def tensors(*values: Any) -> list[Tensor]:
    """The tensors among (nested) arguments."""
    return [v for v in tree_flatten(values)[0] if isinstance(v, Tensor)]


def derived(rec: Recorder, *values: Any) -> bool:
    """Whether everything among the arguments was computed from parameters alone."""
    return all(rec.get(t).weight for t in tensors(values))


def labelled(rec: Recorder, *values: Any) -> bool:
    """Whether any argument carries labels."""
    return any(rec.get(t).dims for t in tensors(values))


def name_of(func: Any) -> str:
    """``aten::add`` -> ``add``."""
    return str(func._schema.name.partition("::")[2])


# --- pointwise and the fallback ------------------------------------------------------------------------------------


def fallback(rec: Recorder, func: Any, out: Any, *args: Any, **kwargs: Any) -> None:
    """Pointwise operators by their tag; anything else freezes what it touches and is listed."""
    if torch.Tag.pointwise in func.tags:
        pointwise(rec, func, out, *args, **kwargs)
        return
    inputs = tensors(args, kwargs)
    weight = derived(rec, inputs)
    rec.unknown(name_of(func), [rec.get(t) for t in inputs])
    for tensor in tensors(out):
        rec.set(tensor, {}, weight)


@rule(
    "_prelu_kernel",
    "copy",
    "native_dropout",
    "dropout",
    "alpha_dropout",
    "feature_dropout",
    "masked_fill",
    "where",
)
def pointwise(rec: Recorder, func: Any, out: Any, *args: Any, **kwargs: Any) -> None:
    """Tie the dimensions that meet; broadcasting dimensions of size 1 meet nothing."""
    inputs = tensors(args, kwargs)
    outs = tensors(out)
    weight = derived(rec, inputs)
    if not labelled(rec, inputs):
        for tensor in outs:
            rec.set(tensor, {}, weight)
        return
    ndim, dims = outs[0].dim(), {}
    for d in range(ndim):
        met = _meeting(rec, inputs, d, ndim, name_of(func))
        if met is not None:
            dims[d] = met
    for tensor in outs:
        rec.set(tensor, dims, weight)


def _meeting(rec: Recorder, inputs: Sequence[Tensor], dim: int, ndim: int, what: str) -> Vector | None:
    vectors: list[Vector | None] = []
    for t in inputs:
        d = dim - (ndim - t.dim())
        if d >= 0 and t.shape[d] != 1:
            labels = rec.get(t)
            vectors.append(labels.dims.get(d))
            rec.mark(labels, d, CHANNEL)
    if not vectors or all(v is None for v in vectors):
        return None
    result = vectors[0]
    for other in vectors[1:]:
        result = rec.meet(result, other, what)
    return result


# --- renaming dimensions -------------------------------------------------------------------------------------------


@rule(
    "clone",
    "detach",
    "alias",
    "contiguous",
    "_to_copy",
    "lift_fresh",
    "lift_fresh_copy",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "fill",
    "zero",
    "bernoulli",
    "view_dtype",
    "resolve_conj",
)
def same(rec: Recorder, func: Any, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """The output has the labels of the input."""
    labels = rec.get(x)
    rec.set(out, labels.dims, labels.weight)


@rule("permute")
def permute(rec: Recorder, func: Any, out: Tensor, x: Tensor, order: Sequence[int]) -> None:
    labels = rec.get(x)
    dims = {d: labels.dims[o % x.dim()] for d, o in enumerate(order) if o % x.dim() in labels.dims}
    rec.set(out, dims, labels.weight)


@rule("transpose", "t", "numpy_T")
def transpose(rec: Recorder, func: Any, out: Tensor, x: Tensor, a: int = 0, b: int = -1) -> None:
    if out is x:
        fallback(rec, func, out, x)
        return
    order = list(range(x.dim()))
    if order:
        order[a], order[b] = order[b], order[a]
    permute(rec, func, out, x, order)


@rule("unsqueeze")
def unsqueeze(rec: Recorder, func: Any, out: Tensor, x: Tensor, dim: int) -> None:
    labels, dim = rec.get(x), dim % out.dim()
    rec.set(out, {d + (d >= dim): v for d, v in labels.dims.items()}, labels.weight)


@rule("squeeze")
def squeeze(rec: Recorder, func: Any, out: Tensor, x: Tensor, dim: Any = None) -> None:
    labels = rec.get(x)
    wanted = (
        range(x.dim())
        if dim is None
        else [d % max(x.dim(), 1) for d in ([dim] if isinstance(dim, int) else dim)]
    )
    left = [d for d in range(x.dim()) if not (d in wanted and x.shape[d] == 1)]
    rec.set(out, {i: labels.dims[d] for i, d in enumerate(left) if d in labels.dims}, labels.weight)


@rule("expand")
def expand(rec: Recorder, func: Any, out: Tensor, x: Tensor, sizes: Sequence[int], **kwargs: Any) -> None:
    labels, shift = rec.get(x), out.dim() - x.dim()
    dims = {d + shift: v for d, v in labels.dims.items()}
    asked = _asked(rec, ("expand", "broadcast_to"), 1)
    for d, vector in dims.items():
        if asked is not None and int(asked[d]) != -1:
            rec.constrain(asked[d], vector, out.shape[d])
    rec.set(out, dims, labels.weight)


@rule("repeat")
def repeat(rec: Recorder, func: Any, out: Tensor, x: Tensor, times: Sequence[int]) -> None:
    labels, shift = rec.get(x), out.dim() - x.dim()
    rec.set(out, {d + shift: np.tile(v, times[d + shift]) for d, v in labels.dims.items()}, labels.weight)


@rule("flip")
def flip(rec: Recorder, func: Any, out: Tensor, x: Tensor, flipped: Sequence[int]) -> None:
    labels = rec.get(x)
    turned = {d % x.dim() for d in flipped}
    rec.set(out, {d: v[::-1] if d in turned else v for d, v in labels.dims.items()}, labels.weight)


@rule("roll")
def roll(rec: Recorder, func: Any, out: Tensor, x: Tensor, shifts: Any, dims: Sequence[int] = ()) -> None:
    labels = rec.get(x)
    for d, vector in labels.dims.items():
        if not dims or d in {i % x.dim() for i in dims}:
            rec.atoms.freeze(vector, f"channels are rolled by a fixed amount{rec.where()}")
    rec.set(out, labels.dims, labels.weight)


# --- reshaping -----------------------------------------------------------------------------------------------------


def _asked(rec: Recorder, functions: tuple[str, ...], first: int) -> list[Any] | None:
    """The sizes the user's code passed, if it called one of ``functions`` itself; None if PyTorch computed them."""
    function, args, kwargs = rec.call
    if getattr(function, "__name__", "") not in functions:
        return None
    given = list(args[first:]) or [v for k, v in kwargs.items() if k in ("shape", "size", "sizes")]
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = list(given[0])
    return given if given and all(isinstance(g, int) for g in given) else None


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def view(rec: Recorder, func: Any, out: Tensor, x: Tensor, sizes: Any = None, *args: Any) -> None:
    """Follow the channels through a change of shape; see `shapes.reshape`."""
    labels = rec.get(x)
    if isinstance(sizes, torch.dtype):
        same(rec, func, out, x)
        return
    asked = _asked(rec, ("view", "reshape"), 1)
    if asked is not None and len(asked) != out.dim():
        asked = None
    rec.set(out, reshape(rec, labels.dims, tuple(x.shape), tuple(out.shape), asked), labels.weight)


@rule("pixel_shuffle")
def pixel_shuffle(rec: Recorder, func: Any, out: Tensor, x: Tensor, factor: int) -> None:
    _fold_channels(rec, out, x, (x.shape[-3] // factor**2, factor**2), keep=0)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(rec: Recorder, func: Any, out: Tensor, x: Tensor, groups: int) -> None:
    labels = rec.get(x)
    dims = dict(labels.dims)
    if 1 in dims:
        split_vector(rec, dims[1], (groups, x.shape[1] // groups), keep=1, what="channel_shuffle")
        dims[1] = dims[1].reshape(groups, -1).T.reshape(-1)
    rec.set(out, dims, labels.weight)


def _fold_channels(rec: Recorder, out: Tensor, x: Tensor, shape: tuple[int, int], keep: int) -> None:
    labels, dim = rec.get(x), x.dim() - 3
    dims = {d: v for d, v in labels.dims.items() if d < dim}
    if dim in labels.dims:
        dims[dim] = split_vector(rec, labels.dims[dim], shape, keep=keep, what="pixel_shuffle")
    rec.set(out, dims, labels.weight)


@rule("pixel_unshuffle")
def pixel_unshuffle(rec: Recorder, func: Any, out: Tensor, x: Tensor, factor: int) -> None:
    labels, dim = rec.get(x), x.dim() - 3
    dims = {d: (np.repeat(v, factor**2) if d == dim else v) for d, v in labels.dims.items()}
    rec.set(out, dims, labels.weight)


# --- taking apart and joining --------------------------------------------------------------------------------------


@rule("slice")
def slice_(
    rec: Recorder,
    func: Any,
    out: Tensor,
    x: Tensor,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> None:
    labels, dim = rec.get(x), dim % x.dim()
    dims = dict(labels.dims)
    if dim in dims and out.shape[dim] != x.shape[dim]:
        vector = dims[dim]
        dims[dim] = vector[slice(start, end, step)]
        if step != 1:
            rec.atoms.freeze(vector, f"a strided slice takes every {step}th channel{rec.where()}")
        else:
            _boundaries(rec, vector, start, end)
    rec.set(out, {d: v for d, v in dims.items() if out.shape[d] > 1 or x.shape[d] == 1}, labels.weight)


def _boundaries(rec: Recorder, vector: Vector, start: int | None, end: int | None) -> None:
    size = len(vector)
    written = _written_slice(rec, start, end)
    for position, given in ((start or 0, written[0]), (size if end is None else end, written[1])):
        if position >= size or position == 0:
            continue
        if rec.mine(given) is not None:
            _boundary(rec, vector, given, position % size)
        elif written == (None, None):
            _tie_segments(rec, vector, position % size)
        else:
            fixed = vector[:position] if position > 0 else vector[position:]
            rec.atoms.freeze(
                fixed, f"a slice boundary ({int(position)}) is written into the code{rec.where()}"
            )


def _boundary(rec: Recorder, vector: Vector, given: Size, position: int) -> None:
    if any(s[0] == "size" for s in symbols(given.expression)):
        _tie_segments(rec, vector, position)
    rec.constrain(given, vector[:position], position)


def _tie_segments(rec: Recorder, vector: Vector, position: int) -> None:
    """Cut every segment alike, so a boundary at a fixed share of the channels stays where it is."""
    step = gcd(len(vector), position)
    split_vector(rec, vector, (len(vector) // step, step), keep=1, what="slice")


def _written_slice(rec: Recorder, start: int | None, end: int | None) -> tuple[Any, Any]:
    """Start and end as the user wrote them in ``x[...]`` or ``narrow``; (None, None) if PyTorch computed them."""
    function, args, kwargs = rec.call
    name = getattr(function, "__name__", "")
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        for item in index:
            if isinstance(item, slice) and (item.start or 0) == (start or 0) and item.stop in (end, None):
                return item.start or 0, item.stop
    if name == "narrow":
        given = {**dict(zip(("dim", "start", "length"), args[1:], strict=False)), **kwargs}
        return given["start"], given["start"] + given["length"]
    return None, None


@rule("split", "unsafe_split", "chunk")
def split(rec: Recorder, func: Any, out: Sequence[Tensor], x: Tensor, size: int, dim: int = 0) -> None:
    function, args, kwargs = rec.call
    if getattr(function, "__name__", "") == "split":
        given = (
            args[1]
            if len(args) > 1
            else next((v for k, v in kwargs.items() if k.startswith("split_size")), size)
        )
        parts = [given] * len(out) if isinstance(given, int) else list(given)
    else:
        parts = None
    _parts(rec, out, x, dim, parts)


@rule("split_with_sizes", "unsafe_split_with_sizes")
def split_with_sizes(
    rec: Recorder, func: Any, out: Sequence[Tensor], x: Tensor, sizes: Any, dim: int = 0
) -> None:
    function, args, kwargs = rec.call
    given = (
        args[1] if len(args) > 1 else next((v for k, v in kwargs.items() if k.startswith("split_size")), None)
    )
    ok = getattr(function, "__name__", "") in ("split", "split_with_sizes") and isinstance(
        given, (tuple, list)
    )
    _parts(rec, out, x, dim, list(given) if ok else None)  # type: ignore[arg-type]


def _parts(rec: Recorder, out: Sequence[Tensor], x: Tensor, dim: int, written: list[Any] | None) -> None:
    """Labels of the parts; ``written`` are the sizes in the user's code, None where PyTorch computed them."""
    labels, dim = rec.get(x), dim % x.dim()
    vector = labels.dims.get(dim)
    pieces: list[Vector | None] = [None] * len(out)
    if vector is not None:
        sizes = [t.shape[dim] for t in out]
        pieces = list(np.split(vector, np.cumsum(sizes)[:-1]))
        if len(out) > 1:
            _constrain_parts(rec, vector, pieces, sizes, written)
    for t, piece in zip(out, pieces, strict=True):
        dims = {d: v for d, v in labels.dims.items() if d != dim}
        rec.set(t, dims if piece is None or len(piece) == 1 else {**dims, dim: piece}, labels.weight)


def _constrain_parts(
    rec: Recorder, vector: Vector, pieces: list[Any], sizes: list[int], written: list[Any] | None
) -> None:
    if written is None or (len(set(sizes)) == 1 and any(_reads_shape(rec, w) for w in written)):
        if len(set(sizes)) > 1:
            rec.atoms.freeze(vector, f"a split into unequal parts{rec.where()}")
        else:
            split_vector(rec, vector, (len(sizes), sizes[0]), keep=1, what="chunk")
    if written is not None:
        for given, piece, size in zip(written, pieces, sizes, strict=False):
            rec.constrain(given, piece, size)


def _reads_shape(rec: Recorder, value: Any) -> bool:
    expr = rec.mine(value)
    return expr is not None and any(s[0] == "size" for s in symbols(expr))


@rule("select", "unbind")
def select(rec: Recorder, func: Any, out: Any, x: Tensor, dim: int = 0, index: int = 0) -> None:
    labels, dim = rec.get(x), dim % x.dim()
    if dim in labels.dims:
        rec.atoms.freeze(labels.dims[dim], f"a channel is picked by its number{rec.where()}")
    dims = {d - (d > dim): v for d, v in labels.dims.items() if d != dim}
    for t in tensors(out):
        rec.set(t, dims, labels.weight)


@rule("cat")
def cat(rec: Recorder, func: Any, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
    parts = [p for p in parts if p.numel() or p.dim() == out.dim()]
    dim %= out.dim()
    dims: dict[int, Vector] = {}
    for d in range(out.dim()):
        vectors = [rec.get(p).dims.get(d) for p in parts]
        if all(v is None for v in vectors):
            continue
        if d == dim:
            dims[d] = np.concatenate(
                [
                    np.zeros(p.shape[d], dtype=np.int64) if v is None else v
                    for p, v in zip(parts, vectors, strict=True)
                ]
            )
        else:
            met = _meeting(rec, parts, d, out.dim(), "cat")
            if met is not None:
                dims[d] = met
    rec.set(out, dims, derived(rec, parts))


@rule("stack")
def stack(rec: Recorder, func: Any, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
    dim %= out.dim()
    met = {d: _meeting(rec, parts, d, out.dim() - 1, "stack") for d in range(out.dim() - 1)}
    rec.set(out, {d + (d >= dim): v for d, v in met.items() if v is not None}, derived(rec, parts))


@rule("constant_pad_nd")
def pad(rec: Recorder, func: Any, out: Tensor, x: Tensor, widths: Sequence[int], value: Any = 0) -> None:
    """Padded positions are constants that stay; the channels between them may go."""
    labels = rec.get(x)
    dims = dict(labels.dims)
    for i in range(len(widths) // 2):
        d, before, after = x.dim() - 1 - i, widths[2 * i], widths[2 * i + 1]
        if d in dims and (before or after):
            if min(before, after) < 0:
                rec.atoms.freeze(dims[d], f"channels are cropped by a fixed amount{rec.where()}")
            vector = dims[d][max(-before, 0) : len(dims[d]) - max(-after, 0)]
            dims[d] = np.pad(vector, (max(before, 0), max(after, 0)))
    rec.set(out, dims, labels.weight)


@rule("index_select", "gather", "take_along_dim")
def index_select(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, dim: int, *args: Any, **kwargs: Any
) -> None:
    labels, dim = rec.get(x), dim % max(x.dim(), 1)
    if dim in labels.dims or name_of(func) != "index_select":
        rec.unknown(name_of(func), [labels], "channels are picked by")
        rec.set(out, {}, labels.weight)
        return
    rec.set(out, labels.dims, labels.weight)


@rule("index")
def index(rec: Recorder, func: Any, out: Tensor, x: Tensor, indices: Sequence[Any]) -> None:
    """One index tensor over a dimension without channels keeps the others."""
    labels = rec.get(x)
    used = [d for d, i in enumerate(indices) if i is not None]
    simple = len(used) == 1 and used[0] not in labels.dims and indices[used[0]].dtype != torch.bool
    if not simple:
        rec.unknown("index", [labels], "channels are picked by")
        rec.set(out, {}, labels.weight)
        return
    shift = indices[used[0]].dim() - 1
    rec.set(out, {d + shift * (d > used[0]): v for d, v in labels.dims.items()}, labels.weight)


@rule("embedding")
def embedding(rec: Recorder, func: Any, out: Tensor, table: Tensor, indices: Tensor, *args: Any) -> None:
    labels = rec.get(table)
    if 0 in labels.dims:
        rec.atoms.freeze(labels.dims[0], "rows of an embedding are picked by number")
    rec.mark(labels, 1, PRODUCER)
    rec.set(out, {out.dim() - 1: labels.dims[1]} if 1 in labels.dims else {}, weight=False)


# --- over space ----------------------------------------------------------------------------------------------------

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
        for d, vector in labels.dims.items():
            if d >= first:
                rec.atoms.freeze(
                    vector, f"{name_of(func)} runs over the channels as if they were space{rec.where()}"
                )
        for t in tensors(out):
            rec.set(t, {d: v for d, v in labels.dims.items() if d < first}, labels.weight)

    return apply


for _space, _names in _SPATIAL.items():
    rule(*_names)(_spatial(_space))


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(rec: Recorder, func: Any, out: Tensor, x: Tensor, grid: Tensor, *args: Any) -> None:
    for vector in rec.get(grid).dims.values():
        rec.atoms.freeze(vector, f"it is a sampling grid{rec.where()}")
    _spatial(x.dim() - 2)(rec, func, out, x)


# --- reductions ----------------------------------------------------------------------------------------------------


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
    names = [a.name for a in func._schema.arguments]
    given = {**dict(zip(names[1:], args, strict=False)), **kwargs}
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


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp")
def softmax(rec: Recorder, func: Any, out: Tensor, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> None:
    labels = rec.get(x)
    if dim % max(x.dim(), 1) in labels.dims:
        rec.atoms.couple(
            labels.dims[dim % x.dim()], f"{name_of(func).strip('_')} over the channels{rec.where()}"
        )
    rec.set(out, labels.dims, labels.weight)


# --- normalisation -------------------------------------------------------------------------------------------------


def _affine(rec: Recorder, dims: dict[int, Vector], dim: int, first: int, *vectors: Tensor | None) -> None:
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
    names = [a.name for a in func._schema.arguments]
    given = {**dict(zip(names[1:], args, strict=False)), **kwargs}
    dims = dict(labels.dims)
    vectors = [given.get(k) for k in ("weight", "bias", "running_mean", "running_var")]
    _affine(rec, dims, 1, 0, *[v if isinstance(v, Tensor) else None for v in vectors])
    outs = tensors(out)
    rec.set(outs[0], dims, weight=False)


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(rec: Recorder, func: Any, out: Any, x: Tensor, shape: Sequence[int], *params: Any) -> None:
    labels = rec.get(x)
    dims = dict(labels.dims)
    first = x.dim() - len(shape)
    for d in range(first, x.dim()):
        weight, bias = (p if isinstance(p, Tensor) else None for p in (*params, None, None)[:2])
        _affine(rec, dims, d, d - first, weight, bias)
        if d in dims:
            rec.atoms.couple(dims[d], f"layer normalisation over the channels{rec.where()}")
    for t in tensors(out)[:1]:
        rec.set(t, dims, weight=False)


@rule("native_group_norm", "group_norm")
def group_norm(rec: Recorder, func: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """One channel a group is exact and the number of groups follows; otherwise each group shrinks alike."""
    names = [a.name for a in func._schema.arguments]
    given = {**dict(zip(names[1:], args, strict=False)), **kwargs}
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


# --- contractions --------------------------------------------------------------------------------------------------


def _contract(rec: Recorder, a: Labels, da: int, b: Labels, db: int, what: str) -> Vector | None:
    """Tie the contracted sides; a weight's side consumes, and without a weight the values are coupled."""
    met = rec.meet(a.dims.get(da), b.dims.get(db), what)
    if met is None:
        return None
    rec.mark(a, da, CONSUMER)
    rec.mark(b, db, CONSUMER)
    if not a.weight and not b.weight:
        rec.atoms.couple(met, f"a product of activations over the channels ({what}){rec.where()}")
    return met


def _free(rec: Recorder, source: Labels, dim: int, into: dict[int, Vector], at: int) -> None:
    if dim in source.dims:
        into[at] = source.dims[dim]
        rec.mark(source, dim, PRODUCER)


def _size(t: Tensor, labels: Labels, dim: int) -> int | Vector:
    return labels.dims.get(dim, t.shape[dim])


def _matmul(rec: Recorder, func: Any, out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None) -> None:
    """``(..., m, k) @ (..., k, n)``, with a bias that broadcasts over the result."""
    la, lb = rec.get(a), rec.get(b)
    dims: dict[int, Vector] = {}
    for d in range(out.dim() - 2):
        met = rec.meet(la.dims.get(d), lb.dims.get(d), name_of(func))
        if met is not None:
            dims[d] = met
    m, k, n = out.dim() - 2, out.dim() - 1, out.dim() - 1
    met = _contract(rec, la, k, lb, m, name_of(func))
    _free(rec, la, m, dims, m)
    _free(rec, lb, n, dims, n)
    if bias is not None:
        _add_bias(rec, dims, out, bias)
    batch = [_size(a, la, d) for d in range(out.dim() - 2)]
    rec.cost(name_of(func), *batch, _size(a, la, m), a.shape[k] if met is None else met, _size(b, lb, n))
    rec.set(out, dims, la.weight and lb.weight)


def _add_bias(rec: Recorder, dims: dict[int, Vector], out: Tensor, bias: Tensor) -> None:
    labels = rec.get(bias)
    for d in range(bias.dim()):
        at = d + out.dim() - bias.dim()
        if bias.shape[d] > 1:
            met = rec.meet(dims.get(at), labels.dims.get(d), "bias")
            if met is not None:
                dims[at] = met
            rec.mark(labels, d, CHANNEL)


@rule("mm", "bmm")
def matmul(rec: Recorder, func: Any, out: Tensor, a: Tensor, b: Tensor, *args: Any) -> None:
    _matmul(rec, func, out, a, b)


@rule("addmm", "baddbmm", "_addmm_activation")
def addmm(rec: Recorder, func: Any, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> None:
    _matmul(rec, func, out, a, b, bias)


@rule("mv", "dot", "vdot")
def vector_product(rec: Recorder, func: Any, out: Tensor, a: Tensor, b: Tensor) -> None:
    la, lb = rec.get(a), rec.get(b)
    dims: dict[int, Vector] = {}
    met = _contract(rec, la, a.dim() - 1, lb, 0, name_of(func))
    if a.dim() == 2:
        _free(rec, la, 0, dims, 0)
    rec.cost(name_of(func), *([_size(a, la, 0)] if a.dim() == 2 else []), b.shape[0] if met is None else met)
    rec.set(out, dims, la.weight and lb.weight)


@rule("linear", "mkldnn_linear", "_mkldnn_linear")
def linear(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> None:
    lx, lw = rec.get(x), rec.get(weight)
    last = x.dim() - 1
    met = _contract(rec, lx, last, lw, 1, "linear")
    dims = {d: v for d, v in lx.dims.items() if d != last}
    _free(rec, lw, 0, dims, last)
    if bias is not None:
        _add_bias(rec, dims, out, bias)
    rec.cost("linear", prod(x.shape[:-1]), x.shape[-1] if met is None else met, _size(weight, lw, 0))
    rec.set(out, dims, lx.weight and lw.weight)


@rule("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution")
def convolution(
    rec: Recorder,
    func: Any,
    out: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *args: Any,
) -> None:
    """Plain, grouped, depthwise and transposed."""
    lx, lw = rec.get(x), rec.get(w)
    for d in range(2, w.dim()):
        if d in lw.dims:
            rec.atoms.freeze(lw.dims[d], "it is an axis of the kernel")
    for d, vector in lx.dims.items():
        if d > 1:
            rec.atoms.freeze(vector, f"a convolution runs over it as if it were space{rec.where()}")
    read: int | Vector | None
    if groups == 1:
        read = _contract(rec, lx, 1, lw, 0 if transposed else 1, "convolution")
        made = lw.dims.get(1 if transposed else 0)
        rec.mark(lw, 1 if transposed else 0, PRODUCER)
    else:
        read, made = _grouped(rec, x, lx, w, lw, groups, transposed)
    dims = {0: lx.dims[0]} if 0 in lx.dims else {}
    if made is not None:
        dims[1] = made
    if bias is not None:
        _add_channel_bias(rec, dims, bias)
    space = prod((x if transposed else out).shape[2:]) * prod(w.shape[2:]) * out.shape[0]
    depth = x.shape[1] // groups if read is None else read
    rec.cost("convolution", space, depth, out.shape[1] if dims.get(1) is None else dims[1])
    rec.set(out, dims, lx.weight and lw.weight)


def _add_channel_bias(rec: Recorder, dims: dict[int, Vector], bias: Tensor) -> None:
    labels = rec.get(bias)
    met = rec.meet(dims.get(1), labels.dims.get(0), "bias")
    if met is not None:
        dims[1] = met
    rec.mark(labels, 0, CHANNEL)


def _grouped(
    rec: Recorder, x: Tensor, lx: Labels, w: Tensor, lw: Labels, groups: int, transposed: bool
) -> tuple[int | Vector, Vector | None]:
    """(depth read by each output, labels of the outputs). The weight is (out, in/groups) or, transposed, (in, out/groups)."""
    channels, per_group = x.shape[1], x.shape[1] // groups
    source = lx.dims.get(1)
    if per_group == 1:
        return _depthwise(
            rec, source, lw, channels, w.shape[1] if transposed else w.shape[0] // channels, transposed
        )
    if transposed:
        return _grouped_transposed(rec, source, per_group, lw, groups)
    made = lw.dims.get(0)
    if made is not None:
        rec.mark(lw, 0, PRODUCER)
        split_vector(rec, made, (groups, len(made) // groups), keep=1, what="grouped convolution")
    read: int | Vector = per_group
    if source is not None:
        first = split_vector(rec, source, (groups, per_group), keep=1, what="grouped convolution")
        met = rec.meet(first, lw.dims.get(1), "grouped convolution")
        read = per_group if met is None else met
    elif 1 in lw.dims:
        rec.atoms.freeze(lw.dims[1], f"it meets a fixed size in convolution{rec.where()}")
    rec.mark(lw, 1, CONSUMER)
    return read, made


def _grouped_transposed(
    rec: Recorder, source: Vector | None, per_group: int, lw: Labels, groups: int
) -> tuple[int | Vector, Vector | None]:
    met = rec.meet(source, lw.dims.get(0), "grouped transposed convolution")
    rec.mark(lw, 0, CONSUMER)
    read: int | Vector = per_group
    if met is not None:
        read = split_vector(rec, met, (groups, per_group), keep=1, what="grouped transposed convolution")
    if 1 not in lw.dims:
        return read, None
    rec.mark(lw, 1, PRODUCER)
    return read, np.tile(lw.dims[1], groups)


def _depthwise(
    rec: Recorder, source: Vector | None, lw: Labels, channels: int, multiplier: int, transposed: bool
) -> tuple[int | Vector, Vector | None]:
    """The number of groups follows the channels, so a channel goes with its filters."""
    made = lw.dims.get(0)
    if transposed:
        made = None if made is None else np.repeat(made, multiplier)
        if 1 in lw.dims:
            rec.atoms.freeze(lw.dims[1], "it is the multiplier of a depthwise convolution")
    spread = None if source is None else np.repeat(source, multiplier)
    met = rec.meet(spread, made, "depthwise convolution")
    if made is not None and source is None:
        rec.atoms.freeze(made, f"it meets a fixed size in convolution{rec.where()}")
    if met is not None:
        _, args, kwargs = rec.call
        written = args[6] if len(args) > 6 else kwargs.get("groups", channels)
        rec.constrain(written, met[::multiplier], channels)
        rec.mark(lw, 0, CHANNEL)
    return 1, met


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "scaled_dot_product_attention",
)
def attention(
    rec: Recorder, func: Any, out: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Queries and keys share their last dimension (coupled by the product); values keep theirs."""
    lq, lk, lv = rec.get(q), rec.get(k), rec.get(v)
    last = q.dim() - 1
    dims: dict[int, Vector] = {}
    for d in range(q.dim() - 2):
        met = rec.meet(rec.meet(lq.dims.get(d), lk.dims.get(d), "attention"), lv.dims.get(d), "attention")
        if met is not None:
            dims[d] = met
    for labels in (lq, lk, lv):
        if last - 1 in labels.dims:
            rec.atoms.freeze(labels.dims[last - 1], f"attention runs over it{rec.where()}")
    met = _contract(rec, lq, last, lk, last, "attention")
    if last in lv.dims:
        dims[last] = lv.dims[last]
    batch = prod(q.shape[:-2]) * q.shape[-2] * k.shape[-2]
    rec.cost("attention", batch, q.shape[-1] if met is None else met)
    rec.cost("attention", batch, _size(v, lv, last))
    rec.set(tensors(out)[0], dims, weight=False)


def operators() -> Mapping[str, Rule]:
    """The table of rules."""
    return RULES
