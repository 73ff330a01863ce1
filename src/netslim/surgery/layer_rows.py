"""What the kinds of layers alone tell of a plan: which axes of one layer lose the same entries.

A plan that does not say which entries go with its units (of version 0.1, or several cuts composed)
can still be held against the layers of the model: the bias of a convolution goes as its filters do,
all gates of a recurrent layer as its hidden units, the values of attention as what its output
projection reads. Which layers go together, only a graph could tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import nn

from netslim.graph.modules.walk import named_modules, named_tensors
from netslim.surgery.rows import TensorCut

Rows = Mapping[tuple[str, int], TensorCut]
Kept = tuple[int, ...]
_CONV, _NORMS = (
    nn.modules.conv._ConvNd,
    (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm),
)
_OUTPUTS = ("weight", "bias", "running_mean", "running_var")


def torn_layers(model: nn.Module, rows: Rows) -> Iterator[str]:
    """Paths of the layers of which some tensors lose other channels than others do."""
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    for module, path in named_modules(model).items():
        own = {**module._parameters, **module._buffers}
        if isinstance(module, nn.MultiheadAttention):
            own["out_proj.weight"] = module.out_proj.weight
        held = {name: names[id(t)] for name, t in own.items() if t is not None}
        if not all(_agree(each) for each in _together(module, _Layer(held, rows))):
            yield path


class _Layer:
    """What is kept of the tensors of one layer."""

    def __init__(self, held: Mapping[str, str], rows: Rows) -> None:
        self.held, self.rows = held, rows

    def kept(self, name: str, axis: int = 0) -> Kept | None:
        """The entries of an axis that stay; None where nothing is said of it."""
        row = self.rows.get((self.held.get(name, ""), axis))
        if row is None:
            return None
        return row.kept

    def part(self, name: str, number: int, parts: int, axis: int = 0) -> Kept | None:
        """Of one of several parts of equal size that an axis consists of."""
        row = self.rows.get((self.held.get(name, ""), axis))
        if row is None:
            return None
        size = row.size // parts
        kept = np.array(row.kept) - number * size
        return tuple(kept[(kept >= 0) & (kept < size)].tolist())


def _agree(kept: list[Kept | None]) -> bool:
    """Whether these are the same, as far as something is said of them."""
    return len({one for one in kept if one is not None}) < 2


def _together(module: nn.Module, layer: _Layer) -> Iterator[list[Kept | None]]:
    """What of a layer must be the same.

    A tensor of which nothing is said says nothing: a bias that was fused in after the cut has no
    row, for instance. The vectors of a normalisation are cut all or none.
    """
    if isinstance(module, _CONV) and module.transposed:
        if module.groups == 1:
            yield [layer.kept("weight", 1), layer.kept("bias")]
    elif isinstance(module, (nn.Linear, nn.Bilinear, _CONV)):
        yield [layer.kept("weight"), layer.kept("bias")]
    elif isinstance(module, _NORMS):
        kept = [layer.kept(name) for name in _OUTPUTS if name in layer.held]
        yield [one or () for one in kept]
    elif isinstance(module, nn.RNNCellBase):
        yield _hidden(layer, "", module.weight_ih.shape[0] // module.hidden_size)
    elif isinstance(module, nn.RNNBase):
        yield from _recurrent(module, layer)
    elif isinstance(module, nn.MultiheadAttention):
        yield from _attention(module, layer)


def _recurrent(module: nn.RNNBase, layer: _Layer) -> Iterator[list[Kept | None]]:
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


def _hidden(layer: _Layer, place: str, gates: int) -> list[Kept | None]:
    made = [f"{kind}{place}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    kept = [layer.part(name, gate, gates) for name in made for gate in range(gates)]
    return [layer.kept(f"weight_hh{place}", 1), *kept]


def _attention(module: nn.MultiheadAttention, layer: _Layer) -> Iterator[list[Kept | None]]:
    """Queries go with keys, and values with what the projection behind them reads."""
    packed = [
        [layer.part(f"in_proj_{kind}", n, 3) for n in range(3)] for kind in ("weight", "bias")
    ]
    single = [layer.kept(f"{name}_proj_weight") for name in "qkv"]
    queries, keys, values = zip(single, *packed, strict=True)
    yield [*queries, *keys]
    yield [*values, layer.kept("out_proj.weight", 1)]


__all__ = ["torn_layers"]
