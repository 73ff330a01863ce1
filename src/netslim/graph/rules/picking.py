"""Taking apart and picking: slices, splits, indices and tables.

A boundary between two parts, as in ``x[:, :n]``, is a size like any other, and what becomes of it
depends on where it came from:

- read from what it will be compared with (``n = skip.shape[1]``, the first channels of ``x`` being
  those of ``skip``): it moves by itself, and each part may lose what it likes;
- kept in an attribute: the attribute follows the first part (a constraint; see
  tracing/remembered.py);
- computed by PyTorch or from the number of channels of ``x`` itself (``x.shape[1] // 2``): it will
  lie at the same share of fewer channels. Only if all segments lose the same is that between the
  same parts, so they are tied;
- a number in the code: it will not move, so the channels before it stay. Those behind may go.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import gcd
from typing import Any

import numpy as np
from torch import Tensor, nn

from netslim.graph.modules.unwrapping import without_values
from netslim.graph.rules.indexing import hold, indexed, labels_of_numbers
from netslim.graph.rules.registry import Op, derived, name_of, rule, tensors_in
from netslim.graph.tracing.atoms import CHANNEL, PRODUCER, Vector
from netslim.graph.tracing.labels import Labels
from netslim.graph.tracing.recorder import AS_BOUNDARY, Recorder, is_order
from netslim.graph.tracing.shapes import split_vector
from netslim.graph.tracing.sizes import Size, symbols
from netslim.graph.tracing.storages import storages_of

# --- slices ---------------------------------------------------------------------------------------


@rule("slice", reads="self dim start end step")
def slice_(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: int = 0,
    start: Any = None, end: Any = None, step: int = 1,
) -> None:  # fmt: skip
    labels, dim = rec.get(x), dim % x.dim()
    dims = dict(labels.dims)
    if dim in dims and out.shape[dim] != x.shape[dim]:
        vector = dims[dim]
        dims[dim] = vector[slice(start, end, step)]
        if step != 1:
            _strided(rec, vector, start, end, step)
        else:
            _boundaries(rec, vector, start, end)
    elif dim in dims and rec.calling == "narrow":  # all of them, of which there must be so many
        rec.constrain(rec.passed(3, "length"), dims[dim], x.shape[dim])
    elif dim not in dims:
        for given in _written_slice(rec, start, end):
            if rec.mine(given) is not None:
                rec.constrain(given, None, given)
    rec.set(out, dims, labels.weight)


def _strided(rec: Recorder, vector: Vector, start: int | None, end: int | None, step: int) -> None:
    """Every nth channel of all: whole strides go together."""
    to_the_end = end is None or end >= len(vector)
    if 0 <= (start or 0) < step and to_the_end and len(vector) % step == 0:
        # Of six by twos, (0 1) (2 3) (4 5): any pair may go, and the second of each that stays is
        # still at an odd place.
        split_vector(rec, vector, (len(vector) // step, step), keep=0, what="a strided slice")
    else:
        rec.freeze(vector, f"a strided slice takes every {step}th channel of some")


def _boundaries(rec: Recorder, vector: Vector, start: int | None, end: int | None) -> None:
    """Make the two ends of a slice follow a cut, or hold them."""
    size = len(vector)
    written = _written_slice(rec, start, end)
    length = None
    if rec.calling == "narrow":
        length = rec.passed(3, "length")
    if length is not None:
        piece = vector[slice(start, end)]
        rec.constrain(length, piece, len(piece))
        written = (written[0], end)
    for position, given in ((start, written[0]), (end, written[1])):
        # Where nothing is said a slice ends with the channels, and cuts through none of them.
        if not position or position >= size or (length is not None and given is end):
            continue
        if rec.mine(given) is not None:
            _boundary(rec, vector, given, position % size)
        elif written == (None, None):
            _tie_segments(rec, vector, position % size)
        else:
            _hold_side(rec, vector, position)


def _hold_side(rec: Recorder, vector: Vector, position: int) -> None:
    """A boundary by a number moves with the end it is counted from: what is between them stays."""
    fixed = vector[position:]
    if position > 0:
        fixed = vector[:position]
    number = int(position)
    reason = f"a slice boundary ({number}) is written into the code"
    rec.written(fixed, reason, [abs(number)], AS_BOUNDARY)


def _boundary(rec: Recorder, vector: Vector, given: Size, position: int) -> None:
    """A boundary at ``position`` that the code computed: ``given``, negative from the end."""
    # From the end, ``x[:, -n:]``: n is the size of what lies behind the boundary.
    if given < 0:
        rec.constrain(-given, vector[position:], len(vector) - position)
    # Computed from the number of these very channels, it lies at a share of them; unless they are
    # exactly those before it, as in ``torch.cat([skip, y], 1)[:, : skip.shape[1]]``.
    own = rec.atoms.find(vector)
    for symbol in symbols(given.expression):
        if symbol[0] == "size":
            source = rec.atoms.find(rec.sizes[symbol[2]])
            if np.isin(source, own).any() and not np.array_equal(source, own[:position]):
                _tie_segments(rec, vector, position)
                break
    if given > 0:
        rec.constrain(given, vector[:position], position)


def _tie_segments(rec: Recorder, vector: Vector, position: int) -> None:
    """Cut every segment alike, so a boundary at a fixed share of the channels stays where it is.

    A boundary at 8 of 12 makes three segments of 4: whatever they lose, two thirds are before it.
    """
    # The finest grid that both the boundary and the end lie on.
    step = gcd(len(vector), position)
    split_vector(rec, vector, (len(vector) // step, step), keep=1, what="slice")


def _written_slice(rec: Recorder, start: int | None, end: int | None) -> tuple[Any, Any]:
    """Start and end as written in ``x[...]`` or ``narrow``; None where PyTorch computed them."""
    begin, stop = _bounds(start, end)
    if not rec.calls:
        return begin, stop
    if rec.calling == "narrow":
        return rec.passed(2, "start"), end
    if rec.calling == "slice":
        return _bounds(rec.passed(2, "start"), rec.passed(3, "end"))
    if rec.calling not in ("__getitem__", "__setitem__"):
        return None, None
    index = rec.passed(1)
    if not isinstance(index, tuple):
        index = (index,)
    for item in index:
        if isinstance(item, slice) and (item.start is not None or item.stop is not None):
            given = _bounds(item.start, item.stop)
            if given == (begin, stop):
                return given
    return None, None


def _bounds(start: Any, end: Any) -> tuple[Any, Any]:
    """From where to where, if nothing is said from the first to behind the last."""
    if end is None:
        end = sys.maxsize
    return start or 0, end


@rule("roll", reads="self shifts dims")
def roll(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, shifts: Any, dims: Sequence[int] = ()
) -> None:
    """The channels that come round to the other end stay, or are as many as the code asks for."""
    labels = rec.get(x)
    written = _written_shifts(rec, len(shifts)) or shifts
    after = dict(labels.dims)
    for d, vector in labels.dims.items():
        if not dims:
            rec.freeze(vector, "channels are rolled together with the places")
        for i in [i for i, rolled in enumerate(dims) if rolled % x.dim() == d]:
            _roll_one(rec, vector, shifts[i], written[i])
            after[d] = np.roll(after[d], shifts[i])
    rec.set(out, after, labels.weight)


def _roll_one(rec: Recorder, vector: Vector, by: int, written: Any) -> None:
    """Where the channels are cut through: ``by`` of them from the end, or from the start."""
    shift = by % len(vector)
    if shift and by > 0 and rec.mine(written) is not None:
        _boundary(rec, vector[::-1], written, shift)
    elif by > 0:
        rec.freeze(vector[-shift:], "channels are rolled by a fixed amount")
    else:
        rec.freeze(vector[:-by], "channels are rolled by a fixed amount")


def _written_shifts(rec: Recorder, length: int) -> Sequence[Any] | None:
    """The shifts as the user's code passed them."""
    given = rec.passed(1, "shifts")
    if isinstance(given, int):
        given = [given]
    if rec.calling != "roll" or not isinstance(given, (tuple, list)) or len(given) != length:
        return None
    return given


# --- splits ---------------------------------------------------------------------------------------

_SIZES = ("split_size", "split_sizes", "split_size_or_sections")
_SPLITS = ("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes")


@rule("split", "unsafe_split", "chunk", reads="self split_size chunks dim")
def split(
    rec: Recorder, func: Op, out: Sequence[Tensor], x: Tensor, size: int, dim: int = 0
) -> None:
    written: list[Any] | None = None
    if rec.calling in ("split", "unsafe_split"):
        given = rec.passed(1, *_SIZES, default=size)
        if isinstance(given, int):
            given = [given] * len(out)
        written = list(given)
    _parts(rec, out, x, dim, written)


@rule("split_with_sizes", "unsafe_split_with_sizes", reads="self split_sizes dim")
def split_with_sizes(
    rec: Recorder, func: Op, out: Sequence[Tensor], x: Tensor, sizes: Any, dim: int = 0
) -> None:
    written: list[Any] | None = None
    given = rec.passed(1, *_SIZES)
    if rec.calling in _SPLITS and isinstance(given, (tuple, list)):
        written = list(given)
    _parts(rec, out, x, dim, written, listed=True)


def _parts(
    rec: Recorder,
    out: Sequence[Tensor],
    x: Tensor,
    dim: int,
    written: list[Any] | None,
    listed: bool = False,
) -> None:
    """Labels of the parts; ``written``: sizes in the user's code, None: PyTorch computed them.

    ``listed``: each part has its size, also one that is the whole; else that may be too long.
    """
    labels, dim = rec.get(x), dim % x.dim()
    sizes = [t.shape[dim] for t in out]
    if not rec.calls:
        written = list(sizes)
    vector = labels.dims.get(dim)
    dims = {d: v for d, v in labels.dims.items() if d != dim}
    if vector is None:
        for given, size in zip(written or [], sizes, strict=False):
            rec.constrain(given, None, size)
        for t in out:
            rec.set(t, dims, labels.weight)
        return
    pieces = np.split(vector, np.cumsum(sizes)[:-1])
    if len(out) > 1 or listed:
        _constrain_parts(rec, vector, pieces, sizes, written)
    for t, piece in zip(out, pieces, strict=True):
        own = dict(dims)
        if len(piece) > 1:
            own[dim] = piece
        rec.set(t, own, labels.weight)


def _constrain_parts(
    rec: Recorder,
    vector: Vector,
    pieces: list[Vector],
    sizes: list[int],
    written: list[Any] | None,
) -> None:
    """Parts of equal size by one expression, or computed by PyTorch, shrink alike.

    Others follow each on its own.
    """
    alike = written is None or _one_expression(rec, written)
    if alike and len(set(sizes)) == 1:
        split_vector(rec, vector, (len(sizes), sizes[0]), keep=1, what="a split")
    elif written is None and rec.calling == "multi_head_attention_forward":
        step = gcd(*sizes)  # queries and, twice as wide, keys with values
        split_vector(rec, vector, (len(vector) // step, step), keep=1, what="a split")
    elif alike:
        rec.freeze(vector, "a split into unequal parts")
    for given, piece, size in zip(written or [], pieces, sizes, strict=False):
        rec.constrain(given, piece, size)


def _one_expression(rec: Recorder, written: list[Any]) -> bool:
    """Whether all sizes are one that the code remembers, as in ``split(self.width, dim=1)``."""
    return len({str(rec.mine(w)) for w in written}) == 1 and rec.mine(written[0]) is not None


@rule("glu", reads="self dim")
def glu(rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: int = -1) -> None:
    """The first half times the gate made of the second: both halves shrink alike."""
    labels, dim = rec.get(x), dim % x.dim()
    dims = dict(labels.dims)
    if dim in dims:
        dims[dim] = split_vector(rec, dims[dim], (2, out.shape[dim]), keep=1, what="glu")
    rec.set(out, dims, labels.weight)


@rule("select", "unbind", reads="self dim index")
def select(
    rec: Recorder, func: Op, out: Any, x: Tensor, dim: int = 0, index: int | None = None
) -> None:
    """A channel picked by its number must keep it: those on its side of the count stay."""
    labels, dim = rec.get(x), dim % x.dim()
    if dim in labels.dims:
        vector = labels.dims[dim]
        if name_of(func) == "select" and index is not None:
            # The third channel is the third as long as none before it goes, and the last one, -1,
            # as long as it stays itself.
            side = slice(index, None)
            if index >= 0:
                side = slice(index + 1)
            vector = vector[side]
        instead = ""
        if len(vector) > 1 and rec.atoms.is_axis(labels.dims[dim]) and not labels.weight:
            instead = _ALONE
        rec.freeze(vector, f"a channel is picked by its number{instead}")
    dims = {d - (d > dim): v for d, v in labels.dims.items() if d != dim}
    for t in tensors_in(out):
        rec.set(t, dims, labels.weight)


_ALONE = "; the last, x[:, -1], would hold itself alone"
_AS_LIST = "; a list that is a buffer of the module, x[:, self.order], would be numbered anew"


def _instead(indices: Sequence[Any]) -> str:
    """What would follow a cut in the place of indices that pick channels."""
    if all(numbers.numel() == 1 for numbers in indices if numbers is not None):
        return _ALONE
    return _AS_LIST


# --- indices and tables ---------------------------------------------------------------------------


@rule("index_select", reads="self dim index")
def index_select(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: int, numbers: Tensor
) -> None:
    """A list of numbers that the model holds hands out its entries as channels.

    What they are picked from must stay. So the entries of the list (`netslim.models.ChannelSelect`)
    can be cut like the filters of a layer that made what was picked. One that names all of them,
    in another order, picks none: there both go together, as with ``x[:, self.order]``.
    """
    labels, dim = rec.get(x), dim % max(x.dim(), 1)
    dims = dict(labels.dims)
    places = [*[None] * dim, numbers]
    if _by_an_order(rec, labels, places) is not None and _only_reorders(numbers, dims[dim]):
        rec.set(out, {**dims, dim: _in_order(rec, dims[dim], numbers)}, weight=False)
        return
    chosen = None
    if dim in dims and not labels.weight:
        chosen = _selection(rec, numbers)
    if chosen is not None:
        rec.readers[id(numbers)].add("a selection")
        reason = f"{rec.atoms.names[id(numbers)]} picks from them by their numbers"
        rec.atoms.freeze(dims[dim], reason)
        rec.atoms.mark(chosen, PRODUCER)
        dims[dim] = chosen
    else:
        rec.freeze(rec.get(numbers).dims.get(0), "its numbers pick what they are no channels of")
        if dim in dims:
            why = "channels are picked by"
            rec.unknown(name_of(func), [labels], why, _instead([numbers]))
            rec.set(out, {}, labels.weight)
            return
    _picked(rec, out, labels, dims, (numbers,))


def _selection(rec: Recorder, numbers: Tensor) -> Vector | None:
    """The atoms of a buffer of the model; None for numbers from elsewhere, or for one number."""
    if id(numbers) not in rec.atoms.names or isinstance(numbers, nn.Parameter):
        return None
    return rec.get(numbers).dims.get(0)


@rule("gather", reads="self dim index")
def gather(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, dim: int, index: Tensor, **kwargs: Any
) -> None:
    """Entries picked along one dimension; along others the places go with those of the index."""
    labels, numbers, dim = rec.get(x), rec.get(index), dim % max(x.dim(), 1)
    if dim in labels.dims:
        constant = not rec.storages.depend_on_inputs(storages_of([index]))
        instead = _AS_LIST if constant and _alike_along(index, dim) else ""
        rec.freeze(labels.dims[dim], f"channels are picked by their numbers{instead}")
    dims: dict[int, Vector] = {}
    shorter = []
    for d in range(x.dim()):
        met = numbers.dims.get(d)
        if d != dim and x.shape[d] == index.shape[d]:
            met = rec.meet(labels.dims.get(d), met, "gather")
        elif d != dim:
            met = rec.meet(None, met, "gather")
            shorter.append(d)
        if met is not None:
            dims[d] = met
    for d in shorter:
        rec.freeze(labels.dims.get(d), "the first of them are picked by gather")
    rec.set(out, dims, labels.weight and numbers.weight)


def _alike_along(index: Tensor, dim: int) -> bool:
    """Whether an index is one list along a dimension, the same at all places of the others."""
    lists = index.movedim(dim, 0).reshape(index.shape[dim], -1)
    return not without_values(index) and bool((lists == lists[:, :1]).all())


@rule("index", reads="self indices")
def index(rec: Recorder, func: Op, out: Tensor, x: Tensor, indices: Sequence[Any]) -> None:
    """What is picked from must stay, unless by a buffer, which can be numbered anew after a cut.

    The other dimensions keep their labels, see indexing.py.
    """
    labels = rec.get(x)
    dim = _by_an_order(rec, labels, indices)
    if dim is not None:
        rec.set(out, {**labels.dims, dim: _in_order(rec, labels.dims[dim], indices[dim])}, False)
        return
    seen = indexed(rec, x, indices)
    listed = _listed(rec, indices)
    for d in seen.used:
        reason = f"channels are picked by their numbers{_instead(indices)}"
        vector = labels.dims.get(d)
        if vector is not None and listed:
            # As of one that is picked, those on their side of the count stay.
            vector = vector[_up_to(listed, len(vector))]
        rec.freeze(vector, reason)
    dims = {d: labels.dims[source] for d, source in seen.rest.items() if source in labels.dims}
    _picked(rec, out, labels, {**dims, **seen.labels}, indices)


def _listed(rec: Recorder, indices: Sequence[Any]) -> list[int] | None:
    """The numbers of ``x[:, [2, -1]]``, as they stand in the code; None for any other index."""
    given = [numbers for numbers in indices if numbers is not None]
    if rec.calling != "__getitem__" or len(given) != 1:
        return None
    index = rec.passed(1)
    if not isinstance(index, tuple):
        index = (index,)
    lists = [item for item in index if isinstance(item, list)]
    if len(lists) != 1 or any(type(n) is not int for n in lists[0]):
        return None
    return lists[0]


def _up_to(numbers: Sequence[int], size: int) -> np.ndarray:
    """Whether each entry stands on the way from an end to one that is counted from there."""
    places = np.arange(size)
    return (places <= max(numbers)) | (places >= size + min(numbers))


def _by_an_order(rec: Recorder, labels: Labels, indices: Sequence[Any]) -> int | None:
    """The dimension of channels that a buffer alone picks from; None where anything else does."""
    used = [d for d, numbers in enumerate(indices) if numbers is not None]
    if len(used) != 1 or labels.weight or used[0] not in labels.dims:
        return None
    numbers, vector = indices[used[0]], labels.dims[used[0]]
    own = _selection(rec, numbers)
    if own is None or not is_order(numbers) or without_values(numbers):
        return None
    known = rec.orders.get(rec.atoms.names[id(numbers)])
    if known is not None and len(known) != len(vector):
        rec.freeze(known, "its numbers pick from others, too")
        return None
    return used[0]


def _only_reorders(numbers: Tensor, vector: Vector) -> bool:
    """Whether these are all numbers of the channels, and not as they are."""
    found = numbers.tolist()
    return found != sorted(found) and sorted(found) == [*range(len(vector))]


def _in_order(rec: Recorder, vector: Vector, numbers: Tensor) -> Vector:
    """The labels of what a buffer picks: its entries go with the channels that they mean."""
    name = rec.atoms.names[id(numbers)]
    known = rec.orders.setdefault(name, vector)
    rec.meet(vector, known, "an index")
    labels = rec.get(numbers)
    rec.mark(labels, 0, CHANNEL)
    picked: Vector = vector[np.array(numbers.tolist()) % len(vector)]
    rec.meet(picked, labels.dims[0], "an index")
    return picked


def _picked(
    rec: Recorder, out: Tensor, source: Labels, dims: dict[int, Vector], indices: Any
) -> None:
    """Rows of a parameter picked by an input are activations that the parameter produces.

    Numbers that the model makes of none are as good as a buffer, in whatever steps it makes them:
    it may do so at its first run alone, and keep them.
    """
    by_input = rec.storages.depend_on_inputs(storages_of(tensors_in(indices)))
    weight = source.weight and (derived(rec, indices) or not by_input)
    if source.weight and not weight:
        for vector in dims.values():
            rec.atoms.mark(vector, PRODUCER)
    rec.set(out, dims, weight)


@rule("embedding", reads="weight indices")
def embedding(
    rec: Recorder, func: Op, out: Tensor, table: Tensor, indices: Tensor, *args: Any
) -> None:
    _looked_up(rec, out, table, labels_of_numbers(rec, [indices], indices.dim()))


@rule(
    "_embedding_bag", "_embedding_bag_forward_only",
    reads="weight indices offsets per_sample_weights",
    ignores="mode include_last_offset",  # how rows are put together, column by column
)  # fmt: skip
def embedding_bag(
    rec: Recorder, func: Op, out: Any, table: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Rows are summed over bags; what says which rows, and which bags, stays."""
    for t in tensors_in(args, kwargs):
        hold(rec, t, f"it picks rows for {name_of(func)}")
    _looked_up(rec, tensors_in(out)[0], table, {})


def _looked_up(rec: Recorder, out: Tensor, table: Tensor, dims: dict[int, Vector]) -> None:
    """Rows of a table, at the places ``dims``: its columns are channels that it produces."""
    labels = rec.get(table)
    if 0 in labels.dims:
        rec.atoms.freeze(labels.dims[0], "rows of an embedding are picked by number")
    rec.mark(labels, 1, PRODUCER)
    if 1 in labels.dims:
        dims[out.dim() - 1] = labels.dims[1]
    rec.set(out, dims, weight=False)
