"""`netslim`, and `python -m netslim`, as `torchrun -m netslim` starts it.

From here on an interruption ends in one line and an exit code of its own, also while the command
line itself is still being imported.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from netslim.errors import INTERRUPTED


def main() -> int:
    """The `netslim` command; returns the exit code."""
    try:
        from netslim.cli import main as carried_out

        return carried_out()
    except KeyboardInterrupt:
        if "--debug" in sys.argv:
            raise
        print("netslim: interrupted", file=sys.stderr)
        return INTERRUPTED


def started_by_name() -> NoReturn:
    """The same, started by `python -m`.

    That looks for modules in the current directory first, where a file `timm.py` or `yaml.py` would
    take the library's place. Names that the user types are looked up there all the same.
    """
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.exit(main())


if __name__ == "__main__":
    started_by_name()
