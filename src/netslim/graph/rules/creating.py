"""Operators that make a dimension as wide as the code asks: constants, expansion and repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from netslim.graph.rules.registry import Op, asked_sizes, for_each, name_of, rule
from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.recorder import Recorder


@rule("randn", "rand", reads="size")
def noise(rec: Recorder, func: Op, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """As `constant`, but other sizes draw other numbers."""
    constant(rec, func, out, *args, **kwargs)
    for vector in rec.get(out).dims.values():
        rec.couple(vector, "random numbers are drawn for the channels")


@rule(
    "zeros", "ones", "full", "empty",
    "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided",
    reads="self size", ignores="stride",  # how it lies in memory
)  # fmt: skip
def constant(rec: Recorder, func: Op, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """The same value everywhere: as wide as the channels whose size the code asks for."""
    name = name_of(func)
    own = name.startswith("new_")
    asked = asked_sizes(rec, (name,), int(own))
    dims: dict[int, Vector] = {}
    if own and rec.calling != name:  # PyTorch makes room for what it computes from a tensor
        like = rec.get(args[0]).dims
        dims = {d: v for d, v in like.items() if d < out.dim() and out.shape[d] == len(v)}
    elif asked is not None and len(asked) == out.dim():
        for d, given in enumerate(asked):
            _put(dims, d, rec.follow(given, out.shape[d]))
    rec.set(out, dims, weight=False)


def _put(dims: dict[int, Vector], d: int, vector: Vector | None) -> None:
    if vector is not None:
        dims[d] = vector


@rule("expand", reads="self size")
def expand(
    rec: Recorder, func: Op, out: Tensor, x: Tensor, sizes: Sequence[int], **kwargs: Any
) -> None:
    """Copies of one entry follow the channels whose size the code asks for, or that they meet."""
    labels, shift = rec.get(x), out.dim() - x.dim()
    dims = {d + shift: v for d, v in labels.dims.items()}
    asked = for_each(rec, asked_sizes(rec, ("expand", "broadcast_to"), 1), out)
    if asked is None:
        asked = [None] * out.dim()
    counted = rec.calling == "repeat_interleave"  # by a number in the user's code
    if counted and isinstance(times := rec.passed(1, "repeats"), int):
        # Each entry is copied in a dimension behind its own. Of a single one the copies are all
        # there is, as of keys that all heads of queries share.
        own = [d for d, n in enumerate(x.shape) if n != out.shape[d]]
        if len(own) == 1 and own[0] and x.shape[own[0] - 1] == 1:
            asked, counted = [times if d in own else None for d in range(out.dim())], False
        else:
            rec.constrain(times, None, int(times))
    for d, given in enumerate(asked):
        copied = d < shift or x.shape[d - shift] == 1
        if d in dims or counted or not copied or out.shape[d] <= 1:
            rec.constrain(None if given == -1 else given, dims.get(d), out.shape[d])
        elif given is None:  # by broadcasting: new atoms, which tie whatever meets the copies
            dims[d] = rec.atoms.fresh(out.shape[d])
        else:
            _put(dims, d, rec.follow(given, out.shape[d]))
    rec.set(out, dims, labels.weight)


@rule("repeat", reads="self repeats")
def repeat(rec: Recorder, func: Op, out: Tensor, x: Tensor, times: Sequence[int]) -> None:
    """Repeated channels go in all their copies; copies of one entry as for `expand`."""
    labels, shift = rec.get(x), out.dim() - x.dim()
    dims = {d + shift: np.tile(v, times[d + shift]) for d, v in labels.dims.items()}
    asked = for_each(rec, asked_sizes(rec, ("repeat", "tile"), 1), out)
    if asked is not None:
        for d, given in enumerate(asked):
            if d not in dims and (d < shift or x.shape[d - shift] == 1):
                _put(dims, d, rec.follow(given, out.shape[d]))
    rec.set(out, dims, labels.weight)
