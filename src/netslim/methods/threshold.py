"""Whether a threshold of batch-norm scales went through channels that the network still uses.

Network Slimming trains until the scales fall into two heaps, those near zero and the others, and
cuts between them (Liu et al. 2017, figure 4). Where nothing was trained so, or not for long enough,
the threshold lies within the one heap that there is, and the cut takes what carries signal.
"""

from __future__ import annotations

from statistics import median

from netslim.selection.defaults import BN_SCALE
from netslim.surgery.plan import PruningPlan

NEAR_ZERO = 0.01
_SMALL = 0.05  # a removed scale above this share of the median kept one still carries signal


def threshold_warning(plan: PruningPlan) -> str | None:
    """A sentence when channels go whose scales are not small; None when the cut is clean, or
    something else than their scales decided.

    A cut is clean when the largest scale removed is below 0.01 or below 5 % of the median scale
    kept: then the network hardly used what goes.
    """
    if plan.why is None or plan.why.criterion != BN_SCALE:
        return None
    removed, left = [], []
    for name, values in plan.why.scores.items():
        stays = set(range(len(values)))
        if name in plan.groups:
            stays = set(plan.groups[name].kept)
        removed += [abs(value) for unit, value in enumerate(values) if unit not in stays]
        left += [abs(value) for unit, value in enumerate(values) if unit in stays]
    if not removed or not left:
        return None
    largest, middle = max(removed), median(left)
    bound = max(NEAR_ZERO, _SMALL * middle)
    if largest < bound:
        return None
    large = sum(value >= bound for value in removed)
    return (
        f"the cut went through scales that are not small: {large} of the {len(removed)} "
        f"removed ones, up to {largest:.3g}, where the median kept is {middle:.3g}; train with "
        "the penalty of Network Slimming first (longer, or with a larger strength), or give "
        "training data and take criterion obs, or cut less; else fine-tuning has to make up for it"
    )


__all__ = ["NEAR_ZERO", "threshold_warning"]
