"""What all commands share: their parsers, and options by dotted name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from netslim.errors import RecipeError

Command = Callable[[argparse.Namespace, dict[str, str]], int]


def add(
    commands: Any,
    name: str,
    text: str,
    command: Command | None = None,
    *,
    description: str = "",
    epilog: str = "",
    dotted: bool = False,
) -> argparse.ArgumentParser:
    """A command's parser, or without `commands` the main one; `dotted` ones take `--a.b VALUE`."""
    style: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
        "epilog": epilog,
    }
    if commands is None:
        parser = argparse.ArgumentParser(prog=name, description=text, **style)
    else:
        parser = commands.add_parser(name, help=text, description=description or text, **style)
        parser.set_defaults(command=command, dotted=dotted)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def split_overrides(given: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--a.b VALUE` and `--a.b=VALUE` out of the arguments."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    items = iter(given)
    for item in items:
        key, equals, value = item.removeprefix("--").partition("=")
        if not item.startswith("--") or "." not in key:
            rest.append(item)
            continue
        text = value if equals else next(items, None)
        if text is None or (not equals and text.startswith("--")):
            raise RecipeError(f"--{key} needs a value, for example --{key} 1")
        overrides[key] = text
    return rest, overrides


def as_arguments(overrides: dict[str, str]) -> list[str]:
    """Overrides as they are typed."""
    return [item for key, value in overrides.items() for item in (f"--{key}", value)]
