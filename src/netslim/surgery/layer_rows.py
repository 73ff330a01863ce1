"""What the kinds of layers alone tell of a plan: which axes of one layer lose the same entries.

A plan that does not say which entries go with its units (of version 0.1, or several cuts composed)
can still be held against the layers of the model: the bias of a convolution goes as its filters do,
all gates of a recurrent layer as its hidden units, the values of attention as what its output
projection reads. Which layers go together, only a graph could tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from netslim.graph.modules.walk import layer_of, named_modules, named_tensors
from netslim.graph.modules.weight_norms import weight_norms
from netslim.surgery.rows import TensorCut

Rows = Mapping[tuple[str, int], TensorCut]
Kept = tuple[int, ...]
Left = Kept | int | None  # which entries; of what has no row, how many; of what is not there, None
_CONV, _NORMS = (
    nn.modules.conv._ConvNd,
    (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm),
)
_OUTPUTS = ("weight", "bias", "running_mean", "running_var")
_COMPUTED = ("weight_v", "weight_orig")  # what a hook makes the weight of, in its shape


def torn_layers(
    model: nn.Module, rows: Rows, sizes: Mapping[tuple[str, str], int]
) -> Iterator[str]:
    """Paths of the layers of which some tensors lose other channels than others do.

    Args:
        model: before the cut.
        rows: (tensor, axis) -> what is kept of it.
        sizes: (module, attribute) -> what it becomes.
    """
    named = dict(named_tensors(model))
    for norm in weight_norms(model, shared=True):
        parts = {name: (name, named[name]) for name in (norm.direction, norm.gain)}
        if norm.dim >= 0 and not _agree([_Layer(parts, rows).kept(n, norm.dim) for n in parts]):
            yield layer_of(norm.direction)
    names = {id(tensor): name for name, tensor in named.items()}
    for module, path in named_modules(model).items():
        held = {name: (names[id(t)], t) for name, t in _held(module) if id(t) in names}
        layer = _Layer(held, rows)
        whole = all(_agree(each) for each in _together(module, layer))
        if isinstance(module, _CONV) and "weight" in held:
            groups = module.groups
            whole &= _divided(layer, groups, sizes.get((path, "groups"), groups))
        if not whole:
            yield path


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a layer; what its weight is computed from before each call counts as it."""
    own = {**module._parameters, **module._buffers}
    for name in _COMPUTED:
        if name in module._parameters:
            own["weight"] = own[name]
    if nn.utils.parametrize.is_parametrized(module, "weight"):
        steps: Any = module.parametrizations.weight  # type: ignore[union-attr]
        if isinstance(steps[0], parametrizations._WeightNorm):
            own["weight"] = steps.original1
        elif isinstance(steps[0], parametrizations._SpectralNorm):
            own["weight"] = steps.original
    if isinstance(module, nn.MultiheadAttention):
        own["out_proj.weight"] = module.out_proj.weight
    yield from ((name, tensor) for name, tensor in own.items() if tensor is not None)


class _Layer:
    """What is kept of the tensors of one layer."""

    def __init__(self, held: Mapping[str, tuple[str, Tensor]], rows: Rows) -> None:
        self.held, self.rows = held, rows

    def kept(self, name: str, axis: int = 0) -> Left:
        """The entries of an axis that stay."""
        return self.part(name, 0, 1, axis)

    def part(self, name: str, number: int, parts: int, axis: int = 0) -> Left:
        """Of one of several parts of equal size that an axis consists of."""
        if name not in self.held:
            return None
        called, tensor = self.held[name]
        row = self.rows.get((called, axis))
        if row is None:
            return int(tensor.shape[axis]) // parts
        if parts == 1:
            return row.kept
        size = row.size // parts
        kept = np.array(row.kept) - number * size
        return tuple(kept[(kept >= 0) & (kept < size)].tolist())


def _agree(left: list[Left]) -> bool:
    """Whether these are the same, if any of it is cut.

    What has no row must be as long as the others become: a bias that was fused in after the cut,
    for instance, is.
    """
    kept = {one for one in left if isinstance(one, tuple)}
    if len(kept) != 1:
        return not kept
    (entries,) = kept
    return all(one == len(entries) for one in left if isinstance(one, int))


def _divided(layer: _Layer, before: int, after: int) -> bool:
    """Whether the groups of a convolution still divide its weight; depthwise, each has one row."""
    rows, left = layer.held["weight"][1].shape[0], layer.kept("weight")
    if isinstance(left, tuple):
        left = len(left)
    if rows == before:
        return left == after
    return left is not None and left % after == 0


def _together(module: nn.Module, layer: _Layer) -> Iterator[list[Left]]:
    """What of a layer must be the same."""
    if isinstance(module, _CONV) and module.transposed:
        if module.groups == 1:
            yield [layer.kept("weight", 1), layer.kept("bias")]
    elif isinstance(module, (nn.Linear, nn.Bilinear, _CONV)):
        yield [layer.kept("weight"), layer.kept("bias")]
    elif isinstance(module, _NORMS):
        yield [layer.kept(name) for name in _OUTPUTS]
    elif isinstance(module, nn.RNNCellBase):
        yield _hidden(layer, "", module.weight_ih.shape[0] // module.hidden_size)
    elif isinstance(module, nn.RNNBase):
        yield from _recurrent(module, layer)
    elif isinstance(module, nn.MultiheadAttention):
        yield from _attention(module, layer)


def _recurrent(module: nn.RNNBase, layer: _Layer) -> Iterator[list[Left]]:
    """All gates of a layer lose the same of its hidden units, and what reads these does."""
    if module.proj_size:  # its hidden units stay
        return
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    ways = [""]
    if module.bidirectional:
        ways.append("_reverse")
    for number in range(module.num_layers):
        for turn, way in enumerate(ways):
            place = f"_l{number}{way}"
            # The next layer reads the hidden units of all directions, one after the other.
            above = [f"weight_ih_l{number + 1}{other}" for other in ways]
            read = [layer.part(name, turn, len(ways), axis=1) for name in above]
            yield [*_hidden(layer, place, gates), *read]


def _hidden(layer: _Layer, place: str, gates: int) -> list[Left]:
    made = [f"{kind}{place}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    kept = [layer.part(name, gate, gates) for name in made for gate in range(gates)]
    return [layer.kept(f"weight_hh{place}", 1), *kept]


def _attention(module: nn.MultiheadAttention, layer: _Layer) -> Iterator[list[Left]]:
    """Queries go with keys, and values with what the projection behind them reads."""
    packed = [
        [layer.part(f"in_proj_{kind}", n, 3) for n in range(3)] for kind in ("weight", "bias")
    ]
    single = [layer.kept(f"{name}_proj_weight") for name in "qkv"]
    queries, keys, values = zip(single, *packed, strict=True)
    yield [*queries, *keys]
    yield [*values, layer.kept("out_proj.weight", 1)]


__all__ = ["torn_layers"]
