"""Recurrent layers that PyTorch runs as one operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from netslim.graph.rules.registry import Op, extent, name_of, rule, tensors_in
from netslim.graph.tracing.atoms import CHANNEL, CONSUMER, PRODUCER, Vector
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.shapes import split_vector

_GATES = {0: 1, 1: 1, 2: 4, 3: 3}  # ReLU, tanh, LSTM, GRU
_LAYER, _STATE = "a recurrent layer", "the state of a recurrent layer"


def _layer(
    rec: Recorder,
    source: Vector | None,
    weights: Sequence[Tensor],
    gates: int,
    states: Sequence[Tensor],
    places: Sequence[int | Vector],
) -> Vector | None:
    """One direction of one layer: every gate of a hidden unit goes with it.

    ``weights``: ih, hh, biases; ``places``: the sizes of steps and batch.
    """
    read, kept = rec.get(weights[0]), rec.get(weights[1])
    rec.meet(source, read.dims.get(1), _LAYER)
    rec.mark(read, 1, CONSUMER)
    hidden = kept.dims.get(1)
    rec.mark(kept, 1, CONSUMER)
    for weight in weights:
        labels = rec.get(weight)
        if 0 in labels.dims:
            hidden = _meet_gates(rec, hidden, labels.dims[0], gates)
            rec.mark(labels, 0, {1: CHANNEL, 2: PRODUCER}[weight.dim()])
    for state in states:
        hidden = rec.meet(hidden, rec.get(state).dims.get(state.dim() - 1), _STATE)
    rows, columns = weights[0].shape
    width = extent(hidden, rows // gates)
    rec.cost("recurrent layer", *places, gates, width, extent(source, columns))
    rec.cost("recurrent layer", *places, gates, width, width)
    return hidden


def _meet_gates(rec: Recorder, hidden: Vector | None, rows: Vector, gates: int) -> Vector | None:
    """The rows of a weight lie gate after gate, in each the hidden units in the same order."""
    size = len(rows) // gates
    row = split_vector(rec, rows, (gates, size), keep=1, what="the gates of a recurrent layer")
    if size == 1:
        return rec.meet(hidden, None, _LAYER)
    return rec.meet(hidden, row, _LAYER)


@rule(
    "mkldnn_rnn_layer",
    reads="input weight0 weight1 weight2 weight3 hx_ cx_ mode",
    # The sizes are those of the weights; the rest says which places come first.
    ignores="reverse batch_sizes hidden_size num_layers has_biases bidirectional batch_first",
)
def mkldnn_rnn_layer(
    rec: Recorder, func: Op, out: Any, x: Tensor,
    w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, hx: Tensor, cx: Tensor,
    reverse: bool, batch_sizes: Any, mode: int, *args: Any, **kwargs: Any,
) -> None:  # fmt: skip
    labels = rec.get(x)
    biases = [b for b in (b_ih, b_hh) if b.numel()]
    places = [labels.dims.get(d, n) for d, n in enumerate(x.shape[:-1])]
    source, weights = labels.dims.get(x.dim() - 1), [w_ih, w_hh, *biases]
    hidden = _layer(rec, source, weights, _GATES[mode], (hx, cx), places)
    for t in tensors_in(out):
        dims: dict[int, Vector] = {}
        if hidden is not None and t.shape[-1] == len(hidden):
            dims[t.dim() - 1] = hidden
        rec.set(t, dims, weight=False)


@rule(
    "_cudnn_rnn", "miopen_rnn",
    reads="input weight weight_buf hx cx dropout_state",
    # All that it touches stays.
    ignores="weight_stride0 mode hidden_size proj_size num_layers batch_first dropout "
    "bidirectional batch_sizes",
)  # fmt: skip
def rnn_on_a_gpu(
    rec: Recorder, func: Op, out: Any, x: Tensor, weights: Sequence[Tensor], *args: Any
) -> None:
    """All layers as one operator, whose weights lie in one buffer: they stay.

    Each weight works at every place.
    """
    for weight in weights:
        if weight.dim() == 2:
            rec.cost("recurrent layer", *x.shape[:-1], *weight.shape)
    touched = [rec.get(t) for t in tensors_in(x, weights, args)]
    rec.unknown(name_of(func), touched, "in one buffer lie the weights of")
    for t in tensors_in(out):
        rec.set(t, {}, weight=False)
