"""PyTorch's own normalisations, whose settings say what they compute.

Of a class of PyTorch's, and of nobody's who was made from it, the code is known: which numbers it
takes the statistics of, where eps stands, and that neither mode, batch nor place matters. So there
is nothing to try out, as there is with any other class (known_norms.py).
"""

from __future__ import annotations

from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim.graph.modules.norm_trials import plain
from netslim.graph.modules.padded_norms import (
    SCALED,
    NormWidth,
    PaddedGroupNorm,
    PaddedLayerNorm,
    PaddedRMSNorm,
    own_tensors,
)

_LAST = {nn.LayerNorm: PaddedLayerNorm.kind, nn.RMSNorm: PaddedRMSNorm.kind}
_CALLED = {nn.LayerNorm: "layer_norm", nn.RMSNorm: "rms_norm", nn.GroupNorm: "group_norm"}
_FILES = str(Path(torch.__file__).parent)


def pytorchs(module: nn.Module, x: Tensor) -> NormWidth | None:
    """What a normalisation of PyTorch's is, by its settings; None for what has to be tried out.

    That is also what somebody has given another code, submodules, or tensors of its own, and what
    is left with so few numbers that hardly anything is computed of them.
    """
    kind: Any = type(module)
    if kind not in _CALLED or not _as_written(kind) or module._modules:
        return None
    if not {"weight", "bias"} >= own_tensors(module).keys() or not _usual(module):
        return None
    if kind is nn.GroupNorm:
        return _of_groups(module, x)
    return _of_last(module, x)


def _as_written(kind: Any) -> bool:
    """Whether nobody has put other functions in the place of PyTorch's."""
    name = _CALLED[kind]
    written = (kind.forward, getattr(F, name))
    of_torch = all(getattr(f, "__code__", None) and _in_torch(f) for f in written)
    return of_torch and isinstance(getattr(torch, name), BuiltinFunctionType)


def _in_torch(function: Any) -> bool:
    file: str = function.__code__.co_filename
    return file.startswith(_FILES)


def _usual(module: Any) -> bool:
    """Whether eps is a number above 0, or left open where that may be."""
    eps = module.eps
    if eps is None:
        return isinstance(module, nn.RMSNorm)
    return type(eps) is float and eps > 0


def _of_groups(module: Any, x: Tensor) -> NormWidth | None:
    channels, groups = x.shape[1], plain(module.num_groups)
    if plain(module.num_channels) != channels or x.dim() < 3 or channels < 2 * groups:
        return None
    return NormWidth("", PaddedGroupNorm.kind, 1, channels)


def _of_last(module: Any, x: Tensor) -> NormWidth | None:
    """A layer normalisation, or one by the root of the mean square, over the last dimension."""
    channels, kind = x.shape[-1], _LAST[type(module)]
    if plain(tuple(module.normalized_shape)) != (channels,) or channels < 3:
        return None
    if kind == PaddedRMSNorm.kind and module.weight is not None and module.eps is not None:
        kind = SCALED
    return NormWidth("", kind, -1, channels)


__all__ = ["pytorchs"]
