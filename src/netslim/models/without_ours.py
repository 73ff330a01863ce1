"""A network without any class of netslim, for where netslim is not installed.

A network that netslim has cut is made of what it was made of before. Seven things are netslim's
own: selections and batch normalisations that were put into it, which hang on hooks, normalisations
over channels that have lost some, be they modules or calls in the code of one, convolutions that
have kept a weight which they had computed, up to a gain, PyTorch's attention with other heads than
its class takes, and the networks of the zoo. The hooks become what they stand for, an
`nn.Sequential`, and attention PyTorch's own, where that is possible. A module of netslim's becomes
the operators that it runs, a `torch.fx.GraphModule`, whose code is kept in its pickle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.fx
from torch import nn

from netslim._support import checks_calls
from netslim.errors import ArgumentError, SurgeryError
from netslim.graph.modules.call_sites import replaced_calls
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.separate_heads import SeparateHeads, become_pytorchs
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import named_modules
from netslim.models.batch_norms import without_norm
from netslim.models.channel_select import without_selection

_OURS = __name__.partition(".")[0]


@checks_calls
def plain(model: nn.Module) -> nn.Module:
    """A copy that `torch.save` writes so that it loads where netslim is not installed.

    Its outputs are those of ``model``, bit by bit, but for rounding where `SeparateHeads` become
    an `nn.MultiheadAttention`, whose heads get channels of zeros. Tensors of layers that `add_bn`
    or `add_selection` have changed go by other names. (Where only outputs matter, `netslim.export`
    writes files that need no netslim either.)

    Raises:
        ArgumentError: a network of netslim's was given a forward that `torch.fx` cannot follow, or
            attention has heads that an `nn.MultiheadAttention` cannot have: its ``embed_dim`` is no
            multiple of ``num_heads``, or less than these are wide in all.
        SurgeryError: the model cannot be copied, or is scripted, exported, quantised, sharded or
            lazy.

    Example:
        >>> torch.save(netslim.models.plain(model), "small.pt")
    """
    inner = bare(model, SurgeryError, call="plain(model)")
    held = nn.ModuleDict({"model": duplicate(inner)})
    _replace(held, lambda layer: without_selection(layer) or without_norm(layer))
    _replace(held, _pytorchs_attention)
    _replace(held, _operators)
    return held["model"]


def _replace(held: nn.Module, instead: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put other modules in the places of those for which there is one; what holds them first."""
    made: dict[nn.Module, nn.Module] = {}
    for module in list(named_modules(held)):
        for name, child in module._modules.items():
            if child is not None and child not in made and (new := instead(child)) is not None:
                made[child] = new
            if child in made:
                module._modules[name] = made[child]


def _pytorchs_attention(module: nn.Module) -> nn.Module | None:
    if not isinstance(module, SeparateHeads):
        return None
    if not become_pytorchs(module):
        raise ArgumentError(
            f"attention of {module.num_heads} heads, {module.head_dim} wide each, for "
            f"{module.embed_dim} channels cannot be written without netslim: PyTorch's own takes "
            "embed_dim / num_heads for the width of a head; netslim.export writes it to a .pt2 or "
            ".onnx file, which needs none"
        )
    return module


def _operators(module: nn.Module) -> nn.Module | None:
    ours = type(module).__module__.partition(".")[0] == _OURS
    if not ours and not replaced_calls(module):
        return None
    try:
        traced = torch.fx.symbolic_trace(module)
    except Exception as error:
        raise ArgumentError(
            f"{type(module).__name__} cannot be written without netslim ({error}): "
            "netslim.export writes it to a .pt2 or .onnx file, which needs none"
        ) from error
    # Annotations are texts here, and torch 2.6 wants to import each of them by its name.
    for node in traced.graph.nodes:
        node.type = None
    traced.recompile()
    return traced
