"""Hold the channels whose number the code reads where nobody sees it; see rerun.py for how."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from netslim.graph.modules.configurations import name_read
from netslim.graph.modules.repeated_sizes import said_again
from netslim.graph.tracing.atoms import ATOM, Vector, among, distinct
from netslim.graph.tracing.log import Log
from netslim.graph.tracing.places import of_user
from netslim.graph.tracing.pretended import Pretended
from netslim.graph.tracing.recorder import Recorder
from netslim.graph.tracing.records import ValueUse
from netslim.graph.tracing.remembered import Bindings, Settled, settle_sizes
from netslim.graph.tracing.rerun import Parted, Pretend, Rerun
from netslim.graph.tracing.running import run_again
from netslim.graph.tracing.sizes import Size

_REASON = (
    "the code reads their number where no trace can follow it, as range, math.log2, an index or a "
    "hash do"
)


def settle(recorder: Recorder, example_inputs: Any) -> Bindings:
    """Settle the sizes of a recording, and hold channels whose number is read unseen."""
    settled = settle_sizes(recorder)
    found: list[tuple[Vector, str]] = []
    unproven = recorder.casts.uses()
    if recorder.log is not None:
        search = _Search(recorder, recorder.log, settled, example_inputs)
        found = search.found()
        if search.learnt:
            unproven = [use for use in unproven if not _proven(use, settled, found)]
    if unproven:
        recorder.values += unproven
        settled = settle_sizes(recorder)
    for roots, where in found:
        recorder.atoms.freeze(roots, f"{_REASON}{where}")
    if found:
        settled = settle_sizes(recorder)
    return _with_repetitions(recorder, settled.bindings)


def _proven(use: ValueUse, settled: Settled, found: Sequence[tuple[Vector, str]]) -> bool:
    """Whether a plain number that was made of a size went where it was taken to go, and only there.

    What may go, but not exactly, has not been looked at.
    """
    live = settled.live_among(use.expression)
    held = [among(live, roots).any() for roots, _ in found]
    return len(live) == len(settled.exact_among(use.expression)) and not any(held)


def _with_repetitions(recorder: Recorder, bindings: Bindings) -> Bindings:
    """Attributes that say what another one says follow the same."""
    repeated = {
        (path, other): bound
        for (path, name), bound in bindings.items()
        if (other := said_again(recorder.model.get_submodule(path), name)) is not None
    }
    return {**bindings, **repeated}


class _Search:
    """Which sizes are read unseen: by pretending that they were others.

    Attributes:
        learnt: whether the runs could tell it of all that the code does.
    """

    _again: Callable[[Rerun, Pretend], None]  # runs the code

    def __init__(self, recorder: Recorder, log: Log, settled: Settled, inputs: Any) -> None:
        self._recorder, self._log, self._settled, self._inputs = recorder, log, settled, inputs
        self._contents = self.learnt = True
        suspects = {roots.tobytes(): roots for roots in self._suspects() if len(roots) > 1}
        # Of each size a channel is left, for no cut leaves none.
        self._left = np.array([roots[0] for roots in suspects.values()], dtype=ATOM)
        self._suspected = list(suspects.values())

    def _suspects(self) -> Iterator[Vector]:
        """The classes that may go, exactly, of each size that the code may have read."""
        recorder = self._recorder
        once = {id(vector): number for number, vector in enumerate(recorder.sizes)}
        for number in once.values():
            yield self._settled.exact_among(("size", recorder.trace, number))
        for module, name in recorder.attributes:
            if name_read(name) in self._log.read:
                yield self._settled.exact_among(("attribute", module, name))

    def found(self) -> list[tuple[Vector, str]]:
        """(classes, the line where the code goes another way without some of them)."""
        if not self._suspected:
            return []
        with run_again(self._recorder, self._inputs) as self._again:
            return self._found()

    def _found(self) -> list[tuple[Vector, str]]:
        if self._parts(self._suspected) is None:
            return []
        if self._parts([]) is not None:
            # Perhaps values of tensors alone, from code that nobody sees.
            self._contents = self.learnt = False
            if self._parts([]) is not None:
                return []
        return list(self._narrowed(self._suspected))

    def _narrowed(self, suspected: Sequence[Vector]) -> Iterator[tuple[Vector, str]]:
        line = self._parts(suspected)
        if line is None:
            return
        fewer: list[tuple[Vector, str]] = []
        if len(suspected) > 1:
            half = len(suspected) // 2
            fewer += [*self._narrowed(suspected[:half]), *self._narrowed(suspected[half:])]
        yield from fewer or [(roots, line) for roots in suspected]

    def _parts(self, suspected: Sequence[Vector]) -> str | None:
        """Where the code goes another way without some of these; None if it does not."""
        gone = distinct(np.concatenate([np.empty(0, ATOM), *suspected]))
        for fewer in (gone[~among(gone, self._left)], gone[::2], *self._by_digits(suspected)):
            # Twice in a row, for what the first time puts into some table the second one finds.
            line = self._run(fewer)
            if line is not None:
                line = self._run(fewer)
            if line is not None:
                return line
        return None

    def _by_digits(self, suspected: Sequence[Vector]) -> Iterator[Vector]:
        """Trials among which any two of these differ: one is there without all but one of its
        channels, and the other is whole.

        One plain number may stand where another one should (casts.py), which shows where they are
        not alike. It is enough to take one binary digit after the other of the numbers of these.
        """
        if self._recorder.casts.made and suspected:
            for digit in range((len(suspected) - 1).bit_length()):
                some = [roots for i, roots in enumerate(suspected) if i >> digit & 1]
                gone = distinct(np.concatenate(some))
                yield gone[~among(gone, self._left)]

    def _run(self, gone: Vector) -> str | None:
        pretend = partial(self._pretended, gone)
        rerun = Rerun(self._log, pretend, self._recorder.where, self._contents)
        try:
            self._again(rerun, pretend)
        except Parted as parted:
            return str(parted)
        except Exception as error:  # a list is too short for the number
            return _line(error)
        return None

    def _pretended(self, gone: Vector, size: Size) -> int:
        truth = int.__int__(size)
        if not len(gone):
            return truth
        lie = self._settled.without(size, gone)
        if lie == truth:
            return truth
        return Pretended(lie, truth)


def _line(error: Exception) -> str:
    """``" (file.py:12)"``: the last line of the user's code that an error came through."""
    lines = [
        f" ({Path(frame.f_code.co_filename).name}:{line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if of_user(frame)
    ]
    return next(reversed(lines), "")


__all__ = ["settle"]
