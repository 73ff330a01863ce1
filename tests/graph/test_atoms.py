"""Questions to vectors of atoms that are answered without NumPy's own, slower functions."""

from __future__ import annotations

import numpy as np
import pytest

from netslim.graph.tracing.atoms import ATOM, among, distinct, numbered


@pytest.mark.parametrize("spread", [1, 10, 1000, 10**6])  # close together, and far apart
@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (1, 1), (40, 7), (7, 40)])
def test_they_say_what_numpy_says(lengths: tuple[int, int], spread: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        vector, others = (rng.integers(0, spread, size=n).astype(ATOM) for n in lengths)
        assert among(vector, others).tolist() == np.isin(vector, others).tolist()
        assert distinct(vector).tolist() == np.unique(vector).tolist()
        values, places = numbered(vector)
        assert values[places].tolist() == vector.tolist()
