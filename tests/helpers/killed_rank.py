"""A run of which one rank is killed in the middle of a cut."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from netslim.surgery import prune
from netslim.training import run
from netslim.training.recipe.schema import Recipe


def run_and_kill(recipe: Recipe, folder: Path) -> None:
    """Carry out a recipe; rank 1 dies with the third tensor that is cut in place."""
    if os.environ["RANK"] == "1":
        put, done = prune._put, []

        def dying(*arguments: Any) -> None:
            done.append(arguments)
            if len(done) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            put(*arguments)

        prune._put = dying
    run(recipe, folder)
