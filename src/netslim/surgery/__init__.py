"""How a network is cut, and how we know that the cut is right."""

from netslim.surgery.compensation.batch_norm import recalibrate
from netslim.surgery.compensation.constants import Folding, fold_constants
from netslim.surgery.compensation.linear import reconstruct
from netslim.surgery.proof.verify import Verification

__all__ = ["Folding", "Verification", "fold_constants", "recalibrate", "reconstruct"]
