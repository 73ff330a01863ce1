"""How important is each channel? A criterion is one function from a group and the model's tensors
to scores.
"""

from __future__ import annotations

from netslim.selection.criteria import measured, surgeon, weights
from netslim.selection.criteria.normalisation import Normalisation, normalized
from netslim.selection.criteria.parts import Over, Parts, Reduction
from netslim.selection.criteria.registry import CRITERIA, Criterion, Measure, criterion, reads_data
from netslim.selection.criteria.scoring import UNLED, Lead, Scorer, check_options, score

__all__ = [
    "CRITERIA",
    "UNLED",
    "Criterion",
    "Lead",
    "Measure",
    "Normalisation",
    "Over",
    "Parts",
    "Reduction",
    "Scorer",
    "check_options",
    "criterion",
    "measured",
    "normalized",
    "reads_data",
    "score",
    "surgeon",
    "weights",
]
