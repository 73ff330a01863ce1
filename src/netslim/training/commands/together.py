"""Several runs side by side on one machine, each in a process and a run folder of its own.

Small networks leave most of a GPU, and with one thread most of the cores, without work: several of
them at once take less than one after the other. Each process reads its own data and has its own
network, and shares nothing with the others but the device. So each run is the same, bit for bit, as
one alone with as many threads.

A process and the one that has started it are joined by a line of messages. When the line breaks,
because the other has broken it or was killed, the process ends as at Ctrl-C: what is finished is
kept. So nothing goes on working for nobody.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import netslim.training.processes as processes
from netslim._support.interrupts import as_interrupts
from netslim._support.reading import first_line
from netslim.errors import NetslimError, RecipeError, TrainingError
from netslim.training.loop.progress import Display
from netslim.training.loop.progress_table import Message, RunsTable, Sending
from netslim.training.recipe.schema import Recipe
from netslim.training.stages.folder import RunFolder
from netslim.training.stages.networks import Results
from netslim.training.stages.runner import run

_TOLD = (NetslimError, OSError, KeyboardInterrupt)  # what a run ends with that is said in a line


@dataclass(frozen=True)
class Job:
    """A run among several.

    Attributes:
        recipe: from `load_recipe`.
        folder: of the run.
        command: what to type to repeat it alone.
    """

    recipe: Recipe
    folder: Path
    command: str


@dataclass(frozen=True)
class Ended:
    """How a run has ended.

    Attributes:
        job: what was to be done.
        results: the contents of results.json, where it has ended well.
        error: why not, otherwise.
        goes_on: whether the same command goes on: what netslim refuses on purpose says itself what
            to do, and would be refused again.
    """

    job: Job
    results: Results | None = None
    error: BaseException | None = None
    goes_on: bool = False

    @property
    def how(self) -> str:
        """In a word."""
        if self.error is None:
            return "finished"
        return "failed"


def together(
    jobs: Sequence[Job], *, console: Console | None = None, changed_ok: bool = False
) -> list[Ended]:
    """Carry out several runs side by side; one that fails does not end the others.

    Each has its share of the CPU threads that torch has here, and at least one, unless its recipe
    says `trainer.threads`.

    Args:
        jobs: the runs.
        console: where their progress is shown; standard error when not given.
        changed_ok: as for `netslim.training.run`.

    Returns:
        How each has ended, in the order of `jobs`.

    Raises:
        RecipeError: two runs would have one folder, or one has a folder that holds something else;
            or a launcher such as torchrun has started this process. Nothing is started then.
        KeyboardInterrupt: all have ended; each goes on from its last finished epoch.
    """
    check_jobs(jobs)
    threads = max(1, torch.get_num_threads() // max(1, len(jobs)))
    with _started(jobs, threads, changed_ok) as works:
        with RunsTable([str(job.folder) for job in jobs], console) as shown:
            _attend(works, shown)
        return [work.ended for work in works if work.ended is not None]


def in_turn(jobs: Sequence[Job], *, changed_ok: bool = False) -> list[Ended]:
    """Carry out several runs in this process, one after the other; else as `together`."""
    check_jobs(jobs)
    found, display = [], Display()
    for job in jobs:
        display.say(f"{job.folder}:")
        try:
            results = run(job.recipe, job.folder, command=job.command, changed_ok=changed_ok)
        except (Exception, SystemExit) as problem:
            ended = _failed(job, problem)
            display.warn(f"{job.folder}: {ended.error}")
            found.append(ended)
        else:
            found.append(Ended(job, results))
    return found


def check_jobs(jobs: Sequence[Job]) -> None:
    """Refuse what can be seen to go wrong before anything is started.

    Raises:
        RecipeError: as `together`.
    """
    if processes.place().world > 1:
        raise RecipeError(
            "several runs at once are started from one process: leave torchrun or srun out, or "
            "start one run with it"
        )
    seen = set()
    for job in jobs:
        place = job.folder.resolve()
        if place in seen:
            raise RecipeError(
                f"two of the runs would have the folder {job.folder}: each needs one of its own, "
                "and so another name in its recipe, or another seed"
            )
        seen.add(place)
        RunFolder(job.folder).refuse_strangers()


# ---------------------------------------------------------------- here


class _Work:
    """A run at work in another process."""

    def __init__(self, job: Job, threads: int, changed_ok: bool, others: int = 0) -> None:
        context: Any = processes.context()
        self.job = job
        self.ended: Ended | None = None
        self.line, theirs = context.Pipe()
        around = (*processes.surroundings(), threads, others)
        self.process = context.Process(target=_carried_out, args=(theirs, job, around, changed_ok))
        self.process.start()
        theirs.close()

    def heard(self) -> Message | None:
        """What it has sent; None once it has ended, or tells how it ends."""
        try:
            message: Message | Ended = self.line.recv()
        except (EOFError, OSError):
            message = self._lost()
        if isinstance(message, Ended):
            self.ended = message
            self.process.join(processes.GRACE)
            return None
        return message

    def _lost(self) -> Ended:
        self.process.join(processes.GRACE)
        how = processes.how_ended(self.process.exitcode or 0)
        text = f"its process was ended ({how}); what is finished is kept"
        return Ended(self.job, error=TrainingError(text), goes_on=True)


@contextmanager
def _started(jobs: Sequence[Job], threads: int, changed_ok: bool) -> Iterator[list[_Work]]:
    """A process for each job; behind the block none is left."""
    works: list[_Work] = []
    try:
        for job in jobs:
            works.append(_Work(job, threads, changed_ok, len(jobs) - 1))
        yield works
    finally:
        for work in works:
            work.line.close()
        _end(works)


def _end(works: Sequence[_Work]) -> None:
    try:
        for work in works:
            work.process.join(processes.GRACE)
    finally:
        for work in works:
            work.process.kill()


def _attend(works: Sequence[_Work], shown: RunsTable) -> None:
    """Show what they send until all have ended."""
    waiting = {work.line: work for work in works}
    while waiting:
        for line in wait(list(waiting)):
            assert isinstance(line, Connection)
            work = waiting[line]
            name, message = str(work.job.folder), work.heard()
            if message is not None:
                shown.take(name, message)
                continue
            del waiting[line]
            assert work.ended is not None
            shown.ended(name, work.ended.how)


# ---------------------------------------------------------------- in the other process


def _carried_out(
    line: Connection, job: Job, around: tuple[str, dict[str, str], int, int], changed_ok: bool
) -> None:
    """Carry out a job, and send what it shows and how it ends."""
    directory, environment, threads, others = around
    processes.surround(directory, environment)
    torch.set_num_threads(threads)
    # Ctrl-C reaches all processes of a terminal at once, and is for the first of them to hear. Not
    # SIG_IGN, which the processes that this one starts would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    with as_interrupts():
        threading.Thread(target=_heed, args=(line,), daemon=True).start()
        ended = _ended(job, Sending(partial(_send, line)), changed_ok, others)
        _send(line, ended)


def _ended(job: Job, display: Display, changed_ok: bool, others: int) -> Ended:
    carry_out = partial(run, job.recipe, job.folder, command=job.command, display=display)
    try:
        return Ended(job, carry_out(changed_ok=changed_ok, beside=others))
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return _failed(job, error)


def _failed(job: Job, error: BaseException) -> Ended:
    """With what a run has ended, in a line: an error in the user's own code with its place."""
    goes_on = not isinstance(error, NetslimError)
    if isinstance(error, _TOLD):
        return Ended(job, error=error, goes_on=goes_on)
    where = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {first_line(error)}"
    told = TrainingError(f"{what} (line {where.lineno} of {where.filename})")
    return Ended(job, error=told, goes_on=goes_on)


def _send(line: Connection, message: Message | Ended) -> None:
    with suppress(OSError):  # where nobody listens any more, `_heed` ends the process
        line.send(message)


def _heed(line: Connection) -> None:
    """Interrupt this process when the line breaks; nothing is ever sent the other way."""
    with suppress(OSError):
        line.poll(None)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(processes.GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


__all__ = ["Ended", "Job", "check_jobs", "in_turn", "together"]
