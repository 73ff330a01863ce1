"""Which channels go: criteria, budgets, limits, and the options of a cut, each declared once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netslim._support.rooms import imported_later

_HOMES = {
    "Compensation": "options",
    "Scoring": "options",
    "greedy": "layerwise",
    "merge": "merging",
    "normalized": "criteria.normalisation",
}

__all__ = ["Compensation", "Scoring", "greedy", "merge", "normalized"]

if TYPE_CHECKING:
    from netslim.selection.criteria.normalisation import normalized as normalized
    from netslim.selection.layerwise import greedy as greedy
    from netslim.selection.merging import merge as merge
    from netslim.selection.options import Compensation as Compensation
    from netslim.selection.options import Scoring as Scoring
else:
    __getattr__ = imported_later(__name__, _HOMES)
