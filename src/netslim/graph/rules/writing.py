"""Writing into a tensor at places that are given by numbers, or by a mask.

What is written meets what it is written into in all dimensions but those that the numbers are of:
there each entry may land anywhere. Channels that are told by number or that a mask tells apart
stay; where only places are, the channels take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from netslim.graph.rules.elementwise import meeting
from netslim.graph.rules.indexing import MASKS, Indexed, hold, indexed
from netslim.graph.rules.registry import Op, derived, labelled, name_of, rule, tensors_in
from netslim.graph.tracing.atoms import CHANNEL, Vector
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.shapes import reshape

BY_NUMBER = "channels are written to by their numbers"


def _write(rec: Recorder, out: Tensor, into: Tensor, dims: dict[int, Vector], *given: Any) -> None:
    """The result has the labels of what was written into, save where these have met others."""
    weight = derived(rec, into, given)
    rec.set(out, {**rec.get(into).dims, **dims}, weight)


def _meet(rec: Recorder, into: Tensor, d: int, source: Tensor, other: int, what: str) -> Any:
    """Tie a dimension of what is written to that which it is written into."""
    a, b = rec.get(into), rec.get(source)
    rec.mark(a, d, CHANNEL)
    rec.mark(b, other, CHANNEL)
    return rec.meet(a.dims.get(d), b.dims.get(other), what)


@rule(
    "index_put", "_index_put_impl",
    reads="self indices values",
    ignores="accumulate unsafe",  # added or replaced, at the same places
)  # fmt: skip
def index_put(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, indices: Sequence[Any], values: Tensor,
    *args: Any,
) -> None:  # fmt: skip
    """``x[:, places] = values``, where the values broadcast to what ``x[:, places]`` is."""
    given = [(d, index) for d, index in enumerate(indices) if index is not None]
    if values.numel() == 1 and len(given) == 1 and given[0][1].dtype in MASKS:
        _fill(rec, out, x, *given[0], values)
        return
    seen = indexed(rec, x, indices)
    for d in seen.used:
        rec.freeze(rec.get(x).dims.get(d), BY_NUMBER)
    dims: dict[int, Vector] = {}
    shift = seen.dim - values.dim()
    for d in range(max(-shift, 0), values.dim()):
        if values.shape[d] != 1:
            met = _written(rec, seen, x, values, d, d + shift)
            dims |= met
    _write(rec, out, x, dims, values, indices)


def _fill(rec: Recorder, out: Tensor, x: Tensor, first: int, mask: Tensor, value: Tensor) -> None:
    """One value where a mask says so, which need not be the same for all channels.

    Newer versions of PyTorch make `masked_fill` of ``x[x < 0] = 0`` themselves.
    """
    if not mask.dim():
        hold(rec, x, "one truth picks all of it or nothing")
    dims: dict[int, Vector] = {}
    for d in range(mask.dim()):
        met = _meet(rec, x, first + d, mask, d, "a mask")
        if met is not None:
            dims[first + d] = met
    _write(rec, out, x, dims, mask, value)


def _written(
    rec: Recorder, seen: Indexed, x: Tensor, values: Tensor, d: int, at: int
) -> dict[int, Vector]:
    """Tie dimension ``d`` of the values to dimension ``at`` of what they are written over."""
    if at in seen.places:
        rec.meet(seen.labels.get(at), rec.get(values).dims.get(d), "places that are written to")
        return {}
    source = seen.rest[at]
    met = _meet(rec, x, source, values, d, "what is written by index")
    if met is None:
        return {}
    return {source: met}


@rule("index_fill", reads="self dim index")
def index_fill(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: int, index: Tensor, *args: Any
) -> None:
    """One number at the places of an index."""
    rec.freeze(rec.get(x).dims.get(dim % max(x.dim(), 1)), BY_NUMBER)
    hold(rec, index, "it says where to write")
    _write(rec, out, x, {}, index, args)


@rule(
    "index_add", "index_copy", "index_reduce",
    reads="self dim index source",
    ignores="reduce include_self",  # how entries that land on one place are put together
)  # fmt: skip
def index_add(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: int, index: Tensor, source: Tensor,
    *args: Any, **kwargs: Any,
) -> None:  # fmt: skip
    """Row i of the source goes to row ``index[i]``."""
    dim %= max(x.dim(), 1)
    hold(rec, index, "it says where to write")
    for t in (x, source):
        rec.freeze(rec.get(t).dims.get(dim), BY_NUMBER)
    dims: dict[int, Vector] = {}
    for d in [d for d in range(x.dim()) if d != dim]:
        met = _meet(rec, x, d, source, d, name_of(func))
        if met is not None:
            dims[d] = met
    _write(rec, out, x, dims, source, index)


@rule(
    "scatter", "scatter_add", "scatter_reduce",
    reads="self dim index src",
    ignores="reduce include_self",  # as for `index_add`
)  # fmt: skip
def scatter(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: int, index: Tensor, *args: Any,
    **kwargs: Any,
) -> None:  # fmt: skip
    """Each entry goes to a place along one dimension that the index, of its size, tells.

    Along the others it stays where it is: these meet, if they are as long in all of them. Where one
    is longer only its first entries take part, and they stay.
    """
    dim %= max(x.dim(), 1)
    tensors = [x, index, *tensors_in(args[:1])]
    for t in tensors:
        rec.freeze(rec.get(t).dims.get(dim), BY_NUMBER)
    dims: dict[int, Vector] = {}
    for d in [d for d in range(x.dim()) if d != dim]:
        if len({t.shape[d] for t in tensors}) > 1:
            for t in tensors:
                rec.freeze(rec.get(t).dims.get(d), f"the first of them are met by {name_of(func)}")
            continue
        met = meeting(rec, tensors, d, x.dim(), name_of(func))
        if met is not None:
            dims[d] = met
    _write(rec, out, x, dims, tensors)


@rule(
    "slice_scatter", "select_scatter",
    reads="self src dim",
    ignores="start end step index",  # where along a dimension of which all stays
)  # fmt: skip
def slice_scatter(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, source: Tensor, dim: int = 0, *args: Any
) -> None:
    """A slice, or one entry, of a dimension is written over, in a copy."""
    dim %= x.dim()
    same = source.dim() == x.dim()
    for t in (x, source)[: 1 + same]:
        rec.freeze(rec.get(t).dims.get(dim), BY_NUMBER)
    dims: dict[int, Vector] = {}
    for d in [d for d in range(x.dim()) if d != dim]:
        other = d - (d > dim and not same)
        met = _meet(rec, x, d, source, other, name_of(func))
        if met is not None:
            dims[d] = met
    _write(rec, out, x, dims, source)


# --- by a mask ------------------------------------------------------------------------------------


def _alike(mask: Tensor, dim: int) -> int:
    """How many of the last ``dim`` dimensions a mask is the same along, as its only copy.

    A mask over places that was expanded over the channels holds each of its values once, and steps
    over the channels with stride 0.
    """
    for count, d in enumerate(reversed(range(mask.dim()))):
        if mask.shape[d] != 1 and mask.stride(d) != 0:
            return count
    return dim


@rule("masked_select", reads="self mask")
def masked_select(rec: Recorder, func: Op, out: Tensor, x: Tensor, mask: Tensor) -> None:
    """What a mask lets pass, one after the other.

    If it is a mask over places, all channels of a place pass or none, and the result is a matrix of
    places and channels that was laid flat.
    """
    if not labelled(rec, x, mask):
        rec.set(out, {}, derived(rec, x, mask))
        return
    ndim = max(x.dim(), mask.dim())
    inner = min(_alike(mask, ndim), x.dim())
    first = ndim - inner
    dims: dict[int, Vector] = {}
    for d in range(ndim):
        met = meeting(rec, (x, mask), d, ndim, "masked_select")
        if d < first:
            rec.freeze(met, "channels are picked by a mask")
        elif met is not None:
            dims[d - first + 1] = met
    # As if the places that pass were a dimension before the channels, and both laid flat: the rest
    # is what a reshape does.
    size = x.shape[x.dim() - inner :]
    places = out.numel() // max(size.numel(), 1)
    after = reshape(rec, dims, (places, *size), tuple(out.shape), None)
    rec.set(out, after, derived(rec, x, mask))


@rule("masked_scatter", reads="self mask source")
def masked_scatter(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, mask: Tensor, source: Tensor
) -> None:
    """The source fills what a mask lets pass, in order.

    If it is a mask over places, and the last dimensions of the source are those that the mask is
    alike along, each place gets a whole row: these dimensions meet. Otherwise the order would
    change with the number of channels.
    """
    inner = min(_alike(mask, x.dim()), source.dim())
    if tuple(source.shape[source.dim() - inner :]) != tuple(x.shape[x.dim() - inner :]):
        inner = 0
    first = x.dim() - inner
    dims: dict[int, Vector] = {}
    for d in range(x.dim()):
        met = meeting(rec, (x, mask), d, x.dim(), "masked_scatter")
        if d < first:
            rec.freeze(met, "masked_scatter fills the channels in order")
            continue
        vector = rec.get(source).dims.get(d - x.dim() + source.dim())
        rec.mark(rec.get(source), d - x.dim() + source.dim(), CHANNEL)
        met = rec.meet(met, vector, "masked_scatter")
        if met is not None:
            dims[d] = met
    for d, vector in rec.get(source).dims.items():
        if d < source.dim() - (x.dim() - first):
            rec.freeze(vector, "masked_scatter takes from the channels in order")
    _write(rec, out, x, dims, mask, source)
