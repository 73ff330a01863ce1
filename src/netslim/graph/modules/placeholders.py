"""What stands in the place of modules of a block that is gone.

Where a module without the block hands on what it is given, that is an `nn.Identity`, or the
activation that it ends with. Where it has more arguments or another answer, as an attention that
returns a pair, and where a sum in a larger forward still asks for the branch, it is a
`Placeholder`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from netslim.graph.modules.walk import named_modules

STREAM = "x"


@dataclass(frozen=True)
class Replacement:
    """What stands in the place of one module.

    Attributes:
        module: its path.
        answer: JSON of what it gives: ``"x"`` for the argument ``source``, a number for zeros of so
            many dimensions that broadcast, ``{"none": 1}`` for that argument without any entry
            along dimension 1, null, or ``{"tuple": [...]}`` and ``{"list": [...]}`` of these.
            Empty: it hands on its only argument.
        source: position or name of an argument that is a tensor, ``"0.1"`` of one in a list.
        child: the part of it, by its path within, that runs alone in its place; ``""`` for none.
    """

    module: str
    answer: str = ""
    source: str = "0"
    child: str = ""

    def __str__(self) -> str:
        return f"{self.module}: {self._said()}"

    def _said(self) -> str:
        if self.child:
            return f"only its {self.child} stays"
        if self.passes:
            return "hands on what it is given"
        if '"none"' in self.answer:
            return "makes no channels"
        return "gives zeros in place of the branch"

    @property
    def passes(self) -> bool:
        """Whether it hands on what it is given."""
        return not self.answer or STREAM in self.answer

    def made(self, module: nn.Module) -> nn.Module:
        """What stands in the place of ``module``.

        Raises:
            AttributeError: the part that stays is not there.
        """
        new: nn.Module = nn.Identity()
        if self.child:
            part = module.get_submodule(self.child)
            if getattr(part, "inplace", False):  # into a sum then, and into what others hold now
                part = copy.copy(part)
                vars(part)["inplace"] = False
            return part
        if self.answer:
            new = Placeholder(self.answer, self.source)
        if isinstance(
            module, nn.MultiheadAttention
        ):  # which PyTorch's encoder layers ask for these
            vars(new).update(batch_first=module.batch_first, in_proj_bias=None)
        return new.train(module.training)


class Placeholder(nn.Module):
    """Gives one of its arguments on, or zeros that broadcast, as `Replacement.answer` says.

    Example:
        >>> from netslim.graph.modules.placeholders import Placeholder
        >>> Placeholder('{"tuple": [3, null]}', "0")(torch.ones(2, 5, 8), need_weights=False)
        (tensor([[[0.]]]), None)
    """

    def __init__(self, answer: str, source: str) -> None:
        super().__init__()
        self.answer, self.source = answer, source
        self.parts = json.loads(answer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        key, *places = self.source.split(".")
        given: Any
        if key.isdecimal():
            given = args[int(key)]
        else:
            given = kwargs[key]
        for place in places:
            given = given[int(place)]
        return _filled(self.parts, given)

    def extra_repr(self) -> str:
        return self.answer


def _filled(parts: Any, given: Tensor) -> Any:
    if parts == STREAM:
        return given
    if isinstance(parts, int):
        return given.new_zeros((1,) * parts)
    if isinstance(parts, dict):
        ((kind, entries),) = parts.items()
        if kind == "none":
            return given.narrow(entries, 0, 0)
        filled = [_filled(entry, given) for entry in entries]
        return filled if kind == "list" else tuple(filled)
    return None


def is_answer(text: str) -> bool:
    """Whether this is what `Replacement.answer` may be."""
    if not text:
        return True
    try:
        return _known(json.loads(text))
    except (ValueError, RecursionError):
        return False


def _known(parts: Any) -> bool:
    if isinstance(parts, dict):
        if set(parts) == {"none"}:
            return bool(parts["none"] == 1)
        entries = parts.get("tuple", parts.get("list"))
        return len(parts) == 1 and isinstance(entries, list) and all(map(_known, entries))
    if isinstance(parts, int) and not isinstance(parts, bool):
        return 0 <= parts < 16
    return parts is None or parts == STREAM


def places_of(model: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(the module that holds it, under which name) of every place where a module is."""
    for holder in named_modules(model):
        for name, child in holder._modules.items():
            if child is module:
                yield holder, name


def within(name: str, path: str) -> bool:
    """Whether a tensor or module of this name is in the module at ``path``."""
    return name.startswith(f"{path}.")


__all__ = ["STREAM", "Placeholder", "Replacement", "is_answer", "places_of", "within"]
