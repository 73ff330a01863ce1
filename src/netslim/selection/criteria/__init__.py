"""How important is each channel? A criterion is a function from a group and tensors to scores."""

from __future__ import annotations

from netslim.selection.criteria import measured, surgeon, weights
from netslim.selection.criteria.normalisation import normalized
from netslim.selection.criteria.parts import Parts
from netslim.selection.criteria.registry import CRITERIA, Criterion, Measure, criterion, reads_data
from netslim.selection.criteria.scoring import UNLED, Scorer, as_scoring, check_options, score
from netslim.selection.options import Scoring

__all__ = [
    "CRITERIA",
    "UNLED",
    "Criterion",
    "Measure",
    "Parts",
    "Scorer",
    "Scoring",
    "as_scoring",
    "check_options",
    "criterion",
    "measured",
    "normalized",
    "reads_data",
    "score",
    "surgeon",
    "weights",
]
