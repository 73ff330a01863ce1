"""Inputs and outputs: what comes out of a network stays, unless it is named as free.

Channels of an output are for someone outside, who relies on them; those of an input are made
outside. So both stay, by default. Where the user says that they may shrink, channels of an output
have a role instead (`LEAVES`: they may go though no weight reads them), and an input is labelled as
if it had been computed.

Which of an input's dimensions hold channels nobody has said. So the model is run once before, with
every dimension of the free inputs labelled: those that are then tied to what a weight makes or
reads are channels; batches, steps and places are not. An input that is fed back has its channels
where the output has them, and both are tied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from netslim._support import listed
from netslim.errors import ArgumentError
from netslim.graph.modules.calls import named_outputs
from netslim.graph.modules.ports import (
    Free,
    PortName,
    found,
    input_tensors,
    inputs_by_name,
    same_name,
    tops_of_outputs,
    with_inputs,
)
from netslim.graph.tracing.atoms import CONSUMER, LEAVES, PRODUCER, Vector, distinct
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.words.phrases import enumerated

_OF_WEIGHTS = PRODUCER | CONSUMER
Dims = Mapping[str, Sequence[int]]  # name of an input -> its dimensions of channels
Tensors = Mapping[str, Tensor]


@dataclass
class Ports:
    """The free inputs and outputs of one recording.

    Attributes:
        free: as they are asked for.
        dims: what to label of the free inputs; None labels all that is longer than one entry.
        inputs: (name, dimension) -> its atoms.
        outputs: likewise.
        feeds: name of an input -> of the output that is fed back into it.
    """

    free: Free = Free()
    dims: Dims | None = None
    inputs: dict[tuple[str, int], Vector] = field(default_factory=dict)
    outputs: dict[tuple[str, int], Vector] = field(default_factory=dict)
    feeds: dict[str, str] = field(default_factory=dict)

    def open_inputs(self, recorder: Recorder, example_inputs: Any) -> None:
        """Label the free inputs; the second run of a recording has the same atoms."""
        for name, tensor in _free_inputs(recorder.model, example_inputs, self.free).items():
            dims: Sequence[int] = [dim for dim, size in enumerate(tensor.shape) if size > 1]
            if self.dims is not None:
                dims = self.dims.get(name, ())
            for dim in dims:
                if (name, dim) not in self.inputs:
                    self.inputs[name, dim] = recorder.atoms.fresh(tensor.shape[dim])
            recorder.set(tensor, {dim: self.inputs[name, dim] for dim in dims}, weight=False)

    def hold_outputs(self, recorder: Recorder, example_inputs: Any, answer: Any) -> None:
        """Channels that come out stay, those of free outputs aside.

        Of several outputs the reason names all that hold them: a state that is handed back is one,
        and not what one thinks of.

        Raises:
            ArgumentError: there is no such output, or it is not as large as the input that it is
                said to be fed back into.
        """
        outputs = named_outputs(answer)
        asked = self._asked_outputs(dict(outputs), answer, recorder.training)
        free = {name for names in asked.values() for name in names}
        atoms = recorder.atoms
        holding: dict[bytes, list[str]] = {}
        vectors: dict[bytes, Vector] = {}
        for name, tensor in outputs:
            for dim, vector in recorder.get(tensor).dims.items():
                if name in free:
                    self.outputs[name, dim] = vector
                    atoms.roles[vector[vector > 0]] |= LEAVES
                    continue
                # By class and not by atom: a state and the output before it hold the same channels.
                key = distinct(atoms.find(vector)).tobytes()
                vectors[key] = vector
                holding.setdefault(key, []).append(name)
        for key, names in holding.items():
            reason = "it is an output of the network"
            if len(outputs) > 1:
                reason += f", {enumerated([*dict.fromkeys(names)], 4)}"
            atoms.freeze(vectors[key], reason)
        if self.free.inputs and not recorder.training:
            known, inputs = _asked_inputs(recorder.model, example_inputs, self.free)
            self.feeds = _fed(self.free, known, asked, inputs, dict(outputs))
            self._feed_back(recorder, inputs)

    def _asked_outputs(
        self, outputs: Tensors, answer: Any, training: bool
    ) -> dict[PortName, list[str]]:
        """What was asked for -> the full names of these outputs."""
        tops, names = tops_of_outputs(answer), {}
        for asked in self.free.outputs:
            try:
                names[asked] = found(asked, tops, outputs, "output")
            except ArgumentError:
                if not training:  # when a network may put out something else
                    raise
        return names

    def _feed_back(self, recorder: Recorder, inputs: Tensors) -> None:
        """Tie each free input to the output that is fed back into it."""
        for source, target in self.feeds.items():
            for dim in range(inputs[source].dim()):
                read, made = self.inputs.get((source, dim)), self.outputs.get((target, dim))
                if read is not None or made is not None:
                    recorder.meet(read, made, f"{source}, which {target} is fed back into")

    def channels(self, recorder: Recorder) -> Dims:
        """The dimensions of the free inputs that are channels, after all of them were labelled."""
        atoms = recorder.atoms
        roles = np.zeros_like(atoms.roles)
        np.bitwise_or.at(roles, atoms.find(np.arange(len(roles))), atoms.roles)
        dims: dict[str, list[int]] = {}
        for (name, dim), vector in self.inputs.items():
            made = self.outputs.get((self.feeds.get(name, ""), dim), vector)
            if (roles[atoms.find(np.concatenate([vector, made]))] & _OF_WEIGHTS).any():
                dims.setdefault(name, []).append(dim)
        return dims


def apart(model: nn.Module, example_inputs: Any, free: Free) -> Any:
    """The inputs, where each free one is a tensor of its own: ``(zeros, zeros)`` may be one.

    Raises:
        ArgumentError: there is no such input.
    """
    seen: set[int] = set()
    own = {}
    for name, tensor in _free_inputs(model, example_inputs, free).items():
        if id(tensor) in seen:
            own[name] = tensor.clone()
        seen.add(id(tensor))
    return with_inputs(model, example_inputs, own)


def _free_inputs(model: nn.Module, example_inputs: Any, free: Free) -> dict[str, Tensor]:
    if not free.inputs:
        return {}
    asked, tensors = _asked_inputs(model, example_inputs, free)
    return {name: tensors[name] for names in asked.values() for name in names}


def _asked_inputs(
    model: nn.Module, example_inputs: Any, free: Free
) -> tuple[dict[PortName, list[str]], Tensors]:
    """What was asked for -> the full names of these inputs; and the tensors of all inputs."""
    tensors = input_tensors(model, example_inputs)
    tops = [name for name, _ in inputs_by_name(model, example_inputs)]
    return {name: found(name, tops, tensors, "input") for name in free.inputs}, tensors


def _fed(
    free: Free,
    inputs: Mapping[PortName, list[str]],
    outputs: Mapping[PortName, list[str]],
    given: Tensors,
    made: Tensors,
) -> dict[str, str]:
    """Input -> the output that is fed back into it, by their full names."""
    if free.in_order:
        sources = {n: given[n] for names in inputs.values() for n in names}
        return _alike(sources, {n: made[n] for names in outputs.values() for n in names})
    pairs: dict[str, str] = {}
    for source, target in free.inputs.items():
        if target is not None:
            read = [tuple(given[n].shape) for n in inputs[source]]
            put_out = [tuple(made[n].shape) for n in outputs[target]]
            if read != put_out:
                raise ArgumentError(
                    f"the output {target!r} {listed([*map(str, put_out)])} is not as large as the "
                    f"input {source!r} {listed([*map(str, read)])}, so it is not fed back as it is"
                )
            pairs |= zip(inputs[source], outputs[target], strict=True)
    return pairs


def _alike(inputs: Tensors, outputs: Tensors) -> dict[str, str]:
    """Input -> the output of its name; else the first of its shape that no other input has."""
    left, pairs = dict(outputs), {}
    fits: Sequence[Callable[[str, str], bool]] = (same_name, lambda *names: True)
    for fit in fits:
        for source in [name for name in inputs if name not in pairs]:
            shape = inputs[source].shape
            for target in [n for n, t in left.items() if t.shape == shape and fit(source, n)][:1]:
                del left[target]
                pairs[source] = target
    return pairs


__all__ = ["Ports", "apart"]
