"""A teacher beside one's own loss: what a cut network loses, the uncut one tells it.

Fine-tuning with the labels alone asks the cut network for what it knew before; the uncut network
knows that better than the labels do. It sees the same inputs, and the student is drawn to what it
says::

    distillation = Distillation(teacher, student)
    for inputs, labels in loader:
        outputs = student(inputs)
        loss = distillation(F.cross_entropy(outputs, labels), inputs, outputs)
        loss.backward()

Detectors and their like return losses while they train, and boxes afterwards: there is no output to
compare. There it looks at layers within both, by name. Outputs of the network are never cut, so
the last layers of its heads have the same widths in both; layers within may not, which is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from netslim._support import brief, checks_calls, is_number, listed, nearest
from netslim.errors import ArgumentError
from netslim.graph.modules.calls import as_call, tensor_leaves
from netslim.graph.modules.unwrapping import bare
from netslim.graph.modules.walk import named_modules

Distance = Literal["softened", "squared"]
_Compare = Callable[[Tensor, Tensor], Tensor]


@checks_calls
def softened(logits: Tensor, wanted: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(teacher || student) of answers that are softened by the temperature T; a scalar.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2. Softening
    divides gradients by T^2, so the factor T^2 keeps them as large whatever T is.

    Args:
        logits, wanted: (B, classes) or (B, classes, ...), the student's and the teacher's; the mean
            is that over everything but the classes.
        temperature: T, above 0.

    Example:
        >>> answers = torch.tensor([[1.0, 0.0]])
        >>> netslim.methods.softened(answers, answers)
        tensor(0.)
    """
    student, teacher = (F.log_softmax(_rows(one) / temperature, 1) for one in (logits, wanted))
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def _rows(logits: Tensor) -> Tensor:
    """(B, classes, ...) -> (B * ..., classes)"""
    if logits.dim() == 2:
        return logits
    return logits.movedim(1, -1).flatten(0, -2)


def _squared(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared difference, as a share of the mean square of what is wanted."""
    return F.mse_loss(found, wanted) / wanted.square().mean().clamp_min(1e-12)


@checks_calls
class Distillation:
    """Adds a teacher's part to any loss: ``(1 - weight) * loss + weight * distance``.

    Args:
        teacher: the network before the cut, or any that takes the same inputs; runs in evaluation
            mode and without gradients. Its parameters and its mode stay as they are.
        student: the network that is trained.
        weight: of the teacher's part, 0 to 1.
        distance: of the two outputs. ``"softened"``: `softened`, for classes along the second axis;
            ``"squared"``: the mean squared difference, as a share of the mean square of what the
            teacher says, for anything else; or a function of (student's, teacher's) tensor.
        temperature: of ``"softened"``, above 0.
        layers: names or patterns of modules in both networks, such as ``"head.*.cls_logits"``,
            whose outputs are compared in place of the networks' own.

    Raises:
        ArgumentError: a number is out of range, a word misspelt, or no layer has a name in both.

    Example:
        >>> import copy
        >>> distillation = netslim.methods.Distillation(copy.deepcopy(model), model, weight=0.5)
        >>> labels = torch.tensor([0, 1, 2, 1])
        >>> outputs = model(images)
        >>> loss = distillation(F.cross_entropy(outputs, labels), images, outputs)
        >>> loss.backward()
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        weight: float = 0.5,
        distance: Distance | Callable[[Tensor, Tensor], Tensor] = "softened",
        temperature: float = 4.0,
        layers: Sequence[str] = (),
    ) -> None:
        call = "Distillation(teacher, student)"
        self._teacher = bare(teacher, ArgumentError, call=call)
        self._weight, self._compare = _checked(weight, distance, temperature)
        inner = bare(student, ArgumentError, call=call)
        self._names = list(_matching(self._teacher, inner, layers))
        self._seen: dict[str, list[Tensor]] = {}
        self._wanted: dict[str, list[Tensor]] = {}
        self._hooks: list[RemovableHandle] = []
        if self._names:
            self._watch(inner, self._seen)
            self._watch(self._teacher, self._wanted)

    def __call__(self, loss: Tensor, inputs: Any, outputs: Any = None) -> Tensor:
        """The loss with the teacher's part, a scalar; call it after the student ran on ``inputs``.

        Args:
            loss: one's own, of whatever kind; a scalar.
            inputs: what the student was given, a tensor, a tuple of positional inputs or a dict of
                keyword inputs; labels that a network takes may be left out where it needs none.
            outputs: what the student returned: tensors, in whatever containers; not needed where
                ``layers`` are compared.

        Raises:
            ArgumentError: the two differ in number or shape, or a layer has not run.
        """
        wanted, found = self._taught(inputs), self._found(outputs)
        pairs = list(_paired(found, wanted))
        distance = torch.stack([self._compare(one, other) for one, other in pairs]).mean()
        return (1 - self._weight) * loss + self._weight * distance

    def remove(self) -> None:
        """Look at layers no longer, so that the student can be saved without what was seen."""
        while self._hooks:
            self._hooks.pop().remove()

    def _watch(self, network: nn.Module, seen: dict[str, list[Tensor]]) -> None:
        """Keep what the layers give in a run; a head may run several times in one, for each size
        of its inputs.
        """

        def begin(*_: Any) -> None:
            seen.clear()

        self._hooks.append(network.register_forward_pre_hook(begin))
        for name in self._names:
            layer = network.get_submodule(name)
            self._hooks.append(layer.register_forward_hook(partial(_note, seen, name)))

    def _found(self, outputs: Any) -> dict[str, list[Tensor]]:
        if not self._names:
            return {"the outputs": _numbers(outputs)}
        return dict(self._seen)

    @torch.no_grad()
    def _taught(self, inputs: Any) -> dict[str, list[Tensor]]:
        modes = {module: module.training for module in self._teacher.modules()}
        args, kwargs = as_call(inputs)
        try:
            outputs = self._teacher.eval()(*args, **kwargs)
        finally:
            for module, mode in modes.items():
                module.training = mode
        if not self._names:
            return {"the outputs": _numbers(outputs)}
        return dict(self._wanted)


def _note(
    seen: dict[str, list[Tensor]], name: str, module: nn.Module, args: Any, outputs: Any
) -> None:
    seen.setdefault(name, []).extend(_numbers(outputs))


def _numbers(outputs: Any) -> list[Tensor]:
    return [tensor for tensor in tensor_leaves(_plain(outputs)) if tensor.is_floating_point()]


def _plain(outputs: Any) -> Any:
    """Mappings of others' classes, as Hugging Face's outputs are, as plain ones."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    return outputs


def _checked(weight: float, distance: Any, temperature: float) -> tuple[float, _Compare]:
    if not (is_number(weight) and 0 <= weight <= 1):
        raise ArgumentError(f"weight, the teacher's share, must be 0 to 1, got {brief(weight)}")
    if not (is_number(temperature) and temperature > 0):
        raise ArgumentError(f"temperature must be above 0, got {brief(temperature)}")
    if callable(distance):
        return weight, distance
    if distance not in (known := get_args(Distance)):
        raise ArgumentError(f"unknown distance {distance!r}{nearest(distance, known)}")
    if distance == "squared":
        return weight, _squared
    return weight, partial(softened, temperature=temperature)


def _matching(teacher: nn.Module, student: nn.Module, layers: Sequence[str]) -> Iterator[str]:
    """Names of modules that both have, in order."""
    mine = set(named_modules(student).values())
    both = [name for name in named_modules(teacher).values() if name and name in mine]
    for pattern in layers:
        found = [name for name in both if fnmatchcase(name, pattern)]
        if not found:
            raise ArgumentError(
                f"layers: teacher and student have no module {pattern!r} in common"
                f"{nearest(pattern, both)}"
            )
        yield from found


def _paired(
    found: Mapping[str, list[Tensor]], wanted: Mapping[str, list[Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    for name in wanted:
        mine, theirs = found.get(name, []), wanted[name]
        shapes = [[str(tuple(one.shape)) for one in tensors] for tensors in (mine, theirs)]
        if shapes[0] != shapes[1] or not theirs:
            told = [listed(one, most=4) or "none" for one in shapes]
            raise ArgumentError(
                f"{name}: the student's tensors have the shapes {told[0]}, and the teacher's "
                f"{told[1]}: run the student on the same inputs just before, "
                "pass what it returned, or name layers=[...] whose widths were not cut"
            )
        yield from zip(mine, theirs, strict=True)
    if not wanted:
        raise ArgumentError("no layer that is compared has run in the teacher")


__all__ = ["Distillation", "softened"]
