"""Which channels go: criteria, budgets, limits, and the options of a cut, each declared once."""

from netslim.selection.criteria.normalisation import normalized
from netslim.selection.layerwise import greedy
from netslim.selection.merging import merge
from netslim.selection.options import Compensation, Scoring

__all__ = ["Compensation", "Scoring", "greedy", "merge", "normalized"]
