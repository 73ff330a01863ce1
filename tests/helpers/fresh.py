"""Processes of their own, which can be killed, without the seconds that importing PyTorch takes.

One process imports everything once and forks each of the others off itself, so that they are as
little like this one as if they had just been started.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["netslim.cli", "netslim.training.imported_once"])


def start(function: Callable[..., Any], *arguments: Any, told: Path) -> ForkServerProcess:
    """Call a function of a module, with the directory and the environment that there are now.

    What it prints goes to the file ``told``.
    """
    surroundings = (str(Path.cwd()), dict(os.environ), str(told))
    process = _SERVER.Process(target=_begin, args=(surroundings, function, *arguments))
    process.start()
    return process


def ended(process: ForkServerProcess, seconds: float = 120) -> int | None:
    """How it ended: what it said, or minus the signal; None for one that had to be stopped."""
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code


def _begin(
    surroundings: tuple[str, dict[str, str], str], function: Callable[..., Any], *arguments: Any
) -> None:
    import torch

    directory, environment, told = surroundings
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(told, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    result = function(*arguments)
    sys.exit(result if isinstance(result, int) else 0)
