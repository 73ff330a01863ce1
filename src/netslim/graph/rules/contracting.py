"""Matrix products, convolutions and attention: where channels are produced and consumed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from netslim.graph.layers import ADDED_PRODUCTS, LINEAR
from netslim.graph.rules.elementwise import meeting, met_by_all
from netslim.graph.rules.indexing import hold
from netslim.graph.rules.reducing import along_space
from netslim.graph.rules.registry import (
    Op,
    extent,
    name_of,
    named_arguments,
    rule,
    tensors_in,
    without,
)
from netslim.graph.tracing.atoms import CHANNEL, CONSUMER, PRODUCER, Vector
from netslim.graph.tracing.labels import Labels
from netslim.graph.tracing.recorder import BY_THE_ROOT, Recorder
from netslim.graph.tracing.shapes import split_vector

# --- what all of them do --------------------------------------------------------------------------


def _contract(
    rec: Recorder, a: Labels, da: int, b: Labels, db: int, what: str, kept: bool = False,
    mixed: bool = False,
) -> Vector | None:  # fmt: skip
    """Tie the two sides that are summed over; a weight's side consumes.

    A channel that an activation multiplies with a weight is silenced by zeros in either, so it can
    go exactly; so is one whose activation is itself a product with a weight. In other products of
    two activations (queries and keys), or of two weights, a channel that is missing changes every
    sum that the others are in: those are coupled, unless what it is used for is ``kept`` as it was,
    or it is known what makes one side zero (zeros.py).
    ``mixed`` says that ``b`` is used as a weight, and may be a mixture of several.
    """
    met = rec.meet(a.dims.get(da), b.dims.get(db), what)
    if met is None:
        return None
    if a.weight and b.weight:
        if not kept and not _read_by_one(rec, a, da, b, db):
            rec.couple(met, f"a product of weights over the channels ({what})")
    elif a.weight:
        rec.mark(a, da, CONSUMER)
    elif not (rec.mark_weight(b, db, CONSUMER, mixed) or rec.mark_weight(a, da, CONSUMER) or kept):
        if rec.silent(a, met) or rec.silent(b, met):
            rec.atoms.silent.append(met)
        else:
            rec.couple(met, f"a product of activations over the channels ({what})")
    return met


def _read_by_one(rec: Recorder, a: Labels, da: int, b: Labels, db: int) -> bool:
    """Whether one side of a product of weights is a parameter, in which zeros silence channels.

    As the last layer is of a small network that computes weights, position biases say, from
    constants. What makes the channels is then on the other side, which is no parameter as it is.
    """
    for side, dim, other in ((b, db, a), (a, da, b)):
        if _is_parameter(side) and not _is_parameter(other):
            rec.mark(side, dim, CONSUMER)
            return True
    return False


def _is_parameter(labels: Labels) -> bool:
    return labels.formula is None or labels.formula.moved


def _free(rec: Recorder, source: Labels, dim: int, into: dict[int, Vector], at: int) -> None:
    """Hand out a side that is not summed over; a weight's side produces."""
    if dim in source.dims:
        into[at] = source.dims[dim]
        rec.mark(source, dim, PRODUCER)


def _size(t: Tensor, labels: Labels, dim: int) -> int | Vector:
    return extent(labels.dims.get(dim), t.shape[dim])


def _add_bias(rec: Recorder, dims: dict[int, Vector], out: Tensor, bias: Tensor | None) -> None:
    """A bias that broadcasts over the last dimensions of the result."""
    if bias is None:
        return
    labels = rec.get(bias)
    shift = out.dim() - bias.dim()
    for d in range(bias.dim()):
        if bias.shape[d] > 1:
            _meet_bias(rec, dims, d + shift, labels, d)


def _meet_bias(rec: Recorder, dims: dict[int, Vector], at: int, labels: Labels, d: int) -> None:
    met = rec.meet(dims.get(at), labels.dims.get(d), "bias")
    if met is not None:
        dims[at] = met
    rec.mark(labels, d, CHANNEL)


# --- matrix products ------------------------------------------------------------------------------


@rule("mm", "bmm", reads="self mat2")
def matmul(rec: Recorder, func: Op, out: Tensor, a: Tensor, b: Tensor, *args: Any) -> None:
    _matmul(rec, func, out, a, b)


@rule(
    *ADDED_PRODUCTS, "baddbmm",
    reads="self mat1 mat2 batch1 batch2",
    ignores="use_gelu",  # element by element, on the result
)  # fmt: skip
def addmm(
    rec: Recorder, func: Op, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **kwargs: Any
) -> None:
    _matmul(rec, func, out, a, b, bias)


def _matmul(
    rec: Recorder, func: Op, out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None
) -> None:
    """``(..., m, k) @ (..., k, n)``, with a bias that broadcasts over the result."""
    la, lb = rec.get(a), rec.get(b)
    dims: dict[int, Vector] = {}
    rows, columns = out.dim() - 2, out.dim() - 1
    for d in range(rows):
        met = rec.meet(la.dims.get(d), lb.dims.get(d), name_of(func))
        if met is not None:
            dims[d] = met
    met = _contract(rec, la, columns, lb, rows, name_of(func))
    rec.may_narrow |= (bool(dims) or met is not None) and not la.weight and not lb.weight
    _free(rec, la, rows, dims, rows)
    _free(rec, lb, columns, dims, columns)
    _add_bias(rec, dims, out, bias)
    places = [_size(a, la, d) for d in range(columns)]
    rec.cost(name_of(func), *places, extent(met, a.shape[columns]), _size(b, lb, columns))
    rec.set(out, dims, la.weight and lb.weight)


@rule("mv", "dot", "vdot", reads="self vec tensor other")
def vector_product(rec: Recorder, func: Op, out: Tensor, a: Tensor, b: Tensor) -> None:
    _vector_product(rec, func, out, a, b)


@rule("addmv", reads="self mat vec")
def addmv(
    rec: Recorder, func: Op, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **kwargs: Any
) -> None:
    _vector_product(rec, func, out, a, b, bias)


def _vector_product(
    rec: Recorder, func: Op, out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None
) -> None:
    """``(m, k) @ (k,)``, with a bias that broadcasts over the result; or ``(k,) @ (k,)``."""
    la, lb = rec.get(a), rec.get(b)
    dims: dict[int, Vector] = {}
    last = a.dim() - 1
    kept = rec.within_spectral_norm(a, b)
    met = _contract(rec, la, last, lb, 0, name_of(func), kept)
    for d in range(last):
        _free(rec, la, d, dims, d)
    _add_bias(rec, dims, out, bias)
    rec.cost(name_of(func), *[_size(a, la, d) for d in range(last)], extent(met, b.shape[0]))
    rec.set(out, dims, la.weight and lb.weight)


@rule(*LINEAR, reads="input self weight bias")
def linear(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> None:
    """The last dimension is read by the weight's columns; its rows make the result's.

    Example:
        >>> rule = netslim.register_rule("mylib::my_linear", netslim.graph.rules.linear)
    """
    lx, lw = rec.get(x), rec.get(weight)
    last = x.dim() - 1
    met = _contract(rec, lx, last, lw, 1, "linear")
    dims = {d: v for d, v in lx.dims.items() if d != last}
    _free(rec, lw, 0, dims, last)
    _add_bias(rec, dims, out, bias)
    places = [_size(x, lx, d) for d in range(last)]
    rec.cost("linear", *places, extent(met, x.shape[-1]), _size(weight, lw, 0))
    rec.set(out, dims, lx.weight and lw.weight)


# --- convolutions ---------------------------------------------------------------------------------


# What follows moves windows over space, and leaves channels where they are.
_WINDOWS = "stride padding dilation output_padding"


@rule(
    "convolution", "_convolution", "convolution_overrideable",
    reads="input weight bias transposed groups", ignores=_WINDOWS,
)  # fmt: skip
def convolution(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, w: Tensor, bias: Tensor | None,
    stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int,
    *args: Any,
) -> None:  # fmt: skip
    """Plain, grouped, depthwise and transposed.

    Example:
        >>> rule = netslim.register_rule("mylib::my_convolution", netslim.graph.rules.convolution)
    """
    lx, lw = rec.get(x), rec.get(w)
    for d in range(2, w.dim()):
        if d in lw.dims:
            rec.atoms.freeze(lw.dims[d], "it is an axis of the kernel")
    dims = {d: v for d, v in lx.dims.items() if d != 1}
    for d in [d for d in dims if d > 1]:
        if not _one_by_one(w, d, stride, padding):
            along_space(rec, dims, d, "a convolution", stays=out.shape[d] == x.shape[d])
    read: int | Vector
    if groups == 1:
        read, made = _plain(rec, x, lx, lw, transposed)
    else:
        read, made = _grouped(rec, x, lx, w, lw, groups, transposed)
    if made is not None:
        dims[1] = made
    if bias is not None:
        _meet_bias(rec, dims, 1, rec.get(bias), 0)
    counted = out  # the places at which the kernel is applied
    if transposed:
        counted = x
    places = [dims.get(d, n) for d, n in enumerate(counted.shape) if d != 1]
    width = extent(dims.get(1), out.shape[1])
    rec.cost("convolution", prod(w.shape[2:]), *places, read, width)
    rec.set(out, dims, lx.weight and lw.weight)


def _one_by_one(w: Tensor, dim: int, stride: Any, padding: Any) -> bool:
    """Whether a window over a dimension takes each of its entries by itself."""
    if w.shape[dim] != 1 or stride is None:
        return False
    return int(stride[dim - w.dim()]) == 1 and int(padding[dim - w.dim()]) == 0


@rule(
    "mkldnn_convolution", "cudnn_convolution",
    reads="self weight bias groups", ignores=_WINDOWS,
)  # fmt: skip
def convolution_of_a_library(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, *args: Any, **kwargs: Any
) -> None:
    """The same, not transposed, with its arguments in the order of the library that does it."""
    given = named_arguments(func, args, kwargs)
    weight, bias, groups = given["weight"], given.get("bias"), given["groups"]
    convolution(rec, func, out, x, weight, bias, None, None, None, False, None, groups)


def _plain(
    rec: Recorder, x: Tensor, lx: Labels, lw: Labels, transposed: bool
) -> tuple[int | Vector, Vector | None]:
    """(what each output reads, labels of the outputs) of a convolution without groups."""
    makes = int(transposed)
    reads = 1 - makes
    met = _contract(rec, lx, 1, lw, reads, _told("convolution", lw, reads), mixed=True)
    rec.mark_weight(lw, makes, PRODUCER)
    return extent(met, x.shape[1]), lw.dims.get(makes)


def _told(what: str, weight: Labels, reads: int) -> str:
    """A convolution, with what to do where its weight cannot lose what it reads."""
    if not weight.mixed or reads in weight.dims:
        return what
    return (
        f"{what}, whose weight is laid out from one axis of a parameter, which can lose inputs or "
        "outputs and not both; keep the parameter in the shape of the weight and mix by "
        "(shares * weights).sum(1)"
    )


def _grouped(
    rec: Recorder, x: Tensor, lx: Labels, w: Tensor, lw: Labels, groups: int, transposed: bool
) -> tuple[int | Vector, Vector | None]:
    """(depth each output reads, labels of the outputs) of a convolution in groups.

    The weight is (out, in / groups), transposed (in, out / groups): all groups share the axis 1.
    Either whole groups go, inputs and outputs together, or every group gives up the same of its
    channels, and their number stays.
    """
    # Whole groups go where a group is one channel (depthwise), or its channels are tied already and
    # the code reads the number of groups from somewhere; else each gives up the same.
    per_group = x.shape[1] // groups
    source = lx.dims.get(1)
    if per_group == 1 or _whole_groups(rec, source, groups, per_group):
        return _shrinking_groups(rec, source, lw, w, groups, per_group, transposed)
    written = _written_groups(rec, groups)
    if rec.mine(written) is not None:
        rec.constrain(written, None, groups)
    if transposed:
        return _grouped_transposed(rec, lx, per_group, lw, groups)
    made = lw.dims.get(0)
    if made is not None:
        rec.mark_weight(lw, 0, PRODUCER)
        # Eight outputs in two groups, 0 1 2 3 and 4 5 6 7: 0 goes with 4, 1 with 5, and so on, so
        # that both groups are as narrow as each other after any cut.
        split_vector(rec, made, (groups, len(made) // groups), keep=1, what="grouped convolution")
    met = None
    if source is not None:
        first = split_vector(rec, source, (groups, per_group), keep=1, what="grouped convolution")
        what = _told("grouped convolution", lw, 1)
        met = _contract(rec, lx._replace(dims={1: first}), 1, lw, 1, what, mixed=True)
    elif 1 in lw.dims:
        rec.freeze(lw.dims[1], "it meets a fixed size in convolution")
        rec.mark(lw, 1, CONSUMER)
    return extent(met, per_group), made


def _written_groups(rec: Recorder, groups: int) -> Any:
    """The number of groups as the user's code gave it to ``F.conv2d``."""
    if rec.calling == "deform_conv2d":  # which works it out from the weight
        return groups
    return rec.passed(6, "groups", default=groups)


def _whole_groups(rec: Recorder, source: Vector | None, groups: int, per_group: int) -> bool:
    """Whether the number of groups can follow, and the channels of each are tied already."""
    if source is None or rec.mine(_written_groups(rec, groups)) is None:
        return False
    roots = rec.atoms.find(source).reshape(groups, per_group)
    return bool((roots == roots[:, :1]).all())


def _shrinking_groups(
    rec: Recorder, source: Vector | None, lw: Labels, w: Tensor,
    groups: int, per_group: int, transposed: bool,
) -> tuple[int | Vector, Vector | None]:  # fmt: skip
    """The number of groups follows the channels, so a group goes with its filters.

    Depthwise is the usual case.
    """
    unit = None
    if source is not None:
        unit = split_vector(rec, source, (groups, per_group), 0, "grouped convolution")
    if 1 in lw.dims:
        rec.freeze(lw.dims[1], "all groups of a convolution share it")
    own = lw.dims.get(0)
    if own is not None:
        first = split_vector(rec, own, (groups, len(own) // groups), 0, "grouped convolution")
        unit = rec.meet(unit, first, "depthwise convolution")
    else:
        rec.freeze(unit, "it meets a fixed size in convolution")
    if unit is None:
        return per_group, None
    rec.constrain(_written_groups(rec, groups), unit, groups)
    rec.mark(lw, 0, CHANNEL)
    filters = w.shape[0] // groups  # of each group
    if transposed:
        filters = w.shape[1]
    # With two filters a channel the outputs are 0 0 1 1 2 2: both go with their channel.
    if filters > 1:
        unit = np.repeat(unit, filters)
    return per_group, unit


def _grouped_transposed(
    rec: Recorder, lx: Labels, per_group: int, lw: Labels, groups: int
) -> tuple[int | Vector, Vector | None]:
    """Every group gives up the same of its channels, where the weight is (in, out / groups)."""
    what = "grouped transposed convolution"
    met = _contract(rec, lx, 1, lw, 0, what)
    read: int | Vector = per_group
    if met is not None:
        read = split_vector(rec, met, (groups, per_group), keep=1, what=what)
    if 1 not in lw.dims:
        return read, None
    rec.mark_weight(lw, 1, PRODUCER)
    # The weight says the outputs of one group; those of the others are made by the same axis.
    return read, np.tile(lw.dims[1], groups)


@rule(
    "torchvision::deform_conv2d",
    reads="input weight offset mask bias groups offset_groups",
    # Windows over space; a mask that is not used is a constant, and has no channels to hold.
    ignores="stride_h stride_w pad_h pad_w dilation_h dilation_w use_mask",
)
def deformable(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, w: Tensor, offset: Tensor, mask: Tensor,
    bias: Tensor, *args: Any,
) -> None:  # fmt: skip
    """A convolution whose windows are moved by ``offset`` and weighed by ``mask``, which stay.

    Channels are moved in groups of neighbours, each by offsets of its own: all groups shrink alike.
    """
    for guide in (offset, mask):
        hold(rec, guide, f"it guides {name_of(func)}")
    groups, moved = int(args[6]), int(args[7])
    source = rec.get(x).dims.get(1)
    if moved > 1 and source is not None:
        split_vector(rec, source, (moved, x.shape[1] // moved), keep=1, what=name_of(func))
    convolution(rec, func, out, x, w, bias, args[:2], args[2:4], args[4:6], False, 0, groups)


# --- attention and others -------------------------------------------------------------------------


@rule(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "scaled_dot_product_attention",
    reads="query key value attn_mask attn_bias dropout_mask scale",
    ignores="is_causal enable_gqa",  # looks at places alone; the numbers of heads say it
)
def attention(
    rec: Recorder, func: Op, out: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Queries and keys share their last dimension (coupled by the product); values keep theirs.

    What stands before the last two dimensions, as heads, is shared by all, masks included.

    Example:
        >>> rule = netslim.register_rule("mylib::my_attention", netslim.graph.rules.attention)
    """
    lq, lk, lv = rec.get(q), rec.get(k), rec.get(v)
    last = q.dim() - 1
    dims = _heads(rec, q, k, v)
    for labels in (lq, lk, lv):
        rec.freeze(labels.dims.get(last - 1), "attention runs over it")
    for mask in tensors_in(args, kwargs):
        _mask(rec, dims, mask, last)
    met = _contract(rec, lq, last, lk, last, "attention")
    rec.may_narrow |= (bool(dims) or met is not None) and kwargs.get("scale") is not None
    if kwargs.get("scale") is None:
        rec.couple(met, BY_THE_ROOT)
    if last in lv.dims:
        dims[last] = lv.dims[last]
    batch = [dims.get(d, n) for d, n in enumerate(q.shape[:-1])]
    # Two products: queries with keys over their width, and the shares with the values.
    rec.cost("attention", *batch, k.shape[-2], extent(met, q.shape[-1]))
    rec.cost("attention", *batch, k.shape[-2], _size(v, lv, last))
    result, *others = tensors_in(out)
    rec.set(result, dims, weight=False)
    for t in others:  # sums of exponentials, (..., heads, queries), and seeds
        heads = {d: n for d, n in dims.items() if d < min(last - 1, t.dim())}
        if any(len(n) != t.shape[d] for d, n in heads.items()):
            heads = {}
        rec.set(t, heads, weight=False)


def _heads(rec: Recorder, q: Tensor, k: Tensor, v: Tensor) -> dict[int, Vector]:
    """The labels of all dimensions before the last two.

    Where there are fewer heads of keys and values, each serves several of the queries that stand
    next to each other, and goes with them.
    """
    dims: dict[int, Vector] = {}
    for d in range(q.dim() - 2):
        sides = []
        for t in (q, k, v):
            vector = rec.get(t).dims.get(d)
            if vector is not None:
                vector = np.repeat(vector, q.shape[d] // t.shape[d])
            if t.shape[d] != 1:
                sides.append(vector)
        met = met_by_all(rec, sides, "attention")
        if met is not None:
            dims[d] = met
    return dims


def _mask(rec: Recorder, dims: dict[int, Vector], mask: Tensor, last: int) -> None:
    """A mask (..., heads, queries, keys) keeps the heads that it has a value for each of."""
    labels, shift = rec.get(mask), last + 1 - mask.dim()
    for d, size in enumerate(mask.shape):
        vector = labels.dims.get(d)
        if d + shift >= last - 1:
            rec.freeze(vector, "attention runs over it")
        elif size != 1:
            met = rec.meet(dims.get(d + shift), vector, "the mask of attention")
            if met is not None:
                dims[d + shift] = met


@rule("_trilinear", reads="i1 i2 i3 expand1 expand2 expand3 sumdim")
def trilinear(
    rec: Recorder, func: Op, out: Tensor, a: Tensor, b: Tensor, c: Tensor,
    expand_a: Sequence[int], expand_b: Sequence[int], expand_c: Sequence[int],
    summed: Sequence[int], *args: Any,
) -> None:  # fmt: skip
    """The sum over some dimensions of a product of three tensors, of which the weight consumes.

    `nn.Bilinear` runs as it. Each tensor first gets the dimensions that only the others have.
    """
    given = ((a, expand_a), (b, expand_b), (c, expand_c))
    expanded = [_expanded(t, missing) for t, missing in given]
    sizes = [max(sizes) for sizes in zip(*(s for s, _ in expanded), strict=True)]
    dims: dict[int, Vector] = {}
    for d in range(len(sizes)):
        # (a tensor's labels, where it has this dimension) for those of which it is no copy.
        sides = [
            (rec.get(t), own[d])
            for (t, _), (shape, own) in zip(given, expanded, strict=True)
            if shape[d] != 1
        ]
        met = met_by_all(rec, [labels.dims.get(at) for labels, at in sides], "a bilinear product")
        if met is None:
            continue
        dims[d] = met
        role = PRODUCER
        if d in summed:
            role = CONSUMER
        for labels, at in sides:
            rec.mark(labels, at, role)
    rec.cost("bilinear", *[dims.get(d, n) for d, n in enumerate(sizes)])
    rec.set(out, without(dims, set(summed)), weight=False)


def _expanded(t: Tensor, missing: Sequence[int]) -> tuple[list[int], dict[int, int]]:
    """Sizes with the ``missing`` dimensions put in at size 1, and where the others came from."""
    sizes = list(t.shape)
    places = [d for d in range(t.dim() + len(missing)) if d not in missing]
    for d in sorted(missing):
        sizes.insert(d, 1)
    return sizes, {place: d for d, place in enumerate(places)}


@rule("_cdist_forward", "_euclidean_dist", reads="x1 x2")
def distance(rec: Recorder, func: Op, out: Tensor, a: Tensor, b: Tensor, *args: Any) -> None:
    """Pairwise distances ``(..., P, M), (..., R, M) -> (..., P, R)``."""
    la, lb = rec.get(a), rec.get(b)
    met = rec.meet(la.dims.get(a.dim() - 1), lb.dims.get(b.dim() - 1), "a distance")
    rec.couple(met, "a distance over the channels")
    rows, columns = out.dim() - 2, out.dim() - 1
    dims: dict[int, Vector] = {}
    for d in range(rows):
        met = meeting(rec, (a, b), d, out.dim(), "a distance")
        if met is not None:
            dims[d] = met
    for at, source, labels in ((rows, a, la), (columns, b, lb)):
        if source.dim() - 2 in labels.dims:
            dims[at] = labels.dims[source.dim() - 2]
    rec.set(out, dims, la.weight and lb.weight)
