"""Runs of a model's code without its computations, to see who reads numbers of channels unseen.

See pretended.py for the idea. The first run has noted the calls of PyTorch that the code makes
(log.py). Run again, each call is compared with the one that was noted and answered with what came
out then, but sizes are pretended: as if all channels but one were gone, then as if half of them
were. The first call that is not the noted one tells that somebody has read such a size, and where.
Then fewer sizes are pretended, half of them and so on, until it is known which; those channels
stay.

A run may differ from the first one though nobody read a size: a table of the process's holds by now
what was computed for it, or the code draws numbers of its own. What differs is run once more, and
then without any pretence; where even that differs, nothing can be learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch.overrides import TorchFunctionMode

from netslim.graph.tracing.casts import expected
from netslim.graph.tracing.log import (
    Given,
    Hollow,
    Iterated,
    Known,
    Log,
    Told,
    rebuilt,
    tensors_among,
)
from netslim.graph.tracing.sizes import Size, Value

Pretend = Callable[[Size], int]


class Parted(BaseException):
    """The code makes another call than before, of which no code may take notice; with its line."""


class Rerun(TorchFunctionMode):
    """Answers the calls of a run as they were answered in the run that was noted."""

    def __init__(
        self, log: Log, pretend: Pretend, where: Callable[[], str], contents: bool
    ) -> None:
        super().__init__()
        self._log, self._pretend, self._where, self._contents = log, pretend, where, contents
        self.known = Known(log.names)
        self._next = 0

    def begin(self, args: Any, kwargs: Any) -> None:
        """Number what the model is given."""
        for number, tensor in enumerate(tensors_among(args, kwargs), 1):
            self.known.number(tensor, number)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._next == len(self._log.entries):
            raise Parted(self._where())
        entry = self._log.entries[self._next]
        told = self.known.given(func, args, kwargs)
        if entry.function != func or not self._same(entry.told, told, entry.guessed):
            raise Parted(self._where())
        self._next += 1
        made = self._made(entry.out, args, kwargs)
        if isinstance(made, Iterated):
            return iter(made)
        return made

    def finish(self, outputs: Any) -> None:
        """Compare what the model gave in the end."""
        if self._next < len(self._log.entries) or not self._same(
            self._log.end, self.known.told(outputs)
        ):
            raise Parted("")

    def _same(self, one: Told | None, other: Told, guessed: Collection[Size] = ()) -> bool:
        if one is None:
            return False
        if guessed:
            if not expected(guessed, self._pretend).met_by(one.arguments, other.arguments):
                return False
        elif one.arguments != other.arguments:
            return False
        return not self._contents or one.contents == other.contents

    def _made(self, out: Any, args: Any, kwargs: Any) -> Any:
        """What came out of the noted call, without values."""
        if isinstance(out, Hollow):
            known = self.known.numbered(out.number)
            if known is None:
                known = self.known.number(out.made(), out.number)
            return known
        if isinstance(out, Given):
            return tensors_among(args, kwargs)[out.position]
        if isinstance(out, Size):
            return self._pretend(out)
        if isinstance(out, Value):
            return float.__float__(out)
        return rebuilt(out, lambda entry: self._made(entry, args, kwargs))


__all__ = ["Parted", "Pretend", "Rerun"]
