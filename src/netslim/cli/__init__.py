"""The command line: each command is one library call.

Whatever goes wrong on purpose (`NetslimError`), Ctrl-C and wrong usage (no such command, option or
choice, or one given twice) are one line on standard error and an exit code, see `EXIT_CODES`;
`--debug` shows the traceback instead. Only the module of the command that was typed is imported, so
that `netslim --version` does not wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import netslim
from netslim._support import nearest
from netslim._support.interrupts import as_interrupts
from netslim.cli.common import check_networks, split_overrides, told, weights_option
from netslim.cli.parser import Parser, with_heading
from netslim.cli.wording import check_once, in_words_of, said
from netslim.errors import INTERRUPTED, NetslimError
from netslim.training.launched import for_one_process, place

# Command -> what is said of it. Each is carried out by the module of its name in this package; of
# two words, with an underscore between them.
COMMANDS = {
    "run": "carry out a recipe, from data to report",
    "recipes": "list the shipped recipes, a line each, or show one",
    "models": "list the networks that go by a name",
    "data": "list the kinds of data sets",
    "options": "list the keys of a recipe, with types, defaults and meanings",
    "criteria": "list what scores channels, spreads a cut, or trains towards one",
    "status": "say how far a run is",
    "report": "the page of a finished run, or of several side by side",
    "train": "train a network once",
    "finetune": "train a network on after a cut",
    "prune": "cut channels out of a network",
    "evaluate": "look at the test images",
    "predict": "say what is in pictures",
    "inspect": "show which channels of a model can be cut",
    "sensitivity": "cut each group of channels alone and look at what is lost",
    "search": "find the smallest network within an accuracy drop",
    "export": "write a network for another runtime",
    "hub": "write a run's network as a folder for the Hugging Face hub",
    "quantize": "bring a network to int8, beside what it was",
    "bench": "time networks",
    "bench paper": "run rows of the published tables",
    "completion": "print what makes a shell complete commands and options",
}

# What the shell is told -> what it means; docs/command-line.md says the same at more length.
EXIT_CODES = {
    0: "done, or shown",
    1: "failed, or refused: one line on standard error says what, where and what to do",
    2: "wrong usage: no such command, --option or choice in its help; nothing was begun",
    3: "`bench paper`: the time was up before all rows were finished",
    INTERRUPTED: "interrupted, by Ctrl-C or SIGTERM; what is finished is kept",
    141: "the reader of the output has left",
}

_MORE = """\
Each command has a --help of its own, with examples, and --json, which prints data and nothing else.

"""
_EXAMPLES = """\
  netslim run digits
  netslim prune zoo:vgg16 --input 3 32 32 --cut-macs 0.5 --out small.safetensors
  netslim evaluate small.safetensors --data torchvision:CIFAR10 --json

"""
_SHARED = ("run", "train", "finetune")  # which several processes carry out together


def main(arguments: Sequence[str] | None = None) -> int:
    """The `netslim` command; returns the exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    given = list(arguments)
    debug = "--debug" in given
    _print_anywhere()
    try:
        with as_interrupts(), _warnings_as_lines():
            return _dispatch([item for item in given if item != "--debug"])
    except BrokenPipeError:  # the reader of our output, a pager for instance, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (NetslimError, OSError, KeyboardInterrupt) as error:
        if debug:
            raise
        line, code = told(error)
        if not getattr(error, "told_by_another", False):
            print(f"netslim: {line}", file=sys.stderr)
        return code


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Inside, a warning is its text, without the line of code that it came from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before


def _print_anywhere() -> None:
    """Where output is not UTF-8, signs that it lacks become question marks, not a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _dispatch(given: list[str]) -> int:
    if not given or given[0].startswith("-"):
        overview().read(given)
        overview().print_help()
        return 2
    command, rest = _split(given)
    parser = parser_of(command)
    tokens, overrides = split_overrides(rest)
    if overrides and not parser.dotted:
        raise parser.wrong(f"there is no option --{next(iter(overrides))}")
    options = parser.read(tokens)
    check_once(parser, tokens, overrides)
    options.typed = shlex.join(["netslim", *given])
    options.say = partial(said, parser=parser, overrides=overrides)
    if given[0] not in _SHARED and place().world > 1:
        raise for_one_process()
    assert parser.command is not None
    with in_words_of(parser, overrides):
        check_networks(options)
        return parser.command(options, weights_option(options, overrides))


def _split(given: list[str]) -> tuple[str, list[str]]:
    """The command, of one word or two, and what stands behind it."""
    if " ".join(given[:2]) in COMMANDS:
        return " ".join(given[:2]), given[2:]
    return given[0], given[1:]


def parser_of(command: str) -> Parser:
    """The parser of a command.

    Raises:
        UsageError: there is none of this name.
    """
    if command not in COMMANDS:
        raise overview().wrong(f"there is no command {command!r}{nearest(command, COMMANDS)}")
    parser = Parser(f"netslim {command}", COMMANDS[command])
    module = command.replace(" ", "_")
    importlib.import_module(f"netslim.cli.{module}").register(parser)
    return parser


def overview(inside: Mapping[str, Parser] | None = None) -> Parser:
    """What `netslim` alone understands; with what is inside of the commands that are named."""
    parser = Parser(
        "netslim",
        "Make a convolutional network smaller: sparse training, channel cuts that are proved, "
        "reports.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", parser_class=argparse.ArgumentParser
    )
    for name, text in COMMANDS.items():
        if inside is None:
            commands.add_parser(name, help=text)
        elif name in inside:
            commands.add_parser(name, help=text, parents=[inside[name]], add_help=False)
    codes = "\n".join(f"  {code:<5} {text}" for code, text in EXIT_CODES.items())
    parser.epilog = f"{_MORE}{with_heading(_EXAMPLES)}exit codes:\n{codes}\n"
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"netslim {netslim.__version__}")
        parser.exit()
