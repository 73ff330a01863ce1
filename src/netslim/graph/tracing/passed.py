"""Sizes that the user's code passes to functions: as widths, which rules see to, or as values.

In ``x.new_full((n, self.width), self.width)`` the first width makes a dimension as wide as some
channels, and the second one is a value, which a cut changes. The function alone does not tell them
apart, so what takes widths is watched while it runs: a size that its rule never asked about
(`Recorder.mine`) is no width to it, whichever argument it came by, and is used as a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from netslim.graph.modules.operators import called_name
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.sizes import Size, Value

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

# What takes sizes of dimensions: their rules see to them.
_WIDTHS = frozenset(
    """
    view reshape expand broadcast_to repeat repeat_interleave tile split split_with_sizes chunk
    unflatten narrow roll pad zeros ones full empty new_zeros new_ones new_full new_empty randn
    rand conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d group_norm
    layer_norm rms_norm multi_head_attention_forward __getitem__ __setitem__ channel_shuffle
    padded_call
    """.split()  # noqa: SIM905
)
# What takes the shape of its result and reads the places in it alone, or, from a library, sizes
# that this works out from tensors which its rule knows.
_SEEN_TO = frozenset(
    """
    affine_grid affine_grid_generator max_unpool1d max_unpool2d max_unpool3d deform_conv2d
    """.split()  # noqa: SIM905
)
_ARITHMETIC = frozenset(
    """
    add sub mul div truediv divide multiply subtract true_divide floordiv floor_divide pow mod
    remainder fmod rsub clamp clamp_min clamp_max maximum minimum eq ne lt le gt ge fill addcmul
    addcdiv lerp tensor as_tensor
    """.split()  # noqa: SIM905
)
_PLAIN = frozenset({Tensor, torch.nn.Parameter, int, float, bool, str, type(None)})
_INDEXING = ("__getitem__", "__setitem__")


def widths_passed(recorder: Recorder, func: Any, args: Args, kwargs: Kwargs) -> list[Size]:
    """The sizes that a call of the user's takes as widths; those that are values are noted.

    A cut changes such a value, as in ``q * self.width ** -0.5``. In arithmetic that is all right
    where inexact cuts are; elsewhere, as in a kernel size, nobody knows what would become of it.
    """
    numbers = _sizes_among(args, kwargs)
    if not numbers:
        return []
    name = called_name(func)
    if name in _WIDTHS:
        return [n for n in numbers if type(n) is Size]
    if name in _SEEN_TO:
        return []
    bare = name.strip("_")
    soft = bare in _ARITHMETIC or (bare[:1] == "r" and bare[1:] in _ARITHMETIC)
    for number in numbers:
        recorder.value(number, name, soft or type(number) is Value)
    return []


def note_unseen(
    recorder: Recorder, func: Any, args: Args, widths: Sequence[Size], asked: set[int]
) -> None:
    """The sizes passed as widths of which the rules ``asked`` for others alone are values."""
    name = called_name(func)
    for dim, size in _ends(name, args):
        asked |= {id(n) for n in _at_an_end(recorder, args[0], dim, size)}
    for size in widths:
        if id(size) not in asked:
            recorder.value(size, name, soft=False)


def _sizes_among(args: Args, kwargs: Kwargs) -> list[Any]:
    """The sizes and values in arguments, with lists, tuples and slices taken apart."""
    found: list[Any] = []
    left = [*args, *kwargs.values()]
    while left:
        value = left.pop()
        kind = type(value)
        if kind in _PLAIN:  # as most are
            continue
        if kind is Size or kind is Value:
            found.append(value)
        elif isinstance(value, slice):
            left += (value.start, value.stop, value.step)
        elif isinstance(value, (list, tuple)):
            left += value
    return found


# --- slices that cut through nothing --------------------------------------------------------------


def _ends(name: str, args: Args) -> Iterator[tuple[int, Any]]:
    """(dimension, where a slice of it begins or ends) for all slices in ``x[...]``."""
    if name not in _INDEXING:
        return
    index = args[1]
    if not isinstance(index, tuple):
        index = (index,)
    dim, spans = 0, [_span(item) for item in index]
    for item, span in zip(index, spans, strict=True):
        if item is Ellipsis:
            dim += args[0].dim() - sum(spans)
        elif isinstance(item, slice):
            yield from ((dim, size) for size in (item.start, item.stop))
        dim += span


def _span(item: Any) -> int:
    """How many dimensions an item of an index is of."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8):
        return item.dim()
    return 1


def _at_an_end(recorder: Recorder, x: Tensor, dim: int, size: Any) -> Iterator[Any]:
    """A size at which a slice begins or ends with all of a dimension: it must go on doing so.

    PyTorch runs no operator for a slice of all, and the rule has nothing to see to at an end.
    """
    if type(size) is not Size or not dim < x.dim():
        return
    with torch._C.DisableTorchFunction():
        number, length = int.__int__(size), x.shape[dim]
    if number == 0:
        recorder.constrain(size, None, 0)
        yield size
    elif number == length:
        recorder.constrain(size, recorder.get(x).dims.get(dim), length)
        yield size
