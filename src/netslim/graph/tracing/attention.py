"""What `F.multi_head_attention_forward`, which checks its own sizes, asks of the channels."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch.nn.functional as F

from netslim.graph.tracing.atoms import Vector
from netslim.graph.tracing.recorder import BY_THE_ROOT, Recorder

_SIGNATURE = signature(F.multi_head_attention_forward)


def hold_width(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Tie the projections to the width of the query; the number of heads stays.

    Returns all arguments by name, the sizes among them as plain integers: what PyTorch compares
    them with is tied here, so its comparisons ask for nothing more.
    """
    given = _SIGNATURE.bind(*args, **kwargs).arguments
    query, width, heads = given["query"], given["embed_dim_to_check"], given["num_heads"]
    vector = recorder.get(query).dims.get(query.dim() - 1)
    if int(width) == int(heads):
        recorder.freeze(vector, "multi-head attention with one channel a head cannot be narrower")
    recorder.constrain(width, vector, int(width))
    recorder.constrain(heads, None, int(heads))
    for projection in _projections(recorder, given, int(width)):
        recorder.meet(projection, vector, "multi-head attention, which is as wide as its query")
    recorder.couple(vector, BY_THE_ROOT)  # of the width of a head, which is what a cut would change
    return {**given, "embed_dim_to_check": int(width), "num_heads": int(heads)}


def _projections(recorder: Recorder, given: dict[str, Any], width: int) -> Sequence[Vector | None]:
    """The labels of what the three projections make."""
    if given.get("use_separate_proj_weight"):
        weights = (given[f"{name}_proj_weight"] for name in "qkv")
        return [recorder.get(weight).dims.get(0) for weight in weights]
    packed = recorder.get(given["in_proj_weight"]).dims.get(0)
    if packed is None:
        return [None] * 3
    return list(packed.reshape(3, width))
