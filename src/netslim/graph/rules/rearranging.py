"""Reshaping, turning and joining.

Where an operator takes a dimension of channels apart, as a reshape to heads or a shuffle of groups
does, tracing/shapes.py says which part may shrink and ties the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netslim.graph.rules.elementwise import meeting
from netslim.graph.rules.indexing import hold
from netslim.graph.rules.registry import (
    Op,
    asked_sizes,
    derived,
    for_each,
    name_of,
    rule,
    tensors_in,
    without,
)
from netslim.graph.tracing.atoms import ATOM, Vector
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.shapes import reshape, split_vector

# --- changes of shape -----------------------------------------------------------------------------


_RESHAPES = "view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy"


# The strides of the result are ignored: they are as they must be.
@rule(*_RESHAPES, reads="self size shape dtype", ignores="stride")
def view(rec: Recorder, func: Op, out: Tensor, x: Tensor, sizes: Any = None, *args: Any) -> None:
    """Follow the channels through a change of shape; see `shapes.reshape`."""
    labels = rec.get(x)
    if isinstance(sizes, torch.dtype):
        _read_as(rec, out, x)
        return
    asked = asked_sizes(rec, _RESHAPES, 1)
    asked = asked or _unflattened(rec, x) or _headed(rec, x, out)
    if not rec.calls:  # compiled code called it, with numbers of its own
        asked = list(sizes)
    asked = for_each(rec, asked, out)
    rec.set(out, reshape(rec, labels.dims, tuple(x.shape), tuple(out.shape), asked), labels.weight)


def _read_as(rec: Recorder, out: Tensor, x: Tensor) -> None:
    """The same bytes as other numbers: where these are wider or narrower, the last dimension is
    taken apart.
    """
    labels = rec.get(x)
    dims = dict(labels.dims)
    if out.shape != x.shape:
        rec.freeze(dims.pop(x.dim() - 1, None), "its bytes are read as other numbers")
    rec.set(out, dims, labels.weight)


def _unflattened(rec: Recorder, x: Tensor) -> list[Any] | None:
    """The sizes asked for by ``unflatten(dim, sizes)``, None for the dimensions it leaves alone."""
    dim, sizes = rec.passed(1, "dim"), rec.passed(2, "sizes")
    if rec.calling != "unflatten" or not isinstance(dim, int) or sizes is None:
        return None
    dim = dim % x.dim()
    return [None] * dim + list(sizes) + [None] * (x.dim() - dim - 1)


def _headed(rec: Recorder, x: Tensor, out: Tensor) -> list[Any] | None:
    """PyTorch's attention keeps its number of heads: what it splits off the width shrinks last."""
    inside = rec.calling == "multi_head_attention_forward"
    if not inside or out.dim() < x.dim() or out.shape[-1] == x.shape[-1]:
        return None
    return [*[None] * (out.dim() - 2), out.shape[-2], None]


@rule("view_as_real", "view_as_complex", reads="self")
def view_as(rec: Recorder, func: Op, out: Tensor, x: Tensor) -> None:
    """Real and imaginary parts stand in a new last dimension, or leave it."""
    labels = rec.get(x)
    for d, vector in labels.dims.items():
        if d >= out.dim():
            rec.freeze(vector, "real and imaginary parts are told apart by their number")
    rec.set(out, {d: v for d, v in labels.dims.items() if d < out.dim()}, labels.weight)


@rule("channel_shuffle", "native_channel_shuffle", reads="self groups")
def channel_shuffle(rec: Recorder, func: Op, out: Tensor, x: Tensor, groups: int) -> None:
    """The groups change places with the channels in them: every group gives up the same."""
    labels = rec.get(x)
    dims = dict(labels.dims)
    if 1 in dims:
        split_vector(rec, dims[1], (groups, x.shape[1] // groups), keep=1, what="channel_shuffle")
        # The labels are shuffled as the channels are: the first of each group, then the second.
        dims[1] = dims[1].reshape(groups, -1).T.reshape(-1)
    rec.set(out, dims, labels.weight)


@rule("pixel_shuffle", reads="self upscale_factor")
def pixel_shuffle(rec: Recorder, func: Op, out: Tensor, x: Tensor, factor: int) -> None:
    """``(..., C * f * f, H, W) -> (..., C, H * f, W * f)``: f * f channels go with one."""
    labels, dim = rec.get(x), x.dim() - 3
    dims = {d: v for d, v in labels.dims.items() if d < dim}
    if dim in labels.dims:
        shape = (x.shape[-3] // factor**2, factor**2)
        dims[dim] = split_vector(rec, labels.dims[dim], shape, keep=0, what="pixel_shuffle")
    rec.set(out, dims, labels.weight)


@rule("pixel_unshuffle", reads="self downscale_factor")
def pixel_unshuffle(rec: Recorder, func: Op, out: Tensor, x: Tensor, factor: int) -> None:
    """``(..., C, H * f, W * f) -> (..., C * f * f, H, W)``."""
    labels, dim = rec.get(x), x.dim() - 3
    dims = dict(labels.dims)
    if dim in dims:
        dims[dim] = np.repeat(dims[dim], factor**2)
    rec.set(out, dims, labels.weight)


# --- windows --------------------------------------------------------------------------------------

# What says where windows lie and how many fit, of all below, is about space: the size of the result
# shows it, and channels that would be cut through by windows stay.


@rule("im2col", reads="self kernel_size", ignores="dilation padding stride")
def im2col(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, kernel: Sequence[int], *args: Any
) -> None:
    """``(N, C, H, W) -> (N, C * kh * kw, L)``: a channel goes with all places of its window."""
    places = kernel[0] * kernel[1]
    _windows(rec, out, x, lambda vector: np.repeat(vector, places))


@rule("col2im", reads="self kernel_size", ignores="output_size dilation padding stride")
def col2im(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, size: Any, kernel: Sequence[int], *args: Any
) -> None:
    """``(N, C * kh * kw, L) -> (N, C, H, W)``."""
    places = kernel[0] * kernel[1]

    def folded(vector: Vector) -> Vector:
        return split_vector(rec, vector, (len(vector) // places, places), keep=0, what="fold")

    _windows(rec, out, x, folded)


def _windows(rec: Recorder, out: Tensor, x: Tensor, change: Callable[[Vector], Vector]) -> None:
    """Change the labels of the channels, which stand behind the batch if there is one."""
    labels = rec.get(x)
    channel = int(max(x.dim(), out.dim()) == 4)
    dims: dict[int, Vector] = {}
    for d, vector in labels.dims.items():
        if d > channel:
            rec.freeze(vector, "windows are taken over the channels as if they were space")
        else:
            dims[d] = vector
            if d == channel:
                dims[d] = change(vector)
    rec.set(out, dims, labels.weight)


@rule("unfold", reads="self dimension", ignores="size step")
def unfold(rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: int, size: int, step: int) -> None:
    """Windows along one dimension become a new last one."""
    labels, dim = rec.get(x), dim % x.dim()
    rec.freeze(labels.dims.get(dim), "windows are taken over the channels")
    rec.set(out, {d: v for d, v in labels.dims.items() if d != dim}, labels.weight)


@rule(
    "torchvision::roi_align", "torchvision::roi_pool",
    reads="input rois",
    # Where in space the regions and the samples in them are.
    ignores="spatial_scale pooled_height pooled_width sampling_ratio aligned",
)  # fmt: skip
def region_pool(rec: Recorder, func: Op, out: Any, x: Tensor, regions: Tensor, *args: Any) -> None:
    """``(N, C, H, W)`` and K regions ``-> (K, C, h, w)``."""
    hold(rec, regions, "it says where regions are")
    labels = rec.get(x)
    for d, vector in labels.dims.items():
        if d != 1:
            rec.freeze(vector, f"{name_of(func)} takes regions of it")
    dims = {d: vector for d, vector in labels.dims.items() if d == 1}
    for t in tensors_in(out):  # beside the result, the places of the largest
        rec.set(t, dims, labels.weight)


# --- turning --------------------------------------------------------------------------------------


@rule("rot90", reads="self dims", ignores="k")  # what is turned stays, however often
def rot90(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, times: int = 1, dims: Sequence[int] = (0, 1)
) -> None:
    """Dimensions that are turned stay."""
    labels, turned = rec.get(x), {d % x.dim() for d in dims}
    for d in turned & set(labels.dims):
        rec.freeze(labels.dims[d], "the channels are turned as if they were space")
    rec.set(out, {d: v for d, v in labels.dims.items() if d not in turned}, labels.weight)


@rule("flip", reads="self dims")
def flip(rec: Recorder, func: Op, out: Tensor, x: Tensor, flipped: Sequence[int]) -> None:
    """The labels turn round with the entries."""
    labels = rec.get(x)
    dims = dict(labels.dims)
    for d in {d % x.dim() for d in flipped} & set(dims):
        dims[d] = dims[d][::-1]
    rec.set(out, dims, labels.weight)


@rule("tril", "triu", reads="self diagonal")
def triangle(rec: Recorder, func: Op, out: Tensor, x: Tensor, diagonal: int = 0) -> None:
    """Rows and columns that go together stay on their side of the main diagonal.

    Row 5 of column 3 stays below when row and column 4 go, but not two below: the other diagonals,
    save the one that is the border of "strictly above", move.
    """
    labels = rec.get(x)
    rows, columns = labels.dims.get(x.dim() - 2), labels.dims.get(x.dim() - 1)
    strictly = {"triu": 1, "tril": -1}[name_of(func)[:4]]  # the diagonal next to the main one
    if x.shape[-2] == x.shape[-1] and diagonal in (0, strictly):
        rec.meet(rows, columns, name_of(func))
    else:
        rec.freeze(rows, "a triangle is cut out of the channels")
        rec.freeze(columns, "a triangle is cut out of the channels")
    rec.set(out, labels.dims, labels.weight)


@rule("diagonal", reads="self dim1 dim2", ignores="offset")  # both dimensions stay, for any of them
def diagonal(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> None:
    """The two dimensions of the diagonal stay; what is taken of them has no labels."""
    labels, taken = rec.get(x), {dim1 % x.dim(), dim2 % x.dim()}
    for d in taken & set(labels.dims):
        rec.freeze(labels.dims[d], "a diagonal is taken of the channels")
    rec.set(out, without(dict(labels.dims), taken), labels.weight)


@rule("diag_embed", reads="self offset dim1 dim2")
def diag_embed(
    rec: Recorder, func: Op, out: Tensor, x: Tensor,
    offset: int = 0, dim1: int = -2, dim2: int = -1,
) -> None:  # fmt: skip
    """Row and column of a channel go together; beside the main diagonal nothing does."""
    labels = rec.get(x)
    placed = sorted({dim1 % out.dim(), dim2 % out.dim()})
    others = [d for d in range(out.dim()) if d not in placed]
    dims = {others[d]: vector for d, vector in labels.dims.items() if d < x.dim() - 1}
    vector = labels.dims.get(x.dim() - 1)
    if offset:
        rec.freeze(vector, "they are put beside the main diagonal")
    elif vector is not None:
        dims |= dict.fromkeys(placed, vector)
    rec.set(out, dims, labels.weight)


# --- joining --------------------------------------------------------------------------------------


@rule("cat", reads="tensors dim")
def cat(rec: Recorder, func: Op, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
    """Labels one after the other, 0 for parts that have none; other dimensions meet."""
    parts = [p for p in parts if p.numel() or p.dim() == out.dim()]
    dim %= out.dim()
    dims: dict[int, Vector] = {}
    for d in range(out.dim()):
        vectors = [rec.get(p).dims.get(d) for p in parts]
        if all(v is None for v in vectors):
            continue
        if d == dim:
            pairs = zip(vectors, parts, strict=True)
            dims[d] = np.concatenate([_or_constants(v, p.shape[d]) for v, p in pairs])
        else:
            met = meeting(rec, parts, d, out.dim(), "cat")
            if met is not None:
                dims[d] = met
    rec.set(out, dims, derived(rec, parts))


@rule("block_diag", reads="tensors")
def block_diag(rec: Recorder, func: Op, out: Tensor, parts: Sequence[Tensor]) -> None:
    """Rows one after the other, and columns; a vector is one row."""
    dims = {}
    for back in (1, 2):
        vectors = [rec.get(p).dims.get(p.dim() - back) for p in parts]
        sizes = [int(p.shape[-back]) if p.dim() >= back else 1 for p in parts]
        if any(v is not None for v in vectors):
            pairs = zip(vectors, sizes, strict=True)
            dims[out.dim() - back] = np.concatenate([_or_constants(v, n) for v, n in pairs])
    rec.set(out, dims, derived(rec, parts))


def _or_constants(vector: Vector | None, size: int) -> Vector:
    if vector is None:
        return np.zeros(size, dtype=ATOM)
    return vector


@rule("stack", reads="tensors dim")
def stack(rec: Recorder, func: Op, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
    """The parts meet in all dimensions; the new one carries nothing."""
    dim %= out.dim()
    met = {d: meeting(rec, parts, d, out.dim() - 1, "stack") for d in range(out.dim() - 1)}
    rec.set(out, {d + (d >= dim): v for d, v in met.items() if v is not None}, derived(rec, parts))


@rule("constant_pad_nd", reads="self pad")
def pad(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, widths: Sequence[int], value: Any = 0
) -> None:
    """Padded positions are constants that stay, or follow the size in the code.

    The channels between may go: a shortcut that is padded with zeros for the channels it lacks has
    labels [0 0 a b c 0 0], and those that it is added to at the ends stay.
    """
    labels = rec.get(x)
    dims = dict(labels.dims)
    written = _written_pad(rec, len(widths)) or widths
    for i in range(len(widths) // 2):  # from the last dimension on
        d, before, after = x.dim() - 1 - i, widths[2 * i], widths[2 * i + 1]
        if d not in dims or not (before or after):
            rec.constrain(written[2 * i], None, before)
            rec.constrain(written[2 * i + 1], None, after)
        else:
            if min(before, after) < 0:
                rec.freeze(dims[d], "channels are cropped by a fixed amount")
            vector = dims[d][max(-before, 0) : len(dims[d]) - max(-after, 0)]
            first = _padding(rec, written[2 * i], before)
            last = _padding(rec, written[2 * i + 1], after)
            dims[d] = np.concatenate([first, vector, last])
    rec.set(out, dims, labels.weight)


def _written_pad(rec: Recorder, length: int) -> Sequence[Any] | None:
    """The widths as the user's code passed them to ``F.pad``."""
    given = rec.passed(1, "pad")
    if rec.calling != "pad" or not isinstance(given, (tuple, list)) or len(given) != length:
        return None
    return given


def _padding(rec: Recorder, written: Any, width: int) -> Vector:
    if width <= 0:
        rec.constrain(written, None, width)
        return np.empty(0, dtype=ATOM)
    return _or_constants(rec.follow(written, width), width)
