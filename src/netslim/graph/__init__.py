"""The channel graph: learn what must be cut together by running the model once."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import TraceError
from .groups import ChannelGraph, ChannelGroup, Slice, build
from .recorder import as_call, record
from .rules import RULES, fallback

__all__ = ["ChannelGraph", "ChannelGroup", "Slice", "as_call", "trace"]


def trace(model: nn.Module, example_inputs: Any) -> ChannelGraph:
    """Run ``model`` once and learn which channels must be cut together.

    Args:
        model: any PyTorch module; it is run in evaluation mode without gradients and left as it was.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs. Small ones do: only
            the channels matter, and the batch may be 1.

    Returns:
        The `ChannelGraph`. Operators netslim has no rule for freeze what they touch and are listed in
        ``graph.unsupported``.

    Raises:
        TraceError: ``model`` is not a module, or does not run on these inputs.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"trace needs a torch.nn.Module, got {type(model).__name__}")
    return build(record(model, example_inputs, RULES, fallback))
