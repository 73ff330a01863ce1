"""Where there is no data: noise, and a copy of the network that stands in for it on noise.

Batch normalisation remembers what went through the network in training: behind each such layer a
channel has the mean beta and the deviation gamma, whatever the images. Of a copy whose statistics
are taken anew from noise that holds as well, so that noise goes through its layers about as images
go through those of the network, and what one channel tells of another lies in the weights, which
are the same. On the copy the cut is scored, made up for and judged as with data. What changed there
is then carried back: weights as they are, and the statistics of each normalisation by how much the
cut moved them on noise, in units of what they were on noise and are on images::

    mean = own mean + (mean after - mean before) * own deviation / deviation before
    deviation = own deviation * deviation after / deviation before

The noise is rough and smooth at once, like images: as much of each octave of wave lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from netslim.errors import ArgumentError
from netslim.graph.modules.batches import held_out
from netslim.graph.modules.calls import tensor_leaves
from netslim.graph.modules.duplicating import duplicate
from netslim.graph.modules.unwrapping import inside
from netslim.methods.cutting import Cut
from netslim.selection.defaults import Choice
from netslim.surgery.compensation.batch_norm import recalibrate

Model = TypeVar("Model", bound=nn.Module)
_BATCHES = 4
_EXAMPLES = 32  # of a batch; of large inputs fewer, whose many places say as much
_PLACES = 2**19  # of a batch, about; twice as many bring outputs nearer by a twentieth
_MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}  # dimensions -> how maps are enlarged


@dataclass(frozen=True)
class StandIn(Generic[Model]):
    """What is taken for a network and its data.

    Attributes:
        network: a copy, whose statistics of batch normalisation are those of noise.
        batches: of noise.
        held: more of it, held out.
    """

    network: Model
    batches: list[Any]
    held: list[Any]


def decided(
    choose: Callable[..., Choice], model: Model, example_inputs: Any
) -> tuple[Choice, StandIn[Model] | None]:
    """What is taken, and what stands in for data where there is none and that helps.

    Args:
        choose: `netslim.selection.defaults.chosen`, all given but ``data="noise"``.
        model: to be cut.
        example_inputs: as for `netslim.trace`.
    """
    choice = choose()
    if not choice.blind:
        return choice, None
    made = stand_in(model, example_inputs)
    if made is None:
        return choice, None
    return choose(data="noise"), made


def stand_in(model: Model, example_inputs: Any) -> StandIn[Model] | None:
    """None where the model has no statistics of batch normalisation, or does not take noise."""
    tensors = tensor_leaves(example_inputs)
    known = any(layer.running_mean is not None for layer in _norms(model).values())
    if not (known and tensors) or not all(x.is_floating_point() and x.dim() > 1 for x in tensors):
        return None
    generator = torch.Generator().manual_seed(0)
    noise = partial(_noise, size=_examples(tensors), generator=generator)
    if isinstance(example_inputs, list):
        example_inputs = tuple(example_inputs)
    batches = [(tree_map_only(Tensor, noise, example_inputs),) for _ in range(_BATCHES)]
    try:
        network = recalibrate(duplicate(model), batches)
    except ArgumentError:  # it takes no such batches, or what it makes of them is not finite
        return None
    return StandIn(network, *held_out(batches))


def carried_back(done: Cut[Model], model: nn.Module, made: StandIn[Any]) -> Cut[Model]:
    """The cut of what stands in for ``model``, with statistics as of its images, in place."""
    kept = {row.tensor: row.kept for row in done.plan.tensors if row.axis == 0}
    own, before = _norms(model), _norms(made.network)
    for name, layer in _norms(done.network).items():
        if layer.running_mean is None or layer.running_var is None:
            continue
        was, now = (_statistics(layers[name], name, kept, layer) for layers in (before, own))
        ratio = (now["running_var"] + layer.eps) / (was["running_var"] + layer.eps)
        moved = (layer.running_mean - was["running_mean"]) * ratio.sqrt()
        layer.running_mean.copy_(now["running_mean"] + moved)
        layer.running_var.copy_((layer.running_var + layer.eps) * ratio - layer.eps)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.copy_(now["num_batches_tracked"])
    return replace(done, notes=(*done.notes, _SAID))


_SAID = (
    "there was no data: channels were scored and made up for on noise that has the statistics "
    "of the batch normalisation"
)


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    named = inside(model).named_modules()
    return {name: module for name, module in named if isinstance(module, _BatchNorm)}


def _statistics(
    layer: _BatchNorm, name: str, kept: Mapping[str, tuple[int, ...]], cut: _BatchNorm
) -> dict[str, Tensor]:
    """Buffers of a layer as it was, of the channels that ``cut`` has of it."""
    found = dict(layer.named_buffers(recurse=False))
    for key, values in found.items():
        if values.shape != cut.get_buffer(key).shape:
            found[key] = values[list(kept[f"{name}.{key}"])]
    return found


def _examples(inputs: list[Tensor]) -> int:
    """How many make up a batch of inputs like these."""
    places = max(math.prod(x.shape[2:]) for x in inputs)
    return min(_EXAMPLES, max(4, _PLACES // max(1, places)))


def _noise(example: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A batch of this size, shaped as the example, of mean 0 and variance 1."""
    shape = (size, *example.shape[1:])
    total = torch.randn(shape, generator=generator)
    mode = _MODES.get(len(shape))
    if mode is not None:
        for octave in range(max(shape[2:]).bit_length()):
            places = [min(2**octave, whole) for whole in shape[2:]]
            coarse = torch.randn(*shape[:2], *places, generator=generator)
            total = total + F.interpolate(coarse, shape[2:], mode=mode, align_corners=False)
    return ((total - total.mean()) / total.std()).to(example.dtype)


__all__ = ["StandIn", "carried_back", "decided", "stand_in"]
