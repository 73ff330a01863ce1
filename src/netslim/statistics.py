"""What data tells of channels: gradients and activations of the layers that make them, in one pass over batches.

Everything is summed up batch by batch; no activation is kept. The model runs in evaluation mode and is left as it was:
gradients, modes, statistics of batch normalisation, ``requires_grad``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .batches import outputs, targets_of
from .errors import PlanError
from .graph import ChannelGraph
from .graph.calls import LAYERS, channels_of, evaluating, output_tensors
from .graph.inventory import layer_of
from .plan import named_modules, named_tensors
from .wrapping import eagerly

Loss = Callable[[Any, Any], Tensor]  # of the model's output and the targets of a batch
Measured = Mapping[str, Tensor]  # producing tensor -> (channels it makes,), float64 on the CPU
PerExample = Callable[[Tensor], Tensor]  # (examples, places, channels) -> (examples, channels)
Take = Callable[[str, Tensor, int], None]  # producing tensor, what it puts out, dimension of the channels


@dataclass
class Stream:
    """Mean and population variance of rows that come in parts (Chan et al. 1979); float64 on the CPU."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    spread: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @property
    def variance(self) -> Tensor:
        return self.spread / self.count

    def add(self, rows: Tensor) -> None:
        """Take in rows of shape (examples, channels)."""
        rows = rows.detach().cpu().double()
        mean = rows.mean(0)
        step, total = mean - self.mean, self.count + len(rows)
        self.spread = self.spread + (rows - mean).square().sum(0) + step.square() * (self.count * len(rows) / total)
        self.mean = self.mean + step * (len(rows) / total)
        self.count = total


# --- gradients ---------------------------------------------------------------------------------------------------


def cross_entropy(output: Any, targets: Any) -> Tensor:
    """Mean cross entropy of the first tensor of the output, (examples, classes, ...)."""
    return F.cross_entropy(output_tensors(output)[0], targets)


def contributions(graph: ChannelGraph, model: nn.Module, batches: Iterable[Any], loss: Loss | None) -> Measured:
    """Mean over the batches of ``(sum over the filter of gradient * weight) ** 2``, for every filter.

    Raises:
        PlanError: there is no batch, the model does not run on one, or the loss cannot be computed and derived.
    """
    made = {s.tensor: s.axis for g in graph.groups for s in g.tensors("producer")}
    weights = {n: p for n, p in named_tensors(model) if n in made and p.is_floating_point()}
    streams = {name: Stream() for name in weights}
    with eagerly(), evaluating(model), _differentiable(weights.values()):
        for batch, output in outputs(model, batches):
            value = _loss_of(output, batch, loss or cross_entropy)
            gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    terms = (gradient * weight.detach()).movedim(made[name], 0).flatten(1)
                    streams[name].add(terms.cpu().double().sum(1)[None].square())
    return {name: stream.mean for name, stream in streams.items() if stream.count}


@contextlib.contextmanager
def _differentiable(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, gradients reach these tensors, frozen or not."""
    flags = [(t, t.requires_grad) for t in tensors]
    try:
        for tensor, _ in flags:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for tensor, flag in flags:
            tensor.requires_grad_(flag)


def _loss_of(output: Any, batch: Any, loss: Loss) -> Tensor:
    remedy = "pass loss=, a function of (output, targets) that returns a scalar tensor"
    try:
        device = output_tensors(output)[0].device
        targets = tree_map_only(Tensor, lambda tensor: tensor.to(device), targets_of(batch))
        value = loss(output, targets)
    except Exception as error:
        raise PlanError(f"the loss cannot be computed ({type(error).__name__}: {error}); {remedy}") from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise PlanError(f"the loss must be one number that depends on the weights, got {value!r}; {remedy}")
    return value


# --- activations -------------------------------------------------------------------------------------------------


def activations(
    graph: ChannelGraph, model: nn.Module, batches: Iterable[Any], per_example: PerExample, variance: bool = False
) -> Measured:
    """Mean (or population variance) over all examples of a statistic of what each producing layer puts out.

    The output is taken as the layer returns it, its bias included, before any normalisation. A layer that runs several
    times in a forward pass counts each time. Layers are convolutions and linear layers, as modules or as functions of
    a module's parameter.

    Args:
        graph: of this model.
        model: bare.
        batches: as data loaders give them.
        per_example: (examples, places, channels) -> (examples, channels).
        variance: of the statistic over the examples, instead of its mean.

    Raises:
        PlanError: there is no batch, or the model does not run on one.
    """
    streams: dict[str, Stream] = {}

    def take(name: str, output: Tensor, dim: int) -> None:
        streams.setdefault(name, Stream()).add(per_example(_maps(output, dim)))

    with torch.no_grad(), eagerly(), evaluating(model), _watching(graph, model, take):
        for _ in outputs(model, batches):
            pass
    return {name: stream.variance if variance else stream.mean for name, stream in streams.items()}


def _maps(output: Tensor, dim: int) -> Tensor:
    """(examples, places, channels), from an output whose channels lie in the negative ``dim``; batched or not."""
    output = output.float() if output.dtype.itemsize < 4 else output
    batched = output[None] if output.dim() == -dim else output
    return batched.movedim(dim, -1).flatten(1, -2) if batched.dim() > 2 else batched[:, None]


@contextlib.contextmanager
def _watching(graph: ChannelGraph, model: nn.Module, take: Take) -> Iterator[None]:
    """Inside, ``take`` sees the output of every layer that produces a group."""
    made = {s.tensor for g in graph.groups for s in g.tensors("producer")}
    layers = {path: m for m, path in named_modules(model).items() if isinstance(m, (_ConvNd, nn.Linear))}
    parameters = {id(p): name for name, p in named_tensors(model) if name in made and layer_of(name) not in layers}
    with contextlib.ExitStack() as stack:
        for name in made:
            if (layer := layers.get(layer_of(name))) is not None:
                dim = channels_of(layer.weight, linear=isinstance(layer, nn.Linear))
                hook = layer.register_forward_hook(_hook(name, take, dim))
                stack.callback(hook.remove)
        stack.enter_context(_Calls(parameters, take))
        yield


def _hook(name: str, take: Take, dim: int) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda module, args, output: take(name, output, dim)


class _Calls(TorchFunctionMode):
    """Sees convolutions and linear layers called as functions."""

    def __init__(self, parameters: Mapping[int, str], take: Take) -> None:
        super().__init__()
        self.parameters, self.take = parameters, take

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in LAYERS:
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            if id(weight) in self.parameters:
                self.take(self.parameters[id(weight)], output, channels_of(weight, linear=func is F.linear))
        return output


__all__ = ["Loss", "Measured", "PerExample", "activations", "contributions", "cross_entropy"]
