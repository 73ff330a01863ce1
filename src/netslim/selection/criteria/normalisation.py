"""Scores of different groups made comparable: what one threshold over all groups compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from netslim._support import checks_calls
from netslim.selection.options import Normalisation, Scoring


@checks_calls
def normalized(scores: Mapping[str, Tensor], how: Normalisation | None) -> dict[str, Tensor]:
    """The scores of each group, on a scale of that group's own; their order within the group stays.

    Args:
        scores: group name -> 1-D tensor, one score a unit, as `netslim.score` returns them.
        how: what they are set against.

            - ``"mean"``, ``"sum"``, ``"max"``: divided by the mean, sum or maximum of their
              magnitudes.
            - ``"l2"``: divided by their Euclidean norm (Molchanov et al. 2017, section 2.2).
            - ``"standardization"``: ``(s - min) / (max - min)``, from 0 to 1; what torch-pruning
              calls so.
            - ``"gaussian"``: ``(s - mean) / standard deviation``, that of a sample.
            - ``"rank"``: rank / number of units, so that one threshold cuts the same share of every
              group.
            - None: left as they are.

    Zeros stay zero under the divisions. Where all scores of a group are equal, or it has one unit,
    they become 0.5 by ``"standardization"``, 0 by ``"gaussian"``, and equal scores share the mean
    of their ranks.

    Returns:
        Group name -> 1-D float64 tensor.

    Raises:
        ArgumentError: ``how`` is none of these.

    Example:
        >>> graph = netslim.trace(model, images)
        >>> scores = netslim.score(graph, model, "l2")
        >>> largest = netslim.selection.normalized(scores, "max")
        >>> [float(values.max()) for values in largest.values()]
        [1.0, 1.0]
    """
    how = Scoring(normalize=how).normalize
    return {name: normalize(values.double(), how) for name, values in scores.items()}


def normalize(values: Tensor, how: Normalisation | None) -> Tensor:
    """`normalized` for one group: float64 of shape (units,) -> (units,)."""
    if how is None or not len(values):
        return values
    return _WAYS[how](values)


def _divided(values: Tensor, by: Tensor) -> Tensor:
    if by > 0:
        return values / by
    return values


def _standardization(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    if high > low:
        return (values - low) / (high - low)
    return torch.full_like(values, 0.5)


def _gaussian(values: Tensor) -> Tensor:
    if values.max() == values.min():
        return torch.zeros_like(values)
    return (values - values.mean()) / values.std()


def _rank(values: Tensor) -> Tensor:
    """From 1 / size to 1; equal values share the mean of the places that they take up."""
    # Values that are equal take up the places first + 1 to behind, whose mean is (first + behind +
    # 1) / 2: scores 3 1 3 are of the ranks 2.5, 1 and 2.5.
    ordered = values.sort().values
    first = torch.searchsorted(ordered, values, side="left")
    behind = torch.searchsorted(ordered, values, side="right")
    return (first + behind + 1).double() / 2 / len(values)


_WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda values: _divided(values, values.abs().mean()),
    "sum": lambda values: _divided(values, values.abs().sum()),
    "max": lambda values: _divided(values, values.abs().max()),
    "l2": lambda values: _divided(values, torch.linalg.vector_norm(values)),
    "standardization": _standardization,
    "gaussian": _gaussian,
    "rank": _rank,
}
