"""`completion`: commands, options and choices for the Tab key of a shell."""

from __future__ import annotations

import argparse

from netslim._support.packages import missing
from netslim.cli import COMMANDS, overview, parser_of
from netslim.cli.common import add_json, print_json
from netslim.cli.parser import Parser
from netslim.errors import NetslimError

_COMPLETION = """\
Print a script that makes a shell complete netslim's commands, their options and choices. It holds
all of them, so that the Tab key waits for nothing; print it anew after an update. Options of a
recipe by their dotted names are not in it: netslim options lists them.
"""
_EXAMPLES = """\
  netslim completion bash > ~/.local/share/bash-completion/completions/netslim
  netslim completion zsh > ~/.zfunc/_netslim
"""


def register(parser: Parser) -> None:
    """Flags of the command."""
    parser.carries_out(_completion, about=_COMPLETION, examples=_EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh"), help="whose script it is to be")
    add_json(parser, "the shell and the script")


def _completion(options: argparse.Namespace, _: dict[str, str]) -> int:
    if missing(["shtab"]):
        raise NetslimError(
            "completion needs shtab, not installed here: pip install 'netslim[completion]'"
        )
    import shtab

    script = shtab.complete(_whole(), options.shell)
    if options.json:
        print_json({"shell": options.shell, "script": script})
    else:
        print(script)
    return 0


def _whole() -> argparse.ArgumentParser:
    """One parser of all commands; those of two words are options of none."""
    single = [name for name in COMMANDS if " " not in name]
    return overview({name: parser_of(name) for name in single})
