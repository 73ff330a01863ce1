"""How a network is cut, and how we know that the cut is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netslim._support.rooms import imported_later

_HOMES = {
    "Folding": "compensation.constants",
    "Verification": "proof.verify",
    "compensate": "compensation.linear",
    "cut_inputs": "ports",
    "recalibrate": "compensation.batch_norm",
    "unsharded": "sharding",
}

__all__ = ["Folding", "Verification", "compensate", "cut_inputs", "recalibrate", "unsharded"]

if TYPE_CHECKING:
    from netslim.surgery.compensation.batch_norm import recalibrate as recalibrate
    from netslim.surgery.compensation.constants import Folding as Folding
    from netslim.surgery.compensation.linear import compensate as compensate
    from netslim.surgery.ports import cut_inputs as cut_inputs
    from netslim.surgery.proof.verify import Verification as Verification
    from netslim.surgery.sharding import unsharded as unsharded
else:
    __getattr__ = imported_later(__name__, _HOMES)
