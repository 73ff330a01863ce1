"""How a network is cut, and how we know that the cut is right."""

from netslim.surgery.compensation.batch_norm import recalibrate
from netslim.surgery.compensation.constants import Folding
from netslim.surgery.compensation.linear import compensate
from netslim.surgery.proof.verify import Verification
from netslim.surgery.sharding import unsharded

__all__ = ["Folding", "Verification", "compensate", "recalibrate", "unsharded"]
