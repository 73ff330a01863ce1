"""Convolutions that compute their weight from all of a parameter, as weight standardisation does.

Mean and deviation of the weights that make a channel are taken over all channels that are read, so
without some of these the others would be read by other weights. What a cut leaves is read as before
where the weight is computed once, of the whole parameter, and kept: the module becomes the plain
convolution that it runs, whose parameter is the computed weight.

What it runs is seen in a call: the weight that PyTorch's convolution is given.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

KIND = "convolution"  # in the rows of plans
PLAIN: tuple[type[_ConvNd], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_SAME = 1e-9  # relative, in float64


class _Given(TorchFunctionMode):
    """Sees the weight that a convolution is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FUNCTIONS:
            self.weights.append(kwargs.get("weight", args[1:2] and args[1]))
        return func(*args, **kwargs)


def plain_kind(module: nn.Module) -> type[_ConvNd] | None:
    """The plain convolution that a module is made from; None for others, and for a plain one."""
    computed = isinstance(module, PLAIN) and type(module) not in PLAIN and module.groups == 1
    if not computed or set(module._parameters) - {"weight", "bias"}:
        return None
    return next(kind for kind in PLAIN if isinstance(module, kind))


def computed_weight(module: nn.Module, weight: Tensor) -> Tensor | None:
    """What a convolution makes of its parameter, were that ``weight``; None if nobody can tell."""
    one = _with(module, weight)
    given = _Given()
    with torch.no_grad(), given:
        type(module).forward(one, _input(one, weight, 0))
    if len(given.weights) != 1:
        return None
    return given.weights[0].detach()


def computes(module: nn.Module) -> bool:
    """Whether a module is a plain convolution but for how it computes its weight."""
    kind = plain_kind(module)
    if kind is None:
        return False
    generator = torch.Generator().manual_seed(0)
    parameter: Any = module.weight
    # Drawn in single precision, which is several times as fast.
    weight = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
    weight = weight.to(parameter.device, torch.float64)
    made = computed_weight(module, weight)
    if made is None or made.shape != weight.shape:
        return False
    x = _input(module, weight, 2)
    x = x + torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
    one = _with(module, weight)
    with torch.no_grad():
        a, b = type(module).forward(one, x), kind.forward(_with(module, made), x)
    return a.shape == b.shape and torch.allclose(a, b, rtol=_SAME, atol=_SAME)


def _with(module: nn.Module, weight: Tensor) -> Any:
    """A copy without hooks of which ``weight`` is the parameter, in its precision."""
    result: Any = copy.copy(module)
    vars(result).update({k: v for k, v in vars(nn.Module()).items() if k != "training"})
    bias = module._parameters.get("bias")
    if bias is not None:
        bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    result._parameters = {"weight": nn.Parameter(weight, requires_grad=False), "bias": bias}
    return result


def _input(module: Any, weight: Tensor, more: int) -> Tensor:
    """Zeros of as many places as the kernel needs, and ``more``."""
    sizes = zip(module.kernel_size, module.dilation, strict=True)
    places = [(int(k) - 1) * int(d) + 1 + more for k, d in sizes]
    return weight.new_zeros(1, weight.shape[1], *places)


__all__ = ["KIND", "PLAIN", "computed_weight", "computes", "plain_kind"]
