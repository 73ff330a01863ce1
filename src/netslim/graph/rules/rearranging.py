"""Reshaping, taking apart, joining and picking."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atoms import PRODUCER, Vector
from ..recorder import Recorder
from ..shapes import reshape, split_vector
from ..sizes import Size, symbols
from .elementwise import meeting, same
from .table import asked_sizes, derived, name_of, rule, tensors


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def view(rec: Recorder, func: Any, out: Tensor, x: Tensor, sizes: Any = None, *args: Any) -> None:
    """Follow the channels through a change of shape; see `shapes.reshape`."""
    labels = rec.get(x)
    if isinstance(sizes, torch.dtype):
        same(rec, func, out, x)
        return
    asked = asked_sizes(rec, ("view", "reshape"), 1) or _unflattened(rec, x, out)
    if asked is not None and len(asked) != out.dim():
        asked = None
    rec.set(out, reshape(rec, labels.dims, tuple(x.shape), tuple(out.shape), asked), labels.weight)


def _unflattened(rec: Recorder, x: Tensor, out: Tensor) -> list[Any] | None:
    """The sizes asked for by ``unflatten(dim, sizes)``, None for the dimensions it leaves alone."""
    function, args, kwargs = rec.call
    if getattr(function, "__name__", "") != "unflatten":
        return None
    given = {**dict(zip(("dim", "sizes"), args[1:], strict=False)), **kwargs}
    if not isinstance(given.get("dim"), int) or "sizes" not in given:
        return None
    dim = given["dim"] % x.dim()
    return [None] * dim + list(given["sizes"]) + [None] * (x.dim() - dim - 1)


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
            rec.atoms.freeze(fixed, f"a slice boundary ({int(position)}) is written into the code{rec.where()}")


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
    name, last = getattr(function, "__name__", ""), sys.maxsize
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        for item in index:
            if isinstance(item, slice) and (item.start is not None or item.stop is not None):
                stop = last if item.stop is None else item.stop
                if (item.start or 0) == (start or 0) and stop == (last if end is None else end):
                    return item.start or 0, stop
    if name == "narrow":
        given = {**dict(zip(("dim", "start", "length"), args[1:], strict=False)), **kwargs}
        return given["start"], given["start"] + given["length"]
    return None, None


@rule("split", "unsafe_split", "chunk")
def split(rec: Recorder, func: Any, out: Sequence[Tensor], x: Tensor, size: int, dim: int = 0) -> None:
    function, args, kwargs = rec.call
    if getattr(function, "__name__", "") == "split":
        given = args[1] if len(args) > 1 else next((v for k, v in kwargs.items() if k.startswith("split_size")), size)
        parts = [given] * len(out) if isinstance(given, int) else list(given)
    else:
        parts = None
    _parts(rec, out, x, dim, parts)


@rule("split_with_sizes", "unsafe_split_with_sizes")
def split_with_sizes(rec: Recorder, func: Any, out: Sequence[Tensor], x: Tensor, sizes: Any, dim: int = 0) -> None:
    function, args, kwargs = rec.call
    given = args[1] if len(args) > 1 else next((v for k, v in kwargs.items() if k.startswith("split_size")), None)
    ok = getattr(function, "__name__", "") in ("split", "split_with_sizes") and isinstance(given, (tuple, list))
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
    """Parts of equal size by one expression, or computed by PyTorch, shrink alike; others follow each on its own."""
    alike = written is not None and len({str(rec.mine(w)) for w in written}) == 1 and rec.mine(written[0]) is not None
    if (written is None or alike) and len(set(sizes)) == 1:
        split_vector(rec, vector, (len(sizes), sizes[0]), keep=1, what="a split")
    elif written is None or alike:
        rec.atoms.freeze(vector, f"a split into unequal parts{rec.where()}")
    if written is not None:
        for given, piece, size in zip(written, pieces, sizes, strict=False):
            rec.constrain(given, piece, size)


@rule("glu")
def glu(rec: Recorder, func: Any, out: Tensor, x: Tensor, dim: int = -1) -> None:
    """The first half times the gate made of the second: both halves shrink alike."""
    labels, dim = rec.get(x), dim % x.dim()
    dims = dict(labels.dims)
    if dim in dims:
        dims[dim] = split_vector(rec, dims[dim], (2, out.shape[dim]), keep=1, what="glu")
    rec.set(out, dims, labels.weight)


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
                [np.zeros(p.shape[d], dtype=np.int64) if v is None else v for p, v in zip(parts, vectors, strict=True)]
            )
        else:
            met = meeting(rec, parts, d, out.dim(), "cat")
            if met is not None:
                dims[d] = met
    rec.set(out, dims, derived(rec, parts))


@rule("stack")
def stack(rec: Recorder, func: Any, out: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
    dim %= out.dim()
    met = {d: meeting(rec, parts, d, out.dim() - 1, "stack") for d in range(out.dim() - 1)}
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
def index_select(rec: Recorder, func: Any, out: Tensor, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> None:
    labels, dim = rec.get(x), dim % max(x.dim(), 1)
    if dim in labels.dims or name_of(func) != "index_select":
        rec.unknown(name_of(func), [labels], "channels are picked by")
        rec.set(out, {}, labels.weight)
        return
    rec.set(out, labels.dims, labels.weight)


@rule("index")
def index(rec: Recorder, func: Any, out: Tensor, x: Tensor, indices: Sequence[Any]) -> None:
    """One tensor of numbers over one dimension keeps the labels of the others; what it indexes must stay."""
    labels = rec.get(x)
    used = [d for d, i in enumerate(indices) if i is not None]
    if len(used) != 1 or indices[used[0]].dtype in (torch.bool, torch.uint8):
        rec.unknown("index", [labels], "channels are picked by")
        rec.set(out, {}, labels.weight)
        return
    dim, shift = used[0], indices[used[0]].dim() - 1
    if dim in labels.dims:
        rec.atoms.freeze(labels.dims[dim], f"channels are picked by their numbers{rec.where()}")
    rec.set(out, {d + shift * (d > dim): v for d, v in labels.dims.items() if d != dim}, labels.weight)


@rule("embedding")
def embedding(rec: Recorder, func: Any, out: Tensor, table: Tensor, indices: Tensor, *args: Any) -> None:
    labels = rec.get(table)
    if 0 in labels.dims:
        rec.atoms.freeze(labels.dims[0], "rows of an embedding are picked by number")
    rec.mark(labels, 1, PRODUCER)
    rec.set(out, {out.dim() - 1: labels.dims[1]} if 1 in labels.dims else {}, weight=False)
