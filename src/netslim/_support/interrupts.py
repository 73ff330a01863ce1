"""SIGTERM, which schedulers, containers and `kill` send, ends a command as Ctrl-C does: what is
finished is kept, nothing half-written, and it is said how to go on.

Either waits while a module is being imported: libraries take an exception in there for something
that is missing, and go on with half of it. Whoever sends a second one meanwhile has it at once:
nothing of a file is ever half-written, so the process can simply end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from netslim.errors import INTERRUPTED

_IMPORTS = "<frozen importlib._bootstrap>"
_SOON = 0.05  # seconds until a signal that came within an import is sent again


@contextmanager
def as_interrupts() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt in the main thread, where nobody else handles it."""
    alone = threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner, patient = os.getpid(), not _importing(sys._getframe())
    waiting, sent_again = threading.Event(), threading.Event()

    def send_again(number: int) -> None:
        sent_again.set()
        os.kill(owner, number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        ours = sent_again.is_set()
        sent_again.clear()
        if os.getpid() != owner:  # a worker process, which has taken the handler with it
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)
        elif patient and _importing(frame):
            if waiting.is_set() and not ours:
                os.write(2, b"netslim: interrupted\n")
                os._exit(INTERRUPTED)
            waiting.set()
            again = threading.Timer(_SOON, send_again, (number,))
            again.daemon = True
            again.start()
        else:
            raise KeyboardInterrupt

    before = {signal.SIGTERM.value: signal.signal(signal.SIGTERM, interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT.value] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    """Whether what runs here was begun by an import that is not done."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False


__all__ = ["as_interrupts"]
