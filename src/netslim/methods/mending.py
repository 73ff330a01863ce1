"""Whether what makes up for a cut does so: outputs are compared on examples that were held out.

A fold and fresh statistics of batch normalisation bring a cut network nearer to the uncut one on
the data they look at. Where that is not distributed as what the network was trained on, or is
little, they may take it further away elsewhere: of a pitch network whose statistics were taken anew
from other recordings than it was trained on, four frames in a hundred were lost to that alone. So
each step is kept only where it brings the outputs nearer on examples that neither scores nor least
squares have seen (`netslim.graph.modules.batches.held_out`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

import netslim.ranks as ranks
from netslim.graph.modules.ambient import eagerly
from netslim.graph.modules.batches import outputs
from netslim.graph.modules.calls import evaluating, named_outputs
from netslim.surgery.plan import PruningPlan
from netslim.surgery.ports import cut_batch, kept_outputs

Steps = tuple[str, ...]  # in words
Sums = dict[tuple[int, str, int], Tensor]  # (place of the network, of what, number of the output)
_ERROR, _SIZE = "error", "size"
_MOST = 1e9  # an error beyond it, of outputs that are not finite, say, is told as this


@dataclass(frozen=True)
class Mending:
    """What became of one step that makes up for a cut.

    Attributes:
        step: in words.
        before, after: relative squared error of the outputs on what was held out, without the step
            or one in its place, and with it, the other steps as is best in each case; None where
            nothing was held out.
        kept: whether the network has it.
    """

    step: str
    before: float | None
    after: float | None
    kept: bool

    @property
    def harmful(self) -> bool:
        """Whether the step would have taken the outputs further away."""
        return self.before is not None and self.after is not None and self.after > self.before

    def __str__(self) -> str:
        verdict = "compensation left out"
        if self.kept:
            verdict = "compensation kept"
        if self.before is None or self.after is None:
            return (
                f"{verdict}: {self.step}; there are too few examples to hold any out, so whether "
                "it brings the outputs nearer to those before the cut is not known"
            )
        text = (
            f"{verdict}: {self.step}; on batches held out the squared error of the outputs is "
            f"{self.after:.3g} with it and {self.before:.3g} without, of their size"
        )
        if not (self.kept or self.harmful):
            text += "; another brings them nearer"
        if self.harmful:
            text += ": so few or such batches tell less of the data than what it replaces"
        return text


@dataclass(frozen=True)
class Judge:
    """Compares networks with the one before the cut.

    Attributes:
        original: before the cut.
        held: batches that nothing else has looked at; none where there are too few.
        plan: of the cut, where inputs or outputs shrink with it.
    """

    original: nn.Module
    held: Sequence[Any]
    plan: PruningPlan | None = None

    def sees(self) -> bool:
        """Whether any rank has anything to judge by."""
        return any(ranks.gathered("whether any batch is held out", bool(self.held)))

    def errors(self, networks: Sequence[nn.Module]) -> list[float]:
        """Of each network the squared error of the outputs over their squares, mean over the output
        tensors.

        Where an output is not finite it is `_MOST`. The judge can see.
        """
        own = ranks.everywhere("outputs after the cut", lambda: self._sums(networks))
        sums = ranks.summed("errors of the outputs", own)
        return [_mean(sums, place) for place in range(len(networks))]

    def _sums(self, networks: Sequence[nn.Module]) -> Sums:
        sums: Sums = {}
        for batch in self.held:
            wanted = self._wanted(batch)
            if self.plan is not None:
                batch = cut_batch(self.original, batch, self.plan)
            for place, network in enumerate(networks):
                found = [_exact(tensor) for _, tensor in _outputs(network, batch)]
                for number, (right, now) in enumerate(zip(wanted, found, strict=True)):
                    for kind, tensor in ((_ERROR, now - right), (_SIZE, right)):
                        key = (place, kind, number)
                        square = torch.linalg.vector_norm(tensor).square()
                        sums[key] = sums.get(key, torch.zeros(())) + square
        return sums

    def _wanted(self, batch: Any) -> list[Tensor]:
        """What the network before the cut puts out, as far as the cut one does, too."""
        outputs = _outputs(self.original, batch)
        if self.plan is None:
            return [_exact(tensor) for _, tensor in outputs]
        return [_exact(tensor) for tensor in kept_outputs(outputs, self.plan)]


def nearest(ways: Mapping[Steps, nn.Module], judge: Judge) -> tuple[Steps, tuple[Mending, ...]]:
    """The steps whose network is nearest to the one before the cut, and what became of each.

    All are tried together, for one may help only with another: a fold that is rough makes the next
    layer's inputs too large, and with statistics of these it is the best of all.

    Args:
        ways: the steps that were taken -> the network they make; with each of them and without.
        judge: compares; it can see.
    """
    errors = dict(zip(ways, judge.errors([*ways.values()]), strict=True))
    best = min(errors, key=lambda taken: (errors[taken], len(taken)))
    mended = []
    for step in dict.fromkeys(chain.from_iterable(ways)):
        beside = set(chain.from_iterable(taken for taken in ways if step in taken))
        without = min(e for taken, e in errors.items() if step not in taken and beside >= {*taken})
        with_it = min(error for taken, error in errors.items() if step in taken)
        mended.append(Mending(step, without, with_it, step in best))
    return best, tuple(mended)


def _mean(sums: Sums, place: int) -> float:
    """Over the output tensors of the network of this place."""
    shares = [
        _share(float(total), float(sums[place, _SIZE, number]))
        for (own, kind, number), total in sums.items()
        if (own, kind) == (place, _ERROR)
    ]
    mean = sum(shares) / len(shares)
    if math.isnan(mean):
        return _MOST
    return min(mean, _MOST)


def _share(error: float, size: float) -> float:
    if not error:
        return 0.0
    if not size:
        return math.inf
    return error / size


def _outputs(model: nn.Module, batch: Any) -> list[tuple[str, Tensor]]:
    with torch.no_grad(), eagerly(), evaluating(model):
        ((_, output),) = outputs(model, [batch])
    return [(name, tensor.detach().cpu()) for name, tensor in named_outputs(output)]


def _exact(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double()


__all__ = ["Judge", "Mending", "Steps", "nearest"]
