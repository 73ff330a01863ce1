"""What takes long and is no training shows how far it is, on a terminal alone."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from netslim.training import run
from netslim.training.loop.progress import Display
from stage_runs import HALF, recipe


@pytest.mark.parametrize("terminal", [True, False])
def test_a_count_is_seen_on_a_terminal_alone(terminal):
    written = StringIO()
    console = Console(file=written, force_terminal=terminal, width=100, _environ={})
    with Display(console).counting("layer times") as progress:
        assert not written.getvalue()  # nothing is shown before it has begun
        progress("conv 3x3", 1, 4)
        progress("done", 4, 4)
    assert ("layer times  done" in written.getvalue()) == terminal


def test_a_count_within_another_is_not_seen():
    written = StringIO()
    display = Display(Console(file=written, force_terminal=True, width=100, _environ={}))
    with display.counting("outer") as outer, display.counting("inner") as inner:
        outer("first", 1, 2)
        inner("second", 1, 2)
    assert "outer" in written.getvalue()
    assert "inner" not in written.getvalue()
    with display.counting("later") as later:
        later("third", 1, 2)
    assert "later  third" in written.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_scores_of_data_and_looks_at_images_are_counted(terminal, tmp_path):
    stages = [HALF | {"criterion": "taylor", "batches": 3}]
    written = StringIO()
    console = Console(file=written, force_terminal=terminal, width=100, _environ={})
    run(recipe(*stages), tmp_path / "run", display=Display(console))
    for told in ("01-prune  scoring", "looking at images"):
        assert (told in written.getvalue()) == terminal, told
