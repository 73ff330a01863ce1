"""What a rule says to the recorder, looked at before it is believed.

A rule may be anybody's. Labels that are none would be taken for others', or break the trace long
after the rule is done, where nobody could tell any more whose they are. So each call looks at what
it was given and raises at once, inside the rule, which is then treated as one that broke off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from netslim.graph.tracing.atoms import Atoms

_FORM = "labels are a 1-D NumPy array of integers, as recorder.get(...).dims holds them"
_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}
_ROLES = range(1, 16)  # `atoms.PRODUCER`, `CONSUMER`, `SCALE`, `CHANNEL` and their sums


def check_vector(vector: Any, atoms: Atoms, what: str) -> None:
    """Refuse what are no labels."""
    if atoms.is_axis(vector) or vector is atoms.looked_at:  # as most are
        return
    if not isinstance(vector, np.ndarray):
        raise TypeError(f"{what} is given {_told(vector)}; {_FORM}")
    if vector.ndim != 1 or vector.dtype.kind != "i":
        raise TypeError(f"{what} is given a {vector.ndim}-D array of {vector.dtype}; {_FORM}")
    # As unsigned numbers those below 0 are the largest, so one look tells both.
    unsigned = vector.view(_UNSIGNED[vector.itemsize])
    if len(vector) and np.maximum.reduce(unsigned) >= len(atoms.parent):
        raise ValueError(f"{what} is given numbers that are nobody's labels; {_FORM}")
    if not vector.flags.writeable:  # several in a row ask about the same
        atoms.looked_at = vector


def check_dims(tensor: Any, dims: Any, weight: Any, atoms: Atoms) -> None:
    """Refuse labels of a result that do not fit it."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"recorder.set takes a tensor, got {_told(tensor)}")
    if type(dims) is not dict and not isinstance(dims, Mapping):
        raise TypeError(f"recorder.set takes {{dimension: labels}}, got {_told(dims)}")
    if weight is not True and weight is not False and not isinstance(weight, np.bool_):
        raise TypeError(f"recorder.set takes weight=True or False, got {_told(weight)}")
    shape = tensor.shape
    places = range(len(shape))
    for d, vector in dims.items():
        if not atoms.is_axis(vector):
            check_vector(vector, atoms, f"dimension {d} of the output")
        if d not in places or len(vector) != shape[d]:
            raise ValueError(
                f"dimension {d} of the output, of shape {tuple(shape)}, is given "
                f"{len(vector)} labels; recorder.set takes one label for each entry, dimensions "
                "counted from 0"
            )


def check_factor(factor: Any, atoms: Atoms) -> None:
    """Refuse a factor of a cost that is neither a number of things nor labels."""
    if isinstance(factor, np.ndarray):
        check_vector(factor, atoms, "recorder.cost")
    elif isinstance(factor, bool) or not isinstance(factor, (int, np.integer)):
        raise TypeError(f"recorder.cost takes whole numbers and labels, got {_told(factor)}")
    elif factor < 0:
        raise ValueError(f"recorder.cost takes sizes, got {factor}")


def check_role(role: Any) -> None:
    """Refuse what is no role of a weight."""
    if role not in _ROLES:
        raise ValueError(
            "recorder.mark takes the role PRODUCER, CONSUMER, SCALE or CHANNEL of "
            f"netslim.graph.rules, got {_told(role)}"
        )


def check_lengths(left: Any, right: Any, what: str) -> None:
    """Refuse to tie dimensions of which one is longer."""
    if len(left) != len(right):
        raise ValueError(f"{what}: {len(left)} labels cannot meet {len(right)}")


def _told(value: Any) -> str:
    """A value in a message: what it is, and itself where that is short."""
    shown = repr(value)
    if len(shown) > 40 or "\n" in shown:
        return type(value).__name__
    return shown
