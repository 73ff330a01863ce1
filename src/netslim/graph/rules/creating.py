"""Operators that make a dimension as wide as the user's code asks: constants, expansion and
repetition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from netslim.graph.rules.registry import asked_sizes, name_of, rule
from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.recorder import Recorder


@rule("randn", "rand")
def noise(rec: Recorder, func: Any, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """As `constant`, but other sizes draw other numbers."""
    constant(rec, func, out, *args, **kwargs)
    for vector in rec.get(out).dims.values():
        rec.atoms.couple(vector, f"random numbers are drawn for the channels{rec.where()}")


@rule(
    "zeros",
    "ones",
    "full",
    "empty",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "new_empty_strided",
)
def constant(rec: Recorder, func: Any, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """The same value everywhere: as wide as the channels whose size the code asks for."""
    name = name_of(func)
    own = name.startswith("new_")
    asked = asked_sizes(rec, (name,), 1 if own else 0)
    dims: dict[int, Vector] = {}
    if (
        own and getattr(rec.call[0], "__name__", "") != name
    ):  # PyTorch makes room for what it computes from a tensor
        like = rec.get(args[0]).dims
        dims = {d: v for d, v in like.items() if d < out.dim() and out.shape[d] == len(v)}
    elif asked is not None and len(asked) == out.dim():
        followed = {d: rec.follow(given, out.shape[d]) for d, given in enumerate(asked)}
        dims = {d: vector for d, vector in followed.items() if vector is not None}
    rec.set(out, dims, weight=False)


@rule("expand")
def expand(
    rec: Recorder, func: Any, out: Tensor, x: Tensor, sizes: Sequence[int], **kwargs: Any
) -> None:
    """Copies of one entry follow the channels whose size the code asks for, or those that they
    meet.
    """
    labels, shift = rec.get(x), out.dim() - x.dim()
    dims = {d + shift: v for d, v in labels.dims.items()}
    asked = asked_sizes(rec, ("expand", "broadcast_to"), 1)
    if asked is not None and len(asked) != out.dim():
        asked = None
    counted = (
        getattr(rec.call[0], "__name__", "") == "repeat_interleave"
    )  # by a number in the user's code
    for d in range(out.dim()):
        given = None if asked is None else asked[d]
        if d in dims:
            rec.constrain(None if given == -1 else given, dims[d], out.shape[d])
        elif not counted and out.shape[d] > 1 and (d < shift or x.shape[d - shift] == 1):
            vector = (
                rec.atoms.fresh(out.shape[d]) if given is None else rec.follow(given, out.shape[d])
            )
            dims |= {} if vector is None else {d: vector}
        else:
            rec.constrain(None if given == -1 else given, None, out.shape[d])
    rec.set(out, dims, labels.weight)


@rule("repeat")
def repeat(rec: Recorder, func: Any, out: Tensor, x: Tensor, times: Sequence[int]) -> None:
    """Repeated channels go in all their copies; copies of one entry as for `expand`."""
    labels, shift = rec.get(x), out.dim() - x.dim()
    dims = {d + shift: np.tile(v, times[d + shift]) for d, v in labels.dims.items()}
    asked = asked_sizes(rec, ("repeat", "tile"), 1)
    for d, given in enumerate(asked if asked is not None and len(asked) == out.dim() else []):
        if d not in dims and (d < shift or x.shape[d - shift] == 1):
            vector = rec.follow(given, out.shape[d])
            dims |= {} if vector is None else {d: vector}
    rec.set(out, dims, labels.weight)
