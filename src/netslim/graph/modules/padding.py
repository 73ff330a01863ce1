"""Modules go on over the width they had, as rows of plans say: whole, or in a call of theirs."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from netslim.errors import SurgeryError
from netslim.graph.modules.call_sites import replace_calls, replaced_calls
from netslim.graph.modules.computed_convolutions import (
    CONVOLUTIONS,
    keep_weight,
    keeps_weight,
    may_compute,
)
from netslim.graph.modules.padded_calls import REDUCTIONS, PaddedCall
from netslim.graph.modules.padded_norms import (
    KINDS,
    SCALED,
    SLIDING,
    ZEROS,
    NormWidth,
    PaddedNorm,
)
from netslim.graph.modules.scaled_norms import is_scaled, scale_eps, was_scaled


def keeps_width(module: nn.Module | None, norm: NormWidth) -> bool:
    """Whether a module goes on as the row of a plan says."""
    if norm.kind in CONVOLUTIONS:
        return keeps_weight(module)
    if norm.kind == ZEROS:
        return module is not None
    if norm.kind == SCALED:
        return is_scaled(module, norm) or was_scaled(module, norm)
    if norm.call:
        return norm.call in replaced_calls(module)
    return isinstance(module, PaddedNorm)


def pad(module: nn.Module, norm: NormWidth) -> None:
    """Let a module go on as the row of a plan says; one that does so already is left alone.

    Raises:
        SurgeryError: it cannot.
    """
    if norm.kind == SCALED:
        if not is_scaled(module, norm):
            scale_eps(module, norm)
        return
    if keeps_width(module, norm) and norm.kind != SLIDING:
        return
    if norm.kind in CONVOLUTIONS and may_compute(module):
        keep_weight(module, norm.kind)
    elif norm.call and norm.kind in REDUCTIONS:
        replace_calls(module, {norm.call: PaddedCall(replace(norm.lasting, module=""))})
    elif norm.kind in KINDS:
        KINDS[norm.kind]._of(module, norm)
    else:
        raise SurgeryError(f"a {type(module).__name__} cannot go on as a {norm.kind}")


__all__ = ["keeps_width", "pad"]
