"""What takes long and is no training shows how far it is, on a terminal alone."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from netslim.training.loop.progress import Display


@pytest.mark.parametrize("terminal", [True, False])
def test_a_count_is_seen_on_a_terminal_alone(terminal):
    written = StringIO()
    console = Console(file=written, force_terminal=terminal, width=100, _environ={})
    with Display(console).counting("layer times") as progress:
        assert not written.getvalue()  # nothing is shown before it has begun
        progress("conv 3x3", 1, 4)
        progress("done", 4, 4)
    assert ("layer times  done" in written.getvalue()) == terminal
