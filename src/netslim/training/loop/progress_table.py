"""What several runs show that work side by side: each sends it, and one process shows them all.

On a terminal that is one table with a line for each run, and remarks above it; anywhere else the
lines that each of them would print, behind its name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table

from netslim.training.loop.classifier import Classifier
from netslim.training.loop.progress import Display, StageBar, in_words

_REFRESH = 0.2  # seconds
_NAMED = "run"
_COLUMNS = ("stage", "epoch", "loss", "accuracy", "validation", "left")


@dataclass(frozen=True)
class Line:
    """Something that a run says."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Figures:
    """How far a run is.

    Attributes:
        stage: its folder, or what else it is about.
        done: epochs of the stage, the one at work in part.
        epochs: how many the stage has.
        row: of metrics.csv, of the last finished epoch.
        left: seconds that the stage will take; None where that is not known yet.
        line: what is said of an epoch that has just ended.
    """

    stage: str
    done: float = 0.0
    epochs: int = 0
    row: dict[str, Any] | None = None
    left: float | None = None
    line: str = ""


Message = Line | Figures
Send = Callable[[Message], None]


class Sending(Display):
    """Sends what a run shows to the process that shows it."""

    def __init__(self, send: Send) -> None:
        super().__init__(Console(quiet=True))
        self.send = send

    def say(self, text: str) -> None:
        self.send(Line(text))

    def warn(self, text: str) -> None:
        self.send(Line(f"warning: {text}", warning=True))

    @contextmanager
    def training(self, label: str, epochs: int) -> Iterator[StageBar]:
        yield _SendingBar(self, label, epochs)


class _SendingBar(StageBar):
    """Sends how far a training stage is; it reads nothing from the device for that."""

    def __init__(self, display: Sending, label: str, epochs: int) -> None:
        super().__init__(display, label, epochs)
        self.send = display.send
        self.send(Figures(label, epochs=epochs))

    def tell(self) -> None:
        assert self.row is not None
        self.send(self._figures(float(self.row["epoch"]), self.line()))

    def step(self, module: Classifier, done: int, steps: int) -> None:
        now = time.monotonic()
        if now - self.last >= _REFRESH:
            self.last = now
            self.send(self._figures(module.current_epoch + done / steps, ""))

    def _figures(self, done: float, line: str) -> Figures:
        left = None
        if self.row is not None:
            left = self.left() * (self.epochs - done) / max(1, self.epochs - self.row["epoch"])
        return Figures(self.label, done, self.epochs, self.row, left, line)


class RunsTable:
    """Shows what runs send, as a context manager.

    Args:
        names: of the runs.
        console: standard error when not given; one that is not a terminal gets plain lines.
    """

    def __init__(self, names: Sequence[str], console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.rows = {name: Figures("starting") for name in names}
        self.last = 0.0
        self.live: Live | None = None
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def __enter__(self) -> RunsTable:
        if self.live is not None:
            self.live.start()
            self._refresh()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def take(self, name: str, message: Message) -> None:
        """Show what a run has sent."""
        if isinstance(message, Line):
            self._print(name, message)
            return
        self.rows[name] = message
        if self.live is None and message.line:
            self._print(name, Line(message.line))
        if time.monotonic() - self.last >= _REFRESH:
            self._refresh()

    def ended(self, name: str, how: str) -> None:
        """A run has ended: ``finished`` or ``failed``."""
        self.rows[name] = replace(self.rows[name], stage=how, epochs=0, left=None)
        self._print(name, Line(how))
        self._refresh()

    def table(self) -> Table:
        """A line for each run; names are as long as the terminal has room beside the figures."""
        others = self._table([""] * len(self.rows))
        used = Measurement.get(self.console, self.console.options, others).maximum - len(_NAMED)
        return self._table(told_apart([*self.rows], self.console.width - used))

    def _table(self, names: Sequence[str]) -> Table:
        found = Table(box=box.SIMPLE, pad_edge=False, padding=0)
        found.add_column(_NAMED, overflow="fold")  # all of a name that is too long, on more lines
        found.add_column(_COLUMNS[0], no_wrap=True)
        for column in _COLUMNS[1:]:
            found.add_column(column, justify="right", no_wrap=True)
        for name, figures in zip(names, self.rows.values(), strict=True):
            found.add_row(name, figures.stage, *_cells(figures))
        return found

    def _refresh(self) -> None:
        self.last = time.monotonic()
        if self.live is not None:
            self.live.update(self.table(), refresh=True)

    def _print(self, name: str, line: Line) -> None:
        style = None
        if line.warning:
            style = "yellow"
        width = max(map(len, self.rows))
        text = f"{name:<{width}}  {line.text}"
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def told_apart(names: Sequence[str], room: int) -> list[str]:
    """Names of runs, in `room` letters if that can be, without what does not tell them apart.

    ::

        runs/digits-seed-0, runs/digits-seed-1   without the folder they all lie in
        digits-seed-0, digits-seed-1             in ten letters: digits-s…0, digits-s…1

    Where what differs is longer than that by itself, it is all there.
    """
    folder = names[0][: _alike(names)].rfind(os.sep) + 1
    names = [name[folder:] for name in names]
    if max(map(len, names)) <= room:
        return names
    head = _alike(names)
    tail = _alike([name[head:][::-1] for name in names])
    own = [name[head : len(name) - tail] for name in names]
    spare = room - max(map(len, own))
    if spare < (head > 0) + (tail > 0):
        return names
    behind = min(tail, spare // 2)
    before = _beginning(names[0][:head], spare - behind)
    after = _beginning(names[0][::-1][:tail], behind)[::-1]
    return [f"{before}{text}{after}" for text in own]


def _alike(texts: Sequence[str]) -> int:
    """How many letters all of them begin with."""
    return len(os.path.commonprefix(texts))  # noqa: RUF071 - letters are meant, not folders


def _beginning(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    return f"{text[: room - 1]}…"


def _cells(figures: Figures) -> Iterator[str]:
    """Epoch, loss, accuracies and time left; empty where there are none."""
    epoch = left = ""
    if figures.epochs:
        epoch = f"{figures.done:.1f}/{figures.epochs}"
    if figures.left is not None:
        left = in_words(figures.left)
    yield epoch
    yield from _of_row(figures.row or {})
    yield left


def _of_row(row: dict[str, Any]) -> Iterator[str]:
    for key, form in (("train_loss", ".4f"), ("train_accuracy", ".2%"), ("val_accuracy", ".2%")):
        if row.get(key) is None:
            yield ""
        else:
            yield format(row[key], form)
