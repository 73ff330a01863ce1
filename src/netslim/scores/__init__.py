"""How important is each channel? A criterion is one function from a group and the model's tensors to scores."""

from __future__ import annotations

from . import measured, surgeon, weights
from .normalisation import Normalisation, normalized
from .parts import Over, Parts, Reduction
from .registry import CRITERIA, Criterion, Measure, criterion, reads_data
from .scoring import UNLED, Lead, Scorer, check_options, score

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
