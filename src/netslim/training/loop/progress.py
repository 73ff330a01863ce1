"""What a run shows while it works: a live bar on a terminal, one line an epoch anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from netslim.training.loop.deadline import Deadline

if TYPE_CHECKING:
    from netslim.training.loop.classifier import Classifier

_REFRESH = 0.2  # seconds
_WORTH_TELLING = 10  # seconds


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch in words: losses, accuracies, share of scales near zero."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {row['train_loss']:.4f}"]
    parts.append(f"accuracy {row['train_accuracy']:.2%}")
    if row["val_accuracy"] is not None:
        parts.append(f"validation {row['val_accuracy']:.2%}")
    if row["near_zero"] is not None:
        parts.append(f"near zero {row['near_zero']:.1%}")
    if row["zero"] is not None:
        parts.append(f"zeroed {row['zero']:.1%}")
    if row["deviation"] is not None:
        parts.append(f"deviation {row['deviation']:.2g}")
    return "  ".join([*parts, f"{row['seconds']:.1f} s"])


def in_words(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3 h 5 min``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


class Display:
    """Writes to a rich console; one that is not a terminal gets plain lines.

    Args:
        console: standard error when not given.
        deadline: when the training that is shown has to stop; never when not given.
    """

    def __init__(self, console: Console | None = None, deadline: Deadline | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.deadline = deadline or Deadline()
        self._said: set[str] = set()
        self._live = False  # whether a bar is drawn; a second one would write over it

    def say(self, text: str) -> None:
        """One plain line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def say_once(self, text: str) -> None:
        """A line that holds for several stages or candidates alike."""
        if text not in self._said:
            self._said.add(text)
            self.say(f"note: {text}")

    def warn(self, text: str) -> None:
        """One line that stands out."""
        self.console.print(
            f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )

    @contextmanager
    def training(self, label: str, epochs: int) -> Iterator[StageBar]:
        """Show one training stage, whose epochs and steps keep to the deadline."""
        self.deadline.begin()
        shown = StageBar(self, label, epochs)
        with self._drawing(), shown.bar:
            yield shown
        if shown.row is not None and self.console.is_terminal:
            self.say(f"{label}  {epoch_line(shown.row, epochs)}")

    @contextmanager
    def counting(self, label: str) -> Iterator[Callable[[str, int, int], object]]:
        """Show a count of what takes long, with the time that is left; nothing where there is no
        terminal, until it has begun, or within another one.

        Yields:
            What is called with (what is at work, how many are done, how many there are).
        """
        columns = (TextColumn(f"{label}  {{task.description}}"), BarColumn(), TimeRemainingColumn())
        live = self.console.is_terminal and not self._live
        # Drawn where something is counted alone: a thread that draws would disturb what is timed.
        bar = Progress(
            *columns, console=self.console, disable=not live, transient=True, auto_refresh=False
        )
        tasks: list[TaskID] = []

        def show(what: str, done: int, total: int) -> None:
            if not tasks:
                bar.start()
                tasks.append(bar.add_task(what, total=total))
            bar.update(tasks[0], description=what, completed=done, total=total, refresh=True)

        try:
            with self._drawing():
                yield show
        finally:
            bar.stop()

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        before, self._live = self._live, True
        try:
            yield
        finally:
            self._live = before


def silent() -> Display:
    """One that shows nothing: for all processes of a run but the first."""
    return Display(Console(quiet=True))


class StageBar:
    """The bar of one training stage, or its lines where there is no terminal."""

    def __init__(self, display: Display, label: str, epochs: int) -> None:
        self.display, self.label, self.epochs = display, label, epochs
        self.row: dict[str, Any] | None = None
        self.seconds: list[float] = []
        self.last = 0.0
        live = display.console.is_terminal
        columns = (TextColumn(f"{label}  {{task.description}}"), BarColumn(), TimeRemainingColumn())
        self.bar = Progress(
            *columns, console=display.console, disable=not live, transient=True, auto_refresh=False
        )
        self.task = self.bar.add_task("starting", total=None)

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is finished."""
        self.row = row
        self.seconds.append(row["seconds"])
        self.tell()
        self.display.deadline.epoch(self.epochs - row["epoch"])

    def tell(self) -> None:
        """Say what the last epoch has brought, where no bar is seen."""
        if not self.display.console.is_terminal:
            self.display.say(self.line())

    def line(self) -> str:
        """What the last epoch has brought, in words."""
        assert self.row is not None
        said = f"{self.label}  {epoch_line(self.row, self.epochs)}"
        if self.left() < _WORTH_TELLING:
            return said
        return f"{said}  {in_words(self.left())} left"

    def left(self) -> float:
        """Seconds that the stage will take by the mean of its epochs, of which one is finished."""
        assert self.row is not None
        return float((self.epochs - self.row["epoch"]) * sum(self.seconds) / len(self.seconds))

    def step(self, module: Classifier, done: int, steps: int) -> None:
        """A step is finished.

        The figures are read only as often as they are shown, for that makes a GPU wait.
        """
        self.display.deadline.step()
        now = time.monotonic()
        if self.bar.disable or now - self.last < _REFRESH:
            return
        self.last = now
        seen = module.train_tally.means()
        epoch = module.current_epoch
        text = f"epoch {epoch + 1}/{self.epochs}"
        text += f"  loss {seen.loss + seen.penalty:.4f}  accuracy {seen.accuracy:.1%}"
        if self.row and self.row["near_zero"] is not None:
            text += f"  near zero {self.row['near_zero']:.1%}"
        self.bar.update(
            self.task,
            description=text,
            completed=epoch * steps + done,
            total=self.epochs * steps,
            refresh=True,
        )
