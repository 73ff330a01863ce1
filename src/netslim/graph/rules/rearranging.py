"""Reshaping, taking apart, joining and picking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netslim.graph.rules.elementwise import meeting, same
from netslim.graph.rules.registry import asked_sizes, derived, name_of, rule, tensors
from netslim.graph.tracing.atoms import ATOM, PRODUCER, Vector
from netslim.graph.tracing.recorder import Labels, Recorder
from netslim.graph.tracing.shapes import reshape, split_vector
from netslim.graph.tracing.sizes import Size, symbols


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def view(rec: Recorder, func: Any, out: Tensor, x: Tensor, sizes: Any = None, *args: Any) -> None:
    """Follow the channels through a change of shape; see `shapes.reshape`."""
    labels = rec.get(x)
    if isinstance(sizes, torch.dtype):
        same(rec, func, out, x)
        return
    asked = (
        asked_sizes(rec, ("view", "reshape"), 1)
        or _unflattened(rec, x, out)
        or _headed(rec, x, out)
    )
    if not rec.calls:  # compiled code called it, with numbers of its own
        asked = list(sizes)
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


def _headed(rec: Recorder, x: Tensor, out: Tensor) -> list[Any] | None:
    """PyTorch's attention keeps its number of heads, so that what it splits off the width shrinks
    last.
    """
    inside = getattr(rec.call[0], "__name__", "") == "multi_head_attention_forward"
    if not inside or out.dim() < x.dim() or out.shape[-1] == x.shape[-1]:
        return None
    return [*[None] * (out.dim() - 2), out.shape[-2], None]


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


def _fold_channels(
    rec: Recorder, out: Tensor, x: Tensor, shape: tuple[int, int], keep: int
) -> None:
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


@rule("im2col")
def im2col(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, kernel: Sequence[int], *args: Any
) -> None:
    """``(N, C, H, W) -> (N, C * kh * kw, L)``: a channel goes with all places of its window."""
    _windows(rec, out, x, lambda v: np.repeat(v, kernel[0] * kernel[1]))


@rule("col2im")
def col2im(
    rec: Recorder,
    func: Any,
    out: Tensor,
    x: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    *args: Any,
) -> None:
    """``(N, C * kh * kw, L) -> (N, C, H, W)``."""
    places = kernel[0] * kernel[1]
    _windows(
        rec, out, x, lambda v: split_vector(rec, v, (len(v) // places, places), keep=0, what="fold")
    )


def _windows(rec: Recorder, out: Tensor, x: Tensor, change: Callable[[Vector], Vector]) -> None:
    labels = rec.get(x)
    channel = int(max(x.dim(), out.dim()) == 4)
    for d, vector in labels.dims.items():
        if d > channel:
            rec.atoms.freeze(
                vector, f"windows are taken over the channels as if they were space{rec.where()}"
            )
    dims = {d: v if d < channel else change(v) for d, v in labels.dims.items() if d <= channel}
    rec.set(out, dims, labels.weight)


@rule("unfold")
def unfold(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, dim: int, size: int, step: int
) -> None:
    """Windows along one dimension become a new last one."""
    labels, dim = rec.get(x), dim % x.dim()
    if dim in labels.dims:
        rec.atoms.freeze(labels.dims[dim], f"windows are taken over the channels{rec.where()}")
    rec.set(out, {d: v for d, v in labels.dims.items() if d != dim}, labels.weight)


@rule("rot90")
def rot90(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, times: int = 1, dims: Sequence[int] = (0, 1)
) -> None:
    labels, turned = rec.get(x), {d % x.dim() for d in dims}
    for d in turned & set(labels.dims):
        rec.atoms.freeze(
            labels.dims[d], f"the channels are turned as if they were space{rec.where()}"
        )
    rec.set(out, {d: v for d, v in labels.dims.items() if d not in turned}, labels.weight)


@rule("flip")
def flip(rec: Recorder, func: Any, out: Tensor, x: Tensor, flipped: Sequence[int]) -> None:
    labels = rec.get(x)
    turned = {d % x.dim() for d in flipped}
    rec.set(out, {d: v[::-1] if d in turned else v for d, v in labels.dims.items()}, labels.weight)


@rule("roll")
def roll(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, shifts: Any, dims: Sequence[int] = ()
) -> None:
    """The channels that come round to the other end stay, or are as many as the code asks for."""
    labels = rec.get(x)
    written = _written_shifts(rec, len(shifts)) or shifts
    after = dict(labels.dims)
    for d, vector in labels.dims.items():
        if not dims:
            rec.atoms.freeze(vector, f"channels are rolled together with the places{rec.where()}")
        for i in [i for i, rolled in enumerate(dims) if rolled % x.dim() == d]:
            shift = shifts[i] % len(vector)
            if shift and rec.mine(written[i]) is not None and shifts[i] > 0:
                _boundary(rec, vector[::-1], written[i], shift)
            else:
                round_ = vector[-shift:] if shifts[i] > 0 else vector[: -shifts[i]]
                rec.atoms.freeze(round_, f"channels are rolled by a fixed amount{rec.where()}")
            after[d] = np.roll(after[d], shifts[i])
    rec.set(out, after, labels.weight)


def _written_shifts(rec: Recorder, length: int) -> Sequence[Any] | None:
    function, args, kwargs = rec.call
    given = args[1] if len(args) > 1 else kwargs.get("shifts")
    given = [given] if isinstance(given, int) else given
    if getattr(function, "__name__", "") != "roll" or not isinstance(given, (tuple, list)):
        return None
    return given if len(given) == length else None


@rule("tril", "triu")
def triangle(rec: Recorder, func: Any, out: Tensor, x: Tensor, *args: Any) -> None:
    """Rows and columns that go together stay on their side of the diagonal."""
    labels = rec.get(x)
    rows, columns = labels.dims.get(x.dim() - 2), labels.dims.get(x.dim() - 1)
    square = x.shape[-2] == x.shape[-1]
    met = rec.meet(rows if square else None, columns if square else None, name_of(func))
    for vector in () if square or met is None else (rows, columns):
        if vector is not None:
            rec.atoms.freeze(vector, f"a triangle is cut out of the channels{rec.where()}")
    rec.set(out, labels.dims, labels.weight)


@rule("diagonal")
def diagonal(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> None:
    labels, taken = rec.get(x), {dim1 % x.dim(), dim2 % x.dim()}
    for d in taken & set(labels.dims):
        rec.atoms.freeze(labels.dims[d], f"a diagonal is taken of the channels{rec.where()}")
    dims = {d - sum(t < d for t in taken): v for d, v in labels.dims.items() if d not in taken}
    rec.set(out, dims, labels.weight)


@rule("view_as_real", "view_as_complex")
def view_as(rec: Recorder, func: Any, out: Tensor, x: Tensor) -> None:
    """Real and imaginary parts stand in a new last dimension, or leave it."""
    labels = rec.get(x)
    for d, vector in labels.dims.items():
        if d >= out.dim():
            rec.atoms.freeze(
                vector, f"real and imaginary parts are told apart by their number{rec.where()}"
            )
    rec.set(out, {d: v for d, v in labels.dims.items() if d < out.dim()}, labels.weight)


@rule("torchvision::roi_align", "torchvision::roi_pool")
def region_pool(rec: Recorder, func: Any, out: Any, x: Tensor, regions: Tensor, *args: Any) -> None:
    """``(N, C, H, W)`` and K regions ``-> (K, C, h, w)``."""
    for vector in rec.get(regions).dims.values():
        rec.atoms.freeze(vector, f"it says where regions are{rec.where()}")
    labels = rec.get(x)
    rec.set(tensors(out)[0], {1: labels.dims[1]} if 1 in labels.dims else {}, labels.weight)


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
            _strided(rec, vector, start or 0, len(vector) if end is None else end, step)
        else:
            _boundaries(rec, vector, start, end)
    elif dim not in dims:
        for given in _written_slice(rec, start, end):
            if rec.mine(given) is not None:
                rec.constrain(given, None, given)
    rec.set(out, dims, labels.weight)


def _strided(rec: Recorder, vector: Vector, start: int, end: int, step: int) -> None:
    """Every nth channel of all: whole strides go together."""
    if 0 <= start < step and end >= len(vector) and len(vector) % step == 0:
        split_vector(rec, vector, (len(vector) // step, step), keep=0, what="a strided slice")
    else:
        rec.atoms.freeze(
            vector, f"a strided slice takes every {step}th channel of some{rec.where()}"
        )


def _boundaries(rec: Recorder, vector: Vector, start: int | None, end: int | None) -> None:
    size = len(vector)
    written = _written_slice(rec, start, end)
    length = _written_length(rec)
    if length is not None:
        piece = vector[slice(start, end)]
        rec.constrain(length, piece, len(piece))
        written = (written[0], end)
    for position, given in ((start or 0, written[0]), (size if end is None else end, written[1])):
        if position >= size or position == 0 or (length is not None and given is end):
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


def _written_length(rec: Recorder) -> Any:
    """The length that the user's code passed to ``narrow``, None for other slices."""
    function, args, kwargs = rec.call
    if getattr(function, "__name__", "") != "narrow":
        return None
    return args[3] if len(args) > 3 else kwargs.get("length")


def _boundary(rec: Recorder, vector: Vector, given: Size, position: int) -> None:
    if given < 0:
        rec.constrain(-given, vector[position:], len(vector) - position)
    own = rec.atoms.find(vector)
    sources = [rec.atoms.find(rec.sizes[s[2]]) for s in symbols(given.expression) if s[0] == "size"]
    if any(
        np.isin(source, own).any() and not np.array_equal(source, own[:position])
        for source in sources
    ):
        _tie_segments(rec, vector, position)
    if given > 0:
        rec.constrain(given, vector[:position], position)


def _tie_segments(rec: Recorder, vector: Vector, position: int) -> None:
    """Cut every segment alike, so a boundary at a fixed share of the channels stays where it is."""
    step = gcd(len(vector), position)
    split_vector(rec, vector, (len(vector) // step, step), keep=1, what="slice")


def _written_slice(rec: Recorder, start: int | None, end: int | None) -> tuple[Any, Any]:
    """Start and end as the user wrote them in ``x[...]`` or ``narrow``; (None, None) if PyTorch
    computed them.
    """
    function, args, kwargs = rec.call
    name, last = getattr(function, "__name__", ""), sys.maxsize
    if not rec.calls:
        return start or 0, last if end is None else end
    if name in ("__getitem__", "__setitem__"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        for item in index:
            if isinstance(item, slice) and (item.start is not None or item.stop is not None):
                stop = last if item.stop is None else item.stop
                if (item.start or 0) == (start or 0) and stop == (last if end is None else end):
                    return item.start or 0, stop
    if name == "narrow":
        given = {**dict(zip(("dim", "start", "length"), args[1:], strict=False)), **kwargs}
        return given["start"], end
    return None, None


@rule("split", "unsafe_split", "chunk")
def split(
    rec: Recorder, func: Any, out: Sequence[Tensor], x: Tensor, size: int, dim: int = 0
) -> None:
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
        args[1]
        if len(args) > 1
        else next((v for k, v in kwargs.items() if k.startswith("split_size")), None)
    )
    ok = getattr(function, "__name__", "") in ("split", "split_with_sizes") and isinstance(
        given, (tuple, list)
    )
    _parts(rec, out, x, dim, list(given) if ok else None)  # type: ignore[arg-type]


def _parts(
    rec: Recorder, out: Sequence[Tensor], x: Tensor, dim: int, written: list[Any] | None
) -> None:
    """Labels of the parts; ``written`` are the sizes in the user's code, None where PyTorch
    computed them.
    """
    labels, dim = rec.get(x), dim % x.dim()
    if not rec.calls:
        written = [t.shape[dim] for t in out]
    vector = labels.dims.get(dim)
    pieces: list[Vector | None] = [None] * len(out)
    if vector is not None:
        sizes = [t.shape[dim] for t in out]
        pieces = list(np.split(vector, np.cumsum(sizes)[:-1]))
        if len(out) > 1:
            _constrain_parts(rec, vector, pieces, sizes, written)
    else:
        for given, t in zip(written or [], out, strict=False):
            rec.constrain(given, None, t.shape[dim])
    for t, piece in zip(out, pieces, strict=True):
        dims = {d: v for d, v in labels.dims.items() if d != dim}
        rec.set(
            t, dims if piece is None or len(piece) == 1 else {**dims, dim: piece}, labels.weight
        )


def _constrain_parts(
    rec: Recorder, vector: Vector, pieces: list[Any], sizes: list[int], written: list[Any] | None
) -> None:
    """Parts of equal size by one expression, or computed by PyTorch, shrink alike; others follow
    each on its own.
    """
    alike = (
        written is not None
        and len({str(rec.mine(w)) for w in written}) == 1
        and rec.mine(written[0]) is not None
    )
    if (written is None or alike) and len(set(sizes)) == 1:
        split_vector(rec, vector, (len(sizes), sizes[0]), keep=1, what="a split")
    elif written is None and getattr(rec.call[0], "__name__", "") == "multi_head_attention_forward":
        split_vector(rec, vector, (len(vector) // gcd(*sizes), gcd(*sizes)), keep=1, what="a split")
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
def select(
    rec: Recorder, func: Any, out: Any, x: Tensor, dim: int = 0, index: int | None = None
) -> None:
    """A channel picked by its number must keep it: those on its side of the count stay."""
    labels, dim = rec.get(x), dim % x.dim()
    if dim in labels.dims:
        vector = labels.dims[dim]
        if name_of(func) == "select" and index is not None:
            vector = vector[: index + 1] if index >= 0 else vector[index:]
        rec.atoms.freeze(vector, f"a channel is picked by its number{rec.where()}")
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
                    np.zeros(p.shape[d], dtype=ATOM) if v is None else v
                    for p, v in zip(parts, vectors, strict=True)
                ]
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
def pad(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, widths: Sequence[int], value: Any = 0
) -> None:
    """Padded positions are constants that stay, or follow the size in the code; the channels
    between may go.
    """
    labels = rec.get(x)
    dims = dict(labels.dims)
    written = _written_pad(rec, len(widths)) or widths
    for i in range(len(widths) // 2):
        d, before, after = x.dim() - 1 - i, widths[2 * i], widths[2 * i + 1]
        if d in dims and (before or after):
            if min(before, after) < 0:
                rec.atoms.freeze(dims[d], f"channels are cropped by a fixed amount{rec.where()}")
            vector = dims[d][max(-before, 0) : len(dims[d]) - max(-after, 0)]
            sides = (
                _padding(rec, written[2 * i], before),
                _padding(rec, written[2 * i + 1], after),
            )
            dims[d] = np.concatenate([sides[0], vector, sides[1]])
    rec.set(out, dims, labels.weight)


def _written_pad(rec: Recorder, length: int) -> Sequence[Any] | None:
    """The widths as the user's code passed them to ``F.pad``."""
    function, args, kwargs = rec.call
    given = args[1] if len(args) > 1 else kwargs.get("pad")
    if getattr(function, "__name__", "") != "pad" or not isinstance(given, (tuple, list)):
        return None
    return given if len(given) == length else None


def _padding(rec: Recorder, written: Any, width: int) -> Vector:
    if width <= 0:
        return np.empty(0, dtype=ATOM)
    vector = rec.follow(written, width)
    return np.zeros(width, dtype=ATOM) if vector is None else vector


@rule("index_select")
def index_select(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, dim: int, numbers: Tensor
) -> None:
    """A list of numbers that the model holds hands out its entries as channels; what they are
    picked from must stay.
    """
    labels, dim = rec.get(x), dim % max(x.dim(), 1)
    dims = dict(labels.dims)
    chosen = _selection(rec, numbers) if dim in dims and not labels.weight else None
    if chosen is not None:
        rec.atoms.freeze(
            dims[dim], f"{rec.atoms.names[id(numbers)]} picks from them by their numbers"
        )
        rec.atoms.mark(chosen, PRODUCER)
        dims[dim] = chosen
    else:
        rec.freeze(rec.get(numbers).dims.get(0), "its numbers pick what they are no channels of")
        if dim in dims:
            rec.unknown(name_of(func), [labels], "channels are picked by")
            rec.set(out, {}, labels.weight)
            return
    _picked(rec, out, labels, dims, (numbers,))


def _selection(rec: Recorder, numbers: Tensor) -> Vector | None:
    """The atoms of a buffer of the model; None for numbers from elsewhere, or for one number."""
    held = id(numbers) in rec.atoms.names and not isinstance(numbers, nn.Parameter)
    return rec.get(numbers).dims.get(0) if held else None


@rule("gather")
def gather(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, dim: int, index: Tensor, **kwargs: Any
) -> None:
    """Entries picked along one dimension; along the others the places go with those of the index."""
    labels, numbers, dim = rec.get(x), rec.get(index), dim % max(x.dim(), 1)
    if dim in labels.dims:
        rec.atoms.freeze(labels.dims[dim], f"channels are picked by their numbers{rec.where()}")
    dims: dict[int, Vector] = {}
    for d in range(x.dim()):
        if d != dim:
            met = rec.meet(
                labels.dims.get(d) if x.shape[d] == index.shape[d] else None,
                numbers.dims.get(d),
                "gather",
            )
            dims |= {} if met is None else {d: met}
        elif d in numbers.dims:
            dims[d] = numbers.dims[d]
    for d in [d for d, v in labels.dims.items() if d != dim and x.shape[d] != index.shape[d]]:
        rec.atoms.freeze(labels.dims[d], f"the first of them are picked by gather{rec.where()}")
    rec.set(out, dims, labels.weight and numbers.weight)


@rule("index")
def index(rec: Recorder, func: Any, out: Tensor, x: Tensor, indices: Sequence[Any]) -> None:
    """One tensor of numbers over one dimension keeps the labels of the others; what it indexes must
    stay.
    """
    labels = rec.get(x)
    used = [d for d, i in enumerate(indices) if i is not None]
    if len(used) != 1 or indices[used[0]].dtype in (torch.bool, torch.uint8):
        rec.unknown("index", [labels], "channels are picked by")
        rec.set(out, {}, labels.weight)
        return
    dim, shift = used[0], indices[used[0]].dim() - 1
    if dim in labels.dims:
        rec.atoms.freeze(labels.dims[dim], f"channels are picked by their numbers{rec.where()}")
    dims = {d + shift * (d > dim): v for d, v in labels.dims.items() if d != dim}
    _picked(rec, out, labels, dims, indices)


def _picked(
    rec: Recorder, out: Tensor, source: Labels, dims: dict[int, Vector], indices: Any
) -> None:
    """Rows of a parameter picked by an input are activations that the parameter produces."""
    weight = source.weight and derived(rec, indices)
    if source.weight and not weight:
        for vector in dims.values():
            rec.atoms.mark(vector, PRODUCER)
    rec.set(out, dims, weight)


@rule("embedding")
def embedding(
    rec: Recorder, func: Any, out: Tensor, table: Tensor, indices: Tensor, *args: Any
) -> None:
    _looked_up(rec, out, table)


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(rec: Recorder, func: Any, out: Any, table: Tensor, *args: Any) -> None:
    _looked_up(rec, tensors(out)[0], table)


def _looked_up(rec: Recorder, out: Tensor, table: Tensor) -> None:
    labels = rec.get(table)
    if 0 in labels.dims:
        rec.atoms.freeze(labels.dims[0], "rows of an embedding are picked by number")
    rec.mark(labels, 1, PRODUCER)
    rec.set(out, {out.dim() - 1: labels.dims[1]} if 1 in labels.dims else {}, weight=False)
