"""What was learnt from inputs of one size, and holds for no other.

A trace sees the example inputs alone. Nearly all that it learns holds for every size, as labels
follow dimensions, and those of channels are as long whatever the input. There is one way for the
size of the input to get among them: a reshape that puts places where channels were, as
``tokens.reshape(n, c, h, w)`` of what is (n, h * w, c). Which channels it couples depends on h and
w, the cut is exact at the traced size, its proof too, and it is wrong at every other size.

Such a reshape shows itself (`shapes.reshape` notes it in ``Recorder.mixes``): the code lays out
anew what was merged with dimensions that are no channels, be it in one step or in two. Heads,
groups and shuffles take apart channels alone, and flattening lays nothing out. So a model without
one, as nearly all are, is run no second time and loses no time; with one, it is traced again on
inputs of other sizes (`resized`, the first that run), and what comes out otherwise stays
(`compare`). A model that runs at one size alone fails there and has nothing to compare: what it
couples at that size is all there is. Some that are noted are harmless, as attention over a batch of
several, since heads cannot be told from places; these are run twice, and no more happens.

The other run must leave no trace in the model or around it: see `untouched`.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from netslim._support import own_random_numbers
from netslim.graph.modules.state import state_kept
from netslim.graph.tracing.atoms import Atoms, Vector
from netslim.graph.tracing.recorder import Recorder

# Dimensions that become twice as long, or half as long, together; not square where that will do,
# since height and width that are the same hide which is which.
_CHANGES: tuple[tuple[tuple[int, ...], bool], ...] = (
    *(((-2,), True), ((-1,), True), ((-2, -1), True), ((1,), True)),
    *(((-2,), False), ((-2, -1), False), ((1,), False)),
)


def resized(example_inputs: Any) -> Iterator[Any]:
    """The inputs at other sizes, some of which the model may not take."""
    sizes = _sizes(example_inputs)
    for dims, twice in _CHANGES:
        change = partial(_resized, dims=dims, twice=twice)
        changed = tree_map_only(Tensor, change, example_inputs)
        if _sizes(changed) != sizes:
            yield changed


def _sizes(inputs: Any) -> list[tuple[int, ...]]:
    return [tuple(leaf.shape) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def _resized(tensor: Tensor, dims: tuple[int, ...], twice: bool) -> Tensor:
    """Twice the tensor, or its first half: values that the model takes, as numbers of words."""
    for d in dims:
        if tensor.dim() < 2 or d % tensor.dim() == 0 or not -tensor.dim() <= d < tensor.dim():
            continue
        if twice:
            tensor = torch.cat([tensor, tensor], d)
        else:
            tensor = tensor.narrow(d, 0, max(tensor.shape[d] // 2, 1))
    return tensor


def compare(recorder: Recorder, other: Recorder) -> None:
    """Freeze what the same model couples, or freezes, otherwise at another size."""
    first, second = _classes(recorder.atoms), _classes(other.atoms)
    # Both runs number the atoms of the same parameters alike, so classes can be compared entry by
    # entry. An atom in other company, and both its companies, stay: either may be the accident.
    differ = first != second
    where = "".join(dict.fromkeys(recorder.mixes))
    recorder.atoms.freeze(
        np.unique(np.concatenate([np.flatnonzero(differ), first[differ], second[differ]])),
        f"a reshape reads places as channels: what goes together depends on the input size{where}",
    )
    # What the other run froze stays too; what stays already has a reason of its own.
    known = np.zeros(len(recorder.atoms.parent), dtype=bool)
    for vector, _ in recorder.atoms.frozen:
        known[recorder.atoms.find(vector)] = True
    for vector, reason in other.atoms.frozen:
        roots = other.atoms.find(vector)
        roots = roots[roots < len(first)]
        recorder.atoms.freeze(roots[~known[first[roots]]], f"{reason}, on inputs of another size")


def _classes(atoms: Atoms) -> Vector:
    """The class of each atom that parameters and buffers have; the others are a run's own."""
    owned = 1 + sum(axis.size for axis in atoms.axes)
    return atoms.find(np.arange(owned))


@contextlib.contextmanager
def untouched(model: nn.Module, training: bool = True) -> Iterator[Callable[[], None]]:
    """A run inside leaves no trace: neither in the model, nor in random numbers, nor in words.

    What is printed or warned of goes nowhere. What it gives puts back the model between two runs.

    Args:
        model: which runs inside.
        training: whether it may compute in training mode.
    """
    with (
        state_kept(model, training=training) as put_back,
        own_random_numbers(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield put_back
