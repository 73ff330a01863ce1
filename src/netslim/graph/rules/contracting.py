"""Matrix products, convolutions and attention: where channels are produced and consumed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from netslim.graph.layers import ADDED_PRODUCTS, CONVOLUTIONS, LINEAR
from netslim.graph.rules.reducing import along_space
from netslim.graph.rules.registry import name_of, rule, tensors
from netslim.graph.tracing.atoms import CHANNEL, CONSUMER, PRODUCER, Vector
from netslim.graph.tracing.recorder import Labels, Recorder
from netslim.graph.tracing.shapes import split_vector


def _contract(rec: Recorder, a: Labels, da: int, b: Labels, db: int, what: str) -> Vector | None:
    """Tie the contracted sides; a weight's side consumes. Two activations, or two weights, are
    coupled.
    """
    met = rec.meet(a.dims.get(da), b.dims.get(db), what)
    if met is None:
        return None
    if a.weight == b.weight:
        kind = "weights" if a.weight else "activations"
        rec.atoms.couple(met, f"a product of {kind} over the channels ({what}){rec.where()}")
    else:
        rec.mark(a, da, CONSUMER)
        rec.mark(b, db, CONSUMER)
    return met


def _free(rec: Recorder, source: Labels, dim: int, into: dict[int, Vector], at: int) -> None:
    if dim in source.dims:
        into[at] = source.dims[dim]
        rec.mark(source, dim, PRODUCER)


def _size(t: Tensor, labels: Labels, dim: int) -> int | Vector:
    return labels.dims.get(dim, t.shape[dim])


def _matmul(
    rec: Recorder, func: Any, out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None
) -> None:
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
    rec.cost(
        name_of(func), *batch, _size(a, la, m), a.shape[k] if met is None else met, _size(b, lb, n)
    )
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


@rule(*ADDED_PRODUCTS, "baddbmm")
def addmm(
    rec: Recorder, func: Any, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **kwargs: Any
) -> None:
    _matmul(rec, func, out, a, b, bias)


@rule("mv", "dot", "vdot")
def vector_product(rec: Recorder, func: Any, out: Tensor, a: Tensor, b: Tensor) -> None:
    _vector_product(rec, func, out, a, b)


@rule("addmv")
def addmv(
    rec: Recorder, func: Any, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **kwargs: Any
) -> None:
    _vector_product(rec, func, out, a, b, bias)


def _vector_product(
    rec: Recorder, func: Any, out: Tensor, a: Tensor, b: Tensor, bias: Tensor | None = None
) -> None:
    """``(m, k) @ (k,)``, with a bias that broadcasts over the result; or ``(k,) @ (k,)``."""
    la, lb = rec.get(a), rec.get(b)
    dims: dict[int, Vector] = {}
    met = _contract(rec, la, a.dim() - 1, lb, 0, name_of(func))
    if a.dim() == 2:
        _free(rec, la, 0, dims, 0)
    if bias is not None:
        _add_bias(rec, dims, out, bias)
    rec.cost(
        name_of(func),
        *([_size(a, la, 0)] if a.dim() == 2 else []),
        b.shape[0] if met is None else met,
    )
    rec.set(out, dims, la.weight and lb.weight)


@rule(*LINEAR)
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
    places = [_size(x, lx, d) for d in range(last)]
    rec.cost("linear", *places, x.shape[-1] if met is None else met, _size(weight, lw, 0))
    rec.set(out, dims, lx.weight and lw.weight)


@rule(*CONVOLUTIONS)
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
    space = {d: v for d, v in lx.dims.items() if d > 1}
    for d in list(space):
        along_space(rec, space, d, "a convolution", stays=out.shape[d] == x.shape[d])
    read: int | Vector | None
    if groups == 1:
        read = _contract(rec, lx, 1, lw, 0 if transposed else 1, "convolution")
        made = lw.dims.get(1 if transposed else 0)
        rec.mark(lw, 1 if transposed else 0, PRODUCER)
    else:
        read, made = _grouped(rec, x, lx, w, lw, groups, transposed)
    dims = {**space, 0: lx.dims[0]} if 0 in lx.dims else space
    if made is not None:
        dims[1] = made
    if bias is not None:
        _add_channel_bias(rec, dims, bias)
    places = [dims.get(d, n) for d, n in enumerate((x if transposed else out).shape) if d != 1]
    depth = x.shape[1] // groups if read is None else read
    rec.cost(
        "convolution",
        prod(w.shape[2:]),
        *places,
        depth,
        out.shape[1] if dims.get(1) is None else dims[1],
    )
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
    """(depth each output reads, labels of the outputs); the weight is (out, in/groups), transposed
    (in, out/groups).

    Either whole groups go, inputs and outputs together, or every group gives up the same of its
    channels.
    """
    per_group = x.shape[1] // groups
    source = lx.dims.get(1)
    if per_group == 1 or _whole_groups(rec, source, groups, per_group):
        return _shrinking_groups(rec, source, lw, w, groups, per_group, transposed)
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
        if met is not None and lw.weight == lx.weight:
            rec.couple(met, "a product of activations over the channels (convolution)")
        read = per_group if met is None else met
    elif 1 in lw.dims:
        rec.atoms.freeze(lw.dims[1], f"it meets a fixed size in convolution{rec.where()}")
    rec.mark(lw, 1, CONSUMER)
    return read, made


def _written_groups(rec: Recorder, groups: int) -> Any:
    _, args, kwargs = rec.call
    return args[6] if len(args) > 6 else kwargs.get("groups", groups)


def _whole_groups(rec: Recorder, source: Vector | None, groups: int, per_group: int) -> bool:
    """Whether the number of groups can follow, and the channels of each group are tied to each
    other already.
    """
    if source is None or rec.mine(_written_groups(rec, groups)) is None:
        return False
    roots = rec.atoms.find(source).reshape(groups, per_group)
    return bool((roots == roots[:, :1]).all())


def _shrinking_groups(
    rec: Recorder,
    source: Vector | None,
    lw: Labels,
    w: Tensor,
    groups: int,
    per_group: int,
    transposed: bool,
) -> tuple[int | Vector, Vector | None]:
    """The number of groups follows the channels, so a group goes with its filters; depthwise is the
    usual case.
    """
    multiplier = w.shape[1] if transposed else w.shape[0] // groups
    unit = (
        None
        if source is None
        else split_vector(rec, source, (groups, per_group), 0, "grouped convolution")
    )
    if 1 in lw.dims:
        rec.atoms.freeze(lw.dims[1], f"all groups of a convolution share it{rec.where()}")
    own = lw.dims.get(0)
    if own is not None:
        first = split_vector(rec, own, (groups, len(own) // groups), 0, "grouped convolution")
        unit = rec.meet(unit, first, "depthwise convolution")
    elif unit is not None:
        rec.atoms.freeze(unit, f"it meets a fixed size in convolution{rec.where()}")
    if unit is None:
        return per_group, None
    rec.constrain(_written_groups(rec, groups), unit, groups)
    rec.mark(lw, 0, CHANNEL)
    return per_group, np.repeat(unit, multiplier)


def _grouped_transposed(
    rec: Recorder, source: Vector | None, per_group: int, lw: Labels, groups: int
) -> tuple[int | Vector, Vector | None]:
    met = rec.meet(source, lw.dims.get(0), "grouped transposed convolution")
    rec.mark(lw, 0, CONSUMER)
    read: int | Vector = per_group
    if met is not None:
        read = split_vector(
            rec, met, (groups, per_group), keep=1, what="grouped transposed convolution"
        )
    if 1 not in lw.dims:
        return read, None
    rec.mark(lw, 1, PRODUCER)
    return read, np.tile(lw.dims[1], groups)


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
        met = rec.meet(
            rec.meet(lq.dims.get(d), lk.dims.get(d), "attention"), lv.dims.get(d), "attention"
        )
        if met is not None:
            dims[d] = met
    for labels in (lq, lk, lv):
        if last - 1 in labels.dims:
            rec.atoms.freeze(labels.dims[last - 1], f"attention runs over it{rec.where()}")
    met = _contract(rec, lq, last, lk, last, "attention")
    if last in lv.dims:
        dims[last] = lv.dims[last]
    batch = [dims.get(d, n) for d, n in enumerate(q.shape[:-1])]
    rec.cost("attention", *batch, k.shape[-2], q.shape[-1] if met is None else met)
    rec.cost("attention", *batch, k.shape[-2], _size(v, lv, last))
    rec.set(tensors(out)[0], dims, weight=False)


@rule("_trilinear")
def trilinear(
    rec: Recorder, func: Any, out: Tensor, a: Tensor, b: Tensor, c: Tensor,
    expand_a: Sequence[int], expand_b: Sequence[int], expand_c: Sequence[int], summed: Sequence[int], *args: Any
) -> None:  # fmt: skip
    """The sum over some dimensions of a product of three tensors (`nn.Bilinear`): the weight
    consumes.
    """
    spread = [
        _spread(rec, t, missing) for t, missing in ((a, expand_a), (b, expand_b), (c, expand_c))
    ]
    dims: dict[int, Vector] = {}
    for d in range(max(len(sizes) for _, sizes in spread)):
        sides = [labels for labels, sizes in spread if sizes[d] != 1]
        met = sides[0].dims.get(d) if sides else None
        for side in sides[1:]:
            met = rec.meet(met, side.dims.get(d), "a bilinear product")
        if met is not None:
            dims[d] = met
            for side in sides:
                rec.mark(side, d, CONSUMER if d in summed else PRODUCER)
    rec.cost(
        "bilinear", *[dims.get(d, max(s[d] for _, s in spread)) for d in range(len(spread[0][1]))]
    )
    rec.set(
        out,
        {d - sum(s < d for s in summed): v for d, v in dims.items() if d not in summed},
        weight=False,
    )


def _spread(rec: Recorder, t: Tensor, missing: Sequence[int]) -> tuple[Labels, list[int]]:
    """Labels and sizes with the ``missing`` dimensions put in at size 1."""
    labels, sizes = rec.get(t), list(t.shape)
    places = [d for d in range(t.dim() + len(missing)) if d not in missing]
    for d in sorted(missing):
        sizes.insert(d, 1)
    return Labels({places[d]: v for d, v in labels.dims.items()}, labels.weight), sizes


@rule("_cdist_forward", "_euclidean_dist")
def distance(rec: Recorder, func: Any, out: Tensor, a: Tensor, b: Tensor, *args: Any) -> None:
    """Pairwise distances ``(..., P, M), (..., R, M) -> (..., P, R)``."""
    la, lb = rec.get(a), rec.get(b)
    met = rec.meet(la.dims.get(a.dim() - 1), lb.dims.get(b.dim() - 1), "a distance")
    if met is not None:
        rec.atoms.couple(met, f"a distance over the channels{rec.where()}")
    dims = {d + out.dim() - a.dim(): v for d, v in la.dims.items() if d < a.dim() - 1}
    if b.dim() - 2 in lb.dims:
        dims[out.dim() - 1] = lb.dims[b.dim() - 2]
    rec.set(out, dims, la.weight and lb.weight)


@rule("torchvision::deform_conv2d")
def deformable(
    rec: Recorder,
    func: Any,
    out: Tensor,
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    *args: Any,
) -> None:
    """A convolution whose windows are moved by ``offset`` and weighed by ``mask``, which stay."""
    for guide in (offset, mask):
        for vector in rec.get(guide).dims.values():
            rec.atoms.freeze(vector, f"it guides {name_of(func)}{rec.where()}")
    groups = int(args[6])
    convolution(rec, func, out, x, w, bias, args[:2], args[2:4], args[4:6], False, 0, groups)
