"""The command line: each command is one library call.

Whatever goes wrong on purpose (`NetslimError`) is one line on standard error and exit code 1;
Ctrl-C is one line and 130; `--debug` shows the traceback instead. Wrong usage exits with 2, as
argparse does.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from netslim.cli import (
    bench,
    evaluate,
    export,
    inspect,
    prune,
    run,
    search,
    sensitivity,
    train,
)
from netslim.cli.common import Command, add, split_overrides
from netslim.errors import NetslimError


def main(arguments: Sequence[str] | None = None) -> int:
    """The `netslim` command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        return _dispatch([item for item in given if item != "--debug"])
    except BrokenPipeError:  # the reader of our output, a pager for instance, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (NetslimError, OSError, KeyboardInterrupt) as error:
        if debug:
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        said = (
            "; ".join(["interrupted", *map(str, error.args)])
            if interrupted
            else " ".join(str(error).split())
        )
        print(f"netslim: {said}", file=sys.stderr)
        return 130 if interrupted else 1


def _dispatch(given: list[str]) -> int:
    parser = _parser()
    typed = shlex.join(["netslim", *given])
    given, overrides = split_overrides(given)
    options = parser.parse_args(given, argparse.Namespace(typed=typed))
    command: Command | None = getattr(options, "command", None)
    if command is None:
        parser.print_help()
        return 2
    if overrides and not options.dotted:
        parser.error(f"unrecognized arguments: --{next(iter(overrides))}")
    return command(options, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = add(
        None,
        "netslim",
        "Make a convolutional network smaller: sparse training, channel cuts that are proved, "
        "reports.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (run, train, prune, evaluate, inspect, sensitivity, search, export, bench):
        command.register(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"netslim {version('netslim')}")
        parser.exit()
